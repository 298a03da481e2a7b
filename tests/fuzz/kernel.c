/* See kernel.h. The names below are the launcher's calls: the compiler's command line makes `open` fake_open, here, too, so that
 * what the headers declare is what is defined here. */
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <launcher.h>

#undef calloc
#undef free
#undef malloc
#undef mmap
#undef realloc
void *malloc(size_t size);
void free(void *memory);
void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset);

#define MAX_CALLS 2000000 /* of one input: more is an endless loop */
#define MAX_MAPPINGS 16
#define YEARS (10 * 365 * 86400 * 1000000000LL) /* ns: for ever */

struct world world;

static struct block { /* before each allocation */
	struct block *next, *previous;
	max_align_t memory[];
} blocks = {&blocks, &blocks};

static struct { void *at; size_t size; } mappings[MAX_MAPPINGS];
static int mapping_count;

_Noreturn void broken(const char *what, const char *file, int line)
{
	(void)dprintf(2, "%s:%d: expected: %s\n", file, line, what);
	abort();
}

void touch(const void *data, size_t size)
{
	const volatile uint8_t *bytes = data;

	for (size_t i = 0; i < size; i++)
		(void)bytes[i];
}

void touch_string(const char *string)
{
	touch(string, strlen(string) + 1);
}

/* ---- the input ---- */

int parse_frames(const uint8_t *data, size_t size, struct frame *frames)
{
	int count = 0;

	while (size >= sizeof frames->header && count < MAX_FRAMES) {
		struct frame *frame = frames + count++;
		memcpy(&frame->header, data, sizeof frame->header);
		data += sizeof frame->header;
		size -= sizeof frame->header;
		if (frame->header.size > size)
			frame->header.size = (uint32_t)size;
		frame->header.kind %= FRAME_KINDS;
		frame->data = data;
		data += frame->header.size;
		size -= frame->header.size;
	}
	return count;
}

bool has_answers(void)
{
	return world.answer < world.answers_end;
}

uint64_t draw(size_t bytes)
{
	uint64_t value = 0;

	draw_bytes(&value, bytes);
	return value;
}

void draw_bytes(void *out, size_t size)
{
	size_t left = (size_t)(world.answers_end - world.answer);

	memset(out, 0, size);
	if (size > left)
		size = left;
	if (!size) /* there may be none at all */
		return;
	memcpy(out, world.answer, size);
	world.answer += size;
}

void start_world(const uint8_t *data, size_t size)
{
	struct frame frames[MAX_FRAMES];
	int count = parse_frames(data, size, frames);

	memset(&world, 0, sizeof world);
	for (int i = 0; i < count; i++)
		if (frames[i].header.kind == FRAME_MESSAGE)
			world.messages[world.message_count++] = frames[i];
		else if (frames[i].header.kind == FRAME_FILE && world.message_count)
			world.files[world.message_count - 1] = frames[i];
		else if (frames[i].header.kind == FRAME_ANSWERS && !world.answer) {
			world.answer = frames[i].data;
			world.answers_end = frames[i].data + frames[i].header.size;
		}
	for (int fd = 0; fd < 3; fd++)
		world.fds[fd] = FD_OPEN;
	world.patience = world.message_count;
	world.self = 100;
	world.next_pid = 1000;
	world.now = 1000000000;
}

void end_world(void)
{
	while (blocks.next != &blocks) {
		struct block *block = blocks.next;
		blocks.next = block->next;
		free(block);
	}
	blocks.previous = &blocks;
	while (mapping_count) {
		mapping_count--;
		(void)munmap(mappings[mapping_count].at, mappings[mapping_count].size);
	}
}

_Noreturn void leave_world(enum ending ending)
{
	longjmp(world.out, ending);
}

/* Every call begins with it. */
static void count_call(void)
{
	if (++world.calls > MAX_CALLS)
		broken("an end of it", __FILE__, __LINE__);
}

static const int errors[] = {EPERM, ENOENT, EINTR, EAGAIN, ENOMEM, EBUSY, EEXIST, ENOTDIR, EINVAL, EMFILE, ENOSPC, EACCES, ENOBUFS,
			     ESRCH, ECHILD, EPIPE};

/* One answer in eight is that it fails. */
static bool fails(void)
{
	unsigned answer = (unsigned)draw(1);

	count_call();
	if (answer < 224)
		return false;
	errno = errors[answer % (sizeof errors / sizeof *errors)];
	return true;
}

