/* SPDX-License-Identifier: MIT */
/*
 * virtio: drives the machine's virtio-mmio disks, all of them at a time, and its random number
 * generator; and rewrites memory meanwhile, if asked to. The options and the output are in
 * contract.h.
 *
 * One CPU polls: the clock, the rings, the console. A gap is the time between two readings of the
 * clock, which is read after every access to a console port and every turn of the loop; what the
 * payload itself does in a turn is a few requests.
 */

#include "contract.h"
#include "dirty.h"
#include "virtio_disk.h"

#define MAX_DISKS 8u
#define POLL_US 5000
#define RNG_BYTES 64u
#define MEM_RATE (4ul << 20)
#define MEM_BACKLOG_US 10000
#define PORT_RESET 0xcf9
#define RESET_NOW 0x06

static struct {
	struct disk disks[MAX_DISKS];
	uint32_t nr_disks;
	uint64_t start, last; /* cycles: `ready`; the last reading of the clock */
	uint64_t gap;	      /* the longest, in cycles */
	struct {
		bool there, asked;
		struct vdev dev;
		struct vring ring;
		uint8_t *buf; /* what was got last, then room for the next */
		uint64_t got, errors;
	} rng;
	struct {
		struct working_set set;
		struct fault_log faults;
		uint64_t next, writes;	/* page; pages in all */
		uint64_t interval, due; /* cycles: between two pages */
	} mem;
} virtio;

/* --- The clock --- */

static uint64_t read_clock(void)
{
	uint64_t now = rt_tsc();

	if (now - virtio.last > virtio.gap)
		virtio.gap = now - virtio.last;
	virtio.last = now;
	return now;
}

static void look_at_clock(void)
{
	read_clock();
}

static uint64_t to_ms(uint64_t cycles)
{
	return rt_cycles_to_ns(cycles) / 1000000;
}

/* --- The random number generator: each answer is full, and differs from the one before --- */

static void rng_start(uint32_t slot)
{
	if (virtio.rng.there)
		rt_panic("two random number generators");
	virtio.rng.there = true;
	virtio.rng.buf = memset(rt_alloc(2 * RNG_BYTES), 0, 2 * RNG_BYTES);
	vdev_start(&virtio.rng.dev, slot, VDEV_F_INDIRECT | VDEV_F_EVENT_IDX);
	vring_start(&virtio.rng.ring, &virtio.rng.dev, 0, 2);
	vdev_ready(&virtio.rng.dev);
}

static void rng_ask(void)
{
	const struct vbuf buf = {.addr = virtio.rng.buf + RNG_BYTES, .len = RNG_BYTES, .in = true};

	if (!virtio.rng.there || virtio.rng.asked)
		return;
	memset(virtio.rng.buf + RNG_BYTES, 0, RNG_BYTES);
	virtio.rng.asked = true;
	vring_submit(&virtio.rng.ring, 0, &buf, 1);
}

static void rng_step(void)
{
	uint8_t *last = virtio.rng.buf, *now = last + RNG_BYTES;
	uint32_t request, len;

	if (!virtio.rng.asked || !vring_take(&virtio.rng.ring, &request, &len))
		return;
	virtio.rng.asked = false;
	virtio.rng.got += len;
	/* Words of zeros, or those of last time, come by chance never. */
	if (len != RNG_BYTES || memcmp(last, now, 8) == 0 ||
	    memcmp(now + RNG_BYTES - 8, now, 8) == 0) {
		virtio.rng.errors++;
		if (disk_errors_printed++ < BARE_MAX_ERRORS)
			rt_printf(BARE_VIRTIO_ERROR "rng len=%u\n", len);
	}
	memcpy(last, now, RNG_BYTES);
}

/* --- Memory: pages in turn, each looked at before it is rewritten --- */

static void mem_start(void)
{
	struct working_set *set = &virtio.mem.set;
	uint64_t rate = rt_option("mem_rate", MEM_RATE), cycles = rt.tsc_khz * 1000;

	set->pages = set->hot = rt_option("mem", 0) / RT_PAGE_SIZE;
	if (!set->pages)
		return;
	if (!rate)
		rt_panic("mem_rate= is 0");
	set->seed = rt_option("seed", 1);
	set->kind = KIND_NEW;
	set->content = CONTENT_RANDOM;
	set->check_all = true;
	ws_alloc(set);
	for (uint64_t page = 0; page < set->pages; page++)
		ws_fill(set, page);
	virtio.mem.interval = cycles / rate * RT_PAGE_SIZE + cycles % rate * RT_PAGE_SIZE / rate;
	virtio.mem.due = rt_tsc();
}

static void mem_print_faults(void)
{
	struct fault_log *log = &virtio.mem.faults;

	for (; log->tail != log->head; log->tail++) {
		const struct fault *f = &log->ring[log->tail % FAULTS];

		if (disk_errors_printed++ < BARE_MAX_ERRORS)
			rt_printf(BARE_VIRTIO_ERROR
				  "memory page=%lu want_gen=%lu offset=%lu want=0x%lx got=0x%lx\n",
				  f->page, f->gen, f->offset, f->want, f->got);
	}
}

static void mem_step(uint64_t now)
{
	uint64_t backlog = rt_us_to_cycles(MEM_BACKLOG_US);

	if (!virtio.mem.set.pages || (int64_t)(now - virtio.mem.due) < 0)
		return;
	virtio.mem.due += virtio.mem.interval;
	if ((int64_t)(now - virtio.mem.due) > (int64_t)backlog)
		virtio.mem.due = now - backlog;
	ws_rewrite(&virtio.mem.set, virtio.mem.next, &virtio.mem.faults);
	virtio.mem.next = (virtio.mem.next + 1) % virtio.mem.set.pages;
	virtio.mem.writes++;
	mem_print_faults();
}

