/* The steps between init's vfork and the exec of the user's command, in the child. It may share init's memory (CLONE_VM):
 * nothing here allocates, and nothing is written that init still needs. Raw system calls for ids: a libc would signal
 * threads that do not exist. */
#define _GNU_SOURCE
#include "launcher.h"

#include <grp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#define PROC_MAGIC 0x9fa0
#define CAPABILITY_VERSION 0x20080522u /* linux/capability.h _LINUX_CAPABILITY_VERSION_3 */
#define MAX_GROUPS 1024
#define LANDLOCK_OF_FILES (1u << 1 | 1u << 14 | 1u << 15) /* LANDLOCK_ACCESS_FS_WRITE_FILE, _TRUNCATE, _IOCTL_DEV */
#define NEW_LISTENER 8u /* SECCOMP_FILTER_FLAG_NEW_LISTENER, 5.0 */

static int result(long value)
{
	return value < 0 ? -errno : 0;
}

/* "0" written to a v1 `tasks` file moves the single thread that writes, without the lock that stops every fork on the
 * host (kernel commit 9a3284fad42f). */
int step_cgroup_join(struct context *context, const struct step *step)
{
	int error, fd = openat(slot_fd(context, step->number[0]), step->string[0], O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	error = result(write(fd, "0", 1));
	close(fd);
	return error;
}

int step_session(struct context *context, const struct step *step)
{
	(void)step;
	if (setsid() < 0)
		return -errno;
	return context->tty < 0 ? 0 : result(ioctl(context->tty, TIOCSCTTY, 0));
}

int step_rlimit(struct context *context, const struct step *step)
{
	struct { uint64_t soft, hard; } limit = {step->number[1], step->number[2]};

	(void)context;
	return result(syscall(SYS_prlimit64, 0, (int)step->number[0], &limit, NULL));
}

/* Our own /proc is in place; that it really is a procfs is checked all the same (CVE-2025-52881). */
int step_oom_score(struct context *context, const struct step *step)
{
	char text[24];
	struct statfs fs;
	int size = snprintf(text, sizeof text, "%lld", (long long)step->number[0]), error = 0;
	int fd = open_in_root(context, "proc/self/oom_score_adj", O_WRONLY);

	if (fd < 0)
		return fd;
	if (fstatfs(fd, &fs) < 0)
		error = -errno;
	else if (fs.f_type != PROC_MAGIC)
		error = -EXDEV;
	else
		error = result(write(fd, text, (size_t)size));
	close(fd);
	return error;
}

int step_affinity(struct context *context, const struct step *step)
{
	(void)context;
	return result(syscall(SYS_sched_setaffinity, 0, (size_t)step->size[0], step->string[0]));
}

/* Numbers: a slot, and the number that it gets. What else has that number is about to be closed: this stands right before
 * close_fds, which leaves it open. */
int step_pass_fd(struct context *context, const struct step *step)
{
	int fd = slot_fd(context, step->number[0]);

	if (step->number[1] < 3 || step->number[1] > MAX_PASSED)
		return -EINVAL;
	context->passed = (unsigned)step->number[1];
	/* The lowest number that is free: the limit of open files is the workload's already. */
	if (context->handover == (int)context->passed && (context->handover = fcntl(context->handover, F_DUPFD_CLOEXEC, 3)) < 0)
		return -errno;
	if (fd == (int)context->passed) /* dup2 would leave its close-on-exec flag */
		return result(fcntl(fd, F_SETFD, 0));
	return result(dup2(fd, (int)context->passed));
}

/* All from 3 on but `kept`, which is put in order; what is below 3 is none. */
static int close_but(int *kept, int count)
{
	unsigned first = 3;

	for (int i = 0; i < count; i++) {
		for (int j = i + 1; j < count; j++)
			if (kept[j] < kept[i]) {
				int lower = kept[j];
				kept[j] = kept[i];
				kept[i] = lower;
			}
		if (kept[i] > (int)first && syscall(NR_close_range, first, (unsigned)kept[i] - 1, 0) < 0)
			return -errno;
		if (kept[i] >= (int)first)
			first = (unsigned)kept[i] + 1;
	}
	return result(syscall(NR_close_range, first, ~0u, 0));
}

/* Before the working directory is entered: a host directory still open here would be a way out (CVE-2024-21626). The socket to
 * init, for what step_seccomp sends, is closed by the exec. Who has yet to wait for its command keeps what it waits on, and the
 * /dev/null that it may need then: its root is closed with the others. It may wait for long. */
int step_close_fds(struct context *context, const struct step *step)
{
	int kept[4] = {context->handover, (int)context->passed, -1, -1}; /* 0: none */

	(void)step;
	if (context->park) {
		context->null = open_in_root(context, "dev/null", O_RDWR);
		if (context->null < 0)
			return context->null;
		for (int fd = 0; fd < 3; fd++) /* not the launcher's */
			if (dup2(context->null, fd) < 0)
				return -errno;
		kept[2] = context->event;
		kept[3] = context->null;
		context->closed = true;
	}
	return close_but(kept, 4);
}

/* Else it had that of whoever started us, with what is in it, and all containers had the same one. */
int step_keyring(struct context *context, const struct step *step)
{
	(void)context;
	(void)step;
	if (syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL) < 0 && errno != ENOSYS && errno != EPERM)
		return -errno; /* those two: there are no keys, or a filter around us keeps everybody from them */
	return 0;
}