static int plain(void)
{
	return fails() ? -1 : 0;
}

/* ---- fds ---- */

static bool is_open(int fd)
{
	if (fd >= 0 && fd < MAX_OPEN && world.fds[fd] != FD_CLOSED)
		return true;
	errno = EBADF;
	return false;
}

int open_fd(enum fd_kind kind, int least)
{
	for (int fd = least < 0 ? MAX_OPEN : least; fd < MAX_OPEN; fd++)
		if (world.fds[fd] == FD_CLOSED) {
			world.fds[fd] = kind;
			world.contents[fd] = NULL;
			world.swept[fd] = false;
			return fd;
		}
	errno = EMFILE;
	return -1;
}

int count_open(void)
{
	int count = 0;

	for (int fd = 0; fd < MAX_OPEN; fd++)
		count += world.fds[fd] != FD_CLOSED;
	return count;
}

static int on_fd(int fd)
{
	return fails() || !is_open(fd) ? -1 : 0;
}

static int new_fd(enum fd_kind kind)
{
	return fails() ? -1 : open_fd(kind, 0);
}

static int at_path(int directory, const char *path)
{
	touch_string(path);
	return fails() || (path[0] != '/' && directory != AT_FDCWD && !is_open(directory)) ? -1 : 0;
}

static int open_at(int directory, const char *path)
{
	enum fd_kind kind = strstr(path, "ptmx") ? FD_DEVPTS : strstr(path, "proc") ? FD_PROC : FD_FILE;

	return at_path(directory, path) < 0 ? -1 : open_fd(kind, 0);
}

int close(int fd)
{
	count_call();
	if (fd < 0 || (fd < MAX_OPEN && world.swept[fd] && !is_open(fd))) {
		errno = EBADF;
		return -1;
	}
	EXPECT(is_open(fd)); /* else it may be another's by now */
	world.fds[fd] = FD_CLOSED;
	return 0;
}

static int close_range_(unsigned first, unsigned last)
{
	if (first > last) {
		errno = EINVAL;
		return -1;
	}
	if (fails())
		return -1;
	for (unsigned fd = first; fd <= last && fd < MAX_OPEN; fd++) {
		world.fds[fd] = FD_CLOSED;
		world.swept[fd] = true;
	}
	return 0;
}

static int copy_fd(int fd, int copy)
{
	if (copy < 0)
		return -1;
	world.fds[copy] = world.fds[fd];
	world.contents[copy] = world.contents[fd];
	return copy;
}

int dup2(int fd, int copy)
{
	if (on_fd(fd) < 0)
		return -1;
	if (copy < 0 || copy >= MAX_OPEN) {
		errno = EBADF;
		return -1;
	}
	return copy_fd(fd, copy);
}

int dup3(int fd, int copy, int flags)
{
	(void)flags;
	if (fd != copy)
		return dup2(fd, copy);
	errno = EINVAL;
	return -1;
}

int fcntl(int fd, int command, ...)
{
	va_list arguments;
	int number;

	va_start(arguments, command);
	number = va_arg(arguments, int);
	va_end(arguments);
	if (on_fd(fd) < 0)
		return -1;
	if (command == F_SETFD)
		return 0;
	if (command == F_GETFL)
		return draw(1) & 1 ? O_RDONLY : O_RDWR;
	EXPECT(command == F_DUPFD_CLOEXEC);
	return copy_fd(fd, open_fd(FD_OPEN, number));
}

static int two_fds(int *ends, enum fd_kind kind)
{
	int first, second;

	if (fails())
		return -1;
	first = open_fd(kind, 0);
	second = first < 0 ? -1 : open_fd(kind, 0);
	if (second < 0) {
		if (first >= 0)
			world.fds[first] = FD_CLOSED;
		return -1;
	}
	ends[0] = first;
	ends[1] = second;
	return 0;
}

int pipe2(int ends[2], int flags)
{
	(void)flags;
	return two_fds(ends, FD_PIPE);
}

int socketpair(int domain, int type, int protocol, int ends[2])
{
	(void)domain, (void)type, (void)protocol;
	return two_fds(ends, FD_OPEN);
}

