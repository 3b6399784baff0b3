/* SPDX-License-Identifier: MIT */
/*
 * smp: all CPUs at work, on memory of their own and on memory they share, interrupting each other.
 *
 * Each turn of a CPU
 *
 *   - checks one of its own pages and writes the next generation,
 *   - under a lock that all contend for, checks and advances a pair of words, and looks that the
 *     clock does not run behind what another CPU has read before,
 *   - adds to a shared counter without the lock,
 *   - sends its neighbour an interrupt, if the one before has arrived.
 *
 * At `v` and `q` all stop, and what they count together must be the sum of what each counted.
 */

#include "contract.h"
#include "rt/rt.h"

#define PAGE_WORDS (RT_PAGE_SIZE / sizeof(uint64_t))
#define VECTOR_IPI 0x40
#define IPI_FIXED 0x4000 /* fixed delivery, assert */
#define IPI_EVERY_US 10000
#define IPI_LOST_US 2000000
#define STALLED_US 5000000
#define LONG_TURN_US 10000 /* as running time a turn counts for this much at most */
#define ANSWER_US 60000000
#define POLL_US 5000
#define PAIR_KEY 0xa5a5c3c396967e7e

enum order { ORDER_RUN, ORDER_HOLD };

struct worker {
	uint64_t *pages;
	uint32_t page;	 /* next one */
	uint64_t rounds; /* atomic; pages before `page` are one ahead */
	uint64_t turns;
	uint64_t ran;	  /* cycles of running time */
	uint64_t last;	  /* clock at the turn before */
	uint64_t ipi_due; /* running time at which the next one goes out */
	uint64_t ipi_sent_at;
	uint64_t ipis_sent;
	bool ipi_reported;
	uint32_t answered;	/* atomic */
	volatile uint64_t ipis; /* received; by the handler */
} __attribute__((aligned(4096)));

/* Written by all CPUs, each in a cache line of its own. */
static struct {
	uint32_t lock __attribute__((aligned(64)));
	uint64_t left, right; /* under the lock: right = left ^ PAIR_KEY */
	uint64_t clock;	      /* under the lock: the latest reading */
	uint64_t counter __attribute__((aligned(64)));
	uint64_t errors __attribute__((aligned(64)));
	uint32_t orders __attribute__((aligned(64))); /* odd: hold, even: run */
} shared;

static struct worker workers[RT_MAX_CPUS];
static uint32_t nr_workers, nr_pages;

static uint64_t word_of(uint64_t cpu, uint64_t page, uint64_t round, uint64_t i)
{
	uint64_t x = (cpu << 56) ^ (page << 40) ^ (round << 9) ^ i;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	return x ^ (x >> 29);
}

static bool new_error(void)
{
	return __atomic_fetch_add(&shared.errors, 1, __ATOMIC_RELAXED) < BARE_MAX_ERRORS;
}

static void check_page(uint32_t cpu, const uint64_t *p, uint64_t page, uint64_t round)
{
	for (uint64_t i = 0; i < PAGE_WORDS; i++) {
		uint64_t want = word_of(cpu, page, round, i);

		if (p[i] == want)
			continue;
		if (new_error())
			rt_printf(BARE_SMP_ERROR
				  "page cpu=%u page=%lu offset=%lu want=0x%lx got=0x%lx\n",
				  cpu, page, i * sizeof(*p), want, p[i]);
		return;
	}
}

static void write_page(uint32_t cpu, uint64_t *p, uint64_t page, uint64_t round)
{
	for (uint64_t i = 0; i < PAGE_WORDS; i++)
		p[i] = word_of(cpu, page, round, i);
}

static void share(uint32_t cpu)
{
	uint64_t clock, before;
	bool torn;

	while (__atomic_exchange_n(&shared.lock, 1, __ATOMIC_ACQUIRE))
		rt_relax();
	/* The clock must not be read before the lock is held. */
	__asm__ volatile("lfence" : : : "memory");
	clock = rt_tsc();
	before = shared.clock;
	if (clock > before)
		shared.clock = clock;
	torn = shared.right != (shared.left ^ PAIR_KEY);
	shared.left++;
	shared.right = shared.left ^ PAIR_KEY;
	__atomic_store_n(&shared.lock, 0, __ATOMIC_RELEASE);
	__atomic_fetch_add(&shared.counter, 1, __ATOMIC_RELAXED);
	if (torn && new_error())
		rt_printf(BARE_SMP_ERROR "pair cpu=%u\n", cpu);
	if (clock < before && new_error())
		rt_printf(BARE_SMP_ERROR "tsc cpu=%u back_ns=%lu\n", cpu,
			  rt_cycles_to_ns(before - clock));
}

