/* SPDX-License-Identifier: MIT */
/*
 * A block driver for tests: requests as virtio 1.2, section 5.2.6, has them, over virtio-driver.h.
 * Constants are spelt out here anew, so that the device's are tested as well.
 */
#ifndef GODWIT_TESTS_BLK_DRIVER_H
#define GODWIT_TESTS_BLK_DRIVER_H

#include "../disk_image.h"
#include "../virtio_blk.h"
#include "disk-fixture.h"
#include "virtio-driver.h"

#define BLK_IN 0U
#define BLK_OUT 1U
#define BLK_FLUSH 4U
#define BLK_GET_ID 8U
#define BLK_DISCARD 11U
#define BLK_ZEROES 13U

#define BLK_OK 0U
#define BLK_IOERR 1U
#define BLK_UNSUPP 2U
#define BLK_PENDING 0xa5U /* not a status */

#define BLK_F_SEG_MAX (1ULL << 2)
#define BLK_F_RO (1ULL << 5)
#define BLK_F_BLK_SIZE (1ULL << 6)
#define BLK_F_FLUSH (1ULL << 9)
#define BLK_F_TOPOLOGY (1ULL << 10)
#define BLK_F_MQ (1ULL << 12)
#define BLK_F_DISCARD (1ULL << 13)
#define BLK_F_ZEROES (1ULL << 14)

#define BLK_SLOTS 2048U
#define BLK_HEADER 16U

struct blk_header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct blk_range {
	uint64_t sector;
	uint32_t sectors, flags;
};

/* Headers and status bytes of requests under way, by slot; statuses have a page of their own. */
struct blk_slots {
	uint64_t headers, status;
};

static inline struct blk_slots blk_slots(struct driver *d)
{
	return (struct blk_slots){
		.headers = driver_alloc_pages(d, BLK_SLOTS * 16ULL),
		.status = driver_alloc_pages(d, BLK_SLOTS),
	};
}

/* A device on that disk which holds its lock; its driver is not up yet. */
static inline struct driver *blk_new(const struct vm_disk *disk)
{
	struct driver *d = driver_new(&virtio_blk_ops, disk, 32 * MIB);
	struct errmsg err = {""};
	int ret = virtio_blk_ops.acquire(&d->v->dev, &err);

	ck_assert_msg(ret == 0, "%s", err.text);
	return d;
}

/* Makes a request available; its head. `data` is what lies between header and status. */
static inline uint16_t blk_add(struct driver *d, const struct blk_slots *s, unsigned slot,
			       unsigned queue, uint32_t type, uint64_t sector,
			       const struct driver_buf *data, unsigned n)
{
	const struct blk_header h = {.type = type, .sector = sector};
	struct driver_buf b[130];
	uint8_t pending = BLK_PENDING;

	ck_assert_uint_lt(n, 129);
	ck_assert_uint_lt(slot, BLK_SLOTS);
	driver_poke(d, s->headers + slot * 16ULL, &h, sizeof(h));
	driver_poke(d, s->status + slot, &pending, 1);
	b[0] = (struct driver_buf){s->headers + slot * 16ULL, sizeof(h), false};
	if (n)
		memcpy(b + 1, data, n * sizeof(*data));
	b[n + 1] = (struct driver_buf){s->status + slot, 1, true};
	if (virtio_has(d->v, VIRTIO_RING_INDIRECT))
		return driver_add_indirect(d, queue, b, n + 2);
	return driver_add(d, queue, b, n + 2);
}

static inline uint8_t blk_status(struct driver *d, const struct blk_slots *s, unsigned slot)
{
	uint8_t status;

	driver_peek(d, s->status + slot, &status, 1);
	return status;
}

/* One request on queue 0 from beginning to end: its status, and the used length in *used. */
static inline unsigned blk_do(struct driver *d, const struct blk_slots *s, uint32_t type,
			      uint64_t sector, const struct driver_buf *data, unsigned n,
			      uint32_t *used)
{
	uint16_t head = blk_add(d, s, 0, 0, type, sector, data, n);
	struct driver_used e;

	driver_kick(d, 0);
	e = driver_wait_used(d, 0);
	ck_assert_uint_eq(e.id, head);
	if (used)
		*used = e.len;
	return blk_status(d, s, 0);
}

static inline unsigned blk_read(struct driver *d, const struct blk_slots *s, uint64_t sector,
				uint64_t gpa, uint32_t len)
{
	return blk_do(d, s, BLK_IN, sector, &(struct driver_buf){gpa, len, true}, 1, NULL);
}

static inline unsigned blk_write(struct driver *d, const struct blk_slots *s, uint64_t sector,
				 uint64_t gpa, uint32_t len)
{
	return blk_do(d, s, BLK_OUT, sector, &(struct driver_buf){gpa, len, false}, 1, NULL);
}

static inline unsigned blk_flush(struct driver *d, const struct blk_slots *s)
{
	return blk_do(d, s, BLK_FLUSH, 0, NULL, 0, NULL);
}

/* A discard or write-zeroes of these ranges. */
static inline unsigned blk_ranges(struct driver *d, const struct blk_slots *s, uint32_t type,
				  const struct blk_range *r, unsigned n)
{
	uint64_t gpa = driver_alloc(d, n * sizeof(*r) + 1);

	driver_poke(d, gpa, r, n * sizeof(*r));
	return blk_do(d, s, type, 0, &(struct driver_buf){gpa, n * (uint32_t)sizeof(*r), false}, 1,
		      NULL);
}

static inline unsigned blk_range(struct driver *d, const struct blk_slots *s, uint32_t type,
				 uint64_t sector, uint32_t sectors, uint32_t flags)
{
	return blk_ranges(d, s, type, &(struct blk_range){sector, sectors, flags}, 1);
}

#endif
