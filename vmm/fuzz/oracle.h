/* SPDX-License-Identifier: MIT */
/*
 * A second opinion on rings and guest memory.
 *
 * Theory of operation: the linker puts functions of this part between the devices and virtq.c
 * (--wrap), so each chain that a device takes is compared with what another reading of the same
 * ring finds in it, and it is known at any time which chains a device has. Beside guest memory is a
 * copy of it. What the guest stores goes to both. What a device may store is taken over into the
 * copy when it gives the chain back, and only from pages that are marked dirty; so whenever the two
 * are compared, a difference is a store outside of what the guest offered, one into a chain that
 * was given back already, or one without its mark.
 *
 * One machine at a time. The state is of the process, as the wrapped functions have no room for
 * more.
 */
#ifndef GODWIT_FUZZ_ORACLE_H
#define GODWIT_FUZZ_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

#include "../virtio.h"

/* Before an input: guest memory is all zeros and has no marks. */
void oracle_begin(struct ram *ram);

/* After it: checks, then all is zeros and without marks again. */
void oracle_end(void);

/* A store or load of the guest's own; false, and nothing is done, where there is no RAM. */
bool oracle_store(uint64_t gpa, const void *buf, uint64_t len);
bool oracle_load(uint64_t gpa, void *buf, uint64_t len);

/* Compares; `when` is for the message. */
void oracle_check(const char *when);

/* The device was reset: it has no chains, and what it had stored into them stays. */
void oracle_forget_chains(void);

/* From now to the end of the input the device may give back chains that it was never given: its
 * state came from a stream that lies. */
void oracle_state_lies(void);

/* Are bytes [gpa, gpa + len) in the writable part of a chain of this queue that a device has? */
bool oracle_writable(unsigned queue, uint64_t gpa, uint64_t len);

/*
 * Asked about pages that a device gives back to the host: the target says whether it may, for these
 * are no stores into chains. NULL: it may not.
 */
extern bool (*oracle_may_zero)(uint64_t index, uint64_t n);

/* Told of each chain that a device takes; may be NULL. */
extern void (*oracle_taken)(unsigned queue, const struct virtq_chain *c);

#endif
