/* SPDX-License-Identifier: MIT */
/*
 * The source's coordinator: connect, handshake, rounds, stop-and-copy, handover.
 *
 * Theory of operation: one thread does all of it in order; each step returns 0 or -errno with the
 * cause in m->err, and what has been done is undone in reverse by run_source():
 *
 *	step			undone by
 *	connect, handshake	closing the connection (the destination destroys its machine)
 *	dirty log on		dirty_stop()
 *	vm_pause_within()	vm_resume(); itself, when a vCPU does not stop in time
 *	vm_quiesce_devices()	vm_resume_devices()
 *	vm_release_devices()	vm_acquire_devices()
 *	COMMIT			nothing: the point of no return, see commit()
 *
 * Pausing is decided by an estimate (estimate.h) of what the pages left will take, plus what a
 * pause has cost besides pages.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "conn.h"
#include "dirty.h"
#include "estimate.h"
#include "handshake.h"
#include "hashes.h"
#include "migrate.h"
#include "pages.h"
#include "senders.h"
#include "state.h"
#include "uri.h"

#define VCPU_STOP_LIMIT (5 * NS_PER_SEC)
#define QUIESCE_LIMIT (5 * NS_PER_SEC)
#define PINGS 5U

/*
 * A pause that takes this long is given up, whatever the network promised before it; rehashing
 * all of RAM is allowed its time on top. And so is waiting for the answer to COMMIT.
 */
#define PAUSE_LIMIT (30 * NS_PER_SEC)
#define REHASH_BYTES_PER_S (50 * MIB)
#define COMMIT_LIMIT (30 * NS_PER_SEC)

/* What a pause costs besides pages, until a pause of this machine has been measured. */
#define STATE_COST_GUESS (3 * NS_PER_MS)
#define VCPU_COST_GUESS (NS_PER_MS / 2)

struct migration {
	struct vm *vm;
	struct migrate_options opt;
	struct loop *loop;
	struct loop_task done_task;
	void (*done)(void *arg);
	void *done_arg;
	pthread_t thread;
	int cancel_fd;

	pthread_mutex_t lock; /* guards the next three */
	struct migrate_stats stats;
	bool cancelled;
	bool committed; /* COMMIT may be out: cancelling is over */

	/* The coordinator's own. */
	struct conn conn;
	struct dirty dirty;
	struct hashes hashes;
	struct page_path path; /* of the first connection, which is the coordinator's */
	struct page_work work;
	struct senders senders; /* the other connections */
	uint64_t session;
	struct errmsg err;
	uint64_t start_ns, deadline_ns;
	uint64_t round_start_ns, round_start_sent, round_start_cpu, round_pages;
	struct page_counts round_start_counts;
	struct estimate estimate;
	int64_t clock_offset; /* destination's now_ns() less ours */
	uint64_t rtt;
	uint64_t pause_start;
	bool released; /* disks' locks and the like are free for the destination */
	bool uncertain;
};

static void set_phase(struct migration *m, enum migrate_phase phase)
{
	pthread_mutex_lock(&m->lock);
	m->stats.phase = phase;
	m->stats.total_ns = now_ns() - m->start_ns;
	pthread_mutex_unlock(&m->lock);
}

/* What all connections have sent so far: bytes, and pages. */
static uint64_t sum_up(const struct migration *m, struct page_counts *pages)
{
	uint64_t bytes = m->conn.sent;

	*pages = (struct page_counts){0};
	page_counts_add(pages, &m->path.total);
	senders_add(&m->senders, &bytes, pages);
	return bytes;
}

