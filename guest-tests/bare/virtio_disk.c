/* SPDX-License-Identifier: MIT */
/*
 * Writes go round all chunks in the order of sector.h, several at a time; in between, chunks chosen
 * by chance are read back and must have exactly the generation that was written last. No two
 * requests for one chunk are under way at a time. What a read has brought is kept for a while and
 * looked at again: memory that only the device has stored into must be moved with the rest. A flush
 * promises whatever had been completed before it was sent; then the writes before the oldest that
 * is still under way are durable.
 */

#include "virtio_disk.h"
#include "contract.h"
#include "sector.h"

/* Features and requests (virtio 1.2, section 5.2). */
#define BLK_RO VDEV_F(5)
#define BLK_FLUSH VDEV_F(9)
#define T_IN 0u
#define T_OUT 1u
#define T_FLUSH 4u
#define T_GET_ID 8u
#define S_OK 0u
#define S_IOERR 1u
#define S_NONE 0xffu /* what no device answers */
#define ID_BYTES 20u

#define MAX_BLOCK 128u
#define BACKLOG_US 10000 /* of writing that may be caught up with after a pause */
#define READ_TURNS 4u	 /* one request in so many is a read */
#define REFUSE_TURNS 8u	 /* of a read-only disk, one in so many is a write */

uint64_t disk_errors_printed;
void (*disk_wait_hook)(void);

static bool may_print(struct disk *d)
{
	d->errors++;
	return disk_errors_printed++ < BARE_MAX_ERRORS;
}

/* --- Requests --- */

static struct disk_request *free_request(struct disk *d)
{
	for (uint32_t i = 0; i < d->ring.requests; i++) {
		if (d->requests[i].op == DISK_NONE)
			return &d->requests[i];
	}
	return NULL;
}

static void submit(struct disk *d, struct disk_request *r)
{
	static const uint32_t types[] = {
		[DISK_READ] = T_IN,
		[DISK_WRITE] = T_OUT,
		[DISK_FLUSH] = T_FLUSH,
		[DISK_ID] = T_GET_ID,
	};
	bool in = r->op == DISK_READ || r->op == DISK_ID;
	uint32_t len = r->op == DISK_ID ? ID_BYTES : (uint32_t)d->block * SECTOR_SIZE;
	/* In two buffers that meet at any place, for a device to put together. */
	uint32_t cut = 1 + (uint32_t)(d->turn++ * 509 % (len - 1)), n = 0;
	struct vbuf buf[VRING_PARTS];

	r->header[0] = types[r->op];
	r->header[1] = r->op == DISK_READ || r->op == DISK_WRITE ? r->chunk * d->block : 0;
	*r->status = S_NONE;
	r->start = rt_tsc();
	buf[n++] = (struct vbuf){.addr = r->header, .len = 16};
	if (r->op != DISK_FLUSH) {
		buf[n++] = (struct vbuf){.addr = r->data, .len = cut, .in = in};
		buf[n++] = (struct vbuf){.addr = r->data + cut, .len = len - cut, .in = in};
	}
	buf[n++] = (struct vbuf){.addr = r->status, .len = 1, .in = true};
	vring_submit(&d->ring, (uint32_t)(r - d->requests), buf, n);
}

static void send_write(struct disk *d, struct disk_request *r, uint64_t chunk, uint32_t gen)
{
	r->op = DISK_WRITE;
	r->chunk = chunk;
	for (uint64_t s = 0; s < d->block; s++)
		sector_make((uint64_t *)(r->data + s * SECTOR_SIZE), d->seed, chunk * d->block + s,
			    gen);
	d->busy[chunk] = 1;
	submit(d, r);
}

static void send_read(struct disk *d, struct disk_request *r, uint64_t chunk)
{
	r->op = DISK_READ;
	r->chunk = chunk;
	d->busy[chunk] = 1;
	submit(d, r);
}

/* All writes before this one have been completed. */
static uint64_t completed(const struct disk *d)
{
	uint64_t low = d->next;

	for (uint32_t i = 0; i < d->ring.requests; i++) {
		const struct disk_request *r = &d->requests[i];

		if (r->op == DISK_WRITE && r->n < low)
			low = r->n;
	}
	return low;
}

