/* SPDX-License-Identifier: MIT */
/*
 * The source's rounds of pre-copy.
 *
 * Theory of operation: a round sends the pages that were dirty when it began, over all connections,
 * and is over when the destination has acknowledged them. What follows it is decided by policy.h,
 * out of what was measured and an estimate (estimate.h) of what the pages left will take.
 */
#include <errno.h>
#include <string.h>

#include "rehash.h"
#include "source_parts.h"

#define PINGS 5U

/* Clocks drift apart, by milliseconds in a minute at the worst. */
#define CLOCKS_OLD (10 * NS_PER_SEC)

/* What a pause costs besides pages, until a pause of this machine has been measured. */
#define STATE_COST_GUESS (3 * NS_PER_MS)
#define VCPU_COST_GUESS (NS_PER_MS / 2)
#define STATE_BYTES_GUESS (4.0 * KIB)
#define VCPU_BYTES_GUESS (8.0 * KIB)

static int tick(void *arg, struct errmsg *err)
{
	struct migration *m = arg;
	int ret;

	source_publish(m);
	ret = conn_poll(&m->conn, err);
	if (ret)
		return ret;
	/* A round may be long. */
	if (m->throttle < POLICY_THROTTLE_MAX && !m->pause_start &&
	    now_ns() - m->start_ns >= policy_slowest_from_ns(&m->choice))
		source_throttle_set(m, POLICY_THROTTLE_MAX);
	/* Once paused there is no way back in time: the pages left are few. */
	return m->pause_start ? 0 : source_check_stop(m, err);
}

/* Round trip and the distance of the two clocks, from the quickest of a few exchanges. */
static int measure_clocks(struct migration *m)
{
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < PINGS; i++) {
		uint64_t sent = now_ns(), pong[2], rtt;
		uint32_t len;
		int ret = conn_send(&m->conn, WIRE_PING, &sent, sizeof(sent), NULL, &m->err);

		if (ret == 0)
			ret = conn_expect(&m->conn, WIRE_PONG, pong, sizeof(pong), &len, &m->err);
		if (ret)
			return ret;
		if (len != sizeof(pong) || pong[0] != sent)
			return errmsg_set(&m->err, -EPROTO,
					  "the destination's PONG is not an answer to our PING");
		rtt = now_ns() - sent;
		if (rtt < best) {
			best = rtt;
			m->rtt = rtt;
			m->clock_offset = (int64_t)(pong[1] - (sent + rtt / 2));
		}
	}
	m->clocks_at = now_ns();
	return 0;
}

/*
 * One round of pages, the last one with the machine stopped included. All connections end it, this
 * one last: then the destination has it all, or breaks off.
 */
int source_send_round(struct migration *m, uint64_t pages, uint32_t *round)
{
	uint64_t unused[MIGRATE_CONNECTIONS_MAX];
	int ret, other;

	m->round_start_ns = now_ns();
	m->round_start_sent = source_sum_up(m, &m->round_start_counts);
	source_each(m, m->round_start_each, unused);
	m->round_start_cpu = source_cpu_ns(m);
	m->round_pages = pages;
	pthread_mutex_lock(&m->lock);
	*round = ++m->stats.round;
	pthread_mutex_unlock(&m->lock);
	m->work.next = 0;
	m->work.net =
		(struct asks_network){.byte_ns = estimate_byte_ns(&m->estimate), .rtt_ns = m->rtt};
	senders_begin_round(&m->senders, *round);
	ret = pages_send_round(&m->path, &m->err);
	/* While the others are waited for, nobody would go on with what is queued here. */
	if (ret == 0)
		ret = conn_flush(&m->conn, &m->err);
	/* They must not wait for what will not come. */
	if (ret)
		m->work.stop = true;
	other = senders_end_round(&m->senders, &m->err);
	ret = ret ? ret : other;
	if (ret == 0)
		ret = conn_send(&m->conn, WIRE_ROUND_END, round, sizeof(*round), NULL, &m->err);
	source_publish(m);
	return ret;
}

/* What the destination acknowledges is stored. */
int source_await_ack(struct migration *m, uint32_t round)
{
	uint32_t ack = 0, len;
	int ret = conn_expect(&m->conn, WIRE_ROUND_ACK, &ack, sizeof(ack), &len, &m->err);

	if (ret == 0 && (len != sizeof(ack) || ack != round))
		ret = errmsg_set(&m->err, -EPROTO, "the destination acknowledges another round");
	return ret;
}

