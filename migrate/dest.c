/* SPDX-License-Identifier: MIT */
/*
 * The destination: takes one guest in.
 *
 * Theory of operation: one thread reads frames and acts on each. What may come when is one table
 * (due[]): a frame out of its phase ends the migration.
 *
 *	HANDSHAKE --HELLO--> PRECOPY --STATE--> STOPCOPY --PROOF--> READY --COMMIT--> runs
 *	                     | PING, WANT, PAGES,     |
 *	                     | ASK, ROUND_END         |
 *
 * Nothing that comes is trusted; what happens to pages is in store.h. Until COMMIT no vCPU has run
 * and no device has let a byte out; whatever fails before it ends with the machine being thrown
 * away. Where it was the connection that failed, RAM and its hashes are kept for a while, for the
 * source to come back (dest_keep.c): it is then as in HANDSHAKE, with RAM that holds something.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../vmm/fault.h"
#include "dest_parts.h"
#include "held.h"
#include "uri.h"

/* Figures that others look at, from the thread's own. */
void dest_publish(struct receiver *r)
{
	uint64_t bytes = r->received + r->conn.received, stored = r->store.pages_stored;
	uint64_t zeroed = r->store.pages_zeroed;

	lanes_add(&r->lanes, &bytes, &stored, &zeroed);
	pthread_mutex_lock(&r->lock);
	r->stats.wire_bytes = bytes;
	r->stats.pages_sent = stored;
	r->stats.pages_zero = zeroed;
	r->stats.total_ns = r->start_ns ? now_ns() - r->start_ns : 0;
	pthread_mutex_unlock(&r->lock);
}

void dest_set_phase(struct receiver *r, enum migrate_phase phase)
{
	r->phase = phase;
	dest_publish(r);
	pthread_mutex_lock(&r->lock);
	r->stats.phase = phase;
	pthread_mutex_unlock(&r->lock);
}

/* One source is enough: the next one is refused at once by the kernel. */
static void stop_listening(struct receiver *r)
{
	if (r->listen_fd < 0)
		return;
	close(r->listen_fd);
	r->listen_fd = -1;
	uri_unlink(r->opt.uri);
}

bool dest_was_cancelled(struct receiver *r)
{
	bool cancelled;

	pthread_mutex_lock(&r->lock);
	cancelled = r->cancelled;
	pthread_mutex_unlock(&r->lock);
	return cancelled;
}

int dest_still_wanted(void *receiver)
{
	struct receiver *r = receiver;

	if (dest_was_cancelled(r))
		return errmsg_set(&r->err, -ECANCELED, "cancelled");
	return conn_poll(&r->conn, &r->err);
}

static void run_on_loop(struct loop_task *task)
{
	struct receiver *r = container_of(task, struct receiver, loop_task);
	int ret = r->loop_fn(r, r->loop_arg);

	pthread_mutex_lock(&r->lock);
	r->loop_ret = ret;
	r->loop_fn = NULL;
	pthread_cond_signal(&r->loop_done);
	pthread_mutex_unlock(&r->lock);
}

int dest_on_loop(struct receiver *r, int (*fn)(struct receiver *r, void *arg), void *arg)
{
	int ret;

	pthread_mutex_lock(&r->lock);
	r->loop_fn = fn;
	r->loop_arg = arg;
	loop_post(r->loop, &r->loop_task);
	while (r->loop_fn)
		pthread_cond_wait(&r->loop_done, &r->lock);
	ret = r->loop_ret;
	pthread_mutex_unlock(&r->lock);
	return ret;
}

/* ---- rounds ---- */

static int on_round_end(struct receiver *r, const struct wire_frame *f, const uint8_t *payload)
{
	uint32_t round;
	int ret;

	if (f->length != sizeof(round))
		return errmsg_set(&r->err, -EPROTO, "the source sent a ROUND_END frame of %u bytes",
				  f->length);
	memcpy(&round, payload, sizeof(round));
	ret = lanes_end_round(&r->lanes, round, &r->err);
	if (ret)
		return ret;
	/* The source waits for the answer: nothing is being stored. */
	hashes_refresh(&r->hashes);
	pthread_mutex_lock(&r->lock);
	r->stats.round = round;
	pthread_mutex_unlock(&r->lock);
	dest_set_phase(r, r->phase);
	return conn_send(&r->conn, WIRE_ROUND_ACK, &round, sizeof(round), NULL, &r->err);
}

static int on_ping(struct receiver *r, const struct wire_frame *f, const uint8_t *payload)
{
	uint64_t pong[2];

	if (f->length != sizeof(pong[0]))
		return errmsg_set(&r->err, -EPROTO, "the source sent a PING frame of %u bytes",
				  f->length);
	memcpy(&pong[0], payload, sizeof(pong[0]));
	pong[1] = now_ns();
	return conn_send(&r->conn, WIRE_PONG, pong, sizeof(pong), NULL, &r->err);
}

