/* SPDX-License-Identifier: MIT */
#include "../virtio.h"

#include "check-main.h"
#include "fake-virtio.h"
#include "virtio-driver.h"

#define ACK VIRTIO_ACKNOWLEDGE
#define DRV VIRTIO_DRIVER
#define FOK VIRTIO_FEATURES_OK
#define DOK VIRTIO_DRIVER_OK
#define RING (VIRTIO_RING_INDIRECT | VIRTIO_RING_EVENT_IDX | VIRTIO_VERSION_1)

static struct driver *d;
static struct fake *f;
static uint64_t mem;

static void setup(void)
{
	d = driver_new(&fake_ops, NULL, RAM_MIN);
	f = fake_of(d->v);
	mem = driver_alloc_pages(d, PAGE_SIZE);
}

static void teardown(void)
{
	ck_assert(!f->wrong);
	driver_free(d);
}

static uint8_t status(void)
{
	return d->v->status;
}

/* A chain of one byte to write; not kicked. */
static void add(struct driver *on, unsigned queue)
{
	driver_add(on, queue, &(struct driver_buf){mem, 1, true}, 1);
}

static unsigned used(struct driver *on, unsigned queue)
{
	struct driver_used e;
	unsigned n = 0;

	while (driver_take_used(on, queue, &e))
		n++;
	return n;
}

static void finish(unsigned queue)
{
	pthread_mutex_lock(&d->v->lock);
	fake_finish(f, queue);
	pthread_mutex_unlock(&d->v->lock);
}

/* ---- what it is made of ---- */

START_TEST(made)
{
	struct fake *g = calloc(1, sizeof(*g));
	static const uint16_t sizes[VIRTIO_MAX_QUEUES + 1] = {0};

	ck_assert_ptr_nonnull(g);
	ck_assert_uint_eq(d->v->offered, FAKE_FEATURES | RING);
	ck_assert_uint_eq(d->v->n_queues, FAKE_QUEUES);
	ck_assert_uint_eq(d->v->queue[0].q.max, 8);
	ck_assert_uint_eq(d->v->queue[1].q.max, 4);
	ck_assert_uint_eq(d->v->queue[2].q.max, 16);
	/* A driver that does not say gets the largest. */
	ck_assert_uint_eq(d->v->queue[2].q.size, 16);
	ck_assert_uint_eq(status(), 0);
	g->v.dev.vm = d->vm;
	ck_assert_int_eq(virtio_init(&g->v, &fake_virtio_ops, 0, sizes, VIRTIO_MAX_QUEUES + 1),
			 -EINVAL);
	free(g);
}
END_TEST

/* ---- features and status ---- */

START_TEST(features)
{
	virtio_set_status(d->v, ACK | DRV);
	/* Only what was offered is taken. */
	virtio_set_features(d->v, 0, UINT32_MAX);
	virtio_set_features(d->v, 1, UINT32_MAX);
	ck_assert_uint_eq(d->v->features, FAKE_FEATURES | RING);
	/* Halves are apart. */
	virtio_set_features(d->v, 0, 0);
	ck_assert_uint_eq(d->v->features, (FAKE_FEATURES | RING) >> 32 << 32);
	virtio_set_features(d->v, 1, 0);
	virtio_set_features(d->v, 0, 1);
	ck_assert_uint_eq(d->v->features, 1);
	virtio_set_features(d->v, 2, UINT32_MAX);
	virtio_set_features(d->v, UINT32_MAX, UINT32_MAX);
	ck_assert_uint_eq(d->v->features, 1);
	/* Without VERSION_1 there is no agreement. */
	virtio_set_status(d->v, ACK | DRV | FOK);
	ck_assert_uint_eq(status(), ACK | DRV);
	virtio_set_status(d->v, ACK | DRV | FOK | DOK);
	ck_assert_uint_eq(status(), ACK | DRV);
	virtio_set_features(d->v, 1, 1);
	virtio_set_status(d->v, ACK | DRV | FOK);
	ck_assert_uint_eq(status(), ACK | DRV | FOK);
	/* Agreed is agreed. */
	virtio_set_features(d->v, 0, UINT32_MAX);
	virtio_set_features(d->v, 1, 0);
	ck_assert_uint_eq(d->v->features, VIRTIO_VERSION_1 | 1);
	ck_assert(virtio_has(d->v, VIRTIO_F(0)));
	ck_assert(!virtio_has(d->v, VIRTIO_F(5)));
	virtio_set_status(d->v, 0);
	ck_assert_uint_eq(d->v->features, 0);
	virtio_set_features(d->v, 0, 1 << 5);
	ck_assert_uint_eq(d->v->features, VIRTIO_F(5));
	driver_settle(d);
}
END_TEST

