/* Live mode: what makes containers outlive their supervisor.
 *
 * Theory of operation
 *   The keeper is the launcher's parent and, to it, the supervisor: it owns our end of the control socket. It does nothing but
 *   hold fds that a supervisor of the same project would need: that socket, and of each container its socket, the ends of its
 *   pipes, its terminal. So while no supervisor is there, what the launcher and the inits have to say waits in their sockets,
 *   and a container that writes waits for its pipe once that is full: nothing is lost, and nothing here knows what it means.
 *   The keeper is a process of its own so that the launcher still keeps no fd per container, which every clone would copy.
 * Protocol
 *   One SOCK_SEQPACKET message each way at a time, `struct kept_message`. A supervisor puts fds (an fd comes along), drops all
 *   that a container has, lists them (each comes as KEEPER_ENTRY, then KEEPER_DONE), or ends everything. The next supervisor
 *   connects to the listening socket, whose place in the file system the first one chose, and is greeted with KEEPER_HELLO; or
 *   with KEEPER_BUSY as long as there is another.
 * Who may connect
 *   Our own user and root, as the kernel says (SO_PEERCRED).
 * What ends it
 *   KEEPER_END: it forgets all and waits for the launcher, which has seen the end of its control socket. The launcher's end. A
 *   supervisor that goes before it has put anything. If the keeper is killed, the launcher sees that by its pidfd. */
#define _GNU_SOURCE
#include "launcher.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define QUEUE (4 << 20) /* bytes of reports that wait for a supervisor; the launcher waits with more */
#define SPARE 16        /* fds of our own, and those on their way */

enum { OWN_FDS = 3, MAX_PUT = 8 };

struct kept {
	uint64_t id;
	uint32_t kind;
	int fd;
};

static struct kept *all;
static size_t count, space;
static int client = -1, listener = -1;
static pid_t client_pid;
static uint32_t room;

static void let_go(void)
{
	if (client >= 0)
		close(client);
	client = -1;
}

static bool remember_fd(uint64_t id, uint32_t kind, int fd)
{
	if (count == space) {
		size_t more = space ? 2 * space : 64;
		struct kept *grown = realloc(all, more * sizeof *grown);
		if (!grown)
			return false;
		all = grown;
		space = more;
	}
	all[count++] = (struct kept){id, kind, fd};
	return true;
}

static void drop(uint64_t id)
{
	size_t left = 0;

	for (size_t i = 0; i < count; i++)
		if (all[i].id == id)
			close(all[i].fd);
		else
			all[left++] = all[i];
	count = left;
}

static void drop_all(void)
{
	for (size_t i = 0; i < count; i++)
		close(all[i].fd);
	count = 0;
}

/* Waits where the reader is slow: there is nobody else to be served. */
static bool say(int socket, struct kept_message message, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} rights = {0};
	struct iovec vector = {&message, sizeof message};
	struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1};
	ssize_t sent;

	message.magic = MAGIC;
	message.version = KEEPER_VERSION;
	if (fd >= 0) {
		header.msg_control = &rights;
		header.msg_controllen = sizeof rights;
		rights.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&rights.align), &fd, sizeof fd);
	}
	do
		sent = sendmsg(socket, &header, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent == (ssize_t)sizeof message;
}

