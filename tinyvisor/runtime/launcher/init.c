/* PID 1 of a container, and the same by itself as `tinyvisor-launcher init`.
 *
 * All signals are blocked and taken from a signalfd, so none is lost between fork and exec: it stays pending and is
 * forwarded afterwards. SIGCHLD only says "look": every wake-up reaps until there is nothing left, because signals of one
 * kind coalesce (catatonit#4). Nothing here polls; an idle init sleeps for ever. */
#define _GNU_SOURCE
#include "launcher.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>

#define TIDY_MS 20         /* an init whose container lives that long gives back what its start took */
#define MAX_WIPED (64 << 10) /* bytes of a request */
#define BATCH 256 /* signals or zombies taken before the clock and the commands get their turn: a flood must not stop them */

struct init { /* what stays of a container's set-up */
	int signals, event; /* event -1: nobody to report to */
	int refusals;       /* the listener of the workload's filter, or -1 */
	pid_t workload;
	bool group;
	bool busy; /* there may be more to reap */
	bool refused; /* the workload was killed for a call that its filter refuses */
	struct report *report; /* of a `struct page`; NULL when stand-alone */
	int64_t started; /* ns */
	int64_t tidy_at; /* ns, 0: it is */
	int orphan_signal;
	unsigned orphan_grace_ms;
	int64_t deadline; /* ns, 0 for none */
	int cpu_usage;    /* fd of what counts the CPU time, or -1 */
	int64_t cpu_limit; /* ns */
	unsigned cpus;     /* how many can be used at once */
	int ended, slot;  /* where to say that all has ended, or -1, and what */
	int counters[MAX_COUNTERS], counter_count;
	bool settled;
	bool exec; /* not PID 1: the workload is one process among others of a container */
	int tty; /* stand-alone: our controlling terminal, or -1 */
};

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Of what may be any number: more than some 70 years are for ever, and can still be added to the time of day. */
static int64_t nanoseconds(uint64_t ms)
{
	const int64_t for_ever = INT64_MAX / 4;

	return ms < (uint64_t)for_ever / 1000000 ? (int64_t)ms * 1000000 : for_ever;
}

/* libc's sets leave out the real-time signals that libc keeps for itself; these don't. */
int set_signal_mask(uint64_t mask)
{
	return syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask) < 0 ? -errno : 0;
}

void block_all_signals(uint64_t *old)
{
	uint64_t all = ~0ull;

	(void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, old, sizeof all);
}

void reset_dispositions(void)
{
	const uint64_t standard[4] = {0}; /* struct sigaction of the kernel: SIG_DFL */

	for (int signal = 1; signal <= 64; signal++)
		(void)syscall(SYS_rt_sigaction, signal, standard, NULL, sizeof(uint64_t));
}

static int open_signals(void)
{
	uint64_t all = ~0ull;

	return (int)syscall(SYS_signalfd4, -1, &all, sizeof all, O_CLOEXEC | O_NONBLOCK);
}

/* Whether the signal was pending; it no longer is. */
static bool take_pending(int signal)
{
	const uint64_t set = 1ull << (signal - 1);
	const struct timespec none = {0, 0};

	return syscall(SYS_rt_sigtimedwait, &set, NULL, &none, sizeof set) == signal;
}

static bool hand_over_terminal(const struct init *init)
{
	return tcgetpgrp(init->tty) == getpgrp() && tcsetpgrp(init->tty, init->workload) == 0;
}

static void take_terminal_back(const struct init *init, pid_t group)
{
	if (init->tty >= 0 && tcgetpgrp(init->tty) == group)
		(void)tcsetpgrp(init->tty, getpgrp());
}

/* The workload stopped, but a shell waits for us: our job stops too, and goes on when the shell says so. By SIGTSTP, which
 * the kernel drops where no shell could continue us (PID 1, an orphaned process group). */