static void send_flush(struct disk *d, struct disk_request *r)
{
	r->op = DISK_FLUSH;
	r->n = completed(d);
	d->flushed = d->next;
	d->flushing = true;
	submit(d, r);
}

/* --- Answers --- */

static void told_durable(struct disk *d, uint64_t n)
{
	if (n <= d->durable)
		return;
	d->durable = n;
	rt_printf(BARE_VIRTIO_DURABLE_FMT "\n", (uint64_t)d->index, n);
}

static void bad_status(struct disk *d, const struct disk_request *r)
{
	static const char *const names[] = {[DISK_READ] = "read",
					    [DISK_WRITE] = "write",
					    [DISK_FLUSH] = "flush",
					    [DISK_ID] = "id"};

	if (may_print(d))
		rt_printf(BARE_VIRTIO_ERROR "status disk=%u op=%s chunk=%lu status=%u\n", d->index,
			  names[r->op], r->chunk, (uint32_t)*r->status);
}

static void check_data(struct disk *d, const char *what, const uint8_t *data, uint64_t chunk,
		       uint32_t gen)
{
	for (uint64_t s = 0; s < d->block; s++) {
		const uint64_t *w = (const uint64_t *)(data + s * SECTOR_SIZE);
		uint64_t number = chunk * d->block + s;
		bool sound = sector_sound(w, d->seed, number);

		if (sound && w[SECTOR_W_GEN] == gen)
			continue;
		if (may_print(d))
			rt_printf(BARE_VIRTIO_ERROR
				  "%s disk=%u sector=%lu want_gen=%u gen=%lu sound=%u "
				  "seed=%lu number=%lu\n",
				  what, d->index, number, gen, w[SECTOR_W_GEN], (uint32_t)sound,
				  w[SECTOR_W_SEED], w[SECTOR_W_NUMBER]);
		return;
	}
}

/* The buffer is exchanged for the one that has been kept longest. */
static void keep(struct disk *d, struct disk_request *r)
{
	struct disk_kept *k = &d->kept[d->reads % DISK_KEPT];
	uint8_t *data = k->data;

	if (k->gen)
		check_data(d, "kept", k->data, k->chunk, k->gen);
	*k = (struct disk_kept){.data = r->data, .chunk = r->chunk, .gen = d->gen[r->chunk]};
	r->data = data;
}

static void check_read(struct disk *d, struct disk_request *r, uint32_t len)
{
	if (len != d->block * SECTOR_SIZE + 1 && may_print(d))
		rt_printf(BARE_VIRTIO_ERROR "length disk=%u chunk=%lu len=%u\n", d->index, r->chunk,
			  len);
	check_data(d, "content", r->data, r->chunk, d->gen[r->chunk]);
	keep(d, r);
}

/* The same once more: for the sequence, and for what is durable, it is still under way. */
static void again(struct disk *d, struct disk_request *r)
{
	bad_status(d, r);
	submit(d, r);
}

static void write_ended(struct disk *d, const struct disk_request *r)
{
	if (d->readonly) {
		if (*r->status == S_IOERR)
			d->refused++;
		else
			bad_status(d, r);
		return;
	}
	if (*r->status != S_OK) {
		d->gen[r->chunk] = 0;
		bad_status(d, r);
	}
}

static void ended(struct disk *d, struct disk_request *r, uint32_t len)
{
	uint64_t took = rt_tsc() - r->start;

	if (took > d->slowest)
		d->slowest = took;
	if (*r->status == S_IOERR && d->retry && !d->readonly) {
		again(d, r);
		return;
	}
	switch (r->op) {
	case DISK_WRITE:
		d->busy[r->chunk] = 0;
		write_ended(d, r);
		break;
	case DISK_READ:
		d->busy[r->chunk] = 0;
		d->reads++;
		if (*r->status != S_OK)
			bad_status(d, r);
		else if (d->gen[r->chunk])
			check_read(d, r, len);
		break;
	case DISK_FLUSH:
		d->flushing = false;
		d->flushes_done++;
		if (*r->status != S_OK)
			bad_status(d, r);
		else if (d->retry || !d->errors) /* a write that failed is not durable */
			told_durable(d, r->n);
		break;
	case DISK_ID:
		if (*r->status != S_OK)
			bad_status(d, r);
		else
			memcpy(d->serial, r->data, ID_BYTES);
		break;
	case DISK_NONE:
		rt_panic("an answer to no request");
	}
	r->op = DISK_NONE;
}

