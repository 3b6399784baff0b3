/* SPDX-License-Identifier: MIT */
/*
 * dirty: rewrites memory at a chosen pace and in a chosen manner, checks every page against what it
 * must hold, and measures how long it was away. The options and the output are in contract.h.
 *
 * Each CPU owns a part of the hot pages and a part of the others. In its main loop it reads the
 * clock, looks whether the boot processor wants something, and rewrites one page. The boot
 * processor also serves the console: nobody else prints, faults go through a ring in memory.
 *
 * A gap is the time between two readings of the clock. What must not count is what the payload
 * itself does in between beyond a page's worth of work, and that is port I/O alone: therefore the
 * clock is read after every single port access too, and the time one takes at best is deducted
 * there. So no moment goes unwatched, and a pause that hits the printing of a line is seen like any
 * other.
 */

#include "dirty.h"
#include "contract.h"

#define POLL_US 5000
#define BACKLOG_US 10000   /* of rewriting that may be caught up with after a pause, by default */
#define ANSWER_US 60000000 /* for another CPU to do what it is told */
#define IO_PROBES 16
#define RECENT_US 500 /* shorter gaps are not remembered one by one */
#define RECENT 256    /* a power of two */

struct gap {
	uint64_t last;		 /* cycles: the latest reading of the clock */
	uint64_t longest, ended; /* cycles: the longest gap, and the clock at its end */
	uint64_t longest_io;	 /* the longest with port I/O in it */
	/* The latest of more than RECENT_US: how long, and the clock at the end. */
	struct {
		uint64_t cycles, ended;
	} recent[RECENT];
	uint32_t nr_recent; /* counts on beyond RECENT */
};

enum order {
	ORDER_RESET,
	ORDER_VERIFY,
	ORDER_STOP,
};

struct worker {
	struct gap gap;
	uint64_t hot_first, hot_end;   /* pages it rewrites */
	uint64_t cold_first, cold_end; /* pages it only verifies */
	uint64_t next;		       /* page to rewrite next */
	uint64_t due;		       /* cycles: when, if there is a rate */
	uint64_t writes;
	struct fault_log faults;
	uint64_t verify_errors; /* found by the latest verification */
	uint32_t answered;	/* number of the latest order carried out; atomic */
	bool stop;
} __attribute__((aligned(4096)));

static struct {
	struct working_set ws;
	uint32_t cpus, writers;
	uint64_t interval;   /* cycles between two pages of one CPU; 0: flat out */
	bool flat;	     /* for now as if there was no interval; atomic */
	uint64_t backlog;    /* cycles */
	uint64_t io_cost;    /* cycles of a port access at best */
	uint64_t recent_min; /* RECENT_US in cycles */
	uint64_t start;	     /* clock at `ready` */
	uint64_t last_report, last_writes;
	uint64_t printed; /* error lines */
	enum order order;
	uint32_t orders; /* how many were given; atomic */
	struct worker workers[RT_MAX_CPUS];
} dirty;

static const char *const kind_names[] = {"new", "same", "few", "zero", "flip", "idle", NULL};

/* --- The clock --- */

static uint64_t read_clock(struct worker *w, uint64_t allowed)
{
	uint64_t now = rt_tsc(), gap = now - w->gap.last;

	if ((int64_t)gap < 0) {
		const struct fault fault = {
			.type = FAULT_CLOCK,
			.page = (uint64_t)(w - dirty.workers),
			.gen = 0 - gap,
		};

		fault_add(&w->faults, &fault);
		gap = 0;
	}
	gap = gap > allowed ? gap - allowed : 0;
	if (gap > w->gap.longest) {
		w->gap.longest = gap;
		w->gap.ended = now;
	}
	if (allowed && gap > w->gap.longest_io)
		w->gap.longest_io = gap;
	if (gap > dirty.recent_min) {
		w->gap.recent[w->gap.nr_recent % RECENT].cycles = gap;
		w->gap.recent[w->gap.nr_recent++ % RECENT].ended = now;
	}
	w->gap.last = now;
	return now;
}

static void after_port_access(void)
{
	read_clock(&dirty.workers[0], dirty.io_cost);
}

static void reset_gap(struct worker *w)
{
	w->gap.longest = 0;
	w->gap.longest_io = 0;
	w->gap.ended = 0;
	w->gap.nr_recent = 0;
	w->gap.last = rt_tsc();
}

/* --- What every CPU does --- */

