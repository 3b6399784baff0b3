/* SPDX-License-Identifier: MIT */
/*
 * hostile: rings as no driver should write them, on every device. What it prints is in contract.h.
 *
 * All queues of a device have small rings in one area, and in it are the buffers as well. Around
 * and in it nothing may change but what was offered: used rings, and the writable part of the
 * honest request. The rest of the area, and pages on both sides of it, hold a pattern.
 */

#include "contract.h"
#include "virtio_dev.h"

#define RING 16u /* entries */
#define MAX_QUEUES 18u
#define PARTS 4u
#define ANSWER_US 5000000ul

/* Features without which a balloon does not look at its queues (virtio 1.2, section 5.5). */
#define BALLOON_QUEUES (VDEV_F(1) | VDEV_F(5))
#define BALLOON_STATS 2u

#define HOLE 0xd0000000ul
#define ABOVE (1ul << 32)
#define END (~0ul)

/* Flags of descriptors. */
#define N 1u
#define W 2u
#define I 4u

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct rings {
	struct desc desc[RING];
	uint16_t avail[2 + RING + 1], pad[13];
	uint16_t used[2 + 4 * RING + 1], pad2[29];
};

/* All that devices are told of. */
struct area {
	uint8_t before[4 * RT_PAGE_SIZE];
	struct rings queue[MAX_QUEUES];
	struct desc table[RING + 1];
	uint8_t buffer[4096];
	uint8_t after[4 * RT_PAGE_SIZE];
};

static struct {
	struct area *area, *copy;
	struct vdev dev;
	uint32_t id, queues;
	uint64_t ram_end;
	uint64_t devices, tried, errors;
	uint64_t end; /* clock at which it ends by itself; 0: never */
	bool quit;
	const char *what;
	uint64_t queue;
} hostile;

static void error(const char *why)
{
	if (hostile.errors++ < BARE_MAX_ERRORS)
		rt_printf(BARE_HOSTILE_ERROR "slot=%u id=%u queue=%lu what=\"%s\" why=\"%s\"\n",
			  hostile.dev.slot, hostile.id, hostile.queue, hostile.what, why);
}

/* --- Rings --- */

static void place(uint32_t queue)
{
	struct rings *r = &hostile.area->queue[queue];

	memset(r, 0, sizeof(*r));
	if (!vdev_place(&hostile.dev, queue, RING, (uint64_t)r->desc, (uint64_t)r->avail,
			(uint64_t)r->used))
		error("a queue does not become ready");
}

/* Reset, negotiated, and all queues but one in their places. */
static void start(uint64_t features, uint32_t without)
{
	if (hostile.id == VDEV_BALLOON)
		features |= BALLOON_QUEUES;
	vdev_start(&hostile.dev, hostile.dev.slot, features);
	memset(hostile.area, 0xa5, sizeof(*hostile.area));
	for (uint32_t i = 0; i < hostile.queues; i++) {
		if (i != without)
			place(i);
	}
}

static void go(void)
{
	vdev_ready(&hostile.dev);
}

static void offer(uint32_t queue, uint16_t head)
{
	volatile uint16_t *avail = hostile.area->queue[queue].avail;

	avail[2 + avail[1] % RING] = head;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	avail[1]++;
}

static uint16_t used_idx(uint32_t queue)
{
	return *(volatile uint16_t *)&hostile.area->queue[queue].used[1];
}

/* Until the device asks for its reset (true), or has given `want` chains back. */
static bool wait_answer(uint32_t queue, uint16_t want)
{
	uint64_t start_tsc = rt_tsc();

	while (!vdev_needs_reset(&hostile.dev)) {
		if (want && used_idx(queue) == want)
			return false;
		if (rt_tsc() - start_tsc > rt_us_to_cycles(ANSWER_US)) {
			error("neither an answer nor a wish for a reset");
			return false;
		}
		rt_relax();
	}
	return true;
}

static bool differs(const void *now, const void *end)
{
	uint64_t at = (uint64_t)((const uint8_t *)now - (const uint8_t *)hostile.area);

	return memcmp(now, (const uint8_t *)hostile.copy + at,
		      (uint64_t)((const uint8_t *)end - (const uint8_t *)now)) != 0;
}

/*
 * Of the area only used rings, where a device may just be storing, may have changed, and `len`
 * bytes of the buffer from `from` on.
 */