static void stop_too(const struct init *init, int signal)
{
	if ((signal == SIGTTIN || signal == SIGTTOU) && hand_over_terminal(init)) {
		(void)kill(-init->workload, SIGCONT); /* the shell's `fg` told the terminal, but nobody told us */
		return;
	}
	take_terminal_back(init, init->workload);
	(void)kill(0, SIGTSTP); /* takes a pending SIGCONT away, so one that is there below is an answer to this */
	(void)set_signal_mask(~(1ull << (SIGTSTP - 1))); /* stops here */
	block_all_signals(NULL);
	/* Taken and not forwarded later: a second SIGCONT would undo a stop that comes meanwhile. */
	if (take_pending(SIGCONT) || signal == SIGTSTP) { /* else: stopped by somebody who will continue it */
		(void)hand_over_terminal(init); /* not after `bg` */
		(void)kill(-init->workload, SIGCONT);
	}
}

static void forward(const struct init *init, int signal, enum scope scope)
{
	if (scope == SCOPE_ALL && !init->exec)
		(void)kill(-1, signal);
	else if (init->workload > 0) /* ESRCH: it ended just now, its exit is what counts */
		(void)kill(scope != SCOPE_WORKLOAD || init->group ? -init->workload : init->workload, signal);
}

/* Everything, of a container; of an exec, what did not leave the workload's process group. */
static void kill_everything(const struct init *init)
{
	forward(init, SIGKILL, SCOPE_ALL);
}

/* True once the workload has been reaped. */
static bool reap(struct init *init, int *status)
{
	bool ended = false;
	int one, count = 0;
	pid_t pid;

	for (; count < BATCH && (pid = waitpid(-1, &one, WNOHANG | (init->tty >= 0 ? WUNTRACED : 0))) > 0; count++) {
		if (pid != init->workload)
			continue;
		if (WIFSTOPPED(one)) {
			stop_too(init, WSTOPSIG(one));
			continue;
		}
		*status = one;
		take_terminal_back(init, init->workload);
		init->workload = 0; /* its number may be given anew from here on */
		ended = true;
	}
	init->busy = count == BATCH || (pid < 0 && errno != ECHILD);
	return ended;
}

static void take_signals(const struct init *init)
{
	struct { uint32_t number; char rest[124]; } info; /* struct signalfd_siginfo */

	for (int i = 0; i < BATCH && read(init->signals, &info, sizeof info) == (ssize_t)sizeof info; i++)
		if (init->exec && info.number == SIGTERM)
			kill_everything(init); /* the launcher's word */
		else if (!init->exec && info.number != SIGCHLD)
			forward(init, (int)info.number, SCOPE_WORKLOAD);
}

static void take_command(struct init *init)
{
	struct command command;
	ssize_t size = recv(init->event, &command, sizeof command, MSG_DONTWAIT);

	if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) {
		close(init->event); /* the supervisor is gone; what that means for a container is the launcher's to decide */
		init->event = -1;
		if (init->exec)
			kill_everything(init); /* nobody waits for it any more, and in live mode the container goes on */
	} else if (size == (ssize_t)sizeof command && command.magic == MAGIC && command.version == VERSION &&
		   command.type == COMMAND_SIGNAL && command.signal > 0 && command.signal <= 64)
		forward(init, command.signal, (enum scope)command.scope);
}

static void forget_refusals(struct init *init)
{
	close(init->refusals);
	init->refusals = -1;
}

/* One call that the workload's filter refuses: each waits for us, and we never for them. */
static void take_refusal(struct init *init)
{
	switch (answer_refusal(init->refusals, now(), init->workload)) {
	case REFUSAL_KILLED:
		init->refused = true;
		break;
	case REFUSAL_KILL_ALL:
		init->refused = true;
		kill_everything(init);
		break;
	case REFUSAL_END:
		forget_refusals(init);
		break;
	default:
		break;
	}
}

static void tidy(struct init *init)
{
	forget_request();
	init->tidy_at = 0;
}

/* What the workload was given goes at once; the memory itself, which takes longer, when nobody waits for us, or never. */
static void tidy_soon(struct init *init)
{
	struct request request;

	memcpy(&request, scratch->request, sizeof request);
	if (request.length > MAX_WIPED) {
		forget_request();
		return;
	}
	memset(scratch->request, 0, request.length);
	init->tidy_at = now() + TIDY_MS * 1000000LL;
}

static int64_t earlier(int64_t one, int64_t other)
{
	return !one || (other && other < one) ? other : one;
}