/* Figures that others look at, from the coordinator's own. */
static void publish(struct migration *m)
{
	uint64_t now = now_ns(), in_round = now - m->round_start_ns, bytes, done;
	uint64_t tried = m->conn.zc_tried, uncopied = m->conn.zc_uncopied;
	struct page_counts pages;

	bytes = sum_up(m, &pages);
	senders_add_zerocopy(&m->senders, &tried, &uncopied);
	done = pages.scanned - m->round_start_counts.scanned;
	pthread_mutex_lock(&m->lock);
	m->stats.total_ns = now - m->start_ns;
	m->stats.wire_bytes = bytes;
	m->stats.zc_tried_bytes = tried;
	m->stats.zc_uncopied_bytes = uncopied;
	m->stats.remaining_pages = m->round_pages - MIN(done, m->round_pages);
	if (in_round)
		m->stats.bytes_per_s =
			(uint64_t)((double)(bytes - m->round_start_sent) * 1e9 / (double)in_round);
	m->stats.pages_scanned = pages.scanned;
	m->stats.pages_zero = pages.zero;
	m->stats.pages_unchanged = pages.unchanged;
	m->stats.pages_sent = pages.sent;
	m->stats.pages_compressed = pages.packed;
	m->stats.rtt_ns = m->rtt;
	pthread_mutex_unlock(&m->lock);
}

/* Reasons to stop that do not come from the connection. */
static int check_stop(struct migration *m, struct errmsg *err)
{
	enum vm_end end = vm_get_end(m->vm);

	if (end != VM_END_NONE)
		return errmsg_set(err, -ESHUTDOWN, "the guest ended during the migration");
	if (now_ns() > m->deadline_ns && m->stats.round <= 1)
		return errmsg_set(err, -ETIME,
				  "not done within the time allowed: sending %llu MiB/s, which was "
				  "not enough to send all of the memory once; allow more --timeout",
				  (unsigned long long)(m->stats.bytes_per_s / MIB));
	if (now_ns() > m->deadline_ns)
		return errmsg_set(
			err, -ETIME,
			"not done within the time allowed: dirtying %llu MiB/s, sending %llu "
			"MiB/s; allow more "
			"--timeout or --downtime, or quieten the guest",
			(unsigned long long)(m->stats.dirty_pages_per_s * PAGE_SIZE / MIB),
			(unsigned long long)(m->stats.bytes_per_s / MIB));
	return 0;
}

static int tick(void *arg, struct errmsg *err)
{
	struct migration *m = arg;
	int ret;

	publish(m);
	ret = conn_keep_alive(&m->conn, err);
	if (ret)
		return ret;
	/* Once paused there is no way back in time: the pages left are few. */
	return m->pause_start ? 0 : check_stop(m, err);
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
	return 0;
}

static int connect_to(struct migration *m)
{
	int fd;

	set_phase(m, MIGRATE_CONNECTING);
	fd = uri_connect(m->opt.uri, m->cancel_fd, CONN_OPEN_LIMIT, &m->err);
	if (fd < 0)
		return fd;
	return conn_init(&m->conn, fd, m->cancel_fd, "destination", &m->err);
}

/* The destination's answer to HELLO. */
static int read_verdict(struct migration *m)
{
	char text[WIRE_TEXT_MAX + 1];
	struct wire_frame f;
	int ret = conn_recv_header(&m->conn, &f, &m->err);

	if (ret)
		return ret;
	if (f.type != WIRE_HELLO_OK && f.type != WIRE_REFUSE)
		return errmsg_set(&m->err, -EPROTO, "the destination answers HELLO with %s",
				  wire_type_name(f.type));
	ret = conn_recv(&m->conn, text, f.length, &m->err);
	if (ret == 0)
		ret = conn_verify(&m->conn, &f, text, f.length, &m->err);
	if (ret)
		return ret;
	conn_clean_text(text, f.length);
	if (f.type == WIRE_REFUSE)
		return errmsg_set(&m->err, -ECONNABORTED, "the destination refuses: %s", text);
	return 0;
}

