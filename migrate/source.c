/* SPDX-License-Identifier: MIT */
/*
 * The source's coordinator: connect, handshake, rounds, stop-and-copy, handover.
 *
 * Theory of operation: one thread does all of it in order; each step returns 0 or -errno with the
 * cause in m->err, and what has been done is undone in reverse by run_source():
 *
 *	step			undone by
 *	connect, handshake	closing the connection (the destination destroys its machine, or
 *				keeps what has come for another connection)
 *	dirty log on		dirty_stop()
 *	vm_throttle()		source_throttle_end()
 *	vm_pause_within()	vm_resume(); itself, when a vCPU does not stop in time
 *	vm_quiesce_devices()	vm_resume_devices()
 *	vm_release_devices()	vm_acquire_devices()
 *	COMMIT			nothing: the point of no return, see source_handover.c
 *
 * This file begins and ends it; connections are in source_connect.c, rounds in source_rounds.c, the
 * pause and what follows in source_handover.c.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../vmm/fault.h"
#include "../vmm/ram_image.h"
#include "eta.h"
#include "source_parts.h"
#include "uri.h"

/* When it will be over is told from what went in the latest so much time, or twice that. */
#define ETA_SAMPLE_NS (2 * NS_PER_SEC)
#define ETA_PAGES 256ULL

#define YOUNG_NS (2 * NS_PER_SEC)

void source_set_phase(struct migration *m, enum migrate_phase phase)
{
	pthread_mutex_lock(&m->lock);
	m->stats.phase = phase;
	m->stats.total_ns = now_ns() - m->start_ns;
	pthread_mutex_unlock(&m->lock);
}

/* What all connections have sent so far: bytes, and pages. */
uint64_t source_sum_up(const struct migration *m, struct page_counts *pages)
{
	uint64_t bytes = m->past_bytes + m->conn.sent;

	*pages = (struct page_counts){0};
	page_counts_add(pages, &m->past);
	page_counts_add(pages, &m->path.total);
	senders_add(&m->senders, &bytes, pages);
	return bytes;
}

uint64_t source_cpu_ns(struct migration *m)
{
	return thread_cpu_ns() + senders_cpu_ns(&m->senders) + conn_cpu_ns(&m->conn);
}

unsigned source_each(const struct migration *m, uint64_t bytes[MIGRATE_CONNECTIONS_MAX],
		     uint64_t uncopied[MIGRATE_CONNECTIONS_MAX])
{
	bytes[0] = m->conn.sent;
	uncopied[0] = m->conn.zc_uncopied;
	return 1 + senders_each(&m->senders, bytes + 1, uncopied + 1);
}

/* With the lock held, as the next one. */
static void publish_each(struct migration *m, uint64_t in_round)
{
	uint64_t bytes[MIGRATE_CONNECTIONS_MAX], uncopied[MIGRATE_CONNECTIONS_MAX];
	unsigned n = source_each(m, bytes, uncopied);

	for (unsigned i = 0; i < n; i++) {
		uint64_t before = m->round_start_each[i];

		m->stats.each[i].bytes = bytes[i];
		m->stats.each[i].uncopied_bytes = uncopied[i];
		if (in_round)
			m->stats.each[i].bytes_per_s =
				(uint64_t)((double)(bytes[i] - before) * 1e9 / (double)in_round);
	}
}

static void publish_eta(struct migration *m, uint64_t now, uint64_t done)
{
	const struct migrate_stats *st = &m->stats;
	uint64_t pages = MAX(st->remaining_pages, ETA_PAGES);
	struct eta_now e = {
		.round_ns = now - m->round_start_ns,
		.remaining_pages = st->remaining_pages,
		.dirty_pages_per_s = st->dirty_pages_per_s,
		.dirty_known = st->round > 1,
		.target_ns = st->downtime_target_ns,
		.downtime_ns = st->estimate_downtime_ns,
	};

	m->stats.round_eta_ns = m->stats.eta_ns = 0;
	if (st->round == 0 || m->pause_start)
		return;
	if (m->mark[0].ns < m->round_start_ns)
		m->mark[0] = m->mark[1] = (struct mark){.ns = m->round_start_ns};
	if (now - m->mark[1].ns >= ETA_SAMPLE_NS) {
		m->mark[0] = m->mark[1];
		m->mark[1] = (struct mark){.ns = now, .done = done};
	}
	e.sample_ns = now - m->mark[0].ns;
	e.sample_pages = done - m->mark[0].done;
	estimate_set_cap(&m->estimate, rate_get(&m->rate));
	if (st->round > 1)
		e.page_ns = (double)estimate_pages_ns(&m->estimate, pages) / (double)pages;
	eta_estimate(&e, &m->stats.round_eta_ns, &m->stats.eta_ns);
}