int socket(int domain, int type, int protocol)
{
	(void)domain, (void)type, (void)protocol;
	return new_fd(FD_OPEN);
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
	(void)address, (void)size, (void)flags;
	if (world.visitors++ > world.message_count) /* nobody comes any more */
		leave_world(SLEPT_FOR_EVER);
	return on_fd(fd) < 0 ? -1 : open_fd(FD_OPEN, 0);
}

int memfd_create(const char *name, unsigned flags)
{
	(void)flags;
	touch_string(name);
	return new_fd(FD_OPEN);
}

int open(const char *path, int flags, ...)
{
	(void)flags;
	return open_at(AT_FDCWD, path);
}

int openat(int directory, const char *path, int flags, ...)
{
	(void)flags;
	return open_at(directory, path);
}

int fstatat(int directory, const char *path, struct stat *status, int flags)
{
	(void)flags;
	memset(status, 0, sizeof *status);
	if (at_path(directory, path) < 0)
		return -1;
	status->st_ino = strncmp(path, "self/", 5) && !(draw(1) & 1) ? 2 : 1;
	return 0;
}

int fstat(int fd, struct stat *status)
{
	static const mode_t modes[] = {S_IFDIR, S_IFREG, S_IFCHR, S_IFLNK};

	memset(status, 0, sizeof *status);
	if (on_fd(fd) < 0)
		return -1;
	status->st_mode = modes[draw(1) % 4];
	status->st_rdev = draw(1) & 1 ? 0 : makedev(1, 3);
	status->st_ino = (ino_t)(draw(1) & 1 ? 1 : fd + 1);
	if (world.contents[fd])
		status->st_size = (off_t)(world.contents[fd]->header.size + draw(1));
	return 0;
}

int fstatfs(int fd, struct statfs *status)
{
	memset(status, 0, sizeof *status);
	if (on_fd(fd) < 0)
		return -1;
	status->f_type = world.fds[fd] == FD_PROC ? 0x9fa0 : world.fds[fd] == FD_DEVPTS ? 0x1cd1 : 0;
	return 0;
}

/* ---- reading and writing ---- */

/* What is read of signals is whole; of others, as many bytes as an answer says. Zero: a file has a number, a pipe a zero, and
 * there is no signal. */
ssize_t read(int fd, void *out, size_t size)
{
	const uint32_t answer = (uint32_t)draw(1);
	const size_t got = answer * 4 < size ? answer * 4 : size;

	if (on_fd(fd) < 0)
		return -1;
	if (!answer && (world.fds[fd] == FD_FILE || world.fds[fd] == FD_PIPE)) {
		memset(out, world.fds[fd] == FD_FILE ? '7' : 0, size < 4 ? size : 4);
		return size < 4 ? (ssize_t)size : 4;
	}
	if (!answer) {
		errno = EAGAIN;
		return -1;
	}
	if (world.fds[fd] != FD_SIGNALS) {
		draw_bytes(out, got);
		return (ssize_t)got;
	}
	memset(out, 0, size);
	memcpy(out, &(uint32_t){answer % 64 + 1}, sizeof answer);
	return (ssize_t)size;
}

ssize_t pread(int fd, void *out, size_t size, off_t offset)
{
	const struct frame *file;
	size_t got;

	if (on_fd(fd) < 0)
		return -1;
	file = world.contents[fd];
	if (file) {
		if ((uint64_t)offset >= file->header.size)
			return 0;
		got = file->header.size - (size_t)offset;
		if (got > size)
			got = size;
		if (draw(1) & 1)
			got = 1;
		memcpy(out, file->data + offset, got);
		return (ssize_t)got;
	}
	got = draw(1) % (size + 1);
	draw_bytes(out, got);
	return (ssize_t)got;
}

ssize_t write(int fd, const void *data, size_t size)
{
	touch(data, size);
	if (on_fd(fd) < 0)
		return -1;
	return size > 1 && draw(1) & 1 ? (ssize_t)size / 2 : (ssize_t)size;
}

static const struct frame *next_message(int *index)
{
	*index = world.next_message;
	return world.next_message < world.message_count ? &world.messages[world.next_message++] : NULL;
}

ssize_t recv(int fd, void *out, size_t size, int flags)
{
	const struct frame *message;
	int index;

	(void)flags;
	if (on_fd(fd) < 0)
		return -1;
	message = next_message(&index);
	if (!message)
		return 0;
	if (size > message->header.size)
		size = message->header.size;
	memcpy(out, message->data, size);
	return (ssize_t)size;
}

