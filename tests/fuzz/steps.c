/* Target: the steps of a plan, run as the launcher, init and the workload run them. Each string of a step is in memory of its own:
 * a read past its end is seen. */
#include <init.c>
#include "kernel.h"

static struct plan plan;

static void move_strings(void)
{
	for (int section = 0; section < SECTIONS; section++)
		for (int i = 0; i < plan.count[section]; i++) {
			struct step *step = plan.step + (plan.section[section] - plan.step) + i;
			for (int s = 0; s < step_kind(step->op)->strings; s++) {
				char *copy = malloc(step->size[s] + 1u);
				if (!copy)
					leave_world(EXITED);
				step->string[s] = memcpy(copy, step->string[s], step->size[s] + 1u);
			}
		}
}

/* As prepare() of main.c. */
static void run_prepare(const int *fds, int count)
{
	struct context context = {.root = open_fd(FD_OPEN, 3), .user_namespace = -1, .handover = -1, .fds = fds, .fd_count = count};
	const int before = count_open();
	int failed;

	(void)run_steps(&context, plan.section[SECTION_LAUNCHER], plan.count[SECTION_LAUNCHER], &failed);
	EXPECT(count_open() == before + (context.user_namespace >= 0));
}

/* As launch() of main.c. */
static void run_launch(const struct request *request, int *fds, int count)
{
	struct context context = {.event = fds[0], .stdio = {fds[1], fds[2], fds[3]}, .fds = fds, .fd_count = count,
				  .joined = draw(1) & 1 ? -ESRCH : open_fd(FD_PIDFD, 3), .joined_pid = (pid_t)request->pid, .root = -1,
				  .cgroup = -1, .user_namespace = -1, .tty = -1, .handover = -1, .id = request->id, .cpu_usage = -1, .null = -1,
				  .park = request->flags & FLAG_PARK, .exec = request->flags & FLAG_EXEC};

	world.clone_is_child = true;
	world.self = context.exec ? world.next_pid : 1;
	init_main(&context, &plan);
}

static void run_plan(void)
{
	int fds[MAX_FDS], kept[4], count;
	uint32_t offset;
	struct request request;
	const struct frame *first = world.messages;
	char *copy;

	scratch = mmap(NULL, sizeof *scratch, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (scratch == MAP_FAILED || !world.message_count || first->header.size < sizeof request)
		return;
	memcpy(&request, first->data, sizeof request);
	count = request.fds < MAX_FDS ? request.fds : MAX_FDS;
	launcher_pidfd = open_fd(FD_PIDFD, 3);
	supervisor_pidfd = open_fd(FD_PIDFD, 3);
	reports_fd = open_fd(FD_OPEN, 3);
	ended_fd = open_fd(FD_OPEN, 3);
	proc_fd = open_fd(FD_PROC, 3);
	for (int i = 0; i < 4; i++)
		kept[i] = open_fd(FD_OPEN, 3);
	(void)keep_fds(kept, 4); /* -E2BIG after some inputs: it has them for ever */
	for (int i = 0; i < count; i++)
		fds[i] = open_fd(FD_OPEN, 3);
	copy = malloc(first->header.size);
	if (!copy)
		return;
	memcpy(copy, first->data, first->header.size);
	world.next_message = 1;
	if (decode_request(copy, first->header.size, count, &plan, &offset))
		return;
	move_strings();
	if (request.type == REQUEST_PREPARE)
		run_prepare(fds, count);
	else if (request.type == REQUEST_LAUNCH)
		run_launch(&request, fds, count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	start_world(data, size);
	if (ENTER_WORLD() == RUNNING)
		run_plan();
	end_world();
	own_report = NULL;
	return 0;
}
