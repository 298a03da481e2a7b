/* How an input is changed where that shall have a meaning: whole frames, and in a request whole steps, numbers and strings, with
 * the lengths and counts made right again, which chance alone would hardly do. One change in eight is of mere bytes. */
#include "kernel.h"
#include <launcher.h>

#define ROOM (1u << 18)

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

struct draft { /* a step that may be wrong */
	uint16_t op;
	uint8_t section, ints, strings;
	uint64_t number[MAX_INTS];
	uint32_t size[MAX_STRINGS];
	const uint8_t *string[MAX_STRINGS];
};

static uint64_t state;

static unsigned chance(unsigned below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return below ? (unsigned)(state >> 33) % below : 0;
}

/* ---- a request ---- */

static struct request header;
static struct draft drafts[MAX_STEPS + 1];
static int draft_count;
static uint8_t strings[ROOM];

/* Returns where it ends, NULL where it is none. */
static const uint8_t *read_draft(const uint8_t *at, const uint8_t *end, struct draft *draft)
{
	if (end - at < 8)
		return NULL;
	memset(draft, 0, sizeof *draft);
	memcpy(&draft->op, at, 2);
	draft->ints = at[2];
	draft->strings = at[3];
	at += 8;
	if (draft->ints > MAX_INTS || draft->strings > MAX_STRINGS || end - at < draft->ints * 8)
		return NULL;
	memcpy(draft->number, at, draft->ints * 8u);
	at += draft->ints * 8;
	for (int i = 0; i < draft->strings; i++) {
		if (end - at < 4)
			return NULL;
		memcpy(&draft->size[i], at, 4);
		at += 4;
		if (draft->size[i] >= (size_t)(end - at))
			return NULL;
		draft->string[i] = at;
		at += draft->size[i] + 1;
	}
	return at;
}

/* As far as it can be understood; the rest is dropped. */
static void read_request(const uint8_t *data, size_t size)
{
	const uint8_t *at = data + sizeof header, *end = data + size;

	memcpy(&header, data, sizeof header);
	draft_count = 0;
	for (int section = 0; section < SECTIONS && at; section++)
		for (int i = 0; i < header.count[section] && draft_count < MAX_STEPS; i++) {
			at = read_draft(at, end, drafts + draft_count);
			if (!at)
				break;
			drafts[draft_count++].section = (uint8_t)section;
		}
}

static size_t write_draft(const struct draft *draft, uint8_t *out, size_t room)
{
	uint32_t length = 8 + draft->ints * 8u;
	uint8_t *at = out + 8;

	for (int i = 0; i < draft->strings; i++)
		length += draft->size[i] + 5;
	if (length > room)
		return 0;
	memcpy(out, &draft->op, 2);
	out[2] = draft->ints;
	out[3] = draft->strings;
	memcpy(out + 4, &length, 4);
	memcpy(at, draft->number, draft->ints * 8u);
	at += draft->ints * 8;
	for (int i = 0; i < draft->strings; i++) {
		memcpy(at, &draft->size[i], 4);
		if (draft->size[i])
			memcpy(at + 4, draft->string[i], draft->size[i]);
		at[4 + draft->size[i]] = 0;
		at += draft->size[i] + 5;
	}
	return length;
}

static size_t write_request(uint8_t *out, size_t room)
{
	size_t size = sizeof header;

	memset(header.count, 0, sizeof header.count);
	for (int section = 0; section < SECTIONS; section++)
		for (int i = 0; i < draft_count; i++) {
			size_t more = drafts[i].section == section ? write_draft(drafts + i, out + size, room - size) : 0;
			size += more;
			header.count[section] = (uint16_t)(header.count[section] + !!more);
		}
	header.magic = MAGIC;
	header.version = VERSION;
	header.length = (uint32_t)size;
	memcpy(out, &header, sizeof header);
	return size;
}

static void set_string(struct draft *draft, int which, const void *bytes, size_t size)
{
	static const size_t part = ROOM / MAX_STRINGS;
	uint8_t *own = strings + (size_t)which * part;

	if (size > part / 2)
		size = part / 2;
	if (size)
		memmove(own, bytes, size);
	draft->string[which] = own;
	draft->size[which] = (uint32_t)size;
}

static void change_string(struct draft *draft)
{
	const int which = draft->strings ? (int)chance(draft->strings) : -1;

	if (which < 0)
		return;
	set_string(draft, which, draft->string[which], draft->size[which]);
	draft->size[which] = (uint32_t)LLVMFuzzerMutate(strings + (size_t)which * (ROOM / MAX_STRINGS), draft->size[which], 4096 + 512);
}

static uint64_t some_number(void)
{
	static const uint64_t numbers[] = {0, 1, 2, 3, 4, 5, 255, 256, KEPT, KEPT | 1, KEPT | 31, 4096, 0x7fffffff, 0xffffffff, 0x20000,
					   1ull << 63, ~0ull};

	return numbers[chance(sizeof numbers / sizeof *numbers)];
}

static void change_number(struct draft *draft)
{
	const unsigned which = chance(draft->ints);

	if (!draft->ints)
		return;
	if (chance(2))
		draft->number[which] = some_number();
	else
		(void)LLVMFuzzerMutate((uint8_t *)&draft->number[which], 8, 8);
}

