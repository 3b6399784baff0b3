/* SPDX-License-Identifier: MIT */
/*
 * The registers of virtio-mmio, negotiation, and what all virtio devices have in common, with a
 * device of our own behind it that echoes: the readable part of a chain into its writable part.
 */
#include <stdlib.h>

#include "machine.h"
#include "oracle.h"

#define FEATURES (VIRTIO_F(0) | VIRTIO_F(9) | VIRTIO_F(23) | VIRTIO_F(40))
#define CONFIG_LEN 24U
#define WRITABLE 8U
#define WRITABLE_LEN 6U
#define N_QUEUES 4U
#define TURN 64

struct echo {
	struct virtio v;
	uint8_t fixed[VIRTIO_CONFIG_MAX]; /* what a driver may not change */
};

static struct echo *to_echo(struct virtio *v)
{
	return container_of(v, struct echo, v);
}

static void echo_serve(struct virtio *v, unsigned queue)
{
	struct virtio_turn turn = virtio_begin_turn(v, queue, TURN);
	struct iovec iov[64];
	struct virtq_chain c = {.iov = iov, .max = ARRAY_SIZE(iov)};

	fuzz_need(virtio_live(v) && v->queue[queue].q.ready, "served and not live");
	while (virtio_next(&turn, &c)) {
		uint8_t bytes[256];
		size_t n = virtq_read(&c, 0, bytes, sizeof(bytes));

		if (n && bytes[0] == 0xfe) {
			virtio_fail(v, "it was asked to fail");
			return;
		}
		n = virtq_write(&c, &v->dev.vm->ram, 0, bytes, n);
		if (n && bytes[0] == 0xfd)
			virtio_set_config(v, 0, bytes, (unsigned)MIN(n, 8));
		virtio_push(v, queue, c.head, (uint32_t)n);
		turn.left--;
	}
}

static void echo_activate(struct virtio *v)
{
	fuzz_need((v->status & VIRTIO_FEATURES_OK) && virtio_has(v, VIRTIO_VERSION_1),
		  "activated before features were settled");
}

static void echo_reset(struct virtio *v)
{
	fuzz_need(v->inflight == 0, "reset with requests in flight");
	memset(v->config + WRITABLE, 0, WRITABLE_LEN);
}

static void echo_written(struct virtio *v)
{
	for (unsigned i = 8; i < VIRTIO_CONFIG_MAX; i++)
		fuzz_need((i - WRITABLE < WRITABLE_LEN) || v->config[i] == to_echo(v)->fixed[i],
			  "a driver has written byte %u of the configuration", i);
}

static const struct virtio_ops echo_virtio_ops = {
	.type = 42,
	.name = "echo",
	.activate = echo_activate,
	.serve = echo_serve,
	.reset = echo_reset,
	.writable = WRITABLE,
	.writable_len = WRITABLE_LEN,
	.config_written = echo_written,
};

static int echo_init(struct device *d, const void *config)
{
	static const uint16_t sizes[N_QUEUES] = {8, 64, 256, 1024};
	struct virtio *v = container_of(d, struct virtio, dev);

	(void)config;
	v->config_len = CONFIG_LEN;
	for (unsigned i = 0; i < VIRTIO_CONFIG_MAX; i++)
		v->config[i] = to_echo(v)->fixed[i] = (uint8_t)i;
	return virtio_init(v, &echo_virtio_ops, FEATURES, sizes, N_QUEUES);
}

static int echo_loaded(struct device *d)
{
	struct virtio *v = container_of(d, struct virtio, dev);

	memcpy(to_echo(v)->fixed, v->config, sizeof(v->config));
	return virtio_loaded(d);
}

static void echo_destroy(struct device *d)
{
	virtio_destroy(container_of(d, struct virtio, dev));
}

static const struct device_ops echo_ops = {
	.tag = "echo",
	.size = sizeof(struct echo),
	.version = 1,
	.min_version = 1,
	.init = echo_init,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = virtio_resume,
	.fields = virtio_fields,
	.loaded = echo_loaded,
	.shape = virtio_shape,
	.destroy = echo_destroy,
};

/* ---- the target ---- */

static void request(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned queue = in_u8(in) % N_QUEUES, shape = in_u8(in);
	uint8_t bytes[16];
	struct fuzz_buf b[2];

	in_bytes(in, bytes, shape % sizeof(bytes));
	b[0] = machine_out(m, bytes, shape % sizeof(bytes));
	b[1] = machine_room(m, shape >> 4);
	machine_chain(m, queue, b, 2, shape & 16);
	machine_kick(m, queue);
}

static void honest(struct fuzz_machine *m)
{
	for (unsigned queue = 0; queue < N_QUEUES; queue++) {
		const char text[] = "hello";
		struct fuzz_buf b[] = {
			machine_out(m, text, sizeof(text)),
			machine_room(m, sizeof(text)),
		};
		char answer[sizeof(text)] = "";

		machine_chain(m, queue, b, 2, queue & 1);
		machine_kick(m, queue);
		fuzz_need(machine_wait_used(m, queue) == sizeof(text), "an echo of another length");
		oracle_load(b[1].gpa, answer, sizeof(answer));
		fuzz_need(memcmp(answer, text, sizeof(text)) == 0, "another echo");
	}
}

static const struct fuzz_target target = {
	.ops = &echo_ops,
	.variants = 1,
	.registers = true,
	.request = request,
	.honest = honest,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_virtio(&target, data, size);
}