static void receive_fds(struct msghdr *message, const struct frame *frame, const struct frame *file)
{
	const int sent = frame->header.fds < 253 ? frame->header.fds : 253; /* SCM_MAX_FD */
	const size_t space = message->msg_controllen;
	int fds[253], count = 0;

	message->msg_controllen = 0;
	if (!sent)
		return;
	while (count < sent && CMSG_LEN((size_t)(count + 1) * sizeof *fds) <= space && (fds[count] = open_fd(FD_OPEN, 3)) >= 0)
		count++;
	if (count < sent)
		message->msg_flags |= MSG_CTRUNC;
	else if (file->data)
		world.contents[fds[count - 1]] = file;
	if (!count)
		return;
	struct cmsghdr *header = message->msg_control;
	*header = (struct cmsghdr){.cmsg_len = CMSG_LEN((size_t)count * sizeof *fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(header), fds, (size_t)count * sizeof *fds);
	message->msg_controllen = CMSG_SPACE((size_t)count * sizeof *fds) < space ? CMSG_SPACE((size_t)count * sizeof *fds) : space;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	const struct frame *frame;
	size_t done = 0;
	int index;

	(void)flags;
	message->msg_flags = 0;
	if (on_fd(fd) < 0)
		return -1;
	frame = next_message(&index);
	if (!frame) {
		message->msg_controllen = 0;
		return 0;
	}
	for (size_t i = 0; i < message->msg_iovlen; i++) {
		const size_t left = frame->header.size - done, space = message->msg_iov[i].iov_len;
		memcpy(message->msg_iov[i].iov_base, frame->data + done, left < space ? left : space);
		done += left < space ? left : space;
	}
	if (done < frame->header.size)
		message->msg_flags |= MSG_TRUNC;
	receive_fds(message, frame, &world.files[index]);
	return (ssize_t)done;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	size_t size = 0;

	(void)flags;
	for (size_t i = 0; i < message->msg_iovlen; i++) {
		touch(message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
		size += message->msg_iov[i].iov_len;
	}
	if (message->msg_controllen) {
		const struct cmsghdr *header = message->msg_control;
		int sent;
		touch(header, message->msg_controllen);
		memcpy(&sent, CMSG_DATA(header), sizeof sent);
		EXPECT(is_open(sent));
	}
	return on_fd(fd) < 0 ? -1 : (ssize_t)size;
}

/* What is waited for comes, but for the end of a process. Nothing and no time: it would sleep for ever. */
static int wait_for(struct pollfd *fds, nfds_t count, int64_t timeout, bool may_fail)
{
	int ready = 0;

	count_call();
	if (may_fail && draw(1) > 240) {
		errno = EINTR;
		return -1;
	}
	for (nfds_t i = 0; i < count; i++) {
		fds[i].revents = 0;
		if (fds[i].fd < 0 || !is_open(fds[i].fd))
			continue;
		fds[i].revents = (short)(draw(1) & (POLLIN | POLLHUP | POLLERR));
		if (world.fds[fds[i].fd] != FD_PIDFD)
			fds[i].revents ^= POLLIN;
		ready += fds[i].revents != 0;
	}
	if (!ready && (timeout < 0 ? !has_answers() : timeout > YEARS))
		leave_world(SLEPT_FOR_EVER);
	if (!ready && timeout > 0)
		world.now += timeout;
	return ready;
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	return wait_for(fds, count, timeout < 0 ? -1 : timeout * 1000000LL, timeout != 0);
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	(void)mask;
	return wait_for(fds, count, timeout ? timeout->tv_sec * 1000000000LL + timeout->tv_nsec : -1, true);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	switch (request) {
	case 0xc0502100u: /* SECCOMP_IOCTL_NOTIF_RECV */
		if (!draw(1)) {
			errno = ENOENT;
			return -1;
		}
		if (on_fd(fd) < 0)
			return -1;
		draw_bytes(argument, 80);
		return 0;
	case 0xc0182101u: /* SECCOMP_IOCTL_NOTIF_SEND */
		touch(argument, 24);
		return on_fd(fd);
	case 0x40082102u: /* SECCOMP_IOCTL_NOTIF_ID_VALID */
		touch(argument, 8);
		return on_fd(fd);
	case 0x5441: /* TIOCGPTPEER */
	case 0xb701: /* NS_GET_USERNS */
		return on_fd(fd) < 0 ? -1 : open_fd(FD_OPEN, 0);
	default:
		return on_fd(fd);
	}
}

/* ---- processes ---- */

static pid_t new_child(bool sleeps)
{
	if (world.child_count == MAX_CHILDREN) {
		errno = EAGAIN;
		return -1;
	}
	world.next_pid += (pid_t)(draw(1) % 4 == 3 ? 4096 : 1); /* the same bucket */
	world.children[world.child_count].pid = world.next_pid;
	world.children[world.child_count++].sleeps = sleeps;
	return world.next_pid;
}

static void become_child(void)
{
	world.child_count = 0;
}

static pid_t clone_(bool is_child, uint64_t flags)
{
	pid_t child;

	if (fails())
		return -1;
	if (draw(1) & 1)
		is_child = !is_child;
	child = new_child(flags & NEW_USER); /* what is wanted of it is its namespaces */
	if (child < 0 || !is_child)
		return child;
	become_child();
	world.self = flags & NEW_PID ? 1 : child;
	return 0;
}

pid_t fork(void)
{
	return clone_(world.clone_is_child, 0);
}

static long clone3(struct clone_arguments *arguments, size_t size)
{
	int pidfd = -1;
	long child;

	touch(arguments, size);
	if (arguments->flags & 0x1000u && (pidfd = open_fd(FD_PIDFD, 0)) < 0) /* CLONE_PIDFD */
		return -1;
	child = clone_(world.clone_is_child && !(arguments->flags & NEW_USER), arguments->flags);
	if (pidfd >= 0 && child <= 0)
		world.fds[pidfd] = FD_CLOSED;
	if (child > 0 && pidfd >= 0)
		memcpy((void *)(uintptr_t)arguments->pidfd, &pidfd, sizeof pidfd);
	if (arguments->flags & 0x00100000u && child >= 0) { /* CLONE_PARENT_SETTID */
		const pid_t pid = child ? (pid_t)child : world.next_pid;
		memcpy((void *)(uintptr_t)arguments->parent_tid, &pid, sizeof pid);
	}
	return child;
}

static int find_child(pid_t pid)
{
	for (int i = 0; i < world.child_count; i++)
		if (world.children[i].pid == pid)
			return i;
	return -1;
}

/* -1: none, or none yet. */
static int find_ended(pid_t pid)
{
	for (int i = 0; i < world.child_count; i++)
		if (!world.children[i].sleeps && (pid <= 0 || world.children[i].pid == pid))
			return i;
	return -1;
}

static pid_t wait_for_child(pid_t pid, int *status, int options)
{
	unsigned answer;
	int child, one;

	if (world.before_wait)
		world.before_wait();
	if (fails())
		return -1;
	answer = (unsigned)draw(1);
	if (answer % 8 == 7)
		return options & WNOHANG ? 0 : 1; /* 1: a stranger whose parent has ended, and who is ours now */
	if (!answer && options & WNOHANG && world.patience) {
		world.patience--;
		return 0;
	}
	child = find_ended(pid);
	if (child < 0 && (pid <= 0 ? world.child_count > 0 : find_child(pid) >= 0)) {
		if (options & WNOHANG)
			return 0;
		leave_world(SLEPT_FOR_EVER);
	}
	if (child < 0) {
		errno = ECHILD;
		return -1;
	}
	one = (int)draw(2);
	if (!one && options == WUNTRACED) /* who waits for that has a child that stops when it is ready */
		one = SIGSTOP << 8 | 0x7f;
	if (!(options & WUNTRACED) && WIFSTOPPED(one))
		one = 0;
	pid = world.children[child].pid;
	if (!WIFSTOPPED(one))
		world.children[child] = world.children[--world.child_count];
	if (status)
		*status = one;
	return pid;
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	return wait_for_child(pid, status, options);
}

pid_t wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
	memset(usage, 0, sizeof *usage);
	usage->ru_utime.tv_sec = (time_t)draw(2);
	usage->ru_stime.tv_usec = (suseconds_t)(draw(2) % 1000000);
	return wait_for_child(pid, status, options);
}

int waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
	(void)type, (void)options;
	memset(info, 0, sizeof *info);
	if (fails())
		return -1;
	info->si_code = (int)((CLD_EXITED + draw(1)) % 8);
	info->si_status = (int)draw(2);
	info->si_pid = (pid_t)id;
	return 0;
}

