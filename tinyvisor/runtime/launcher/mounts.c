/* Mounts, the root and what is put into it.
 *
 * The launcher lives in a mount namespace of its own (enter_own_world) that holds one small tmpfs:
 *   /new    where a container's root is put     /lower, /upper   layers of an overlay while it is mounted
 *   /t/...  templates: trees that all containers share, bound into them
 *   /shell  where a copy of /t/shell, an empty directory around the container's root, goes
 *   /proc   the host's, where we are in a user namespace: it gives a new one only to who sees one already
 * A container's init has a copy of that namespace until pivot_root. Every path below /new may be controlled by an image:
 * it is resolved by open_in_root (never leaves the root, no magic links), and mounted on by fd, never by path
 * (CVE-2021-30465, CVE-2019-19921, CVE-2023-27561). All mounting is by the mount API of Linux 5.2, mount_setattr of 5.12. */
#define _GNU_SOURCE
#include "launcher.h"

#include <sched.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

enum { /* linux/mount.h */
	TREE_CLONE = 1, TREE_CLOEXEC = O_CLOEXEC,
	MOVE_F_EMPTY = 0x04, MOVE_T_EMPTY = 0x40,
	FSCONFIG_FLAG = 0, FSCONFIG_STRING = 1, FSCONFIG_CREATE_FS = 6,
	FS_CLOEXEC = 1,
	ATTR_RDONLY = 1, ATTR_NOSUID = 2, ATTR_NODEV = 4, ATTR_NOEXEC = 8, ATTR_IDMAP = 0x100000,
	EMPTY_PATH = 0x1000, RECURSIVE = 0x8000,
};

enum { RESOLVE_MAGICLINKS_REFUSED = 0x02, RESOLVE_ROOT = 0x10 }; /* linux/openat2.h */

#define DEVPTS_MAGIC 0x1cd1
#define PROC_MAGIC 0x9fa0
#define NO_SETUID_FIXUP 4 /* linux/securebits.h SECBIT_NO_SETUID_FIXUP */

struct mount_attr_ { /* linux/mount.h struct mount_attr */
	uint64_t set, clear, propagation, userns_fd;
};

static int tree_of(int dir, const char *path, unsigned flags)
{
	int fd = (int)syscall(NR_open_tree, dir, path, (unsigned)TREE_CLONE | (unsigned)TREE_CLOEXEC | flags);

	return fd < 0 ? -errno : fd;
}

/* With `ids`, the fd of a user namespace or -1, the tree's owners are seen through that one's maps. */
static int set_attributes(int tree, uint64_t set, int ids, unsigned flags)
{
	struct mount_attr_ attr = {.set = ids < 0 ? set : set | ATTR_IDMAP, .userns_fd = ids < 0 ? 0 : (uint64_t)ids};

	return syscall(NR_mount_setattr, tree, "", (unsigned)EMPTY_PATH | flags, &attr, sizeof attr) < 0 ? -errno : 0;
}

/* The tree with more attributes on every mount of it; closed, and -errno, where that fails. */
static int with_attributes(int tree, uint64_t set, int ids)
{
	int error = tree < 0 || (!set && ids < 0) ? 0 : set_attributes(tree, set, ids, RECURSIVE);

	if (error)
		close(tree);
	return error ? error : tree;
}

static int attach(int tree, int target)
{
	return syscall(NR_move_mount, tree, "", target, "", MOVE_F_EMPTY | MOVE_T_EMPTY) < 0 ? -errno : 0;
}

