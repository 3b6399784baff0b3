/* SPDX-License-Identifier: MIT */
/*
 * Workers: processes that hold known content and check it while the machine moves.
 *
 * They are processes and not threads, so that page tables, fork, exec and context switches are
 * part of what is migrated. Each has a slot of counters in memory shared with the supervisor;
 * errors and answers go to it by a pipe, as messages no longer than PIPE_BUF, so that they never
 * mix.
 *
 * The supervisor gives orders by a shared word on which idle workers sleep (futex). Every worker
 * calls worker_turn() each time round its loop; it returns at once unless there is an order.
 */
#ifndef GODWIT_GUEST_LINUX_WORK_H
#define GODWIT_GUEST_LINUX_WORK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "options.h"

#define PAIR_RING_BYTES (16 * 4 * 4096) /* the file that the pair shares */
#define WORKER_MAX 128
#define WORKER_ERRORS 8 /* errors a worker says in words; later ones are only counted */

/* The order word is a count (so that each order differs) times 4 plus one of these. */
enum order {
	ORDER_RUN,
	ORDER_VERIFY, /* verify all you hold, answer MSG_VERIFIED, and stay stopped */
	ORDER_HOLD,   /* before the start: all wait until the ready line is out */
};

/* Damage that a worker does to itself when told, to prove that it would be found. */
enum fault {
	FAULT_NONE,
	FAULT_BYTE,
	FAULT_STALE,
	FAULT_ZERO,
	FAULT_BOOK,
	FAULT_BLOCK,
	FAULT_COW,
	FAULT_REGS,
	FAULT_CLOCK,
	FAULT_LATE,
	FAULT_DIE,
};

enum clock_kind {
	CLOCK_KIND_MONO,
	CLOCK_KIND_REAL,
	CLOCK_KIND_BOOT,
	CLOCK_KINDS,
};

/* Written by one worker, read by the supervisor. */
struct slot {
	char name[16];
	pid_t pid;		/* 0 once it has ended */
	bool answers;		/* takes part in a full verification */
	bool stalled;		/* the supervisor's finding */
	uint64_t seen_beats;	/* beats when the supervisor last looked */
	uint64_t still_ms;	/* for how long they have been the same */
	_Atomic uint64_t beats; /* grows while the worker moves */
	_Atomic uint64_t pages, errors, full;
	_Atomic uint64_t blocks, execs, regs;
	bool writes;		  /* to a disk; durable counts */
	_Atomic uint64_t durable; /* writes */
	_Atomic uint64_t back, gap_ns, gap_at_ns, late_ns, drift_ns;
};

struct shared {
	_Atomic uint32_t order;
	_Atomic uint32_t fault; /* enum fault; the first worker concerned takes it */
	_Atomic uint64_t rate;
	_Atomic uint64_t clock_last[CLOCK_KINDS]; /* latest reading on any CPU, ns */
	uint64_t seed;
	struct slot slots[WORKER_MAX];
};

enum msg_kind {
	MSG_ERROR,
	MSG_VERIFIED,
	MSG_FOUND,
};

struct msg {
	uint32_t worker;
	uint32_t kind;
	uint64_t value; /* MSG_VERIFIED: pages; MSG_FOUND: writes */
	char text[400];
};

struct worker {
	unsigned int index;  /* of the slot */
	unsigned int number; /* among its kind, from 0 */
	int msg_fd;
	int pipe_in, pipe_out; /* the pair's; else -1 */
	int ring_fd;	       /* the pair's */
	uint32_t order_seen;
	uint64_t (*verify)(struct worker *w); /* returns pages; may be NULL */
	void *data;			      /* for verify */
	const struct options *opt;
	struct shared *sh;
	struct slot *slot;
};

/* The workers. They do not return. */
void work_mem(struct worker *w) __attribute__((noreturn));
void work_send(struct worker *w) __attribute__((noreturn));
void work_recv(struct worker *w) __attribute__((noreturn));
void work_churn(struct worker *w) __attribute__((noreturn));
void work_regs(struct worker *w) __attribute__((noreturn));
void work_clock(struct worker *w) __attribute__((noreturn));
void work_log(struct worker *w) __attribute__((noreturn));
void work_slots(struct worker *w) __attribute__((noreturn));
void work_swap(struct worker *w) __attribute__((noreturn));
void work_names(struct worker *w) __attribute__((noreturn));

/* The widest registers that work_regs checks on this CPU: "sse", "avx" or "avx512". */
const char *regs_level(void);

/* What the exec'd child of work_churn does: argv as it was given; returns the exit status. */
int churn_child(int argc, char **argv);
#define CHURN_ARG "gt-churn-child"

/* Wait until the order is no longer ORDER_HOLD. */
void worker_hold(struct worker *w);

/* Once round the loop: beat, and obey an order if there is one. */
void worker_turn(struct worker *w);

/* Sleep until there is an order, or us microseconds at most. Beats. */
void worker_rest(struct worker *w, uint64_t us);

/* Count an error, and say it in words unless there were many. */
void worker_error(struct worker *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The worker cannot work at all: say so and end; the supervisor reports the death as well. */
void worker_die(struct worker *w, const char *what) __attribute__((noreturn));

/* Tell the supervisor, which says it. */
void worker_tell(struct worker *w, enum msg_kind kind, uint64_t value);

/* True once, if the supervisor asked for this fault and nobody has taken it. */
bool worker_fault(struct worker *w, enum fault fault);

/* A zeroed anonymous mapping, or death. */
void *worker_map(struct worker *w, size_t bytes);

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t now_ns(void);

static inline void add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t get(_Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* xorshift64*: a private, cheap source of choices. state must not be 0. */
static inline uint64_t rng_next(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * UINT64_C(0x2545f4914f6cdd1d);
}

#endif
