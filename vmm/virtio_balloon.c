/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: pages that the guest gives, for long (inflate) or for the moment (free page
 * reporting), are punched out of its file. They read as zeros from then on, cost the host
 * nothing, and come back by being touched; so there is nothing to do for a deflate but to
 * acknowledge it, and nothing at a migration's destination, where they are holes too.
 *
 * Punching while a migration runs: ram_zero_pages() first punches, then marks the pages dirty.
 * Whatever the engine copied before the punch, it looks at the page again after the mark; what it
 * copies between the two is zeros and is only looked at once more. A chain is acknowledged after
 * the mark, so a guest's store into a page that it was given back comes later than both.
 *
 * Work is done in turns: a chain may name a million pages. One that is not done at the end of a
 * turn is put back (so nothing is in flight, and a quiesce waits for nothing) and found again at
 * the next, and the device remembers how far it was. The guest may have changed the chain
 * meanwhile, which harms nobody but itself: all of it is checked each time. That memory is not
 * moved to another host: there the chain is served from its start, and punching twice is the
 * same as once, since a guest may not use the pages of a chain that is not acknowledged.
 *
 * PAGE_POISON: a guest that fills its free pages with a pattern and relies on it tells the pattern.
 * Holes are zeros, so the reports of such a guest are acknowledged and left at that, unless its
 * pattern is zero (init_on_free). Ballooned pages are filled anew by the guest itself.
 *
 * Queues: virtio 1.2 (5.5.2) gives reporting number 4 whatever else is negotiated, Linux counts
 * only the queues that exist. Page hinting, number 3, is never offered, so every queue from 2 on
 * that is not statistics is one for reports, whichever of them a driver takes.
 */
#include "virtio_balloon.h"

#include <errno.h>
#include <string.h>

#include "virtio.h"

#define F_STATS_VQ VIRTIO_F(1)
#define F_DEFLATE_ON_OOM VIRTIO_F(2)
#define F_PAGE_POISON VIRTIO_F(4)
#define F_REPORTING VIRTIO_F(5)

#define INFLATE_QUEUE 0U
#define DEFLATE_QUEUE 1U
#define STATS_QUEUE 2U
#define N_QUEUES 5U
#define QUEUE_SIZE 128U /* Linux wants 32 at least for its reports */

/* struct virtio_balloon_config (5.5.4): four 32-bit fields. */
#define CONFIG_NUM_PAGES 0U
#define CONFIG_ACTUAL 4U
#define CONFIG_HINT_CMD 8U
#define CONFIG_POISON 12U
#define CONFIG_LEN 16U

/* What a guest keeps: less than this no Linux is able to run in. */
#define FLOOR (64 * MIB)

#define STATS_INTERVAL (5 * NS_PER_SEC)
#define STATS_MAX 64U /* entries that are looked at */

/*
 * A turn, in pages. A call takes about as long as RUN_COST pages do; RUN_MAX bounds one call. It
 * makes a millisecond.
 */
#define TURN 8192
#define RUN_COST 32
#define RUN_MAX 1024U
#define PFN_CHUNK 256U

enum figure {
	FIGURE_SWAP_IN,
	FIGURE_SWAP_OUT,
	FIGURE_MAJOR_FAULTS,
	FIGURE_MINOR_FAULTS,
	FIGURE_FREE,
	FIGURE_TOTAL,
	FIGURE_AVAILABLE,
	FIGURE_CACHES,
	N_FIGURES,
};

/* An entry of a statistics buffer (5.5.6.3). */
struct stat_entry {
	uint16_t tag; /* enum figure */
	uint64_t value;
} __attribute__((packed));
_Static_assert(sizeof(struct stat_entry) == 10, "virtio 1.2, 5.5.6.3");

struct virtio_balloon {
	struct virtio v;
	uint64_t done[N_QUEUES]; /* bytes of the next chain that earlier turns have dealt with */
	bool punch_failed;	 /* and it has been said */

	/* The statistics' buffer: the driver's, held until the next ones are wanted. */
	bool held;
	uint16_t held_head;
	bool ask_now; /* the guest came from elsewhere: nothing is known of it here */
	uint64_t interval_ns;
	struct loop_op timer;
	uint64_t stats_ns; /* now_ns() at the report, 0 for none */
	uint64_t figures[N_FIGURES];
};

/* Pages in a row, to be punched at once. */
struct run {
	uint64_t first, n;
};

static struct virtio_balloon *to_balloon(struct virtio *v)
{
	return container_of(v, struct virtio_balloon, v);
}

static struct virtio_balloon *of_device(struct device *d)
{
	return container_of(d, struct virtio_balloon, v.dev);
}