/* Nobody may be hit but our own. */
int kill(pid_t pid, int signal)
{
	const int child = find_child(pid < 0 ? -pid : pid);

	if (pid == -1)
		EXPECT(world.self == 1);
	else
		EXPECT(pid == 0 || pid == world.self || child >= 0);
	if (pid == world.self && signal == SIGSTOP && world.stopped++)
		leave_world(SLEPT_FOR_EVER); /* once its tracer continues it */
	if (pid > 0 && child >= 0) { /* that can't fail: it is there until it is waited for */
		if (signal == SIGKILL)
			world.children[child].sleeps = false;
		return 0;
	}
	return plain();
}

pid_t getpid(void)
{
	return world.self;
}

pid_t getppid(void)
{
	return draw(1) > 200 ? 1 : PARENT;
}

pid_t getpgrp(void)
{
	return 100;
}

uid_t geteuid(void)
{
	return 0;
}

int setpgid(pid_t pid, pid_t group)
{
	(void)pid, (void)group;
	return plain();
}

pid_t setsid(void)
{
	return fails() ? -1 : world.self;
}

pid_t tcgetpgrp(int fd)
{
	return on_fd(fd) < 0 ? -1 : (pid_t)(100 + draw(1));
}

int tcsetpgrp(int fd, pid_t group)
{
	(void)group;
	return on_fd(fd);
}

