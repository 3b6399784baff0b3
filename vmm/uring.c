/* SPDX-License-Identifier: MIT */
#include "uring.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Debian 12's liburing does not export what it has for these two. */
static int register_ring(const struct io_uring *ring, unsigned op, const void *arg, unsigned n)
{
	return syscall(SYS_io_uring_register, ring->ring_fd, op, arg, n) < 0 ? -errno : 0;
}

static int restrict_ring(struct io_uring *ring, const struct uring_use *use)
{
	unsigned n = 0;
	struct io_uring_restriction *r = calloc(use->n_ops + use->n_registers + 1, sizeof(*r));
	int ret;

	if (!r)
		return -ENOMEM;
	for (unsigned i = 0; i < use->n_ops; i++, n++) {
		r[n].opcode = IORING_RESTRICTION_SQE_OP;
		r[n].sqe_op = use->ops[i];
	}
	for (unsigned i = 0; i < use->n_registers; i++, n++) {
		r[n].opcode = IORING_RESTRICTION_REGISTER_OP;
		r[n].register_op = use->registers[i];
	}
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	r[n++].sqe_flags = use->sqe_flags;
	ret = register_ring(ring, IORING_REGISTER_RESTRICTIONS, r, n);
	free(r);
	return ret ? ret : register_ring(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int uring_init(struct io_uring *ring, unsigned entries, const struct uring_use *use)
{
	int ret = io_uring_queue_init(entries, ring, IORING_SETUP_R_DISABLED);

	/* What an old kernel says of a flag that it does not know. */
	if (ret == -EINVAL)
		return io_uring_queue_init(entries, ring, 0);
	if (ret)
		return ret;
	ret = restrict_ring(ring, use);
	if (ret)
		io_uring_queue_exit(ring);
	return ret;
}