/* Figures that others look at, from the coordinator's own. */
void source_publish(struct migration *m)
{
	uint64_t now = now_ns(), in_round = now - m->round_start_ns, bytes, done;
	uint64_t tried = m->past_tried + m->conn.zc_tried;
	uint64_t uncopied = m->past_uncopied + m->conn.zc_uncopied;
	struct page_counts pages;

	bytes = source_sum_up(m, &pages);
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
	m->stats.pages_delta = pages.delta;
	m->stats.pages_copied = pages.copied;
	m->stats.rtt_ns = m->rtt;
	publish_each(m, in_round);
	publish_eta(m, now, done);
	source_throttle_publish(m);
	pthread_mutex_unlock(&m->lock);
}

/* Reasons to stop that do not come from the connection. */
int source_check_stop(struct migration *m, struct errmsg *err)
{
	enum vm_end end = vm_get_end(m->vm);

	if (end != VM_END_NONE)
		return errmsg_set(err, -ESHUTDOWN, "the guest ended during the migration");
	if (now_ns() > m->deadline_ns) {
		/* Of a round that has just begun the speed says nothing. */
		bool young = now_ns() - m->round_start_ns < YOUNG_NS && m->last_bytes_per_s;
		struct errmsg why = {""};

		policy_late_text(m->stats.round, m->stats.dirty_pages_per_s,
				 young ? m->last_bytes_per_s : m->stats.bytes_per_s, &why);
		if (m->stats.reconnects)
			return errmsg_set(err, -ETIME, "the connection broke %u times, and: %s",
					  m->stats.reconnects, why.text);
		return errmsg_set(err, -ETIME, "%s", why.text);
	}
	return 0;
}

/* For the guest's way back: who receives it then is offered what it will find here. */
static void leave_ram(struct migration *m)
{
	struct errmsg err = {0};

	if (!m->opt.leave[0])
		return;
	if (ram_image_save(&m->vm->ram, m->opt.leave, &err) == 0) {
		log_info("the guest's memory, as it left, is in %s", m->opt.leave);
		return;
	}
	log_warn("the guest has moved, but its memory could not be left behind: %s", err.text);
	pthread_mutex_lock(&m->lock);
	m->stats.leave_error = err;
	pthread_mutex_unlock(&m->lock);
}