int execve(const char *path, char *const *words, char *const *variables)
{
	touch_string(path);
	for (; *words; words++)
		touch_string(*words);
	for (; variables && *variables; variables++)
		touch_string(*variables);
	if (fails())
		return -1;
	leave_world(EXECUTED);
}

int execvp(const char *path, char *const *words)
{
	return execve(path, words, NULL);
}

_Noreturn void _exit(int status)
{
	EXPECT(status >= 0 && status <= 255);
	leave_world(EXITED);
}

long ptrace(enum __ptrace_request request, ...)
{
	(void)request;
	return plain();
}

int prctl(int option, ...)
{
	(void)option;
	return plain();
}

/* ---- mounts and files, of which nothing is kept ---- */

int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
	(void)source, (void)type, (void)flags, (void)data;
	return at_path(AT_FDCWD, target);
}

int umount2(const char *path, int flags)
{
	(void)flags;
	return at_path(AT_FDCWD, path);
}

int mkdir(const char *path, mode_t mode)
{
	(void)mode;
	return at_path(AT_FDCWD, path);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
	(void)mode;
	return at_path(directory, path);
}

int mknod(const char *path, mode_t mode, dev_t device)
{
	(void)mode, (void)device;
	return at_path(AT_FDCWD, path);
}

int mknodat(int directory, const char *path, mode_t mode, dev_t device)
{
	(void)mode, (void)device;
	return at_path(directory, path);
}

int symlinkat(const char *target, int directory, const char *path)
{
	touch_string(target);
	return at_path(directory, path);
}

int unlinkat(int directory, const char *path, int flags)
{
	(void)flags;
	return at_path(directory, path);
}

int fchownat(int directory, const char *path, uid_t uid, gid_t gid, int flags)
{
	(void)uid, (void)gid, (void)flags;
	return at_path(directory, path);
}

int fchown(int fd, uid_t uid, gid_t gid)
{
	(void)uid, (void)gid;
	return on_fd(fd);
}

int chdir(const char *path)
{
	return at_path(AT_FDCWD, path);
}

int fchdir(int fd)
{
	return on_fd(fd);
}

int chroot(const char *path)
{
	return at_path(AT_FDCWD, path);
}

int ftruncate(int fd, off_t size)
{
	(void)size;
	return on_fd(fd);
}

mode_t umask(mode_t mode)
{
	(void)mode;
	return 0;
}

int setns(int fd, int flags)
{
	(void)flags;
	return on_fd(fd);
}

int unshare(int flags)
{
	(void)flags;
	return plain();
}

int sethostname(const char *name, size_t size)
{
	touch(name, size);
	return plain();
}

int setfsuid(uid_t uid)
{
	const uid_t before = world.fsuid;

	if (uid != (uid_t)-1 && !fails())
		world.fsuid = uid;
	return (int)before;
}