static void look_for_stores(uint64_t from, uint64_t len)
{
	const struct area *a = hostile.area;
	const void *at = a;
	bool stored = false;

	for (uint32_t i = 0; i < MAX_QUEUES; i++) {
		stored |= differs(at, a->queue[i].used);
		at = a->queue[i].pad2;
	}
	stored |= differs(at, a->buffer + from);
	stored |= differs(a->buffer + from + len, a + 1);
	if (stored)
		error("a store where nothing was offered");
}

static void remember(void)
{
	memcpy(hostile.copy, hostile.area, sizeof(*hostile.area));
}

/* --- Honest requests --- */

/* Of a device: which queue, bytes to read first, bytes to write, and what these have to be. */
struct honest {
	uint32_t id, queue, out, in;
};

static const struct honest honest_requests[] = {
	{VDEV_NET, 1, 12 + 60, 0}, {VDEV_BLK, 0, 16, 513},  {VDEV_CONSOLE, 1, 5, 0},
	{VDEV_RNG, 0, 0, 64},	   {VDEV_BALLOON, 1, 4, 0}, {VDEV_VSOCK, 1, 44, 0},
};

static const struct honest *honest_of(uint32_t id)
{
	for (uint32_t i = 0; i < sizeof(honest_requests) / sizeof(honest_requests[0]); i++) {
		if (honest_requests[i].id == id)
			return &honest_requests[i];
	}
	return NULL;
}

static void set_desc(struct desc *d, uint64_t addr, uint32_t len, uint32_t flags, uint32_t next)
{
	*d = (struct desc){
		.addr = addr, .len = len, .flags = (uint16_t)flags, .next = (uint16_t)next};
}

/* Zeros are right for all: a read of sector 0, a frame, a packet of no type, page number 0. */
static bool works(const struct honest *h)
{
	struct area *a = hostile.area;
	struct desc *d = a->queue[h->queue].desc;
	uint64_t in = (uint64_t)a->buffer + 1024;
	bool asked;

	start(VDEV_F_INDIRECT | VDEV_F_EVENT_IDX, ~0u);
	go();
	memset(a->buffer, 0, 1024);
	if (h->out)
		set_desc(&d[0], (uint64_t)a->buffer, h->out, h->in ? N : 0, 1);
	if (h->in)
		set_desc(&d[h->out ? 1 : 0], in, h->in, W, 0);
	remember();
	a->queue[h->queue].avail[2] = 0;
	hostile.copy->queue[h->queue].avail[2] = 0;
	hostile.copy->queue[h->queue].avail[1] = 1;
	offer(h->queue, 0);
	vdev_kick(&hostile.dev, h->queue);
	asked = wait_answer(h->queue, 1);
	look_for_stores(1024, h->in);
	if (asked || used_idx(h->queue) != 1) {
		error("after the reset it does not work");
		return false;
	}
	if (h->id == VDEV_BLK && a->buffer[1024 + 512] != 0) {
		error("after the reset a read fails");
		return false;
	}
	return true;
}

/* --- What is done to them --- */

/* Places: relative to the buffer, to the table, to the end of RAM, or as they are. */
enum base { BUF, TABLE, RAM, RAW };

struct part {
	enum base base;
	uint64_t at;
	uint32_t len, flags, next;
};

