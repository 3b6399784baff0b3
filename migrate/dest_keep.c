/* SPDX-License-Identifier: MIT */
/*
 * Connections of the destination: the first one, and those that take the place of one that broke.
 *
 * Theory of operation: before COMMIT a guest that has half come is worth keeping: its RAM, and the
 * table that says what is in it. The machine around it is not: it goes, and the next HELLO builds
 * it anew, as the first one did, with the RAM that was kept. The source that was cut off has the
 * same session and hash seed, so the table is good as it is; the same guest on a new move (the user
 * has said `migrate` again) has others, and RAM is hashed anew. Either way the source is told what
 * is here (held.h).
 *
 * What the source says itself ends it: FAIL, CANCEL. So does a proof that finds other memory here
 * than there. But a frame that makes no sense while pages come is taken for a network that damages
 * data: the connection is broken off, and the source may come back on another.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dest_parts.h"

static bool is_back(void *door)
{
	return door_waiting(door);
}

/*
 * Until one leaves, who may have been cut off, too, before he had said anything. Others are turned
 * away as long as he is here; but while something is kept it is not known yet whether he is the one
 * that it is kept for: then they wait (until dest_on_hello() knows), and he has to begin soon.
 */
static int take_connection(struct receiver *r, const struct arrival *a)
{
	int ret = conn_init_over(&r->conn, a->fd, a->tls, r->cancel_fd, "source", &r->err), sent;

	if (ret)
		return ret;
	conn_set_limit(&r->conn, r->opt.peer_timeout_ns);
	dest_set_phase(r, MIGRATE_HANDSHAKE);
	ret = conn_take_prelude(&r->conn, &a->prelude, &r->session, &r->err);
	if (ret == 0 && !r->kept.valid)
		door_admit(&r->door, true, r->session);
	if (r->kept.valid)
		r->conn.deadline_ns = now_ns() + CONN_OPEN_LIMIT;
	/* A source of another version is to learn ours, too. */
	if (ret == 0 || ret == -EPROTONOSUPPORT) {
		sent = conn_send_prelude(&r->conn, r->session, &r->err);
		ret = ret ? ret : sent;
	}
	if (ret == 0)
		ret = pulse_start(&r->pulse, &r->conn, &r->err);
	/* Who is at the door now is of this session: the source, which has given this one up. */
	if (ret == 0)
		pulse_heed(&r->pulse, is_back, &r->door);
	return ret;
}

int dest_take_source(struct receiver *r)
{
	uint64_t until = r->kept.valid ? r->keep_until : UINT64_MAX;
	struct errmsg why = {0};
	struct arrival a;
	int ret;

	for (;;) {
		ret = door_wait(&r->door, until, r->cancel_fd, &a, &why);
		if (ret)
			return errmsg_set(&r->err, ret, "%s",
					  ret == -ETIMEDOUT ? "the source has not come back in time"
							    : why.text);
		/* What was before has been said. */
		r->err = (struct errmsg){0};
		if (!r->start_ns)
			r->start_ns = now_ns();
		ret = take_connection(r, &a);
		if (ret == 0 || !r->kept.valid)
			return ret;
		log_debug("a peer that came for what is kept here was turned away: %s",
			  r->err.text);
		pulse_stop(&r->pulse);
		conn_close(&r->conn);
		door_admit(&r->door, false, 0);
		dest_set_phase(r, MIGRATE_KEEPING);
	}
}

static bool may_keep(struct receiver *r, int ret)
{
	if (!r->opt.keep_ns || !r->holding || r->committed || dest_was_cancelled(r))
		return false;
	/* Somebody came for what is kept, and has not got it: another may. */
	if (r->kept.valid)
		return true;
	if (r->conn.peer_failed)
		return false;
	switch (ret) {
	case -ECONNABORTED:
		return false;
	case -ECONNRESET:
	case -ETIMEDOUT:
		return true;
	case -EPROTO:
	case -EBADMSG:
		return r->phase == MIGRATE_PRECOPY;
	default:
		/* It was given to somebody who was not welcome after all. */
		return r->phase == MIGRATE_HANDSHAKE;
	}
}

static int take_machine_apart(struct receiver *r, void *arg)
{
	(void)arg;
	vm_destroy_but_ram(r->vm, &r->kept.ram);
	r->vm = NULL;
	return 0;
}

int dest_keep(struct receiver *r, int ret)
{
	char held[32], why[sizeof(r->err.text)];
	uint64_t cpu = 0, stored = 0, zeroed = 0;

	if (!may_keep(r, ret))
		return ret;
	memcpy(why, r->err.text, sizeof(why));
	lanes_add(&r->lanes, &r->received, &stored, &zeroed);
	r->store.pages_stored += stored;
	r->store.pages_zeroed += zeroed;
	lanes_close(&r->lanes, &cpu);
	pulse_stop(&r->pulse);
	r->received += r->conn.received;
	cpu += conn_cpu_ns(&r->conn);
	conn_close(&r->conn);
	door_admit(&r->door, false, 0);
	if (r->vm) {
		dest_on_loop(r, take_machine_apart, NULL);
		r->kept.valid = true;
		r->kept.session = r->session;
		r->keep_until = now_ns() + r->opt.keep_ns;
	}
	/* One that could not be built again has taken with it what was kept. */
	if (!r->kept.valid)
		return ret;
	r->err = (struct errmsg){0};
	free(r->state);
	r->state = NULL;
	pthread_mutex_lock(&r->lock);
	r->stats.cpu_ns += cpu;
	r->stats.reconnects++;
	pthread_mutex_unlock(&r->lock);
	dest_set_phase(r, MIGRATE_KEEPING);
	log_warn("%s; %s that have come are kept for %llu s, for the source to come back", why,
		 format_size(held, sizeof(held), ram_used(&r->kept.ram)),
		 (unsigned long long)((r->keep_until - MIN(now_ns(), r->keep_until) +
				       NS_PER_SEC / 2) /
				      NS_PER_SEC));
	return 0;
}