START_TEST(status_bits)
{
	/* Nobody can say DRIVER_OK who has not agreed on features. */
	virtio_set_status(d->v, ACK | DRV | DOK);
	ck_assert_uint_eq(status(), ACK | DRV);
	/* NEEDS_RESET is ours to say, unknown bits are nobody's. */
	virtio_set_status(d->v, ACK | DRV | VIRTIO_NEEDS_RESET | 0x30);
	ck_assert_uint_eq(status(), ACK | DRV);
	/* Bits are only added. */
	virtio_set_status(d->v, ACK);
	ck_assert_uint_eq(status(), ACK | DRV);
	ck_assert_uint_eq(f->activated, 0);
	virtio_set_features(d->v, 1, 1);
	virtio_set_status(d->v, ACK | DRV | FOK);
	virtio_set_status(d->v, ACK | DRV | FOK | DOK);
	ck_assert_uint_eq(f->activated, 1);
	ck_assert_uint_eq(status(), ACK | DRV | FOK | DOK);
	virtio_set_status(d->v, ACK | DRV | FOK | DOK);
	ck_assert_uint_eq(f->activated, 1);
	virtio_set_status(d->v, ACK | DRV | FOK | DOK | VIRTIO_FAILED);
	ck_assert_uint_eq(status(), ACK | DRV | FOK | DOK | VIRTIO_FAILED);
	ck_assert_uint_eq(f->resets, 1);
	virtio_set_status(d->v, 0);
	ck_assert_uint_eq(f->resets, 2);
	ck_assert_uint_eq(status(), 0);
	/* All at once is in order, too. */
	virtio_set_features(d->v, 1, 1);
	virtio_set_status(d->v, ACK | DRV | FOK | DOK);
	ck_assert_uint_eq(f->activated, 2);
	driver_settle(d);
	/* No queue is ready: none was served. */
	ck_assert_uint_eq(f->served[0] + f->served[1] + f->served[2], 0);
}
END_TEST

START_TEST(queues)
{
	struct virtq *q = &d->v->queue[0].q;

	driver_negotiate(d, UINT64_MAX);
	virtio_set_ready(d->v, FAKE_QUEUES, true);
	virtio_set_ready(d->v, UINT32_MAX, true);
	ck_assert_uint_eq(status(), ACK | DRV | FOK);
	driver_queue_up(d, 0, 8);
	ck_assert(q->event_idx);
	/* Not ready, and ready again. */
	virtio_set_ready(d->v, 0, false);
	ck_assert(!q->ready);
	virtio_set_ready(d->v, 0, true);
	ck_assert(q->ready);
	/* One that cannot be. */
	virtio_set_ready(d->v, 0, false);
	q->avail = UINT64_MAX - 1;
	virtio_set_ready(d->v, 0, true);
	ck_assert(!q->ready);
	ck_assert_uint_ne(status() & VIRTIO_NEEDS_RESET, 0);
	/* The driver is not up: it sees it in the status, and is not interrupted. */
	ck_assert_uint_eq(driver_config_irqs(d), 0);
	driver_negotiate(d, 0);
	driver_queue_up(d, 0, 4);
	ck_assert(!q->event_idx);
	ck_assert_uint_eq(q->size, 4);
	/* Before the features are agreed on nobody knows what a ring looks like. */
	virtio_set_status(d->v, 0);
	virtio_set_status(d->v, ACK | DRV);
	q->desc = d->queue[0].desc;
	q->avail = d->queue[0].avail;
	q->used = d->queue[0].used;
	virtio_set_ready(d->v, 0, true);
	ck_assert(!q->ready);
	ck_assert_uint_ne(status() & VIRTIO_NEEDS_RESET, 0);
}
END_TEST

/* ---- serving ---- */

START_TEST(served_when)
{
	driver_negotiate(d, UINT64_MAX);
	driver_queue_up(d, 0, 8);
	driver_queue_up(d, 2, 16);
	add(d, 0);
	driver_kick_always(d, 0);
	driver_settle(d);
	/* Not before DRIVER_OK; then each queue that is ready, once, kicked or not. */
	ck_assert_uint_eq(f->served[0], 0);
	driver_ok(d);
	driver_settle(d);
	ck_assert_uint_eq(f->served[0], 1);
	ck_assert_uint_eq(f->served[1], 0);
	ck_assert_uint_eq(f->served[2], 1);
	ck_assert_uint_eq(used(d, 0), 1);
	/* The queue that was kicked and no other. */
	driver_kick_always(d, 2);
	driver_kick_always(d, 1);
	driver_settle(d);
	ck_assert_uint_eq(f->served[0], 1);
	ck_assert_uint_eq(f->served[1], 0);
	ck_assert_uint_eq(f->served[2], 2);
	/* Many kicks may be one. */
	for (unsigned i = 0; i < 1000; i++)
		driver_kick_always(d, 0);
	driver_settle(d);
	ck_assert_uint_ge(f->served[0], 2);
	ck_assert_uint_lt(f->served[0], 100);
	/* And the next one is heard of as well. */
	for (unsigned i = 0; i < 50; i++) {
		add(d, 0);
		ck_assert(driver_kick(d, 0));
		driver_wait_used(d, 0);
	}
}
END_TEST

