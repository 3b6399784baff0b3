/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: a chain of a queue becomes a struct request, whose data go between guest
 * memory and the image without a copy (disk_io.c), or which waits for a sync (disk_sync.c). A queue
 * has a fixed number of requests; while all are under way the rest stays on the ring, and whichever
 * ends first goes on serving it.
 */
#include "virtio_blk.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "disk_io.h"
#include "disk_sync.h"
#include "virtio.h"

/* Features (virtio 1.2, section 5.2.3). */
#define BLK_SEG_MAX VIRTIO_F(2)
#define BLK_RO VIRTIO_F(5)
#define BLK_BLK_SIZE VIRTIO_F(6)
#define BLK_FLUSH VIRTIO_F(9)
#define BLK_TOPOLOGY VIRTIO_F(10)
#define BLK_MQ VIRTIO_F(12)
#define BLK_DISCARD VIRTIO_F(13)
#define BLK_WRITE_ZEROES VIRTIO_F(14)

/* Types of requests, and their status (5.2.6). */
#define T_IN 0U
#define T_OUT 1U
#define T_FLUSH 4U
#define T_GET_ID 8U
#define T_DISCARD 11U
#define T_WRITE_ZEROES 13U
#define S_OK 0U
#define S_IOERR 1U
#define S_UNSUPP 2U
#define RANGE_UNMAP 1U /* flag of a range */

#define QUEUE_SIZE 256U
#define POOL_SIZE 128U			 /* requests of a queue under way */
#define TURN 256U			 /* chains of a queue in one turn */
#define IOV_MAX_DATA (DISK_IOV_MAX - 2U) /* buffers of data; header and status are two more */
#define PHYS_BLOCK_EXP 3U		 /* 8 sectors: what file systems and disks are made of */

/* Limits of ranges: large enough to be quick, small enough for one to end soon. */
#define DISCARD_SECTORS (GIB / DISK_SECTOR)
#define DISCARD_RANGES 16U
#define ZEROES_SECTORS (64 * MIB / DISK_SECTOR)
#define ZEROES_RANGES 1U

/* Device configuration (5.2.4), little-endian. */
struct blk_config {
	uint64_t capacity; /* sectors */
	uint32_t size_max;
	uint32_t seg_max;
	uint16_t cylinders;
	uint8_t heads;
	uint8_t track_sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp; /* blocks of blk_size in a physical one, log2 */
	uint8_t alignment_offset;
	uint16_t min_io_size; /* blocks */
	uint32_t opt_io_size;
	uint8_t writeback;
	uint8_t unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors;
	uint32_t max_discard_seg;
	uint32_t discard_sector_alignment;
	uint32_t max_write_zeroes_sectors;
	uint32_t max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap;
	uint8_t unused1[3];
};
#define CONFIG_LEN 60U /* without the end of it that is about secure erase */
_Static_assert(offsetof(struct blk_config, unused1) + 3 == CONFIG_LEN, "virtio 1.2, 5.2.4");

struct header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};
_Static_assert(sizeof(struct header) == 16, "virtio 1.2, 5.2.6");

/* A range to discard or to zero. */
struct range {
	uint64_t sector;
	uint32_t sectors;
	uint32_t flags;
};
_Static_assert(sizeof(struct range) == 16, "virtio 1.2, 5.2.6");

struct virtio_blk;

struct request {
	struct virtio_blk *b;
	struct request *next; /* free */
	unsigned queue;
	uint32_t type;
	uint32_t at_range, n_ranges;
	struct virtq_chain chain;
	struct iovec iov[DISK_IOV_MAX];
	struct disk_op op;	 /* of data and ranges */
	struct disk_flush flush; /* of flushes */
};

struct blk_queue {
	struct request *pool; /* POOL_SIZE, of which [0 .. made) have been used */
	struct request *free; /* of these */
	unsigned made;
	bool starved; /* chains may be waiting for a request */
};

