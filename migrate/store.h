/* SPDX-License-Identifier: MIT */
/*
 * The page path of the destination: from a PAGES frame into guest RAM.
 *
 * A batch is read in two steps: what it claims is checked before its contents are let in. They
 * land where they belong, in guest RAM, and each page is hashed there: the hash is compared with
 * the source's and kept as this side's own table. Until the proof nothing of it counts.
 *
 * Deltas come to the side first, and then into the page that is held here. Before, the source has
 * asked for the hashes of that page's blocks, on the same connection.
 */
#ifndef GODWIT_MIGRATE_STORE_H
#define GODWIT_MIGRATE_STORE_H

#include <stdatomic.h>
#include <stdint.h>

#include "../vmm/ram.h"
#include "conn.h"
#include "hashes.h"
#include "pack.h"

struct store {
	struct ram *ram;
	struct hashes *hashes; /* of what is held here */
	struct unpack unpack;
	uint64_t used; /* bytes of RAM in use when the host's memory was last looked at */
	_Atomic uint64_t pages_stored, pages_zeroed; /* so far */
};

/*
 * Receives the payload of a PAGES frame whose header has been read, and stores it. Also where that
 * fails, the table tells what RAM holds: another connection may go on from there. -EPROTO
 * (malformed), -EBADMSG (damaged on its way), -ENOMEM (the host's memory runs out), or as
 * conn_recv(), with the cause in err.
 */
int store_batch(struct store *s, struct conn *c, const struct wire_frame *f, struct errmsg *err);

/* Receives the payload of an ASK frame, and answers it with HAVE. Errors as above. */
int store_answer(struct store *s, struct conn *c, const struct wire_frame *f, struct errmsg *err);

#endif