/* For used buffers as the driver asks for them; one for several where the device says so. */
START_TEST(interrupts)
{
	driver_up(d, _i ? UINT64_MAX : 0);
	for (unsigned q = 0; q < FAKE_QUEUES; q++) {
		add(d, q);
		driver_kick(d, q);
		driver_wait_used(d, q);
		driver_settle(d);
		for (unsigned other = 0; other < FAKE_QUEUES; other++)
			ck_assert_uint_eq(driver_irqs(d, other), other == q);
	}
	d->queue[0].own_event = true;
	driver_set_avail_flags(d, 0, DRIVER_NO_INTERRUPT);
	driver_set_used_event(d, 0, 1000);
	add(d, 0);
	driver_kick(d, 0);
	driver_wait_used(d, 0);
	driver_settle(d);
	ck_assert_uint_eq(driver_irqs(d, 0), 0);
	ck_assert_uint_eq(driver_config_irqs(d), 0);
	/* Nobody listens: nothing happens. */
	driver_set_avail_flags(d, 0, 0);
	driver_set_used_event(d, 0, d->queue[0].seen);
	virtio_attach(d->v, NULL, NULL);
	add(d, 0);
	driver_kick_always(d, 0);
	driver_wait_used(d, 0);
	virtio_attach(d->v, &driver_transport, d);
}
END_TEST

/* ---- mistakes ---- */

START_TEST(needs_reset)
{
	uint32_t generation;

	driver_up(d, UINT64_MAX);
	add(d, 0);
	f->does = FAKE_HOLDS;
	driver_kick(d, 0);
	driver_settle(d);
	ck_assert_uint_eq(f->held[0], 1);
	generation = d->v->generation;
	f->does = FAKE_FAILS;
	driver_kick_always(d, 1);
	driver_settle(d);
	ck_assert_uint_eq(status(), ACK | DRV | FOK | DOK | VIRTIO_NEEDS_RESET);
	ck_assert_uint_eq(driver_config_irqs(d), 1);
	ck_assert_uint_ne(d->v->generation, generation);
	/* Nothing more is served, nothing is taken, and it is told once. */
	f->does = FAKE_ANSWERS;
	f->served[0] = f->served[1] = 0;
	add(d, 0);
	driver_kick_always(d, 0);
	virtio_serve_all(d->v);
	driver_settle(d);
	ck_assert_uint_eq(f->served[0] + f->served[1], 0);
	pthread_mutex_lock(&d->v->lock);
	ck_assert_int_eq(virtio_pop(d->v, 0, &(struct virtq_chain){0}), 0);
	virtio_fail(d->v, "again");
	pthread_mutex_unlock(&d->v->lock);
	ck_assert_uint_eq(driver_config_irqs(d), 0);
	/* What was under way still ends. */
	finish(0);
	ck_assert_uint_eq(used(d, 0), 1);
	/* The driver's word does not heal it, a reset does. */
	virtio_set_status(d->v, ACK | DRV | FOK | DOK);
	ck_assert_uint_ne(status() & VIRTIO_NEEDS_RESET, 0);
	ck_assert_uint_eq(f->activated, 1);
	driver_up(d, UINT64_MAX);
	add(d, 0);
	driver_kick(d, 0);
	driver_wait_used(d, 0);
}
END_TEST

/* A ring that the driver got wrong. */
START_TEST(bad_ring)
{
	driver_up(d, UINT64_MAX);
	driver_desc(d, 2, 3, RAM_MIN, 1, DRIVER_WRITE, 0);
	driver_offer(d, 2, 3);
	driver_kick_always(d, 2);
	driver_run_until(d, driver_needs_reset(d));
	driver_settle(d);
	ck_assert_uint_eq(driver_used_idx(d, 2), 0);
	ck_assert_uint_eq(driver_config_irqs(d), 1);
}
END_TEST

/* ---- reset ---- */

struct resetter {
	struct virtio *v;
	uint8_t write;
	atomic_bool done;
	pthread_t thread;
};

static void *write_status(void *arg)
{
	struct resetter *r = arg;

	virtio_set_status(r->v, r->write);
	r->done = true;
	return NULL;
}

static bool resetting(void)
{
	bool yes;

	pthread_mutex_lock(&d->v->lock);
	yes = d->v->resetting;
	pthread_mutex_unlock(&d->v->lock);
	return yes;
}