/* Options are "key=value,flag,..." as in mount(8). Returns a detached mount or -errno. */
static int new_mount(const char *type, const char *options, unsigned attributes)
{
	char copy[4096], *save = NULL;
	int error = 0, fd, context = (int)syscall(NR_fsopen, type, FS_CLOEXEC);

	if (context < 0)
		return -errno;
	/* What mount(8) shows. EINVAL: overlay takes none, in some kernels. */
	if (syscall(NR_fsconfig, context, FSCONFIG_STRING, "source", type, 0) < 0 && errno != EINVAL)
		error = -errno;
	if ((size_t)snprintf(copy, sizeof copy, "%s", options) >= sizeof copy)
		error = -E2BIG;
	for (char *key = strtok_r(copy, ",", &save); key && !error; key = strtok_r(NULL, ",", &save)) {
		char *value = strchr(key, '=');
		if (value)
			*value++ = 0;
		if (syscall(NR_fsconfig, context, value ? FSCONFIG_STRING : FSCONFIG_FLAG, key, value, 0) < 0)
			error = -errno;
	}
	if (!error && syscall(NR_fsconfig, context, FSCONFIG_CREATE_FS, NULL, NULL, 0) < 0)
		error = -errno;
	fd = error ? error : (int)syscall(NR_fsmount, context, FS_CLOEXEC, attributes);
	if (!error && fd < 0)
		fd = -errno;
	close(context);
	return fd;
}

