/* SPDX-License-Identifier: MIT */
/*
 * What a guest's driver can do to a disk, on an image in memory: cached, read-only, durable by
 * itself, with several queues, and one that takes only whole aligned units, as direct I/O does.
 */
#include "../virtio_blk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../disk_image.h"
#include "machine.h"
#include "oracle.h"

#define SECTORS 128U
#define UNIT 4096U
#define MAX_RANGES 4U

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };

static const struct {
	enum vm_cache cache;
	bool readonly, discard, units;
	uint16_t queues;
} kinds[] = {
	{VM_CACHE_WRITEBACK, false, true, false, 1},
	{VM_CACHE_WRITEBACK, false, true, true, 1}, /* in units */
	{VM_CACHE_WRITETHROUGH, false, false, false, 2},
	{VM_CACHE_WRITEBACK, true, false, false, 1},
	{VM_CACHE_UNSAFE, false, true, true, 4},
};

struct image {
	struct vm_disk disk;
	int fd;
};

/* ---- the image; a file in memory has no direct I/O of its own ---- */

static bool in_units;

int __real_disk_image_open(struct disk_image *img, const struct vm_disk *disk, struct errmsg *err);
int __wrap_disk_image_open(struct disk_image *img, const struct vm_disk *disk, struct errmsg *err);
int __real_disk_image_acquire(struct disk_image *img, struct errmsg *err);
int __wrap_disk_image_acquire(struct disk_image *img, struct errmsg *err);

static int set_units(struct disk_image *img, int ret)
{
	if (ret == 0 && in_units)
		img->io_align = img->mem_align = UNIT;
	return ret;
}

int __wrap_disk_image_open(struct disk_image *img, const struct vm_disk *disk, struct errmsg *err)
{
	return set_units(img, __real_disk_image_open(img, disk, err));
}

int __wrap_disk_image_acquire(struct disk_image *img, struct errmsg *err)
{
	return set_units(img, __real_disk_image_acquire(img, err));
}

static void make_whole(struct fuzz_machine *m)
{
	struct image *img = m->host;

	in_units = kinds[m->variant].units;
	fuzz_need(!ftruncate(img->fd, SECTORS * DISK_SECTOR), "the image: %s", strerror(errno));
}

static void make_empty(struct fuzz_machine *m)
{
	struct image *img = m->host;

	fuzz_need(!ftruncate(img->fd, 0), "the image: %s", strerror(errno));
	make_whole(m);
}

static const void *setup(struct fuzz_machine *m)
{
	struct image *img = calloc(1, sizeof(*img));

	fuzz_need(img, "no memory");
	img->fd = memfd_create("godwit-fuzz", MFD_CLOEXEC);
	img->disk = (struct vm_disk){
		.cache = (uint8_t)kinds[m->variant].cache,
		.readonly = kinds[m->variant].readonly,
		.discard = kinds[m->variant].discard,
		.queues = kinds[m->variant].queues,
		.serial = "fuzz",
	};
	snprintf(img->disk.path, sizeof(img->disk.path), "/proc/self/fd/%d", img->fd);
	m->host = img;
	make_whole(m);
	return &img->disk;
}

/* ---- what the guest does ---- */

static void ranges(struct fuzz_in *in, uint8_t *to, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t sector = in_u8(in);
		uint32_t sectors = in_u8(in), flags = in_u8(in);

		if (flags & 0x80)
			sector = in_u64(in);
		if (flags & 0x40)
			sectors = in_u32(in);
		flags &= 3;
		memcpy(to + 16 * i, &sector, 8);
		memcpy(to + 16 * i + 8, &sectors, 4);
		memcpy(to + 16 * i + 12, &flags, 4);
	}
}

static void send_request(struct fuzz_machine *m, unsigned queue, uint32_t type, uint64_t sector,
			 struct fuzz_buf *b, unsigned n, unsigned shape)
{
	uint8_t header[16] = {0};