/* The driver takes its memory back when the write returns: no store may come after that. */
START_TEST(reset_waits_for_requests)
{
	struct resetter r = {.v = d->v}, other = {.v = d->v, .write = VIRTIO_FAILED};

	driver_up(d, UINT64_MAX);
	f->does = FAKE_HOLDS;
	for (unsigned i = 0; i < 2; i++) {
		add(d, 0);
		add(d, 2);
	}
	driver_kick(d, 0);
	driver_kick(d, 2);
	driver_settle(d);
	ck_assert_uint_eq(d->v->inflight, 4);
	ck_assert_int_eq(pthread_create(&r.thread, NULL, write_status, &r), 0);
	driver_run_until(d, resetting());
	/* Nothing is served meanwhile, and nobody else changes the status. */
	f->served[0] = 0;
	driver_kick_always(d, 0);
	driver_settle(d);
	ck_assert_uint_eq(f->served[0], 0);
	write_status(&other);
	ck_assert_uint_eq(status(), ACK | DRV | FOK | DOK);
	ck_assert_uint_eq(f->resets, 2); /* built, and driver_up()'s */
	for (unsigned i = 0; i < 4; i++) {
		ck_assert(!r.done);
		finish(i % 2 ? 2 : 0);
	}
	driver_run_until(d, r.done);
	pthread_join(r.thread, NULL);
	/* They were given back before. */
	ck_assert_uint_eq(driver_used_idx(d, 0), 2);
	ck_assert_uint_eq(driver_used_idx(d, 2), 2);
	ck_assert_uint_eq(f->resets, 3);
	ck_assert_uint_eq(status(), 0);
	ck_assert_uint_eq(d->v->features, 0);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		const struct virtq *q = &d->v->queue[i].q;

		ck_assert(!q->ready);
		ck_assert_uint_eq(q->size, q->max);
		ck_assert_uint_eq(q->next_avail | q->next_used, 0);
		ck_assert_uint_eq(q->desc | q->avail | q->used, 0);
	}
	driver_watch(d);
	driver_kick_always(d, 0);
	driver_settle(d);
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	f->does = FAKE_ANSWERS;
	driver_up(d, UINT64_MAX);
	add(d, 0);
	driver_kick(d, 0);
	driver_wait_used(d, 0);
}
END_TEST

/* ---- at rest ---- */

START_TEST(quiesce_waits_for_requests)
{
	struct driver_quiesce_job job = {.dev = &d->v->dev,
					 .deadline_ns = now_ns() + DRIVER_WAIT_NS};
	pthread_t thread;

	driver_up(d, UINT64_MAX);
	f->does = FAKE_HOLDS;
	for (unsigned i = 0; i < 3; i++)
		add(d, 2);
	driver_kick(d, 2);
	driver_settle(d);
	ck_assert_int_eq(pthread_create(&thread, NULL, driver_quiesce_thread, &job), 0);
	for (unsigned i = 0; i < 3; i++) {
		driver_settle(d);
		ck_assert(!job.done);
		finish(2);
	}
	driver_run_until(d, job.done);
	pthread_join(thread, NULL);
	ck_assert_int_eq(job.ret, 0);
	ck_assert_uint_eq(used(d, 2), 3);
	/* Again is nothing new. */
	driver_quiesce(d);

	/* From here on it touches nothing, whatever is kicked. */
	f->does = FAKE_ANSWERS;
	f->served[0] = f->served[2] = 0;
	driver_watch(d);
	add(d, 0);
	add(d, 2);
	driver_kick_always(d, 0);
	driver_kick_always(d, 2);
	virtio_serve_all(d->v);
	driver_settle(d);
	ck_assert_uint_eq(f->served[0] + f->served[2], 0);
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	pthread_mutex_lock(&d->v->lock);
	ck_assert_int_eq(virtio_pop(d->v, 0, &(struct virtq_chain){0}), 0);
	pthread_mutex_unlock(&d->v->lock);
	/* Then it makes up for it. */
	driver_resume(d);
	ck_assert_uint_eq(used(d, 0), 1);
	ck_assert_uint_eq(used(d, 2), 1);
	ck_assert_uint_ge(driver_check_dirty(d), 2);
}
END_TEST

/* A request that does not end: it gives up in time and goes on as before. */
START_TEST(quiesce_gives_up)
{
	uint64_t start = now_ns();

	driver_up(d, UINT64_MAX);
	f->does = FAKE_HOLDS;
	add(d, 0);
	driver_kick(d, 0);
	driver_settle(d);
	ck_assert_uint_eq(f->held[0], 1);
	f->does = FAKE_ANSWERS;
	add(d, 1);
	ck_assert_int_eq(driver_quiesce_within(d, 50 * NS_PER_MS), -ETIMEDOUT);
	ck_assert_uint_ge(now_ns() - start, 50 * NS_PER_MS);
	/* What came meanwhile is served without another kick. */
	driver_wait_used(d, 1);
	/* A deadline that is past already. */
	ck_assert_int_eq(virtio_quiesce(&d->v->dev, 0), -ETIMEDOUT);
	finish(0);
	driver_wait_used(d, 0);
	ck_assert_int_eq(virtio_quiesce(&d->v->dev, 0), 0);
	driver_resume(d);
	add(d, 0);
	driver_kick(d, 0);
	driver_wait_used(d, 0);
}
END_TEST

/* ---- configuration ---- */

