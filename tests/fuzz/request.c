/* Target: what the launcher receives, in whatever datagram, and what it makes of it. Accepted is only what the decoder has read
 * right: written anew from the steps, it must be the same bytes. */
#include "kernel.h"
#include <launcher.h>

#define CONTROL 3

static struct plan plan;
static char buffer[MAX_REQUEST];

static bool is_inside(const char *string, size_t size, const char *start, size_t length)
{
	return string >= start && string + size < start + length && string[size] == 0;
}

static char *write_step(char *out, const struct step *step, const struct step_kind *kind)
{
	uint32_t length = 8 + kind->ints * 8u;
	char *at = out + 8;

	for (int i = 0; i < kind->strings; i++)
		length += 4 + step->size[i] + 1;
	memcpy(out, &step->op, 2);
	out[2] = (char)kind->ints;
	out[3] = (char)kind->strings;
	memcpy(out + 4, &length, 4);
	memcpy(at, step->number, kind->ints * 8u);
	at += kind->ints * 8u;
	for (int i = 0; i < kind->strings; i++) {
		memcpy(at, &step->size[i], 4);
		memcpy(at + 4, step->string[i], step->size[i] + 1);
		at += 4 + step->size[i] + 1;
	}
	return at;
}

static void check_step(const struct step *step, int section, int fds, const char *start, size_t length)
{
	const struct step_kind *kind = step_kind(step->op);

	EXPECT(kind && kind->sections & 1u << section);
	for (int i = 0; i < kind->strings; i++)
		EXPECT(is_inside(step->string[i], step->size[i], start, length));
	for (int i = 0; i < kind->ints; i++)
		if (kind->slots & 1u << i)
			EXPECT(step->number[i] < (uint64_t)(section == SECTION_CLEANUP ? 0 : fds) ||
			       (step->number[i] >= KEPT && step->number[i] < KEPT + MAX_KEPT));
}

static void check_plan(const char *request, uint32_t size, int fds)
{
	char *written = malloc(size), *at;
	const char *cleanup = plan.cleanup;
	static struct step again[MAX_STEPS];
	int steps = 0;

	if (!written)
		return;
	at = written + sizeof(struct request);
	for (int section = 0; section < SECTIONS; section++)
		for (int i = 0; i < plan.count[section]; i++, steps++) {
			const struct step *step = plan.section[section] + i;
			EXPECT(step == plan.step + steps && steps < MAX_STEPS);
			check_step(step, section, fds, request, size);
			at = write_step(at, step, step_kind(step->op));
		}
	EXPECT(at == written + size && !memcmp(written + sizeof(struct request), request + sizeof(struct request), size - sizeof(struct request)));
	/* As it is done when the container has ended. */
	EXPECT(cleanup + plan.cleanup_size == request + size);
	EXPECT(decode_steps(&cleanup, request + size, plan.count[SECTION_CLEANUP], SECTION_CLEANUP, 0, again) == 0);
	EXPECT(cleanup == request + size);
	free(written);
}

static void check_request(const char *received, uint32_t size, int fds)
{
	char *request = malloc(size); /* of its own, so that a read past its end is seen */
	uint32_t offset = 0;
	int error;

	if (!request)
		return;
	memcpy(request, received, size);
	error = decode_request(request, size, fds, &plan, &offset);
	EXPECT(error <= 0 && offset <= size);
	if (!error) {
		EXPECT(offset == size);
		check_plan(request, size, fds);
	}
	free(request);
}

static void receive_all(void)
{
	int fds[MAX_FDS], count;
	ssize_t size;

	while ((size = receive_request(CONTROL, buffer, fds, &count)) != 0) {
		EXPECT(count >= 0 && count <= MAX_FDS && size <= MAX_REQUEST);
		EXPECT(count_open() == 4 + count);
		if (size > 0)
			check_request(buffer, (uint32_t)size, count);
		for (int i = 0; i < count; i++)
			close(fds[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	start_world(data, size);
	EXPECT(open_fd(FD_OPEN, CONTROL) == CONTROL);
	if (ENTER_WORLD() == RUNNING)
		receive_all();
	end_world();
	return 0;
}
