/* SPDX-License-Identifier: MIT */
/*
 * blkbench: keeps a virtio disk busy and counts. The options and the output are in contract.h.
 *
 * One CPU polls the ring; what has come back is checked and sent out again for another place at
 * once, so the depth is always the same. It does little for a request, and the same in every
 * machine.
 */

#include "contract.h"
#include "virtio_dev.h"

#define BLK_FLUSH VDEV_F(9) /* a driver that knows it leaves writes to the device's cache */
#define T_IN 0u
#define T_OUT 1u
#define S_OK 0u
#define S_NONE 0xffu /* what no device answers */
#define SECTOR 512ul

#define MAX_DEPTH 64u
#define MAX_SIZE (1ul << 20)
#define STALL_US 10000000

struct request {
	uint64_t *header; /* and the status behind it */
	uint8_t *status;
	uint8_t *data;
	uint64_t place; /* in units */
	uint64_t start; /* cycles */
};

static struct {
	struct vdev dev;
	struct vring ring;
	struct request requests[MAX_DEPTH];
	uint32_t depth;
	bool write, random;
	uint64_t size, units;  /* of a request; units in it */
	uint64_t places, next; /* requests that the disk has room for; of a sequence */
	uint64_t seed;

	uint64_t count, slowest, errors;
	uint64_t last; /* cycles: when the last one came back */
} bench;

static void find_disk(void)
{
	uint64_t capacity;
	uint32_t slot = 0;

	while (slot < VDEV_SLOTS && vdev_id(slot) != VDEV_BLK)
		slot++;
	if (slot == VDEV_SLOTS)
		rt_skip("no virtio-mmio disk");
	vdev_start(&bench.dev, slot, BLK_FLUSH | VDEV_F_INDIRECT | VDEV_F_EVENT_IDX);
	capacity = vdev_config(&bench.dev, 0, 8);
	bench.places = capacity / (bench.size / SECTOR);
	if (bench.places < 2 * bench.depth)
		rt_panic("the disk is too small");
	vring_start(&bench.ring, &bench.dev, 0, bench.depth);
	if (bench.ring.requests < bench.depth)
		rt_panic("the disk's queue is too short");
	vdev_ready(&bench.dev);
	rt_printf(BARE_BLKBENCH_READY_FMT "\n", capacity, bench.size, (uint64_t)bench.depth,
		  (uint64_t)rt.ring, rt.tsc_khz);
}

static uint64_t next_place(void)
{
	uint64_t n;

	if (bench.random) {
		bench.seed = bench.seed * 6364136223846793005 + 1442695040888963407;
		n = (bench.seed >> 24) % bench.places;
	} else {
		n = bench.next++ % bench.places;
	}
	return n * bench.units;
}

static volatile uint64_t *stamp_of(const struct request *r, uint64_t unit)
{
	return (volatile uint64_t *)(r->data + unit * BLKBENCH_UNIT);
}

static void send(struct request *r, uint64_t now)
{
	const struct vbuf buf[] = {
		{.addr = r->header, .len = 16},
		{.addr = r->data, .len = (uint32_t)bench.size, .in = !bench.write},
		{.addr = r->status, .len = 1, .in = true},
	};

	r->place = next_place();
	r->start = now;
	r->header[0] = bench.write ? T_OUT : T_IN;
	r->header[1] = r->place * (BLKBENCH_UNIT / SECTOR);
	*r->status = S_NONE;
	/* What was there before must not pass for what a read has brought. */
	for (uint64_t i = 0; i < bench.units; i++)
		*stamp_of(r, i) = bench.write ? BLKBENCH_STAMP + r->place + i : 0;
	vring_submit(&bench.ring, (uint32_t)(r - bench.requests), buf, 3);
}

static void check(const struct request *r)
{
	if (*r->status != S_OK) {
		if (bench.errors++ < BARE_MAX_ERRORS)
			rt_printf(BARE_BLKBENCH_ERROR "status place=%lu status=%u\n", r->place,
				  (uint32_t)*r->status);
		return;
	}
	for (uint64_t i = 0; i < bench.units && !bench.write; i++) {
		uint64_t want = BLKBENCH_STAMP + r->place + i, got = *stamp_of(r, i);

		if (got != want && bench.errors++ < BARE_MAX_ERRORS)
			rt_printf(BARE_BLKBENCH_ERROR "stamp place=%lu want=0x%lx got=0x%lx\n",
				  r->place + i, want, got);
	}
}

/* Takes what has come back, and sends it out again if `more`. */
static uint64_t step(bool more)
{
	uint32_t request, len;
	uint64_t now = rt_tsc();

	while (vring_take(&bench.ring, &request, &len)) {
		struct request *r = &bench.requests[request];

		now = rt_tsc();
		if (now - r->start > bench.slowest)
			bench.slowest = now - r->start;
		bench.last = now;
		bench.count++;
		check(r);
		if (more)
			send(r, now);
	}
	if (now - bench.last > rt_us_to_cycles(STALL_US))
		rt_panic(vdev_needs_reset(&bench.dev) ? "the disk needs a reset"
						      : "the disk does not answer");
	rt_relax();
	return now;
}

static void read_options(void)
{
	static const char *const ops[] = {"read", "write", NULL};
	static const char *const orders[] = {"random", "sequential", NULL};

	bench.write = rt_option_word("op", ops, 0);
	bench.random = !rt_option_word("order", orders, 0);
	bench.size = rt_option("size", BLKBENCH_UNIT);
	bench.units = bench.size / BLKBENCH_UNIT;
	bench.depth = (uint32_t)rt_option("depth", 1);
	bench.seed = rt_option("seed", 1);
	if (bench.size == 0 || bench.size % BLKBENCH_UNIT || bench.size > MAX_SIZE)
		rt_panic("size= is no multiple of 4K, or above 1M");
	if (bench.depth == 0 || bench.depth > MAX_DEPTH)
		rt_panic("depth= is none of 1 to 64");
}

static void run_for(uint64_t ms)
{
	uint64_t start = rt_tsc(), span = rt_us_to_cycles(ms * 1000);

	while (step(true) - start < span)
		;
}

static void run(void)
{
	uint64_t start, ns, count, kicks;

	read_options();
	find_disk();
	bench.last = rt_tsc();
	for (uint32_t i = 0; i < bench.depth; i++) {
		struct request *r = &bench.requests[i];

		r->header = rt_alloc(RT_PAGE_SIZE);
		r->status = (uint8_t *)(r->header + 2);
		r->data = memset(rt_alloc(bench.size), 0x5a, bench.size);
		send(r, rt_tsc());
	}
	run_for(rt_option("warm_ms", 300));
	rt_printf(BARE_BLKBENCH_GO "\n");
	/* What came back while that was printed belongs to the time before. */
	start = step(true);
	bench.count = bench.slowest = 0;
	kicks = bench.ring.kicks;
	run_for(rt_option("ms", 1000));
	ns = rt_cycles_to_ns(rt_tsc() - start);
	count = bench.count;
	rt_printf(BARE_BLKBENCH_RESULT_FMT "\n", count, count * bench.size, ns,
		  bench.ring.kicks - kicks, rt_cycles_to_ns(bench.slowest) / 1000, bench.errors);
	while (bench.ring.waiting)
		step(false);
	rt_printf(BARE_BLKBENCH_DONE_FMT "\n", bench.errors);
}

const struct rt_payload rt_payload = {.name = "blkbench", .main = run};
