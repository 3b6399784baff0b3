/* SPDX-License-Identifier: MIT */
#include "disk_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "util.h"
#include "virtq.h"

#define ZEROS_SIZE 65536U

/* Where an op is: what the io_uring operation under way does. */
enum step {
	STEP_DATA,	  /* between the image and the caller's buffers, or from the zeros */
	STEP_BOUNCE_READ, /* a read's window */
	STEP_FILL,	  /* the window that a write covers in part */
	STEP_BOUNCE_WRITE,
	STEP_PUNCH,
	STEP_ZERO_RANGE,
	STEP_SYNC,
};

static const _Alignas(4096) uint8_t zeros[ZEROS_SIZE];

static void on_io(struct loop_op *io, int32_t res);
static void end(struct disk_op *op, int err);

/* ---- one write alone, or many ---- */

static bool changes(const struct disk_op *op)
{
	return op->verb != DISK_READ && op->verb != DISK_SYNC;
}

static bool may_enter(const struct disk_io *disk, const struct disk_op *op)
{
	return !disk->exclusive && !(op->alone && disk->writers);
}

static void enter(struct disk_io *disk, const struct disk_op *op)
{
	disk->writers++;
	disk->exclusive = op->alone;
}

static void wait_for_turn(struct disk_io *disk, struct disk_op *op)
{
	op->next = NULL;
	*disk->waiting_tail = op;
	disk->waiting_tail = &op->next;
}

/* ---- the kernel's part ---- */

static struct io_uring_sqe *sqe_of(struct disk_op *op, enum step step)
{
	op->step = (int)step;
	op->io.done = on_io;
	return loop_sqe(op->disk->loop, &op->io);
}

/* part[0 .. n) at offset; a write unless into. */
static void transfer(struct disk_op *op, enum step step, uint32_t n, uint64_t offset, bool into)
{
	struct io_uring_sqe *sqe = sqe_of(op, step);
	const struct disk_image *img = op->disk->image;

	if (into)
		io_uring_prep_readv(sqe, img->fd, op->part, n, offset);
	else
		io_uring_prep_writev2(sqe, img->fd, op->part, n, offset,
				      op->durable ? RWF_DSYNC : 0);
	if (img->io_blocks)
		io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
	else if (img->io_align > 1)
		loop_expect(op->disk->loop, LOOP_COMPLETION);
}

/* Reads or writes the window of the bounce buffer, which holds `piece` from `head` on. */
static void transfer_window(struct disk_op *op, enum step step)
{
	op->part[0] = (struct iovec){.iov_base = op->bounce, .iov_len = op->window};
	transfer(op, step, 1, op->offset + op->done - op->head, step != STEP_BOUNCE_WRITE);
}

static void allocate_range(struct disk_op *op, enum step step)
{
	struct io_uring_sqe *sqe = sqe_of(op, step);
	int mode = FALLOC_FL_KEEP_SIZE;

	mode |= step == STEP_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
	io_uring_prep_fallocate(sqe, op->disk->image->fd, mode, 0, 0);
	/* liburing's versions differ in the types of these two. */
	sqe->off = op->offset;
	sqe->addr = op->len;
}

static void sync_now(struct disk_op *op)
{
	io_uring_prep_fsync(sqe_of(op, STEP_SYNC), op->disk->image->fd, IORING_FSYNC_DATASYNC);
}

/* ---- data ---- */

static uint32_t zero_parts(struct disk_op *op)
{
	uint32_t n = 0;

	for (uint32_t left = op->piece; left; n++) {
		uint32_t len = MIN(left, ZEROS_SIZE);

		/* The kernel only reads it; an iovec has no const. */
		op->part[n] = (struct iovec){.iov_base = (void *)(uintptr_t)zeros, .iov_len = len};
		left -= len;
	}
	return n;
}
_Static_assert(DISK_PIECE_MAX / ZEROS_SIZE <= DISK_IOV_MAX, "a piece of zeros fits");

static uint32_t data_parts(struct disk_op *op, uint64_t at, uint64_t len)
{
	return iov_slice(op->iov, op->n_iov, op->iov_at + at, len, op->part, DISK_IOV_MAX);
}

/* Copies the present piece of a write into its place in the window. */
static void fill_bounce(struct disk_op *op)
{
	uint8_t *to = op->bounce + op->head;
	uint32_t n = op->verb == DISK_ZERO ? zero_parts(op) : data_parts(op, op->done, op->piece);

	for (uint32_t i = 0; i < n; i++) {
		memcpy(to, op->part[i].iov_base, op->part[i].iov_len);
		to += op->part[i].iov_len;
	}
}

