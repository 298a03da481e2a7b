/* The table of launch steps, and the steps that are neither mounts nor the workload's own. One function per step around
 * one system call or two. The numbers are the wire's: never reuse one. */
#define _GNU_SOURCE
#include "launcher.h"

#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int kept[MAX_KEPT], kept_count;

int slot_fd(const struct context *context, uint64_t slot)
{
	if (slot & KEPT)
		return (slot & ~(uint64_t)KEPT) < (uint64_t)kept_count ? kept[slot & ~(uint64_t)KEPT] : -1;
	return slot < (uint64_t)context->fd_count ? context->fds[slot] : -1;
}

/* Takes the fds over for the launcher's life; slots are given out in order. */
int keep_fds(const int *fds, int count)
{
	if (count > MAX_KEPT - kept_count)
		return -E2BIG;
	memcpy(kept + kept_count, fds, (size_t)count * sizeof *fds);
	kept_count += count;
	return 0;
}

static int result(long value)
{
	return value < 0 ? -errno : 0;
}

static int step_unshare(struct context *context, const struct step *step)
{
	(void)context;
	return result(unshare((int)step->number[0]));
}

static int step_join(struct context *context, const struct step *step)
{
	unsigned flags = (unsigned)step->number[0];

	if (context->joined < 0)
		return context->joined;
	if (flags & NEW_USER) { /* entered by the workload, later */
		context->user_namespace = owner_of(context->joined_pid, step->number[1]);
		if (context->user_namespace < 0)
			return context->user_namespace;
		flags &= ~NEW_USER;
	}
	return result(setns(context->joined, (int)flags));
}

static int step_hostname(struct context *context, const struct step *step)
{
	(void)context;
	return result(sethostname(step->string[0], step->size[0]));
}

/* Numbers: domain and type. What it is used for is the supervisor's to know; the network that it is in stays the one that we are
 * in now. */