static uint32_t config_get(const struct virtio *v, unsigned offset)
{
	uint32_t value;

	memcpy(&value, v->config + offset, sizeof(value));
	return value;
}

/* ---- pages that come back ---- */

static void punch(struct virtio_balloon *b, struct run *r, int64_t *turn)
{
	int ret;

	if (r->n == 0)
		return;
	ret = ram_zero_pages(&b->v.dev.vm->ram, r->first, r->n);
	if (ret && !b->punch_failed) {
		b->punch_failed = true;
		log_warn("balloon %u: the guest's pages cannot be given back to the host: %s",
			 b->v.dev.instance, strerror(-ret));
	}
	*turn -= RUN_COST + (int64_t)r->n;
	r->n = 0;
}

/* Drivers give neighbours in either order. */
static bool extend(struct run *r, uint64_t index)
{
	if (r->n == 0)
		r->first = index;
	else if (r->n < RUN_MAX && index == r->first - 1)
		r->first--;
	else if (r->n == RUN_MAX || index != r->first + r->n)
		return false;
	r->n++;
	return true;
}

/* Page frame numbers of pages in the balloon. true when the chain is done. */
static bool inflate(struct virtio_balloon *b, const struct virtq_chain *c, uint64_t *done,
		    int64_t *turn)
{
	const struct ram *ram = &b->v.dev.vm->ram;
	struct run run = {0};

	while (*turn > 0) {
		uint32_t pfn[PFN_CHUNK];
		size_t n = virtq_read(c, *done, pfn, sizeof(pfn)) / sizeof(pfn[0]);

		for (size_t i = 0; i < n; i++) {
			const uint8_t *host =
				ram_ptr(ram, (uint64_t)pfn[i] << PAGE_SHIFT, PAGE_SIZE);
			uint64_t index;

			/* No driver has such a page to give: it does not know what it does. */
			if (!host) {
				punch(b, &run, turn);
				virtio_fail(&b->v, "a page at %#llx, where it has no memory",
					    (unsigned long long)pfn[i] << PAGE_SHIFT);
				return false;
			}
			index = (uint64_t)(host - ram->host) / PAGE_SIZE;
			if (!extend(&run, index)) {
				punch(b, &run, turn);
				extend(&run, index);
			}
		}
		*done += n * sizeof(pfn[0]);
		if (n < PFN_CHUNK) {
			punch(b, &run, turn);
			return true;
		}
	}
	punch(b, &run, turn);
	return false;
}

/* The whole pages of one buffer, from byte `from` of it on, as far as a run goes; bytes dealt with.
 */
static uint64_t report_part(struct virtio_balloon *b, const struct iovec *v, uint64_t from,
			    int64_t *turn)
{
	uint64_t start = (uint64_t)((const uint8_t *)v->iov_base - b->v.dev.vm->ram.host) + from;
	uint64_t end = start - from + v->iov_len;
	uint64_t first = ALIGN_UP(start, PAGE_SIZE) / PAGE_SIZE, last = end / PAGE_SIZE;
	struct run run = {.first = first};

	if (first >= last)
		return end - start;
	run.n = MIN(last - first, RUN_MAX);
	end = (first + run.n) * PAGE_SIZE;
	punch(b, &run, turn);
	return end - start;
}

/* Buffers that are free memory. true when the chain is done. */
static bool report(struct virtio_balloon *b, const struct virtq_chain *c, uint64_t *done,
		   int64_t *turn)
{
	uint64_t before = 0; /* bytes of the buffers before this one */

	if (c->n_out) {
		virtio_fail(&b->v, "a report of free pages that is to be read");
		return false;
	}
	if (virtio_has(&b->v, F_PAGE_POISON) && config_get(&b->v, CONFIG_POISON))
		return true;
	for (uint32_t i = 0; i < c->n_in; i++) {
		const struct iovec *v = &c->iov[i];

		while (*done < before + v->iov_len) {
			if (*turn <= 0)
				return false;
			*done += report_part(b, v, *done - before, turn);
		}
		before += v->iov_len;
	}
	return true;
}

/* ---- statistics ---- */

static void forget_stats(struct virtio_balloon *b)
{
	b->stats_ns = 0;
	for (unsigned i = 0; i < N_FIGURES; i++)
		b->figures[i] = BALLOON_UNKNOWN;
}

/* Gives the buffer back, by which the driver is asked for figures. */
static void ask(struct virtio_balloon *b)
{
	b->held = false;
	virtio_push(&b->v, STATS_QUEUE, b->held_head, 0);
}

