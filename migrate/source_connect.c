/* SPDX-License-Identifier: MIT */
/*
 * The source's connections: the first one, and those that take the place of one that broke.
 *
 * Theory of operation: the guest runs on meanwhile and its writes go on being tracked. A new
 * connection begins as the first one did, with the same session and hash seed. The destination says
 * what it holds, and the table is made equal to that (held.h): what was in flight is found by it,
 * and what the guest has written since by the dirty log. Then rounds go on.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "dial.h"
#include "handshake.h"
#include "held.h"
#include "source_parts.h"

/* Between two tries to connect again. */
#define FIRST_WAIT (100 * NS_PER_MS)
#define LONGEST_WAIT (5 * NS_PER_SEC)

/* For handovers that break off, a guest is not stopped for longer than this in all. */
#define FAILED_PAUSES_MAX (60 * NS_PER_SEC)
#define LOOK_NS (100 * NS_PER_MS)

/* What listens for the destination, a tunnel perhaps, may need so long to be there again. */
#define GONE_LIMIT (10 * NS_PER_SEC)

/*
 * A move that is late finds out by itself and says why, unless it waits for a destination that says
 * nothing but that it lives: that is waited for so much longer than the time allowed.
 */
#define LATE_LIMIT (5 * NS_PER_SEC)

static int connect_to(struct migration *m)
{
	int ret = dial(&m->conn, m->opt.uri, m->tls, m->opt.peer_timeout_ns, m->cancel_fd, &m->err);

	if (ret)
		return ret;
	m->conn.deadline_ns = m->deadline_ns + MIN(LATE_LIMIT, UINT64_MAX - m->deadline_ns);
	m->conn.rate = &m->rate;
	conn_set_limit(&m->conn, m->opt.peer_timeout_ns);
	return 0;
}

/* The destination's answer to HELLO. */
static int read_verdict(struct migration *m)
{
	char text[WIRE_TEXT_MAX + 1];
	struct wire_hello_ok ok;
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
	if (f.type == WIRE_REFUSE) {
		conn_clean_text(text, f.length);
		return errmsg_set(&m->err, -ECONNABORTED, "the destination refuses: %s", text);
	}
	if (f.length != sizeof(ok))
		return errmsg_set(&m->err, -EPROTO,
				  "the destination sent a HELLO_OK frame of %u bytes", f.length);
	memcpy(&ok, text, sizeof(ok));
	pthread_mutex_lock(&m->lock);
	m->stats.held_pages = ok.held;
	pthread_mutex_unlock(&m->lock);
	free(m->held);
	m->held = NULL;
	return ok.held ? held_receive(&m->hashes, &m->conn, &m->held, &m->err) : 0;
}

/* Once for all connections: who comes back is known by it. */
static int begin_session(struct migration *m)
{
	uint64_t random[2];
	int ret;

	if (m->hashes.table)
		return 0;
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return errmsg_set(&m->err, -EIO, "no random numbers: %s", strerror(errno));
	m->session = random[0];
	m->seed = random[1];
	ret = hashes_init(&m->hashes, m->vm->ram.npages, m->seed);
	return ret ? errmsg_set(&m->err, ret, "no memory for the table of page hashes") : 0;
}

static int handshake(struct migration *m)
{
	uint64_t session;
	struct sbuf hello;
	int ret = begin_session(m);

	if (ret == 0)
		ret = conn_send_prelude(&m->conn, m->session, &m->err);
	if (ret == 0)
		ret = conn_recv_prelude(&m->conn, &session, &m->err);
	if (ret == 0)
		ret = pulse_start(&m->pulse, &m->conn, &m->err);
	if (ret)
		return ret;
	if (session != m->session)
		return errmsg_set(&m->err, -EPROTO, "the destination answers another migration");
	sb_init_save(&hello);
	ret = hello_save(m->vm, &m->opt, m->seed, m->stats.round, &hello, &m->err);
	if (ret == 0)
		ret = conn_send(&m->conn, WIRE_HELLO, hello.data, (uint32_t)hello.len, NULL,
				&m->err);
	sb_free(&hello);
	if (ret == 0)
		ret = read_verdict(m);
	return ret;
}

int source_connect(struct migration *m)
{
	int ret;

	source_set_phase(m, MIGRATE_CONNECTING);
	ret = connect_to(m);
	if (ret)
		return ret;
	source_set_phase(m, MIGRATE_HANDSHAKE);
	return handshake(m);
}

/* ---- another one ---- */

/* The destination may be there later, or become reachable. */
static bool may_pass(int ret)
{
	switch (ret) {
	case -ECONNRESET:
	case -ETIMEDOUT:
	case -EPROTO:
	case -EBADMSG:
	case -ECONNREFUSED:
	case -ENOENT:
	case -EHOSTUNREACH:
	case -ENETUNREACH:
	case -ENETDOWN:
	case -EHOSTDOWN:
		return true;
	default:
		return false;
	}
}