static void verify_own(struct worker *w)
{
	uint64_t before = w->faults.count, sum = 0;
	uint64_t page;

	for (page = w->hot_first; page < w->hot_end; page++) {
		sum += ws_verify(&dirty.ws, page, &w->faults);
		read_clock(w, 0);
	}
	for (page = w->cold_first; page < w->cold_end; page++) {
		sum += ws_verify(&dirty.ws, page, &w->faults);
		read_clock(w, 0);
	}
	if (sum != w->writes) {
		const struct fault fault = {
			.type = FAULT_COUNT,
			.page = (uint64_t)(w - dirty.workers),
			.gen = w->writes,
			.got = sum,
		};

		fault_add(&w->faults, &fault);
	}
	w->verify_errors = w->faults.count - before;
}

static void obey(struct worker *w)
{
	uint32_t orders = __atomic_load_n(&dirty.orders, __ATOMIC_ACQUIRE);

	if (orders == w->answered)
		return;
	switch (dirty.order) {
	case ORDER_RESET:
		reset_gap(w);
		break;
	case ORDER_VERIFY:
		verify_own(w);
		break;
	case ORDER_STOP:
		w->stop = true;
		break;
	}
	__atomic_store_n(&w->answered, orders, __ATOMIC_RELEASE);
}

static void step(struct worker *w, uint64_t now)
{
	if (dirty.ws.kind == KIND_IDLE || w->hot_first == w->hot_end)
		return;
	if (dirty.interval && !__atomic_load_n(&dirty.flat, __ATOMIC_RELAXED)) {
		if ((int64_t)(now - w->due) < 0)
			return;
		w->due += dirty.interval;
		if ((int64_t)(now - w->due) > (int64_t)dirty.backlog)
			w->due = now - dirty.backlog;
	}
	ws_rewrite(&dirty.ws, w->next, &w->faults);
	__atomic_store_n(&w->writes, w->writes + 1, __ATOMIC_RELAXED);
	if (++w->next == w->hot_end)
		w->next = w->hot_first;
}

static void fill_own(struct worker *w)
{
	uint64_t page;

	for (page = w->hot_first; page < w->hot_end; page++)
		ws_fill(&dirty.ws, page);
	for (page = w->cold_first; page < w->cold_end; page++)
		ws_fill(&dirty.ws, page);
	w->next = w->hot_first;
	reset_gap(w);
	w->due = w->gap.last;
}

static void run_other(struct rt_cpu *cpu)
{
	struct worker *w = cpu->arg;

	fill_own(w);
	__atomic_store_n(&w->answered, 1, __ATOMIC_RELEASE);
	while (!w->stop) {
		uint64_t now = read_clock(w, 0);

		obey(w);
		step(w, now);
	}
}

/* --- What the boot processor does beside --- */

static void print_fault(const struct fault *f)
{
	uint64_t found;

	switch (f->type) {
	case FAULT_PAGE:
		rt_printf(BARE_DIRTY_ERROR "page=%lu want_gen=%lu found=", f->page, f->gen);
		if (ws_find_generation(&dirty.ws, f->page, f->gen, f->offset, f->got, &found))
			rt_printf("%lu", found);
		else
			rt_printf("?");
		rt_printf(" offset=%lu want=0x%lx got=0x%lx\n", f->offset, f->want, f->got);
		break;
	case FAULT_TABLE:
		rt_printf(BARE_DIRTY_ERROR "table page=%lu gen=0x%lx copy=0x%lx\n", f->page,
			  f->want, f->got);
		break;
	case FAULT_COUNT:
		rt_printf(BARE_DIRTY_ERROR "count cpu=%lu writes=%lu table=%lu\n", f->page, f->gen,
			  f->got);
		break;
	case FAULT_CLOCK:
		rt_printf(BARE_DIRTY_ERROR "clock cpu=%lu back_ns=%lu\n", f->page,
			  rt_cycles_to_ns(f->gen));
		break;
	}
}

static void print_faults(void)
{
	for (uint32_t c = 0; c < dirty.cpus; c++) {
		struct fault_log *log = &dirty.workers[c].faults;
		uint32_t tail = log->tail;

		while (tail != __atomic_load_n(&log->head, __ATOMIC_ACQUIRE)) {
			if (dirty.printed < BARE_MAX_ERRORS) {
				dirty.printed++;
				print_fault(&log->ring[tail % FAULTS]);
			}
			__atomic_store_n(&log->tail, ++tail, __ATOMIC_RELEASE);
		}
	}
}

