/* SPDX-License-Identifier: MIT */
/*
 * The destination's part of the stop-and-copy: the machine's state, and the proof that both sides
 * hold the same memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dest_parts.h"
#include "rehash.h"
#include "state.h"

/* With --verify=full: is what is in RAM now still what the table says was stored? */
static int rehash_ram(struct receiver *r)
{
	uint64_t index = 0, cpu = 0;
	int ret = rehash_compare(&r->hashes, &r->vm->ram, &index, dest_still_wanted, r, &cpu);

	pthread_mutex_lock(&r->lock);
	r->stats.cpu_ns += cpu;
	pthread_mutex_unlock(&r->lock);
	/* What the tick had to say comes first. */
	if (ret)
		errmsg_set(&r->err, ret,
			   "page %llu of the destination's RAM is not what was stored",
			   (unsigned long long)index);
	return ret;
}

/* Compares the source's digests with our own, and names where they differ. */
static int compare_digests(struct receiver *r, const uint8_t *payload)
{
	size_t n, differs = 0;
	struct page_hash *own = hashes_proof(&r->hashes, r->state, r->state_len, &n, &r->root);
	uint64_t first, last;
	int ret = 0;

	if (!own)
		return errmsg_set(&r->err, -ENOMEM, "no memory for the proof");
	while (differs < n &&
	       memcmp(&own[differs], payload + differs * sizeof(*own), sizeof(*own)) == 0)
		differs++;
	if (differs == n)
		goto out;
	first = (uint64_t)differs * HASHES_CHUNK;
	last = MIN(first + HASHES_CHUNK, r->hashes.npages) - 1;
	if (differs == n - 1)
		ret = errmsg_set(&r->err, -EBADMSG, "the machine's state was damaged on its way");
	else
		ret = errmsg_set(
			&r->err, -EBADMSG,
			"source and destination hold different memory in pages %llu to %llu",
			(unsigned long long)first, (unsigned long long)last);
out:
	free(own);
	return ret;
}

int dest_on_proof(struct receiver *r, const uint8_t *payload)
{
	int ret = compare_digests(r, payload);

	if (ret == 0)
		ret = state_load(r->vm, r->state, r->state_len, &r->err);
	if (ret)
		return ret;
	dest_set_phase(r, MIGRATE_READY);
	return conn_send(&r->conn, WIRE_READY, &r->root, sizeof(r->root), NULL, &r->err);
}

int dest_on_state(struct receiver *r, const struct wire_frame *f, uint8_t **payload)
{
	int ret;

	/* Kept until the memory is proved equal. */
	r->state = *payload;
	r->state_len = f->length;
	*payload = NULL;
	dest_set_phase(r, MIGRATE_STOPCOPY);
	if (r->verify != MIGRATE_VERIFY_FULL)
		return 0;
	/* All pages are here; the source does the same now, and then sends its proof. */
	r->conn.due = WIRE_PROOF;
	ret = rehash_ram(r);
	r->conn.due = 0;
	return ret;
}