static const struct {
	const char *what;
	uint32_t head;
	struct part desc[PARTS], table[PARTS];
	bool may_work; /* a ring that is right; what it means is up to the device */
} chains[] = {
	{"a head beyond the ring", RING, {{0}}, {{0}}, false},
	{"a head far beyond the ring", 0xffff, {{0}}, {{0}}, false},
	{"next beyond the ring", 0, {{BUF, 0, 1, N, RING}}, {{0}}, false},
	{"next far beyond the ring", 0, {{BUF, 0, 1, N, 0xffff}}, {{0}}, false},
	{"a circle of one", 0, {{BUF, 0, 1, N, 0}}, {{0}}, false},
	{"a circle of one to write", 0, {{BUF, 0, 1, N | W, 0}}, {{0}}, false},
	{"a circle of no bytes", 0, {{BUF, 0, 0, N, 0}}, {{0}}, false},
	{"a circle of two", 0, {{BUF, 0, 1, N, 1}, {BUF, 0, 1, N, 0}}, {{0}}, false},
	{"a circle off the head",
	 0,
	 {{BUF, 0, 1, N, 1}, {BUF, 0, 1, N, 2}, {BUF, 0, 1, N, 1}},
	 {{0}},
	 false},
	{"the end of RAM", 0, {{RAM, 0, 1, W, 0}}, {{0}}, false},
	{"across the end of RAM", 0, {{RAM, END, 2, 0, 0}}, {{0}}, false},
	{"across the end of RAM, to write", 0, {{RAM, END, 2, W, 0}}, {{0}}, false},
	{"the device's own registers", 0, {{RAW, HOLE, 4, W, 0}}, {{0}}, false},
	{"above 4 GiB", 0, {{RAW, ABOVE, 4, W, 0}}, {{0}}, false},
	{"the end of the address space", 0, {{RAW, END, 1, 0, 0}}, {{0}}, false},
	{"around the address space", 0, {{RAW, END, 2, W, 0}}, {{0}}, false},
	{"far around the address space", 0, {{RAW, END - 0xffff, ~0u, W, 0}}, {{0}}, false},
	{"2^32 - 1 bytes", 0, {{BUF, 0, ~0u, W, 0}}, {{0}}, false},
	{"2^32 - 1 bytes to read", 0, {{BUF, 0, ~0u, 0, 0}}, {{0}}, false},
	{"no bytes", 0, {{BUF, 0, 0, 0, 0}}, {{0}}, true},
	{"no bytes to write", 0, {{BUF, 0, 0, W, 0}}, {{0}}, true},
	{"no bytes outside RAM", 0, {{RAW, END, 0, 0, 0}}, {{0}}, false},
	{"to read behind to write", 0, {{BUF, 0, 1, W | N, 1}, {BUF, 0, 1, 0, 0}}, {{0}}, false},
	{"unknown flags", 0, {{BUF, 0, 1, 0xfff8, 0}}, {{0}}, true},
	{"all flags", 0, {{TABLE, 0, 16, 0xffff, 0}}, {{BUF, 0, 1, 0, 0}}, false},
	{"a table and a next", 0, {{TABLE, 0, 16, I | N, 1}, {BUF, 0, 1, 0, 0}}, {{0}}, false},
	{"a table of no bytes", 0, {{TABLE, 0, 0, I, 0}}, {{0}}, false},
	{"a table of 8 bytes", 0, {{TABLE, 0, 8, I, 0}}, {{0}}, false},
	{"a table of 17 bytes", 0, {{TABLE, 0, 17, I, 0}}, {{0}}, false},
	{"a table longer than the ring", 0, {{TABLE, 0, 16 * (RING + 1), I, 0}}, {{0}}, false},
	{"a table of 4 GiB", 0, {{TABLE, 0, ~15u, I, 0}}, {{0}}, false},
	{"a table outside RAM", 0, {{RAM, 0, 16, I, 0}}, {{0}}, false},
	{"a table across the end of RAM", 0, {{RAM, END - 7, 16, I, 0}}, {{0}}, false},
	{"a table across the address space", 0, {{RAW, END - 7, 16, I, 0}}, {{0}}, false},
	{"a table in a table", 0, {{TABLE, 0, 32, I, 0}}, {{TABLE, 16, 16, I, 0}}, false},
	{"a table in a table, second",
	 0,
	 {{TABLE, 0, 32, I, 0}},
	 {{BUF, 0, 1, N, 1}, {TABLE, 0, 16, I, 0}},
	 false},
	{"a circle in a table",
	 0,
	 {{TABLE, 0, 32, I, 0}},
	 {{BUF, 0, 1, N, 1}, {BUF, 0, 1, N, 0}},
	 false},
	{"next beyond a table", 0, {{TABLE, 0, 32, I, 0}}, {{BUF, 0, 1, N, 2}}, false},
	{"a table's buffer outside RAM", 0, {{TABLE, 0, 16, I, 0}}, {{RAM, 0, 1, W, 0}}, false},
};

static const uint16_t jumps[] = {RING + 1, RING + 2, 0x7fff, 0x8000, 0xffff};

