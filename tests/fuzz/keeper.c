/* Target: the keeper of live mode: whoever may connect, and what they send. It holds what it was given, and nothing else. */
#include <keeper.c>
#include "kernel.h"

static void check_what_is_held(void)
{
	EXPECT(count <= (size_t)room + OWN_FDS && count <= space);
	for (size_t i = 0; i < count; i++)
		EXPECT(all[i].fd >= 0 && all[i].fd < MAX_OPEN && world.fds[all[i].fd] != FD_CLOSED);
	EXPECT(count_open() == 3 + 1 + (client >= 0) + (int)count);
	EXPECT(world.allocations == !!all);
}

static void run_keeper(void)
{
	int control, launcher;

	listener = open_fd(FD_OPEN, 3);
	client = open_fd(FD_OPEN, 3);
	control = open_fd(FD_OPEN, 3);
	launcher = open_fd(FD_PIDFD, 3);
	client_pid = PARENT;
	keep(control, launcher);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	start_world(data, size);
	if (ENTER_WORLD() == RUNNING)
		run_keeper();
	if (count >= OWN_FDS)
		check_what_is_held();
	end_world();
	all = NULL;
	count = space = 0;
	return 0;
}