static void next_bounced_piece(struct disk_op *op)
{
	uint64_t align = op->disk->image->io_align, pos = op->offset + op->done;
	uint64_t left = op->len - op->done;

	op->head = (uint32_t)(pos % align);
	op->piece = (uint32_t)MIN(left, DISK_BOUNCE_MAX - op->head);
	op->window = ALIGN_UP(op->head + op->piece, (uint32_t)align);
	if (op->verb == DISK_READ) {
		transfer_window(op, STEP_BOUNCE_READ);
	} else if (op->window != op->piece) {
		transfer_window(op, STEP_FILL);
	} else {
		fill_bounce(op);
		transfer_window(op, STEP_BOUNCE_WRITE);
	}
}

static void next_piece(struct disk_op *op)
{
	uint32_t n;

	if (op->bounced) {
		next_bounced_piece(op);
		return;
	}
	op->piece = (uint32_t)MIN(op->len - op->done, DISK_PIECE_MAX);
	n = op->verb == DISK_ZERO ? zero_parts(op) : data_parts(op, op->done, op->piece);
	transfer(op, STEP_DATA, n, op->offset + op->done, op->verb == DISK_READ);
}

/* ---- beginning and end ---- */

/* Zeroing, from the best way on; each may turn out not to be supported. */
static void zero_somehow(struct disk_op *op)
{
	const struct disk_io *disk = op->disk;

	if ((op->unmap || disk->no_zero_range) && !disk->no_punch)
		allocate_range(op, STEP_PUNCH);
	else if (!disk->no_zero_range)
		allocate_range(op, STEP_ZERO_RANGE);
	else
		next_piece(op);
}

/* Only whole units of the device can be given back; what is cut off keeps its content. */
static bool shrink_discard(struct disk_op *op)
{
	uint64_t unit = op->disk->image->discard_align;
	uint64_t from = ALIGN_UP(op->offset, unit), to = ALIGN_DOWN(op->offset + op->len, unit);

	if (from >= to)
		return false;
	op->offset = from;
	op->len = to - from;
	return true;
}

/* Something that has nothing to do ends on the loop, as all else does. */
static void end_soon(struct disk_op *op)
{
	io_uring_prep_nop(sqe_of(op, STEP_SYNC));
}

static void begin_now(struct disk_op *op)
{
	switch (op->verb) {
	case DISK_READ:
	case DISK_WRITE:
		next_piece(op);
		break;
	case DISK_SYNC:
		sync_now(op);
		break;
	case DISK_DISCARD:
		if (shrink_discard(op))
			allocate_range(op, STEP_PUNCH);
		else
			end_soon(op);
		break;
	case DISK_ZERO:
		zero_somehow(op);
		break;
	}
}

/* Disks that fail, or take their time, on purpose. */
static void on_eio(struct loop_op *io, int32_t res)
{
	(void)res;
	end(container_of(io, struct disk_op, io), -EIO);
}

static void on_late(struct loop_op *io, int32_t res)
{
	(void)res;
	begin_now(container_of(io, struct disk_op, io));
}

static void begin(struct disk_op *op)
{
	const char *place = op->verb == DISK_SYNC ? "sync" : "disk";
	struct loop *loop = op->disk->loop;

	if (fault_at(FAULT_EIO, place)) {
		op->io.done = on_eio;
		io_uring_prep_nop(loop_sqe(loop, &op->io));
	} else if (fault_at(FAULT_SLOW, place)) {
		op->io.done = on_late;
		loop_timer(loop, &op->io, FAULT_DELAY_NS);
	} else if (fault_at(FAULT_HANG, place)) {
		op->io.done = on_late;
		loop_timer(loop, &op->io, FAULT_HANG_NS);
	} else {
		begin_now(op);
	}
}

static void end(struct disk_op *op, int err)
{
	struct disk_io *disk = op->disk;

	free(op->bounce);
	op->bounce = NULL;
	if (changes(op)) {
		disk->writers--;
		if (op->alone)
			disk->exclusive = false;
		while (disk->waiting && may_enter(disk, disk->waiting)) {
			struct disk_op *next = disk->waiting;

			disk->waiting = next->next;
			if (!disk->waiting)
				disk->waiting_tail = &disk->waiting;
			enter(disk, next);
			begin(next);
		}
	}
	op->ended(op, err);
}

/* n more bytes are done; n <= piece. */
static void advance(struct disk_op *op, uint64_t n)
{
	/* Nothing more to read, or no room to write and no error: neither gets better. */
	if (n == 0) {
		end(op, op->verb == DISK_READ ? -ENODATA : -EIO);
		return;
	}
	op->done += n;
	if (op->done == op->len)
		end(op, 0);
	else if (!op->bounced && (op->offset + op->done) % op->disk->image->io_align)
		end(op, -EIO); /* a direct transfer stopped within a unit */
	else
		next_piece(op);
}

