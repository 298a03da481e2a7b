/* Makes single system calls of a launch fail: a tracer of the launcher, driven over stdin and stdout by test_faults.py.
 *
 *   arm ROLE N ERRNO   the N-th call (from 1) of the next launch's ROLE is not made and gives ERRNO; answers "ok"
 *   leave              from now on a workload is let go at its birth, for another tracer; answers "ok"
 *   report             answers "hit NUMBER", the call that failed, or "miss N", how many there were; and disarms
 *
 * ROLE: launcher, from the receipt of the request on; init, its only child; helper, whose user namespace is taken; workload, up to
 * its exec. Calls that can't fail, or whose failure would be of our making only, are neither counted nor hit. x86-64. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEIZE 0x4206 /* linux/ptrace.h */
#define LISTEN 0x4208
#define EVENT_STOP 128
#define MAX_TRACEES 4096

enum role { LAUNCHER, INIT, HELPER, WORKLOAD, ROLES, UNKNOWN };
static const char *const names[ROLES] = {"launcher", "init", "helper", "workload"};

static struct tracee {
	pid_t pid;
	enum role role;
	bool inside, failing; /* between a call's entry and its exit; to be given the error there */
	bool waiting;         /* stopped, until its parent's event says who it is */
	bool leaving;         /* let go at its first stop */
} tracees[MAX_TRACEES];
static int count;
static bool armed, counting; /* counting: the launcher's turn has come */
static bool leave;
static enum role wanted;
static long at, error, seen[ROLES], hit;

static struct tracee *find(pid_t pid)
{
	for (int i = 0; i < count; i++)
		if (tracees[i].pid == pid)
			return tracees + i;
	if (count == MAX_TRACEES)
		exit(3);
	tracees[count] = (struct tracee){.pid = pid, .role = UNKNOWN};
	return tracees + count++;
}

static void forget(pid_t pid)
{
	*find(pid) = tracees[count - 1];
	count--;
}

/* What is not of interest runs on undisturbed. */
static void resume(const struct tracee *tracee, int signal)
{
	const bool stops = tracee->role == LAUNCHER || tracee->inside || (armed && hit < 0);

	(void)ptrace(stops ? PTRACE_SYSCALL : PTRACE_CONT, tracee->pid, NULL, (void *)(long)signal);
}

static bool spared(long number)
{
	return number == SYS_close || number == SYS_exit || number == SYS_exit_group || number == SYS_umask;
}

static void at_call(struct tracee *tracee)
{
	struct user_regs_struct registers;

	if (ptrace(PTRACE_GETREGS, tracee->pid, NULL, &registers) < 0)
		return;
	tracee->inside = !tracee->inside;
	if (!tracee->inside) {
		if (tracee->failing) {
			registers.rax = (unsigned long long)-error;
			(void)ptrace(PTRACE_SETREGS, tracee->pid, NULL, &registers);
		}
		tracee->failing = false;
		return;
	}
	if (tracee->role == LAUNCHER && armed && registers.orig_rax == SYS_recvmsg)
		counting = true;
	if (!armed || hit >= 0 || tracee->role >= ROLES || (tracee->role == LAUNCHER && !counting) || spared((long)registers.orig_rax))
		return;
	if (++seen[tracee->role] == at && tracee->role == wanted) {
		hit = (long)registers.orig_rax;
		tracee->failing = true;
		registers.orig_rax = ~0ull; /* no such call */
		(void)ptrace(PTRACE_SETREGS, tracee->pid, NULL, &registers);
	}
}

static void at_first_stop(struct tracee *tracee)
{
	tracee->waiting = false;
	if (tracee->leaving) {
		(void)ptrace(PTRACE_DETACH, tracee->pid, NULL, NULL);
		forget(tracee->pid);
	} else
		resume(tracee, 0);
}

