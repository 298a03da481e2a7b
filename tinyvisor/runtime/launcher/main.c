/* tinyvisor-launcher: starts containers for a supervisor that never forks.
 *
 * Theory of operation
 *   The supervisor (Python) execs this program once from a sealed memfd and sends requests over a SOCK_SEQPACKET pair. A
 *   launch is a list of steps that Python wrote; this program checks the list, clones, and the child (init, PID 1 of a new
 *   pid namespace) runs it: no policy is decided here. Init starts the workload, says so on the container's own
 *   socket, takes commands from there, reaps and forwards, and leaves what it saw in a page of memory shared with the
 *   launcher. The launcher is every init's parent: it reaps it, runs the clean-up steps (read counters, remove cgroups) and
 *   reports EVENT_GONE over the control socket. An init that was told to says itself that all has ended (EVENT_ENDED).
 * Rights
 *   All of the supervisor's. An init keeps them until the workload's steps drop them in the child; it is not dumpable,
 *   holds two fds and no host path. The launcher itself is in a mount namespace that holds one small tmpfs.
 * What ends it
 *   The end of the supervisor, seen as EOF on the control socket or by its pidfd (a forked child of the supervisor may
 *   still hold the socket): every init is killed, reaped and cleaned up after, then the launcher exits. If the launcher
 *   is killed, PDEATHSIG kills every init. In live mode (`keep`) all this is said of the keeper, which see.
 * Files
 *   wire.c requests and events   steps.c the table of steps   mounts.c root and mounts   workload.c before exec   init.c PID 1
 *   userns.c user namespaces   networks.c network namespaces that are used again   refusals.c what a filter hands to init
 *   keeper.c live mode
 * No fd is kept per container, so that a clone copies few of them however many containers run. */
#define _GNU_SOURCE
#include "launcher.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define BUCKETS 4096 /* a power of two */
#define MAX_TRIES 400 /* of removing a cgroup, RETRY_MS apart */
#define RETRY_MS 5

int launcher_pidfd = -1, supervisor_pidfd = -1, reports_fd = -1, ended_fd = -1, proc_fd = -1;

static int control = -1, signals = -1, ended = -1; /* ended: what inits write to ended_fd */
struct scratch *scratch;

static struct { /* the launcher's own: no child inherits it, so no child pays for it */
	struct container *buckets[BUCKETS], *at_slot[MAX_CONTAINERS];
	int free_slots[MAX_CONTAINERS];
	struct step cleanup[MAX_STEPS];
	char counters[MAX_INLINE / 2], message[sizeof(struct gone) + MAX_INLINE / 2];
} *ledger;
static struct container *cleaning, epilogue;
static size_t running;
static char *reports; /* MAX_CONTAINERS pages of reports_fd; no child inherits the mapping */
static int free_count;
static char *title_start, *title_end;

static struct container **find(pid_t pid)
{
	struct container **at = &ledger->buckets[(unsigned)pid % BUCKETS];

	while (*at && (*at)->pid != pid)
		at = &(*at)->next;
	return at;
}

static struct container *find_id(pid_t pid, uint64_t id)
{
	struct container *container = *find(pid);

	for (size_t i = 0; !pid && !container && i < BUCKETS; i++) /* not known yet to who asks: rare */
		for (container = ledger->buckets[i]; container && container->id != id;)
			container = container->next;
	return container && container->id == id && !container->told ? container : NULL;
}

void show_as(const char *comm, const char *title)
{
	(void)prctl(PR_SET_NAME, comm, 0, 0, 0);
	if (title_start) {
		memset(title_start, 0, (size_t)(title_end - title_start));
		snprintf(title_start, (size_t)(title_end - title_start), "%s: %s", comm, title);
	}
}

/* ---- clean-up ---- */

static uint32_t read_entry(const struct step *step, char *out, uint32_t space)
{
	const struct context none = {0};
	int fd = openat(slot_fd(&none, step->number[0]), step->string[0], O_RDONLY | O_CLOEXEC);
	uint32_t size = read_back(fd, out, space);

	if (fd >= 0)
		close(fd);
	return size;
}