static void on_range(struct disk_op *op, int32_t res)
{
	struct disk_io *disk = op->disk;
	bool punch = op->step == STEP_PUNCH;

	if (res == 0) {
		op->done = op->len;
		if (op->durable)
			sync_now(op);
		else
			end(op, 0);
		return;
	}
	if (res == -EOPNOTSUPP) {
		disk->no_punch |= punch;
		disk->no_zero_range |= !punch;
	}
	if (op->verb == DISK_DISCARD || (res != -EOPNOTSUPP && res != -EINVAL))
		end(op, res);
	else if (res == -EOPNOTSUPP)
		zero_somehow(op);
	else
		next_piece(op); /* -EINVAL: not for this range, such as part of a device's block */
}

/* The part of a window that was transferred, as bytes of the piece in it. */
static uint64_t of_piece(const struct disk_op *op, int32_t res)
{
	return (uint32_t)res <= op->head ? 0 : MIN((uint32_t)res - op->head, op->piece);
}

static void on_io(struct loop_op *io, int32_t res)
{
	struct disk_op *op = container_of(io, struct disk_op, io);

	if (op->step == STEP_PUNCH || op->step == STEP_ZERO_RANGE) {
		on_range(op, res);
		return;
	}
	if (res == -EINTR && op->step != STEP_SYNC) {
		next_piece(op);
		return;
	}
	if (res < 0) {
		end(op, res);
		return;
	}
	switch ((enum step)op->step) {
	case STEP_DATA:
		advance(op, (uint32_t)res);
		break;
	case STEP_BOUNCE_READ: {
		uint64_t n = of_piece(op, res);

		if (n)
			op->store(op, op->done, op->bounce + op->head, n);
		advance(op, n);
		break;
	}
	case STEP_FILL:
		/* The image has no end within a unit: less is an image that was truncated. */
		if ((uint32_t)res != op->window) {
			end(op, -ENODATA);
			break;
		}
		fill_bounce(op);
		transfer_window(op, STEP_BOUNCE_WRITE);
		break;
	case STEP_BOUNCE_WRITE:
		advance(op, of_piece(op, res));
		break;
	default:
		end(op, 0);
	}
}

/* ---- in and out ---- */

void disk_io_init(struct disk_io *disk, struct loop *loop, const struct disk_image *image)
{
	*disk = (struct disk_io){.loop = loop, .image = image};
	disk->waiting_tail = &disk->waiting;
}

/* Does direct I/O take all of the op's buffers as they are? */
static bool buffers_aligned(struct disk_op *op)
{
	const struct disk_image *img = op->disk->image;
	uint32_t n;

	if (img->io_align == 1)
		return true;
	n = data_parts(op, 0, op->len);
	for (uint32_t i = 0; i < n; i++) {
		if ((uintptr_t)op->part[i].iov_base % img->mem_align ||
		    op->part[i].iov_len % img->io_align)
			return false;
	}
	return true;
}

static int get_bounce(struct disk_op *op)
{
	const struct disk_image *img = op->disk->image;
	uint64_t from = ALIGN_DOWN(op->offset, (uint64_t)img->io_align);
	uint64_t to = ALIGN_UP(op->offset + op->len, (uint64_t)img->io_align);
	size_t size = MIN(to - from, DISK_BOUNCE_MAX);
	void *p;

	/* Pages: whatever buffers direct I/O wants aligned, it is content with these. */
	if (posix_memalign(&p, PAGE_SIZE, size))
		return -ENOMEM;
	op->bounce = p;
	return 0;
}
_Static_assert(DISK_BOUNCE_MAX % DISK_ALIGN_MAX == 0, "a window ends with the buffer");

int disk_io_start(struct disk_io *disk, struct disk_op *op)
{
	const struct disk_image *img = disk->image;
	bool data = op->verb == DISK_READ || op->verb == DISK_WRITE, odd;

	op->disk = disk;
	op->done = 0;
	op->bounce = NULL;
	if (op->verb == DISK_DISCARD && disk->no_punch)
		return -EOPNOTSUPP;
	odd = op->verb != DISK_SYNC && (op->offset | op->len) % img->io_align;
	op->alone = odd && (op->verb == DISK_WRITE || op->verb == DISK_ZERO);
	op->bounced = (odd && op->verb != DISK_DISCARD) || (data && !buffers_aligned(op));
	if (op->bounced && get_bounce(op))
		return -ENOMEM;
	if (changes(op)) {
		if (disk->waiting || !may_enter(disk, op)) {
			wait_for_turn(disk, op);
			return 0;
		}
		enter(disk, op);
	}
	begin(op);
	return 0;
}

void disk_io_abandon(struct disk_io *disk, struct disk_op *op)
{
	disk->waiting = NULL;
	disk->waiting_tail = &disk->waiting;
	loop_cancel_wait(disk->loop, &op->io);
	free(op->bounce);
	op->bounce = NULL;
}