struct virtio_blk {
	struct virtio v;
	struct disk_image image;
	struct disk_io disk;
	struct disk_sync sync;
	bool may_discard;
	uint8_t serial[VM_SERIAL_MAX];
	struct blk_queue queue[VM_MAX_DEVICE_QUEUES];

	struct log_limit io_errors;
};

static struct virtio_blk *to_blk(struct virtio *v)
{
	return container_of(v, struct virtio_blk, v);
}

static struct virtio_blk *dev_to_blk(struct device *d)
{
	return container_of(d, struct virtio_blk, v.dev);
}

static struct ram *ram_of(struct virtio_blk *b)
{
	return &b->v.dev.vm->ram;
}

static void blk_serve(struct virtio *v, unsigned queue);
static void next_range(struct request *r);

/* ---- requests; v->lock held from here on, but in what disk_io calls ---- */

/*
 * The one that was free last, or one more of the pool: it takes only as much memory as its queue
 * was ever deep, for pages that were never touched cost nothing. NULL when all are under way.
 */
static struct request *get_request(struct virtio_blk *b, unsigned queue)
{
	struct blk_queue *q = &b->queue[queue];
	struct request *r = q->free;

	if (r) {
		q->free = r->next;
	} else if (q->made < POOL_SIZE) {
		r = &q->pool[q->made++];
		r->b = b;
		r->queue = queue;
		r->chain.iov = r->iov;
		r->chain.max = ARRAY_SIZE(r->iov);
	}
	return r;
}

static void put_request(struct request *r)
{
	struct blk_queue *q = &r->b->queue[r->queue];

	r->next = q->free;
	q->free = r;
}

/* Gives the chain back with its status; `stored` bytes of data are in it. */
static void finish(struct request *r, uint8_t status, uint32_t stored)
{
	struct virtio_blk *b = r->b;

	virtq_write(&r->chain, ram_of(b), r->chain.in_len - 1, &status, sizeof(status));
	virtio_push(&b->v, r->queue, r->chain.head, stored + (uint32_t)sizeof(status));
	put_request(r);
}

/* The same for one that has been under way. */
static void finish_begun(struct request *r, uint8_t status, uint32_t stored)
{
	struct virtio_blk *b = r->b;
	unsigned queue = r->queue;

	finish(r, status, stored);
	virtio_end(&b->v);
	if (b->queue[queue].starved && virtio_live(&b->v))
		blk_serve(&b->v, queue);
}

static void log_io_error(struct virtio_blk *b, const struct disk_op *op, int err)
{
	static const char *const verb[] = {
		[DISK_READ] = "read",
		[DISK_WRITE] = "write",
		[DISK_DISCARD] = "discard",
		[DISK_ZERO] = "zero",
	};
	const char *why, *more = b->io_errors.more;

	if (!log_allowed(&b->io_errors))
		return;
	why = err == -ENODATA ? "the image ends before it, was it truncated?" : strerror(-err);
	if (op->verb == DISK_SYNC)
		log_error("disk %s: sync: %s%s", b->image.path, why, more);
	else
		log_error("disk %s: %s of %llu bytes at %llu: %s; the guest gets an I/O error%s",
			  b->image.path, verb[op->verb], (unsigned long long)op->len,
			  (unsigned long long)op->offset, why, more);
}

/* ---- reads, writes, ranges ---- */

static void on_store(struct disk_op *op, uint64_t at, const void *buf, size_t len)
{
	struct request *r = container_of(op, struct request, op);

	virtq_write(&r->chain, ram_of(r->b), at, buf, len);
}

static void data_ended(struct request *r, int err)
{
	uint32_t stored = 0;

	if (r->type == T_IN) {
		/* A read that failed may have stored anywhere. */
		virtq_stored(&r->chain, ram_of(r->b), 0, r->op.len);
		stored = (uint32_t)r->op.done;
	}
	finish_begun(r, err ? S_IOERR : S_OK, stored);
}

