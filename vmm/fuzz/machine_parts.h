/* SPDX-License-Identifier: MIT */
/* Inside of the machine: machine.c has its memory, registers and rings, machine_move.c its ends and
 * moves, machine_actions.c what an input makes of all that. */
#ifndef GODWIT_FUZZ_MACHINE_PARTS_H
#define GODWIT_FUZZ_MACHINE_PARTS_H

#include "machine.h"

#define MACHINE_WAIT_NS (10 * NS_PER_SEC)
#define MACHINE_PARTS 8U /* buffers of a chain */

enum {
	REG_MAGIC = 0x00,
	REG_DEVICE_FEATURES = 0x10,
	REG_DEVICE_FEATURES_SEL = 0x14,
	REG_DRIVER_FEATURES = 0x20,
	REG_DRIVER_FEATURES_SEL = 0x24,
	REG_QUEUE_SEL = 0x30,
	REG_QUEUE_SIZE_MAX = 0x34,
	REG_QUEUE_SIZE = 0x38,
	REG_QUEUE_READY = 0x44,
	REG_QUEUE_NOTIFY = 0x50,
	REG_STATUS = 0x70,
	REG_QUEUE_DESC = 0x80,
	REG_QUEUE_DRIVER = 0x90,
	REG_QUEUE_DEVICE = 0xa0,
	REG_CONFIG = 0x100,
};

/* ---- machine.c ---- */

/* Calls fn on the vCPU's thread, while the loop runs here. */
void machine_on_vcpu(struct fuzz_machine *m, void (*fn)(struct fuzz_machine *m), const char *what);

/* A register of 32 bits; all registers of a queue. */
void machine_set(struct fuzz_machine *m, uint64_t offset, uint32_t value);
void machine_set_queue(struct fuzz_machine *m, unsigned queue, const struct machine_queue *q);

/* The driver's reset, after which the device must be as it was made. */
void machine_reset(struct fuzz_machine *m);

/* Entry i of a table; the available ring. */
void machine_store_desc(uint64_t table, unsigned i, uint64_t addr, uint32_t len, unsigned flags,
			unsigned next);
void machine_set_avail_idx(struct machine_queue *q, uint16_t idx);
void machine_offer(struct machine_queue *q, uint16_t head);

/* ---- machine_move.c ---- */

/* A new m->side. */
void machine_make_side(struct fuzz_machine *m);
void machine_acquire(struct fuzz_machine *m);

void machine_quiesce(struct fuzz_machine *m);
void machine_resume(struct fuzz_machine *m);
void machine_move(struct fuzz_machine *m, struct fuzz_in *in);

#endif