static int handshake(struct migration *m)
{
	uint64_t random[2], session;
	struct sbuf hello;
	int ret;

	set_phase(m, MIGRATE_HANDSHAKE);
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return errmsg_set(&m->err, -EIO, "no random numbers: %s", strerror(errno));
	ret = conn_send_prelude(&m->conn, random[0], &m->err);
	if (ret == 0)
		ret = conn_recv_prelude(&m->conn, &session, &m->err);
	if (ret)
		return ret;
	m->session = session;
	if (session != random[0])
		return errmsg_set(&m->err, -EPROTO, "the destination answers another migration");
	ret = hashes_init(&m->hashes, m->vm->ram.npages, random[1]);
	if (ret)
		return errmsg_set(&m->err, ret, "no memory for the table of page hashes");

	sb_init_save(&hello);
	ret = hello_save(m->vm, &m->opt, random[1], &hello, &m->err);
	if (ret == 0)
		ret = conn_send(&m->conn, WIRE_HELLO, hello.data, (uint32_t)hello.len, NULL,
				&m->err);
	sb_free(&hello);
	if (ret == 0)
		ret = read_verdict(m);
	return ret;
}

/*
 * One round of pages, the last one with the machine stopped included. All connections end it, this
 * one last: then the destination has it all, or breaks off.
 */
static int send_round(struct migration *m, uint64_t pages, uint32_t *round)
{
	int ret, other;

	m->round_start_ns = now_ns();
	m->round_start_sent = sum_up(m, &m->round_start_counts);
	m->round_start_cpu = thread_cpu_ns() + senders_cpu_ns(&m->senders);
	m->round_pages = pages;
	pthread_mutex_lock(&m->lock);
	*round = ++m->stats.round;
	pthread_mutex_unlock(&m->lock);
	m->work.next = 0;
	senders_begin_round(&m->senders, *round);
	ret = pages_send_round(&m->path, &m->err);
	/* They must not wait for what will not come. */
	if (ret)
		m->work.stop = true;
	other = senders_end_round(&m->senders, &m->err);
	ret = ret ? ret : other;
	if (ret == 0)
		ret = conn_send(&m->conn, WIRE_ROUND_END, round, sizeof(*round), NULL, &m->err);
	publish(m);
	return ret;
}

/* What the destination acknowledges is stored. */
static int await_ack(struct migration *m, uint32_t round)
{
	uint32_t ack = 0, len;
	int ret = conn_expect(&m->conn, WIRE_ROUND_ACK, &ack, sizeof(ack), &len, &m->err);

	if (ret == 0 && (len != sizeof(ack) || ack != round))
		ret = errmsg_set(&m->err, -EPROTO, "the destination acknowledges another round");
	return ret;
}

static int precopy_round(struct migration *m, uint64_t pages)
{
	uint32_t round;
	int ret;

	/* While the pages go, the disks write out what they would have to at the pause. */
	vm_prepare_devices(m->vm);
	ret = send_round(m, pages, &round);
	/* Only what the destination has stored counts for the speed. */
	if (ret == 0)
		ret = await_ack(m, round);
	if (ret == 0)
		publish(m);
	return ret;
}

static void learn(struct migration *m)
{
	const struct page_counts *before = &m->round_start_counts;
	struct page_counts counts;
	struct round_cost cost = {
		.ns = now_ns() - m->round_start_ns,
		.work_ns = thread_cpu_ns() + senders_cpu_ns(&m->senders) - m->round_start_cpu,
		.workers = m->opt.connections,
		.bytes = sum_up(m, &counts) - m->round_start_sent,
		.scanned = counts.scanned - before->scanned,
		.sent = counts.sent - before->sent,
	};

	estimate_learn(&m->estimate, &cost, m->stats.round == 1);
}

/* State there and back, and the proof: what the pause costs besides pages. */
static uint64_t fixed_ns(const struct migration *m)
{
	return STATE_COST_GUESS + m->vm->n_vcpus * VCPU_COST_GUESS + 2 * m->rtt;
}

/*
 * Enough for the pause? When the fixed part alone is above what the user wants, waiting for fewer
 * pages does not help below half of the target.
 */