/* Until a signal, a command, a refusal or `end` (ns, 0 for never), or for less. */
static void wait_for_something(struct init *init, int64_t end)
{
	struct pollfd fds[3] = {{init->signals, POLLIN, 0}, {init->event, POLLIN, 0}, {init->refusals, POLLIN, 0}};
	int64_t left, turn;
	struct timespec time;

	if (init->refusals >= 0 && refusals_wait(now(), &turn)) { /* too many: not yet */
		fds[2].fd = -1;
		end = earlier(end, turn);
	}
	end = earlier(end, init->tidy_at);
	left = end ? end - now() : 0;
	time = (struct timespec){left / 1000000000, left % 1000000000};
	if (init->busy)
		time = (struct timespec){0, 0};
	if (left < 0 || ppoll(fds, 3, end || init->busy ? &time : NULL, NULL) <= 0) {
		if (init->tidy_at && now() >= init->tidy_at)
			tidy(init);
		return;
	}
	if (fds[2].revents & POLLIN)
		take_refusal(init);
	else if (fds[2].revents)
		forget_refusals(init); /* nobody is left under this filter (5.9): there would be no notification to take */
	if (fds[1].revents)
		take_command(init);
	if (fds[0].revents)
		take_signals(init);
}

/* The others get a signal and a bounded time; then the end of PID 1 kills them. */
static void wait_for_orphans(struct init *init)
{
	int64_t end = now() + init->orphan_grace_ms * 1000000LL;

	if (!init->orphan_grace_ms)
		return;
	if (getpid() == 1)
		(void)kill(-1, init->orphan_signal);
	while (now() < end) {
		pid_t pid = 1;
		for (int i = 0; i < BATCH && pid > 0; i++)
			pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0)
			return; /* ECHILD: empty */
		init->busy = pid > 0;
		wait_for_something(init, end);
	}
}

/* `why`: GONE_TIMED_OUT, GONE_CPU_TIMED_OUT or 0. */
static void report_exit(const struct init *init, int status, int why)
{
	if (!init->report)
		return;
	init->report->status = status;
	init->report->ended = now();
	init->report->wall = init->report->ended - init->started;
	/* It may have ended by itself at the very moment. */
	init->report->flags &= GONE_CONNECTED;
	init->report->flags |= GONE_EXITED | (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? why | (init->refused ? GONE_REFUSED : 0) : 0);
}

/* When the CPU time may be used up at the earliest (ns), 0 once it is, and INT64_MAX where there is no limit: with every CPU
 * busy all the time it can't be sooner, so this is asked a few times and never in between. */
static int64_t cpu_deadline(const struct init *init)
{
	char text[64] = {0};
	const char *number = text;
	int64_t used, most, unit = 1;

	if (init->cpu_usage < 0 || pread(init->cpu_usage, text, sizeof text - 1, 0) <= 0)
		return INT64_MAX;
	if (!strncmp(text, "usage_usec ", 11)) { /* v2's cpu.stat; v1's cpuacct.usage is in ns */
		number = text + 11;
		unit = 1000;
	}
	most = INT64_MAX / unit;
	used = strtoll(number, NULL, 10);
	used = used < 0 ? 0 : (used < most ? used : most) * unit;
	if (used >= init->cpu_limit)
		return 0;
	return now() + (init->cpu_limit - used) / init->cpus + 500000; /* not more often than the counters move */
}

/* Kills what has used up its time; returns which one, and when to look again in `next` (ns, 0 for never). */
static int enforce_time(const struct init *init, int64_t *next)
{
	int64_t cpu = cpu_deadline(init);
	int why = init->deadline && now() >= init->deadline ? GONE_TIMED_OUT : !cpu ? GONE_CPU_TIMED_OUT : 0;

	*next = why || (cpu == INT64_MAX && !init->deadline) ? 0 : !init->deadline || cpu < init->deadline ? cpu : init->deadline;
	if (why)
		kill_everything(init);
	return why;
}

/* What does not fit is left to the launcher, all of it. */
static void read_counters(const struct init *init)
{
	struct page *page = (struct page *)init->report;
	uint32_t size = 0;

	for (int i = 0; i < init->counter_count; i++)
		size += read_back(init->counters[i], page->data + size, (uint32_t)sizeof page->data - size);
	page->size = sizeof page->data - size < sizeof size ? 0 : size;
}