static int remove_entry(const struct step *step)
{
	const struct context none = {0};

	if (unlinkat(slot_fd(&none, step->number[0]), step->string[0], AT_REMOVEDIR) == 0 || errno == ENOENT)
		return 0;
	if (errno == ENOTDIR) /* a lock file */
		return unlinkat(slot_fd(&none, step->number[0]), step->string[0], 0) < 0 ? errno : 0;
	return step->number[1] ? errno : 0; /* impatient: others may still use it */
}

/* Runs the steps of one kind; returns the errno that stopped a removal, 0 where all is gone. */
static int run_cleanup(const struct container *container, unsigned op, char *out, uint32_t space, uint32_t *used)
{
	struct step *steps = ledger->cleanup;
	const char *at = container->cleanup;
	int error = 0;

	/* Checked when the request came, so this can't fail. */
	(void)decode_steps(&at, at + container->cleanup_size, container->cleanup_count, SECTION_CLEANUP, 0, steps);
	for (int i = 0; i < container->cleanup_count && !error; i++) {
		if (steps[i].op != op)
			continue;
		if (op == OP_READ)
			*used += read_entry(steps + i, out + *used, space - *used);
		else
			error = remove_entry(steps + i);
	}
	return error;
}

static void report_gone(struct container *container, const void *data, uint32_t size)
{
	struct event event = {.type = EVENT_GONE, .id = container->id};
	char *message = ledger->message;

	memcpy(message, &container->gone, sizeof container->gone);
	if (size)
		memcpy(message + sizeof container->gone, data, size);
	send_event(control, &event, message, (uint32_t)sizeof container->gone + size, -1);
	return_network(container->network, container->shared || container->gone.report.flags & GONE_CONNECTED);
	container->network = NO_NETWORK;
}

static void forget(struct container *container)
{
	if (container) {
		free(container->cleanup);
		free(container->data);
	}
	free(container);
}

static void report_last(struct container *container, const void *data, uint32_t size)
{
	report_gone(container, data, size);
	forget(container);
	running--;
}

/* What was read for the report, kept for a later try. */
static bool keep_data(struct container *container, const char *data, uint32_t size)
{
	container->data = malloc(size + 1);
	if (!container->data)
		return false;
	memcpy(container->data, data, size);
	container->data_size = size;
	return true;
}

/* The container's processes are gone. Its cgroups may stay busy for a moment: the last task is still on its way out. */
static void finish(struct container *container)
{
	const char *data = container->data ? container->data : ledger->counters;
	uint32_t size = container->data_size;

	if (!container->data) /* else an early try has read them, and may have removed one already */
		(void)run_cleanup(container, OP_READ, ledger->counters, sizeof ledger->counters, &size);
	container->gone.cleanup_error = run_cleanup(container, OP_REMOVE, NULL, 0, NULL);
	/* Mostly EBUSY; but whatever else it is, it may pass, and what is given up now stays for ever. */
	if (!container->gone.cleanup_error || (!container->data && !keep_data(container, data, size))) {
		report_last(container, data, size);
		return;
	}
	container->next = cleaning;
	cleaning = container;
}

static void retry_cleaning(void)
{
	for (struct container **at = &cleaning; *at;) {
		struct container *container = *at;
		container->gone.cleanup_error = run_cleanup(container, OP_REMOVE, NULL, 0, NULL);
		if (container->gone.cleanup_error && ++container->tries < MAX_TRIES) {
			at = &container->next;
			continue;
		}
		*at = container->next;
		report_last(container, container->data, container->data_size);
	}
}

static struct page *page_of(int slot)
{
	return (struct page *)(void *)(reports + (size_t)slot * PAGE);
}

static struct report *report_of(int slot)
{
	return &page_of(slot)->report;
}

/* The files that are read back, by its init or else by us. Returns how many bytes. */
static uint32_t take_counters(const struct container *container)
{
	const struct page *page = page_of(container->slot);
	uint32_t size = page->size;

	if (size && size <= sizeof page->data) {
		memcpy(ledger->counters, page->data, size);
		return size;
	}
	size = 0;
	(void)run_cleanup(container, OP_READ, ledger->counters, sizeof ledger->counters, &size);
	return size;
}

/* Inits that said they are alone, and wait for us to kill them. That a cgroup can be removed proves it: a process that was exec'ed
 * into the container is no child of its init. */