static void on_ended(struct disk_op *op, int err)
{
	struct request *r = container_of(op, struct request, op);
	struct virtio_blk *b = r->b;

	pthread_mutex_lock(&b->v.lock);
	if (op->verb != DISK_READ && (err || !op->durable))
		disk_sync_wrote(&b->sync);
	if (err && err != -EOPNOTSUPP)
		log_io_error(b, op, err);
	if (r->type == T_IN || r->type == T_OUT)
		data_ended(r, err);
	else if (err)
		finish_begun(r, err == -EOPNOTSUPP ? S_UNSUPP : S_IOERR, 0);
	else
		next_range(r);
	pthread_mutex_unlock(&b->v.lock);
}

static bool in_range(const struct virtio_blk *b, uint64_t sector, uint64_t sectors)
{
	uint64_t capacity = b->image.size / DISK_SECTOR;

	return sector <= capacity && sectors <= capacity - sector;
}

/* A driver that knows no flush relies on what it was told is written. */
static bool must_be_durable(const struct virtio_blk *b)
{
	if (b->image.cache == VM_CACHE_UNSAFE)
		return false;
	return b->image.cache == VM_CACHE_WRITETHROUGH || !virtio_has(&b->v, BLK_FLUSH);
}

/* Begins r->op, whose verb, place and buffers are set; r counts as under way already. */
static void start_op(struct request *r)
{
	struct virtio_blk *b = r->b;
	int ret;

	r->op.durable = must_be_durable(b);
	r->op.ended = on_ended;
	r->op.store = on_store;
	/* Never touch an image that another guest may have. */
	ret = b->image.locked ? disk_io_start(&b->disk, &r->op) : -ENOLCK;
	if (ret == 0)
		return;
	if (ret != -EOPNOTSUPP)
		log_io_error(b, &r->op, ret);
	finish_begun(r, ret == -EOPNOTSUPP ? S_UNSUPP : S_IOERR, 0);
}

static void start_data(struct request *r, uint64_t sector)
{
	struct virtio_blk *b = r->b;
	const struct virtq_chain *c = &r->chain;
	bool in = r->type == T_IN;
	uint64_t len = in ? c->in_len - 1 : c->out_len - sizeof(struct header);

	if (len % DISK_SECTOR || !in_range(b, sector, len / DISK_SECTOR) ||
	    (!in && b->image.readonly)) {
		finish(r, S_IOERR, 0);
		return;
	}
	if (len == 0) {
		finish(r, S_OK, 0);
		return;
	}
	r->op.verb = in ? DISK_READ : DISK_WRITE;
	r->op.offset = sector * DISK_SECTOR;
	r->op.len = len;
	r->op.iov = in ? c->iov + c->n_out : c->iov;
	r->op.n_iov = in ? c->n_in : c->n_out;
	r->op.iov_at = in ? 0 : sizeof(struct header);
	virtio_begin(&b->v);
	start_op(r);
}

/* Goes on with the next range that has something to do, or ends the request. */
static void next_range(struct request *r)
{
	struct virtio_blk *b = r->b;
	bool discard = r->type == T_DISCARD;

	while (r->at_range < r->n_ranges) {
		uint64_t at = sizeof(struct header) + r->at_range * sizeof(struct range);
		struct range g = {0};
		uint32_t sectors, flags;

		r->at_range++;
		virtq_read(&r->chain, at, &g, sizeof(g));
		sectors = le32toh(g.sectors);
		flags = le32toh(g.flags);
		if (flags & ~(discard ? 0 : RANGE_UNMAP)) {
			finish_begun(r, S_UNSUPP, 0);
			return;
		}
		if (sectors > (discard ? DISCARD_SECTORS : ZEROES_SECTORS) ||
		    !in_range(b, le64toh(g.sector), sectors)) {
			finish_begun(r, S_IOERR, 0);
			return;
		}
		if (!sectors)
			continue;
		r->op.verb = discard ? DISK_DISCARD : DISK_ZERO;
		r->op.offset = le64toh(g.sector) * DISK_SECTOR;
		r->op.len = (uint64_t)sectors * DISK_SECTOR;
		r->op.unmap = b->may_discard && (flags & RANGE_UNMAP);
		start_op(r);
		return;
	}
	finish_begun(r, S_OK, 0);
}