static void take_answers(struct disk *d)
{
	uint32_t request, len;

	while (vring_take(&d->ring, &request, &len))
		ended(d, &d->requests[request], len);
	/* A disk without flushes is one on which what is done is durable. */
	if (!d->flushes && !d->readonly && d->flush_every && (d->retry || !d->errors) &&
	    d->next - d->durable >= d->flush_every)
		told_durable(d, completed(d));
}

/* --- What to do next --- */

static uint64_t by_chance(struct disk *d)
{
	d->random = d->random * 6364136223846793005 + 1442695040888963407;
	return (d->random >> 24) % d->chunks;
}

/* A read of a chunk whose content is known. False when chance has found none. */
static bool step_read(struct disk *d, struct disk_request *r)
{
	for (uint32_t i = 0; i < 4; i++) {
		uint64_t chunk = by_chance(d);

		if (!d->busy[chunk] && d->gen[chunk]) {
			send_read(d, r, chunk);
			return true;
		}
	}
	return false;
}

static bool pace_allows(struct disk *d, uint64_t now)
{
	uint64_t backlog;

	if (!d->interval)
		return true;
	if ((int64_t)(now - d->due) < 0)
		return false;
	d->due += d->interval;
	backlog = rt_us_to_cycles(BACKLOG_US);
	if ((int64_t)(now - d->due) > (int64_t)backlog)
		d->due = now - backlog;
	return true;
}

/* The next write of the sequence. False when another request has its chunk. */
static bool step_write(struct disk *d, struct disk_request *r)
{
	uint64_t chunk = sector_chunk(d->next, d->chunks);

	if (d->busy[chunk])
		return false;
	r->n = d->next;
	d->gen[chunk] = (uint32_t)sector_gen(d->next, d->chunks);
	d->next++;
	send_write(d, r, chunk, d->gen[chunk]);
	return true;
}

static bool step_readonly(struct disk *d, struct disk_request *r)
{
	uint64_t chunk = by_chance(d);

	if (d->busy[chunk])
		return false;
	if (d->turn % REFUSE_TURNS == 0) {
		r->n = UINT64_MAX;
		send_write(d, r, chunk, UINT32_MAX);
	} else {
		send_read(d, r, chunk);
	}
	return true;
}

void disk_step(struct disk *d, uint64_t now)
{
	struct disk_request *r;

	take_answers(d);
	r = free_request(d);
	if (!r)
		return;
	if (d->flushes && d->flush_every && !d->flushing &&
	    d->next - d->flushed >= d->flush_every) {
		send_flush(d, r);
		return;
	}
	if (!pace_allows(d, now))
		return;
	if (d->readonly)
		step_readonly(d, r);
	else if (d->turn % READ_TURNS || !step_read(d, r))
		step_write(d, r);
}

static void wait_a_little(struct disk *d)
{
	take_answers(d);
	if (disk_wait_hook)
		disk_wait_hook();
	rt_relax();
}

static void drain(struct disk *d)
{
	while (d->ring.waiting)
		wait_a_little(d);
}

void disk_verify(struct disk *d)
{
	uint64_t before = d->errors, checked = 0;

	drain(d);
	if (!d->readonly) {
		if (d->flushes) {
			send_flush(d, free_request(d));
			drain(d);
		} else if (d->retry || !d->errors) {
			told_durable(d, d->next);
		}
	}
	for (uint64_t chunk = 0; chunk < d->chunks; chunk++) {
		struct disk_request *r;

		if (!d->gen[chunk])
			continue;
		while (!(r = free_request(d)))
			wait_a_little(d);
		send_read(d, r, chunk);
		checked++;
	}
	drain(d);
	rt_printf(BARE_VIRTIO_VERIFY_FMT "\n", (uint64_t)d->index, d->next, checked * d->block,
		  d->errors - before);
}