static int step_socket(struct context *context, const struct step *step)
{
	struct event event = {.type = EVENT_SOCKET, .id = context->id};
	int error, fd = socket((int)step->number[0], (int)step->number[1] | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	error = send_event(context->event, &event, NULL, 0, fd);
	close(fd);
	return error;
}

static int step_cgroup_make(struct context *context, const struct step *step)
{
	return result(mkdirat(slot_fd(context, step->number[0]), step->string[0], 0755));
}

/* A limit file that the kernel lacks is passed over only where the plan says so (number 1). */
static int step_cgroup_write(struct context *context, const struct step *step)
{
	int error = 0, fd = openat(slot_fd(context, step->number[0]), step->string[0], O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT && step->number[1] ? 0 : -errno;
	if (write(fd, step->string[1], step->size[1]) < 0)
		error = -errno;
	close(fd);
	return error;
}

static int step_cgroup_into(struct context *context, const struct step *step)
{
	context->cgroup = openat(slot_fd(context, step->number[0]), step->string[0], O_PATH | O_DIRECTORY | O_CLOEXEC);
	return result(context->cgroup);
}

/* Without losing the upper half. */
static unsigned clamp(uint64_t number)
{
	return number < UINT32_MAX ? (unsigned)number : UINT32_MAX;
}

static int step_init(struct context *context, const struct step *step)
{
	context->init_flags |= (unsigned)step->number[0];
	context->orphan_grace_ms = clamp(step->number[1]);
	context->orphan_signal = (int)step->number[2];
	context->timeout_ms = step->number[3];
	snprintf(context->name, sizeof context->name, "%s", step->string[0]);
	return 0;
}

static int step_cpu_time(struct context *context, const struct step *step)
{
	context->cpu_ms = step->number[1];
	context->cpus = step->number[2] ? clamp(step->number[2]) : 1;
	context->cpu_usage = openat(slot_fd(context, step->number[0]), step->string[0], O_RDONLY | O_CLOEXEC);
	return result(context->cpu_usage);
}

/* Of a file that init reads back itself when all has ended: who waits for that need not wait for the launcher to find it. */
static int step_counter(struct context *context, const struct step *step)
{
	int fd;

	if (context->counter_count == MAX_COUNTERS)
		return -E2BIG;
	fd = openat(slot_fd(context, step->number[0]), step->string[0], O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno != ENOENT)
		return -errno;
	context->counters[context->counter_count++] = fd < 0 ? -1 : fd;
	return 0;
}

/* Appends one file as a 32-bit size and its bytes; size ~0: this kernel has no such file. Returns the bytes appended. */
uint32_t read_back(int fd, char *out, uint32_t space)
{
	uint32_t size = ~0u;
	ssize_t n;

	if (space < sizeof size)
		return 0;
	space -= (uint32_t)sizeof size;
	n = fd < 0 ? -1 : pread(fd, out + sizeof size, space < MAX_READ ? space : MAX_READ, 0);
	if (n >= 0)
		size = (uint32_t)n;
	memcpy(out, &size, sizeof size);
	return (uint32_t)sizeof size + (n < 0 ? 0 : (uint32_t)n);
}

#define L (1u << SECTION_LAUNCHER)
#define I (1u << SECTION_INIT)
#define W (1u << SECTION_WORKLOAD)
#define C (1u << SECTION_CLEANUP)

static const struct step_kind kinds[] = {
	/*                        name          ints strings  where  slots */
	[1] = {"unshare",            1, 0, I | W, 0, step_unshare},
	[2] = {"join",               2, 0, I,     0, step_join},
	[3] = {"root_tmpfs",         3, 0, I,     0, step_root_tmpfs},
	[4] = {"root_tree",          2, 0, I,     1, step_root_tree},
	[5] = {"root_overlay",       5, 0, I,     1, step_root_overlay},
	[6] = {"directory",          3, 1, L | I, 0, step_directory},
	[7] = {"link",               0, 2, L | I, 0, step_link},
	[8] = {"file",              2, 2, L | I, 0, step_file},
	[9] = {"node",               2, 1, L,     0, step_node},
	[10] = {"mount",             1, 3, L | I, 0, step_mount},
	[11] = {"bind",              2, 1, L | I, 1, step_bind},
	[12] = {"bind_template",     2, 2, I,     2, step_bind_template},
	[13] = {"mask",              0, 1, I,     0, step_mask},
	[14] = {"read_only",         0, 1, I,     0, step_read_only},
	[15] = {"remount",           1, 1, L | I, 0, step_remount},
	[16] = {"detach_world",      0, 0, I,     0, step_detach_world},
	[18] = {"hostname",          0, 1, I,     0, step_hostname},
	[19] = {"loopback_up",       0, 0, I,     0, step_loopback_up},
	[20] = {"cgroup_make",       1, 1, I,     1, step_cgroup_make},
	[21] = {"cgroup_write",      2, 2, I,     1, step_cgroup_write},
	[22] = {"cgroup_into",       1, 1, I,     1, step_cgroup_into},
	[23] = {"pty",               5, 0, I,     0, step_pty},
	[24] = {"user_namespace",    1, 0, I,     0, step_user_namespace},
	[25] = {"init",              4, 1, I,     0, step_init},
	[26] = {"socket",            2, 0, I,     0, step_socket},
	[OP_NETWORK] = {"network",   0, 0, I,     0, step_network},
	[30] = {"cpu_time",          3, 1, I,     1, step_cpu_time},
	[31] = {"unmount",           0, 1, L,     0, step_unmount},
	[32] = {"enter",             0, 1, I,     0, step_enter},
	[33] = {"ids",               5, 2, I,     0, step_ids},
	[34] = {"owner",             1, 0, I,     0, step_owner},
	[35] = {"id_map",            1, 3, L,     0, step_id_map},
	[36] = {"devpts",            1, 0, I,     0, step_devpts},
	[37] = {"counter",           1, 1, I,     1, step_counter},
	[40] = {"cgroup_join",       1, 1, W,     1, step_cgroup_join},
	[41] = {"session",           0, 0, W,     0, step_session},
	[42] = {"rlimit",            3, 0, W,     0, step_rlimit},
	[43] = {"oom_score_adj",     1, 0, W,     0, step_oom_score},
	[44] = {"affinity",          0, 1, W,     0, step_affinity},
	[45] = {"close_fds",         0, 0, W,     0, step_close_fds},
	[46] = {"umask",             1, 0, W,     0, step_umask},
	[47] = {"bounding_set",      1, 0, W,     0, step_bounding},
	[48] = {"identity",          3, 1, W,     0, step_identity},
	[49] = {"capabilities",      2, 0, W,     0, step_capabilities},
	[50] = {"no_new_privs",      0, 0, W,     0, step_no_new_privs},
	[51] = {"working_dir",       0, 1, W,     0, step_working_dir},
	[52] = {"exec",              2, 2, W,     0, step_exec},
	[53] = {"enter_user",        1, 0, W,     1, step_enter_user},
	[54] = {"landlock",          2, 2, W,     0, step_landlock},
	[55] = {"seccomp",           1, 1, W,     0, step_seccomp},
	[56] = {"pass_fd",           2, 0, W,     1, step_pass_fd},
	[57] = {"keyring",           0, 0, W,     0, step_keyring},
	[OP_READ] = {"read",              1, 1, C,     1, NULL},
	[OP_REMOVE] = {"remove",            2, 1, C,     1, NULL},
};

const struct step_kind *step_kind(unsigned op)
{
	return op < sizeof kinds / sizeof *kinds && kinds[op].name ? &kinds[op] : NULL;
}

/* For the test that compares this table with Python's. */
void print_steps(void)
{
	for (unsigned op = 0; op < sizeof kinds / sizeof *kinds; op++)
		if (kinds[op].name)
			printf("%u %s %d %d %d\n", op, kinds[op].name, kinds[op].ints, kinds[op].strings, kinds[op].sections);
}

/* Returns 0 or -errno with the index of the step that failed. */
int run_steps(struct context *context, const struct step *step, int count, int *failed)
{
	int error = 0;

	for (*failed = 0; *failed < count; ++*failed)
		if ((error = step_kind(step[*failed].op)->run(context, step + *failed)))
			break;
	return error;
}