int setfsgid(gid_t gid)
{
	const gid_t before = world.fsgid;

	if (gid != (gid_t)-1 && !fails())
		world.fsgid = gid;
	return (int)before;
}

/* ---- limits, times, signals ---- */

int getrlimit(__rlimit_resource_t resource, struct rlimit *limit)
{
	(void)resource;
	*limit = (struct rlimit){256 - draw(1), 256 - draw(1)};
	return plain();
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	(void)resource;
	touch(limit, sizeof *limit);
	return plain();
}

int getrusage(__rusage_who_t who, struct rusage *usage)
{
	(void)who;
	memset(usage, 0, sizeof *usage);
	return plain();
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
	const struct ucred peer = {PARENT, (uid_t)draw(1), 0};

	(void)level;
	EXPECT(option == SO_PEERCRED && *size == sizeof peer);
	memcpy(value, &peer, sizeof peer);
	return on_fd(fd);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
	(void)level, (void)option;
	touch(value, size);
	return on_fd(fd);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	(void)clock;
	count_call();
	world.now += (1 + (int64_t)draw(1)) * 1000000;
	*time = (struct timespec){world.now / 1000000000, world.now % 1000000000};
	return 0;
}

int nanosleep(const struct timespec *time, struct timespec *left)
{
	(void)left;
	world.now += time->tv_nsec;
	return plain();
}

int sigaction(int signal, const struct sigaction *action, struct sigaction *old)
{
	(void)signal, (void)action;
	if (old)
		memset(old, 0, sizeof *old);
	return plain();
}

/* ---- memory ---- */

void *fake_malloc(size_t size)
{
	struct block *block;

	if (fails())
		return NULL;
	EXPECT(size <= 2 * MAX_REQUEST);
	block = malloc(sizeof *block + size);
	block->next = blocks.next;
	block->previous = &blocks;
	block->next->previous = blocks.next = block;
	world.allocations++;
	memset(block->memory, 0xa5, size);
	return block->memory;
}

void fake_free(void *memory)
{
	struct block *block;

	if (!memory)
		return;
	block = (struct block *)(void *)((char *)memory - offsetof(struct block, memory));
	block->next->previous = block->previous;
	block->previous->next = block->next;
	world.allocations--;
	free(block);
}

void *fake_calloc(size_t count, size_t size)
{
	void *memory = fake_malloc(count * size);

	return memory ? memset(memory, 0, count * size) : NULL;
}

/* Only the keeper's, whose table doubles. */
void *fake_realloc(void *memory, size_t size)
{
	void *grown = fake_malloc(size);

	if (grown && memory) {
		memcpy(grown, memory, size / 2);
		fake_free(memory);
	}
	return grown;
}

void *fake_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
	void *memory;

	(void)address, (void)protection, (void)flags, (void)fd, (void)offset;
	if (fails())
		return MAP_FAILED;
	EXPECT(mapping_count < MAX_MAPPINGS);
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		abort();
	mappings[mapping_count].at = memory;
	mappings[mapping_count++].size = size;
	return memory;
}

#undef madvise
int madvise(void *address, size_t size, int advice);
int fake_madvise(void *address, size_t size, int advice)
{
	if (fails())
		return -1;
	return advice == MADV_DONTNEED ? madvise(address, size, advice) : 0;
}

/* ---- stdio ---- */

int printf(const char *format, ...)
{
	char text[8192];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	return 0;
}

int fprintf(FILE *file, const char *format, ...)
{
	char text[8192];
	va_list arguments;

	(void)file;
	va_start(arguments, format);
	(void)vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	return 0;
}

void perror(const char *text)
{
	touch_string(text);
}

size_t fread(void *out, size_t size, size_t count, FILE *file)
{
	(void)file;
	if (!draw(1))
		return 0;
	draw_bytes(out, size * count);
	return count;
}

/* ---- by number ---- */

static long get_pidfd(long pid)
{
	(void)pid;
	return new_fd(FD_PIDFD);
}

static long install_filter(unsigned long flags, const void *program)
{
	struct { unsigned short length; const void *filter; } filter; /* struct sock_fprog */

	memcpy(&filter, program, sizeof filter);
	touch(filter.filter, filter.length * 8u);
	return fails() ? -1 : flags & 8 ? open_fd(FD_OPEN, 0) : 0;
}

