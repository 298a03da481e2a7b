/* Requests in, events out. A request is decoded and checked as a whole before anything is done with it: every length,
 * count, slot and step number, and that each step stands in a section that may hold it. */
#define _GNU_SOURCE
#include "launcher.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

struct step_header {
	uint16_t op;
	uint8_t ints, strings;
	uint32_t length; /* bytes, this header included */
};

static bool slot_is_valid(uint64_t slot, int fds)
{
	return slot & KEPT ? (slot & ~(uint64_t)KEPT) < MAX_KEPT : slot < (uint64_t)fds;
}

static int decode_step(const char **at, const char *end, enum section section, int fds, struct step *out)
{
	struct step_header header;
	const char *next, *p = *at;

	if ((size_t)(end - p) < sizeof header)
		return -EBADMSG;
	memcpy(&header, p, sizeof header);
	if (header.length < sizeof header || header.length > (size_t)(end - p))
		return -EBADMSG;
	next = p + header.length;
	p += sizeof header;
	const struct step_kind *kind = step_kind(header.op);
	if (!kind)
		return -ENOSYS;
	if (!(kind->sections & 1u << section) || header.ints != kind->ints || header.strings != kind->strings)
		return -EINVAL;
	memset(out, 0, sizeof *out);
	out->op = header.op;
	if ((size_t)(next - p) < header.ints * sizeof(uint64_t))
		return -EBADMSG;
	memcpy(out->number, p, header.ints * sizeof(uint64_t));
	p += header.ints * sizeof(uint64_t);
	for (int i = 0; i < header.ints; i++)
		if (kind->slots & 1u << i && !slot_is_valid(out->number[i], fds))
			return -EBADF;
	for (int i = 0; i < header.strings; i++) {
		if ((size_t)(next - p) < sizeof out->size[i])
			return -EBADMSG;
		memcpy(&out->size[i], p, sizeof out->size[i]);
		p += sizeof out->size[i];
		if (out->size[i] >= (size_t)(next - p) || p[out->size[i]] != 0)
			return -EBADMSG;
		out->string[i] = p;
		p += out->size[i] + 1;
	}
	if (p != next)
		return -EBADMSG;
	*at = next;
	return 0;
}

int decode_steps(const char **at, const char *end, int count, enum section section, int fds, struct step *out)
{
	int error = 0;

	for (int i = 0; i < count && !error; i++)
		error = decode_step(at, end, section, fds, out + i);
	return error;
}

/* Returns 0 or -errno, with `offset` the first byte that was not understood. */
int decode_request(const char *buffer, uint32_t size, int fds, struct plan *plan, uint32_t *offset)
{
	static const uint8_t allowed[] = {
		[REQUEST_PREPARE] = 1u << SECTION_LAUNCHER | 1u << SECTION_CLEANUP,
		[REQUEST_LAUNCH] = 1u << SECTION_INIT | 1u << SECTION_WORKLOAD | 1u << SECTION_CLEANUP,
		[REQUEST_KILL] = 0,
		[REQUEST_RUN] = 1u << SECTION_WORKLOAD,
	};
	static const uint32_t flags[] = {
		[REQUEST_PREPARE] = FLAG_BODY_IN_MEMFD | FLAG_KEEP_FDS,
		[REQUEST_LAUNCH] = FLAG_BODY_IN_MEMFD | FLAG_PARK | FLAG_EXEC,
		[REQUEST_KILL] = FLAG_BODY_IN_MEMFD | FLAG_ASK,
		[REQUEST_RUN] = FLAG_BODY_IN_MEMFD | FLAG_TELL,
	};
	static const int least_fds[] = {[REQUEST_LAUNCH] = 4, [REQUEST_RUN] = 3};
	struct request request;
	const char *at = buffer + sizeof request, *end = buffer + size;
	int total = 0, error = 0;

	*offset = 0;
	if (size < sizeof request)
		return -EBADMSG;
	memcpy(&request, buffer, sizeof request);
	if (request.magic != MAGIC || request.length != size)
		return -EBADMSG;
	if (request.version != VERSION)
		return -EPROTONOSUPPORT;
	if (request.type < REQUEST_PREPARE || request.type > REQUEST_RUN || request.flags & ~flags[request.type] ||
	    (request.flags & FLAG_PARK && request.flags & FLAG_EXEC))
		return -EINVAL;
	if (request.fds != fds || fds < least_fds[request.type])
		return -EBADF;
	plan->cleanup = end;
	for (int section = 0; section < SECTIONS && !error; section++) {
		int count = request.count[section];
		if (count > MAX_STEPS - total)
			return -E2BIG;
		if (count && !(allowed[request.type] & 1u << section))
			return -EINVAL;
		plan->section[section] = plan->step + total;
		plan->count[section] = count;
		if (section == SECTION_CLEANUP)
			plan->cleanup = at;
		/* Clean-up runs when the request's own fds are long closed: only kept ones may be named. */
		error = decode_steps(&at, end, count, section, section == SECTION_CLEANUP ? 0 : fds, plan->step + total);
		total += count;
	}
	*offset = (uint32_t)(at - buffer);
	plan->cleanup_size = (uint32_t)(end - plan->cleanup);
	return error ? error : at == end ? 0 : -EBADMSG;
}