static bool fits(const struct migration *m, uint64_t pages)
{
	uint64_t target = m->opt.downtime_ns, fixed = fixed_ns(m);
	uint64_t budget = fixed < target / 2 ? target - fixed : target / 2;

	return estimate_pages_ns(&m->estimate, pages) <= budget;
}

static int precopy(struct migration *m)
{
	uint64_t pages, collected_ns, ns;
	int ret;

	set_phase(m, MIGRATE_PRECOPY);
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
	ret = senders_open(&m->senders, m->opt.connections - 1, m->opt.uri, m->cancel_fd,
			   m->session, &m->path, &m->err);
	if (ret == 0)
		ret = measure_clocks(m);
	if (ret == 0)
		ret = dirty_collect(&m->dirty, &pages, &m->err);
	while (ret == 0) {
		collected_ns = now_ns();
		ret = precopy_round(m, pages);
		if (ret)
			break;
		learn(m);
		ret = check_stop(m, &m->err);
		if (ret == 0)
			ret = dirty_collect(&m->dirty, &pages, &m->err);
		if (ret)
			break;
		ns = now_ns() - collected_ns;
		pthread_mutex_lock(&m->lock);
		m->stats.dirty_pages_per_s = (uint64_t)((double)pages * 1e9 / (double)ns);
		m->stats.remaining_pages = pages;
		m->stats.estimate_downtime_ns =
			estimate_pages_ns(&m->estimate, pages) + fixed_ns(m);
		pthread_mutex_unlock(&m->lock);
		log_debug("round took %llu us, %llu pages dirty since; they would take %llu us",
			  (unsigned long long)ns / 1000, (unsigned long long)pages,
			  (unsigned long long)m->stats.estimate_downtime_ns / 1000);
		if (fits(m, pages)) {
			/* The clocks may have drifted apart since the start. */
			ret = measure_clocks(m);
			break;
		}
	}
	return ret;
}

static void set_part(struct migration *m, uint64_t *part, uint64_t *since)
{
	uint64_t now = now_ns();

	pthread_mutex_lock(&m->lock);
	*part = now - *since;
	pthread_mutex_unlock(&m->lock);
	*since = now;
}

/* While all of RAM is hashed, which takes its time: is it still wanted, by both sides? */
static int rehash_tick(void *arg)
{
	struct migration *m = arg;
	struct wire_frame f;
	bool cancelled;
	int ret;

	pthread_mutex_lock(&m->lock);
	cancelled = m->cancelled;
	pthread_mutex_unlock(&m->lock);
	if (cancelled)
		return errmsg_set(&m->err, -ECANCELED, "cancelled");
	if (!conn_peer_gone(&m->conn))
		return conn_keep_alive(&m->conn, &m->err);
	/* It may have said why. */
	ret = conn_recv_header(&m->conn, &f, &m->err);
	return ret ? ret
		   : errmsg_set(&m->err, -EPROTO, "the destination sent %s before it had our proof",
				wire_type_name(f.type));
}

/* Digests of our table and state, and with --verify=full first the proof that the table tells our
 * RAM. */
static int send_proof(struct migration *m, const struct sbuf *state, struct page_hash *root)
{
	struct page_hash *digests;
	uint64_t index = 0;
	size_t n;
	int ret;

	if (m->opt.verify == MIGRATE_VERIFY_FULL) {
		ret = hashes_compare_ram(&m->hashes, &m->vm->ram, &index, rehash_tick, m);
		/* What the tick had to say comes first. */
		if (ret)
			return errmsg_set(&m->err, ret,
					  "page %llu of the source's RAM is not what was sent: its "
					  "change was not tracked",
					  (unsigned long long)index);
	}
	digests = hashes_proof(&m->hashes, state->data, state->len, &n, root);
	if (!digests)
		return errmsg_set(&m->err, -ENOMEM, "no memory for the proof");
	if (n * sizeof(*digests) > wire_max_length(WIRE_PROOF))
		ret = errmsg_set(&m->err, -EMSGSIZE,
				 "the guest has more RAM than a proof can cover");
	else
		ret = conn_send(&m->conn, WIRE_PROOF, digests, (uint32_t)(n * sizeof(*digests)),
				NULL, &m->err);
	free(digests);
	return ret;
}