/* All of it, and that its generations add up to what was written. */
static void mem_verify(void)
{
	const struct working_set *set = &virtio.mem.set;
	uint64_t sum = 0, before = virtio.mem.faults.count;

	if (!set->pages)
		return;
	for (uint64_t page = 0; page < set->pages; page++) {
		sum += ws_verify(set, page, &virtio.mem.faults);
		mem_print_faults();
		read_clock();
	}
	if (sum != virtio.mem.writes) {
		const struct fault fault = {.gen = virtio.mem.writes, .got = sum};

		fault_add(&virtio.mem.faults, &fault);
		mem_print_faults();
	}
	rt_printf(BARE_VIRTIO_MEMORY_FMT "\n", set->pages, virtio.mem.writes,
		  virtio.mem.faults.count - before);
}

/* --- The console --- */

struct sums {
	uint64_t writes, reads, flushes, refused, errors, slowest;
};

static struct sums sum_up(void)
{
	struct sums s = {.errors = virtio.rng.errors + virtio.mem.faults.count};

	for (uint32_t i = 0; i < virtio.nr_disks; i++) {
		const struct disk *d = &virtio.disks[i];

		s.writes += d->next;
		s.reads += d->reads;
		s.flushes += d->flushes_done;
		s.refused += d->refused;
		s.errors += d->errors;
		if (d->slowest > s.slowest)
			s.slowest = d->slowest;
	}
	return s;
}

static void look_for_failure(void)
{
	for (uint32_t i = 0; i < virtio.nr_disks; i++) {
		if (vdev_needs_reset(&virtio.disks[i].dev))
			rt_panic("a disk needs a reset");
	}
	if (virtio.rng.there && vdev_needs_reset(&virtio.rng.dev))
		rt_panic("the random number generator needs a reset");
}

static void report(uint64_t now)
{
	struct sums s = sum_up();

	look_for_failure();
	rt_printf(BARE_VIRTIO_REPORT_FMT "\n", to_ms(now - virtio.start), s.writes, s.reads,
		  s.flushes, s.refused, virtio.rng.got, rt_cycles_to_ns(virtio.gap) / 1000,
		  rt_cycles_to_ns(s.slowest) / 1000, s.errors);
	rng_ask();
}

static void verify_all(void)
{
	for (uint32_t i = 0; i < virtio.nr_disks; i++)
		disk_verify(&virtio.disks[i]);
	mem_verify();
}

static void quit(void)
{
	struct sums s;

	verify_all();
	look_for_failure();
	s = sum_up();
	rt_printf(BARE_VIRTIO_DONE_FMT "\n", s.writes, s.reads, s.flushes, s.refused,
		  virtio.rng.got, rt_cycles_to_ns(virtio.gap) / 1000, s.errors);
	rt_poweroff();
}

static void serve_console(uint64_t now)
{
	switch (rt_getc()) {
	case BARE_CMD_RESET:
		virtio.gap = 0;
		for (uint32_t i = 0; i < virtio.nr_disks; i++)
			virtio.disks[i].slowest = 0;
		break;
	case BARE_CMD_REPORT:
		report(now);
		break;
	case BARE_CMD_VERIFY:
		verify_all();
		break;
	case BARE_CMD_REBOOT:
		rt_outb(PORT_RESET, RESET_NOW);
		break;
	case BARE_CMD_QUIT:
		quit();
		break;
	default:
		break;
	}
}

/* --- All of it --- */

static void start(void)
{
	for (uint32_t slot = 0; slot < VDEV_SLOTS; slot++) {
		switch (vdev_id(slot)) {
		case VDEV_BLK:
			if (virtio.nr_disks == MAX_DISKS)
				rt_panic("more than 8 disks");
			disk_start(&virtio.disks[virtio.nr_disks], virtio.nr_disks, slot);
			virtio.nr_disks++;
			break;
		case VDEV_RNG:
			rng_start(slot);
			break;
		default:
			break;
		}
	}
	if (!virtio.nr_disks && !virtio.rng.there)
		rt_skip("no virtio-mmio disk or random number generator");
	mem_start();
	rt_printf(BARE_VIRTIO_READY_FMT "\n", (uint64_t)virtio.nr_disks, (uint64_t)virtio.rng.there,
		  (uint64_t)rt.ring, rt.tsc_khz);
	virtio.start = virtio.last = rt_tsc();
	rt_console_hook = disk_wait_hook = look_at_clock;
	rng_ask();
}

static void run(void)
{
	uint64_t report_every = rt_us_to_cycles(rt_option("report", 1) * 1000000);
	uint64_t run_for = rt_us_to_cycles(rt_option("secs", 0) * 1000000);
	uint64_t poll_every = rt_us_to_cycles(POLL_US), last_poll, last_report;

	start();
	last_poll = last_report = virtio.start;
	for (;;) {
		uint64_t now = read_clock();

		if (now - last_poll >= poll_every) {
			serve_console(now);
			last_poll = virtio.last;
		}
		if (report_every && now - last_report >= report_every) {
			report(now);
			last_report = now;
		}
		if (run_for && now - virtio.start >= run_for)
			quit();
		rng_step();
		for (uint32_t i = 0; i < virtio.nr_disks; i++)
			disk_step(&virtio.disks[i], now);
		mem_step(now);
		rt_relax();
	}
}

const struct rt_payload rt_payload = {.name = "virtio", .main = run};
