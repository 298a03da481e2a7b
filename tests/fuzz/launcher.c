/* Target: the launcher as a whole, from its command line on: a supervisor's requests, one after another, and what becomes of the
 * containers meanwhile. What an init could make it read, be it taken over by a container, is in the answers: its report, and the
 * numbers in the pipe that they all write to. Nothing may be left open or allocated at the end. */
#define main launcher_main
#include <main.c>
#undef main
#include <steps.c>
#include <networks.c>
#define fail init_fail
#define usage init_usage
#include <init.c>
#include "kernel.h"

static const char command_line[] = "tinyvisor-launcher\0serve\0003\00077\0                                        ";

static void tamper_with_reports(void)
{
	for (int slot = 0; slot < MAX_FRAMES; slot++)
		if (ledger->at_slot[slot]) {
			if (draw(1))
				draw_bytes(report_of(slot), sizeof(struct report));
			else if (slot == 0)
				report_of(slot)->flags |= GONE_EMPTY; /* and the pipe says 0 */
		}
}

static void run_launcher(void)
{
	char words[sizeof command_line]; /* an init writes its title there */
	char *argv[] = {words, words + 19, words + 25, words + 27, words + 30, NULL};

	memcpy(words, command_line, sizeof words);
	world.self = 500;
	(void)launcher_main(5, argv);
	EXPECT(running == 0 && !cleaning);
	EXPECT(world.allocations == !!epilogue.cleanup);
}

static void forget_all(void)
{
	cleaning = NULL;
	epilogue = (struct container){0};
	running = 0;
	free_count = kept_count = 0;
	networks = NULL;
	idle_count = made = wanted = 0;
	ledger = NULL;
	own_report = NULL;
	control = signals = ended = launcher_pidfd = supervisor_pidfd = reports_fd = ended_fd = proc_fd = -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	start_world(data, size);
	world.before_wait = tamper_with_reports;
	EXPECT(open_fd(FD_OPEN, 3) == 3);
	if (ENTER_WORLD() == RUNNING)
		run_launcher();
	end_world();
	forget_all();
	return 0;
}