static void finish_early(void)
{
	uint32_t slots[64];
	ssize_t size = read(ended, slots, sizeof slots);

	for (ssize_t i = 0; i < size / (ssize_t)sizeof *slots; i++) {
		struct container *container = slots[i] < MAX_CONTAINERS ? ledger->at_slot[slots[i]] : NULL;
		uint32_t used;
		if (!container || container->told || container->data || !(report_of(container->slot)->flags & GONE_EMPTY))
			continue;
		container->gone.report = *report_of(container->slot);
		container->gone.user = container->gone.report.user;
		container->gone.system = container->gone.report.system;
		used = take_counters(container);
		if (run_cleanup(container, OP_REMOVE, NULL, 0, NULL)) {
			(void)keep_data(container, ledger->counters, used);
		} else {
			report_gone(container, ledger->counters, used);
			container->told = true;
		}
		(void)kill(container->pid, SIGKILL);
	}
}

static void reap_inits(void)
{
	char drain[1024];
	struct rusage usage;
	int status;
	pid_t pid;

	while (read(signals, drain, sizeof drain) > 0)
		;
	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0 || (pid < 0 && errno != ECHILD)) {
		struct container **at = find(pid), *container = *at;
		if (pid < 0 || !container)
			continue;
		*at = container->next;
		ledger->at_slot[container->slot] = NULL;
		ledger->free_slots[free_count++] = container->slot;
		if (container->told) {
			forget(container);
			running--;
			continue;
		}
		container->gone.report = *report_of(container->slot);
		container->gone.status = status;
		container->gone.user = usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec;
		container->gone.system = usage.ru_stime.tv_sec * 1000000LL + usage.ru_stime.tv_usec;
		finish(container);
	}
}

/* ---- requests ---- */

/* `made`: a user namespace's fd, or -1. */
static int prepare(const int *fds, int count, int *failed, int *made)
{
	struct context context = {.root = -1, .network = -1, .user_namespace = -1, .handover = -1, .fds = fds, .fd_count = count};
	int error;

	if (scratch->plan.count[SECTION_CLEANUP]) { /* run when the launcher ends */
		free(epilogue.cleanup);
		epilogue.cleanup = malloc(scratch->plan.cleanup_size);
		if (!epilogue.cleanup)
			return -ENOMEM;
		memcpy(epilogue.cleanup, scratch->plan.cleanup, scratch->plan.cleanup_size);
		epilogue.cleanup_size = scratch->plan.cleanup_size;
		epilogue.cleanup_count = (uint16_t)scratch->plan.count[SECTION_CLEANUP];
	}
	error = open_root(&context, "/", O_DIRECTORY);
	if (!error)
		error = run_steps(&context, scratch->plan.section[SECTION_LAUNCHER], scratch->plan.count[SECTION_LAUNCHER], failed);
	if (context.root >= 0)
		close(context.root);
	*made = context.user_namespace;
	return error;
}

static void refuse(uint64_t id, int error, uint32_t offset)
{
	struct event event = {.type = EVENT_REFUSED, .id = id, .a = -error, .b = (int32_t)offset};

	send_event(control, &event, NULL, 0, -1);
}

/* CLONE_NEWPID only: the child makes the other namespaces itself, or every start would wait for them here. The pid is
 * written to the shared report before the child runs, which inside can't learn it. */
static pid_t clone_init(struct page *page, bool exec)
{
	struct {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
	} arguments = {.flags = (exec ? 0 : NEW_PID) | 0x00100000u /* CLONE_PARENT_SETTID */, .exit_signal = SIGCHLD,
		       .parent_tid = (uint64_t)(uintptr_t)&page->report.pid};

	memset(&page->report, 0, sizeof page->report);
	page->size = 0;
	return (pid_t)syscall(NR_clone3, &arguments, sizeof arguments);
}

/* Whether the container may have a network that others had before. */
static bool asks_for_network(void)
{
	const struct step *step = scratch->plan.section[SECTION_INIT];
	int left = scratch->plan.count[SECTION_INIT];

	for (; left; left--, step++)
		if (step->op == OP_NETWORK)
			return true;
	return false;
}

static struct container *remember(const struct request *request)
{
	struct container *container = calloc(1, sizeof *container);

