/* Target: PID 1 while its workload runs: what it is told by the supervisor and by signals, wait statuses, the calls that the
 * workload's filter refuses, and the filter itself, CPU time. It must end, hit nobody else, and stay within its report. */
#include <init.c>
#include <refusals.c>
#include "kernel.h"

static struct report *page;

static void run_init(void)
{
	struct init init = {.tty = -1, .refusals = -1};
	int handover = open_fd(FD_OPEN, 3), *listener = malloc(sizeof *listener); /* so that a second one beside it is seen */
	const unsigned flags = (unsigned)draw(1);

	page = calloc(1, PAGE);
	if (!page || !listener)
		return;
	*listener = -1;
	page->refused_in_all = draw(1) & 1 ? 9990 : 0; /* of 10,000 that are answered at once */
	init.exec = flags & 1;
	world.self = init.exec ? 900 : 1;
	init.group = flags & 2;
	init.report = flags & 4 ? page : NULL;
	init.tells = flags & 2;
	init.signals = open_fd(FD_SIGNALS, 3);
	init.event = flags & 8 ? -1 : open_fd(FD_OPEN, 3);
	init.ended = flags & 16 && init.report ? open_fd(FD_OPEN, 3) : -1;
	if (init.ended >= 0) {
		init.counters[init.counter_count++] = open_fd(FD_OPEN, 3);
		init.counters[init.counter_count++] = -1;
	}
	init.cpu_usage = flags & 32 ? open_fd(FD_OPEN, 3) : -1;
	init.cpus = 1 + (unsigned)draw(2);
	init.cpu_limit = nanoseconds(draw(8));
	init.orphan_grace_ms = (unsigned)draw(4);
	init.orphan_signal = (int)draw(1);
	init.started = now();
	init.deadline = flags & 64 ? init.started + nanoseconds(draw(8)) : 0;
	if (flags & 128)
		(void)take_refusals(handover, page, listener);
	init.refusals = *listener;
	init.workload = fork();
	if (init.workload > 0)
		run(&init);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	start_world(data, size);
	memset(&own, 0, sizeof own);
	page = NULL;
	if (ENTER_WORLD() == RUNNING)
		run_init();
	if (page)
		EXPECT(page->refused_kinds <= MAX_REFUSED && ((struct page *)page)->size <= PAGE - sizeof *page - sizeof(uint32_t));
	end_world();
	return 0;
}