static int on_commit(struct receiver *r, const struct wire_frame *f, const uint8_t *payload)
{
	struct errmsg ignored = {0};
	bool cancelled;
	int ret;

	if (f->length != sizeof(r->root) || memcmp(payload, &r->root, sizeof(r->root)) != 0)
		return errmsg_set(&r->err, -EPROTO,
				  "the source's COMMIT is for other memory than ours");
	pthread_mutex_lock(&r->lock);
	cancelled = r->cancelled;
	r->committed = !cancelled;
	pthread_mutex_unlock(&r->lock);
	/* Refusing now is our word that the guest has not run here: the source may go on. */
	if (cancelled)
		return errmsg_set(&r->err, -ECANCELED, "cancelled");
	/* From now on the source only waits for our answer. */
	pulse_expect_silence(&r->pulse);
	/* Its disks' locks and the like, which the source has given up. */
	ret = vm_acquire_devices(r->vm, &r->err);
	if (ret)
		return ret;

	vm_resume_devices(r->vm);
	vm_resume(r->vm, VM_PAUSE_START);
	r->running = true;
	conn_hush(&r->conn);
	/* The guest is ours whether or not the source hears of it. */
	if (conn_send(&r->conn, WIRE_RUNNING, NULL, 0, NULL, &ignored))
		log_warn("the guest runs here, but the source could not be told: %s", ignored.text);
	return 0;
}

/* ---- frames ---- */

/* Which frames may come in which phase. */
static bool is_due(enum migrate_phase phase, unsigned type)
{
	switch (phase) {
	case MIGRATE_HANDSHAKE:
		return type == WIRE_HELLO;
	case MIGRATE_PRECOPY:
		return type == WIRE_PING || type == WIRE_WANT || type == WIRE_PAGES ||
		       type == WIRE_ASK || type == WIRE_ROUND_END || type == WIRE_STATE;
	case MIGRATE_STOPCOPY:
		return type == WIRE_PROOF;
	case MIGRATE_READY:
		return type == WIRE_COMMIT;
	default:
		return false;
	}
}

static int one_frame(struct receiver *r)
{
	uint8_t *payload = NULL;
	struct wire_frame f;
	int ret = conn_recv_header(&r->conn, &f, &r->err);

	if (ret)
		return ret;
	if (!is_due(r->phase, f.type))
		return errmsg_set(&r->err, -EPROTO, "the source sent %s during %s",
				  wire_type_name(f.type), migrate_phase_name(r->phase));
	if (f.type == WIRE_PAGES)
		return store_batch(&r->store, &r->conn, &f, &r->err);
	if (f.type == WIRE_ASK)
		return store_answer(&r->store, &r->conn, &f, &r->err);

	/* Before it is read: a proof is as long as the guest's RAM makes it, not as its frame says.
	 */
	if (f.type == WIRE_PROOF && f.length != hashes_proof_len(&r->hashes))
		return errmsg_set(&r->err, -EPROTO, "the source's proof has %u bytes, %llu are due",
				  f.length, (unsigned long long)hashes_proof_len(&r->hashes));
	payload = malloc(f.length + 1U);
	if (!payload)
		return errmsg_set(&r->err, -ENOMEM, "no memory for a %s frame of %u bytes",
				  wire_type_name(f.type), f.length);
	ret = conn_recv(&r->conn, payload, f.length, &r->err);
	if (ret == 0)
		ret = conn_verify(&r->conn, &f, payload, f.length, &r->err);
	if (ret)
		goto out;
	switch (f.type) {
	case WIRE_HELLO:
		ret = dest_on_hello(r, &f, payload);
		break;
	case WIRE_PING:
		ret = on_ping(r, &f, payload);
		break;
	case WIRE_WANT:
		ret = held_answer(&r->hashes, &r->conn, &f, payload, &r->err);
		break;
	case WIRE_ROUND_END:
		ret = on_round_end(r, &f, payload);
		break;
	case WIRE_STATE:
		ret = dest_on_state(r, &f, &payload);
		break;
	case WIRE_PROOF:
		ret = dest_on_proof(r, payload);
		break;
	case WIRE_COMMIT:
		ret = on_commit(r, &f, payload);
		break;
	default:
		ret = -EPROTO;
	}
out:
	free(payload);
	return ret;
}

/* What comes on one connection, until the guest runs here. */
static int serve(struct receiver *r)
{
	int ret = 0;

	while (ret == 0 && !r->running) {
		struct errmsg why = {0};
		int failed;

		ret = one_frame(r);
		/* What ended the main connection, too. */
		failed = ret ? lanes_failed(&r->lanes, &why) : 0;
		if (failed && failed != -ECANCELED && failed != -ECONNRESET) {
			r->err = why;
			ret = failed;
		}
	}
	return ret;
}

static int receive_guest(struct receiver *r)
{
	int ret = door_open(&r->door, r->listen_fd, r->tls, &r->err);

	while (ret == 0 && !r->running) {
		ret = dest_take_source(r);
		if (ret)
			break;
		ret = serve(r);
		if (ret)
			ret = dest_keep(r, ret);
	}
	return ret;
}