/* The end of PID 1 takes its time (its mounts, an RCU grace period). Where nothing else is left to end, the launcher may clean
 * up and report first: it removes the cgroups, which fails unless they are empty indeed. It then kills us: an end of ours meanwhile
 * would take the CPU from those who wait for the report. */
static void tell_early(const struct init *init)
{
	struct rusage usage;
	const uint32_t slot = (uint32_t)init->slot;

	if (init->ended < 0 || waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD || getrusage(RUSAGE_CHILDREN, &usage) < 0)
		return;
	init->report->user = usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec;
	init->report->system = usage.ru_stime.tv_sec * 1000000LL + usage.ru_stime.tv_usec;
	read_counters(init);
	init->report->flags |= GONE_EMPTY;
	if (write(init->ended, &slot, sizeof slot) < 0) /* EAGAIN: then it is told when we are reaped, as ever */
		return;
	for (;;)
		(void)syscall(SYS_rt_sigsuspend, &(uint64_t){~0ull}, sizeof(uint64_t));
}

static int exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static _Noreturn void run(struct init *init)
{
	int64_t next = 0;
	int status = 0, why = enforce_time(init, &next);

	while (!reap(init, &status)) { /* before the first wait, too: it may have ended already */
		wait_for_something(init, next);
		if (!why && next && now() >= next)
			why = enforce_time(init, &next);
	}
	report_exit(init, status, why);
	wait_for_orphans(init);
	tell_early(init);
	_exit(exit_code(status));
}

/* ---- in a container ---- */

struct birth {
	struct context *context;
	struct plan *plan;
	struct report *report;
	int64_t started; /* ns, written by the child */
	int32_t before_exec; /* 1: it shares our memory, and we don't sleep till its exec or end; then 0 */
};

/* Root inside owns the inode of the host's /dev/null, too: through the host's writable /dev it could change its mode for all.
 * The container's own is on a read-only mount (runc reopens it, too). */
static int own_null(struct context *context, int fd)
{
	struct stat status;

	if (fstat(fd, &status) < 0)
		return -errno;
	if (!S_ISCHR(status.st_mode) || status.st_rdev != makedev(1, 3))
		return fd;
	if (context->null == -1)
		context->null = open_in_root(context, "dev/null", O_RDWR);
	return context->null;
}

/* All is ready but for the command. The end of the stream: nobody wants it any more. Nothing of this container's runs yet, and
 * init sleeps until our exec, so what is received can go where the launch was. */
static int wait_for_run(struct context *context, const struct report *report, struct plan *plan, int *fds)
{
	struct event parked = {.type = EVENT_PARKED, .id = context->id, .a = report->pid};
	struct request request;
	uint32_t offset;
	int count, error;
	ssize_t size;

	for (int i = 1; i < context->fd_count && !context->closed; i++)
		close(context->fds[i]);
	(void)madvise(scratch, offsetof(struct scratch, stack), MADV_DONTNEED); /* not the stack's top: we may stand on it */
	send_event(context->event, &parked, NULL, 0, -1);
	size = receive_request(context->event, scratch->request, fds, &count);
	if (size <= 0)
		return size ? (int)size : -ECANCELED;
	error = decode_request(scratch->request, (uint32_t)size, count, plan, &offset);
	if (error)
		return error;
	memcpy(&request, scratch->request, sizeof request);
	if (request.type != REQUEST_RUN)
		return -EINVAL;
	memcpy(context->stdio, fds, sizeof context->stdio);
	context->fds = fds;
	context->fd_count = count;
	return 0;
}

static bool is_socket(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
}

/* Whether no fd can be passed through it: a socket could be one of the unix domain. */
static bool carries_bytes_only(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode) || S_ISCHR(status.st_mode));
}

static int take_stdio(struct context *context, struct report *report)
{
	int error = 0;

	for (int i = 0; i < 3 && !error; i++) {
		int fd = context->tty >= 0 ? context->tty : own_null(context, context->stdio[i]);
		/* A source below 3 would be overwritten before its turn: init made sure that there is none. */
		error = fd < 0 ? fd : dup2(fd, i) < 0 ? -errno : 0;
		if (fd != context->null && !carries_bytes_only(i))
			report->flags |= GONE_CONNECTED;
	}
	return error;
}

