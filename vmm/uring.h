/* SPDX-License-Identifier: MIT */
/*
 * An io_uring that does only what its owner uses it for. io_uring opens files and connects sockets
 * without a system call that a seccomp filter would see; so a ring is made with the list of
 * what it is for, and the kernel refuses the rest of it for ever (-EACCES in the completion).
 */
#ifndef GODWIT_URING_H
#define GODWIT_URING_H

#include <liburing.h>
#include <stddef.h>
#include <stdint.h>

struct uring_use {
	const uint8_t *ops; /* enum io_uring_op */
	unsigned n_ops;
	const uint8_t *registers; /* IORING_REGISTER_*, for later use */
	unsigned n_registers;
	uint8_t sqe_flags; /* IOSQE_* that may be set */
};

/*
 * As io_uring_queue_init(3) without flags, restricted to that use. Linux before 5.10 knows no
 * restrictions: the ring is an ordinary one there. 0 or -errno.
 */
int uring_init(struct io_uring *ring, unsigned entries, const struct uring_use *use);

#endif