/* What init need not sleep for till the exec is told from a helper by the flags in its clone3's argument. */
static bool is_parked(pid_t parent)
{
	struct user_regs_struct registers;

	return ptrace(PTRACE_GETREGS, parent, NULL, &registers) == 0 && registers.orig_rax == SYS_clone3 &&
	       ptrace(PTRACE_PEEKDATA, parent, (void *)registers.rdi, NULL) & 0x00200000 /* CLONE_CHILD_CLEARTID */;
}

static void at_birth(const struct tracee *parent, int event)
{
	const bool workload = event == PTRACE_EVENT_VFORK || (parent->role == INIT && is_parked(parent->pid));
	const enum role role = parent->role == LAUNCHER ? INIT : workload ? WORKLOAD : HELPER;
	unsigned long pid = 0;
	struct tracee *child;

	(void)ptrace(PTRACE_GETEVENTMSG, parent->pid, NULL, &pid);
	child = find((pid_t)pid);
	child->role = role;
	child->leaving = leave && role == WORKLOAD;
	if (child->waiting)
		at_first_stop(child);
}

static void at_stop(pid_t pid, int status)
{
	struct tracee *tracee = find(pid);
	const int signal = WSTOPSIG(status), event = status >> 16;

	if (signal == (SIGTRAP | 0x80)) {
		at_call(tracee);
		resume(tracee, 0);
	} else if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE) {
		at_birth(tracee, event);
		resume(find(pid), 0);
	} else if (event == PTRACE_EVENT_EXEC) {
		(void)ptrace(PTRACE_DETACH, pid, NULL, NULL);
		forget(pid);
	} else if (event == EVENT_STOP && tracee->role == UNKNOWN)
		tracee->waiting = true;
	else if (tracee->leaving)
		at_first_stop(tracee);
	else if (event == EVENT_STOP && signal != SIGTRAP)
		(void)ptrace(LISTEN, pid, NULL, NULL);
	else
		resume(tracee, event ? 0 : signal);
}

static void take_stops(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, __WALL | WNOHANG)) > 0)
		if (WIFSTOPPED(status))
			at_stop(pid, status);
		else
			forget(pid);
}

static void take_line(const char *line)
{
	char role[16];

	if (sscanf(line, "arm %15s %ld %ld", role, &at, &error) == 3) {
		for (wanted = LAUNCHER; wanted < ROLES && strcmp(names[wanted], role) != 0;)
			wanted++;
		memset(seen, 0, sizeof seen);
		hit = -1;
		armed = true;
		counting = false;
		puts("ok");
	} else if (strcmp(line, "leave") == 0) {
		leave = true;
		puts("ok");
	} else {
		armed = false;
		printf(hit >= 0 ? "hit %ld\n" : "miss %ld\n", hit >= 0 ? hit : seen[wanted]);
	}
	(void)fflush(stdout);
}

int main(int argc, char **argv)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;
	const pid_t launcher = argc == 2 ? atoi(argv[1]) : 0;
	struct pollfd fds[2] = {{STDIN_FILENO, POLLIN, 0}, {-1, POLLIN, 0}};
	struct signalfd_siginfo info;
	char line[64];
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fds[1].fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (fds[1].fd < 0 || ptrace(SEIZE, launcher, NULL, (void *)options) < 0 || ptrace(PTRACE_INTERRUPT, launcher, NULL, NULL) < 0) {
		perror("injector");
		return 1;
	}
	find(launcher)->role = LAUNCHER;
	puts("ok");
	(void)fflush(stdout);
	for (;;) {
		take_stops();
		if (poll(fds, 2, -1) < 0)
			return 2;
		while (read(fds[1].fd, &info, sizeof info) > 0)
			;
		if (fds[0].revents) {
			ssize_t size = read(STDIN_FILENO, line, sizeof line - 1); /* one line: we are waited for after each */
			if (size <= 0)
				return 0; /* the launcher goes on by itself */
			line[size] = 0;
			take_line(line);
		}
	}
}