	if (container)
		container->cleanup = malloc(scratch->plan.cleanup_size + 1);
	if (!container || !container->cleanup) {
		forget(container);
		return NULL;
	}
	memcpy(container->cleanup, scratch->plan.cleanup, scratch->plan.cleanup_size);
	container->cleanup_size = scratch->plan.cleanup_size;
	container->cleanup_count = (uint16_t)scratch->plan.count[SECTION_CLEANUP];
	container->id = request->id;
	container->network = NO_NETWORK;
	return container;
}

static int launch(const struct request *request, int *fds, int count)
{
	struct container *container = free_count ? remember(request) : NULL, *other, **bucket;
	struct context context = {.event = fds[0], .stdio = {fds[1], fds[2], fds[3]}, .fds = fds, .fd_count = count,
				  .joined = -ESRCH, .root = -1, .cgroup = -1, .network = -1, .user_namespace = -1, .tty = -1, .handover = -1, .id = request->id,
				  .cpu_usage = -1, .null = -1, .park = request->flags & FLAG_PARK, .exec = request->flags & FLAG_EXEC};
	int error;

	if (!container)
		return free_count ? -ENOMEM : -EAGAIN;
	context.joined_pid = (pid_t)request->pid;
	other = request->other && request->pid ? find_id((pid_t)request->pid, request->other) : NULL;
	if (other) {
		other->shared = true;
		context.joined = (int)syscall(NR_pidfd_open, request->pid, 0); /* not reaped yet, so it is that one */
		if (context.joined < 0)
			context.joined = -errno;
	}
	context.slot = container->slot = ledger->free_slots[free_count - 1];
	container->exec = context.exec;
	if (asks_for_network())
		container->network = take_network(&context.network);
	container->pid = clone_init(page_of(container->slot), context.exec);
	if (container->pid == 0)
		init_main(&context, &scratch->plan);
	error = container->pid < 0 ? -errno : 0;
	if (context.joined >= 0)
		close(context.joined);
	if (error) {
		return_network(container->network, false);
		forget(container);
		return error;
	}
	free_count--;
	ledger->at_slot[container->slot] = container;
	bucket = &ledger->buckets[(unsigned)container->pid % BUCKETS];
	container->next = *bucket;
	*bucket = container;
	running++;
	return 0;
}

static void kill_container(const struct container *container)
{
	/* Ours to reap and not reaped yet, so the number is still its own. Who is no PID 1 has to kill its workload first, and to
	 * go on for that where somebody has stopped it. */
	if (container)
		(void)kill(container->pid, container->exec ? SIGTERM : SIGKILL);
	if (container && container->exec)
		(void)kill(container->pid, SIGCONT);
}

/* To a supervisor that does not know whether the one before it had come so far as to launch it. */
static void answer_whether_known(uint64_t id)
{
	const struct container *container = cleaning;

	while (container && container->id != id)
		container = container->next;
	if (!container && !find_id(0, id))
		refuse(id, -ESRCH, 0);
}

static void serve_request(const struct request *request, int *fds, int count)
{
	struct event prepared = {.type = EVENT_PREPARED, .id = request->id};
	int error = 0, failed = 0, made = -1;

	switch (request->type) {
	case REQUEST_LAUNCH:
		error = launch(request, fds, count);
		if (error)
			refuse(request->id, error, 0);
		break;
	case REQUEST_PREPARE:
		prepared.a = -prepare(fds, count, &failed, &made);
		prepared.b = failed;
		send_event(control, &prepared, NULL, 0, made);
		if (made >= 0)
			close(made);
		break;
	case REQUEST_KILL:
		if (request->flags & FLAG_ASK)
			answer_whether_known(request->id);
		else
			kill_container(find_id((pid_t)request->pid, request->id));
		break;
	default:
		refuse(request->id, -EINVAL, 0); /* for an init, not for us */
	}
}

/* Also whatever the last message left that was no request. */
void forget_request(void)
{
	(void)madvise(scratch, sizeof *scratch, MADV_DONTNEED); /* reads as zeros */
}