/* Notes what the round that ends now was. */
void source_note_round(struct migration *m)
{
	struct migrate_round *r;
	struct page_counts counts;
	uint64_t bytes = source_sum_up(m, &counts), now = now_ns();

	pthread_mutex_lock(&m->lock);
	r = &m->stats.rounds[m->stats.round % MIGRATE_ROUNDS_KEPT];
	*r = (struct migrate_round){
		.number = m->stats.round,
		.ns = m->collect_ns + now - m->round_start_ns,
		.pages = m->round_pages,
		.sent = counts.sent - m->round_start_counts.sent,
		.wire_bytes = bytes - m->round_start_sent,
	};
	pthread_mutex_unlock(&m->lock);
}

/* The pages of the next round. */
int source_collect(struct migration *m, uint64_t *pages)
{
	uint64_t start = now_ns();
	int ret = dirty_collect(&m->dirty, pages, &m->err);

	m->collect_ns = now_ns() - start;
	return ret;
}

static int precopy_round(struct migration *m, uint64_t pages)
{
	uint32_t round;
	int ret;

	/* While the pages go, the disks write out what they would have to at the pause. */
	vm_prepare_devices(m->vm);
	ret = source_send_round(m, pages, &round);
	/* Both sides do so now rather than at the pause. */
	if (ret == 0)
		hashes_refresh(&m->hashes);
	/* Only what the destination has stored counts for the speed. */
	if (ret == 0)
		ret = source_await_ack(m, round);
	if (ret)
		return ret;
	source_publish(m);
	source_note_round(m);
	return 0;
}

static void learn(struct migration *m)
{
	const struct page_counts *before = &m->round_start_counts;
	struct page_counts counts;
	struct round_cost cost = {
		.ns = now_ns() - m->round_start_ns,
		.work_ns = source_cpu_ns(m) - m->round_start_cpu,
		.workers = m->opt.connections,
		.bytes = source_sum_up(m, &counts) - m->round_start_sent,
		.scanned = counts.scanned - before->scanned,
		.sent = counts.sent - before->sent,
		.partly = counts.delta + counts.copied - before->delta - before->copied,
	};

	source_take_tuning(m);
	m->last_bytes_per_s = m->stats.bytes_per_s;
	estimate_learn(&m->estimate, &cost, m->stats.round == 1);
}

/* State there and back, and the proof: what the network makes of it. */
static uint64_t floor_of(const struct migration *m, double byte_ns)
{
	/* READY, and RUNNING; all of RAM is hashed only once the last round has been acknowledged.
	 */
	unsigned trips = m->opt.verify == MIGRATE_VERIFY_FULL ? 3 : 2;
	double bytes = STATE_BYTES_GUESS + m->vm->n_vcpus * VCPU_BYTES_GUESS +
		       (double)hashes_proof_len(&m->hashes);

	return trips * m->rtt + (uint64_t)(bytes * byte_ns);
}

static uint64_t floor_ns(const struct migration *m)
{
	return floor_of(m, estimate_byte_ns(&m->estimate));
}

/*
 * The same as what the user is held to: nobody is sent away for a single round of a few bytes,
 * which either host may have held up. Of several the quickest counts (estimate.h).
 */
#define ROUNDS_BELIEVED 3U

static uint64_t sure_floor_ns(const struct migration *m)
{
	if (m->estimate.firm || m->stats.round >= ROUNDS_BELIEVED)
		return floor_ns(m);
	return floor_of(m, m->estimate.cap_ns);
}

/* The clocks of two hosts do not begin at the same moment. */
static bool on_one_host(const struct migration *m)
{
	return (uint64_t)llabs(m->clock_offset) < m->rtt;
}

/* What the pause costs besides pages. Both sides hash all of RAM at the same time. */
static uint64_t fixed_ns(const struct migration *m)
{
	double hashed = (double)ram_used(&m->vm->ram) / (double)PAGE_SIZE;

	return STATE_COST_GUESS + m->vm->n_vcpus * VCPU_COST_GUESS + floor_ns(m) +
	       (uint64_t)(hashed * m->hash_ns * (on_one_host(m) ? 2 : 1));
}

/* What is known now that a round has ended; the pages left became dirty in round_ns. */
static void gather(const struct migration *m, uint64_t pages, uint64_t round_ns,
		   struct policy_facts *f)
{
	const struct estimate *e = &m->estimate;

