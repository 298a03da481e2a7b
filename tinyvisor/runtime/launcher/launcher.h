/* What the launcher's files share. Kernel numbers that old libc headers lack are given here, with their kernel version. */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* System calls from 424 on have one number on every architecture. */
#define NR_pidfd_send_signal 424
#define NR_open_tree 428
#define NR_move_mount 429
#define NR_fsopen 430
#define NR_fsconfig 431
#define NR_fsmount 432
#define NR_pidfd_open 434
#define NR_clone3 435
#define NR_close_range 436
#define NR_openat2 437
#define NR_mount_setattr 442
#define NR_landlock_create_ruleset 444
#define NR_landlock_add_rule 445
#define NR_landlock_restrict_self 446

#define NEW_TIME 0x00000080u /* CLONE_NEW*: linux/sched.h */
#define NEW_MOUNT 0x00020000u
#define NEW_CGROUP 0x02000000u
#define NEW_UTS 0x04000000u
#define NEW_IPC 0x08000000u
#define NEW_USER 0x10000000u
#define NEW_PID 0x20000000u
#define NEW_NET 0x40000000u
#define NEW_ANY (NEW_TIME | NEW_MOUNT | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_USER | NEW_PID | NEW_NET)

/* ---- the wire: one request is one SOCK_SEQPACKET message; tinyvisor/runtime/launcher.py is the other side ---- */

#define MAGIC 0x4c565954u /* "TYVL" */
#define VERSION 11
#define MAX_REQUEST (4u << 20) /* bytes */
#define MAX_INLINE (64u << 10) /* bytes; larger bodies come in a memfd */
#define MAX_STEPS 1024
#define MAX_FDS 64
#define MAX_KEPT 32
#define MAX_CONTAINERS 32768 /* at once: a page of report each */
#define PAGE 4096
#define MAX_ARGUMENTS 32768
#define MAX_INTS 6
#define MAX_READ 4096 /* bytes of each file that is read back */
#define MAX_COUNTERS 8 /* files that an init reads back itself */
#define MAX_PASSED 255 /* number of the workload's fd beside stdio */
#define MAPPED (~0u) /* as an owner: the workload's user, see step_ids */
#define MAX_STRINGS 3
#define KEPT 0x100 /* a slot number with this bit names a kept fd, else one that came with the request */

enum request_type {
	REQUEST_PREPARE = 1,
	REQUEST_LAUNCH,
	REQUEST_KILL,
	REQUEST_RUN, /* to a parked container, on its own socket */
};
enum {
	FLAG_BODY_IN_MEMFD = 1, /* the last fd holds all that follows the header */
	FLAG_KEEP_FDS = 2,      /* prepare: the other fds stay open and can be named by later requests */
	FLAG_PARK = 4,          /* launch: behind the workload's steps the child waits for REQUEST_RUN, which has the rest */
	FLAG_EXEC = 8,          /* launch: one more process in the other's container, not a new one */
	FLAG_ASK = 16,          /* kill: nobody; EVENT_REFUSED says that there is no such container */
};
enum section { SECTION_LAUNCHER, SECTION_INIT, SECTION_WORKLOAD, SECTION_CLEANUP, SECTIONS };

struct request {
	uint32_t magic;
	uint16_t version, type;
	uint32_t length; /* bytes, this header included */
	uint32_t flags;
	uint64_t id;    /* of the container, the supervisor's choice */
	uint64_t other; /* launch: the container whose namespaces are joined, 0 for none */
	uint32_t pid;   /* kill: of the container's init; launch: of the other's init */
	uint16_t count[SECTIONS]; /* steps in each section */
	uint16_t fds, unused;
};

struct step {
	uint16_t op;
	uint32_t size[MAX_STRINGS]; /* bytes of each string, without the NUL that follows */
	uint64_t number[MAX_INTS];
	const char *string[MAX_STRINGS];
};

enum event_type {
	EVENT_STARTED = 1, /* a: host pid of init; the workload has been exec'ed; on the container's socket */
	EVENT_PTY,         /* carries the master's fd; on the container's socket */
	EVENT_GONE,        /* a container has ended and is cleaned up: `struct gone`, then the files read */
	EVENT_REFUSED,     /* a: errno, b: byte offset; nothing was done */
	EVENT_PREPARED,    /* a: 0 or errno, b: the step that failed */
	EVENT_PARKED,      /* a: host pid of init, whose only child waits for REQUEST_RUN; on the container's socket */
	EVENT_SOCKET,      /* carries a new socket's fd; on the process's socket */
};

struct event {
	uint32_t magic;
	uint16_t version, type;
	uint64_t id;
	int32_t a, b;
	uint32_t length, unused; /* bytes of data that follow */
};

enum { GONE_EXITED = 1, GONE_TIMED_OUT = 2, GONE_CPU_TIMED_OUT = 4, GONE_EMPTY = 8, GONE_REFUSED = 16,
       GONE_CONNECTED = 32 /* a standard stream of the workload's could carry fds out: the launcher's own business */ };