/* Of the launcher's own world. */
static int open_own(const char *path)
{
	int fd = openat(AT_FDCWD, path, O_PATH | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static int duplicate(int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	return copy < 0 ? -errno : copy;
}

/* Either may be -errno. */
static int attach_and_close(int tree, int target)
{
	int error = tree < 0 ? tree : target < 0 ? target : attach(tree, target);

	if (tree >= 0)
		close(tree);
	if (target >= 0)
		close(target);
	return error;
}

static int make_directories(const char *const *path)
{
	for (; *path; path++)
		if (mkdir(*path, 0755) < 0)
			return -errno;
	return 0;
}

/* The host's /dev/null as a detached tree, for who can make no devices: checked to be that, since masks are made of it. */
static int null_device(void)
{
	struct stat status;
	int tree, fd = open("/dev/null", O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	tree = fstat(fd, &status) < 0 ? -errno : !S_ISCHR(status.st_mode) || status.st_rdev != makedev(1, 3) ? -ENODEV : tree_of(fd, "", EMPTY_PATH);
	close(fd);
	return tree;
}

static int make_null(bool nested, int tree)
{
	if (mknod("/t/null", (nested ? S_IFREG : S_IFCHR) | 0666, nested ? 0 : makedev(1, 3)) < 0)
		return -errno;
	return nested ? attach_and_close(tree, open("/t/null", O_PATH | O_CLOEXEC)) : 0;
}

/* Leaves the host's mounts for a namespace with nothing in it, so that what a container's init copies is small and holds
 * nothing of value. */
int enter_own_world(bool nested)
{
	static const char *const places[] = {"/new", "/lower", "/upper", "/shell", "/t", NULL};
	static const char *const templates[] = {"/t/empty", "/t/shell", "/t/shell/container", NULL};
	int root, error, null = -1, proc = -1;

	if (unshare((int)NEW_MOUNT) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -errno;
	if (nested && ((null = null_device()) < 0 || (proc = tree_of(AT_FDCWD, "/proc", RECURSIVE)) < 0))
		return null < 0 ? null : proc;
	root = new_mount("tmpfs", "mode=755,size=16m,nr_inodes=8192", ATTR_NOSUID);
	if (root < 0)
		return root;
	if (syscall(NR_move_mount, root, "", AT_FDCWD, "/", MOVE_F_EMPTY) < 0 || fchdir(root) < 0 ||
	    syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return -errno;
	close(root);
	error = make_directories(places);
	if (!error) /* a file system of its own: one umount takes it all away */
		error = attach_and_close(new_mount("tmpfs", "mode=755,size=16m,nr_inodes=8192", ATTR_NOSUID), open_own("/t"));
	if (!error)
		error = make_directories(templates);
	if (!error && nested)
		error = mkdir("/proc", 0755) < 0 ? -errno : attach_and_close(proc, open_own("/proc"));
	return error ? error : make_null(nested, null);
}

/* The pid namespace's /proc, mounted nowhere. Nested, that pid namespace is not ours to mount it for: then what is there. */
int open_proc(bool nested)
{
	struct statfs fs;
	int fd;

	if (!nested)
		return new_mount("proc", "", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
	fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0 && (fstatfs(fd, &fs) < 0 || fs.f_type != PROC_MAGIC)) {
		close(fd);
		return -ENODEV;
	}
	return fd < 0 ? -errno : fd;
}

/* musl's open() asks for O_CLOEXEC twice (kernels before 2.6.23); openat() does not. */
int open_root(struct context *context, const char *path, int flags)
{
	struct stat status;

	context->root = openat(AT_FDCWD, path, flags | O_PATH | O_CLOEXEC);
	if (context->root < 0 || fstat(context->root, &status) < 0)
		return -errno;
	context->root_device = status.st_dev;
	context->root_inode = status.st_ino;
	return 0;
}

int open_in_root(const struct context *context, const char *path, int flags)
{
	return open_below(context->root, path, flags);
}

int open_below(int root, const char *path, int flags)
{
	struct { uint64_t flags, mode, resolve; } how = {
		.flags = (unsigned)(flags | O_CLOEXEC), .resolve = RESOLVE_ROOT | RESOLVE_MAGICLINKS_REFUSED};
	int fd = -1;

	/* EAGAIN: somebody renamed or mounted while a ".." was looked up. Who does that all day long gets an error, not a hang. */
	for (int i = 0; i < 128 && (fd = (int)syscall(NR_openat2, root, path, &how, sizeof how)) < 0; i++)
		if (errno != EAGAIN && errno != EINTR)
			break;
	return fd < 0 ? -errno : fd;
}

static void close_parent(const struct context *context, int fd)
{
	if (fd != context->root)
		close(fd);
}

/* Opens a directory below the root; what is missing of its path is made, from the top. */
static int open_or_make(const struct context *context, char *path)
{
	int fd = context->root;

	for (char *name = path, *end; *name && fd >= 0; name = end) {
		name += strspn(name, "/");
		end = name + strcspn(name, "/");
		const char after = *end;
		*end = 0;
		int next = open_in_root(context, path, O_PATH | O_DIRECTORY);
		if (next == -ENOENT)
			next = mkdirat(fd, name, 0755) < 0 && errno != EEXIST ? -errno : open_in_root(context, path, O_PATH | O_DIRECTORY);
		*end = after;
		close_parent(context, fd);
		fd = next;
	}
	return fd;
}

/* Opens the directory that holds the last component of `path`, making what is missing; `name` is that component. To be
 * closed by close_parent. */
static int open_parent(const struct context *context, const char *path, const char **name)
{
	char part[4096];
	size_t end = strlen(path), length;
	int fd;

	while (end && path[end - 1] == '/') /* "work/" is a name, too */
		end--;
	for (length = end; length && path[length - 1] != '/';)
		length--;
	*name = path + length;
	if (!length || (length == 1 && *path == '/'))
		return context->root;
	if (length >= sizeof part)
		return -ENAMETOOLONG;
	memcpy(part, path, length);
	part[length] = 0;
	fd = open_in_root(context, part, O_PATH | O_DIRECTORY);
	return fd == -ENOENT ? open_or_make(context, part) : fd;
}

/* What is there to be mounted on. Not the root: who is in it would not see the mount. */
static int open_place(const struct context *context, const char *path)
{
	struct stat status;
	int error = -EBUSY, fd = open_in_root(context, path, O_PATH);

	if (fd < 0)
		return fd;
	if (fstat(fd, &status) < 0)
		error = -errno;
	else if (status.st_dev != context->root_device || status.st_ino != context->root_inode)
		return fd;
	close(fd);
	return error;
}

/* A place to mount on, made where it is missing: a directory or a file; `directory` may be -errno. Links are followed, inside the
 * root. In most roots nothing is at the top yet: there it is made first and looked for then. */
static int open_target(const struct context *context, const char *path, int directory)
{
	const char *name = path + strspn(path, "/");
	const bool made = directory > 0 && *name && !strchr(name, '/') && mkdirat(context->root, name, 0755) == 0;
	int parent, error = 0, fd = directory < 0 ? directory : open_place(context, path);

	if (fd != -ENOENT || made)
		return fd;
	parent = open_parent(context, path, &name);
	if (parent < 0)
		return parent;
	if ((directory ? mkdirat(parent, name, 0755) : mknodat(parent, name, S_IFREG | 0644, 0)) < 0)
		error = -errno;
	close_parent(context, parent);
	return error ? error : open_place(context, path);
}

/* 1, 0 or -errno. */
static int is_directory(int fd)
{
	struct stat status;

	return fstat(fd, &status) < 0 ? -errno : S_ISDIR(status.st_mode);
}

/* ---- the root ---- */

static int put_root(struct context *context, int tree)
{
	int error = attach_and_close(tree, open_own("/new"));

	if (error)
		return error;
	return open_root(context, "/new", O_DIRECTORY);
}

static int sized_tmpfs(const struct step *step, int size, unsigned attributes)
{
	char options[128];

	snprintf(options, sizeof options, "mode=755,size=%llu,nr_inodes=%llu", (unsigned long long)step->number[size],
		 (unsigned long long)step->number[size + 1]);
	return new_mount("tmpfs", options, attributes);
}

int step_root_tmpfs(struct context *context, const struct step *step)
{
	return put_root(context, sized_tmpfs(step, 0, (unsigned)step->number[2]));
}

int step_root_tree(struct context *context, const struct step *step)
{
	int tree = slot_fd(context, step->number[0]), error = set_attributes(tree, step->number[1], -1, 0);

	return error ? error : put_root(context, duplicate(tree));
}

#define OVERLAY "lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w,index=off,xino=off"

int step_root_overlay(struct context *context, const struct step *step)
{
	int error = attach_and_close(duplicate(slot_fd(context, step->number[0])), open_own("/lower"));

	if (!error)
		error = attach_and_close(sized_tmpfs(step, 1, 0), open_own("/upper"));
	if (error)
		return error;
	if (mkdir("/upper/u", 0755) < 0 || mkdir("/upper/w", 0700) < 0)
		return -errno;
	/* index and xino are of no use here, and fill the kernel's log (bubblewrap#783). */
	/* trusted.* attributes are for who is root of the host. */
	return put_root(context, new_mount("overlay", step->number[4] ? OVERLAY ",userxattr" : OVERLAY, (unsigned)step->number[3]));
}

/* The namespace's root becomes an empty, read-only shell, and the container's root a mount in it: to a process whose root is
 * not its namespace's the kernel gives no user namespace (kernel/user_namespace.c, current_chrooted), in which root could
 * mount cgroup hierarchies and lift its own limits. */
int step_pivot_root(struct context *context, const struct step *step)
{
	const unsigned sealed = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
	int place, error = attach_and_close(with_attributes(tree_of(AT_FDCWD, "/t/shell", 0), sealed, -1), open_own("/shell"));

	(void)step;
	if (error)
		return error;
	place = openat(AT_FDCWD, "/shell/container", O_PATH | O_CLOEXEC);
	error = place < 0 ? -errno : attach(context->root, place);
	if (place >= 0)
		close(place);
	if (error)
		return error;
	/* pivot_root(2) NOTES: old root on top of the new one, then detached; nothing of the launcher's world stays. */
	return chdir("/shell") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 ? -errno : 0;
}

/* What is to be chrooted from stays as it is. Who may chroot can come back out: so nothing is left there that is shared with
 * other containers, nothing that can be written. */
int step_chroot(struct context *context, const struct step *step)
{
	int error, world = open("/", O_PATH | O_CLOEXEC);

	(void)context;
	(void)step;
	if (world < 0 || umount2("/t", MNT_DETACH) < 0)
		return -errno;
	if (((umount2("/lower", MNT_DETACH) < 0 || umount2("/upper", MNT_DETACH) < 0) && errno != EINVAL) || /* no overlay */
	    (umount2("/proc", MNT_DETACH) < 0 && errno != ENOENT)) /* that: not nested */
		error = -errno;
	else
		error = set_attributes(world, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, -1, 0);
	close(world);
	return error;
}

/* ---- what is put into the root ---- */

/* Uid 0 would lose its rights by becoming another, without the secure bit. */
int keep_rights(void)
{
	return prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0) < 0 ? -errno : 0;
}

/* What is made from here on belongs to these ids, of the host. The rights to override what modes say stay, for the set-up's
 * sake. */
int step_owner(struct context *context, const struct step *step)
{
	const bool root = step->number[0];
	const int error = keep_rights();

	if (error)
		return error;
	/* These two say what was, not whether they did it. */
	(void)setfsgid(root ? context->ids.root_gid : 0);
	(void)setfsuid(root ? context->ids.root_uid : 0);
	die_with_launcher(); /* the kernel has forgotten it: prctl(2) PR_SET_PDEATHSIG */
	return (uid_t)setfsuid((uid_t)-1) == (root ? context->ids.root_uid : 0) &&
	       (gid_t)setfsgid((gid_t)-1) == (root ? context->ids.root_gid : 0) ? 0 : -EPERM;
}

int step_directory(struct context *context, const struct step *step)
{
	const char *name;
	int error = 0, parent = open_parent(context, step->string[0], &name);

	if (parent < 0)
		return parent;
	uid_t uid = step->number[1] == MAPPED ? context->ids.uid : (uid_t)step->number[1];
	gid_t gid = step->number[2] == MAPPED ? context->ids.gid : (gid_t)step->number[2];
	if (mkdirat(parent, name, (mode_t)step->number[0]) < 0) /* the umask is 0 until the workload sets its own */
		error = errno == EEXIST ? 0 : -errno;
	else if ((uid || gid) && fchownat(parent, name, uid, gid, AT_SYMLINK_NOFOLLOW) < 0)
		error = -errno;
	close_parent(context, parent);
	return error;
}

int step_link(struct context *context, const struct step *step)
{
	const char *name;
	int error, parent = open_parent(context, step->string[0], &name);

	if (parent < 0)
		return parent;
	error = symlinkat(step->string[1], parent, name) < 0 && errno != EEXIST ? -errno : 0;
	close_parent(context, parent);
	return error;
}

int step_file(struct context *context, const struct step *step)
{
	const char *name;
	uint32_t done = 0;
	int error = 0, fd, parent = open_parent(context, step->string[0], &name);

	if (parent < 0)
		return parent;
	if (step->number[1]) /* replace what an image has there, be it a link */
		(void)unlinkat(parent, name, 0);
	fd = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)step->number[0]);
	close_parent(context, parent);
	if (fd < 0)
		return -errno;
	while (done < step->size[1] && !error) {
		ssize_t n = write(fd, step->string[1] + done, step->size[1] - done);
		error = n < 0 ? -errno : 0;
		done += n < 0 ? 0 : (uint32_t)n;
	}
	close(fd);
	return error;
}

int step_node(struct context *context, const struct step *step)
{
	const char *name;
	int error = 0, parent = open_parent(context, step->string[0], &name);

	if (parent < 0)
		return parent;
	if (mknodat(parent, name, (mode_t)step->number[0], (dev_t)step->number[1]) < 0)
		error = -errno;
	close_parent(context, parent);
	return error;
}

int step_mount(struct context *context, const struct step *step)
{
	return attach_and_close(new_mount(step->string[0], step->string[2], (unsigned)step->number[0]),
				open_target(context, step->string[1], true));
}

/* The container's own pseudo-terminals. Number: the group that owns them, in the container. */
int step_devpts(struct context *context, const struct step *step)
{
	char options[128];
	gid_t gid = context->ids.maps ? context->ids.tty : (gid_t)step->number[0];
	int error = 0, tree;

	snprintf(options, sizeof options, "newinstance,ptmxmode=0666,mode=0620,gid=%u", (unsigned)gid);
	tree = new_mount("devpts", options, ATTR_NOSUID | ATTR_NOEXEC);
	if (tree >= 0 && context->ids.maps &&
	    (fchownat(tree, "", context->ids.root_uid, context->ids.root_gid, AT_EMPTY_PATH) < 0 ||
	     fchownat(tree, "ptmx", context->ids.root_uid, context->ids.root_gid, AT_SYMLINK_NOFOLLOW) < 0))
		error = -errno;
	if (error) {
		close(tree);
		return error;
	}
	return attach_and_close(tree, open_target(context, "/dev/pts", true));
}

int step_unmount(struct context *context, const struct step *step)
{
	(void)context;
	return umount2(step->string[0], MNT_DETACH | UMOUNT_NOFOLLOW) < 0 ? -errno : 0;
}

/* The container's root in its mount namespace: see step_pivot_root and step_chroot. */
int step_enter(struct context *context, const struct step *step)
{
	int error;

	if (context->root >= 0) /* as it was in the namespace that this one is a copy of */
		close(context->root);
	error = open_root(context, step->string[0], O_DIRECTORY | O_NOFOLLOW);
	return error ? error : fchdir(context->root) < 0 || chroot(".") < 0 || chdir("/") < 0 ? -errno : 0;
}

/* A detached tree from the supervisor. The tree keeps its own flags; attributes are added to all of it. */
int step_bind(struct context *context, const struct step *step)
{
	int tree = slot_fd(context, step->number[0]), error = set_attributes(tree, step->number[1], -1, RECURSIVE);

	if (error)
		return error;
	return attach_and_close(duplicate(tree), open_target(context, step->string[0], is_directory(tree)));
}

int step_bind_template(struct context *context, const struct step *step)
{
	int ids = step->number[1] ? slot_fd(context, step->number[1]) : -1;
	int tree = with_attributes(tree_of(AT_FDCWD, step->string[0], RECURSIVE), step->number[0], ids);

	return attach_and_close(tree, open_target(context, step->string[1], tree < 0 ? tree : is_directory(tree)));
}

/* The masks come from the launcher's own tmpfs and not from the container's /dev/null (CVE-2025-31133). */
int step_mask(struct context *context, const struct step *step)
{
	int tree, directory, target = open_place(context, step->string[0]);

	if (target == -ENOENT)
		return 0;
	directory = target < 0 ? target : is_directory(target);
	if (directory < 0) {
		if (target >= 0)
			close(target);
		return directory;
	}
	tree = tree_of(AT_FDCWD, directory ? "/t/empty" : "/t/null", 0);
	return attach_and_close(with_attributes(tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC, -1), target);
}

int step_read_only(struct context *context, const struct step *step)
{
	int tree, target = open_place(context, step->string[0]);

	if (target == -ENOENT)
		return 0;
	if (target < 0)
		return target;
	tree = tree_of(target, "", (unsigned)EMPTY_PATH | (unsigned)RECURSIVE);
	return attach_and_close(with_attributes(tree, ATTR_RDONLY, -1), target);
}

int step_remount(struct context *context, const struct step *step)
{
	int error, target = open_in_root(context, step->string[0], O_PATH);

	if (target < 0)
		return target;
	error = set_attributes(target, step->number[0], -1, 0);
	close(target);
	return error;
}

/* ---- the terminal ---- */

/* The master is made from the container's own devpts and checked to be that (CVE-2025-52565: an image's /dev/pts). */
int step_pty(struct context *context, const struct step *step)
{
	struct winsize size = {.ws_row = (unsigned short)step->number[2], .ws_col = (unsigned short)step->number[3]};
	struct event event = {.type = EVENT_PTY, .id = context->id};
	struct statfs fs;
	int unlocked = 0, error = 0, master = open_in_root(context, "dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW);

	if (master < 0)
		return master;
	if (fstatfs(master, &fs) < 0)
		error = -errno;
	else if (fs.f_type != DEVPTS_MAGIC)
		error = -ENOTTY;
	else if (ioctl(master, TIOCSPTLCK, &unlocked) < 0 || ioctl(master, TIOCSWINSZ, &size) < 0 ||
		 (context->tty = ioctl(master, _IO('T', 0x41), O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) /* TIOCGPTPEER */
		error = -errno;
	else if (fchown(context->tty, step->number[0] == MAPPED ? context->ids.uid : (uid_t)step->number[0],
			step->number[1] == MAPPED ? context->ids.gid : (gid_t)step->number[1]) < 0)
		error = -errno;
	if (!error && step->number[4])
		error = attach_and_close(tree_of(context->tty, "", EMPTY_PATH), open_target(context, "/dev/console", false));
	if (!error)
		error = send_event(context->event, &event, NULL, 0, master);
	close(master);
	return error;
}