START_TEST(config_reads)
{
	static const struct {
		uint64_t offset;
		unsigned size;
		uint64_t want;
	} reads[] = {
		{0, 1, 0x10},
		{3, 1, 0x13},
		{2, 2, 0x1312},
		{4, 4, 0x17161514},
		{8, 8, 0x1f1e1d1c1b1a1918},
		{1, 4, 0x14131211},
		{15, 1, 0x1f},
		{15, 4, 0x1f},
		{12, 8, 0x1f1e1d1c},
		{16, 1, 0},
		{17, 4, 0},
		{VIRTIO_CONFIG_MAX, 8, 0},
		{0xeff, 1, 0},
		{UINT64_MAX, 1, 0},
		{UINT64_MAX - 7, 8, 0},
		{1ULL << 32, 4, 0},
	};

	for (size_t i = 0; i < ARRAY_SIZE(reads); i++)
		ck_assert_msg(
			virtio_config_read(d->v, reads[i].offset, reads[i].size) == reads[i].want,
			"%u bytes at %#llx", reads[i].size, (unsigned long long)reads[i].offset);
}
END_TEST

/* Only inside the window that is the driver's; bytes 4 to 9 here. */
START_TEST(config_writes)
{
	static const struct {
		uint64_t offset;
		unsigned size;
		bool ok;
	} writes[] = {
		{4, 1, true},
		{9, 1, true},
		{4, 4, true},
		{6, 4, true},
		{8, 2, true},
		{3, 1, false},
		{10, 1, false},
		{2, 4, false},
		{8, 4, false},
		{9, 2, false},
		{3, 8, false},
		{4, 8, false},
		{0, 4, false},
		{16, 1, false},
		{VIRTIO_CONFIG_MAX, 8, false},
		{0xeff, 1, false},
		{UINT64_MAX, 1, false},
		{UINT64_MAX - 3, 4, false},
		{UINT64_MAX - 3, 8, false},
		{1ULL << 32 | 4, 4, false},
	};
	uint8_t before[VIRTIO_CONFIG_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(writes); i++) {
		uint32_t generation = d->v->generation;

		memcpy(before, d->v->config, sizeof(before));
		f->written = 0;
		virtio_config_write(d->v, writes[i].offset, writes[i].size, 0x8877665544332211 + i);
		ck_assert_uint_eq(f->written, writes[i].ok);
		if (writes[i].ok) {
			uint64_t value = 0x8877665544332211 + i;

			memcpy(before + writes[i].offset, &value, writes[i].size);
		}
		ck_assert(memcmp(before, d->v->config, sizeof(before)) == 0);
		/* The driver knows what it wrote itself. */
		ck_assert_uint_eq(d->v->generation, generation);
	}
	ck_assert_uint_eq(driver_config_irqs(d), 0);
}
END_TEST

static void set_config(unsigned offset, const void *bytes, unsigned len)
{
	pthread_mutex_lock(&d->v->lock);
	virtio_set_config(d->v, offset, bytes, len);
	pthread_mutex_unlock(&d->v->lock);
}

START_TEST(config_changes)
{
	uint32_t generation = d->v->generation;

	/* No driver that wants to hear of it, but one may be reading. */
	set_config(0, "abcd", 4);
	ck_assert_uint_ne(d->v->generation, generation);
	ck_assert_uint_eq(driver_config_irqs(d), 0);
	ck_assert_uint_eq(virtio_config_read(d->v, 0, 4), 0x64636261);
	driver_up(d, UINT64_MAX);
	generation = d->v->generation;
	set_config(0, "abcd", 4);
	ck_assert_uint_eq(d->v->generation, generation);
	ck_assert_uint_eq(driver_config_irqs(d), 0);
	set_config(2, "xy", 2);
	ck_assert_uint_ne(d->v->generation, generation);
	ck_assert_uint_eq(driver_config_irqs(d), 1);
	ck_assert_uint_eq(virtio_config_read(d->v, 0, 4), 0x79786261);
	/* It has no more bytes than these. */
	generation = d->v->generation;
	set_config(13, "wxyz", 4);
	ck_assert_uint_eq(d->v->generation, generation);
	ck_assert_uint_eq(virtio_config_read(d->v, 13, 1), 0x1d);
	set_config(12, "wxyz", 4);
	ck_assert_uint_eq(virtio_config_read(d->v, 12, 4), 0x7a797877);
	ck_assert_uint_eq(driver_config_irqs(d), 1);
}
END_TEST

/* ---- shape ---- */

static int offer_shape(uint64_t here, const struct sbuf *s, struct errmsg *err, uint64_t *offered)
{
	struct driver *to = driver_new(&fake_ops, &here, RAM_MIN);
	int ret;

	*err = (struct errmsg){""};
	ret = driver_load_shape(to, s->data, s->len, err);
	*offered = to->v->offered;
	driver_free(to);
	return ret;
}