static bool hear(struct kept_message *message, int *fds, uint32_t *got)
{
	union {
		char bytes[CMSG_SPACE(MAX_PUT * sizeof(int))];
		struct cmsghdr align;
	} rights;
	struct iovec vector = {message, sizeof *message};
	struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
	const struct cmsghdr *first;
	ssize_t size;

	*got = 0;
	do
		size = recvmsg(client, &header, MSG_CMSG_CLOEXEC);
	while (size < 0 && errno == EINTR);
	first = size >= 0 ? CMSG_FIRSTHDR(&header) : NULL; /* an empty message may bring some, too */
	if (first && first->cmsg_level == SOL_SOCKET && first->cmsg_type == SCM_RIGHTS) {
		*got = (uint32_t)((first->cmsg_len - CMSG_LEN(0)) / sizeof *fds);
		memcpy(fds, CMSG_DATA(first), *got * sizeof *fds);
	}
	return size == (ssize_t)sizeof *message && !(header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && message->magic == MAGIC &&
	       message->version == KEEPER_VERSION;
}

static bool list(void)
{
	for (size_t i = 0; i < count; i++)
		if (!say(client, (struct kept_message){.type = KEEPER_ENTRY, .id = all[i].id, .kind = all[i].kind}, all[i].fd))
			return false;
	return say(client, (struct kept_message){.type = KEEPER_DONE, .number = (uint32_t)count}, -1);
}

/* False: this client is not one of ours, or has gone. */
static bool serve_client(bool *ending)
{
	struct kept_message message;
	int fds[MAX_PUT];
	uint32_t got, taken = 0;
	bool ours = hear(&message, fds, &got);

	if (ours && message.type == KEEPER_PUT)
		while (taken < got && count < room && remember_fd(message.id, message.kind >> 4 * taken & 15, fds[taken]))
			taken++;
	for (uint32_t i = taken; i < got; i++)
		close(fds[i]);
	if (!ours)
		return false;
	switch (message.type) {
	case KEEPER_PUT:
		return taken > 0 && taken == message.number;
	case KEEPER_DROP:
		if (message.id) /* 0 is what the project itself has */
			drop(message.id);
		return true;
	case KEEPER_LIST:
		return list();
	case KEEPER_END:
		*ending = true;
		drop_all();
		return true;
	default:
		return false;
	}
}

static void welcome(bool ending)
{
	int next = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	struct ucred peer = {0};
	socklen_t size = sizeof peer;

	if (next < 0)
		return;
	if (getsockopt(next, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || (peer.uid != geteuid() && peer.uid != 0)) {
		close(next);
	} else if (client >= 0 || ending) {
		(void)say(next, (struct kept_message){.type = KEEPER_BUSY, .number = (uint32_t)client_pid}, -1);
		close(next);
	} else if (say(next, (struct kept_message){.type = KEEPER_HELLO, .kind = VERSION, .number = room}, -1)) {
		client = next;
		client_pid = peer.pid;
	} else {
		close(next);
	}
}

static void make_room(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
	(void)getrlimit(RLIMIT_NOFILE, &limit);
	room = limit.rlim_cur > 1u << 20 ? 1u << 20 : (uint32_t)limit.rlim_cur;
	room = room > SPARE ? room - SPARE : 0;
}

static _Noreturn void keep(int control, int launcher)
{
	bool ending = false;
	int self = (int)syscall(NR_pidfd_open, getpid(), 0);

	show_as("tinyvisor-keeper", "for the next supervisor");
	make_room();
	if (self < 0 || !remember_fd(0, KEPT_CONTROL, control) || !remember_fd(0, KEPT_LAUNCHER, launcher) ||
	    !remember_fd(0, KEPT_KEEPER, self))
		_exit(125);
	(void)say(client, (struct kept_message){.type = KEEPER_HELLO, .kind = VERSION, .number = room}, -1);
	for (;;) {
		struct pollfd fds[3] = {{listener, POLLIN, 0}, {client, POLLIN, 0}, {launcher, POLLIN, 0}};
		if (poll(fds, 3, -1) < 0)
			continue; /* EINTR, ENOMEM: it says nothing of any fd */
		if (fds[1].revents && !serve_client(&ending))
			let_go();
		if (fds[2].revents) {
			(void)waitpid(-1, NULL, 0);
			_exit(0);
		}
		if (fds[0].revents)
			welcome(ending);
		if (client < 0 && !ending && count <= OWN_FDS)
			_exit(0); /* nobody has anything to come back for */
	}
}

/* Forks: returns the control socket's end in the child, which is the launcher; -errno where that can't be. The parent keeps. */
int become_kept(int first_client, int listening)
{
	const int queue = QUEUE;
	int ends[2], launcher;
	pid_t child, self = getpid();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return -errno;
	/* Ours alone where we may: what an ordinary user has is some hundred reports. */
	if (setsockopt(ends[1], SOL_SOCKET, SO_SNDBUFFORCE, &queue, sizeof queue) < 0)
		(void)setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &queue, sizeof queue);
	child = fork();
	if (child < 0)
		return -errno;
	if (child == 0) {
		close(first_client);
		close(listening);
		close(ends[0]);
		supervisor_pidfd = (int)syscall(NR_pidfd_open, self, 0);
		if (supervisor_pidfd < 0 || getppid() != self)
			_exit(0);
		return ends[1];
	}
	close(ends[1]);
	client = first_client;
	listener = listening;
	client_pid = getppid();
	launcher = (int)syscall(NR_pidfd_open, child, 0);
	if (launcher < 0)
		_exit(125);
	keep(ends[0], launcher);
}
