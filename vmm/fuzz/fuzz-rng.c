/* SPDX-License-Identifier: MIT */
/* What a guest's driver can do to the entropy source. */
#include "../virtio_rng.h"

#include "machine.h"
#include "oracle.h"

static void request(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned shape = in_u8(in);
	struct fuzz_buf b[2];

	for (unsigned i = 0; i < ARRAY_SIZE(b); i++)
		b[i] = machine_room(m, in_u8(in));
	machine_chain(m, 0, b, 1 + (shape & 1), shape & 2);
	if (!(shape & 4))
		machine_kick(m, 0);
}

static void honest(struct fuzz_machine *m)
{
	static const uint8_t zeros[64];
	const struct fuzz_buf b = machine_room(m, sizeof(zeros));
	uint8_t bytes[sizeof(zeros)];

	oracle_store(b.gpa, zeros, sizeof(zeros));
	machine_chain(m, 0, &b, 1, false);
	machine_kick(m, 0);
	fuzz_need(machine_wait_used(m, 0) == sizeof(bytes), "not as many bytes as were asked for");
	oracle_load(b.gpa, bytes, sizeof(bytes));
	fuzz_need(memcmp(bytes, zeros, sizeof(zeros)) != 0, "no random bytes");
}

static const struct fuzz_target target = {
	.ops = &virtio_rng_ops,
	.variants = 1,
	.request = request,
	.honest = honest,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_virtio(&target, data, size);
}