bool source_may_reconnect(struct migration *m, int ret)
{
	if (!m->opt.reconnect_ns || !m->dirty.bitmap || m->committed || m->own_fault)
		return false;
	if (m->pause_start &&
	    m->stats.failed_pause_ns + (now_ns() - m->pause_start) > FAILED_PAUSES_MAX)
		return false;
	/* A network that damages data; at the pause it may be more than that. */
	return may_pass(ret) && !(m->pause_start && (ret == -EPROTO || ret == -EBADMSG));
}

static void close_connection(struct migration *m)
{
	pulse_stop(&m->pulse);
	if (m->conn.fd >= 0)
		conn_close(&m->conn);
	m->conn = (struct conn){.fd = -1};
}

/* The guest runs on; what was counted stays counted. */
static void drop_connection(struct migration *m, bool *quiesced)
{
	struct page_counts past;

	if (*quiesced)
		vm_resume_devices(m->vm);
	*quiesced = false;
	if (m->pause_start)
		vm_resume(m->vm, VM_PAUSE_MIGRATE);
	/* There is nothing to slow it for. */
	if (m->vcpus)
		source_throttle_set(m, 0);
	m->past_bytes = source_sum_up(m, &past);
	m->past = past;
	m->past_tried += m->conn.zc_tried;
	m->past_uncopied += m->conn.zc_uncopied;
	senders_add_zerocopy(&m->senders, &m->past_tried, &m->past_uncopied);
	page_path_free(&m->path);
	m->path = (struct page_path){0};
	senders_close(&m->senders, &m->past_cpu_ns);
	m->past_cpu_ns += conn_cpu_ns(&m->conn);
	close_connection(m);
	m->work = (struct page_work){0};
	memset(m->round_start_each, 0, sizeof(m->round_start_each));
	pthread_mutex_lock(&m->lock);
	m->stats.phase = MIGRATE_RECONNECTING;
	m->stats.reconnects++;
	if (m->pause_start)
		m->stats.failed_pause_ns += now_ns() - m->pause_start;
	m->stats.pause_ns = m->stats.state_ns = m->stats.last_pages_ns = m->stats.proof_ns = 0;
	pthread_mutex_unlock(&m->lock);
	m->pause_start = 0;
}

/* Waits; ends early with a reason to stop. */
static int wait_for(struct migration *m, uint64_t ns)
{
	uint64_t until = now_ns() + ns;

	for (;;) {
		struct pollfd p = {.fd = m->cancel_fd, .events = POLLIN};
		uint64_t now = now_ns();
		int ret = source_check_stop(m, &m->err);

		if (ret)
			return ret;
		if (now >= until)
			return 0;
		if (poll(&p, 1, (int)(MIN(until - now, LOOK_NS) / NS_PER_MS) + 1) > 0)
			return errmsg_set(&m->err, -ECANCELED, "cancelled");
	}
}

static int give_up(struct migration *m, int ret, const struct errmsg *first)
{
	struct errmsg last = m->err;

	m->err = (struct errmsg){0};
	return errmsg_set(&m->err, ret, "%.240s; and then: %.240s", first->text, last.text);
}

int source_reconnect(struct migration *m, bool *quiesced)
{
	uint64_t since = now_ns(), refused = 0;
	struct errmsg first = m->err;
	int ret;

	drop_connection(m, quiesced);
	/* One that has brought pages over was worth it, however soon it broke. */
	m->reconnect_wait = m->past.sent > m->broke_sent || !m->reconnect_wait
				    ? FIRST_WAIT
				    : MIN(2 * m->reconnect_wait, LONGEST_WAIT);
	m->broke_sent = m->past.sent;
	log_warn("%s; trying to reach %s again for %llu s", first.text, m->opt.uri,
		 (unsigned long long)(m->opt.reconnect_ns / NS_PER_SEC));
	for (;;) {
		m->err = (struct errmsg){0};
		ret = wait_for(m, m->reconnect_wait);
		if (ret)
			return ret;
		ret = connect_to(m);
		if (ret == 0)
			ret = handshake(m);
		if (ret == 0) {
			log_info("connected to %s again; it holds %llu MiB", m->opt.uri,
				 (unsigned long long)(m->stats.held_pages * PAGE_SIZE / MIB));
			return 0;
		}
		close_connection(m);
		if (!may_pass(ret))
			return give_up(m, ret, &first);
		/* A receiver that keeps what it has listens on: where nobody does there is none. */
		if (ret != -ECONNREFUSED && ret != -ENOENT)
			refused = 0;
		else if (!refused)
			refused = now_ns();
		if (now_ns() - since > m->opt.reconnect_ns ||
		    (refused && now_ns() - refused > GONE_LIMIT))
			return give_up(m, ret, &first);
		m->reconnect_wait = MIN(2 * m->reconnect_wait, LONGEST_WAIT);
	}
}

int source_take_stock(struct migration *m)
{
	int ret = 0;

	if (m->held) {
		ret = held_adopt(&m->hashes, &m->conn, m->held, m->dirty.bitmap, &m->err);
	} else if (m->stats.reconnects) {
		/* It has lost what it had, or is another. */
		hashes_clear(&m->hashes);
		dirty_mark_all(&m->dirty);
	}
	free(m->held);
	m->held = NULL;
	return ret;
}