static void on_ipi(const struct rt_frame *frame)
{
	uint32_t id = rt_lapic_read(LAPIC_ID) >> 24;

	(void)frame;
	for (uint32_t c = 0; c < nr_workers; c++)
		if (rt.cpus[c].apic_id == id)
			workers[c].ipis++;
	rt_lapic_write(LAPIC_EOI, 0);
}

static void interrupt_neighbour(uint32_t cpu)
{
	struct worker *w = &workers[cpu];
	uint32_t to = (cpu + 1) % nr_workers;

	if (workers[to].ipis != w->ipis_sent) {
		if (w->ran - w->ipi_sent_at > rt_us_to_cycles(IPI_LOST_US) && !w->ipi_reported) {
			w->ipi_reported = true;
			if (new_error())
				rt_printf(BARE_SMP_ERROR "ipi cpu=%u to=%u\n", cpu, to);
		}
		return;
	}
	if (w->ran < w->ipi_due)
		return;
	w->ipis_sent++;
	w->ipi_sent_at = w->ran;
	w->ipi_due = w->ran + rt_us_to_cycles(IPI_EVERY_US);
	rt_lapic_write(LAPIC_ICR_HIGH, rt.cpus[to].apic_id << 24);
	rt_lapic_write(LAPIC_ICR_LOW, IPI_FIXED | VECTOR_IPI);
}

static void turn(uint32_t cpu)
{
	struct worker *w = &workers[cpu];
	uint64_t *p = w->pages + w->page * PAGE_WORDS;
	uint64_t now = rt_tsc(), passed = now - w->last, longest = rt_us_to_cycles(LONG_TURN_US);

	w->last = now;
	w->ran += passed < longest ? passed : longest;
	check_page(cpu, p, w->page, w->rounds);
	write_page(cpu, p, w->page, w->rounds + 1);
	if (++w->page == nr_pages) {
		w->page = 0;
		__atomic_store_n(&w->rounds, w->rounds + 1, __ATOMIC_RELAXED);
	}
	share(cpu);
	w->turns++;
	interrupt_neighbour(cpu);
}

static void start_work(uint32_t cpu)
{
	struct worker *w = &workers[cpu];

	for (uint64_t page = 0; page < nr_pages; page++)
		write_page(cpu, w->pages + page * PAGE_WORDS, page, 0);
	w->last = rt_tsc();
}

static void check_own(uint32_t cpu)
{
	const struct worker *w = &workers[cpu];

	for (uint64_t page = 0; page < nr_pages; page++)
		check_page(cpu, w->pages + page * PAGE_WORDS, page, w->rounds + (page < w->page));
}

static void run_other(struct rt_cpu *cpu)
{
	struct worker *w = &workers[cpu->index];

	start_work(cpu->index);
	for (;;) {
		uint32_t orders = __atomic_load_n(&shared.orders, __ATOMIC_ACQUIRE);

		if (orders & 1) {
			if (w->answered != orders) {
				check_own(cpu->index);
				__atomic_store_n(&w->answered, orders, __ATOMIC_RELEASE);
			}
			w->last = rt_tsc();
			rt_relax();
			continue;
		}
		turn(cpu->index);
	}
}

struct sums {
	uint64_t rounds, turns, ipis;
};

static struct sums sum_up(void)
{
	struct sums sums = {0};

	for (uint32_t c = 0; c < nr_workers; c++) {
		sums.rounds += __atomic_load_n(&workers[c].rounds, __ATOMIC_RELAXED);
		sums.turns += workers[c].turns;
		sums.ipis += workers[c].ipis;
	}
	return sums;
}