/* The child between fork and exec. With CLONE_VM init sleeps until exec or exit. */
static int workload_main(void *argument)
{
	struct birth *birth = argument;
	struct context *context = birth->context;
	struct plan *plan = birth->plan;
	int fds[MAX_FDS], done = 0, failed = 0, error = 0;

	/* Before a filter might refuse it. All signals are blocked, but not this one. */
	if (context->init_flags & INIT_TRACE && (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 || kill(getpid(), SIGSTOP) < 0))
		error = -errno;
	if (!error && context->park) {
		done = plan->count[SECTION_WORKLOAD];
		error = run_steps(context, plan->section[SECTION_WORKLOAD], done, &failed);
		if (!error) {
			failed = done;
			error = wait_for_run(context, birth->report, plan, fds);
			context->park = false;
		}
	}
	if (!error) {
		failed = done + plan->count[SECTION_WORKLOAD]; /* past the last step: none of them */
		error = take_stdio(context, birth->report);
		if (!error && context->closed)
			error = step_close_fds(context, NULL); /* what it waited on, and what came then */
	}
	if (!error)
		error = set_signal_mask(0);
	if (!error) {
		birth->started = now();
		error = run_steps(context, plan->section[SECTION_WORKLOAD], plan->count[SECTION_WORKLOAD], &failed);
		failed += done;
	}
	birth->report->step = failed;
	birth->report->error = error ? -error : ENOEXEC;
	(void)syscall(SYS_exit_group, error == -ENOENT ? 127 : 126);
	__builtin_trap(); /* a seccomp filter may refuse to let us go: libc's _exit would try for ever */
}

/* Calls `main`, which must not return, in a child that shares our memory where it can (SHARES_MEMORY), on the scratch's stack: one
 * such child at a time. libc's clone() does that, too, but can't say CLONE_INTO_CGROUP; and clone3 by syscall(2) would return into
 * a frame of the parent's. */
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(__SANITIZE_ADDRESS__)
#define SHARES_MEMORY true
pid_t clone3_vm(struct clone_arguments *arguments, int (*main)(void *), void *data)
{
	arguments->flags |= 0x100; /* CLONE_VM */
	arguments->stack = (uint64_t)(uintptr_t)scratch->stack;
	arguments->stack_size = sizeof scratch->stack;
#if defined(__x86_64__)
	register int (*entry)(void *) __asm__("r8") = main;
	register void *argument __asm__("r9") = data;
	long result = NR_clone3;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "mov %%r9, %%rdi\n\t"
			 "call *%%r8\n\t"
			 "hlt\n"
			 "1:"
			 : "+a"(result)
			 : "D"(arguments), "S"(sizeof *arguments), "r"(entry), "r"(argument)
			 : "rcx", "r11", "memory");
#else /* aarch64 */
	register long result __asm__("x0") = (long)arguments;
	register size_t size __asm__("x1") = sizeof *arguments;
	register long number __asm__("x8") = NR_clone3;
	register int (*entry)(void *) __asm__("x9") = main;
	register void *argument __asm__("x10") = data;
	__asm__ volatile("svc #0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, #0\n\t"
			 "mov x0, x10\n\t"
			 "blr x9\n\t"
			 "brk #1\n"
			 "1:"
			 : "+r"(result)
			 : "r"(size), "r"(number), "r"(entry), "r"(argument)
			 : "memory");
#endif
	if (result < 0) {
		errno = (int)-result;
		return -1;
	}
	return (pid_t)result;
}
#else
#define SHARES_MEMORY false
pid_t clone3_vm(struct clone_arguments *arguments, int (*main)(void *), void *data)
{
	pid_t child = (pid_t)syscall(NR_clone3, arguments, sizeof *arguments);

	if (child == 0)
		_exit(main(data));
	return child;
}
#endif

/* Sleeps until the child's exec or exit, unless that is traced or parked. Sharing memory is what makes it cheap; the first process
 * of a time namespace can't, and the sanitizers don't know how. */
