/* SPDX-License-Identifier: MIT */
/*
 * The source's stop-and-copy and handover: see source.c for what is undone by what, and
 * handover.pml for a model of both sides that is checked in every order of events.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rehash.h"
#include "source_parts.h"
#include "state.h"

#define VCPU_STOP_LIMIT (5 * NS_PER_SEC)
#define QUIESCE_LIMIT (5 * NS_PER_SEC)

/*
 * A pause that takes so much longer than is allowed is given up, whatever the network promised
 * before it; rehashing all of RAM is allowed its time on top. And so is waiting for the answer to
 * COMMIT.
 */
#define PAUSE_LIMIT (30 * NS_PER_SEC)
#define REHASH_BYTES_PER_S (50 * MIB)
#define COMMIT_LIMIT (30 * NS_PER_SEC)

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
	bool cancelled;

	pthread_mutex_lock(&m->lock);
	cancelled = m->cancelled;
	pthread_mutex_unlock(&m->lock);
	if (cancelled)
		return errmsg_set(&m->err, -ECANCELED, "cancelled");
	return conn_poll(&m->conn, &m->err);
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
		ret = rehash_compare(&m->hashes, &m->vm->ram, &index, rehash_tick, m,
				     &m->past_cpu_ns);
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
	m->work.at_rest = true;
	ret = source_collect(m, &pages);
	if (ret == 0)
		ret = source_send_round(m, pages, &round);
	if (ret == 0)
		ret = conn_send(&m->conn, WIRE_STATE, s.data, (uint32_t)s.len, NULL, &m->err);
	/* Not waited for before the proof is out, unless that takes long: then it is listened. */
	if (ret == 0 && full)
		ret = source_await_ack(m, round);
	if (ret)
		goto out;
	set_part(m, &m->stats.last_pages_ns, at);
	ret = send_proof(m, &s, root);
	if (ret == 0 && !full)
		ret = source_await_ack(m, round);
	if (ret == 0)
		source_note_round(m);
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
	/* The destination reads nothing after COMMIT. */
	conn_hush(&m->conn);

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

int source_stop_and_copy(struct migration *m, bool *quiesced)
{
	struct page_hash root = {0}, ready = {0};
	struct migrate_stats *st = &m->stats;
	uint64_t at;
	uint32_t len;
	int ret;

	source_set_phase(m, MIGRATE_STOPCOPY);
	at = m->pause_start = now_ns();
	m->conn.deadline_ns = at + PAUSE_LIMIT + m->opt.downtime_ns;
	if (m->opt.verify == MIGRATE_VERIFY_FULL)
		m->conn.deadline_ns += m->vm->ram.size / REHASH_BYTES_PER_S * NS_PER_SEC;
	senders_set_deadline(&m->senders, m->conn.deadline_ns);
	ret = vm_pause_within(m->vm, VM_PAUSE_MIGRATE, VCPU_STOP_LIMIT, &m->err);
	if (ret) {
		/* Those that did stop have stood that long. */
		set_part(m, &st->pause_ns, &at);
		m->own_fault = true;
		return ret;
	}
	if (vm_get_end(m->vm) != VM_END_NONE)
		return errmsg_set(&m->err, -ESHUTDOWN, "the guest ended during the migration");
	ret = vm_quiesce_devices(m->vm, QUIESCE_LIMIT, &m->err);
	m->own_fault = ret != 0;
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
	source_set_phase(m, MIGRATE_READY);
	ret = commit(m, &root);
	set_part(m, &st->commit_ns, &at);
	return ret;
}

enum migrate_status source_settle(struct migration *m, int ret, bool quiesced)
{
	struct vm *vm = m->vm;
	struct errmsg why = {0};
	bool cancelled;

	/* Before it can run again. */
	source_throttle_end(m);
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
