/* SPDX-License-Identifier: MIT */
/*
 * What a destination holds of a guest before its source has sent anything on this connection:
 * because an earlier one broke, or because the guest has been there before (`receive --base`).
 *
 * Theory of operation: the source's table of hashes has to say what the destination holds. So it is
 * made equal to the destination's own: each chunk of 512 pages has a digest on both sides; of those
 * chunks whose digests differ the destination tells the hashes, 16 bytes a page. A page whose entry
 * changed by that counts as dirty: if it was in flight when the connection broke, or is older
 * there, it is sent again; if it is the same after all, the page path finds it unchanged.
 *
 *	D HELD digest of each chunk	S WANT the chunks that differ	D TABLE of each
 */
#ifndef GODWIT_MIGRATE_HELD_H
#define GODWIT_MIGRATE_HELD_H

#include <stdint.h>

#include "conn.h"
#include "hashes.h"

/* Destination: sends the digests. Errors as conn_send(). */
int held_announce(struct hashes *h, struct conn *c, struct errmsg *err);

/*
 * Destination: answers a WANT frame with its payload. -EPROTO when it asks for what there is not,
 * or as conn_send().
 */
int held_answer(const struct hashes *h, struct conn *c, const struct wire_frame *f,
		const uint8_t *payload, struct errmsg *err);

/* Source: receives the digests; *digests is the caller's to free. Errors as conn_expect(). */
int held_receive(const struct hashes *h, struct conn *c, struct page_hash **digests,
		 struct errmsg *err);

/*
 * Source: makes the table tell what these digests stand for, and sets the bit of each page whose
 * entry changed. -EPROTO for a malformed answer, or as conn_expect().
 */
int held_adopt(struct hashes *h, struct conn *c, const struct page_hash *digests, uint64_t *bitmap,
	       struct errmsg *err);

#endif