static void take_stats(struct virtio_balloon *b, const struct virtq_chain *c)
{
	struct stat_entry e[STATS_MAX];
	size_t n = virtq_read(c, 0, e, sizeof(e)) / sizeof(e[0]);

	/* A driver owes one buffer and no more; whatever else it does, it has them back. */
	if (b->held)
		ask(b);
	b->held = true;
	b->held_head = c->head;
	if (n == 0)
		return;
	forget_stats(b);
	b->stats_ns = now_ns();
	for (size_t i = 0; i < n; i++) {
		if (e[i].tag < N_FIGURES)
			b->figures[e[i].tag] = e[i].value;
	}
}

static void on_timer(struct loop_op *op, int32_t res)
{
	struct virtio_balloon *b = container_of(op, struct virtio_balloon, timer);

	if (res == -ECANCELED)
		return;
	pthread_mutex_lock(&b->v.lock);
	/* At rest it is left alone; serving, after a resume, sets the timer again. */
	if (virtio_live(&b->v) && b->held)
		ask(b);
	pthread_mutex_unlock(&b->v.lock);
}

static void next_stats(struct virtio_balloon *b)
{
	if (!b->held)
		return;
	if (b->ask_now)
		ask(b);
	else if (!b->timer.pending)
		loop_timer(b->v.dev.vm->loop, &b->timer, b->interval_ns);
	b->ask_now = false;
}

/* ---- queues ---- */

static bool is_stats(const struct virtio *v, unsigned queue)
{
	return queue == STATS_QUEUE && virtio_has(v, F_STATS_VQ);
}

/* One chain, or what the turn allows of it; true when it is done. */
static bool serve_chain(struct virtio_balloon *b, unsigned queue, const struct virtq_chain *c,
			int64_t *turn)
{
	*turn -= RUN_COST;
	if (is_stats(&b->v, queue)) {
		take_stats(b, c);
		return true;
	}
	if ((queue == INFLATE_QUEUE && !inflate(b, c, &b->done[queue], turn)) ||
	    (queue > DEFLATE_QUEUE && !report(b, c, &b->done[queue], turn)))
		return false;
	b->done[queue] = 0;
	virtio_push(&b->v, queue, c->head, 0);
	return true;
}

static void balloon_serve(struct virtio *v, unsigned queue)
{
	struct virtio_balloon *b = to_balloon(v);
	struct virtio_turn turn;
	struct iovec iov[QUEUE_SIZE];
	struct virtq_chain c = {.iov = iov, .max = QUEUE_SIZE};

	if (queue > DEFLATE_QUEUE && !is_stats(v, queue) && !virtio_has(v, F_REPORTING))
		return;
	turn = virtio_begin_turn(v, queue, TURN);
	while (virtio_next(&turn, &c)) {
		if (!serve_chain(b, queue, &c, &turn.left))
			virtq_unpop(&v->queue[queue].q);
	}
	if (is_stats(v, queue) && turn.left > 0)
		next_stats(b);
}

/* Drivers write `actual` and poison_val; the field between them is not theirs. */
static void config_written(struct virtio *v)
{
	memset(v->config + CONFIG_HINT_CMD, 0, sizeof(uint32_t));
}

/* The host's wish stays; what is left of the guest before starts with all of its memory. */
static void balloon_reset(struct virtio *v)
{
	struct virtio_balloon *b = to_balloon(v);

	memset(v->config + CONFIG_ACTUAL, 0, CONFIG_LEN - CONFIG_ACTUAL);
	memset(b->done, 0, sizeof(b->done));
	b->held = b->ask_now = false;
	forget_stats(b);
}

static const struct virtio_ops ops = {
	.type = VIRTIO_TYPE_BALLOON,
	.name = "balloon",
	.serve = balloon_serve,
	.reset = balloon_reset,
	.writable = CONFIG_ACTUAL,
	.writable_len = CONFIG_LEN - CONFIG_ACTUAL,
	.config_written = config_written,
};

/* ---- the device ---- */

static int balloon_init(struct device *d, const void *config)
{
	static const uint16_t sizes[N_QUEUES] = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE,
						 QUEUE_SIZE};
	const struct virtio_balloon_config *c = config;
	struct virtio_balloon *b = of_device(d);

	b->interval_ns = c && c->stats_interval_ns ? c->stats_interval_ns : STATS_INTERVAL;
	b->timer.done = on_timer;
	b->v.config_len = CONFIG_LEN;
	forget_stats(b);
	return virtio_init(&b->v, &ops, F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON | F_REPORTING,
			   sizes, N_QUEUES);
}

static void balloon_destroy(struct device *d)
{
	struct virtio_balloon *b = of_device(d);

	loop_cancel_wait(d->vm->loop, &b->timer);
	virtio_destroy(&b->v);
}

/* Is a buffer held of the queue as it is now? The driver may have taken that away, or shrunk it. */
static bool can_be_given_back(struct virtio_balloon *b)
{
	const struct virtq *q = &b->v.queue[STATS_QUEUE].q;

	return is_stats(&b->v, STATS_QUEUE) && q->ready && b->held_head < q->size;
}

