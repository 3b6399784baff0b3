/* SPDX-License-Identifier: MIT */
/*
 * What every fuzz target has: a fuzz-NAME.c in a folder fuzz/ is one, whose only duty is
 *
 *	int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
 *
 * which does with the input what a hostile party could do, checks what must hold whatever that was,
 * and says fuzz_bug() when it does not. State may be kept between inputs where nothing of one input
 * can be seen by the next.
 *
 *	build/fuzz/vmm/fuzz/fuzz-NAME		with libFuzzer: `make fuzz`, scripts/fuzz
 *	build/asan/ubsan/vmm/fuzz/fuzz-NAME	replays vmm/fuzz/corpus/NAME: replay.c, `make check`
 *
 * An input is read as a program: bytes for what to do next and for its operands. What is missing at
 * its end reads as zeros, so that any prefix of an input is one.
 */
#ifndef GODWIT_FUZZ_FUZZ_H
#define GODWIT_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../ram.h"
#include "../util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Says what does not hold and ends the program. */
_Noreturn void fuzz_bug(const char *fmt, ...) PRINTF(1, 2);

/* Ends it unless cond holds. */
#define fuzz_need(cond, ...)                                                                       \
	do {                                                                                       \
		if (!(cond))                                                                       \
			fuzz_bug(__VA_ARGS__);                                                     \
	} while (0)

/* A folder of this process's own for sockets and the like; it goes at the end. */
const char *fuzz_folder(void);

/* Open file descriptors of this process. */
unsigned count_fds(void);

/*
 * Pages of RAM that hold something and are not marked as stored into were not stored into by the
 * functions of ram.h. `when` is for the message.
 */
void fuzz_need_marks(const struct ram *ram, const char *when);

/* ---- the input ---- */

struct fuzz_in {
	const uint8_t *at, *end;
};

static inline size_t in_left(const struct fuzz_in *in)
{
	return (size_t)(in->end - in->at);
}

static inline void in_bytes(struct fuzz_in *in, void *buf, size_t len)
{
	size_t n = MIN(len, in_left(in));

	if (n)
		memcpy(buf, in->at, n);
	memset((uint8_t *)buf + n, 0, len - n);
	in->at += n;
}

static inline uint8_t in_u8(struct fuzz_in *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

static inline uint16_t in_u16(struct fuzz_in *in)
{
	uint16_t v;

	in_bytes(in, &v, sizeof(v));
	return v;
}

static inline uint32_t in_u32(struct fuzz_in *in)
{
	uint32_t v;

	in_bytes(in, &v, sizeof(v));
	return v;
}

static inline uint64_t in_u64(struct fuzz_in *in)
{
	uint64_t v;

	in_bytes(in, &v, sizeof(v));
	return v;
}

#endif
