/* The floor: what the kernel alone takes to make, run and take away the default container. No policy, no Python, no wire.
 *
 *   floor [--no-PART]... [--or [--no-PART]...]... [--pids DIR --memory DIR | --cgroup2 DIR] ITERATIONS CONCURRENCY
 *   floor ITERATIONS CONCURRENCY -- COMMAND...
 *
 * The first form makes containers: a small process in a nearly empty mount namespace clones an init (new pid namespace),
 * which makes the other namespaces, two cgroups (v1; one on v2), a root, its mounts and masks, detaches the rest, and vforks a workload that
 * joins the cgroups, enters the user namespace that is kept for its ids, drops its rights and runs /bin/true. The parent reaps
 * init, reads the counters, removes the cgroups.
 * The second form runs any command instead, "{}" in its words being the iteration: other programs, started as cheaply.
 * CONCURRENCY of them are in flight at any time. One line of JSON says what it took; any failure ends it with status 1.
 * With --or, each container is of one of the variants, drawn by lot, and each variant's median is reported: what the machine
 * is busy with hits all alike. DIRs exist and are the caller's to remove. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NR_open_tree 428 /* one number on every architecture */
#define NR_move_mount 429
#define NR_fsopen 430
#define NR_fsconfig 431
#define NR_fsmount 432
#define NR_clone3 435
#define NR_close_range 436
#define NR_mount_setattr 442
#define RDONLY 1u /* linux/mount.h MOUNT_ATTR_* */
#define NOSUID 2u
#define NODEV 4u
#define NOEXEC 8u
#define IDMAPPED 0x80000000u /* no bit of the kernel's */
#define CLONE_RECURSIVE (1u | (unsigned)O_CLOEXEC | 0x8000u) /* OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, AT_RECURSIVE */
#define NEW_CGROUP 0x02000000
#define FIRST_ID 1878000000 /* of 65536 that containers have */
#define NO_SETUID_FIXUP 4   /* linux/securebits.h SECBIT_NO_SETUID_FIXUP */
#define MAX_IN_FLIGHT 1024
#define MAX_VARIANTS 64
#define COUNT(array) (sizeof(array) / sizeof *(array))

enum part { PIDNS, USER, NET, NEWNET, LOOPBACK, IPC, UTS, CGROUP, CGROUPNS, READBACK, FILES, ETC, DEV, DEVPTS, SHM, PROC, MASKS, READONLY, DETACH, CAPS, EXEC };
static const char *const part_names[] = {"pidns", "user", "net", "newnet", "loopback", "ipc", "uts", "cgroup", "cgroupns", "readback", "files", "etc", "dev",
					 "devpts", "shm", "proc", "masks", "readonly", "detach", "caps", "exec"};
static unsigned parts = ~0u, variants[MAX_VARIANTS] = {~0u}, variant_count = 1;

static const char *const masked[] = {"/proc/acpi", "/proc/asound", "/proc/dynamic_debug", "/proc/interrupts", "/proc/kcore",
				     "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"};