static void *run_receiver(void *arg)
{
	struct receiver *r = arg;
	enum migrate_status status;
	uint64_t cpu = 0;
	int ret;

	confine_thread(r->opt.confine, CONFINE_MIGRATION);
	fault_arm();
	ret = receive_guest(r);
	status = ret == 0		 ? MIGRATE_COMPLETED
		 : dest_was_cancelled(r) ? MIGRATE_CANCELLED
					 : MIGRATE_FAILED;
	if (ret && r->conn.fd >= 0 && r->phase != MIGRATE_HANDSHAKE && !r->conn.peer_failed)
		conn_fail(&r->conn, WIRE_FAIL, r->err.text);

	door_close(&r->door);
	pulse_stop(&r->pulse);
	stop_listening(r);
	dest_publish(r);
	lanes_close(&r->lanes, &cpu);
	pthread_mutex_lock(&r->lock);
	r->stats.cpu_ns += cpu + conn_cpu_ns(&r->conn) + thread_cpu_ns();
	r->stats.verified_pages = ret == 0 ? r->hashes.npages : 0;
	r->stats.error = r->err;
	r->stats.status = status;
	r->stats.phase = MIGRATE_DONE;
	pthread_mutex_unlock(&r->lock);

	if (r->conn.fd >= 0)
		conn_close(&r->conn);
	unpack_free(&r->store.unpack);
	hashes_free(&r->hashes);
	if (r->kept.valid)
		ram_destroy(&r->kept.ram);
	free(r->state);
	r->state = NULL;
	loop_post(r->loop, &r->done_task);
	return NULL;
}

static void run_done(struct loop_task *task)
{
	struct receiver *r = container_of(task, struct receiver, done_task);

	r->done(r->done_arg);
}

int receive_listen(struct receiver **out, const struct receive_options *opt,
		   char uri_out[MIGRATE_URI_MAX], struct errmsg *err)
{
	struct receiver *r = calloc(1, sizeof(*r));
	int ret;

	if (!r)
		return errmsg_set(err, -ENOMEM, "no memory for a receiver");
	r->opt = *opt;
	r->conn.fd = r->base_fd = r->kept.ram.fd = r->listen_fd = r->cancel_fd = -1;
	if (r->opt.peer_timeout_ns == 0)
		r->opt.peer_timeout_ns = CONN_LIMIT_DEFAULT;
	r->done_task.run = run_done;
	r->loop_task.run = run_on_loop;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->loop_done, NULL);
	ret = migrate_check_tls(opt->uri, &opt->tls, err);
	if (ret == 0 && uri_is_tls(opt->uri))
		ret = tls_load(&r->tls, &opt->tls, opt->uri, true, err);
	if (ret) {
		receive_free(r);
		return ret;
	}
	if (opt->base[0])
		r->base_fd = open(opt->base, O_RDONLY | O_CLOEXEC);
	if (opt->base[0] && r->base_fd < 0) {
		ret = errmsg_set(err, -errno, "--base %s: %s", opt->base, strerror(errno));
		receive_free(r);
		return ret;
	}
	r->listen_fd = uri_listen(opt->uri, uri_out, MIGRATE_URI_MAX, err);
	r->cancel_fd = eventfd(0, EFD_CLOEXEC);
	ret = r->listen_fd < 0 ? r->listen_fd : r->cancel_fd < 0 ? -errno : 0;
	if (ret) {
		receive_free(r);
		return errmsg_set(err, ret, "listening: %s", strerror(-ret));
	}
	r->stats.phase = MIGRATE_LISTENING;
	*out = r;
	return 0;
}

int receive_start(struct receiver *r, struct loop *loop, void (*done)(void *arg), void *arg,
		  struct errmsg *err)
{
	int ret;

	r->loop = loop;
	r->done = done;
	r->done_arg = arg;
	ret = -pthread_create(&r->thread, NULL, run_receiver, r);
	if (ret)
		return errmsg_set(err, ret, "starting the receiver's thread: %s", strerror(-ret));
	r->thread_started = true;
	pthread_setname_np(r->thread, "receive");
	return 0;
}

int receive_cancel(struct receiver *r)
{
	uint64_t one = 1;
	bool too_late;

	pthread_mutex_lock(&r->lock);
	too_late = r->committed;
	if (!too_late)
		r->cancelled = true;
	pthread_mutex_unlock(&r->lock);
	if (too_late)
		return -EALREADY;
	(void)!write(r->cancel_fd, &one, sizeof(one));
	return 0;
}

void receive_get_stats(struct receiver *r, struct migrate_stats *out)
{
	pthread_mutex_lock(&r->lock);
	*out = r->stats;
	pthread_mutex_unlock(&r->lock);
}

struct vm *receive_vm(struct receiver *r)
{
	return r->vm;
}

void receive_free(struct receiver *r)
{
	if (!r)
		return;
	if (r->thread_started) {
		pthread_join(r->thread, NULL);
		loop_unpost(r->loop, &r->done_task);
	}
	stop_listening(r);
	if (r->cancel_fd >= 0)
		close(r->cancel_fd);
	if (r->base_fd >= 0)
		close(r->base_fd);
	tls_free(r->tls);
	pthread_cond_destroy(&r->loop_done);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
