/* User namespaces.
 *
 * A container's other namespaces belong to its user namespace: what capabilities its root is given count in there, and
 * nowhere else. Its root file system is made before, with all rights, in a mount namespace of the host's; then a helper is
 * cloned into new namespaces, all at once. A mount namespace among them is a copy in which the kernel has locked every mount
 * and its flags (mount_namespaces(7)): no capability inside can take a mask away, or write where it was read-only; without one,
 * the host's stays, over which nobody inside has a say. Init maps the ids and joins the namespaces, but for the user namespace,
 * whose rights it does not need and whose root has none over it. The workload enters it last.
 * Who can leave nothing in it enters one that is kept (step_id_map), and the other namespaces are the host's. */
#define _GNU_SOURCE
#include "launcher.h"

#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define HELPER_PID 300 /* in the container, for a moment; below every pid_max, and the workload's is 2 all the same */
#define GET_OWNER 0xb701 /* linux/nsfs.h NS_GET_USERNS, 4.9 */

/* Numbers: the root's uid and gid, the workload's uid and gid, the gid of group tty, as the host has them; strings: the maps. */
int step_ids(struct context *context, const struct step *step)
{
	const uint64_t *number = step->number;

	context->ids = (struct ids){.root_uid = (uid_t)number[0], .root_gid = (gid_t)number[1], .uid = (uid_t)number[2],
				    .gid = (gid_t)number[3], .tty = (gid_t)number[4], .maps = step};
	return 0;
}

static int write_map(int proc, pid_t pid, const char *file, const struct step *maps, int string)
{
	char path[64];
	int fd, error = 0;

	snprintf(path, sizeof path, "%d/%s", (int)pid, file);
	fd = openat(proc, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, maps->string[string], maps->size[string]) < 0)
		error = -errno;
	close(fd);
	return error;
}

/* It has to live, while others look at what it is in. */
static int wait_for_the_end(void *unused)
{
	(void)unused;
	for (;;)
		(void)syscall(SYS_rt_sigsuspend, &(uint64_t){~0ull}, sizeof(uint64_t));
	return 0;
}