START_TEST(shapes)
{
	uint64_t offered;
	struct errmsg err;
	struct sbuf s;

	driver_save_shape(d, &s);
	ck_assert_int_eq(offer_shape(FAKE_FEATURES, &s, &err, &offered), 0);
	ck_assert_uint_eq(offered, FAKE_FEATURES | RING);
	/* A host that can do more offers here what was offered there. */
	ck_assert_int_eq(offer_shape(FAKE_FEATURES | VIRTIO_F(7), &s, &err, &offered), 0);
	ck_assert_uint_eq(offered, FAKE_FEATURES | RING);
	/* One that can do less says what is missing. */
	ck_assert_int_eq(offer_shape(VIRTIO_F(0) | VIRTIO_F(40), &s, &err, &offered), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "0x20") != NULL && strstr(err.text, "fake 0") != NULL, "%s",
		      err.text);
	ck_assert_uint_eq(offered, VIRTIO_F(0) | VIRTIO_F(40) | RING);
	for (size_t len = 0; len < s.len; len++) {
		struct sbuf part = s;

		part.len = len;
		ck_assert_int_eq(offer_shape(FAKE_FEATURES, &part, &err, &offered), -EPROTO);
		ck_assert_uint_eq(offered, FAKE_FEATURES | RING);
	}
	/* u64 features, u32 number of queues, u16 each: other sizes, and another number. */
	for (unsigned q = 0; q < FAKE_QUEUES; q++) {
		char name[16];

		snprintf(name, sizeof(name), "queue %u", q);
		s.data[12 + 2 * q] ^= 0x20;
		ck_assert_int_eq(offer_shape(FAKE_FEATURES, &s, &err, &offered), -ENOTSUP);
		ck_assert_msg(strstr(err.text, name) != NULL, "%s", err.text);
		s.data[12 + 2 * q] ^= 0x20;
	}
	for (uint8_t n = 0; n < 20; n++) {
		s.data[8] = n;
		ck_assert_int_eq(offer_shape(FAKE_FEATURES, &s, &err, &offered),
				 n == FAKE_QUEUES ? 0 : -ENOTSUP);
		ck_assert_msg((strstr(err.text, "queues") != NULL) == (n != FAKE_QUEUES), "%s",
			      err.text);
	}
	sb_free(&s);
}
END_TEST

/* ---- state ---- */

START_TEST(moves)
{
	struct driver *to;
	struct fake *g;

	driver_up(d, _i ? UINT64_MAX : VIRTIO_F(5));
	for (unsigned i = 0; i < 30; i++) {
		add(d, i % 3);
		driver_kick(d, i % 3);
		driver_wait_used(d, i % 3);
	}
	set_config(0, "config", 6);
	driver_quiesce(d);
	add(d, 0);
	to = driver_move(d, NULL);
	g = fake_of(to->v);
	ck_assert(to->v->came);
	ck_assert_uint_eq(to->v->status, d->v->status);
	ck_assert_uint_eq(to->v->features, d->v->features);
	ck_assert_uint_eq(to->v->generation, d->v->generation);
	ck_assert(memcmp(to->v->config, d->v->config, sizeof(d->v->config)) == 0);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		const struct virtq *a = &d->v->queue[i].q, *b = &to->v->queue[i].q;

		ck_assert_uint_eq(a->next_avail, b->next_avail);
		ck_assert_uint_eq(a->next_used, b->next_used);
		ck_assert_uint_eq(a->event_idx, b->event_idx);
		ck_assert(b->ready);
	}
	/* It touches nothing yet, even when it is kicked. */
	driver_poke(to, mem, "", 1);
	driver_watch(to);
	driver_kick_always(to, 0);
	driver_settle(to);
	ck_assert_uint_eq(driver_check_dirty(to), 0);
	ck_assert_uint_eq(driver_clean(to), 0);
	ck_assert_uint_eq(g->served[0], 0);
	driver_resume(to);
	ck_assert(!to->v->came);
	/* Every queue, kicked or not; and the driver is interrupted as it asked for at the source.
	 */
	for (unsigned i = 0; i < FAKE_QUEUES; i++)
		ck_assert_uint_ge(g->served[i], 1);
	ck_assert_uint_eq(used(to, 0), 1);
	ck_assert_uint_eq(driver_irqs(to, 0), 1);
	ck_assert_uint_eq(used(to, 1) + used(to, 2), 0);
	ck_assert_uint_eq(driver_irqs(to, 1) + driver_irqs(to, 2), 0);
	ck_assert_uint_ge(driver_check_dirty(to), 2);
	/* activate() is the driver's doing, not a move's. */
	ck_assert_uint_eq(g->activated, 0);
	for (unsigned i = 0; i < 30; i++) {
		add(to, i % 3);
		ck_assert(driver_kick(to, i % 3));
		driver_wait_used(to, i % 3);
	}
	/* The source has not moved. */
	ck_assert_uint_eq(used(d, 0), 0);
	ck_assert(!g->wrong);
	driver_free(to);
}
END_TEST

struct edit {
	const char *what;
	size_t offset; /* of the field */
	uint64_t value;
	unsigned size;
	int want;
};

/* Offsets of what virtio_fields() writes. */
#define AT_STATUS 0U
#define AT_FEATURES 1U
#define AT_GENERATION 9U
#define AT_CONFIG 13U
#define AT_N_QUEUES (AT_CONFIG + FAKE_CONFIG_LEN)
#define AT_QUEUE(i) (AT_N_QUEUES + 4 + (i)*34U)
#define Q_SIZE 0U
#define Q_READY 2U
#define Q_DESC 3U
#define Q_AVAIL 11U
#define Q_USED 19U
#define Q_NEXT_AVAIL 27U
#define Q_NEXT_USED 29U
#define Q_SIGNALLED 31U
#define Q_VALID 33U