/* Of any kind, and where that kind may be. */
static void make_step(struct draft *draft)
{
	static const char *const some[] = {"", "/", "/proc", "/dev/null", "a/b/../c", "usr.bin", "mode=755,size=1", "/t/empty"};
	const struct step_kind *kind;
	unsigned op;

	do
		op = chance(64);
	while (!(kind = step_kind(op)));
	memset(draft, 0, sizeof *draft);
	draft->op = (uint16_t)op;
	draft->ints = kind->ints;
	draft->strings = kind->strings;
	do
		draft->section = (uint8_t)chance(SECTIONS);
	while (!(kind->sections & 1u << draft->section));
	for (int i = 0; i < kind->ints; i++)
		draft->number[i] = some_number();
	for (int i = 0; i < kind->strings; i++) {
		draft->string[i] = (const uint8_t *)some[chance(sizeof some / sizeof *some)];
		draft->size[i] = (uint32_t)strlen((const char *)draft->string[i]);
	}
}

static void remove_step(int which)
{
	draft_count--;
	memmove(drafts + which, drafts + which + 1, (size_t)(draft_count - which) * sizeof *drafts);
}

static void insert_step(int before, struct draft step)
{
	if (draft_count == MAX_STEPS)
		return;
	memmove(drafts + before + 1, drafts + before, (size_t)(draft_count - before) * sizeof *drafts);
	drafts[before] = step;
	draft_count++;
}

static void change_steps(void)
{
	struct draft made;
	const int which = (int)chance((unsigned)draft_count);

	make_step(&made);
	if (!draft_count || chance(8) == 0) {
		insert_step(which, made);
		return;
	}
	switch (chance(8)) {
	case 0:
		remove_step(which);
		break;
	case 1:
		insert_step((int)chance((unsigned)draft_count), drafts[which]);
		break;
	case 2:
		made = drafts[which];
		remove_step(which);
		insert_step((int)chance((unsigned)draft_count + 1), made);
		break;
	case 3:
	case 4:
	case 5:
		change_number(drafts + which);
		break;
	default:
		change_string(drafts + which);
	}
}

static size_t mutate_request(uint8_t *data, size_t size)
{
	static uint8_t copy[ROOM];

	memcpy(copy, data, size);
	read_request(copy, size);
	if (chance(8) == 0)
		(void)LLVMFuzzerMutate((uint8_t *)&header, sizeof header, sizeof header);
	else
		change_steps();
	return write_request(data, ROOM);
}

/* ---- frames ---- */

static struct frame frames[MAX_FRAMES + 1];
static int frame_count;

static void change_payload(struct frame *frame, size_t max_size)
{
	static uint8_t payload[ROOM];
	size_t size = frame->header.size < ROOM / 2 ? frame->header.size : ROOM / 2;
	uint32_t magic = 0;

	memcpy(payload, frame->data, size);
	if (size >= sizeof header)
		memcpy(&magic, payload, sizeof magic);
	if (frame->header.kind == FRAME_MESSAGE && magic == MAGIC && chance(8))
		size = mutate_request(payload, size);
	else if (frame->header.kind == FRAME_ANSWERS && size && chance(4)) /* one call fails, or says something else */
		payload[chance((unsigned)size)] = (uint8_t)(chance(4) ? 224 + chance(32) : chance(224));
	else if (size && chance(4) == 0) /* what has a fixed size */
		(void)LLVMFuzzerMutate(payload, size, size);
	else
		size = LLVMFuzzerMutate(payload, size, max_size < ROOM / 2 ? max_size : ROOM / 2);
	frame->data = payload;
	frame->header.size = (uint32_t)size;
}

static int find_answers(void)
{
	int at = 0;

	while (at < frame_count && frames[at].header.kind != FRAME_ANSWERS)
		at++;
	return at;
}

static void change_frames(size_t max_size)
{
	static const uint8_t nothing[200];
	const unsigned which = chance((unsigned)frame_count), other = chance((unsigned)frame_count);
	const struct frame one = frames[which];
	const int answers = find_answers();

	if (answers < frame_count && chance(3) == 0) {
		change_payload(frames + answers, max_size);
		return;
	}
	switch (chance(12)) {
	case 0:
		frames[frame_count] = one;
		frame_count += frame_count < MAX_FRAMES;
		break;
	case 1:
		frames[which] = frames[--frame_count];
		break;
	case 2:
		frames[which] = frames[other];
		frames[other] = one;
		break;
	case 3:
		frames[frame_count] = (struct frame){{(uint8_t)chance(FRAME_KINDS), (uint8_t)chance(8), 0, sizeof nothing}, nothing};
		frame_count += frame_count < MAX_FRAMES;
		break;
	case 4:
		frames[which].header.fds = (uint8_t)chance(70);
		break;
	default:
		change_payload(frames + which, max_size);
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	static uint8_t out[2 * ROOM];
	size_t done = 0;

	state = seed;
	frame_count = parse_frames(data, size, frames);
	if (!frame_count || chance(8) == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	change_frames(max_size);
	for (int i = 0; i < frame_count; i++) {
		const size_t more = sizeof frames[i].header + frames[i].header.size;
		if (done + more > max_size)
			continue;
		memcpy(out + done, &frames[i].header, sizeof frames[i].header);
		memcpy(out + done + sizeof frames[i].header, frames[i].data, frames[i].header.size);
		done += more;
	}
	if (!done)
		return LLVMFuzzerMutate(data, size, max_size);
	memcpy(data, out, done);
	return done;
}