/* --- Setting up --- */

/* The state after `from` writes of the sequence. */
static void assume(struct disk *d, uint64_t from)
{
	d->next = d->durable = d->flushed = from;
	for (uint64_t n = from > d->chunks ? from - d->chunks : 0; n < from; n++)
		d->gen[sector_chunk(n, d->chunks)] = (uint32_t)sector_gen(n, d->chunks);
}

static void ask_serial(struct disk *d)
{
	struct disk_request *r = free_request(d);

	r->op = DISK_ID;
	submit(d, r);
	drain(d);
	for (uint32_t i = 0; i < ID_BYTES && d->serial[i]; i++) {
		if (d->serial[i] < ' ' || d->serial[i] > '~' || d->serial[i] == '"')
			d->serial[i] = '?';
	}
}

static void set_pace(struct disk *d, uint64_t rate)
{
	uint64_t bytes = d->block * SECTOR_SIZE, cycles = rt.tsc_khz * 1000;

	if (rate)
		d->interval = cycles / rate * bytes + cycles % rate * bytes / rate;
	d->due = rt_tsc();
}

void disk_start(struct disk *d, uint32_t index, uint32_t slot)
{
	static const char *const on_off[] = {"off", "on", NULL};
	uint64_t depth = rt_option("depth", 8), sectors, wanted = BLK_RO | BLK_FLUSH;
	uint64_t capacity;

	*d = (struct disk){.index = index, .seed = rt_option("seed", 1) + index};
	if (rt_option_word("indirect", on_off, 1))
		wanted |= VDEV_F_INDIRECT;
	if (rt_option_word("event_idx", on_off, 1))
		wanted |= VDEV_F_EVENT_IDX;
	if (depth == 0 || depth > DISK_MAX_DEPTH)
		rt_panic("depth= is none of 1 to 64");
	vdev_start(&d->dev, slot, wanted);
	d->readonly = d->dev.features & BLK_RO;
	d->flushes = d->dev.features & BLK_FLUSH;
	d->retry = rt_option_word("retry", on_off, 0);
	capacity = vdev_config(&d->dev, 0, 8);
	d->block = rt_option("block", 8);
	sectors = rt_option("sectors", capacity);
	if (d->block == 0 || d->block > MAX_BLOCK)
		rt_panic("block= is none of 1 to 128");
	if (sectors > capacity || sectors < 2 * depth * d->block)
		rt_panic("sectors= is more than the disk has, or less than two for each request");
	d->chunks = sectors / d->block;
	d->flush_every = rt_option("flush_every", 64);
	d->random = d->seed;
	vring_start(&d->ring, &d->dev, 0, (uint32_t)depth);
	vdev_ready(&d->dev);
	d->gen = memset(rt_alloc(d->chunks * sizeof(*d->gen)), 0, d->chunks * sizeof(*d->gen));
	d->busy = memset(rt_alloc(d->chunks), 0, d->chunks);
	for (uint32_t i = 0; i < d->ring.requests; i++) {
		d->requests[i].data = rt_alloc(d->block * SECTOR_SIZE);
		d->requests[i].header = rt_alloc(RT_PAGE_SIZE);
		d->requests[i].status = (uint8_t *)(d->requests[i].header + 2);
	}
	for (uint32_t i = 0; i < DISK_KEPT; i++)
		d->kept[i].data = rt_alloc(d->block * SECTOR_SIZE);
	assume(d, rt_option("from", 0));
	ask_serial(d);
	set_pace(d, rt_option("rate", 0));
	rt_printf(BARE_VIRTIO_DISK_FMT "\n", (uint64_t)index, (uint64_t)slot, capacity, d->block,
		  d->chunks, d->seed, (uint64_t)d->readonly, (uint64_t)d->flushes,
		  (uint64_t)d->ring.requests, d->serial);
}