static const char *const read_only[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
static const char *const top[] = {"bin", "sbin", "lib", "lib32", "lib64", "libx32"};
static char top_links[COUNT(top)][64]; /* "" not there, "/" a directory of its own, else where the link points */

struct flight {
	pid_t pid;
	int64_t started;
	unsigned number, variant;
	int network; /* without "newnet": a namespace that all containers here have, one after another */
};

struct took {
	unsigned variant;
	int64_t ns;
};

static struct flight in_flight[MAX_IN_FLIGHT];
static int cgroups[2] = {-1, -1}; /* v1: pids, memory */
static int cgroup2 = -1;
static int user = -1; /* namespace: of the idmapped mounts, too */
static char **command; /* NULL: a container */

static bool has(enum part part)
{
	return parts >> part & 1;
}

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static long check(long result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* ---- mounts ---- */

/* Options are pairs of key and value, ended by NULL. */
static int new_mount(const char *type, const char *const *options, unsigned attributes)
{
	int context = (int)check(syscall(NR_fsopen, type, 1), type);

	for (; options && *options; options += 2)
		check(syscall(NR_fsconfig, context, 1, options[0], options[1], 0), options[0]);
	check(syscall(NR_fsconfig, context, 6, NULL, NULL, 0), type);
	int mounted = (int)check(syscall(NR_fsmount, context, 1, attributes), type);
	close(context);
	return mounted;
}

static int tree_of(const char *path, unsigned attributes)
{
	struct { uint64_t set, clear, propagation, userns; } attr = {.set = attributes & ~IDMAPPED};
	int tree = (int)check(syscall(NR_open_tree, AT_FDCWD, path, CLONE_RECURSIVE), path);

	if (attributes & IDMAPPED && has(USER)) {
		attr.set |= 0x100000; /* MOUNT_ATTR_IDMAP */
		attr.userns = (uint64_t)user;
	}
	if (attr.set)
		check(syscall(NR_mount_setattr, tree, "", 0x1000 | 0x8000, &attr, sizeof attr), "mount_setattr");
	return tree;
}

static void attach(int tree, const char *target)
{
	check(syscall(NR_move_mount, tree, "", AT_FDCWD, target, 4), target);
	close(tree);
}

static void make_file(const char *path, const char *content, size_t size)
{
	int fd = (int)check(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644), path);

	check(write(fd, content, size), path);
	close(fd);
}

static void make_node(const char *path, unsigned minor)
{
	check(mknod(path, S_IFCHR | 0666, makedev(1, minor)), path);
}

static void make_templates(const char *cache, size_t cache_size)
{
	static const char *const names[] = {"passwd", "group", "hosts", "hostname", "nsswitch.conf", "resolv.conf"};
	static const char *const directories[] = {"/t/empty", "/t/usr", "/t/etc", "/t/dev"};
	static const char *const sized[] = {"mode", "755", "size", "64k", "nr_inodes", "64", NULL};
	static const char *const larger[] = {"mode", "755", "size", "16m", "nr_inodes", "4096", NULL};
	char path[64];

	check(mkdir("/new", 0755), "/new");
	check(mkdir("/t", 0755), "/t");
	attach(new_mount("tmpfs", larger, NOSUID), "/t"); /* of its own: one umount takes it all away */
	for (size_t i = 0; i < COUNT(directories); i++)
		check(mkdir(directories[i], 0755), directories[i]);
	make_node("/t/null", 3);
	for (size_t i = 0; i < COUNT(names); i++) {
		snprintf(path, sizeof path, "/t/etc/%s", names[i]);
		make_file(path, "root:x:0:0:root:/root:/bin/sh\n", 30);
	}
	make_file("/t/etc/ld.so.cache", cache, cache_size);
	attach(new_mount("tmpfs", sized, NOSUID | NOEXEC), "/t/dev");
	make_node("/t/dev/null", 3);
	make_node("/t/dev/zero", 5);
	make_node("/t/dev/full", 7);
	make_node("/t/dev/random", 8);
	make_node("/t/dev/urandom", 9);
	check(mknod("/t/dev/tty", S_IFCHR | 0666, makedev(5, 0)), "/t/dev/tty");
	check(mkdir("/t/dev/pts", 0755), "/t/dev/pts");
	check(mkdir("/t/dev/shm", 0755), "/t/dev/shm");
	check(symlink("pts/ptmx", "/t/dev/ptmx"), "/t/dev/ptmx");
	check(symlink("/proc/self/fd", "/t/dev/fd"), "/t/dev/fd");
	check(symlink("/proc/self/fd/0", "/t/dev/stdin"), "/t/dev/stdin");
	check(symlink("/proc/self/fd/1", "/t/dev/stdout"), "/t/dev/stdout");
	check(symlink("/proc/self/fd/2", "/t/dev/stderr"), "/t/dev/stderr");
}

/* A mount namespace with a small tmpfs, the host's /usr (and /bin... where they are no links) and the templates. */
static void enter_own_world(void)
{
	static char cache[1 << 20];
	static const char *const sized[] = {"mode", "755", "size", "64k", "nr_inodes", "16", NULL};
	int trees[COUNT(top)], usr, root, fd = open("/etc/ld.so.cache", O_RDONLY | O_CLOEXEC);
	ssize_t cache_size = fd < 0 ? 0 : read(fd, cache, sizeof cache);
	char path[64];

	if (fd >= 0)
		close(fd);
	check(unshare(CLONE_NEWNS), "unshare");
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make / private");
	usr = tree_of("/usr", 0);
	for (size_t i = 0; i < COUNT(top); i++) {
		struct stat status;
		snprintf(path, sizeof path, "/%s", top[i]);
		trees[i] = -1;
		if (readlink(path, top_links[i], sizeof top_links[i] - 1) < 0 && stat(path, &status) == 0) {
			strcpy(top_links[i], "/");
			trees[i] = tree_of(path, 0);
		}
	}
	root = new_mount("tmpfs", sized, NOSUID);
	check(syscall(NR_move_mount, root, "", AT_FDCWD, "/", 4), "move_mount");
	check(fchdir(root), "fchdir");
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	check(umount2(".", MNT_DETACH), "umount");
	check(chdir("/"), "chdir");
	close(root);
	make_templates(cache, cache_size > 0 ? (size_t)cache_size : 0);
	attach(usr, "/t/usr");
	for (size_t i = 0; i < COUNT(top); i++)
		if (trees[i] >= 0) {
			snprintf(path, sizeof path, "/t/%s", top[i]);
			check(mkdir(path, 0755), path);
			attach(trees[i], path);
		}
}

/* ---- user namespaces ---- */

static _Noreturn int sleep_for_ever(void *unused)
{
	(void)unused;
	for (;;)
		pause();
}

static void write_map(int proc, pid_t pid, const char *file)
{
	char text[64];
	int fd;

	snprintf(text, sizeof text, "%d/%s", (int)pid, file);
	fd = (int)check(openat(proc, text, O_WRONLY | O_CLOEXEC), text);
	check(write(fd, text, (size_t)snprintf(text, sizeof text, "0 %d 65536", FIRST_ID)), file);
	close(fd);
}

/* The fd of a new user namespace with its ids mapped. */
static int new_user_namespace(int proc)
{
	static char stack[16 << 10] __attribute__((aligned(16)));
	char path[64];
	int made;
	pid_t helper = clone(sleep_for_ever, stack + sizeof stack, CLONE_VM | CLONE_NEWUSER | SIGCHLD, NULL);

	check(helper, "user namespace");
	write_map(proc, helper, "uid_map");
	write_map(proc, helper, "gid_map");
	snprintf(path, sizeof path, "%d/ns/user", (int)helper);
	made = (int)check(openat(proc, path, O_RDONLY | O_CLOEXEC), path);
	check(kill(helper, SIGKILL), "kill");
	check(waitpid(helper, NULL, 0), "waitpid");
	return made;
}

static void enter_user_namespace(void)
{
	check(setns(user, CLONE_NEWUSER), "setns");
	check(syscall(SYS_setgroups, 0, NULL), "setgroups");
	check(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
	check(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
}

/* What is made belongs to the container's root, of the host, or to the host's again. */
static void own_as(unsigned id)
{
	check(prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0), "secure bits");
	setfsgid(id);
	setfsuid(id);
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = (int)check(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");

	check(ioctl(fd, SIOCSIFFLAGS, &request), "loopback");
	close(fd);
}

static void make_world(unsigned concurrency)
{
	const int own = (int)check(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "/proc/self/ns/net");
	int proc;

	for (unsigned i = 0; i < concurrency; i++) {
		check(unshare(CLONE_NEWNET), "unshare");
		loopback_up();
		in_flight[i].network = (int)check(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "/proc/self/ns/net");
	}
	check(setns(own, CLONE_NEWNET), "setns");
	enter_own_world();
	proc = new_mount("proc", NULL, NOSUID | NODEV | NOEXEC);
	user = new_user_namespace(proc);
	close(proc);
}

/* ---- one container ---- */

static void make_root(void)
{
	static const char *const sized[] = {"mode", "755", "size", "268435456", "nr_inodes", "65536", NULL};
	static const char *const needed[] = {"usr", "proc", "dev", "etc"};
	static const char *const others[] = {"root", "home", "var", "var/tmp", "opt", "tmp", "run"};
	char path[64], template[64];

	attach(new_mount("tmpfs", sized, NOSUID | NODEV), "/new");
	check(chdir("/new"), "/new");
	for (size_t i = 0; i < COUNT(needed); i++)
		check(mkdir(needed[i], 0755), needed[i]);
	for (size_t i = 0; has(FILES) && i < COUNT(others); i++)
		check(mkdir(others[i], 0755), others[i]);
	if (has(FILES)) {
		make_file("run/hosts", "127.0.0.1 localhost\n", 20);
		make_file("run/hostname", "container\n", 10);
	}
	for (size_t i = 0; i < COUNT(top); i++) {
		if (top_links[i][0] == '/' && !top_links[i][1]) {
			snprintf(template, sizeof template, "/t/%s", top[i]);
			snprintf(path, sizeof path, "/new/%s", top[i]);
			check(mkdir(path, 0755), path);
			attach(tree_of(template, IDMAPPED | RDONLY | NOSUID | NODEV), path);
		} else if (top_links[i][0]) {
			check(symlink(top_links[i], top[i]), top[i]);
		}
	}
}

static void mount_all(void)
{
	static const char *const devpts[] = {"mode", "620", "ptmxmode", "666", "gid", "5", NULL};
	static const char *const shm[] = {"mode", "1777", "size", "67108864", NULL};
	struct stat status;
	char path[64];

	attach(tree_of("/t/usr", IDMAPPED | RDONLY | NOSUID | NODEV), "/new/usr");
	if (has(ETC))
		attach(tree_of("/t/etc", IDMAPPED | RDONLY | NOSUID | NODEV | NOEXEC), "/new/etc");
	if (has(DEV)) {
		attach(tree_of("/t/dev", IDMAPPED | RDONLY | NOSUID | NOEXEC), "/new/dev");
		if (has(DEVPTS))
			attach(new_mount("devpts", devpts, NOSUID | NOEXEC), "/new/dev/pts");
		if (has(SHM))
			attach(new_mount("tmpfs", shm, NOSUID | NODEV | NOEXEC), "/new/dev/shm");
	}
	if (!has(PROC))
		return;
	attach(new_mount("proc", NULL, NOSUID | NODEV | NOEXEC), "/new/proc");
	for (size_t i = 0; has(MASKS) && i < COUNT(masked); i++) {
		snprintf(path, sizeof path, "/new%s", masked[i]);
		if (stat(path, &status) == 0)
			attach(tree_of(S_ISDIR(status.st_mode) ? "/t/empty" : "/t/null", RDONLY | NOSUID | NOEXEC), path);
	}
	for (size_t i = 0; has(READONLY) && i < COUNT(read_only); i++) {
		snprintf(path, sizeof path, "/new%s", read_only[i]);
		if (stat(path, &status) == 0)
			attach(tree_of(path, RDONLY), path);
	}
}

static void change_root(void)
{
	if (has(DETACH)) /* the world has been pivoted: pivot_root(2) asks every process of the host (chroot_fs_refs) */
		check(umount2("/t", MNT_DETACH), "umount");
	check(chdir("/new"), "/new");
	check(chroot("."), "chroot");
}

static void join_cgroup(int parent, const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "%s/tasks", name);
	fd = (int)check(openat(parent, path, O_WRONLY | O_CLOEXEC), path);
	check(write(fd, "0", 1), path);
	close(fd);
}

static void drop_capabilities(void)
{
	struct { uint32_t version; int pid; } header = {0x20080522u, 0};
	struct { uint32_t effective, permitted, inheritable; } none[2] = {{0, 0, 0}, {0, 0, 0}};

	for (unsigned long cap = 0; cap < 64; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			break; /* EINVAL: past the kernel's last one */
	check(syscall(SYS_capset, &header, none), "capset");
	check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities");
}

static int workload(void *name)
{
	static char program[] = "/bin/true", search[] = "PATH=/usr/bin:/bin";
	static char *const words[] = {program, NULL}, *const variables[] = {search, NULL};

	for (size_t i = 0; i < COUNT(cgroups); i++)
		if (has(CGROUP) && cgroups[i] >= 0)
			join_cgroup(cgroups[i], name);
	if (has(USER))
		enter_user_namespace();
	if (has(CGROUPNS))
		check(unshare(NEW_CGROUP), "cgroup namespace");
	check(setsid(), "setsid");
	check(syscall(NR_close_range, 3u, ~0u, 0), "close_range");
	if (has(CAPS)) {
		drop_capabilities();
		check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	}
	if (!has(EXEC))
		_exit(0);
	execve(words[0], words, variables);
	die(words[0]);
}

static pid_t start_workload(char *name)
{
	static char stack[64 << 10] __attribute__((aligned(16)));
	struct {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
	} arguments = {.flags = CLONE_VFORK | 0x200000000ull /* CLONE_INTO_CGROUP */, .exit_signal = SIGCHLD};
	pid_t child;

	if (!has(CGROUP) || cgroup2 < 0)
		return clone(workload, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, name);
	arguments.cgroup = (uint64_t)check(openat(cgroup2, name, O_PATH | O_DIRECTORY | O_CLOEXEC), name);
	child = (pid_t)syscall(NR_clone3, &arguments, sizeof arguments);
	if (child == 0)
		workload(name);
	return child;
}

static _Noreturn void run_init(const struct flight *flight)
{
	const bool new_network = has(NET) && has(NEWNET);
	const int namespaces = CLONE_NEWNS | (has(UTS) ? CLONE_NEWUTS : 0) | (has(IPC) ? CLONE_NEWIPC : 0) | (new_network ? CLONE_NEWNET : 0);
	char name[16];
	int status;

	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	snprintf(name, sizeof name, "%u", flight->number);
	check(unshare(namespaces), "unshare");
	if (has(NET) && !new_network)
		check(setns(flight->network, CLONE_NEWNET), "setns");
	for (size_t i = 0; has(CGROUP) && i < COUNT(cgroups); i++)
		if (cgroups[i] >= 0)
			check(mkdirat(cgroups[i], name, 0755), "mkdir of a cgroup");
	if (has(CGROUP) && cgroup2 >= 0)
		check(mkdirat(cgroup2, name, 0755), "mkdir of a cgroup");
	if (has(USER))
		own_as(FIRST_ID);
	make_root();
	mount_all();
	if (has(USER))
		own_as(0);
	change_root();
	if (has(UTS))
		check(sethostname("container", 9), "sethostname");
	if (new_network && has(LOOPBACK))
		loopback_up();
	pid_t child = (pid_t)check(start_workload(name), "vfork");
	check(waitpid(child, &status, 0), "waitpid");
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

/* ---- the loop ---- */

/* A vforked child shares our memory until it execs, so the words are put right before. */
static void put_number(unsigned number)
{
	static char text[16];

	snprintf(text, sizeof text, "bench%u", number);
	for (char **word = command; *word; word++)
		if (!strcmp(*word, "{}"))
			*word = text;
}

static pid_t start(const struct flight *flight)
{
	struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } arguments = {
		.flags = has(PIDNS) ? CLONE_NEWPID : 0, .exit_signal = SIGCHLD};
	pid_t child;

	if (command) {
		put_number(flight->number);
		child = vfork();
		if (child == 0) {
			execvp(command[0], command);
			die(command[0]);
		}
	} else {
		child = (pid_t)syscall(NR_clone3, &arguments, sizeof arguments);
		if (child == 0)
			run_init(flight);
	}
	return (pid_t)check(child, "clone");
}

static void read_counter(int parent, unsigned number, const char *file)
{
	char text[4096];
	int fd;

	snprintf(text, sizeof text, "%u/%s", number, file);
	fd = openat(parent, text, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return; /* a kernel without it */
	check(fd, file);
	check(read(fd, text, sizeof text), file);
	close(fd);
}

static void read_counters(unsigned number)
{
	static const char *const files[2][2] = {{"pids.peak", "pids.events"}, {"memory.max_usage_in_bytes", "memory.oom_control"}};
	static const char *const files2[] = {"pids.peak", "pids.events", "memory.peak", "memory.events", "cpu.stat"};

	if (!has(READBACK) || !has(CGROUP))
		return;
	for (size_t i = 0; i < COUNT(cgroups); i++)
		for (size_t file = 0; cgroups[i] >= 0 && file < 2; file++)
			read_counter(cgroups[i], number, files[i][file]);
	for (size_t file = 0; cgroup2 >= 0 && file < COUNT(files2); file++)
		read_counter(cgroup2, number, files2[file]);
}

/* EBUSY: the last task is still on its way out. */
static void remove_cgroup(int parent, unsigned number)
{
	char name[16];

	snprintf(name, sizeof name, "%u", number);
	for (int tries = 0; parent >= 0 && has(CGROUP) && unlinkat(parent, name, AT_REMOVEDIR) < 0; tries++) {
		if (errno != EBUSY || tries > 5000)
			die("rmdir of a cgroup");
		usleep(100);
	}
}

/* Waits for one to end. */
static struct took finish_one(unsigned concurrency)
{
	int status;
	pid_t pid = (pid_t)check(waitpid(-1, &status, 0), "waitpid");

	for (unsigned i = 0; i < concurrency; i++) {
		struct flight *flight = in_flight + i;
		if (flight->pid != pid)
			continue;
		if (status) {
			fprintf(stderr, "floor: iteration %u ended with wait status 0x%x\n", flight->number, (unsigned)status);
			exit(1);
		}
		parts = variants[flight->variant];
		if (!command) {
			read_counters(flight->number);
			remove_cgroup(cgroups[0], flight->number);
			remove_cgroup(cgroups[1], flight->number);
			remove_cgroup(cgroup2, flight->number);
		}
		flight->pid = 0;
		return (struct took){flight->variant, now() - flight->started};
	}
	errno = ECHILD;
	die("waitpid: not ours");
}

/* By variant, then by time. */
static int compare(const void *a, const void *b)
{
	const struct took *left = a, *right = b;

	if (left->variant != right->variant)
		return left->variant < right->variant ? -1 : 1;
	return (left->ns > right->ns) - (left->ns < right->ns);
}

static void start_next(struct flight *flight, unsigned number)
{
	flight->number = number;
	flight->variant = (unsigned)random() % variant_count;
	parts = variants[flight->variant];
	flight->started = now();
	flight->pid = start(flight);
}

static void report(struct took *took, unsigned iterations, unsigned concurrency, int64_t total)
{
	unsigned begin = 0;

	qsort(took, iterations, sizeof *took, compare);
	printf("{\"iterations\": %u, \"concurrency\": %u, \"ns_per_iteration\": %lld, \"median_ns\": [", iterations, concurrency,
	       (long long)(total / iterations));
	for (unsigned variant = 0; variant < variant_count; variant++) {
		unsigned end = begin;
		while (end < iterations && took[end].variant == variant)
			end++;
		printf("%s%lld", variant ? ", " : "", end > begin ? (long long)took[begin + (end - begin) / 2].ns : 0LL);
		begin = end;
	}
	puts("]}");
}

static void run(unsigned iterations, unsigned concurrency)
{
	struct took *took = calloc(iterations, sizeof *took);
	int64_t begin = now();
	unsigned started = 0, done = 0;

	if (!took)
		die("calloc");
	while (done < iterations) {
		for (unsigned i = 0; i < concurrency && started < iterations; i++)
			if (!in_flight[i].pid)
				start_next(in_flight + i, started++);
		took[done++] = finish_one(concurrency);
	}
	report(took, iterations, concurrency, now() - begin);
	free(took);
}

static int open_directory(const char *path)
{
	return (int)check(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), path);
}

/* True where the word was an option; *at may be moved to its value. */
static bool take_option(char **argv, int *at)
{
	const char *word = argv[*at];

	if (strncmp(word, "--", 2) || !word[2])
		return false;
	if (!strcmp(word, "--pids") && argv[*at + 1])
		cgroups[0] = open_directory(argv[++*at]);
	else if (!strcmp(word, "--memory") && argv[*at + 1])
		cgroups[1] = open_directory(argv[++*at]);
	else if (!strcmp(word, "--cgroup2") && argv[*at + 1])
		cgroup2 = open_directory(argv[++*at]);
	else if (!strcmp(word, "--or") && variant_count < MAX_VARIANTS)
		variants[variant_count++] = ~0u;
	else {
		size_t part = 0;
		while (part < COUNT(part_names) && (strncmp(word, "--no-", 5) || strcmp(word + 5, part_names[part]) != 0))
			part++;
		if (part == COUNT(part_names))
			return false;
		variants[variant_count - 1] &= ~(1u << part);
	}
	return true;
}

int main(int argc, char **argv)
{
	unsigned long iterations, concurrency;
	int at = 1;

	while (at < argc && take_option(argv, &at))
		at++;
	iterations = argc - at >= 2 ? strtoul(argv[at], NULL, 10) : 0;
	concurrency = iterations ? strtoul(argv[at + 1], NULL, 10) : 0;
	if (!concurrency || concurrency > MAX_IN_FLIGHT || iterations > 10000000 ||
	    (argc - at > 2 && (argc - at < 4 || strcmp(argv[at + 2], "--") != 0))) {
		fprintf(stderr, "usage: floor [--no-PART]... [--or [--no-PART]...]... [--pids DIR --memory DIR | --cgroup2 DIR] "
				"ITERATIONS CONCURRENCY [-- COMMAND...]\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	signal(SIGCHLD, SIG_DFL);
	if (argc - at > 2)
		command = argv + at + 3;
	else
		make_world((unsigned)concurrency);
	run((unsigned)iterations, (unsigned)concurrency);
	return 0;
}