static void start_ranges(struct request *r)
{
	struct virtio_blk *b = r->b;
	bool discard = r->type == T_DISCARD;
	uint64_t len = r->chain.out_len - sizeof(struct header);

	if (!virtio_has(&b->v, discard ? BLK_DISCARD : BLK_WRITE_ZEROES)) {
		finish(r, S_UNSUPP, 0);
		return;
	}
	if (b->image.readonly || len == 0 || len % sizeof(struct range) ||
	    len / sizeof(struct range) > (discard ? DISCARD_RANGES : ZEROES_RANGES)) {
		finish(r, S_IOERR, 0);
		return;
	}
	r->at_range = 0;
	r->n_ranges = (uint32_t)(len / sizeof(struct range));
	virtio_begin(&b->v);
	next_range(r);
}

/* ---- flushes ---- */

static void on_flushed(struct disk_flush *f, int err)
{
	finish_begun(container_of(f, struct request, flush), err ? S_IOERR : S_OK, 0);
}

static void start_flush(struct request *r)
{
	struct virtio_blk *b = r->b;
	int ret;

	r->flush.ended = on_flushed;
	ret = disk_sync_flush(&b->sync, &r->flush);
	if (ret == -EINPROGRESS)
		virtio_begin(&b->v);
	else
		finish(r, ret ? S_IOERR : S_OK, 0);
}

static void sync_failed(struct disk_sync *s, int err)
{
	log_io_error(container_of(s, struct virtio_blk, sync), &s->op, err);
}

/* ---- serving ---- */

static void get_id(struct request *r)
{
	uint64_t room = r->chain.in_len - 1;
	size_t n = virtq_write(&r->chain, ram_of(r->b), 0, r->b->serial,
			       MIN(room, sizeof(r->b->serial)));

	finish(r, S_OK, (uint32_t)n);
}

static void start_request(struct request *r)
{
	struct header h;

	if (virtq_read(&r->chain, 0, &h, sizeof(h)) != sizeof(h) || !r->chain.in_len) {
		virtio_fail(&r->b->v, "a request with %s",
			    r->chain.in_len ? "less than a header" : "no room for its status");
		put_request(r);
		return;
	}
	r->type = le32toh(h.type);
	switch (r->type) {
	case T_IN:
	case T_OUT:
		start_data(r, le64toh(h.sector));
		break;
	case T_FLUSH:
		start_flush(r);
		break;
	case T_GET_ID:
		get_id(r);
		break;
	case T_DISCARD:
	case T_WRITE_ZEROES:
		start_ranges(r);
		break;
	default:
		finish(r, S_UNSUPP, 0);
	}
}

static void blk_serve(struct virtio *v, unsigned queue)
{
	struct virtio_blk *b = to_blk(v);
	struct blk_queue *q = &b->queue[queue];
	struct virtio_turn turn = virtio_begin_turn(v, queue, TURN);
	struct request *r;

	q->starved = false;
	while ((r = get_request(b, queue))) {
		if (!virtio_next(&turn, &r->chain)) {
			put_request(r);
			return;
		}
		turn.left--;
		start_request(r);
	}
	q->starved = true;
}

static void blk_reset_queues(struct virtio *v)
{
	for (unsigned i = 0; i < v->n_queues; i++)
		to_blk(v)->queue[i].starved = false;
}

static const struct virtio_ops ops = {
	.type = VIRTIO_TYPE_BLK,
	.name = "disk",
	.serve = blk_serve,
	.reset = blk_reset_queues,
};

/* ---- life ---- */

