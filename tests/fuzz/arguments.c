/* Target: the launcher's command line, that of its stand-alone init above all, which runs a command from there on. The first
 * message is the words, each with a NUL behind it. */
#define main launcher_main
#include <main.c>
#undef main
#include <keeper.c>
#include "kernel.h"

#define MAX_WORDS 64

static void run_command_line(void)
{
	const struct frame *message = world.messages;
	char *argv[MAX_WORDS + 2] = {0}, *copy, *end;
	int argc = 0;

	world.next_message = 1;
	if (!(copy = malloc(message->header.size + 1u)))
		return;
	memcpy(copy, message->data, message->header.size);
	end = copy + message->header.size;
	*end = 0;
	for (char *at = copy; at < end && argc < MAX_WORDS; at += strlen(at) + 1)
		argv[argc++] = at;
	optind = 0;
	opterr = 0;
	(void)launcher_main(argc, argv);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	start_world(data, size);
	if (!world.message_count)
		return 0;
	if (ENTER_WORLD() == RUNNING)
		run_command_line();
	end_world();
	title_start = title_end = NULL;
	running = free_count = 0;
	all = NULL;
	count = space = 0;
	return 0;
}