/* Wait until all others have answered `orders` orders; the clock is watched meanwhile. */
static void wait_answers(uint32_t orders)
{
	struct worker *me = &dirty.workers[0];
	uint64_t start = rt_tsc(), limit = rt_us_to_cycles(ANSWER_US);

	for (uint32_t c = 1; c < dirty.cpus; c++)
		while (__atomic_load_n(&dirty.workers[c].answered, __ATOMIC_ACQUIRE) != orders) {
			if (read_clock(me, 0) - start > limit)
				rt_panic("a CPU does not answer");
			print_faults();
			rt_relax();
		}
}

static void give_order(enum order order)
{
	uint32_t orders = dirty.orders + 1;

	dirty.order = order;
	__atomic_store_n(&dirty.orders, orders, __ATOMIC_RELEASE);
	obey(&dirty.workers[0]);
	wait_answers(orders);
	print_faults();
}

struct sums {
	uint64_t writes, errors;
	uint64_t gap, gap_ended, gap_io; /* cycles */
};

static struct sums sum_up(void)
{
	struct sums sums = {0};

	for (uint32_t c = 0; c < dirty.cpus; c++) {
		const struct worker *w = &dirty.workers[c];

		sums.writes += __atomic_load_n(&w->writes, __ATOMIC_RELAXED);
		sums.errors += __atomic_load_n(&w->faults.count, __ATOMIC_RELAXED);
		if (w->gap.longest > sums.gap) {
			sums.gap = w->gap.longest;
			sums.gap_ended = w->gap.ended;
		}
		if (w->gap.longest_io > sums.gap_io)
			sums.gap_io = w->gap.longest_io;
	}
	return sums;
}

static uint64_t to_ms(uint64_t cycles)
{
	return rt_cycles_to_ns(cycles) / 1000000;
}

static void report(uint64_t now)
{
	struct sums sums = sum_up();
	uint64_t us = rt_cycles_to_ns(now - dirty.last_report) / 1000;
	uint64_t bytes = (sums.writes - dirty.last_writes) * RT_PAGE_SIZE;

	rt_printf(BARE_DIRTY_REPORT_FMT "\n", to_ms(now - dirty.start), sums.writes,
		  us ? bytes * 1000 / us * 1000 / (1u << 20) : 0, rt_cycles_to_ns(sums.gap) / 1000,
		  sums.errors, sums.gap ? to_ms(sums.gap_ended - dirty.start) : 0,
		  rt_cycles_to_ns(sums.gap_io) / 1000);
	dirty.last_report = now;
	dirty.last_writes = sums.writes;
}

/* Of the boot processor, the latest first; a copy, for printing them makes others. */
static void print_gaps(void)
{
	static struct gap gap;
	uint32_t n;

	gap = dirty.workers[0].gap;
	n = gap.nr_recent < RECENT ? gap.nr_recent : RECENT;

	rt_printf(BARE_DIRTY_GAPS);
	for (uint32_t i = 1; i <= n; i++) {
		uint32_t at = (gap.nr_recent - i) % RECENT;

		rt_printf(BARE_DIRTY_GAP_FMT, rt_cycles_to_ns(gap.recent[at].cycles) / 1000,
			  rt_cycles_to_ns(gap.recent[at].ended - dirty.start) / 1000);
	}
	rt_printf("\n");
}

static void verify_all(void)
{
	uint64_t errors = 0;

	give_order(ORDER_VERIFY);
	for (uint32_t c = 0; c < dirty.cpus; c++)
		errors += dirty.workers[c].verify_errors;
	rt_printf(BARE_DIRTY_VERIFY_FMT "\n", dirty.ws.pages, errors);
}

static void quit(void)
{
	struct sums sums;

	verify_all();
	give_order(ORDER_STOP);
	sums = sum_up();
	rt_printf(BARE_DIRTY_DONE_FMT "\n", sums.writes, rt_cycles_to_ns(sums.gap) / 1000,
		  sums.errors);
	rt_poweroff();
}

static void serve_console(uint64_t now)
{
	print_faults();
	switch (rt_getc()) {
	case BARE_CMD_RESET:
		give_order(ORDER_RESET);
		break;
	case BARE_CMD_REPORT:
		report(now);
		break;
	case BARE_CMD_GAPS:
		print_gaps();
		break;
	case BARE_CMD_FLAT:
		__atomic_store_n(&dirty.flat, !dirty.flat, __ATOMIC_RELAXED);
		break;
	case BARE_CMD_VERIFY:
		verify_all();
		break;
	case BARE_CMD_QUIT:
		quit();
		break;
	default:
		break;
	}
}

/* --- Setting up --- */