static void balloon_fields(struct device *d, struct sbuf *s)
{
	struct virtio_balloon *b = of_device(d);
	bool held;

	virtio_fields(d, s);
	pthread_mutex_lock(&b->v.lock);
	held = b->held && can_be_given_back(b);
	sb_bool(s, &held);
	sb_u16(s, &b->held_head);
	if (s->loading)
		b->held = held;
	pthread_mutex_unlock(&b->v.lock);
}

static void balloon_blank(struct device *d)
{
	of_device(d)->v.config_len = CONFIG_LEN;
}

static int balloon_loaded(struct device *d)
{
	struct virtio_balloon *b = of_device(d);
	int ret = virtio_loaded(d);

	if (ret)
		return ret;
	if (config_get(&b->v, CONFIG_NUM_PAGES) > d->vm->ram.npages ||
	    config_get(&b->v, CONFIG_HINT_CMD))
		return -EPROTO;
	if (b->held && !can_be_given_back(b))
		return -EPROTO;
	/* The figures did not come along: they are the guest's to tell. */
	b->ask_now = b->held;
	return 0;
}

const struct device_ops virtio_balloon_ops = {
	.tag = "virtio-balloon",
	.size = sizeof(struct virtio_balloon),
	.version = 1,
	.min_version = 1,
	.init = balloon_init,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = virtio_resume,
	.fields = balloon_fields,
	.blank = balloon_blank,
	.loaded = balloon_loaded,
	.shape = virtio_shape,
	.destroy = balloon_destroy,
};

/* ---- the host's side ---- */

static void set_num_pages(struct virtio_balloon *b, uint32_t pages)
{
	uint32_t other = ~pages;

	/*
	 * The same wish again is for a driver that fell short of it (out of memory, say) and tries
	 * again only when it is told. Nobody sees the other value: reading takes the lock.
	 */
	if (config_get(&b->v, CONFIG_NUM_PAGES) == pages &&
	    config_get(&b->v, CONFIG_ACTUAL) != pages)
		virtio_set_config(&b->v, CONFIG_NUM_PAGES, &other, sizeof(other));
	virtio_set_config(&b->v, CONFIG_NUM_PAGES, &pages, sizeof(pages));
}

int virtio_balloon_set_target(struct device *d, uint64_t bytes, struct errmsg *err)
{
	struct virtio_balloon *b = of_device(d);
	uint64_t size = d->vm->ram.size, most;
	char want[32], there[32], limit[32];
	bool at_rest;

	/* More than 16 TiB cannot be said in 32 bits. */
	most = MIN(size - MIN(FLOOR, size / 2), UINT32_MAX * PAGE_SIZE);
	if (bytes > most)
		return errmsg_set(err, -EINVAL,
				  "the guest has %s of memory and can give back %s at most, not %s",
				  format_size(there, sizeof(there), size),
				  format_size(limit, sizeof(limit), most),
				  format_size(want, sizeof(want), bytes));
	pthread_mutex_lock(&b->v.lock);
	at_rest = b->v.stopped;
	if (!at_rest)
		set_num_pages(b, (uint32_t)(bytes / PAGE_SIZE));
	pthread_mutex_unlock(&b->v.lock);
	/* Its state may have been saved already: the wish would get lost. */
	return at_rest ? errmsg_set(err, -EBUSY, "the guest is being handed over; ask again") : 0;
}

void virtio_balloon_stats(struct device *d, struct balloon_stats *out)
{
	struct virtio_balloon *b = of_device(d);

	pthread_mutex_lock(&b->v.lock);
	*out = (struct balloon_stats){
		.driver = b->v.status & VIRTIO_DRIVER_OK,
		.target = (uint64_t)config_get(&b->v, CONFIG_NUM_PAGES) * PAGE_SIZE,
		.actual = (uint64_t)config_get(&b->v, CONFIG_ACTUAL) * PAGE_SIZE,
		.age_ns = b->stats_ns ? now_ns() - b->stats_ns : BALLOON_UNKNOWN,
		.total = b->figures[FIGURE_TOTAL],
		.free = b->figures[FIGURE_FREE],
		.available = b->figures[FIGURE_AVAILABLE],
		.caches = b->figures[FIGURE_CACHES],
		.swapped_in = b->figures[FIGURE_SWAP_IN],
		.swapped_out = b->figures[FIGURE_SWAP_OUT],
		.major_faults = b->figures[FIGURE_MAJOR_FAULTS],
		.minor_faults = b->figures[FIGURE_MINOR_FAULTS],
	};
	pthread_mutex_unlock(&b->v.lock);
}