/* What is done with a call that a seccomp filter hands to init (refusals.c): the low 16 bits of the filter's answer, which the
 * kernel makes nothing of. Else it is an errno. */
enum { ANSWER_LET_THROUGH = 0xfffe, ANSWER_KILL = 0xffff };

#define MAX_REFUSED 16

struct refused { /* one number of a call, and what was done with it */
	uint16_t number, answer;
	uint32_t count;
};

struct report { /* what an init leaves behind, in a page that it shares with the launcher and nobody else */
	int32_t pid;                  /* init's, as the host numbers it */
	int32_t section, step, error; /* the step that failed; error 0: none did */
	int32_t flags, status;        /* GONE_...; wait status of the workload */
	int64_t wall;                 /* ns from exec to the workload's end */
	int64_t ended;                /* ns of CLOCK_MONOTONIC: that end */
	int64_t user, system;         /* us of CPU time, with GONE_EMPTY: of all that was reaped */
	uint32_t refused_in_all, refused_kinds; /* calls; how many of these are in use: */
	struct refused refused[MAX_REFUSED];    /* the first ones */
};

struct page { /* of an init's own: the report, and the files that it has read back, as `struct gone` is followed by them */
	struct report report;
	uint32_t size; /* 0: it has read none */
	char data[PAGE - sizeof(struct report) - sizeof(uint32_t)];
};

struct gone {
	struct report report;
	int32_t status, cleanup_error; /* wait status of init; errno of what could not be removed */
	int64_t user, system;          /* us of CPU time, of all the container's processes */
};

enum command_type { COMMAND_SIGNAL = 1 };
enum scope { SCOPE_WORKLOAD, SCOPE_GROUP, SCOPE_ALL };

struct command { /* supervisor to init, on the container's socket */
	uint32_t magic;
	uint16_t version, type;
	int32_t signal, scope;
};

enum { OP_NETWORK = 27, OP_READ = 60, OP_REMOVE = 61 };

/* ---- live mode: supervisor and keeper; tinyvisor/runtime/keeper.py is the other side ---- */

#define KEEPER_VERSION 1

enum keeper_type {
	KEEPER_PUT = 1, /* with `number` fds; kind: four bits for each */
	KEEPER_DROP,    /* all of `id` */
	KEEPER_LIST,
	KEEPER_END,
	KEEPER_HELLO,   /* kind: the launcher's VERSION; number: how many fds there is room for */
	KEEPER_BUSY,    /* number: pid of the supervisor that is there */
	KEEPER_ENTRY,   /* with an fd */
	KEEPER_DONE,    /* number: of entries */
};
enum { KEPT_CONTROL, KEPT_LAUNCHER, KEPT_KEEPER }; /* kinds of the project's own fds, id 0; others are the supervisor's choice */

struct kept_message {
	uint32_t magic;
	uint16_t version, type;
	uint64_t id; /* of a container, 0 for the project */
	uint32_t kind, number;
};

/* ---- one launch ---- */

struct container { /* what the launcher keeps of a running container: no fd at all */
	uint64_t id;
	pid_t pid;
	struct container *next; /* in its pid bucket, or in the list of those being cleaned up */
	char *cleanup;          /* owned: the encoded clean-up steps */
	uint32_t cleanup_size;
	uint16_t cleanup_count;
	int slot;               /* of its report */
	bool exec;              /* a process in another's container */
	bool shared;            /* others were let into its namespaces */
	int network;            /* number of the one that is kept for it (networks.c), or -1 */
	bool told;              /* EVENT_GONE is sent; init itself is still on its way out */
	struct gone gone;       /* what will be reported, and the files read for it: */
	char *data;             /* owned */
	uint32_t data_size;
	int tries;
};

struct ids { /* by step_ids; who the container's root, its workload and its group tty are on the host */
	uid_t root_uid, uid;
	gid_t root_gid, gid, tty;
	const struct step *maps; /* its strings: uid_map, gid_map; NULL: no user namespace */
};

struct context {
	int event;          /* the container's socket */
	int stdio[3];
	const int *fds;     /* fds of this request */
	int fd_count;
	int joined;         /* pidfd of the container whose namespaces are joined, or -errno */
	pid_t joined_pid;   /* of its init */
	int root;           /* O_PATH fd of the new root, or -1 */
	uint64_t root_device, root_inode; /* where others are mounted in it */
	int cgroup;         /* v2: where the workload is born, or -1 */
	int network;        /* fd of the network namespace that is kept for it, or -1 */
	int user_namespace; /* fd of the one that the workload enters, or -1 */
	struct ids ids;     /* of the host, where there is a user namespace */
	int tty;            /* slave side of the container's pty, or -1 */
	int handover;       /* the workload's end of a socket to init, for its filter's listener, or -1 */
	uint64_t id;
	int slot; /* of the report */
	unsigned init_flags;
	int orphan_signal;
	unsigned orphan_grace_ms;
	uint64_t timeout_ms;
	int cpu_usage;       /* fd of the cgroup file that counts CPU time, or -1 */
	uint64_t cpu_ms;
	unsigned cpus;       /* how many can be used at once */
	int counters[MAX_COUNTERS], counter_count; /* of the cgroups: -1 for what this kernel has not */
	bool park, exec;
	bool closed;     /* by step_close_fds, before it was parked */
	int null;        /* the container's own /dev/null, or -1 */
	unsigned passed; /* an fd of the workload's beside stdio, or 0 */
	char name[65];
};