static long get_directory(char *path, size_t size)
{
	EXPECT(size > 16);
	if (fails())
		return -1;
	strcpy(path, draw(1) & 1 ? "(unreachable)/x" : "/x");
	return 3;
}

static long configure_mount(long fd, const char *key, const char *value)
{
	if (key)
		touch_string(key);
	if (value)
		touch_string(value);
	return on_fd((int)fd);
}

static long get_capabilities(void *header, void *data)
{
	touch(header, 8);
	draw_bytes(data, 24);
	return plain();
}

static long set_from(const void *data, size_t size)
{
	touch(data, size);
	return plain();
}

#define POINTER(number) ((void *)(uintptr_t)argument[number])

long syscall(long number, ...)
{
	long argument[5]; /* the sixth would not be in a register */
	va_list arguments;

	va_start(arguments, number);
	for (int i = 0; i < 5; i++)
		argument[i] = va_arg(arguments, long);
	va_end(arguments);
	switch (number) {
	case SYS_rt_sigprocmask:
		if (POINTER(2))
			memset(POINTER(2), 0, 8);
		return set_from(POINTER(1), 8);
	case SYS_rt_sigaction:
		return set_from(POINTER(1), 8);
	case SYS_rt_sigtimedwait:
		if ((argument[0] = (long)draw(1) % 65))
			return argument[0];
		errno = EAGAIN;
		return -1;
	case SYS_rt_sigsuspend:
	case SYS_futex: /* no child of ours shares its memory */
		leave_world(SLEPT_FOR_EVER);
	case SYS_exit_group:
		leave_world(EXITED);
	case SYS_signalfd4:
		touch(POINTER(1), 8);
		return new_fd(FD_SIGNALS);
	case SYS_capget:
		return get_capabilities(POINTER(0), POINTER(1));
	case SYS_capset:
		touch(POINTER(0), 8);
		return set_from(POINTER(1), 24);
	case SYS_pivot_root:
		touch_string(POINTER(0));
		return at_path(AT_FDCWD, POINTER(1));
	case SYS_keyctl: /* KEYCTL_JOIN_SESSION_KEYRING: with a name or none */
		if (POINTER(1))
			touch_string(POINTER(1));
		return plain();
	case SYS_setresuid:
	case SYS_setresgid:
	case SYS_tgkill:
		return plain();
	case SYS_setgroups:
		return set_from(POINTER(1), (size_t)argument[0] * sizeof(gid_t));
	case SYS_prlimit64:
		return set_from(POINTER(2), 16);
	case SYS_sched_setscheduler:
		return set_from(POINTER(2), 4);
	case SYS_sched_setaffinity:
		return set_from(POINTER(2), (size_t)argument[1]);
	case SYS_seccomp:
		return install_filter((unsigned long)argument[1], POINTER(2));
	case SYS_getcwd:
		return get_directory(POINTER(0), (size_t)argument[1]);
	case NR_pidfd_open:
		return get_pidfd(argument[0]);
	case NR_pidfd_send_signal:
		return on_fd((int)argument[0]);
	case NR_close_range:
		return close_range_((unsigned)argument[0], (unsigned)argument[1]);
	case NR_clone3:
		return clone3(POINTER(0), (size_t)argument[1]);
	case NR_open_tree:
	case NR_openat2:
		return open_at((int)argument[0], POINTER(1));
	case NR_fsopen:
		touch_string(POINTER(0));
		return new_fd(FD_OPEN);
	case NR_fsmount:
		return on_fd((int)argument[0]) < 0 ? -1 : open_fd(FD_OPEN, 0);
	case NR_fsconfig:
		return configure_mount(argument[0], POINTER(2), POINTER(3));
	case NR_move_mount:
		return on_fd((int)argument[0]) < 0 ? -1 : at_path((int)argument[2], POINTER(3));
	case NR_landlock_create_ruleset:
		touch(POINTER(0), (size_t)argument[1]);
		return new_fd(FD_OPEN);
	case NR_landlock_add_rule:
		touch(POINTER(2), 12);
		return on_fd((int)argument[0]);
	case NR_landlock_restrict_self:
		return on_fd((int)argument[0]);
	case NR_mount_setattr:
		touch(POINTER(3), (size_t)argument[4]);
		return on_fd((int)argument[0]);
	default:
		(void)dprintf(2, "system call %ld: kernel.c knows nothing of it\n", number);
		abort();
	}
}