	memcpy(header, &type, 4);
	memcpy(header + 8, &sector, 8);
	b[0] = machine_out(m, header, sizeof(header));
	b[n++] = machine_room(m, 1);
	machine_chain(m, queue, b, n, shape & 1);
	if (!(shape & 2))
		machine_kick(m, queue);
}

static void request(struct fuzz_machine *m, struct fuzz_in *in)
{
	static const uint8_t types[8] = {T_IN, T_OUT, T_FLUSH,	 T_GET_ID,
					 T_IN, T_OUT, T_DISCARD, T_WRITE_ZEROES};
	unsigned shape = in_u8(in), queue = in_u8(in) % m->side->v->n_queues;
	uint32_t type = types[shape >> 5], len = 0;
	uint64_t sector = in_u8(in);
	uint8_t bytes[16 * MAX_RANGES];
	struct fuzz_buf b[5];
	unsigned n = 1;

	if (shape & 4)
		sector = in_u64(in);
	switch (type) {
	case T_DISCARD:
	case T_WRITE_ZEROES:
		len = 1 + in_u8(in) % MAX_RANGES;
		ranges(in, bytes, len);
		b[n++] = machine_out(m, bytes, 16 * len);
		break;
	case T_FLUSH:
		break;
	case T_GET_ID:
		b[n++] = machine_room(m, in_u8(in));
		break;
	default:
		/* In up to three pieces, cut where they like. */
		for (unsigned i = 0; i <= (shape >> 3) % 3; i++) {
			uint32_t cut = in_u8(in);

			cut = cut & 1 ? cut * 31 : cut / 2 * DISK_SECTOR;
			b[n] = machine_room(m, cut);
			b[n].in = type == T_IN;
			/* All of the image, over the rings if it must be. */
			if (cut > 16 * KIB)
				b[n].gpa = ARENA + 16 * KIB;
			n++;
		}
	}
	send_request(m, queue, type, sector, b, n, shape);
}

/* Somebody cuts the image off, or puts it back. */
static void host(struct fuzz_machine *m, struct fuzz_in *in)
{
	struct image *img = m->host;
	unsigned size = in_u8(in);

	if (size == 0)
		make_whole(m);
	else
		fuzz_need(!ftruncate(img->fd, size * 300), "the image: %s", strerror(errno));
}

static uint8_t wait_status(struct fuzz_machine *m, uint64_t gpa, uint32_t written)
{
	uint8_t status = 0xff;

	fuzz_need(machine_wait_used(m, 0) == written, "an answer of another length");
	oracle_load(gpa, &status, 1);
	return status;
}

static void honest(struct fuzz_machine *m)
{
	static uint8_t text[UNIT], back[UNIT];
	bool ro = kinds[m->variant].readonly;
	struct fuzz_buf b[3];
	uint8_t status;

	memset(text, 0x5a, sizeof(text));
	b[1] = machine_out(m, text, sizeof(text));
	send_request(m, 0, T_OUT, 8, b, 2, 0);
	status = wait_status(m, b[2].gpa, 1);
	fuzz_need(status == (ro ? 1 : 0), "a write gives %u", status);
	send_request(m, 0, T_FLUSH, 0, b, 1, 1);
	status = wait_status(m, b[1].gpa, 1);
	fuzz_need(status == 0, "a flush gives %u", status);
	b[1] = machine_room(m, sizeof(back));
	send_request(m, 0, T_IN, 8, b, 2, 0);
	status = wait_status(m, b[2].gpa, sizeof(back) + 1);
	fuzz_need(status == 0, "a read gives %u", status);
	oracle_load(b[1].gpa, back, sizeof(back));
	fuzz_need(memcmp(back, text, sizeof(back)) == 0 || ro, "another content than was written");
}

static const struct fuzz_target target = {
	.ops = &virtio_blk_ops,
	.variants = ARRAY_SIZE(kinds),
	.setup = setup,
	.request = request,
	.host = host,
	.honest = honest,
	.tidy = make_empty,
	.before_move = make_whole,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_virtio(&target, data, size);
}