static void set_config(struct virtio_blk *b)
{
	const struct blk_config c = {
		.capacity = htole64(b->image.size / DISK_SECTOR),
		.seg_max = htole32(IOV_MAX_DATA),
		.blk_size = htole32(DISK_SECTOR),
		.physical_block_exp = PHYS_BLOCK_EXP,
		.min_io_size = htole16(1U << PHYS_BLOCK_EXP),
		.num_queues = htole16((uint16_t)b->v.n_queues),
		.max_discard_sectors = htole32(DISCARD_SECTORS),
		.max_discard_seg = htole32(DISCARD_RANGES),
		.discard_sector_alignment = htole32(1U << PHYS_BLOCK_EXP),
		.max_write_zeroes_sectors = htole32(ZEROES_SECTORS),
		.max_write_zeroes_seg = htole32(ZEROES_RANGES),
		.write_zeroes_may_unmap = b->may_discard,
	};

	memcpy(b->v.config, &c, CONFIG_LEN);
	b->v.config_len = CONFIG_LEN;
}

static uint64_t features_of(const struct vm_disk *disk)
{
	uint64_t f = BLK_SEG_MAX | BLK_BLK_SIZE | BLK_TOPOLOGY;

	if (disk->cache != VM_CACHE_WRITETHROUGH)
		f |= BLK_FLUSH;
	if (disk->queues > 1)
		f |= BLK_MQ;
	if (disk->readonly)
		return f | BLK_RO;
	f |= BLK_WRITE_ZEROES;
	return disk->discard ? f | BLK_DISCARD : f;
}

static void free_pools(struct virtio_blk *b)
{
	for (unsigned i = 0; i < ARRAY_SIZE(b->queue); i++)
		free(b->queue[i].pool);
}

static int make_pools(struct virtio_blk *b, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		b->queue[i].pool = calloc(POOL_SIZE, sizeof(struct request));
		if (!b->queue[i].pool)
			return -ENOMEM;
	}
	return 0;
}

static int blk_init(struct device *d, const void *config)
{
	struct virtio_blk *b = dev_to_blk(d);
	const struct vm_disk *disk = config;
	uint16_t sizes[VM_MAX_DEVICE_QUEUES];
	struct errmsg err = {""};
	int ret;

	if (disk->queues < 1 || disk->queues > VM_MAX_DEVICE_QUEUES)
		return -EINVAL;
	ret = disk_image_open(&b->image, disk, &err);
	if (ret) {
		log_error("%s", err.text);
		return ret;
	}
	if (b->image.tail)
		log_warn("disk %s: its last %u bytes are no whole sector and not seen by the guest",
			 b->image.path, b->image.tail);
	b->may_discard = disk->discard && !disk->readonly;
	memcpy(b->serial, disk->serial, strnlen(disk->serial, sizeof(b->serial)));
	disk_io_init(&b->disk, d->vm->loop, &b->image);
	for (unsigned i = 0; i < disk->queues; i++)
		sizes[i] = QUEUE_SIZE;
	ret = make_pools(b, disk->queues);
	if (ret == 0)
		ret = virtio_init(&b->v, &ops, features_of(disk), sizes, disk->queues);
	if (ret) {
		free_pools(b);
		disk_image_close(&b->image);
		return ret;
	}
	disk_sync_init(&b->sync, &b->disk, &b->v.lock,
		       disk->readonly || disk->cache == VM_CACHE_UNSAFE, sync_failed);
	set_config(b);
	return 0;
}

static void blk_destroy(struct device *d)
{
	struct virtio_blk *b = dev_to_blk(d);

	pthread_mutex_lock(&b->v.lock);
	b->v.stopped = true;
	pthread_mutex_unlock(&b->v.lock);
	disk_sync_destroy(&b->sync);
	for (unsigned i = 0; i < b->v.n_queues; i++) {
		for (unsigned j = 0; j < b->queue[i].made; j++)
			disk_io_abandon(&b->disk, &b->queue[i].pool[j].op);
	}
	virtio_destroy(&b->v);
	free_pools(b);
	disk_image_close(&b->image);
}

/* ---- moving ---- */

static void blk_prepare(struct device *d)
{
	disk_sync_begin(&dev_to_blk(d)->sync);
}