#define UP (ACK | DRV | FOK | DOK)

static const struct edit edits[] = {
	{"as it is", AT_STATUS, UP, 1, 0},
	{"NEEDS_RESET", AT_STATUS, UP | VIRTIO_NEEDS_RESET, 1, 0},
	{"FAILED", AT_STATUS, UP | VIRTIO_FAILED, 1, 0},
	{"an unknown status", AT_STATUS, UP | 0x10, 1, -EPROTO},
	{"another unknown status", AT_STATUS, UP | 0x20, 1, -EPROTO},
	{"all of the status", AT_STATUS, 0xff, 1, -EPROTO},
	{"up without FEATURES_OK", AT_STATUS, ACK | DRV | DOK, 1, -EPROTO},
	{"ready queues without FEATURES_OK", AT_STATUS, ACK | DRV, 1, -EPROTO},
	{"ready queues after a reset", AT_STATUS, 0, 1, -EPROTO},
	{"agreed, not up", AT_STATUS, ACK | DRV | FOK, 1, 0},
	{"no VERSION_1", AT_FEATURES, FAKE_FEATURES, 8, -EPROTO},
	{"fewer features", AT_FEATURES, VIRTIO_VERSION_1, 8, 0},
	{"a feature that was not offered", AT_FEATURES, VIRTIO_VERSION_1 | 2, 8, -ENOTSUP},
	{"all features", AT_FEATURES, UINT64_MAX, 8, -ENOTSUP},
	{"any generation", AT_GENERATION, UINT32_MAX, 4, 0},
	{"any configuration", AT_CONFIG, UINT64_MAX, 8, 0},
	{"fewer queues", AT_N_QUEUES, FAKE_QUEUES - 1, 4, -ERANGE},
	{"more queues", AT_N_QUEUES, FAKE_QUEUES + 1, 4, -ERANGE},
	{"all queues", AT_N_QUEUES, UINT32_MAX, 4, -ERANGE},
	{"no size", AT_QUEUE(0) + Q_SIZE, 0, 2, -EPROTO},
	{"a larger queue", AT_QUEUE(0) + Q_SIZE, 16, 2, -EPROTO},
	{"no power of two", AT_QUEUE(0) + Q_SIZE, 7, 2, -EPROTO},
	{"a smaller queue", AT_QUEUE(0) + Q_SIZE, 4, 2, 0},
	{"half ready", AT_QUEUE(1) + Q_READY, 2, 1, -EPROTO},
	{"not ready", AT_QUEUE(1) + Q_READY, 0, 1, 0},
	{"a table outside RAM", AT_QUEUE(1) + Q_DESC, RAM_MIN, 8, -EPROTO},
	{"a table off its place", AT_QUEUE(1) + Q_DESC, 0x10008, 8, -EPROTO},
	{"a ring at the end of the address space", AT_QUEUE(1) + Q_AVAIL, UINT64_MAX - 1, 8,
	 -EPROTO},
	{"a ring at an odd place", AT_QUEUE(1) + Q_AVAIL, 0x10001, 8, -EPROTO},
	{"a ring across the end of RAM", AT_QUEUE(2) + Q_USED, RAM_MIN - 128, 8, -EPROTO},
	{"the other ring off its place", AT_QUEUE(2) + Q_USED, 0x10002, 8, -EPROTO},
	{"any next_avail", AT_QUEUE(0) + Q_NEXT_AVAIL, 0x7fff, 2, 0},
	{"any next_used", AT_QUEUE(0) + Q_NEXT_USED, 0xffff, 2, 0},
	{"any signalled", AT_QUEUE(0) + Q_SIGNALLED, 0xffff, 2, 0},
	{"half valid", AT_QUEUE(2) + Q_VALID, 3, 1, -EPROTO},
	{"not valid", AT_QUEUE(2) + Q_VALID, 0, 1, 0},
};

/* Every field: what cannot be is refused, and what may be does no harm when it runs. */
START_TEST(hostile_state)
{
	const struct edit *e = &edits[_i];
	struct driver *to;
	struct sbuf s;
	int ret;

	driver_up(d, UINT64_MAX);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		add(d, i);
		driver_kick(d, i);
		driver_wait_used(d, i);
	}
	driver_quiesce(d);
	driver_save(d, &s);
	ck_assert_uint_eq(s.len, AT_QUEUE(FAKE_QUEUES));
	memcpy(s.data + e->offset, &e->value, e->size);
	to = driver_arriving(d, NULL);
	ret = driver_load(to, s.data, s.len);
	ck_assert_msg(ret == e->want, "%s: %d", e->what, ret);
	ck_assert_uint_eq(to->v->came, ret == 0);
	if (ret == 0) {
		driver_resume(to);
		for (unsigned i = 0; i < FAKE_QUEUES; i++)
			driver_kick_always(to, i);
		driver_settle(to);
		ck_assert(!fake_of(to->v)->wrong);
	}
	driver_free(to);
	sb_free(&s);
}
END_TEST

