/* SPDX-License-Identifier: MIT */
/*
 * A virtio device for the tests of what all of them have in common. It does with a chain what the
 * test says, and counts what it is told.
 */
#ifndef GODWIT_TESTS_FAKE_VIRTIO_H
#define GODWIT_TESTS_FAKE_VIRTIO_H

#include "../virtio.h"

#define FAKE_TYPE 42U
#define FAKE_FEATURES (VIRTIO_F(0) | VIRTIO_F(5) | VIRTIO_F(40))
#define FAKE_QUEUES 3U
#define FAKE_QUEUE_SIZES                                                                           \
	{                                                                                          \
		8, 4, 16                                                                           \
	}
#define FAKE_CONFIG_LEN 16U
#define FAKE_WRITABLE 4U
#define FAKE_WRITABLE_LEN 6U

enum fake_does {
	FAKE_ANSWERS, /* gives the chain back at once, its writable part's first byte set to 'A' */
	FAKE_HOLDS,   /* keeps it, as a disk does, until fake_finish() */
	FAKE_IGNORES, /* leaves it on the ring */
	FAKE_FAILS,   /* says that the driver made a mistake */
};

struct fake {
	struct virtio v;
	enum fake_does does;
	unsigned activated, resets, written;
	unsigned served[FAKE_QUEUES];
	unsigned held[FAKE_QUEUES];
	uint16_t head[FAKE_QUEUES][16];
	bool wrong; /* called when it must not be */
};

static inline struct fake *fake_of(struct virtio *v)
{
	return container_of(v, struct fake, v);
}

static inline void fake_activate(struct virtio *v)
{
	struct fake *f = fake_of(v);

	f->activated++;
	/* Everything is negotiated by then. */
	if (!(v->status & VIRTIO_FEATURES_OK) || !virtio_has(v, VIRTIO_VERSION_1))
		f->wrong = true;
}

static inline void fake_serve(struct virtio *v, unsigned queue)
{
	struct fake *f = fake_of(v);
	struct iovec iov[16];
	struct virtq_chain c = {.iov = iov, .max = 16};
	struct ram *ram = &v->dev.vm->ram;
	struct virtq *q = &v->queue[queue].q;

	f->served[queue]++;
	if (!virtio_live(v) || !q->ready)
		f->wrong = true;
	if (f->does == FAKE_FAILS)
		virtio_fail(v, "a test of %s", "mistakes");
	if (f->does == FAKE_IGNORES)
		return;
	do {
		virtq_no_kicks(q, ram);
		while (virtio_pop(v, queue, &c)) {
			uint32_t n;

			if (f->does == FAKE_HOLDS) {
				virtio_begin(v);
				f->head[queue][f->held[queue]++] = c.head;
				continue;
			}
			n = (uint32_t)virtq_write(&c, ram, 0, "A", 1);
			virtio_push(v, queue, c.head, n);
		}
	} while (virtio_live(v) && virtq_want_kicks(q, ram));
}

/* One of the chains that a queue holds is done. With the lock held. */
static inline void fake_finish(struct fake *f, unsigned queue)
{
	f->held[queue]--;
	virtio_push(&f->v, queue, f->head[queue][f->held[queue]], 0);
	virtio_end(&f->v);
}

static inline void fake_reset(struct virtio *v)
{
	struct fake *f = fake_of(v);

	f->resets++;
	if (v->inflight)
		f->wrong = true;
}

static inline void fake_written(struct virtio *v)
{
	fake_of(v)->written++;
}

static const struct virtio_ops fake_virtio_ops = {
	.type = FAKE_TYPE,
	.name = "fake",
	.activate = fake_activate,
	.serve = fake_serve,
	.reset = fake_reset,
	.writable = FAKE_WRITABLE,
	.writable_len = FAKE_WRITABLE_LEN,
	.config_written = fake_written,
};

/* config: const uint64_t *, the features, or NULL */
static inline int fake_init(struct device *d, const void *config)
{
	static const uint16_t sizes[FAKE_QUEUES] = FAKE_QUEUE_SIZES;
	struct virtio *v = container_of(d, struct virtio, dev);
	const uint64_t *features = config;

	v->config_len = FAKE_CONFIG_LEN;
	/* Beyond its end there is something that nobody may see. */
	for (unsigned i = 0; i < VIRTIO_CONFIG_MAX; i++)
		v->config[i] = (uint8_t)(0x10 + i);
	return virtio_init(v, &fake_virtio_ops, features ? *features : FAKE_FEATURES, sizes,
			   FAKE_QUEUES);
}

static inline void fake_destroy(struct device *d)
{
	virtio_destroy(container_of(d, struct virtio, dev));
}

static const struct device_ops fake_ops = {
	.tag = "fake",
	.size = sizeof(struct fake),
	.version = 1,
	.min_version = 1,
	.init = fake_init,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = virtio_resume,
	.fields = virtio_fields,
	.loaded = virtio_loaded,
	.shape = virtio_shape,
	.destroy = fake_destroy,
};

#endif
