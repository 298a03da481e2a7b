/* What a seccomp filter refuses, seen by init: the filter hands such a call to its listener (SECCOMP_RET_USER_NOTIF, 5.0), which
 * init holds; init notes the call in its report and answers. The program that the kernel runs is run here, too, on what the
 * kernel saw of the call: the low bits of its answer, which mean nothing to the kernel, say which errno it is, or that it is to be
 * let through, or who called to be killed. So only refused calls cost anything, and there is one description of what is refused.
 *
 * Nothing here blocks: a notification is taken only when poll says that there is one, and nobody else takes any. Whoever calls
 * waits for us, so a flood slows nobody but itself; so that it does not run up CPU time of ours, which counts against no limit of
 * the container's, there are a few for nothing and then one a millisecond.
 *
 * Source: seccomp_unotify(2), kernel/seccomp.c. */
#define _GNU_SOURCE
#include "launcher.h"

#include <signal.h>
#include <sys/ioctl.h>

#define NOTIF_RECV 0xc0502100u /* linux/seccomp.h: _IOWR('!', 0, struct seccomp_notif) and so on */
#define NOTIF_SEND 0xc0182101u
#define NOTIF_ID_VALID 0x40082102u
#define CONTINUE 1u /* SECCOMP_USER_NOTIF_FLAG_CONTINUE, 5.5 */
#define USER_NOTIF 0x7fc00000u
#define PIDFD_THREAD ((unsigned)O_EXCL) /* 6.9 */

#define AT_ONCE 10000   /* refusals */
#define PAUSE 1000000LL /* ns */

struct call { /* struct seccomp_data */
	int32_t number;
	uint32_t architecture;
	uint64_t instruction, argument[6];
};

struct notification { /* struct seccomp_notif */
	uint64_t id;
	uint32_t pid, flags;
	struct call call;
};

struct answer { /* struct seccomp_notif_resp */
	uint64_t id;
	int64_t value;
	int32_t error;
	uint32_t flags;
};

static struct {
	struct { uint16_t code; uint8_t yes, no; uint32_t k; } program[MAX_FILTER]; /* struct sock_filter */
	uint32_t length;
	struct report *report;
	int64_t next; /* ns: no more before that */
} own;

/* Takes over what step_seccomp sent. Returns 0 or -errno. */
int take_refusals(int handover, struct report *report, int *listener)
{
	ssize_t size = receive_listener(handover, own.program, sizeof own.program, listener);

	own.length = size < 0 ? 0 : (uint32_t)((size_t)size / sizeof *own.program);
	own.report = report;
	return size < 0 ? (int)size : 0;
}

/* What the filter says. Only what runtime/seccomp.py writes; the kernel has checked jumps and offsets, and so do we. */
static uint32_t run_filter(const struct call *call)
{
	uint32_t accumulator = 0;

	for (uint32_t at = 0; at < own.length; at++) {
		const uint32_t k = own.program[at].k;
		bool yes;
		switch (own.program[at].code) {
		case 0x20: /* BPF_LD | BPF_W | BPF_ABS */
			if (k > sizeof *call - sizeof accumulator)
				return USER_NOTIF | EPERM;
			memcpy(&accumulator, (const char *)call + k, sizeof accumulator);
			continue;
		case 0x54: /* BPF_ALU | BPF_AND | BPF_K */
			accumulator &= k;
			continue;
		case 0x05: /* BPF_JMP | BPF_JA */
			if (k >= own.length - at)
				return USER_NOTIF | EPERM;
			at += k;
			continue;
		case 0x15: /* BPF_JMP | BPF_JEQ | BPF_K */
			yes = accumulator == k;
			break;
		case 0x25: /* BPF_JMP | BPF_JGT | BPF_K */
			yes = accumulator > k;
			break;
		case 0x35: /* BPF_JMP | BPF_JGE | BPF_K */
			yes = accumulator >= k;
			break;
		case 0x06: /* BPF_RET | BPF_K */
			return k;
		default:
			return USER_NOTIF | EPERM;
		}
		at += yes ? own.program[at].yes : own.program[at].no;
	}
	return USER_NOTIF | EPERM;
}

static void note(uint16_t number, uint16_t answer)
{
	struct report *report = own.report;
	uint32_t i = 0;

	report->refused_in_all += report->refused_in_all < UINT32_MAX;
	while (i < report->refused_kinds && (report->refused[i].number != number || report->refused[i].answer != answer))
		i++;
	if (i == MAX_REFUSED)
		return;
	if (i == report->refused_kinds) {
		report->refused[i] = (struct refused){number, answer, 0};
		report->refused_kinds++;
	}
	report->refused[i].count += report->refused[i].count < UINT32_MAX;
}

/* By pidfd: of who is exec'ed into a container the number is the host's, and may be another's once its caller has died. Returns
 * false where there is none to be had: of a thread, before 6.9. */
static bool kill_caller(int listener, const struct notification *notification)
{
	int pidfd = (int)syscall(NR_pidfd_open, notification->pid, PIDFD_THREAD);

	if (pidfd < 0)
		pidfd = (int)syscall(NR_pidfd_open, notification->pid, 0);
	if (pidfd < 0)
		return errno == ESRCH;
	if (ioctl(listener, NOTIF_ID_VALID, &notification->id) == 0) /* it waits still, so it was that one */
		(void)syscall(NR_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	close(pidfd);
	return true;
}

/* Whether there were so many that the next has to wait, and until when. */
bool refusals_wait(int64_t now, int64_t *until)
{
	*until = own.next;
	return now < own.next;
}

/* Answers one; `workload`: whose death is the container's. */
enum refusal answer_refusal(int listener, int64_t now, pid_t workload)
{
	union {
		struct notification one;
		char room[512]; /* a later kernel's may be larger */
	} taken = {.room = {0}};
	const struct notification *one = &taken.one;
	struct answer answer = {0};
	uint16_t what;
	bool by_workload;

	if (ioctl(listener, NOTIF_RECV, &taken) < 0) /* ENOENT: killed meanwhile, or there is nobody any more */
		return errno == ENOENT ? REFUSAL_NONE : REFUSAL_END;
	what = (uint16_t)run_filter(&one->call);
	note((uint16_t)one->call.number, what);
	if (own.report->refused_in_all > AT_ONCE)
		own.next = now + PAUSE;
	if (what == ANSWER_KILL) {
		by_workload = workload > 0 && syscall(SYS_tgkill, workload, one->pid, 0) == 0; /* by any thread of it */
		if (!kill_caller(listener, one))
			return REFUSAL_KILL_ALL;
		return by_workload ? REFUSAL_KILLED : REFUSAL_ANSWERED;
	}
	answer.id = one->id;
	answer.error = what == ANSWER_LET_THROUGH ? 0 : -(int32_t)what;
	answer.flags = what == ANSWER_LET_THROUGH ? CONTINUE : 0;
	(void)ioctl(listener, NOTIF_SEND, &answer); /* ENOENT: as above */
	return REFUSAL_ANSWERED;
}
