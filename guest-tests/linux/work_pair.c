/* SPDX-License-Identifier: MIT */
/*
 * The pair: a sender and a receiver, which pass numbered blocks of known content through the
 * kernel.
 *
 * A block goes one of three ways: whole through a pipe; by pwrite() into a shared file that the
 * receiver has mapped; or by a store into the mapping, for the receiver to pread(). So the copy
 * that is checked was made by the kernel, in pages that are nobody's anonymous memory. A token
 * through the pipe says which block went which way; the receiver answers each with its number,
 * and the sender is never more than half the ring ahead.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "content.h"
#include "work.h"

#define BLOCK_PAGES 4u
#define BLOCK_BYTES (BLOCK_PAGES * PAGE_BYTES)
#define BLOCK_WORDS (BLOCK_PAGES * PAGE_WORDS)
#define RING_BLOCKS 16u
_Static_assert(RING_BLOCKS *BLOCK_BYTES == PAIR_RING_BYTES, "the ring and its file");
#define OWNER 63u /* in stamps: no memory worker has this number */

enum way {
	WAY_PIPE,
	WAY_PWRITE,
	WAY_STORE,
	WAYS,
};

struct token {
	uint64_t block;
	uint64_t way;
};

struct sender {
	unsigned char *map;
	uint64_t sent, answered;
	uint64_t stamps[RING_BLOCKS]; /* what each ring block holds; 0: zeros, never written */
	uint64_t want[BLOCK_WORDS], have[BLOCK_WORDS];
};