/* False at the end of the stream. */
static bool serve(void)
{
	int fds[MAX_FDS], count, error;
	bool kept = false;
	uint32_t offset = 0;
	struct request request = {0};
	ssize_t size = receive_request(control, scratch->request, fds, &count);

	if (size == 0)
		return false;
	error = size < 0 ? (int)size : decode_request(scratch->request, (uint32_t)size, count, &scratch->plan, &offset);
	if (size < 0 || (size_t)size >= sizeof request)
		memcpy(&request, scratch->request, sizeof request);
	if (!error && request.type == REQUEST_PREPARE && request.flags & FLAG_KEEP_FDS) {
		error = keep_fds(fds, count);
		kept = !error;
	}
	if (error)
		refuse(request.id, error, offset);
	else
		serve_request(&request, fds, count);
	for (int i = 0; i < count && !kept; i++)
		close(fds[i]);
	forget_request(); /* what one container was given is not the next one's to inherit */
	return true;
}

/* ---- life ---- */

static void kill_all(void)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (const struct container *container = ledger->buckets[i]; container; container = container->next)
			kill_container(container);
}

static void run_epilogue(void)
{
	const struct timespec pause = {0, RETRY_MS * 1000000L};

	for (int i = 0; i < MAX_TRIES && epilogue.cleanup && run_cleanup(&epilogue, OP_REMOVE, NULL, 0, NULL) == EBUSY; i++)
		nanosleep(&pause, NULL);
}

static int64_t now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

static void serve_for_ever(void)
{
	int64_t retry_at = 0;
	struct pollfd fds[4] = {{control, POLLIN, 0}, {signals, POLLIN, 0}, {supervisor_pidfd, POLLIN, 0}, {ended, POLLIN, 0}};
	bool ending = false;

	while (!ending || running) {
		const bool ahead = !ending && networks_wanted(); /* where there is nothing else to do */
		int seen = poll(fds, 4, ahead ? 0 : cleaning ? RETRY_MS : -1);
		if (seen < 0) {
			if (errno != EINTR && errno != ENOMEM)
				abort();
			continue; /* it says nothing of any fd */
		}
		if (seen == 0 && ahead)
			make_network();
		if (fds[3].revents)
			finish_early();
		if (fds[1].revents)
			reap_inits();
		if (cleaning && now_ms() >= retry_at) { /* by time, however many requests come meanwhile */
			retry_cleaning();
			retry_at = now_ms() + RETRY_MS;
		}
		if (!ending && (fds[2].revents || (fds[0].revents && !serve()))) {
			ending = true;
			fds[0].fd = fds[2].fd = -1;
			kill_all();
		}
	}
	run_epilogue();
}

static int usage(void)
{
	fprintf(stderr, "usage: tinyvisor-launcher serve[-nested] FD SUPERVISOR-PID ROOM-FOR-A-TITLE\n"
			"       tinyvisor-launcher keep FD SUPERVISOR-PID ROOM-FOR-A-TITLE < LISTENING-SOCKET\n"
			"       tinyvisor-launcher init [-g] [-s] [-p SIGNAL] [-t MILLISECONDS] -- COMMAND...\n"
			"       tinyvisor-launcher steps | check FD-COUNT < REQUESTS\n");
	return 125;
}

static int fail(const char *what, int error)
{
	struct event event = {.type = EVENT_PREPARED, .a = error};

	fprintf(stderr, "tinyvisor-launcher: %s: %s\n", what, strerror(error));
	send_event(control, &event, NULL, 0, -1);
	return 125;
}

/* Decodes requests from stdin, each behind its 32-bit size: for tests and fuzzers. Prints a line for each: the errno of the
 * refusal, or 0, and how many bytes were understood. */
static int check(int fds)
{
	uint32_t size, offset = 0;

	while (fread(&size, sizeof size, 1, stdin) == 1) {
		char *request = size <= 2 * MAX_REQUEST ? malloc(size) : NULL; /* of its own: a sanitizer sees a read past its end */
		if (!request || fread(request, 1, size, stdin) != size)
			return 125;
		int error = decode_request(request, size, fds, &scratch->plan, &offset);
		printf("%d %u\n", -error, offset);
		(void)fflush(stdout);
		free(request);
	}
	return 0;
}