/* Stop all, check everything; then go on, or leave them stopped. */
static void verify(bool go_on)
{
	uint32_t orders = shared.orders + 1;
	uint64_t start = rt_tsc(), limit = rt_us_to_cycles(ANSWER_US);
	struct sums sums;

	__atomic_store_n(&shared.orders, orders, __ATOMIC_RELEASE);
	check_own(0);
	for (uint32_t c = 1; c < nr_workers; c++)
		while (__atomic_load_n(&workers[c].answered, __ATOMIC_ACQUIRE) != orders) {
			if (rt_tsc() - start > limit)
				rt_panic("a CPU does not answer");
			rt_relax();
		}
	sums = sum_up();
	if ((shared.left != sums.turns || shared.counter != sums.turns) && new_error())
		rt_printf(BARE_SMP_ERROR "sum want=%lu got=%lu\n", sums.turns,
			  shared.left != sums.turns ? shared.left : shared.counter);
	rt_printf(BARE_SMP_VERIFY_FMT "\n", sums.rounds, shared.errors);
	if (go_on)
		__atomic_store_n(&shared.orders, orders + 1, __ATOMIC_RELEASE);
	workers[0].last = rt_tsc();
}

/* One tick line: progress since the one before. */
static void tick(void)
{
	static uint64_t seen[RT_MAX_CPUS], number;
	uint64_t min = UINT64_MAX, max = 0;

	for (uint32_t c = 0; c < nr_workers; c++) {
		uint64_t rounds = __atomic_load_n(&workers[c].rounds, __ATOMIC_RELAXED);
		uint64_t done = rounds - seen[c];

		seen[c] = rounds;
		min = done < min ? done : min;
		max = done > max ? done : max;
	}
	rt_printf(BARE_SMP_TICK_FMT "\n", ++number, min, max,
		  __atomic_load_n(&shared.errors, __ATOMIC_RELAXED), sum_up().ipis);
}

/* Has a CPU finished no round for long, while this one ran? */
static void find_stalled(void)
{
	static uint64_t seen[RT_MAX_CPUS], since[RT_MAX_CPUS];
	uint64_t ran = workers[0].ran;

	for (uint32_t c = 1; c < nr_workers; c++) {
		uint64_t rounds = __atomic_load_n(&workers[c].rounds, __ATOMIC_RELAXED);

		if (rounds != seen[c]) {
			seen[c] = rounds;
			since[c] = ran;
		} else if (ran - since[c] > rt_us_to_cycles(STALLED_US)) {
			since[c] = ran;
			if (new_error())
				rt_printf(BARE_SMP_ERROR "stalled cpu=%u\n", c);
		}
	}
}

static void setup(void)
{
	uint64_t cpus = rt_option("cpus", rt.nr_cpus), pages = rt_option("pages", 16);

	if (cpus == 0 || cpus > rt.nr_cpus)
		rt_panic("cpus= is more than the machine has");
	if (pages == 0 || pages > rt_free_pages() / (2 * cpus))
		rt_panic("pages= is none or too many");
	nr_workers = (uint32_t)cpus;
	nr_pages = (uint32_t)pages;
	shared.right = shared.left ^ PAIR_KEY;
	/* Hold until all are up: an interrupt for a CPU that has not started is lost. */
	shared.orders = 1;
	rt_on_interrupt(VECTOR_IPI, on_ipi);
	for (uint32_t c = 0; c < nr_workers; c++)
		workers[c].pages = rt_alloc(pages * RT_PAGE_SIZE);
	for (uint32_t c = 1; c < nr_workers; c++)
		rt_cpu_start(c, run_other, NULL);
	start_work(0);
	__atomic_store_n(&shared.orders, 2, __ATOMIC_RELEASE);
	rt_printf(BARE_SMP_READY_FMT "\n", cpus, (uint64_t)rt.ring);
}

static void run(void)
{
	uint64_t report_every = rt_us_to_cycles(rt_option("report", 1) * 1000000);
	uint64_t run_for = rt_us_to_cycles(rt_option("secs", 0) * 1000000);
	uint64_t poll_every = rt_us_to_cycles(POLL_US);
	uint64_t start, last_poll, last_report;
	struct sums sums;

	setup();
	start = last_poll = last_report = rt_tsc();
	for (;;) {
		uint64_t now = rt_tsc();
		int c = -1;

		if (now - last_poll >= poll_every) {
			c = rt_getc();
			last_poll = now;
			find_stalled();
		}
		if (c == BARE_CMD_QUIT || (run_for && now - start >= run_for))
			break;
		if (c == BARE_CMD_VERIFY)
			verify(true);
		if (c == BARE_CMD_REPORT || (report_every && now - last_report >= report_every)) {
			tick();
			last_report = now;
		}
		turn(0);
	}
	verify(false);
	sums = sum_up();
	rt_printf(BARE_SMP_DONE_FMT "\n", sums.rounds, shared.errors, sums.ipis);
}

const struct rt_payload rt_payload = {.name = "smp", .main = run, .interrupts = true};