static pid_t give_birth(struct birth *birth)
{
	struct clone_arguments arguments = {.flags = 0x4000 /* CLONE_VFORK */, .exit_signal = SIGCHLD};
	pid_t child;

	if (birth->context->init_flags & INIT_TRACE)
		arguments.flags = 0; /* we are its tracer and have to answer */
	if (birth->before_exec) {
		arguments.flags = 0x00200000; /* CLONE_CHILD_CLEARTID */
		arguments.child_tid = (uint64_t)(uintptr_t)&birth->before_exec;
	}
	if (birth->context->cgroup >= 0) {
		arguments.flags |= 0x200000000ull; /* CLONE_INTO_CGROUP, 5.7 */
		arguments.cgroup = (uint64_t)birth->context->cgroup;
	}
	if (!(birth->context->init_flags & (INIT_FORK | INIT_TRACE)))
		return clone3_vm(&arguments, workload_main, birth);
	child = (pid_t)syscall(NR_clone3, &arguments, sizeof arguments);
	if (child == 0)
		workload_main(birth);
	return child;
}

/* As CLONE_VFORK would. Nobody but the kernel writes there, when the child gives up our memory. */
static void wait_for_release(int32_t *before_exec)
{
	while (__atomic_load_n(before_exec, __ATOMIC_ACQUIRE))
		(void)syscall(SYS_futex, before_exec, 0 /* FUTEX_WAIT */, 1, NULL, NULL, 0);
}

/* Till the child's exec, where it stops before its first instruction, or its end, which is left to be reaped. CAP_SYS_PTRACE is
 * power over us, too, and the exec is what wakes us: a workload that is quick would find us with all our rights. */
static void wait_for_exec(pid_t child)
{
	const int at_exec = SIGTRAP | PTRACE_EVENT_EXEC << 8;
	siginfo_t info = {0};
	bool first = true;

	while (waitid(P_PID, (id_t)child, &info, WEXITED | WSTOPPED | WNOWAIT | __WALL) == 0 && info.si_code == CLD_TRAPPED &&
	       info.si_status != at_exec) {
		int signal = first ? 0 : info.si_status & 0xff; /* its own SIGSTOP, or somebody else's signal on its way */
		if (first && ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_TRACEEXEC) < 0)
			give_up(errno);
		first = false;
		(void)ptrace(PTRACE_CONT, child, NULL, (void *)(intptr_t)signal);
	}
}

/* It is left to be reaped. */
static bool has_ended(pid_t child)
{
	siginfo_t info = {0};

	return waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == child;
}

static _Noreturn void fail(struct report *report, enum section section, int step, int error)
{
	report->section = (int)section;
	report->step = step;
	report->error = error;
	_exit(error == ENOENT ? 127 : 126);
}

static struct report *own_report; /* NULL: not yet there, or not an init */
static int own_step;              /* of SECTION_INIT, or how many there are */

/* For what must not fail and leaves no way back. The end of PID 1 is that of all in the container. */
_Noreturn void give_up(int error)
{
	if (own_report)
		fail(own_report, SECTION_INIT, own_step, error);
	_exit(125);
}

/* Keeps these fds (-1: none) as 3, 4, ... and nothing else: an init that held the workload's pipes would keep their readers
 * from seeing the end. */
static int keep_only(int *const *fds, int count)
{
	for (int i = 0; i < count; i++) /* out of each other's way first */
		if (*fds[i] >= 0 && (*fds[i] = fcntl(*fds[i], F_DUPFD_CLOEXEC, 100)) < 0)
			return -errno;
	int next = 3;
	for (int i = 0; i < count; i++)
		if (*fds[i] >= 0 && (*fds[i] = dup3(*fds[i], next++, O_CLOEXEC)) < 0)
			return -errno;
	return syscall(NR_close_range, (unsigned)next, ~0u, 0) < 0 || syscall(NR_close_range, 0u, 2u, 0) < 0 ? -errno : 0;
}

/* The parent may have died before PDEATHSIG was set; getppid() can't tell from inside a new pid namespace. An exiting parent
 * first signals its children and then looks dead, both under the lock that waitpid takes: behind it, either we were
 * signalled or the pidfd says so. */
void die_with_launcher(void)
{
	struct pollfd launcher = {launcher_pidfd, POLLIN, 0};

	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		give_up(errno);
	(void)waitpid(-1, NULL, WNOHANG);
	if (poll(&launcher, 1, 0) != 0)
		give_up(launcher.revents ? ECHILD : errno);
}

/* Who is woken by the same event as we are, or by us, has something to do for somebody: we don't take the CPU from them. */
static void give_way(void)
{
	(void)syscall(SYS_sched_setscheduler, 0, 3 /* SCHED_BATCH */, &(int){0});
}