int step_umask(struct context *context, const struct step *step)
{
	(void)context;
	(void)umask((mode_t)step->number[0]);
	return 0;
}

/* linux/securebits.h: SECBIT_NOROOT, _NO_SETUID_FIXUP and _NO_CAP_AMBIENT_RAISE, each with its lock. Not _KEEP_CAPS: programs
 * that give up root ask for it, and need not have anything to keep. */
#define NEVER_ANY (1 | 2 | 4 | 8 | 64 | 128)

/* Where nothing is kept, being root or becoming it gives nothing, either. That is of no effect but as a second lock. */
int step_bounding(struct context *context, const struct step *step)
{
	(void)context;
	if (!step->number[0] && prctl(PR_SET_SECUREBITS, NEVER_ANY, 0, 0, 0) < 0)
		return -errno;
	for (unsigned cap = 0; cap < 64; cap++)
		if (!(step->number[0] >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			return errno == EINVAL ? 0 : -errno; /* EINVAL: past the kernel's last one */
	return 0;
}

/* That of the slot; with none, the one that was made or found. */
int step_enter_user(struct context *context, const struct step *step)
{
	return result(setns(step->number[0] ? slot_fd(context, step->number[0]) : context->user_namespace, (int)NEW_USER));
}

/* Supplementary groups come as 32-bit numbers. */
int step_identity(struct context *context, const struct step *step)
{
	gid_t groups[MAX_GROUPS];
	size_t count = step->size[0] / sizeof(gid_t);

	(void)context;
	if (count > MAX_GROUPS)
		return -EINVAL;
	memcpy(groups, step->string[0], count * sizeof(gid_t));
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || (!step->number[2] && syscall(SYS_setgroups, count, groups) < 0) ||
	    syscall(SYS_setresgid, (gid_t)step->number[1], (gid_t)step->number[1], (gid_t)step->number[1]) < 0 ||
	    syscall(SYS_setresuid, (uid_t)step->number[0], (uid_t)step->number[0], (uid_t)step->number[0]) < 0 ||
	    prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0)
		return -errno;
	/* Other ids than before: where fs.suid_dumpable is 1, our memory, which is init's, too, would be open to all who have them
	 * until the exec, for which a container made ahead waits. */
	return result(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
}

/* Numbers: what is kept; what of that is ambient, too, which carries it over exec where the user is not root. Nothing else is
 * inheritable: it would stay so when root becomes somebody else, for programs that ask for it (CVE-2022-24769). */
int step_capabilities(struct context *context, const struct step *step)
{
	struct { uint32_t version; int pid; } header = {CAPABILITY_VERSION, 0};
	uint32_t low = (uint32_t)step->number[0], high = (uint32_t)(step->number[0] >> 32);
	uint32_t ambient_low = (uint32_t)step->number[1], ambient_high = (uint32_t)(step->number[1] >> 32);
	struct { uint32_t effective, permitted, inheritable; } data[2] = {{low, low, ambient_low}, {high, high, ambient_high}};

	(void)context;
	if (syscall(SYS_capset, &header, data) < 0 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -errno;
	for (unsigned cap = 0; cap < 64; cap++)
		if (step->number[1] >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
			return -errno;
	return 0;
}

int step_no_new_privs(struct context *context, const struct step *step)
{
	(void)context;
	(void)step;
	return result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

/* Number: SECCOMP_FILTER_FLAG_LOG (2), _SPEC_ALLOW (4) and _NEW_LISTENER (8); string: the program, 8 bytes an instruction. The
 * kernel checks the program itself and copies it. The filter is this process's alone, although its memory is init's. A
 * listener goes to init, with the program that says how to answer; until the exec nobody would: the plan sees to it that
 * nothing of what follows here is handed to it. */
int step_seccomp(struct context *context, const struct step *step)
{
	struct { unsigned short length; const void *filter; } program = {0, step->string[0]}; /* struct sock_fprog */

	const unsigned flags = (unsigned)step->number[0];
	struct event event = {.id = context->id};
	long listener;

	if (!step->size[0] || step->size[0] % 8 || step->size[0] / 8 > MAX_FILTER || step->number[0] & ~(uint64_t)14 ||
	    (flags & NEW_LISTENER && context->handover < 0))
		return -EINVAL;
	program.length = (unsigned short)(step->size[0] / 8);
	listener = syscall(SYS_seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, flags, &program); /* close-on-exec */
	if (listener < 0 || !(flags & NEW_LISTENER))
		return result(listener);
	return send_event(context->handover, &event, step->string[0], step->size[0], (int)listener);
}

/* A rule for what is at `fd` and below. EBADFD: a pipe or a socket, which are no matter of Landlock's. */
static int allow(int ruleset, int fd, uint64_t rights)
{
	struct __attribute__((packed)) { uint64_t rights; int32_t fd; } rule = {rights, fd}; /* struct landlock_path_beneath_attr */
	struct stat status;

	if (fstat(fd, &status) < 0)
		return -errno;
	if (!S_ISDIR(status.st_mode))
		rule.rights &= LANDLOCK_OF_FILES;
	return syscall(NR_landlock_add_rule, ruleset, 1 /* LANDLOCK_RULE_PATH_BENEATH */, &rule, 0) < 0 && errno != EBADFD ? -errno : 0;
}

static int allow_below(int ruleset, int root, const struct step *step, int which, uint64_t rights)
{
	int error = 0;

	for (const char *path = step->string[which], *end = path + step->size[which]; path < end && !error; path += strlen(path) + 1) {
		int fd = open_below(root, path, O_PATH);
		if (fd < 0)
			return fd;
		error = allow(ruleset, fd, rights);
		close(fd);
	}
	return error;
}

/* What it got open for writing it may open anew, as /dev/stdout. */
static int allow_stdio(int ruleset, uint64_t rights)
{
	int error = 0;

	for (int fd = 0; fd < 3 && !error; fd++) {
		int flags = fcntl(fd, F_GETFL);
		if (flags < 0)
			error = errno == EBADF ? 0 : -errno;
		else if ((flags & O_ACCMODE) != O_RDONLY)
			error = allow(ruleset, fd, rights);
	}
	return error;
}

/* Numbers: rights to files that nobody has without a rule, and scopes; strings: paths, each followed by a NUL, below which all of
 * these rights are given, and those below which a file's are. Behind close_fds: the root is opened anew. */
int step_landlock(struct context *context, const struct step *step)
{
	const struct { uint64_t files, network, scoped; } attributes = {step->number[0], 0, step->number[1]};
	const uint64_t rights = step->number[0];
	int error = 0, root, ruleset = (int)syscall(NR_landlock_create_ruleset, &attributes, sizeof attributes, 0); /* close-on-exec */

	(void)context;
	if (ruleset < 0)
		return -errno;
	if (rights) {
		root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
		error = root < 0 ? -errno : allow_below(ruleset, root, step, 0, rights);
		if (!error)
			error = allow_below(ruleset, root, step, 1, rights & LANDLOCK_OF_FILES);
		if (!error)
			error = allow_stdio(ruleset, rights & LANDLOCK_OF_FILES);
		if (root >= 0)
			close(root);
	}
	if (!error)
		error = result(syscall(NR_landlock_restrict_self, ruleset, 0));
	close(ruleset);
	return error;
}

int step_working_dir(struct context *context, const struct step *step)
{
	char path[4096];

	(void)context;
	if (chdir(step->string[0]) < 0)
		return -errno;
	/* The kernel says "(unreachable)/..." for a directory outside the root (CVE-2024-21626). */
	return syscall(SYS_getcwd, path, sizeof path) < 0 ? -errno : path[0] == '/' ? 0 : -EXDEV;
}

/* ---- exec ---- */

static char **split(char **list, const char *text, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++, text += strlen(text) + 1)
		list[i] = (char *)(uintptr_t)text;
	list[count] = NULL;
	return list;
}

static bool holds_strings(const struct step *step, int which)
{
	uint64_t found = 0;

	for (uint32_t i = 0; i < step->size[which]; i++)
		found += step->string[which][i] == 0;
	return found == step->number[which] && found <= MAX_ARGUMENTS && (!found || step->string[which][step->size[which] - 1] == 0);
}

static const char *search_path(void)
{
	for (char **variable = scratch->variables; *variable; variable++)
		if (!strncmp(*variable, "PATH=", 5))
			return *variable + 5;
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

/* As execvp(3), but in the new root and with the new PATH: what can't be executed outweighs what isn't there. */
static int exec_in_path(const char *name)
{
	char file[4096 + 256];
	int error = -ENOENT;

	for (const char *at = search_path();;) {
		size_t length = strcspn(at, ":");
		if (length && length + strlen(name) + 2 <= sizeof file) {
			snprintf(file, sizeof file, "%.*s/%s", (int)length, at, name);
			execve(file, scratch->words, scratch->variables);
			if (errno != ENOENT && errno != ENOTDIR) {
				error = -errno;
				if (errno != EACCES)
					return error;
			}
		}
		if (!at[length])
			return error;
		at += length + 1;
	}
}

/* Numbers: how many words and variables; strings: each followed by a NUL. */
int step_exec(struct context *context, const struct step *step)
{
	(void)context;
	if (!holds_strings(step, 0) || !holds_strings(step, 1) || !step->number[0])
		return -EINVAL;
	split(scratch->words, step->string[0], step->number[0]);
	split(scratch->variables, step->string[1], step->number[1]);
	if (!scratch->words[0][0])
		return -ENOENT;
	if (!strchr(scratch->words[0], '/'))
		return exec_in_path(scratch->words[0]);
	execve(scratch->words[0], scratch->words, scratch->variables);
	return -errno;
}
