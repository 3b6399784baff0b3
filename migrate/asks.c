/* SPDX-License-Identifier: MIT */
#include "asks.h"

#include <errno.h>
#include <stdlib.h>

#define TRY_PAGES 32U
#define FEW_PAGES 8U /* the answer to fewer says little */
#define REST_MIN 1U
#define REST_MAX 64U

/* Hashing a page's blocks on both sides. */
#define HASH_NS 1000.0
#define BYTE_NS_GUESS 0.5
#define HOPE ((double)PAGE_SIZE / 8)
/* A gain that is within the noise is none. */
#define WORTH 1.2

void asks_init(struct asks *a)
{
	*a = (struct asks){.delta = HOPE, .rest = REST_MIN};
}

void asks_free(struct asks *a)
{
	free(a->index);
	free(a->have);
	*a = (struct asks){0};
}

int asks_begin(struct asks *a, struct errmsg *err)
{
	a->n = a->next = 0;
	if (!a->on && a->wait) {
		a->wait--;
		return 0;
	}
	if (!a->index)
		a->index = malloc(WIRE_ASK_PAGES * sizeof(*a->index));
	if (!a->have)
		a->have = malloc(WIRE_ASK_PAGES * sizeof(*a->have));
	if (!a->index || !a->have)
		return errmsg_set(err, -ENOMEM, "no memory for hashes of blocks");
	return a->on ? (int)WIRE_ASK_PAGES : (int)TRY_PAGES;
}

static bool pays(const struct asks_network *net, double delta, unsigned pages)
{
	double byte_ns = net->byte_ns > 0 ? net->byte_ns : BYTE_NS_GUESS;
	double saved = ((double)PAGE_SIZE - delta) * byte_ns;
	double cost = HASH_NS + sizeof(struct delta_hashes) * byte_ns;

	return saved * pages > WORTH * (cost * pages + (double)net->rtt_ns);
}

int asks_send(struct asks *a, struct conn *c, const struct asks_network *net, struct errmsg *err)
{
	uint32_t len = 0;
	int ret;

	/* To try, it counts what it would be with many. */
	if (a->n < FEW_PAGES || !pays(net, a->on ? a->delta : HOPE, a->on ? a->n : WIRE_ASK_PAGES))
		a->n = 0;
	if (a->n == 0)
		return 0;
	ret = conn_send(c, WIRE_ASK, a->index, (uint32_t)(a->n * sizeof(*a->index)), NULL, err);
	if (ret == 0)
		ret = conn_expect(c, WIRE_HAVE, a->have, (uint32_t)(a->n * sizeof(*a->have)), &len,
				  err);
	if (ret == 0 && len != a->n * sizeof(*a->have))
		ret = errmsg_set(err, -EPROTO,
				 "the destination answers ASK for %u pages with %u bytes", a->n,
				 len);
	a->sent_pages = a->sent_bytes = 0;
	return ret;
}

const struct delta_hashes *asks_have(struct asks *a, uint64_t index)
{
	while (a->next < a->n && a->index[a->next] < index)
		a->next++;
	return a->next < a->n && a->index[a->next] == index ? &a->have[a->next] : NULL;
}

void asks_count(struct asks *a, uint32_t bytes)
{
	a->sent_pages++;
	a->sent_bytes += bytes;
}

void asks_decide(struct asks *a, const struct asks_network *net)
{
	bool was = a->on;

	if (a->n == 0 || a->sent_pages < FEW_PAGES)
		return;
	a->delta = (double)a->sent_bytes / (double)a->sent_pages;
	a->on = pays(net, a->delta, WIRE_ASK_PAGES);
	if (a->on)
		return;
	a->rest = was ? REST_MIN : MIN(2 * a->rest, REST_MAX);
	a->wait = a->rest;
}