/* From here on init reaps and signals, and needs no more rights than that: a workload that may ptrace it (CAP_SYS_PTRACE)
 * must not come by the others, nor by making it exec something. */
static int drop_rights(void)
{
	struct { uint32_t version; int pid; } header = {0x20080522u, 0}; /* linux/capability.h _LINUX_CAPABILITY_VERSION_3 */
	struct { uint32_t effective, permitted, inheritable; } data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	data[0].effective = data[0].permitted &= 1u << 5; /* CAP_KILL */
	data[1].effective = data[1].permitted = 0;
	data[0].inheritable = data[1].inheritable = 0;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

/* Into what it is for the rest of its life. The child may be running, in the same memory and with the same errno: whoever fails
 * ends the container. */
static int settle(struct init *init)
{
	int *kept[5 + MAX_COUNTERS] = {&init->event, &init->signals, &init->cpu_usage, &init->ended, &init->refusals}, error;

	for (int i = 0; i < init->counter_count; i++)
		kept[5 + i] = init->counters + i;
	error = keep_only(kept, 5 + init->counter_count);
	if (!error)
		error = drop_rights();
	if (!error)
		give_way();
	init->settled = true;
	return error;
}

_Noreturn void init_main(struct context *context, struct plan *plan)
{
	struct init init = {.tty = -1, .exec = context->exec, .refusals = -1};
	struct event started = {.type = EVENT_STARTED, .id = context->id};
	struct birth birth = {.context = context, .plan = plan};
	struct report *report;
	int error, handover[2] = {-1, -1};

	report = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, reports_fd, (off_t)context->slot * PAGE);
	if (report == MAP_FAILED)
		_exit(125); /* nowhere to say why: Container.finish knows it */
	birth.report = own_report = report;
	die_with_launcher();
	supervisor_pidfd = -1;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		give_up(errno);
	error = run_steps(context, plan->section[SECTION_INIT], plan->count[SECTION_INIT], &own_step);
	if (error)
		give_up(-error);
	if (context->exec && !plan->count[SECTION_WORKLOAD]) { /* the steps were all that was wanted of it */
		report->flags = GONE_EXITED;
		_exit(0);
	}
	close_networks(); /* here, for the workload would get them, too */
	show_as(context->exec ? "tinyvisor-exec" : "tinyvisor-init", context->name);
	init.signals = open_signals();
	if (init.signals < 0)
		give_up(errno);
	if (context->init_flags & INIT_REFUSALS && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, handover) < 0)
		give_up(errno);
	context->handover = handover[1];
	init.event = is_socket(context->event) ? context->event : -1;
	init.report = report;
	init.group = context->init_flags & INIT_SIGNAL_GROUP;
	init.orphan_signal = context->orphan_signal;
	init.orphan_grace_ms = context->orphan_grace_ms;
	init.cpu_usage = context->cpu_usage;
	init.cpu_limit = nanoseconds(context->cpu_ms);
	init.cpus = context->cpus;
	init.ended = context->init_flags & INIT_EARLY ? ended_fd : -1;
	init.slot = context->slot;
	init.counter_count = context->counter_count;
	memcpy(init.counters, context->counters, sizeof init.counters);
	birth.before_exec = SHARES_MEMORY && context->park && !(context->init_flags & (INIT_FORK | INIT_TRACE | INIT_REFUSALS));
	init.workload = give_birth(&birth);
	if (init.workload < 0)
		give_up(errno);
	if (birth.before_exec) { /* what is done now need not be done in the run's time */
		error = settle(&init);
		if (error)
			give_up(-error);
		wait_for_release(&birth.before_exec);
	}
	if (context->init_flags & INIT_TRACE)
		wait_for_exec(init.workload);
	if (report->error)
		fail(report, SECTION_WORKLOAD, report->step, report->error);
	init.started = birth.started ? birth.started : now(); /* 0: the child had a memory of its own */
	init.deadline = context->timeout_ms ? init.started + nanoseconds(context->timeout_ms) : 0;
	error = handover[0] < 0 ? 0 : take_refusals(handover[0], report, &init.refusals);
	if (error == -EAGAIN && has_ended(init.workload))
		error = 0; /* killed before it had a filter, e.g. for memory: that is told as ever */
	if (!error && !init.settled)
		error = settle(&init);
	if (!error) {
		tidy_soon(&init);
		if (context->init_flags & INIT_TRACE) {
			tidy(&init);
			(void)ptrace(PTRACE_DETACH, init.workload, NULL, NULL);
		}
		started.a = report->pid;
		error = init.event < 0 ? 0 : send_event(init.event, &started, NULL, 0, -1);
	}
	if (error) {
		forward(&init, SIGKILL, SCOPE_GROUP); /* in another's container it would live on */
		give_up(-error);
	}
	run(&init);
}