/*
 * State and the last pages of a machine at rest, and the proof. The state is saved first: what
 * saving stores into guest RAM (KVM's own records of a vCPU that is set aside, for one) is in the
 * last harvest.
 */
static int send_rest(struct migration *m, struct page_hash *root, uint64_t *at)
{
	bool full = m->opt.verify == MIGRATE_VERIFY_FULL;
	uint32_t round;
	uint64_t pages;
	struct sbuf s;
	int ret;

	sb_init_save(&s);
	ret = state_save(m->vm, m->clock_offset, &s, &m->err);
	if (ret == 0 && s.len > wire_max_length(WIRE_STATE))
		ret = errmsg_set(&m->err, -EMSGSIZE, "the machine's state takes %zu bytes", s.len);
	if (ret)
		goto out;
	set_part(m, &m->stats.state_ns, at);
	ret = dirty_collect(&m->dirty, &pages, &m->err);
	if (ret == 0)
		ret = send_round(m, pages, &round);
	if (ret == 0)
		ret = conn_send(&m->conn, WIRE_STATE, s.data, (uint32_t)s.len, NULL, &m->err);
	/* Not waited for before the proof is out, unless that takes long: then it is listened. */
	if (ret == 0 && full)
		ret = await_ack(m, round);
	if (ret)
		goto out;
	set_part(m, &m->stats.last_pages_ns, at);
	ret = send_proof(m, &s, root);
	if (ret == 0 && !full)
		ret = await_ack(m, round);
out:
	sb_free(&s);
	return ret;
}

/*
 * COMMIT. From the moment the first byte of it may have left, the destination may run the guest,
 * and this side never does again by itself.
 */
static int commit(struct migration *m, const struct page_hash *root)
{
	bool taken, cancelled;
	uint32_t len;
	int ret;

	if (conn_peer_gone(&m->conn))
		return errmsg_set(&m->err, -ECONNRESET,
				  "the destination went away before the handover");
	pthread_mutex_lock(&m->lock);
	cancelled = m->cancelled;
	if (!cancelled) {
		m->committed = true;
		m->stats.phase = MIGRATE_COMMIT;
	}
	pthread_mutex_unlock(&m->lock);
	if (cancelled)
		return errmsg_set(&m->err, -ECANCELED, "cancelled");
	/* Free for the destination to take, which it does before it runs anything. */
	m->released = true;
	vm_release_devices(m->vm);

	/* ---- the point of no return ---- */
	m->conn.deadline_ns = now_ns() + COMMIT_LIMIT;
	ret = conn_send(&m->conn, WIRE_COMMIT, root, sizeof(*root), &taken, &m->err);
	if (ret) {
		m->uncertain = taken;
		return ret;
	}
	ret = conn_expect(&m->conn, WIRE_RUNNING, NULL, 0, &len, &m->err);
	/* A destination that answers FAIL gives its word that the guest has not run there. */
	m->uncertain = ret != 0 && !m->conn.peer_failed;
	return ret;
}