START_TEST(truncated_state)
{
	struct driver *to;
	struct sbuf s;

	driver_up(d, UINT64_MAX);
	driver_quiesce(d);
	driver_save(d, &s);
	to = driver_arriving(d, NULL);
	for (size_t len = 0; len < s.len; len++)
		ck_assert_int_eq(driver_load(to, s.data, len), -EPROTO);
	ck_assert(!to->v->came);
	ck_assert_int_eq(driver_load(to, s.data, s.len), 0);
	driver_free(to);
	sb_free(&s);
}
END_TEST

/* ---- the end ---- */

/* Kicks and tasks that nobody has looked at yet. */
START_TEST(destroyed_with_work_waiting)
{
	struct driver *e = driver_new(&fake_ops, NULL, RAM_MIN);

	driver_up(e, UINT64_MAX);
	driver_add(e, 0, &(struct driver_buf){mem, 1, true}, 1);
	driver_kick_always(e, 0);
	driver_kick_always(e, 2);
	virtio_serve_all(e->v);
	driver_free(e);
}
END_TEST

/* ---- threads: a vCPU drives registers while the loop serves and a mover quiesces ---- */

struct vcpu_thread {
	atomic_bool quit;
	pthread_t thread;
};

static void *vcpu_main(void *arg)
{
	struct vcpu_thread *t = arg;

	while (!t->quit) {
		virtio_config_read(d->v, 0, 8);
		virtio_config_write(d->v, 4, 4, 77);
		virtio_set_status(d->v, ACK | DRV | FOK | DOK);
		virtio_set_features(d->v, 0, 1);
		virtio_set_ready(d->v, 5, true);
		driver_kick_always(d, 0);
	}
	return NULL;
}

static void *mover_main(void *arg)
{
	struct vcpu_thread *t = arg;

	for (unsigned i = 0; i < 300; i++) {
		struct sbuf s;

		ck_assert_int_eq(virtio_quiesce(&d->v->dev, now_ns() + DRIVER_WAIT_NS), 0);
		driver_save(d, &s);
		sb_free(&s);
		virtio_resume(&d->v->dev);
	}
	t->quit = true;
	return NULL;
}

START_TEST(threads)
{
	struct vcpu_thread vcpu = {.quit = false}, mover = {.quit = false};
	unsigned n = 0;

	driver_up(d, UINT64_MAX);
	ck_assert_int_eq(pthread_create(&vcpu.thread, NULL, vcpu_main, &vcpu), 0);
	ck_assert_int_eq(pthread_create(&mover.thread, NULL, mover_main, &mover), 0);
	while (!mover.quit || n < 100) {
		if (d->queue[1].n_free) {
			add(d, 1);
			driver_kick(d, 1);
		}
		driver_step(d, NS_PER_MS);
		n += used(d, 1);
	}
	pthread_join(mover.thread, NULL);
	vcpu.quit = true;
	pthread_join(vcpu.thread, NULL);
	driver_settle(d);
	n += used(d, 1);
	ck_assert_uint_eq(d->queue[1].n_free, d->queue[1].size);
}
END_TEST

static void *resetter_main(void *arg)
{
	struct vcpu_thread *t = arg;

	while (!t->quit)
		virtio_set_status(d->v, 0);
	return NULL;
}

/* The handshake of a move looks at devices while the guest runs. */
START_TEST(shape_while_reset)
{
	struct vcpu_thread vcpu = {false};
	struct sbuf first, s;

	driver_save_shape(d, &first);
	ck_assert_int_eq(pthread_create(&vcpu.thread, NULL, resetter_main, &vcpu), 0);
	for (unsigned i = 0; i < 2000; i++) {
		driver_save_shape(d, &s);
		if (s.len != first.len || memcmp(s.data, first.data, s.len) != 0)
			ck_abort_msg("another shape");
		sb_free(&s);
	}
	vcpu.quit = true;
	pthread_join(vcpu.thread, NULL);
	sb_free(&first);
}
END_TEST

int main(void)
{
	const struct {
		const TTest *test;
		int loops;
	} tests[] = {
		{made, 1},
		{features, 1},
		{status_bits, 1},
		{queues, 1},
		{served_when, 1},
		{interrupts, 2},
		{needs_reset, 1},
		{bad_ring, 1},
		{reset_waits_for_requests, 1},
		{quiesce_waits_for_requests, 1},
		{quiesce_gives_up, 1},
		{config_reads, 1},
		{config_writes, 1},
		{config_changes, 1},
		{shapes, 1},
		{moves, 2},
		{hostile_state, ARRAY_SIZE(edits)},
		{truncated_state, 1},
		{destroyed_with_work_waiting, 1},
		{threads, 1},
		{shape_while_reset, 1},
	};
	Suite *s = suite_create("virtio");
	TCase *tc = tcase_create("virtio");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
		tcase_add_loop_test(tc, tests[i].test, 0, tests[i].loops);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