/* ---- stand-alone: tinyvisor-launcher init [-g] [-s] [-p SIGNAL] [-t MILLISECONDS] -- COMMAND... ---- */

static _Noreturn void exec_command(char **command, int tty, pid_t parent, const struct sigaction *on_child, uint64_t mask)
{
	if (parent && (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || getppid() != parent))
		_exit(125);
	/* A group of its own, so that job control works for a shell. */
	(void)setpgid(0, 0);
	if (tty >= 0)
		(void)tcsetpgrp(tty, getpid()); /* SIGTTOU is blocked */
	(void)sigaction(SIGCHLD, on_child, NULL);
	(void)set_signal_mask(mask);
	execvp(command[0], command);
	int error = errno;
	fprintf(stderr, "tinyvisor-init: %s: %s\n", command[0], strerror(error));
	_exit(error == ENOENT ? 127 : 126);
}

static int usage(void)
{
	fprintf(stderr, "usage: tinyvisor-launcher init [-g] [-s] [-p SIGNAL] [-t MILLISECONDS] -- COMMAND...\n"
			"  -g  forward signals to the command's process group\n"
			"  -s  be the subreaper of all descendants, where this is not PID 1\n"
			"  -p  get this signal (a number) when the parent ends; KILL (9) kills the command, too\n"
			"  -t  when the command has ended, give other processes this long to end\n");
	return 125;
}

static bool parse_number(const char *text, long highest, long *out)
{
	char *end;

	errno = 0;
	*out = strtol(text, &end, 10);
	return end != text && !*end && !errno && *out >= 0 && *out <= highest;
}

int init_standalone(int argc, char **argv)
{
	struct init init = {.event = -1, .cpu_usage = -1, .ended = -1, .refusals = -1, .orphan_signal = SIGTERM};
	struct sigaction on_child, standard = {.sa_handler = SIG_DFL};
	pid_t parent = getppid(), self = getpid();
	long grace = 0, parent_signal = 0;
	bool subreaper = false;
	int option;
	uint64_t mask;

	while ((option = getopt(argc, argv, "+gsp:t:")) != -1)
		if (option == 'g')
			init.group = true;
		else if (option == 's')
			subreaper = true;
		else if (!(option == 'p' && parse_number(optarg, 64, &parent_signal)) &&
			 !(option == 't' && parse_number(optarg, INT32_MAX, &grace)))
			return usage();
	if (optind >= argc)
		return usage();
	init.orphan_grace_ms = (unsigned)grace;
	block_all_signals(&mask);
	/* Where SIGCHLD is ignored, the kernel reaps by itself and tells nobody. */
	(void)sigaction(SIGCHLD, &standard, &on_child);
	if ((subreaper && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0) ||
	    (parent_signal && prctl(PR_SET_PDEATHSIG, parent_signal, 0, 0, 0) < 0) || (init.signals = open_signals()) < 0) {
		perror("tinyvisor-init");
		return 125;
	}
	if (parent_signal && getppid() != parent) /* it died before prctl */
		(void)kill(self, (int)parent_signal);
	init.tty = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
	bool foreground = init.tty >= 0 && tcgetpgrp(init.tty) == getpgrp(); /* else it is not ours to hand over */
	init.workload = fork();
	if (init.workload == 0)
		exec_command(argv + optind, foreground ? init.tty : -1, parent_signal == SIGKILL ? self : 0, &on_child, mask);
	if (init.workload < 0) {
		perror("tinyvisor-init");
		return 125;
	}
	(void)setpgid(init.workload, init.workload); /* here, too: a signal to the group must not come before the child's own call */
	run(&init);
}
