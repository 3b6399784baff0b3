/* SPDX-License-Identifier: MIT */
/*
 * Faults on purpose: how tests see what godwit does when the host, the kernel or the network does
 * what it hardly ever does. There are none in a build without FAULTS=1: every call is a constant
 * then.
 *
 * GODWIT_FAULT=KIND@PLACE[#N] has that kind of fault happen at this place, the first time that it
 * is come to or the N-th. Places are counted from when fault_arm() was called, as a migration
 * begins: what comes before is of no interest.
 *
 *	kill@send-COMMIT	the process dies before the frame is sent; recv-: when it has come
 *	cut@recv-STATE		the connection breaks there
 *	delay@send-READY	nothing goes on for FAULT_DELAY_NS
 *	wire@send-PAGES		a bit is wrong of what is sent
 *	short@send		the kernel takes only a part of what is to be sent
 *	ram@stored		a bit of a page turns after the page has been stored
 *	dirty@harvest		a page's dirty bit gets lost
 *	enomem@alloc		there is no memory for what is asked for
 *	eio@disk		a disk's request ends with EIO, and nothing has been done
 *	eio@sync		the same of one that makes durable what was written
 *	eio@own-sync		and of one that no flush of the guest's waits for, but a move
 *	slow@disk, @sync	it is begun only after FAULT_DELAY_NS, for which a move waits
 *	hang@disk, @sync	after FAULT_HANG_NS, for which a guest that stands does not
 *	eio@open		a disk's image cannot be opened
 *	eio@lock		nor locked
 *	enospc@leave		the disk is full, where the guest's memory is left behind
 *	refuse@kvm		KVM refuses an ioctl (of those that go through kvm_ioctl())
 *
 * What happened is said in a file, if GODWIT_FAULT_LOG names one: that a fault has come about at
 * all is what a test must know.
 */
#ifndef GODWIT_FAULT_H
#define GODWIT_FAULT_H

#include <stdbool.h>
#include <stddef.h>

#include "util.h"

enum fault {
	FAULT_KILL,
	FAULT_CUT,
	FAULT_DELAY,
	FAULT_WIRE,
	FAULT_SHORT,
	FAULT_RAM,
	FAULT_DIRTY,
	FAULT_ENOMEM,
	FAULT_EIO,
	FAULT_SLOW,
	FAULT_HANG,
	FAULT_ENOSPC,
	FAULT_REFUSE,
	N_FAULTS,
};

#define FAULT_DELAY_NS (1 * NS_PER_SEC)
#define FAULT_HANG_NS (7 * NS_PER_SEC) /* the five seconds of a quiesce, and what comes before */

#ifdef GODWIT_FAULTS

/* From now on places count. Any thread. */
void fault_arm(void);

/* Does this fault happen here, now? What it is up to the caller does. Any thread. */
bool fault_at(enum fault kind, const char *place);

/*
 * What may happen to a frame, at "send-" or "recv-" and its name, on the socket fd: kill, cut and
 * delay do here. true: damage it.
 */
bool fault_frame(const char *direction, const char *name, int fd);

#else

static inline void fault_arm(void)
{
}

static inline bool fault_at(enum fault kind, const char *place)
{
	(void)kind;
	(void)place;
	return false;
}

/* Of its arguments nothing is worked out. */
#define fault_frame(direction, name, fd) ((void)sizeof(direction), false)

#endif

#endif
