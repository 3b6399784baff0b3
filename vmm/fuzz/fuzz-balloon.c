/* SPDX-License-Identifier: MIT */
/*
 * What a guest's driver can do to the balloon. Each page that goes back to the host must be one
 * that the guest gave, by its number or in a report.
 */
#include "../virtio_balloon.h"

#include "machine.h"
#include "oracle.h"

#define INFLATE 0U
#define DEFLATE 1U
#define STATS 2U
#define FIRST_REPORT 2U
#define N_QUEUES 5U
#define CONFIG_ACTUAL 4U
#define CONFIG_POISON 12U

#define LIST_MAX (256 * KIB)

/* Pages that the request to inflate which the device has names. */
static uint64_t named[RAM_MIN / PAGE_SIZE / 64];

static void name(uint64_t page)
{
	if (page / 64 < ARRAY_SIZE(named))
		named[page / 64] |= 1ULL << (page % 64);
}

/*
 * All numbers are read when the device has just taken the chain. It may have given back a page with
 * some of them on it before it has read those: then they are 0.
 */
static void taken(unsigned queue, const struct virtq_chain *c)
{
	uint32_t pfn[256];
	size_t n;

	if (queue != INFLATE)
		return;
	memset(named, c->out_len > LIST_MAX ? 0xff : 0, sizeof(named));
	name(0);
	for (uint64_t at = 0; at < MIN(c->out_len, LIST_MAX); at += n) {
		n = virtq_read(c, at, pfn, sizeof(pfn));
		for (size_t i = 0; i < n / sizeof(pfn[0]); i++)
			name(pfn[i]);
	}
}

static bool may_zero(uint64_t index, uint64_t n)
{
	uint64_t i = index;

	while (i < index + n && named[i / 64] & (1ULL << (i % 64)))
		i++;
	if (i == index + n)
		return true;
	for (unsigned q = FIRST_REPORT; q < N_QUEUES; q++) {
		if (oracle_writable(q, index * PAGE_SIZE, n * PAGE_SIZE))
			return true;
	}
	return false;
}

static const void *setup(struct fuzz_machine *m)
{
	static const struct virtio_balloon_config config = {
		.stats_interval_ns = 100 * NS_PER_US,
	};

	(void)m;
	oracle_may_zero = may_zero;
	oracle_taken = taken;
	return &config;
}

static void give_pages(struct fuzz_machine *m, struct fuzz_in *in, unsigned queue)
{
	uint32_t pfn[64], first = in_u8(in) * 16U, step = in_u8(in) % 4;
	unsigned n = in_u8(in) % ARRAY_SIZE(pfn);
	struct fuzz_buf b;

	for (unsigned i = 0; i < n; i++)
		pfn[i] = first + i * (step - 1);
	b = machine_out(m, pfn, n * 4);
	machine_chain(m, queue, &b, 1, step & 1);
}

static void report_pages(struct fuzz_machine *m, struct fuzz_in *in, unsigned queue)
{
	struct fuzz_buf b[4];
	unsigned n = 1 + in_u8(in) % ARRAY_SIZE(b);

	for (unsigned i = 0; i < n; i++)
		b[i] = (struct fuzz_buf){
			.gpa = in_u16(in) * 256ULL,
			.len = in_u8(in) * 256U * (1U + 15U * (n & 1)),
			.in = true,
		};
	machine_chain(m, queue, b, n, n & 2);
}

static void report_stats(struct fuzz_machine *m, struct fuzz_in *in)
{
	uint8_t entries[40];
	struct fuzz_buf b;

	in_bytes(in, entries, sizeof(entries));
	b = machine_out(m, entries, in_u8(in) % (sizeof(entries) + 1));
	machine_chain(m, STATS, &b, 1, false);
}

static void request(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned shape = in_u8(in), queue = shape % N_QUEUES;

	if (queue < STATS)
		give_pages(m, in, queue);
	else if (queue == STATS && !(shape & 64))
		report_stats(m, in);
	else
		report_pages(m, in, queue);
	if (!(shape & 128))
		machine_kick(m, queue);
}

static void host(struct fuzz_machine *m, struct fuzz_in *in)
{
	struct balloon_stats stats;

	if (in_u8(in) & 1)
		virtio_balloon_set_target(m->side->dev, in_u16(in) * 4096ULL, NULL);
	virtio_balloon_stats(m->side->dev, &stats);
}

static void honest(struct fuzz_machine *m)
{
	static const uint8_t ones[PAGE_SIZE] = {1, 1, 1};
	const uint64_t page = ARENA + ARENA_SIZE, next = page + PAGE_SIZE;
	const uint32_t pfn = (uint32_t)(page / PAGE_SIZE);
	const struct fuzz_buf numbers = machine_out(m, &pfn, sizeof(pfn));
	const struct fuzz_buf report = {.gpa = next, .len = PAGE_SIZE, .in = true};
	uint8_t byte = 1;

	oracle_store(page, ones, sizeof(ones));
	machine_chain(m, INFLATE, &numbers, 1, false);
	machine_kick(m, INFLATE);
	machine_wait_used(m, INFLATE);
	oracle_load(page, &byte, 1);
	fuzz_need(byte == 0, "a page in the balloon is still there");

	oracle_store(next, ones, sizeof(ones));
	machine_chain(m, FIRST_REPORT + 1, &report, 1, true);
	machine_kick(m, FIRST_REPORT + 1);
	machine_wait_used(m, FIRST_REPORT + 1);
	oracle_load(next, &byte, 1);
	fuzz_need(byte == 0, "a page that was reported free is still there");
	machine_chain(m, DEFLATE, &numbers, 1, false);
	machine_kick(m, DEFLATE);
	machine_wait_used(m, DEFLATE);
}

static const struct fuzz_target target = {
	.ops = &virtio_balloon_ops,
	.variants = 1,
	.setup = setup,
	.request = request,
	.host = host,
	.honest = honest,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_virtio(&target, data, size);
}