/* Returns the fd of the helper's user namespace, with its ids mapped, or -errno. */
static int map_ids(int proc, pid_t helper, const struct step *maps)
{
	char path[64];
	int fd, error = write_map(proc, helper, "uid_map", maps, 0);

	if (!error)
		error = write_map(proc, helper, "gid_map", maps, 1);
	if (error)
		return error;
	snprintf(path, sizeof path, "%d/ns/user", (int)helper);
	fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void end_helper(pid_t helper)
{
	if (kill(helper, SIGKILL) < 0)
		give_up(errno);
	while (waitpid(helper, NULL, 0) < 0 && errno != ECHILD)
		;
}

/* What a user namespace uses up is counted for who made it, too (ucounts: pending signals, inotify watches, message queues): that
 * must not be the host's root. The rights stay, see step_owner. Stops when it is in one. */
static int found(void *owner)
{
	if (keep_rights() < 0 || syscall(SYS_setresuid, (uid_t)-1, *(const uid_t *)owner, (uid_t)-1) < 0 || unshare((int)NEW_USER) < 0)
		_exit(errno); /* there is nothing to return to */
	die_with_launcher();
	for (;;)
		(void)kill(getpid(), SIGSTOP);
}

/* Until it has stopped, in a user namespace of its own: whoever else may stop it before must not make us take that for it. Returns
 * 0, or -errno with the helper gone. */
static int wait_until_found(pid_t helper)
{
	struct stat ours, its;
	char path[64];
	int status, error = 0;

	snprintf(path, sizeof path, "%d/ns/user", (int)helper);
	while (!error) {
		if (waitpid(helper, &status, WUNTRACED) < 0)
			return -errno;
		if (!WIFSTOPPED(status))
			return WIFEXITED(status) ? -WEXITSTATUS(status) : -ECHILD;
		if (fstatat(proc_fd, "self/ns/user", &ours, 0) < 0 || fstatat(proc_fd, path, &its, 0) < 0)
			error = -errno;
		else if (its.st_ino != ours.st_ino)
			return 0;
		else if (kill(helper, SIGCONT) < 0)
			error = -errno;
	}
	end_helper(helper);
	return error;
}

/* A user namespace that nobody is in: for idmapped mounts, and for the containers, one after another, that leave nothing in it.
 * Number: its maker's uid; strings: the maps; of projects, if any, for a map that there is not can be written, once, by whoever is
 * inside, with no capability, and the next one would find it. */
int step_id_map(struct context *context, const struct step *step)
{
	struct clone_arguments arguments = {.exit_signal = SIGCHLD};
	uid_t owner = (uid_t)step->number[0];
	pid_t helper;
	int error;

	if (context->user_namespace >= 0) /* one answer has room for one */
		return -EBUSY;
	helper = clone3_vm(&arguments, found, &owner);
	if (helper < 0)
		return -errno;
	error = wait_until_found(helper);
	if (error)
		return error;
	if (step->size[2])
		error = write_map(proc_fd, helper, "projid_map", step, 2);
	if (!error)
		context->user_namespace = error = map_ids(proc_fd, helper, step);
	end_helper(helper);
	return error < 0 ? error : 0;
}

/* As `found`, with other namespaces that belong to it. */
static pid_t clone_as_its_root(const struct context *context, struct clone_arguments *arguments)
{
	pid_t child;

	if (syscall(SYS_setresuid, (uid_t)-1, context->ids.root_uid, (uid_t)-1) < 0)
		return -errno;
	child = clone3_vm(arguments, wait_for_the_end, NULL); /* init's end would be the helper's */
	if (child < 0)
		child = -errno;
	if (syscall(SYS_setresuid, (uid_t)-1, (uid_t)0, (uid_t)-1) < 0)
		give_up(errno);
	die_with_launcher();
	return child;
}

/* Number: the namespaces to make with it. Before the root is entered: to who is chrooted the kernel gives no user namespace. */
int step_user_namespace(struct context *context, const struct step *step)
{
	const pid_t pid = HELPER_PID;
	int pidfd = -1, error, proc;
	struct clone_arguments arguments = {.flags = step->number[0] | NEW_USER | 0x1000u /* CLONE_PIDFD */, .exit_signal = SIGCHLD,
					    .pidfd = (uint64_t)(uintptr_t)&pidfd, .set_tid = (uint64_t)(uintptr_t)&pid, .set_tid_size = 1};
	pid_t helper;

	if (!context->ids.maps || step->number[0] & ~(uint64_t)NEW_ANY) /* other flags are about memory and pointers */
		return -EINVAL;
	proc = open_in_root(context, "proc", O_RDONLY | O_DIRECTORY);
	if (proc < 0)
		return proc;
	helper = clone_as_its_root(context, &arguments);
	error = helper < 0 ? helper : 0;
	if (!error) {
		context->user_namespace = map_ids(proc, helper, context->ids.maps);
		error = context->user_namespace < 0 ? context->user_namespace : setns(pidfd, (int)step->number[0]) < 0 ? -errno : 0;
		close(pidfd);
		end_helper(helper);
	}
	close(proc);
	return error;
}

/* The user namespace that one of a container's namespaces belongs to: its fd or -errno. By the launcher's own /proc, and not by
 * anything that the container has. */
int owner_of(pid_t pid, uint64_t flag)
{
	const char *file = flag == NEW_MOUNT ? "mnt" : flag == NEW_UTS ? "uts" : flag == NEW_IPC ? "ipc" : flag == NEW_NET ? "net" : NULL;
	char path[64];
	int fd, owner;

	if (!file)
		return -EINVAL;
	snprintf(path, sizeof path, "%d/ns/%s", (int)pid, file);
	fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	owner = ioctl(fd, GET_OWNER);
	if (owner < 0)
		owner = -errno;
	close(fd);
	return owner;
}