/* Rings in places where they cannot be, and of sizes that there are not. */
static const struct {
	const char *what;
	enum base base[3];
	uint64_t at[3];
	uint32_t size;
} places[] = {
	{"descriptors at the end of RAM", {RAM, BUF, BUF}, {END - 15, 0, 1024}, RING},
	{"an available ring across the end of RAM", {BUF, RAM, BUF}, {0, END - 1, 1024}, RING},
	{"a used ring across the end of RAM", {BUF, BUF, RAM}, {0, 512, END - 3}, RING},
	{"a used ring in the device's registers", {BUF, BUF, RAW}, {0, 512, HOLE}, RING},
	{"a used ring above 4 GiB", {BUF, BUF, RAW}, {0, 512, ABOVE}, RING},
	{"descriptors at the end of all", {RAW, BUF, BUF}, {END - 15, 0, 1024}, RING},
	{"descriptors that are not aligned", {BUF, BUF, BUF}, {8, 512, 1024}, RING},
	{"an available ring that is not aligned", {BUF, BUF, BUF}, {0, 513, 1024}, RING},
	{"a used ring that is not aligned", {BUF, BUF, BUF}, {0, 512, 1026}, RING},
	{"a size of 0", {BUF, BUF, BUF}, {0, 512, 1024}, 0},
	{"a size of 3", {BUF, BUF, BUF}, {0, 512, 1024}, 3},
	{"a size of 65536", {BUF, BUF, BUF}, {0, 512, 1024}, 65536},
	{"a size of 2^32 - 1", {BUF, BUF, BUF}, {0, 512, 1024}, ~0u},
	{"more than the largest size", {BUF, BUF, BUF}, {0, 512, 1024}, 32768},
};

static uint64_t address(enum base base, uint64_t at)
{
	switch (base) {
	case BUF:
		return (uint64_t)hostile.area->buffer + at;
	case TABLE:
		return (uint64_t)hostile.area->table + at;
	case RAM:
		return hostile.ram_end + at;
	default:
		return at;
	}
}

/* Behind RAM END is its last byte. */
static void write_parts(struct desc *d, const struct part *p)
{
	for (uint32_t i = 0; i < PARTS; i++)
		set_desc(&d[i], address(p[i].base, p[i].at), p[i].len, p[i].flags, p[i].next);
}

static bool try_chain(uint32_t queue, uint32_t i)
{
	struct area *a = hostile.area;

	hostile.what = chains[i].what;
	start(VDEV_F_INDIRECT | (i & 1 ? VDEV_F_EVENT_IDX : 0), ~0u);
	write_parts(a->queue[queue].desc, chains[i].desc);
	write_parts(a->table, chains[i].table);
	offer(queue, (uint16_t)chains[i].head);
	go();
	remember();
	vdev_kick(&hostile.dev, queue);
	if (wait_answer(queue, chains[i].may_work ? 1 : 0)) {
		if (!chains[i].may_work && used_idx(queue) != 0)
			error("it is given back");
		look_for_stores(0, 0);
		return true;
	}
	look_for_stores(0, 0);
	return false;
}

static bool try_jump(uint32_t queue, uint16_t idx)
{
	bool asked;

	hostile.what = "an index that jumps";
	start(0, ~0u);
	go();
	hostile.area->queue[queue].avail[1] = idx;
	remember();
	vdev_kick(&hostile.dev, queue);
	asked = wait_answer(queue, 0);
	look_for_stores(0, 0);
	return asked;
}

static bool try_place(uint32_t queue, uint32_t i)
{
	bool asked;

	hostile.what = places[i].what;
	start(VDEV_F_EVENT_IDX, queue);
	remember();
	if (vdev_place(&hostile.dev, queue, places[i].size,
		       address(places[i].base[0], places[i].at[0]),
		       address(places[i].base[1], places[i].at[1]),
		       address(places[i].base[2], places[i].at[2])))
		error("a queue becomes ready");
	asked = vdev_needs_reset(&hostile.dev);
	if (!asked)
		error("it does not ask for a reset");
	go();
	vdev_kick(&hostile.dev, queue);
	look_for_stores(0, 0);
	return asked;
}

/*
 * The index is where the device says whether it wants kicks. The ring is used once, elsewhere,
 * so that the device is at 1, which is what it will read there after each look.
 */