	*f = (struct policy_facts){
		.round = m->stats.round,
		.elapsed_ns = now_ns() - m->start_ns,
		.round_ns = round_ns,
		.pages = pages,
		.wire_bytes = estimate_bytes(e, pages),
		.pages_ns = estimate_pages_ns(e, pages),
		.next_ns = estimate_next_ns(e, pages, round_ns, m->rtt),
		.fixed_ns = fixed_ns(m),
		.floor_ns = sure_floor_ns(m),
		.rtt_ns = m->rtt,
		.sent_per_s = m->stats.bytes_per_s,
		.dirty_pages_per_s = (uint64_t)((double)pages * 1e9 / (double)MAX(round_ns, 1U)),
		.throttle = m->throttle,
	};
}

/* Decides what follows, has it known, and slows the guest as decided. 0, or -ETIME to give up. */
static int decide(struct migration *m, const struct policy_facts *f, struct policy_decision *d)
{
	struct migrate_round *r = &m->stats.rounds[f->round % MIGRATE_ROUNDS_KEPT];

	policy_decide(&m->policy, &m->choice, f, d);
	pthread_mutex_lock(&m->lock);
	m->stats.dirty_pages_per_s = f->dirty_pages_per_s;
	m->stats.remaining_pages = f->pages;
	m->stats.estimate_downtime_ns = f->pages_ns + f->fixed_ns;
	m->stats.converging = d->converging;
	m->stats.not_converging = d->converging ? (struct errmsg){""} : d->why;
	r->facts = *f;
	r->then = d->action;
	r->next_throttle = d->throttle;
	r->converging = d->converging;
	pthread_mutex_unlock(&m->lock);
	log_debug("round took %llu us, %llu pages dirty since; they would take %llu us",
		  (unsigned long long)f->round_ns / 1000, (unsigned long long)f->pages,
		  (unsigned long long)m->stats.estimate_downtime_ns / 1000);
	if (d->action == POLICY_GIVE_UP)
		return errmsg_set(&m->err, -ETIME, "%s", d->why.text);
	if (d->tell)
		log_warn("the move of '%s': %s", m->vm->cfg.name, d->why.text);
	source_throttle_set(m, d->throttle);
	return 0;
}

int source_precopy(struct migration *m)
{
	struct policy_decision d = {.action = POLICY_ROUND};
	struct policy_facts facts;
	uint64_t pages, collected_ns;
	int ret;

	source_set_phase(m, MIGRATE_PRECOPY);
	ret = source_throttle_init(m);
	/* Tracking goes on from one connection to the next. */
	if (ret == 0 && !m->dirty.bitmap)
		ret = dirty_start(&m->dirty, m->vm, &m->err);
	if (ret)
		return ret;
	m->path = (struct page_path){
		.vm = m->vm,
		.dirty = &m->dirty,
		.hashes = &m->hashes,
		.conn = &m->conn,
		.work = &m->work,
		.tick = tick,
		.tick_arg = m,
	};
	pack_init(&m->path.pack, m->opt.compress, m->opt.compress_level);
	asks_init(&m->path.asks);
	ret = senders_open(&m->senders, m->opt.connections - 1, m->opt.uri, m->tls, m->cancel_fd,
			   m->session, &m->path, &m->err);
	if (ret == 0)
		ret = measure_clocks(m);
	/* Before anything is sent: nothing of it would be of use. */
	if (ret == 0 && policy_beyond_reach(&m->choice, floor_ns(m), m->rtt, &m->err))
		ret = -ETIME;
	if (ret == 0 && m->opt.verify == MIGRATE_VERIFY_FULL)
		m->hash_ns = rehash_page_ns(&m->hashes, &m->vm->ram);
	if (ret == 0)
		ret = source_take_stock(m);
	if (ret == 0)
		ret = source_collect(m, &pages);
	while (ret == 0 && d.action == POLICY_ROUND) {
		collected_ns = now_ns();
		ret = precopy_round(m, pages);
		if (ret)
			break;
		learn(m);
		ret = source_check_stop(m, &m->err);
		/* Before what is left is looked at: the guest writes meanwhile. */
		if (ret == 0 && now_ns() - m->clocks_at > CLOCKS_OLD)
			ret = measure_clocks(m);
		if (ret == 0)
			ret = source_collect(m, &pages);
		if (ret)
			break;
		source_throttle_look(m);
		gather(m, pages, now_ns() - collected_ns, &facts);
		ret = decide(m, &facts, &d);
	}
	return ret;
}
