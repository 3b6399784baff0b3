/* SPDX-License-Identifier: MIT */
#include "fault_cells.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define COUNT(a) ((unsigned)(sizeof(a) / sizeof(*(a))))

static const char *const to_dest[] = {"HELLO",	   "PING",  "PAGES", "JOIN",
				      "ROUND_END", "STATE", "PROOF", "COMMIT"};
static const char *const to_source[] = {"HELLO_OK", "PONG", "ROUND_ACK", "READY", "RUNNING"};
#define N_FRAMES (COUNT(to_dest) + COUNT(to_source))

/* One kind on one side. */
static const struct row {
	const char *kind;
	enum fault_side sides;
	const char *place[2]; /* both in turn; none: at each kind of frame */
	/* Places that are come to often: which time, up to `last`, every `step`. */
	unsigned last, step;
	enum fault_end ends;
	const char *says;
} rows[] = {
	{.kind = "kill", .sides = AT_SOURCE},
	{.kind = "kill", .sides = AT_DEST},
	{.kind = "cut", .sides = AT_SOURCE},
	{.kind = "cut", .sides = AT_DEST},
	{.kind = "delay", .sides = AT_SOURCE},
	{.kind = "delay", .sides = AT_DEST},
	{.kind = "wire", .sides = AT_SOURCE},
	{.kind = "wire", .sides = AT_DEST},
	{"refuse", AT_SOURCE, {"kvm"}, 60, 1, ENDS_ANYHOW, NULL},
	{"refuse", AT_DEST, {"kvm"}, 60, 1, ENDS_ANYHOW, NULL},
	{"enomem", AT_SOURCE, {"alloc"}, 60, 1, ENDS_ANYHOW, NULL},
	{"enomem", AT_DEST, {"alloc"}, 60, 1, ENDS_ANYHOW, NULL},
	{"short", AT_SOURCE, {"send"}, 12, 1, ENDS_MOVED, NULL},
	{"short", AT_DEST, {"send"}, 12, 1, ENDS_MOVED, NULL},
	{"ram", AT_DEST, {"stored"}, 2000, 200, ENDS_ANYHOW, NULL},
	{"dirty", AT_SOURCE, {"harvest"}, 300, 20, ENDS_ANYHOW, NULL},
	/* Its last sync has to succeed for a move; all others are the guest's affair. */
	{"eio", AT_SOURCE, {"disk"}, 60, 3, ENDS_MOVED, NULL},
	{"eio", AT_SOURCE, {"sync"}, 6, 1, ENDS_ANYHOW, "does not come to rest"},
	{"eio", AT_SOURCE, {"own-sync"}, 2, 1, ENDS_ANYHOW, "does not come to rest"},
	{"eio", AT_DEST, {"disk"}, 60, 6, ENDS_MOVED, NULL},
	{"eio", AT_DEST, {"sync"}, 3, 1, ENDS_MOVED, NULL},
	{"slow", AT_SOURCE, {"disk", "sync"}, 9, 3, ENDS_MOVED, NULL},
	{"slow", AT_DEST, {"disk", "sync"}, 2, 1, ENDS_MOVED, NULL},
	{"hang", AT_SOURCE, {"disk", "sync"}, 5, 2, ENDS_LATE, "does not come to rest"},
	{"eio", AT_DEST, {"open"}, 3, 1, ENDS_FAILED, "Input/output error"},
	{"eio", AT_DEST, {"lock"}, 1, 1, ENDS_FAILED, "cannot be locked"},
	{"eio", AT_BOTH, {"lock"}, 1, 1, ENDS_UNCERTAIN, "and then: disk "},
	{"enospc", AT_SOURCE, {"leave"}, 1, 1, ENDS_MOVED, NULL},
};

static bool is_at(const struct row *r, const char *place)
{
	return r->place[0] && strcmp(r->place[0], place) == 0;
}

static unsigned places(const struct row *r)
{
	return r->place[1] ? 2 : 1;
}

static unsigned size_of(const struct row *r)
{
	return r->place[0] ? places(r) * ((r->last + r->step - 1) / r->step) : N_FRAMES;
}

static struct cell frame_cell(const struct row *r, unsigned frame)
{
	bool forth = frame < COUNT(to_dest);
	struct cell c = {.sides = r->sides, .kill = strcmp(r->kind, "kill") == 0};

	snprintf(c.fault, sizeof(c.fault), "%s@%s-%s", r->kind,
		 forth == (r->sides == AT_DEST) ? "recv" : "send",
		 forth ? to_dest[frame] : to_source[frame - COUNT(to_dest)]);
	return c;
}

static struct cell row_cell(const struct row *r, unsigned i)
{
	bool image = is_at(r, "open") || is_at(r, "lock");
	struct cell c = {
		.sides = r->sides,
		.ends = r->ends,
		.says = r->says,
		.names_disk = image,
		.told = strcmp(r->kind, "eio") == 0 && !image,
		.leave = is_at(r, "leave"),
	};

	if (!r->place[0])
		return frame_cell(r, i);
	snprintf(c.fault, sizeof(c.fault), "%s@%s#%u", r->kind, r->place[i % places(r)],
		 1 + i / places(r) * r->step);
	return c;
}

/* Where a row begins. */
static unsigned first_of(unsigned row)
{
	unsigned first = 0;

	for (unsigned i = 0; i < row; i++)
		first += size_of(&rows[i]);
	return first;
}

unsigned fault_cells(void)
{
	return first_of(COUNT(rows));
}

struct cell fault_cell(unsigned i)
{
	const struct row *r = rows;

	for (; i >= size_of(r); r++)
		i -= size_of(r);
	return row_cell(r, i);
}

unsigned fault_pick(unsigned move, unsigned moves)
{
	unsigned cells = fault_cells(), row = move, rest = moves - COUNT(rows);

	if (moves >= cells)
		return move;
	if (moves < COUNT(rows))
		row = move * COUNT(rows) / moves;
	else if (move >= COUNT(rows))
		return (2 * (move - COUNT(rows)) + 1) * cells / (2 * rest);
	/* Not the same frame for all kinds. */
	return first_of(row) + row * 5 % size_of(&rows[row]);
}
