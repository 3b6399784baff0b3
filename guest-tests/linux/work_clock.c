/* SPDX-License-Identifier: MIT */
/*
 * The clock workers, one pinned to each CPU.
 *
 * Each wakes every gt.clock_us, reads the clocks a few times without pause, and sleeps again, now
 * by nanosleep, now by a timerfd. Wrong is: a clock that reads less than it did before on any
 * CPU, and a sleep that ends early or far too late. Measured are the longest time between two
 * looks at CLOCK_MONOTONIC, the latest wake-up, and how far the other clocks move against it.
 *
 * Steps between CPUs: the highest reading so far lies in shared memory. It is fetched before the
 * clock is read, so whatever it says was read earlier, and a lower reading is a step back. They
 * run at real-time priority: what they find is the machine's doing and not the scheduler's.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "work.h"

#define NS 1000000000u
#define EARLY_NS 1000u
#define WARM_UP 8u /* looks before drift is measured */

static const struct {
	clockid_t id;
	const char *name;
} clocks[CLOCK_KINDS] = {
	[CLOCK_KIND_MONO] = {CLOCK_MONOTONIC, "monotonic"},
	[CLOCK_KIND_REAL] = {CLOCK_REALTIME, "realtime"},
	[CLOCK_KIND_BOOT] = {CLOCK_BOOTTIME, "boottime"},
};

struct clock_state {
	unsigned int cpu;
	int timer;
	bool by_timer;
	uint64_t last_mono;
	uint64_t tightest; /* least time that reading all clocks took */
	unsigned int looks;
	bool based;
	uint64_t base[CLOCK_KINDS]; /* the clock less CLOCK_MONOTONIC, first seen */
};

static uint64_t to_ns(const struct timespec *ts)
{
	return (uint64_t)ts->tv_sec * NS + (uint64_t)ts->tv_nsec;
}

static void raise_max(_Atomic uint64_t *max, uint64_t value)
{
	if (value > get(max))
		atomic_store_explicit(max, value, memory_order_relaxed);
}

static uint64_t clock_look(struct worker *w, struct clock_state *c, enum clock_kind kind)
{
	_Atomic uint64_t *shared = &w->sh->clock_last[kind];
	uint64_t before = atomic_load(shared), t;
	struct timespec ts;

	clock_gettime(clocks[kind].id, &ts);
	t = to_ns(&ts);
	if (t < before) {
		add(&w->slot->back, 1);
		worker_error(w, "%s went back %llu ns to %llu on cpu %u", clocks[kind].name,
			     (unsigned long long)(before - t), (unsigned long long)t, c->cpu);
		/* Counted once: from here on the clock is measured against where it is now. */
		atomic_compare_exchange_strong(shared, &before, t);
		return t;
	}
	while (t > before && !atomic_compare_exchange_weak(shared, &before, t))
		;
	return t;
}

static void clocks_look(struct worker *w, struct clock_state *c)
{
	uint64_t mono = clock_look(w, c, CLOCK_KIND_MONO), t[CLOCK_KINDS], again;

	if (c->last_mono && mono > c->last_mono && mono - c->last_mono > get(&w->slot->gap_ns)) {
		atomic_store(&w->slot->gap_ns, mono - c->last_mono);
		atomic_store(&w->slot->gap_at_ns, mono);
	}
	c->last_mono = mono;
	t[CLOCK_KIND_REAL] = clock_look(w, c, CLOCK_KIND_REAL);
	t[CLOCK_KIND_BOOT] = clock_look(w, c, CLOCK_KIND_BOOT);
	again = clock_look(w, c, CLOCK_KIND_MONO);
	/*
	 * Only readings that nothing interrupted are one instant; how long that takes depends on
	 * the machine.
	 */
	if (c->looks == 0 || again - mono < c->tightest)
		c->tightest = again - mono;
	if (c->looks++ < WARM_UP || again - mono > 2 * c->tightest + 1000)
		return;
	for (enum clock_kind k = CLOCK_KIND_REAL; k < CLOCK_KINDS; k++) {
		/* Unsigned on purpose: differences are small though the clocks are far apart. */
		uint64_t offset = t[k] - mono - (again - mono) / 2;
		int64_t moved = (int64_t)(offset - c->base[k]);

		if (!c->based)
			c->base[k] = offset;
		else
			raise_max(&w->slot->drift_ns,
				  moved < 0 ? 0 - (uint64_t)moved : (uint64_t)moved);
	}
	c->based = true;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / NS), .tv_nsec = (long)(ns % NS)};
}

static void clock_sleep(struct worker *w, struct clock_state *c)
{
	uint64_t due = now_ns() + w->opt->clock_us * 1000, now, late;
	struct itimerspec it = {.it_value = to_timespec(due)};
	uint64_t expired;

	c->by_timer = !c->by_timer;
	if (c->by_timer) {
		if (timerfd_settime(c->timer, TFD_TIMER_ABSTIME, &it, NULL) < 0)
			worker_die(w, "timerfd_settime");
		while (read(c->timer, &expired, sizeof(expired)) < 0) {
			if (errno != EINTR)
				worker_die(w, "read of the timerfd");
		}
	} else {
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &it.it_value, NULL) == EINTR)
			;
	}
	now = now_ns();
	if (worker_fault(w, FAULT_LATE))
		now += (w->opt->stuck_ms + 1) * 1000000;
	if (now + EARLY_NS < due) {
		worker_error(w, "a sleep on cpu %u ended %llu ns early", c->cpu,
			     (unsigned long long)(due - now));
		return;
	}
	late = now > due ? now - due : 0;
	raise_max(&w->slot->late_ns, late);
	if (late > w->opt->stuck_ms * 1000000)
		worker_error(w, "a sleep of %llu us on cpu %u by %s ended %llu ms late",
			     (unsigned long long)w->opt->clock_us, c->cpu,
			     c->by_timer ? "timerfd" : "nanosleep",
			     (unsigned long long)(late / 1000000));
}

/* The number-th of the CPUs this process may run on. */
static int pin(unsigned int number, unsigned int *cpu)
{
	cpu_set_t all, one;

	if (sched_getaffinity(0, sizeof(all), &all) < 0)
		return -1;
	CPU_ZERO(&one);
	for (unsigned int i = 0; i < CPU_SETSIZE; i++) {
		if (!CPU_ISSET(i, &all))
			continue;
		if (number-- == 0) {
			CPU_SET(i, &one);
			*cpu = i;
			return sched_setaffinity(0, sizeof(one), &one);
		}
	}
	errno = ENOENT;
	return -1;
}

void work_clock(struct worker *w)
{
	struct sched_param param = {.sched_priority = 10};
	struct clock_state c = {0};

	if (pin(w->number, &c.cpu) < 0)
		worker_die(w, "pinning to a CPU");
	c.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	if (c.timer < 0)
		worker_die(w, "timerfd_create");
	/*
	 * Needs privilege, which the guest's init has; without it the maxima show the scheduler
	 * too.
	 */
	(void)sched_setscheduler(0, SCHED_FIFO, &param);
	for (;;) {
		/* Orders are not for this worker: it also watches while the others verify. */
		add(&w->slot->beats, 1);
		for (uint64_t i = 0; i < w->opt->burst; i++)
			clocks_look(w, &c);
		if (worker_fault(w, FAULT_CLOCK)) {
			/* As if another CPU had read a time that has not come yet. */
			add(&w->sh->clock_last[CLOCK_KIND_MONO], NS);
		}
		clock_sleep(w, &c);
	}
}