enum {
	INIT_SIGNAL_GROUP = 1,
	INIT_FORK = 2,
	INIT_EARLY = 4, /* the container is gone when it is empty and its cgroups are: what is mounted in it is nobody else's */
	INIT_REFUSALS = 32, /* the workload's filter hands what it refuses to init */
	INIT_TRACE = 8, /* the workload may trace init: it does not run before init has nothing left to be had */
};

struct plan { /* a decoded request */
	struct step step[MAX_STEPS];
	const struct step *section[SECTIONS];
	int count[SECTIONS];
	const char *cleanup; /* the encoded clean-up section */
	uint32_t cleanup_size;
};

struct scratch { /* what a start needs and an idle init doesn't: given back to the kernel when it is done (forget_request) */
	char request[MAX_REQUEST];
	struct plan plan;
	char *words[MAX_ARGUMENTS + 2], *variables[MAX_ARGUMENTS + 1]; /* of the exec */
	char stack[128 << 10] __attribute__((aligned(16)));            /* of the workload until its exec */
};
extern struct scratch *scratch;

/* wire.c */
int decode_request(const char *buffer, uint32_t size, int fds, struct plan *plan, uint32_t *offset);
int decode_steps(const char **at, const char *end, int count, enum section section, int fds, struct step *out);
ssize_t receive_request(int socket, char *buffer, int *fds, int *fd_count);
int send_event(int socket, struct event *event, const void *data, uint32_t size, int fd);
ssize_t receive_listener(int socket, void *program, size_t space, int *fd);

/* steps.c */
uint32_t read_back(int fd, char *out, uint32_t space);
typedef int step_function(struct context *context, const struct step *step); /* 0 or -errno */
struct step_kind {
	const char *name;
	uint8_t ints, strings;
	uint8_t sections; /* bit per section that may hold it */
	uint8_t slots;    /* bit per number that is a slot */
	step_function *run;
};
const struct step_kind *step_kind(unsigned op);
void print_steps(void);
int run_steps(struct context *context, const struct step *step, int count, int *failed);
int slot_fd(const struct context *context, uint64_t slot);
int keep_fds(const int *fds, int count);
extern int launcher_pidfd, supervisor_pidfd, reports_fd, ended_fd, proc_fd;

/* mounts.c */
step_function step_root_tmpfs, step_root_tree, step_root_overlay, step_directory, step_link, step_file, step_node,
	step_mount, step_unmount, step_enter, step_devpts, step_owner, step_bind, step_bind_template, step_mask, step_read_only, step_remount, step_pivot_root, step_chroot, step_pty;
int enter_own_world(bool nested);
int open_proc(bool nested);
int open_below(int root, const char *path, int flags);
int open_root(struct context *context, const char *path, int flags);
int open_in_root(const struct context *context, const char *path, int flags);

/* workload.c */
step_function step_cgroup_join, step_session, step_pass_fd, step_rlimit, step_oom_score, step_affinity, step_close_fds, step_umask,
	step_bounding, step_identity, step_capabilities, step_no_new_privs, step_working_dir, step_exec, step_enter_user,
	step_seccomp, step_landlock, step_keyring;

/* refusals.c */
#define MAX_FILTER 4096 /* instructions: BPF_MAXINSNS */
int take_refusals(int handover, struct report *report, int *listener);
bool refusals_wait(int64_t now, int64_t *until);
enum refusal { REFUSAL_NONE, REFUSAL_ANSWERED, REFUSAL_KILLED, REFUSAL_KILL_ALL, REFUSAL_END };
enum refusal answer_refusal(int listener, int64_t now, pid_t workload);

/* main.c */
void forget_request(void);

/* keeper.c */
int become_kept(int first_client, int listening);

/* networks.c */
step_function step_loopback_up, step_network;
enum { NO_NETWORK = -2 }; /* not even asked for */
int take_network(int *fd);
void return_network(int number, bool shared);
bool networks_wanted(void);
void make_network(void);
void close_networks(void);

/* userns.c */
step_function step_ids, step_id_map, step_user_namespace;
int keep_rights(void);
int owner_of(pid_t pid, uint64_t flag);

/* init.c */
struct clone_arguments { /* linux/sched.h struct clone_args */
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
pid_t clone3_vm(struct clone_arguments *arguments, int (*entry)(void *), void *argument);
void die_with_launcher(void);
_Noreturn void give_up(int error);
_Noreturn void init_main(struct context *context, struct plan *plan);
int init_standalone(int argc, char **argv);
void block_all_signals(uint64_t *old);
int set_signal_mask(uint64_t mask);
void reset_dispositions(void);
void show_as(const char *comm, const char *title);
