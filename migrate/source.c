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
 *	vm_throttle()		source_throttle_end()
 *	vm_pause_within()	vm_resume(); itself, when a vCPU does not stop in time
 *	vm_quiesce_devices()	vm_resume_devices()
 *	vm_release_devices()	vm_acquire_devices()
 *	COMMIT			nothing: the point of no return, see source_handover.c
 *
 * This file begins and ends it; rounds are in source_rounds.c, the pause and what follows in
 * source_handover.c.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "handshake.h"
#include "source_parts.h"
#include "uri.h"

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
	uint64_t bytes = m->conn.sent;

	*pages = (struct page_counts){0};
	page_counts_add(pages, &m->path.total);
	senders_add(&m->senders, &bytes, pages);
	return bytes;
}

/* Figures that others look at, from the coordinator's own. */
void source_publish(struct migration *m)
{
	uint64_t now = now_ns(), in_round = now - m->round_start_ns, bytes, done;
	uint64_t tried = m->conn.zc_tried, uncopied = m->conn.zc_uncopied;
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
		policy_late_text(m->stats.round, m->stats.dirty_pages_per_s, m->stats.bytes_per_s,
				 err);
		return -ETIME;
	}
	return 0;
}

static int connect_to(struct migration *m)
{
	int fd;

	source_set_phase(m, MIGRATE_CONNECTING);
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

	source_set_phase(m, MIGRATE_HANDSHAKE);
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
		ret = source_precopy(m);
	if (ret == 0)
		ret = source_stop_and_copy(m, &quiesced);
	status = source_settle(m, ret, quiesced);

	if (ret && m->conn.fd >= 0 && status != MIGRATE_UNCERTAIN)
		conn_fail(&m->conn, status == MIGRATE_CANCELLED ? WIRE_CANCEL : WIRE_FAIL,
			  status == MIGRATE_CANCELLED ? "" : m->err.text);
	dirty_stop(&m->dirty);
	if (m->conn.fd >= 0)
		conn_settle(&m->conn);
	senders_settle(&m->senders);
	source_publish(m);
	senders_close(&m->senders, &cpu);
	page_path_free(&m->path);

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
	m->choice = (struct policy_choice){.downtime_ns = opt->downtime_ns,
					   .timeout_ns = opt->timeout_ns,
					   .on_timeout = opt->on_timeout};
	m->deadline_ns = m->start_ns + MIN(policy_limit_ns(&m->choice), UINT64_MAX - m->start_ns);
	m->stats.verify = opt->verify;
	m->stats.connections = m->opt.connections;
	m->stats.ram_bytes = vm->ram.size;
	m->stats.downtime_target_ns = opt->downtime_ns;
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
