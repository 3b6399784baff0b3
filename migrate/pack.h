/* SPDX-License-Identifier: MIT */
/*
 * zstd for the contents of batches, where the network is slower than it.
 *
 * Theory of operation: a batch is compressed while those before it are being sent, so it costs
 * whichever of the two takes longer. What each takes a byte of content is measured all the time:
 *
 *	plain	max(work, wire)			work: reading and hashing pages; wire: sending
 *	packed	max(work + zstd, ratio * wire)
 *
 * The network is the bottleneck only while its sender waits for a free buffer; how fast it is can
 * be told only then. And not where both ends are on this host and no CPU is idle: there the other
 * side waits for a CPU, and would wait longer if we took more. (With an idle one, there may be a
 * tunnel in between.) When packed is the quicker one, batches are packed; where the network waits
 * all the same, harder. Content that does not become smaller is left alone, and tried again now and
 * then, ever more rarely.
 */
#ifndef GODWIT_MIGRATE_PACK_H
#define GODWIT_MIGRATE_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "conn.h"
#include "migrate.h"

struct pack {
	enum migrate_compress mode;
	int level; /* as it was chosen; with _AUTO the present one */
	void *ctx; /* ZSTD_CCtx, made when it is needed */
	bool on;
	unsigned batches;    /* in this window */
	unsigned wait, rest; /* batches until it is tried again, and how many that were last */
	double work, wire;   /* ns a byte of content; wire 0: not known to be slow */
	double zstd, ratio;  /* ns a byte of content; bytes out for one in */
	/* At the start of the window. */
	uint64_t start_ns, start_cpu, blocked_ns, sent;
	uint64_t host_idle, host_total; /* CPU time of all of the host, in ticks */
	/* In it. */
	uint64_t content, zstd_ns;
};

void pack_init(struct pack *p, enum migrate_compress mode, int level);
void pack_free(struct pack *p);

/* Are batches compressed as things stand? */
static inline bool pack_is_on(const struct pack *p)
{
	return p->mode == MIGRATE_COMPRESS_ZSTD || (p->mode == MIGRATE_COMPRESS_AUTO && p->on);
}

/* What lies between two rounds is no part of what a byte costs. */
void pack_begin_round(struct pack *p);

/*
 * Compresses the contents of a batch that is full, if that is worth it. Whether it was: the batch's
 * head tells. 0, or -ENOMEM with the cause in err.
 */
int pack_batch(struct pack *p, struct conn *c, struct conn_batch *b, struct errmsg *err);

/* The other side: the contents of a batch from one zstd frame. A zeroed one is empty. */
struct unpack {
	void *ctx; /* ZSTD_DCtx */
	uint8_t *packed, *contents;
};

void unpack_free(struct unpack *u);

/* Makes room for a frame at u->packed, and for a batch's contents at u->contents. -ENOMEM. */
int unpack_prepare(struct unpack *u);

/* u->packed, of `len` bytes, to exactly `want` bytes at u->contents. -EBADMSG. */
int unpack(struct unpack *u, uint32_t len, uint32_t want);

#endif