static int stop_and_copy(struct migration *m, bool *quiesced)
{
	struct page_hash root = {0}, ready = {0};
	struct migrate_stats *st = &m->stats;
	uint64_t at;
	uint32_t len;
	int ret;

	set_phase(m, MIGRATE_STOPCOPY);
	at = m->pause_start = now_ns();
	m->conn.deadline_ns = at + PAUSE_LIMIT;
	if (m->opt.verify == MIGRATE_VERIFY_FULL)
		m->conn.deadline_ns += m->vm->ram.size / REHASH_BYTES_PER_S * NS_PER_SEC;
	senders_set_deadline(&m->senders, m->conn.deadline_ns);
	ret = vm_pause_within(m->vm, VM_PAUSE_MIGRATE, VCPU_STOP_LIMIT, &m->err);
	if (ret) {
		/* Those that did stop have stood that long. */
		set_part(m, &st->pause_ns, &at);
		return ret;
	}
	if (vm_get_end(m->vm) != VM_END_NONE)
		return errmsg_set(&m->err, -ESHUTDOWN, "the guest ended during the migration");
	ret = vm_quiesce_devices(m->vm, QUIESCE_LIMIT, &m->err);
	if (ret)
		return ret;
	*quiesced = true;
	set_part(m, &st->pause_ns, &at);

	ret = send_rest(m, &root, &at);
	if (ret == 0)
		ret = conn_expect(&m->conn, WIRE_READY, &ready, sizeof(ready), &len, &m->err);
	if (ret)
		return ret;
	if (len != sizeof(ready) || !hash_equal(&ready, &root))
		return errmsg_set(&m->err, -EBADMSG,
				  "the destination's proof does not match: it holds other memory");
	set_part(m, &st->proof_ns, &at);
	set_phase(m, MIGRATE_READY);
	ret = commit(m, &root);
	set_part(m, &st->commit_ns, &at);
	return ret;
}

static enum migrate_status settle(struct migration *m, int ret, bool quiesced)
{
	struct vm *vm = m->vm;
	struct errmsg why = {0};
	bool cancelled;

	if (ret == 0) {
		vm_set_end(vm, VM_END_MOVED, "moved to %s", m->opt.uri);
		return MIGRATE_COMPLETED;
	}
	/*
	 * What was given up for the handover is taken back. If somebody was quicker (it may even be
	 * the guest, at a destination that gave its word too soon) the guest must not run here.
	 */
	if (!m->uncertain && m->released && vm_acquire_devices(vm, &why)) {
		struct errmsg first = m->err;

		errmsg_set(&why, 0, "cannot be taken back");
		m->err = (struct errmsg){0};
		errmsg_set(&m->err, 0, "%.200s; and then: %.280s", first.text, why.text);
		m->uncertain = true;
	}
	if (m->uncertain) {
		/* Devices stay at rest, too: what they hold may be at the other side. */
		vm_pause(vm, VM_PAUSE_LOST);
		vm_resume(vm, VM_PAUSE_MIGRATE);
		return MIGRATE_UNCERTAIN;
	}
	if (quiesced)
		vm_resume_devices(vm);
	if (m->pause_start)
		vm_resume(vm, VM_PAUSE_MIGRATE);
	pthread_mutex_lock(&m->lock);
	cancelled = m->cancelled;
	pthread_mutex_unlock(&m->lock);
	return cancelled ? MIGRATE_CANCELLED : MIGRATE_FAILED;
}

static void *run_source(void *arg)
{
	struct migration *m = arg;
	enum migrate_status status;
	bool quiesced = false;
	uint64_t cpu = 0;
	int ret;

	m->conn.fd = -1;
	ret = connect_to(m);
	if (ret == 0)
		ret = handshake(m);
	if (ret == 0)
		ret = precopy(m);
	if (ret == 0)
		ret = stop_and_copy(m, &quiesced);
	status = settle(m, ret, quiesced);

	if (ret && m->conn.fd >= 0 && status != MIGRATE_UNCERTAIN)
		conn_fail(&m->conn, status == MIGRATE_CANCELLED ? WIRE_CANCEL : WIRE_FAIL,
			  status == MIGRATE_CANCELLED ? "" : m->err.text);
	dirty_stop(&m->dirty);
	if (m->conn.fd >= 0)
		conn_settle(&m->conn);
	senders_settle(&m->senders);
	publish(m);
	senders_close(&m->senders, &cpu);
	pack_free(&m->path.pack);

	pthread_mutex_lock(&m->lock);
	m->stats.total_ns = now_ns() - m->start_ns;
	m->stats.cpu_ns = cpu + thread_cpu_ns();
	if (m->pause_start)
		m->stats.downtime_ns = m->stats.pause_ns + m->stats.last_pages_ns +
				       m->stats.state_ns + m->stats.proof_ns + m->stats.commit_ns;
	if (ret == 0)
		m->stats.verified_pages = m->vm->ram.npages;
	m->stats.error = m->err;
	m->stats.status = status;
	m->stats.phase = MIGRATE_DONE;
	pthread_mutex_unlock(&m->lock);

	if (m->conn.fd >= 0)
		conn_close(&m->conn);
	hashes_free(&m->hashes);
	loop_post(m->loop, &m->done_task);
	return NULL;
}

