/* A kernel for fuzzing: what the launcher's sources call instead of the real one, which is not touched. The driver compiles them,
 * this and the targets with -Dopen=fake_open and so on (CALLS in build.py), and links no source that calls anything else.
 *
 * An input is frames: {kind, fds, unused, size} and the bytes. A message is what recvmsg and recv give next; a file is what the
 * last fd of the message before it holds; the answers say of each call whether it fails and, where there is something to say,
 * what. A zero, and all where none are left, is that it succeeds, and that what is waited for comes: so every input ends. */
#pragma once
#define _GNU_SOURCE

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { FRAME_MESSAGE, FRAME_ANSWERS, FRAME_FILE, FRAME_KINDS };
#define MAX_FRAMES 64

struct frame_header {
	uint8_t kind;
	uint8_t fds; /* of a message */
	uint16_t unused;
	uint32_t size; /* bytes that follow; more than there are: all */
};

struct frame {
	struct frame_header header;
	const uint8_t *data;
};

int parse_frames(const uint8_t *data, size_t size, struct frame *frames);

enum fd_kind { FD_CLOSED, FD_OPEN, FD_FILE, FD_PIPE, FD_SIGNALS, FD_PIDFD, FD_PROC, FD_DEVPTS };
enum ending { RUNNING, EXITED, EXECUTED, SLEPT_FOR_EVER };

#define MAX_OPEN 1024
#define MAX_CHILDREN 256
#define PARENT 77 /* pid of who started us */

struct world {
	struct frame messages[MAX_FRAMES], files[MAX_FRAMES]; /* a file is at its message's index */
	int message_count, next_message;
	const uint8_t *answer, *answers_end;
	enum fd_kind fds[MAX_OPEN];
	bool swept[MAX_OPEN]; /* closed with many others, by one who need not know them */
	const struct frame *contents[MAX_OPEN];
	struct { pid_t pid; bool sleeps; } children[MAX_CHILDREN]; /* sleeps: till it is killed */
	int child_count;
	int visitors, stopped;
	int patience; /* how often none has ended yet, where no answer says so: there are messages to be read first */
	pid_t self, next_pid;
	bool clone_is_child; /* where no answer says otherwise */
	unsigned fsuid, fsgid;
	int64_t now; /* ns */
	unsigned calls;
	int allocations;           /* that are not freed yet */
	void (*before_wait)(void); /* what children left behind */
	jmp_buf out;
};
extern struct world world;

void start_world(const uint8_t *data, size_t size);
void end_world(void);
_Noreturn void leave_world(enum ending ending);
/* RUNNING: go on; else how what was begun so has ended. */
#define ENTER_WORLD() setjmp(world.out)

bool has_answers(void);
uint64_t draw(size_t bytes); /* 0 where nothing is left */
void draw_bytes(void *out, size_t size);
int open_fd(enum fd_kind kind, int least);
int count_open(void);

/* A sanitizer sees it where that isn't there. */
void touch(const void *data, size_t size);
void touch_string(const char *string);

#define EXPECT(condition) ((condition) ? (void)0 : broken(#condition, __FILE__, __LINE__))
_Noreturn void broken(const char *what, const char *file, int line);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