static void *map_private(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static int map_reports(void)
{
	const size_t size = (size_t)MAX_CONTAINERS * PAGE;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	ended = ends[0];
	ended_fd = ends[1];

	reports_fd = memfd_create("tinyvisor-reports", MFD_CLOEXEC);
	if (reports_fd < 0 || ftruncate(reports_fd, (off_t)size) < 0)
		return -errno;
	reports = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, reports_fd, 0);
	ledger = map_private(sizeof *ledger);
	if (reports == MAP_FAILED || !ledger || madvise(reports, size, MADV_DONTFORK) < 0 ||
	    madvise(ledger, sizeof *ledger, MADV_DONTFORK) < 0)
		return -errno;
	for (free_count = 0; free_count < MAX_CONTAINERS; free_count++)
		ledger->free_slots[free_count] = MAX_CONTAINERS - 1 - free_count;
	return 0;
}

static void close_all_but(int one, int other)
{
	int low = one < other ? one : other, high = one < other ? other : one;

	(void)syscall(NR_close_range, 3u, (unsigned)low - 1, 0);
	if (high > low + 1)
		(void)syscall(NR_close_range, (unsigned)low + 1, (unsigned)high - 1, 0);
	(void)syscall(NR_close_range, (unsigned)high + 1, ~0u, 0);
}

/* Nested: in a user namespace that is not the host's. Live: see keeper.c. */
static int serve_main(char **argv, bool has_title, bool nested, bool live)
{
	struct event ready = {.type = EVENT_PREPARED};
	int error, listener = -1;

	control = fcntl(atoi(argv[2]), F_DUPFD_CLOEXEC, 200); /* out of the way of what comes with requests */
	if (live)
		listener = fcntl(0, F_DUPFD_CLOEXEC, 200);
	if (control < 0 || (live && listener < 0))
		return usage();
	if (live)
		close(0);
	for (int fd = 0; fd >= 0 && fd < 3; fd > 2 ? close(fd) : 0) /* what comes with requests must not land on 0..2 */
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	close_all_but(control, live ? listener : control);
	block_all_signals(NULL);
	reset_dispositions();
	if (has_title) {
		title_start = argv[0];
		title_end = argv[4] + strlen(argv[4]);
	}
	if (live) {
		(void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* the keeper, too */
		control = become_kept(control, listener);
		if (control < 0)
			return 125;
	}
	(void)prctl(PR_SET_NAME, "tinyvisor-launcher", 0, 0, 0);
	(void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	/* A process exec'ed into a container may outlive the one that waits for it. Unreaped it would keep the container's PID 1
	 * from ending, and the host's PID 1 may take its time. */
	(void)prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	(void)umask(0); /* modes are the plan's; the workload sets its own */
	if (!live) {
		supervisor_pidfd = (int)syscall(NR_pidfd_open, atoi(argv[3]), 0);
		if (supervisor_pidfd < 0 || getppid() != atoi(argv[3]))
			return 0; /* it is gone already */
	}
	launcher_pidfd = (int)syscall(NR_pidfd_open, getpid(), 0);
	uint64_t child = 1ull << (SIGCHLD - 1);
	signals = (int)syscall(SYS_signalfd4, -1, &child, sizeof child, O_CLOEXEC | O_NONBLOCK);
	if (launcher_pidfd < 0 || signals < 0)
		return fail("pidfd_open, signalfd", errno);
	error = map_reports();
	if (error)
		return fail("memfd_create", -error);
	proc_fd = open_proc(nested);
	if (proc_fd < 0)
		return fail("open proc", -proc_fd);
	error = enter_own_world(nested);
	if (error)
		return fail("leaving the host's mounts", -error);
	send_event(control, &ready, NULL, 0, -1);
	serve_for_ever();
	return 0;
}

int main(int argc, char **argv)
{
	scratch = map_private(sizeof *scratch);
	if (!scratch || argc < 2)
		return usage();
	if (!strcmp(argv[1], "init"))
		return init_standalone(argc - 1, argv + 1);
	if (!strcmp(argv[1], "steps"))
		return print_steps(), 0;
	if (!strcmp(argv[1], "check") && argc == 3)
		return check(atoi(argv[2]));
	if ((!strcmp(argv[1], "serve") || !strcmp(argv[1], "serve-nested")) && (argc == 4 || argc == 5))
		return serve_main(argv, argc == 5, argv[1][5], false);
	if ((!strcmp(argv[1], "keep") || !strcmp(argv[1], "keep-nested")) && argc == 5)
		return serve_main(argv, true, argv[1][4], true);
	return usage();
}