static int blk_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct virtio_blk *b = dev_to_blk(d);
	int ret = virtio_quiesce(d, deadline_ns);

	if (ret) {
		log_error("disk %s: a request of the guest's has not ended in time", b->image.path);
		return ret;
	}
	pthread_mutex_lock(&b->v.lock);
	ret = disk_sync_wait(&b->sync, deadline_ns);
	if (ret) {
		/* As before, and not as virtio_resume(): nothing has arrived here. */
		b->v.stopped = false;
		virtio_serve_all(&b->v);
		log_error("disk %s: what the guest wrote cannot be made durable: %s%s",
			  b->image.path, ret == -ETIMEDOUT ? "no answer in time" : strerror(-ret),
			  b->sync.lost ? "; some of it may be lost" : "");
	}
	pthread_mutex_unlock(&b->v.lock);
	return ret;
}

static int blk_loaded(struct device *d)
{
	struct virtio_blk *b = dev_to_blk(d);
	int ret = virtio_loaded(d);
	uint64_t capacity;

	if (ret)
		return ret;
	memcpy(&capacity, b->v.config, sizeof(capacity));
	return le64toh(capacity) == b->image.size / DISK_SECTOR ? 0 : -EPROTO;
}

static void check_shape(struct virtio_blk *b, struct sbuf *s, uint64_t size, bool readonly,
			struct errmsg *err)
{
	const struct disk_image *img = &b->image;

	if (size != img->size)
		sb_fail(s, errmsg_set(err, -ENOTSUP,
				      "disk %u: %s has %llu bytes here, %llu at the source",
				      b->v.dev.instance, img->path, (unsigned long long)img->size,
				      (unsigned long long)size));
	else if (readonly != img->readonly)
		sb_fail(s, errmsg_set(err, -ENOTSUP, "disk %u: %s is %s here, the guest has it %s",
				      b->v.dev.instance, img->path,
				      img->readonly ? "read-only" : "writable",
				      readonly ? "read-only" : "writable"));
}

static void blk_blank(struct device *d)
{
	dev_to_blk(d)->v.config_len = CONFIG_LEN;
}

static void blk_shape(struct device *d, struct sbuf *s, struct errmsg *err)
{
	struct virtio_blk *b = dev_to_blk(d);
	uint64_t size = b->image.size;
	bool readonly = b->image.readonly;

	/* First what has a name that users know; features and queues say less. */
	sb_u64(s, &size);
	sb_bool(s, &readonly);
	if (s->loading && !s->err && !sb_looking(s)) {
		check_shape(b, s, size, readonly, err);
		/* A guest that was offered flushes may have them: there is nothing left to flush.
		 */
		if (b->image.cache == VM_CACHE_WRITETHROUGH)
			b->v.offered |= BLK_FLUSH;
	}
	virtio_shape(d, s, err);
}

static int blk_acquire(struct device *d, struct errmsg *err)
{
	struct virtio_blk *b = dev_to_blk(d);
	int ret;

	pthread_mutex_lock(&b->v.lock);
	ret = disk_image_acquire(&b->image, err);
	/* Somebody may have written it before us, and not have synced. */
	if (ret == 0)
		disk_sync_wrote(&b->sync);
	pthread_mutex_unlock(&b->v.lock);
	return ret;
}

static void blk_release(struct device *d)
{
	struct virtio_blk *b = dev_to_blk(d);

	pthread_mutex_lock(&b->v.lock);
	disk_image_release(&b->image);
	pthread_mutex_unlock(&b->v.lock);
}

const struct device_ops virtio_blk_ops = {
	.tag = "virtio-blk",
	.size = sizeof(struct virtio_blk),
	.version = 1,
	.min_version = 1,
	.init = blk_init,
	.reset = virtio_reset,
	.quiesce = blk_quiesce,
	.resume = virtio_resume,
	.fields = virtio_fields,
	.blank = blk_blank,
	.loaded = blk_loaded,
	.shape = blk_shape,
	.acquire = blk_acquire,
	.release = blk_release,
	.prepare = blk_prepare,
	.destroy = blk_destroy,
};
