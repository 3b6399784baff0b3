/* SPDX-License-Identifier: MIT */
/*
 * A machine without KVM around one virtio device, for fuzz targets: what a guest's driver can do to
 * the device, behind the registers of virtio-mmio, and what must hold whatever it does.
 *
 *	static const struct fuzz_target target = { .ops = &virtio_foo_ops, ... };
 *
 *	int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
 *	{
 *		return fuzz_virtio(&target, data, size);
 *	}
 *
 * An input is which variant of the device and which features, then actions (machine_actions.c):
 * stores anywhere in guest memory, registers, kicks, requests as a driver makes them, resets,
 * things that the device's other end does, pauses, moves to a second machine. After it
 *
 *	- nothing was stored but what oracle.h allows;
 *	- the driver's reset ends, and leaves nothing in flight and nothing set;
 *	- an honest driver finds a device that works.
 *
 * The machine is kept for the next input, guest memory is zeros again: what is left over in a
 * device after a reset is a bug. The loop runs on the fuzzer's thread; what may wait for it
 * (resets, pauses) is called on another one, as a vCPU does.
 */
#ifndef GODWIT_FUZZ_MACHINE_H
#define GODWIT_FUZZ_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "../virtio.h"
#include "fuzz.h"

#define MACHINE_VARIANTS 8U

/* Where things are in guest memory: rings of 2 KiB for each queue, tables, then buffers. */
#define ARENA (1 * MIB)
#define ARENA_SIZE (64 * KIB)
#define ARENA_TABLES (ARENA + 0x4800)
#define ARENA_BUFFERS (ARENA + 0x5000)

struct fuzz_machine;

struct fuzz_target {
	const struct device_ops *ops;
	unsigned variants; /* at most MACHINE_VARIANTS */

	/* Once a variant: makes the device's other end and gives the device's config. */
	const void *(*setup)(struct fuzz_machine *m);

	/*
	 * A request of the device's own kind, its parts from the input; something that happens on
	 * the host's side.
	 */
	void (*request)(struct fuzz_machine *m, struct fuzz_in *in);
	void (*host)(struct fuzz_machine *m, struct fuzz_in *in);

	/* Does the device work? The driver is up. Ends in fuzz_bug() if not. */
	void (*honest)(struct fuzz_machine *m);

	/*
	 * The host's side as it is in the beginning: before the honest driver, and at the end.
	 * What must be right for a move. All may be NULL.
	 */
	void (*tidy)(struct fuzz_machine *m);
	void (*leave)(struct fuzz_machine *m);
	void (*before_move)(struct fuzz_machine *m);

	bool registers; /* mostly register accesses, from the state after a reset on */
	bool unordered; /* what it saves after a load is in another order */
};

/* One of the two ends of a move. */
struct machine_side {
	struct vm vm;
	struct device *dev, *mmio;
	struct virtio *v;
};

struct machine_queue {
	uint16_t size;
	uint64_t desc, avail, used;
	uint16_t avail_idx, next_desc;
	uint16_t seen; /* used entries that have been looked at */
};

struct fuzz_machine {
	const struct fuzz_target *target;
	unsigned variant;
	const void *config;
	struct loop *loop;
	struct ram ram;
	struct machine_side *side;
	struct machine_queue queue[VIRTIO_MAX_QUEUES];
	uint64_t top; /* where the next buffer is */
	unsigned moves;
	void *host; /* the target's */
};

/* Does with the input what a guest could; see above. 0. */
int fuzz_virtio(const struct fuzz_target *t, const uint8_t *data, size_t size);

/* ---- for targets ---- */

struct fuzz_buf {
	uint64_t gpa;
	uint32_t len;
	bool in; /* the device may store into it */
};

/* An address and a length of the input's choice; most are harmless. */
uint64_t machine_gpa(struct fuzz_in *in);
uint32_t machine_len(struct fuzz_in *in);

/* Buffers in the arena; the same memory comes again after a while. */
struct fuzz_buf machine_out(struct fuzz_machine *m, const void *data, uint32_t len);
struct fuzz_buf machine_room(struct fuzz_machine *m, uint32_t len);

/* A chain of n buffers, made available. */
void machine_chain(struct fuzz_machine *m, unsigned queue, const struct fuzz_buf *b, unsigned n,
		   bool indirect);
void machine_kick(struct fuzz_machine *m, unsigned queue);

/* Until what was kicked has been served, unless it has to wait for something. */
void machine_settle(struct fuzz_machine *m);

/* Until a used entry comes: how many bytes the device stored. */
uint32_t machine_wait_used(struct fuzz_machine *m, unsigned queue);

/* Steps the loop until done(arg); fuzz_bug() with `what` when that takes seconds. */
void machine_until(struct fuzz_machine *m, bool (*done)(void *arg), void *arg, const char *what);

/* Brings the driver up, after a reset: features that are offered and not in `without`. */
void machine_up(struct fuzz_machine *m, uint64_t without, uint16_t size);

uint64_t machine_reg(struct fuzz_machine *m, uint64_t offset, unsigned size);
void machine_set_reg(struct fuzz_machine *m, uint64_t offset, unsigned size, uint64_t value);

/* Quiesces, does something at rest and goes on, as around a hand-over that fails. */
void machine_at_rest(struct fuzz_machine *m, void (*fn)(struct fuzz_machine *m));

#endif