/* Whole reads and writes on a pipe; 0, or -1 with errno (EPIPE at the end of the other). */
static int read_whole(int fd, void *data, size_t len)
{
	unsigned char *p = data;

	while (len > 0) {
		ssize_t n = read(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			if (n == 0)
				errno = EPIPE;
			return -1;
		}
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int write_whole(int fd, const void *data, size_t len)
{
	const unsigned char *p = data;

	while (len > 0) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno != EINTR)
			return -1;
		if (n > 0) {
			p += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

static uint64_t block_stamp(uint64_t block)
{
	return stamp_make(OWNER, (size_t)(block % RING_BLOCKS), block) |
	       (block % 5 ? 0 : STAMP_COMPRESS);
}

static off_t block_offset(uint64_t block)
{
	return (off_t)(block % RING_BLOCKS * BLOCK_BYTES);
}

static bool block_verify(struct worker *w, const char *where, uint64_t block, const uint64_t *have,
			 const uint64_t *want)
{
	char text[300];

	add(&w->slot->pages, BLOCK_PAGES);
	if (memcmp(have, want, BLOCK_BYTES) == 0)
		return true;
	content_explain(have, want, BLOCK_WORDS, w->sh->seed, text, sizeof(text));
	worker_error(w, "%s block %llu: %s", where, (unsigned long long)block, text);
	return false;
}

static void *ring_map(struct worker *w)
{
	void *p = mmap(NULL, RING_BLOCKS * BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
		       w->ring_fd, 0);

	if (p == MAP_FAILED)
		worker_die(w, "mmap of the shared ring");
	return p;
}

static void take_answer(struct worker *w, struct sender *s)
{
	uint64_t block = 0;

	if (read_whole(w->pipe_in, &block, sizeof(block)) < 0)
		worker_die(w, "answer of the receiver");
	s->answered++;
	if (block != s->answered)
		worker_error(w, "receiver answered %llu, not %llu", (unsigned long long)block,
			     (unsigned long long)s->answered);
}

/* The ring at rest, seen both ways. */
static uint64_t ring_verify(struct worker *w)
{
	struct sender *s = w->data;

	while (s->answered < s->sent)
		take_answer(w, s);
	for (uint64_t i = 0; i < RING_BLOCKS; i++) {
		content_make(s->want, BLOCK_WORDS, s->stamps[i], 0, w->sh->seed);
		memcpy(s->have, s->map + block_offset(i), BLOCK_BYTES);
		block_verify(w, "mapped", i, s->have, s->want);
		if (pread(w->ring_fd, s->have, BLOCK_BYTES, block_offset(i)) !=
		    (ssize_t)BLOCK_BYTES)
			worker_die(w, "pread of the shared ring");
		block_verify(w, "file", i, s->have, s->want);
	}
	return (uint64_t)RING_BLOCKS * BLOCK_PAGES * 2;
}

static void send_block(struct worker *w, struct sender *s)
{
	struct token token = {.block = ++s->sent, .way = s->sent % WAYS};
	off_t offset = block_offset(token.block);

	content_make(s->want, BLOCK_WORDS, block_stamp(token.block), 0, w->sh->seed);
	if (worker_fault(w, FAULT_BLOCK))
		((unsigned char *)s->want)[1000] ^= 4;
	switch (token.way) {
	case WAY_PIPE:
		break;
	case WAY_PWRITE:
		if (pwrite(w->ring_fd, s->want, BLOCK_BYTES, offset) != (ssize_t)BLOCK_BYTES)
			worker_die(w, "pwrite to the shared ring");
		break;
	case WAY_STORE:
		memcpy(s->map + offset, s->want, BLOCK_BYTES);
		break;
	}
	if (token.way != WAY_PIPE)
		s->stamps[token.block % RING_BLOCKS] = block_stamp(token.block);
	if (write_whole(w->pipe_out, &token, sizeof(token)) < 0 ||
	    (token.way == WAY_PIPE && write_whole(w->pipe_out, s->want, BLOCK_BYTES) < 0))
		worker_die(w, "pipe to the receiver");
}

void work_send(struct worker *w)
{
	struct sender *s = worker_map(w, sizeof(*s));

	s->map = ring_map(w);
	w->data = s;
	w->verify = ring_verify;
	for (;;) {
		worker_turn(w);
		send_block(w, s);
		while (s->sent - s->answered >= RING_BLOCKS / 2)
			take_answer(w, s);
		worker_rest(w, w->opt->pair_us);
	}
}

/* Takes no orders: when the sender stops it has nothing to read. */
void work_recv(struct worker *w)
{
	uint64_t *have = worker_map(w, BLOCK_BYTES), *want = worker_map(w, BLOCK_BYTES);
	unsigned char *map = ring_map(w);
	struct token token;
	uint64_t next = 1;

	for (;; next++) {
		struct pollfd p = {.fd = w->pipe_in, .events = POLLIN};

		while (poll(&p, 1, 500) <= 0)
			add(&w->slot->beats, 1);
		if (read_whole(w->pipe_in, &token, sizeof(token)) < 0)
			worker_die(w, "pipe from the sender");
		add(&w->slot->beats, 1);
		if (token.block != next || token.way >= WAYS) {
			worker_error(w, "token of block %llu way %llu, wanted block %llu",
				     (unsigned long long)token.block, (unsigned long long)token.way,
				     (unsigned long long)next);
			errno = EPROTO;
			worker_die(w, "the pipe is out of step");
		}
		switch (token.way) {
		case WAY_PIPE:
			if (read_whole(w->pipe_in, have, BLOCK_BYTES) < 0)
				worker_die(w, "pipe from the sender");
			break;
		case WAY_PWRITE:
			memcpy(have, map + block_offset(token.block), BLOCK_BYTES);
			break;
		case WAY_STORE:
			if (pread(w->ring_fd, have, BLOCK_BYTES, block_offset(token.block)) !=
			    (ssize_t)BLOCK_BYTES)
				worker_die(w, "pread of the shared ring");
			break;
		}
		content_make(want, BLOCK_WORDS, block_stamp(token.block), 0, w->sh->seed);
		block_verify(w, "received", token.block, have, want);
		add(&w->slot->blocks, 1);
		if (write_whole(w->pipe_out, &token.block, sizeof(token.block)) < 0)
			worker_die(w, "pipe to the sender");
	}
}
