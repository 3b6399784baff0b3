/* SPDX-License-Identifier: MIT */
#include "virtio_rng.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "virtio.h"

#define RNG_QUEUE 64U
#define CHUNK 4096U
/* What one turn may take: bytes, and what a buffer costs besides. */
#define TURN (int64_t) VIRTIO_RNG_MAX
#define CHAIN_COST (TURN / 64)

struct virtio_rng {
	struct virtio v;
};

/* Fills the chain up to VIRTIO_RNG_MAX; the number of bytes. */
static uint32_t fill(const struct virtq_chain *c, struct ram *ram)
{
	uint64_t want = MIN(c->in_len, VIRTIO_RNG_MAX), done = 0;
	uint8_t chunk[CHUNK];

	while (done < want) {
		/* From the generator's own pool: this waits only while the host boots. */
		ssize_t n = getrandom(chunk, MIN(want - done, sizeof(chunk)), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break; /* the guest must never take for random what is not */
		done += virtq_write(c, ram, done, chunk, (size_t)n);
	}
	explicit_bzero(chunk, sizeof(chunk));
	return (uint32_t)done;
}

static void rng_serve(struct virtio *v, unsigned queue)
{
	struct virtio_turn turn = virtio_begin_turn(v, queue, TURN);
	struct iovec iov[RNG_QUEUE];
	struct virtq_chain c = {.iov = iov, .max = RNG_QUEUE};

	while (virtio_next(&turn, &c)) {
		uint32_t n;

		if (c.n_out || !c.in_len) {
			virtio_fail(v, "a request that is not just a buffer to fill");
			return;
		}
		n = fill(&c, &v->dev.vm->ram);
		virtio_push(v, queue, c.head, n);
		turn.left -= CHAIN_COST + n;
	}
}

static const struct virtio_ops ops = {
	.type = VIRTIO_TYPE_RNG,
	.name = "rng",
	.serve = rng_serve,
};

static int rng_init(struct device *d, const void *config)
{
	struct virtio_rng *r = container_of(d, struct virtio_rng, v.dev);
	const uint16_t size = RNG_QUEUE;
	uint8_t byte;

	(void)config;
	/* A host without getrandom(2), or a sandbox that forbids it, is found here. */
	if (getrandom(&byte, sizeof(byte), 0) != sizeof(byte))
		return -errno;
	return virtio_init(&r->v, &ops, 0, &size, 1);
}

static void rng_destroy(struct device *d)
{
	virtio_destroy(container_of(d, struct virtio, dev));
}

const struct device_ops virtio_rng_ops = {
	.tag = "virtio-rng",
	.size = sizeof(struct virtio_rng),
	.version = 1,
	.min_version = 1,
	.init = rng_init,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = virtio_resume,
	.fields = virtio_fields,
	.loaded = virtio_loaded,
	.shape = virtio_shape,
	.destroy = rng_destroy,
};