/* An empty message reads like the end of the stream. */
static bool is_at_end(int socket)
{
	struct pollfd end = {socket, POLLRDHUP, 0};

	return poll(&end, 1, 0) != 0;
}

static int take_fds(struct msghdr *message, int *fds)
{
	int count = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			int n = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds + count, CMSG_DATA(c), (size_t)n * sizeof(int));
			count += n;
		}
	return count;
}

/* The body behind the header comes from the last fd, which is closed here. */
static ssize_t read_body(char *buffer, int *fds, int *fd_count)
{
	struct request request;
	struct stat status;
	uint32_t done = sizeof request;
	int fd;

	memcpy(&request, buffer, sizeof request);
	if (*fd_count == 0)
		return -EBADF;
	fd = fds[--*fd_count];
	if (fstat(fd, &status) < 0 || request.length > MAX_REQUEST || request.length < sizeof request ||
	    (uint64_t)status.st_size != request.length - sizeof request) {
		close(fd);
		return -EBADMSG;
	}
	while (done < request.length) {
		ssize_t n = pread(fd, buffer + done, request.length - done, (off_t)(done - sizeof request));
		if (n <= 0)
			break;
		done += (uint32_t)n;
	}
	close(fd);
	return done == request.length ? (ssize_t)done : -EBADMSG;
}

/* Returns the size of the request, 0 at the end of the stream, or -errno where this message can't be used (its fds are
 * in `fds` all the same); `buffer` has MAX_REQUEST bytes. */
ssize_t receive_request(int socket, char *buffer, int *fds, int *fd_count)
{
	union {
		char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec vector = {buffer, MAX_INLINE};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	struct request request;
	ssize_t size;

	*fd_count = 0;
	do
		size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
	while (size < 0 && (errno == EINTR || errno == ENOMEM || errno == ENOBUFS)); /* it waits for us in the socket */
	if (size < 0 || (size == 0 && is_at_end(socket)))
		return 0; /* a broken socket is an ended supervisor */
	*fd_count = take_fds(&message, fds);
	if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		return -EMSGSIZE;
	if ((size_t)size < sizeof request)
		return -EBADMSG;
	memcpy(&request, buffer, sizeof request);
	if (request.magic == MAGIC && request.flags & FLAG_BODY_IN_MEMFD)
		return (size_t)size == sizeof request ? read_body(buffer, fds, fd_count) : -EBADMSG;
	return size;
}

/* What step_seccomp sent: returns the program's size, with the listener in `fd`, or -errno where it did not. */
ssize_t receive_listener(int socket, void *program, size_t space, int *fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct event event = {0};
	struct iovec vector[2] = {{&event, sizeof event}, {program, space}};
	/* Room for one fd: with its padding it would be for two. */
	struct msghdr message = {.msg_iov = vector, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = CMSG_LEN(sizeof *fd)};
	ssize_t size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (size < 0)
		return -errno;
	if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || (size_t)size < sizeof event || take_fds(&message, fd) != 1)
		return -EBADMSG;
	return size - (ssize_t)sizeof event;
}

/* Blocks while the reader's buffer is full, but not longer than the supervisor lives: a forked child of it may hold the
 * socket. A reader that is gone is not an error here: its absence is seen elsewhere. Returns 0 or -errno. */
int send_event(int socket, struct event *event, const void *data, uint32_t size, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec vector[2] = {{event, sizeof *event}, {(void *)(uintptr_t)data, size}};
	struct msghdr message = {.msg_iov = vector, .msg_iovlen = size ? 2 : 1};
	ssize_t sent;

	event->magic = MAGIC;
	event->version = VERSION;
	event->length = size;
	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
		control.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.align), &fd, sizeof fd);
	}
	while ((sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT)) < 0 &&
	       (errno == EINTR || errno == EAGAIN || errno == ENOMEM || errno == ENOBUFS)) {
		struct pollfd wait[2] = {{socket, POLLOUT, 0}, {supervisor_pidfd, POLLIN, 0}};
		if (errno == EAGAIN && poll(wait, 2, -1) > 0 && wait[1].revents)
			return 0;
	}
	/* ENOTSOCK: /dev/null is in its place, nobody asked for events. */
	return sent >= 0 || errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN || errno == ENOTSOCK ? 0 : -errno;
}