static void run_done(struct loop_task *task)
{
	struct migration *m = container_of(task, struct migration, done_task);

	m->done(m->done_arg);
}

/* Two share what CPU time there is better with a guest that is busy than one does; more than a few
 * only help where a network is much faster than a core. */
static unsigned default_connections(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	return cpus >= 8 ? 4 : cpus >= 2 ? 2 : 1;
}

int migrate_start(struct migration **out, struct vm *vm, const struct migrate_options *opt,
		  void (*done)(void *arg), void *arg, struct errmsg *err)
{
	struct migration *m;
	int ret = uri_check(opt->uri, err);

	if (ret)
		return ret;
	if (vm_get_end(vm) != VM_END_NONE)
		return errmsg_set(err, -ESHUTDOWN, "the guest has ended");
	if (vm_paused(vm) & VM_PAUSE_LOST)
		return errmsg_set(err, -EBUSY,
				  "the guest was handed over and may run elsewhere: it cannot be "
				  "moved again");
	if (vm->caps.no_migrate)
		return errmsg_set(
			err, -ENOTSUP,
			"this host's KVM lacks %s: it cannot migrate guests (see `godwit doctor`)",
			vm->caps.no_migrate);
	m = calloc(1, sizeof(*m));
	if (!m)
		return errmsg_set(err, -ENOMEM, "no memory for a migration");
	m->vm = vm;
	m->opt = *opt;
	m->loop = vm->loop;
	m->done = done;
	m->done_arg = arg;
	m->done_task.run = run_done;
	estimate_init(&m->estimate);
	if (m->opt.connections == 0)
		m->opt.connections = default_connections();
	m->start_ns = now_ns();
	m->deadline_ns = m->start_ns + opt->timeout_ns;
	m->stats.verify = opt->verify;
	m->stats.connections = m->opt.connections;
	m->stats.ram_bytes = vm->ram.size;
	m->stats.downtime_target_ns = opt->downtime_ns;
	pthread_mutex_init(&m->lock, NULL);
	m->cancel_fd = eventfd(0, EFD_CLOEXEC);
	ret = m->cancel_fd < 0 ? -errno : -pthread_create(&m->thread, NULL, run_source, m);
	if (ret) {
		errmsg_set(err, ret, "starting the migration's thread: %s", strerror(-ret));
		if (m->cancel_fd >= 0)
			close(m->cancel_fd);
		pthread_mutex_destroy(&m->lock);
		free(m);
		return ret;
	}
	pthread_setname_np(m->thread, "migrate");
	*out = m;
	return 0;
}

int migrate_cancel(struct migration *m)
{
	uint64_t one = 1;
	bool too_late;

	pthread_mutex_lock(&m->lock);
	too_late = m->committed;
	if (!too_late)
		m->cancelled = true;
	pthread_mutex_unlock(&m->lock);
	if (too_late)
		return -EALREADY;
	(void)!write(m->cancel_fd, &one, sizeof(one));
	return 0;
}

void migrate_get_stats(struct migration *m, struct migrate_stats *out)
{
	pthread_mutex_lock(&m->lock);
	*out = m->stats;
	pthread_mutex_unlock(&m->lock);
}

void migrate_free(struct migration *m)
{
	if (!m)
		return;
	pthread_join(m->thread, NULL);
	loop_unpost(m->loop, &m->done_task);
	close(m->cancel_fd);
	pthread_mutex_destroy(&m->lock);
	free(m);
}