static bool try_overlap(const struct honest *h)
{
	struct rings *r = &hostile.area->queue[h->queue];
	bool asked;

	hostile.what = "rings that overlap";
	start(0, ~0u);
	go();
	memset(hostile.area->buffer, 0, 1024);
	if (h->out)
		set_desc(&r->desc[0], (uint64_t)hostile.area->buffer, h->out, h->in ? N : 0, 1);
	if (h->in)
		set_desc(&r->desc[h->out ? 1 : 0], (uint64_t)hostile.area->buffer + 1024, h->in, W,
			 0);
	offer(h->queue, 0);
	vdev_kick(&hostile.dev, h->queue);
	if (wait_answer(h->queue, 1))
		error("an honest request makes it ask for a reset");
	vdev_unplace(&hostile.dev, h->queue);
	memset(r->used, 0, sizeof(r->used));
	if (!vdev_place(&hostile.dev, h->queue, RING, (uint64_t)r->desc, (uint64_t)r->used + 2,
			(uint64_t)r->used + 4))
		rt_panic("rings that overlap are refused");
	vdev_kick(&hostile.dev, h->queue);
	asked = wait_answer(h->queue, 0);
	return asked;
}

/* --- All of it --- */

static void try_queue(const struct honest *h, uint32_t queue)
{
	uint64_t tried = 0, asked = 0, well = 0, before = hostile.errors;

	hostile.queue = queue;
	for (uint32_t i = 0; i < sizeof(chains) / sizeof(chains[0]); i++) {
		/* What is right there is kept for seconds. */
		if (hostile.id == VDEV_BALLOON && queue == BALLOON_STATS && chains[i].may_work)
			continue;
		asked += try_chain(queue, i);
		well += works(h);
		tried++;
	}
	for (uint32_t i = 0; i < sizeof(jumps) / sizeof(jumps[0]); i++, tried++) {
		asked += try_jump(queue, jumps[i]);
		well += works(h);
	}
	for (uint32_t i = 0; i < sizeof(places) / sizeof(places[0]); i++, tried++) {
		asked += try_place(queue, i);
		well += works(h);
	}
	if (queue == h->queue) {
		asked += try_overlap(h);
		well += works(h);
		tried++;
	}
	hostile.tried += tried;
	rt_printf(BARE_HOSTILE_DEVICE_FMT "\n", (uint64_t)hostile.dev.slot, (uint64_t)hostile.id,
		  (uint64_t)queue, tried, asked, well, hostile.errors - before);
}

static void look_for_quit(void)
{
	if (rt_getc() == BARE_CMD_QUIT || (hostile.end && rt_tsc() >= hostile.end))
		hostile.quit = true;
}

/* A queue whose chains the device looks at only once it has something to say is not tried. */
static bool looked_at(uint32_t id, uint32_t queue)
{
	switch (id) {
	case VDEV_NET:
	case VDEV_VSOCK:
		return queue == 1;
	default:
		return true;
	}
}

static void try_device(uint32_t slot)
{
	const struct honest *h;

	hostile.dev.slot = slot;
	hostile.id = vdev_id(slot);
	h = honest_of(hostile.id);
	if (!h)
		return;
	hostile.devices++;
	hostile.what = "nothing yet";
	vdev_start(&hostile.dev, slot, 0);
	hostile.queues = 0;
	while (hostile.queues < MAX_QUEUES && vdev_queue_max(&hostile.dev, hostile.queues))
		hostile.queues++;
	works(h);
	for (uint32_t q = 0; q < hostile.queues && !hostile.quit; q++) {
		if (looked_at(hostile.id, q))
			try_queue(h, q);
		look_for_quit();
	}
	vdev_reset(slot);
}

static void try_all(void)
{
	hostile.devices = 0;
	for (uint32_t slot = 0; slot < VDEV_SLOTS && !hostile.quit; slot++) {
		if (vdev_id(slot))
			try_device(slot);
	}
}

static void run(void)
{
	uint64_t rounds = rt_option("rounds", 1), secs = rt_option("secs", 0);

	if (secs)
		hostile.end = rt_tsc() + rt_us_to_cycles(secs * 1000000);
	for (uint32_t i = 0; i < rt.nr_ram; i++) {
		if (rt.ram[i].base + rt.ram[i].size > hostile.ram_end)
			hostile.ram_end = rt.ram[i].base + rt.ram[i].size;
	}
	hostile.area = rt_alloc(sizeof(*hostile.area));
	hostile.copy = rt_alloc(sizeof(*hostile.copy));
	for (uint64_t i = 0; (rounds == 0 || i < rounds) && !hostile.quit; i++)
		try_all();
	rt_printf(BARE_HOSTILE_DONE_FMT "\n", hostile.devices, hostile.tried, hostile.errors);
	rt_poweroff();
}

const struct rt_payload rt_payload = {.name = "hostile", .main = run};