static void read_options(void)
{
	static const char *const checks[] = {"sample", "full", NULL};
	static const char *const content_names[] = {"random", "text", "zero", NULL};
	struct working_set *ws = &dirty.ws;
	uint64_t bytes = rt_option("ws", 64ul << 20);
	uint64_t hot = rt_option("hot", bytes);
	uint64_t rate = rt_option("rate", 0);
	uint64_t cpus = rt_option("cpus", 1), writers = rt_option("writers", cpus);
	uint64_t cycles = rt.tsc_khz * 1000;

	if (cpus == 0 || cpus > rt.nr_cpus)
		rt_panic("cpus= is more than the machine has");
	if (bytes < cpus * RT_PAGE_SIZE || bytes / RT_PAGE_SIZE > rt_free_pages())
		rt_panic("ws= does not fit: less than a page for each CPU, or more than free RAM");
	if (hot > bytes)
		rt_panic("hot= is more than ws=");
	if (writers == 0 || writers > cpus)
		rt_panic("writers= is none, or more than cpus=");
	dirty.cpus = (uint32_t)cpus;
	dirty.writers = (uint32_t)writers;
	ws->pages = bytes / RT_PAGE_SIZE;
	ws->hot = hot / RT_PAGE_SIZE;
	ws->seed = rt_option("seed", 1);
	ws->kind = (enum kind)rt_option_word("kind", kind_names, KIND_NEW);
	ws->content = (enum content)rt_option_word("content", content_names, CONTENT_RANDOM);
	ws->check_all = rt_option_word("check", checks, rate != 0);
	if (rate)
		dirty.interval = cycles / rate * RT_PAGE_SIZE * writers +
				 cycles % rate * RT_PAGE_SIZE * writers / rate;
	dirty.backlog = rt_us_to_cycles(rt_option("catch_up", BACKLOG_US));
	dirty.recent_min = rt_us_to_cycles(RECENT_US);
}

static void share_pages(void)
{
	uint64_t hot = dirty.ws.hot, cold = dirty.ws.pages - hot;

	for (uint32_t c = 0; c < dirty.cpus; c++) {
		struct worker *w = &dirty.workers[c];

		w->hot_first = hot * (c < dirty.writers ? c : dirty.writers) / dirty.writers;
		w->hot_end = hot * (c < dirty.writers ? c + 1 : dirty.writers) / dirty.writers;
		w->cold_first = hot + cold * c / dirty.cpus;
		w->cold_end = hot + cold * (c + 1) / dirty.cpus;
	}
}

static void measure_port_access(void)
{
	dirty.io_cost = UINT64_MAX;
	for (int i = 0; i < IO_PROBES; i++) {
		uint64_t start = rt_tsc(), cost;

		/* Nothing is lost: a byte that came already is as good as none before `ready`. */
		rt_getc();
		cost = rt_tsc() - start;
		if (cost < dirty.io_cost)
			dirty.io_cost = cost;
	}
}

static void start(void)
{
	struct worker *me = &dirty.workers[0];

	read_options();
	ws_alloc(&dirty.ws);
	share_pages();
	dirty.orders = 1; /* the first order is to fill */
	me->answered = 1;
	for (uint32_t c = 1; c < dirty.cpus; c++)
		rt_cpu_start(c, run_other, &dirty.workers[c]);
	fill_own(me);
	wait_answers(1);
	measure_port_access();
	rt_printf(BARE_DIRTY_READY_FMT "\n", dirty.ws.pages * RT_PAGE_SIZE,
		  dirty.ws.hot * RT_PAGE_SIZE, kind_names[dirty.ws.kind], (uint64_t)rt.ring,
		  (uint64_t)dirty.cpus, rt.tsc_khz);
	give_order(ORDER_RESET);
	dirty.start = dirty.last_report = rt_tsc();
	rt_console_hook = after_port_access;
}

static void run(void)
{
	uint64_t report_every = rt_us_to_cycles(rt_option("report", 1) * 1000000);
	uint64_t run_for = rt_us_to_cycles(rt_option("secs", 0) * 1000000);
	uint64_t poll_every = rt_us_to_cycles(POLL_US), last_poll;
	struct worker *me = &dirty.workers[0];

	start();
	last_poll = dirty.start;
	for (;;) {
		uint64_t now = read_clock(me, 0);

		if (now - last_poll >= poll_every) {
			serve_console(now);
			last_poll = me->gap.last;
		}
		if (report_every && now - dirty.last_report >= report_every)
			report(now);
		if (run_for && now - dirty.start >= run_for)
			quit();
		step(me, now);
	}
}

const struct rt_payload rt_payload = {.name = "dirty", .main = run};
