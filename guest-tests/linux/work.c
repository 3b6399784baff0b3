/* SPDX-License-Identifier: MIT */
#include "work.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void send_msg(struct worker *w, struct msg *m)
{
	ssize_t n;

	m->worker = w->index;
	do {
		n = write(w->msg_fd, m, sizeof(*m));
	} while (n < 0 && errno == EINTR);
}

void worker_error(struct worker *w, const char *format, ...)
{
	struct msg m = {.kind = MSG_ERROR};
	va_list ap;

	add(&w->slot->errors, 1);
	if (get(&w->slot->errors) > WORKER_ERRORS)
		return;
	va_start(ap, format);
	vsnprintf(m.text, sizeof(m.text), format, ap);
	va_end(ap);
	send_msg(w, &m);
}

void worker_tell(struct worker *w, enum msg_kind kind, uint64_t value)
{
	struct msg m = {.kind = kind, .value = value};

	send_msg(w, &m);
}

void worker_die(struct worker *w, const char *what)
{
	worker_error(w, "%s: %s", what, strerror(errno));
	_exit(1);
}

/*
 * Returns when the order differs from the one seen, or after us; early returns are harmless to
 * all callers.
 */
static void order_wait(struct worker *w, uint64_t us)
{
	struct timespec ts = {
		.tv_sec = (time_t)(us / 1000000),
		.tv_nsec = (long)(us % 1000000) * 1000,
	};

	syscall(SYS_futex, &w->sh->order, FUTEX_WAIT, w->order_seen, &ts, NULL, 0);
}

void worker_hold(struct worker *w)
{
	uint32_t order;

	/*
	 * The order that ends it is left for worker_turn() to see: by the time that this process
	 * runs it may be one to verify, which wants an answer.
	 */
	while (((order = atomic_load(&w->sh->order)) & 3) == ORDER_HOLD) {
		w->order_seen = order;
		order_wait(w, 1000000);
	}
}

void worker_turn(struct worker *w)
{
	add(&w->slot->beats, 1);
	while (atomic_load(&w->sh->order) != w->order_seen) {
		w->order_seen = atomic_load(&w->sh->order);
		if ((w->order_seen & 3) != ORDER_VERIFY)
			continue;
		if (w->verify)
			worker_tell(w, MSG_VERIFIED, w->verify(w));
		while (atomic_load(&w->sh->order) == w->order_seen) {
			order_wait(w, 1000000);
			add(&w->slot->beats, 1);
		}
	}
}

void worker_rest(struct worker *w, uint64_t us)
{
	/* Well below the time after which a still worker counts as stuck. */
	const uint64_t slice = 500000;

	do {
		uint64_t t = us < slice ? us : slice;

		if (atomic_load(&w->sh->order) != w->order_seen)
			break;
		order_wait(w, t);
		add(&w->slot->beats, 1);
		us -= t;
	} while (us > 0);
}

bool worker_fault(struct worker *w, enum fault fault)
{
	uint32_t want = fault;

	return atomic_load_explicit(&w->sh->fault, memory_order_relaxed) == want &&
	       atomic_compare_exchange_strong(&w->sh->fault, &want, FAULT_NONE);
}

void *worker_map(struct worker *w, size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		worker_die(w, "mmap");
	return p;
}