static void *run_source(void *arg)
{
	struct migration *m = arg;
	enum migrate_status status;
	bool quiesced = false;
	uint64_t cpu = 0;
	int ret;

	confine_thread(m->vm->cfg.confine, CONFINE_MIGRATION);
	fault_arm();
	m->conn.fd = -1;
	ret = source_connect(m);
	while (ret == 0) {
		ret = source_precopy(m);
		if (ret == 0)
			ret = source_stop_and_copy(m, &quiesced);
		if (ret == 0 || !source_may_reconnect(m, ret))
			break;
		ret = source_reconnect(m, &quiesced);
	}
	status = source_settle(m, ret, quiesced);

	if (ret && m->conn.fd >= 0 && status != MIGRATE_UNCERTAIN)
		conn_fail(&m->conn, status == MIGRATE_CANCELLED ? WIRE_CANCEL : WIRE_FAIL,
			  status == MIGRATE_CANCELLED ? "" : m->err.text);
	pulse_stop(&m->pulse);
	dirty_stop(&m->dirty);
	if (m->conn.fd >= 0)
		conn_settle(&m->conn);
	senders_settle(&m->senders);
	source_publish(m);
	senders_close(&m->senders, &cpu);
	page_path_free(&m->path);

	pthread_mutex_lock(&m->lock);
	m->stats.total_ns = now_ns() - m->start_ns;
	m->stats.cpu_ns = m->past_cpu_ns + cpu + conn_cpu_ns(&m->conn) + thread_cpu_ns();
	if (m->pause_start)
		m->stats.downtime_ns = m->stats.pause_ns + m->stats.last_pages_ns +
				       m->stats.state_ns + m->stats.proof_ns + m->stats.commit_ns;
	if (ret == 0)
		m->stats.verified_pages = m->vm->ram.npages;
	m->stats.error = m->err;
	m->stats.status = status;
	pthread_mutex_unlock(&m->lock);

	if (m->conn.fd >= 0)
		conn_close(&m->conn);
	hashes_free(&m->hashes);
	free(m->held);
	if (status == MIGRATE_COMPLETED)
		leave_ram(m);
	pthread_mutex_lock(&m->lock);
	m->stats.phase = MIGRATE_DONE;
	pthread_mutex_unlock(&m->lock);
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
	struct tls *tls = NULL;
	int ret = uri_check(opt->uri, err);

	if (ret == 0)
		ret = migrate_check_tls(opt->uri, &opt->tls, err);
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
	if (uri_is_tls(opt->uri))
		ret = tls_load(&tls, &opt->tls, opt->uri, false, err);
	if (ret)
		return ret;
	m = calloc(1, sizeof(*m));
	if (!m) {
		tls_free(tls);
		return errmsg_set(err, -ENOMEM, "no memory for a migration");
	}
	m->vm = vm;
	m->tls = tls;
	m->opt = *opt;
	m->loop = vm->loop;
	m->done = done;
	m->done_arg = arg;
	m->done_task.run = run_done;
	estimate_init(&m->estimate);
	if (m->opt.connections == 0)
		m->opt.connections = default_connections();
	if (m->opt.peer_timeout_ns == 0)
		m->opt.peer_timeout_ns = CONN_LIMIT_DEFAULT;
	rate_init(&m->rate, opt->bandwidth);
	m->start_ns = now_ns();
	m->choice = (struct policy_choice){.downtime_ns = opt->downtime_ns,
					   .timeout_ns = opt->timeout_ns,
					   .on_timeout = opt->on_timeout};
	m->deadline_ns = m->start_ns + MIN(policy_limit_ns(&m->choice), UINT64_MAX - m->start_ns);
	m->stats.verify = opt->verify;
	m->stats.connections = m->opt.connections;
	m->stats.ram_bytes = vm->ram.size;
	m->stats.downtime_target_ns = opt->downtime_ns;
	m->stats.bandwidth = opt->bandwidth;
	estimate_set_cap(&m->estimate, opt->bandwidth);
	m->stats.choice = m->choice;
	m->stats.converging = true;
	pthread_mutex_init(&m->lock, NULL);
	m->cancel_fd = eventfd(0, EFD_CLOEXEC);
	ret = m->cancel_fd < 0 ? -errno : -pthread_create(&m->thread, NULL, run_source, m);
	if (ret) {
		errmsg_set(err, ret, "starting the migration's thread: %s", strerror(-ret));
		if (m->cancel_fd >= 0)
			close(m->cancel_fd);
		pthread_mutex_destroy(&m->lock);
		rate_destroy(&m->rate);
		tls_free(m->tls);
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

void migrate_tune(struct migration *m, const uint64_t *bandwidth, const uint64_t *downtime_ns)
{
	pthread_mutex_lock(&m->lock);
	if (bandwidth) {
		rate_set(&m->rate, *bandwidth);
		m->stats.bandwidth = *bandwidth;
	}
	if (downtime_ns)
		m->stats.downtime_target_ns = *downtime_ns;
	pthread_mutex_unlock(&m->lock);
}

void source_take_tuning(struct migration *m)
{
	pthread_mutex_lock(&m->lock);
	m->opt.downtime_ns = m->choice.downtime_ns = m->stats.downtime_target_ns;
	pthread_mutex_unlock(&m->lock);
	estimate_set_cap(&m->estimate, rate_get(&m->rate));
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
	rate_destroy(&m->rate);
	tls_free(m->tls);
	free(m);
}
