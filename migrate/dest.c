/* SPDX-License-Identifier: MIT */
/*
 * The destination: takes one guest in.
 *
 * Theory of operation: one thread reads frames and acts on each. What may come when is one table
 * (due[]): a frame out of its phase ends the migration.
 *
 *	HANDSHAKE --HELLO--> PRECOPY --STATE--> STOPCOPY --PROOF--> READY --COMMIT--> runs
 *	                     | PING, PAGES, ASK,      |
 *	                     | ROUND_END              |
 *
 * Nothing that comes is trusted; what happens to pages is in store.h. Until COMMIT no vCPU has run
 *and no device has let a byte out; whatever fails before it ends with the machine being thrown
 *away.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../vmm/clock.h"
#include "../vmm/kvm.h"
#include "conn.h"
#include "handshake.h"
#include "hashes.h"
#include "lanes.h"
#include "migrate.h"
#include "pulse.h"
#include "state.h"
#include "store.h"
#include "uri.h"

#define QUIESCE_LIMIT NS_PER_SEC

struct receiver {
	struct receive_options opt;
	struct loop *loop;
	struct loop_task done_task, build_task;
	void (*done)(void *arg);
	void *done_arg;
	pthread_t thread;
	bool thread_started;
	int cancel_fd, listen_fd;

	pthread_mutex_t lock; /* guards the next five */
	struct migrate_stats stats;
	bool cancelled;
	bool committed;
	struct hello *to_build; /* until the loop's thread has built the machine */
	int build_ret;
	pthread_cond_t built;

	/* The thread's own. */
	struct vm *vm;
	struct conn conn;
	struct pulse pulse;
	struct hashes hashes;
	struct errmsg err;
	uint64_t start_ns, stop_ns;
	struct store store;
	struct lanes lanes; /* the other connections */
	uint64_t session;
	uint8_t *state;
	uint32_t state_len;
	struct page_hash root;
	enum migrate_phase phase;
	enum migrate_verify verify;
	bool running;
};

/* Figures that others look at, from the thread's own. */
static void publish(struct receiver *r)
{
	uint64_t bytes = r->conn.received, stored = r->store.pages_stored;
	uint64_t zeroed = r->store.pages_zeroed;

	lanes_add(&r->lanes, &bytes, &stored, &zeroed);
	pthread_mutex_lock(&r->lock);
	r->stats.wire_bytes = bytes;
	r->stats.pages_sent = stored;
	r->stats.pages_zero = zeroed;
	r->stats.total_ns = r->start_ns ? now_ns() - r->start_ns : 0;
	pthread_mutex_unlock(&r->lock);
}

static void set_phase(struct receiver *r, enum migrate_phase phase)
{
	r->phase = phase;
	publish(r);
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

/* ---- handshake ---- */

static int check_wishes(struct receiver *r, const struct hello *h)
{
	char theirs[32], ours[32];

	if (r->opt.want_ram && r->opt.want_ram != h->cfg.ram_size)
		return errmsg_set(&r->err, -ENOTSUP,
				  "the guest has %s of RAM, this receiver takes only %s (-m)",
				  format_size(theirs, sizeof(theirs), h->cfg.ram_size),
				  format_size(ours, sizeof(ours), r->opt.want_ram));
	if (r->opt.want_vcpus && r->opt.want_vcpus != h->cfg.vcpus)
		return errmsg_set(&r->err, -ENOTSUP,
				  "the guest has %u vCPUs, this receiver takes only %u (-c)",
				  h->cfg.vcpus, r->opt.want_vcpus);
	return 0;
}

static int check_memory(struct receiver *r, const struct hello *h)
{
	struct host_memory m;

	host_memory_read(&m);
	return hello_check_memory(h, r->opt.want_ram, &m, &r->err);
}

static int check_cpu(struct receiver *r, const struct hello *h)
{
	struct cpuid *host = malloc(sizeof(*host));
	struct kvm_caps caps;
	int kvm_fd, ret;

	if (!host)
		return errmsg_set(&r->err, -ENOMEM, "no memory for CPUID");
	kvm_fd = kvm_open(&caps, &r->err);
	ret = kvm_fd < 0 ? kvm_fd : cpuid_host(host, kvm_fd, r->opt.cpu_mask, &r->err);
	/* A guest that could never leave again is not taken in. */
	if (ret == 0 && caps.no_migrate)
		ret = errmsg_set(&r->err, -ENOTSUP,
				 "this host's KVM lacks %s: it cannot migrate guests",
				 caps.no_migrate);
	if (ret == 0)
		ret = cpuid_check(&h->cpuid, host, &r->err);
	if (kvm_fd >= 0)
		close(kvm_fd);
	free(host);
	return ret;
}

static void run_build(struct loop_task *task)
{
	struct receiver *r = container_of(task, struct receiver, build_task);
	struct hello *h = r->to_build;
	int ret = r->opt.build(r->opt.build_arg, &h->cfg, &h->cpuid, &r->vm, &r->err);

	pthread_mutex_lock(&r->lock);
	r->build_ret = ret;
	r->to_build = NULL;
	pthread_cond_signal(&r->built);
	pthread_mutex_unlock(&r->lock);
}

/*
 * Devices begin to use the loop as they are built, and let go of it when the next one fails: that
 * is for the loop's thread. Nobody ends the loop before we are done.
 */
static int build_on_loop(struct receiver *r, struct hello *h)
{
	int ret;

	pthread_mutex_lock(&r->lock);
	r->to_build = h;
	loop_post(r->loop, &r->build_task);
	while (r->to_build)
		pthread_cond_wait(&r->built, &r->lock);
	ret = r->build_ret;
	pthread_mutex_unlock(&r->lock);
	return ret;
}

static int build_machine(struct receiver *r, struct hello *h)
{
	struct sbuf list;
	int ret;

	ret = check_wishes(r, h);
	if (ret == 0)
		ret = check_memory(r, h);
	if (ret == 0)
		ret = check_cpu(r, h);
	if (ret == 0)
		ret = build_on_loop(r, h);
	if (ret)
		return ret;
	sb_init_load(&list, h->devices, h->devices_len);
	state_device_list(r->vm, &list, &r->err);
	sb_end(&list);
	if (list.err)
		return errmsg_set(&r->err, list.err, "the source's list of devices is malformed");
	ret = clock_take_frequency(r->vm, h->tsc_khz, &r->err);
	if (ret == 0)
		ret = vcpu_check_msrs(&r->vm->vcpu[0], h->msr, h->n_msrs, &r->err);
	if (ret == 0)
		ret = vm_quiesce_devices(r->vm, QUIESCE_LIMIT, &r->err);
	if (ret == 0)
		ret = vm_start(r->vm, &r->err);
	if (ret)
		return ret;
	ret = hashes_init(&r->hashes, r->vm->ram.npages, h->hash_seed);
	if (ret)
		return errmsg_set(&r->err, ret, "no memory for the table of page hashes");
	r->store.ram = &r->vm->ram;
	r->store.hashes = &r->hashes;
	r->verify = (enum migrate_verify)h->verify;
	pthread_mutex_lock(&r->lock);
	r->stats.ram_bytes = r->vm->ram.size;
	r->stats.verify = r->verify;
	r->stats.connections = h->connections;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

/* Its other connections, if there are to be any. */
static int open_lanes(struct receiver *r, unsigned connections)
{
	int ret = 0;

	if (connections > 1)
		ret = lanes_open(&r->lanes, connections - 1, r->listen_fd, r->cancel_fd, r->session,
				 &r->conn, &r->store, &r->err);
	stop_listening(r);
	return ret;
}

static int on_hello(struct receiver *r, const struct wire_frame *f, const uint8_t *payload)
{
	struct hello *h = malloc(sizeof(*h));
	unsigned connections = 1;
	int ret;

	if (!h)
		return errmsg_set(&r->err, -ENOMEM, "no memory for the handshake");
	ret = hello_load(h, payload, f->length, &r->err);
	if (ret == 0)
		ret = build_machine(r, h);
	if (ret == 0)
		connections = h->connections;
	free(h);
	if (ret) {
		conn_fail(&r->conn, WIRE_REFUSE, r->err.text);
		return ret;
	}
	ret = conn_send(&r->conn, WIRE_HELLO_OK, NULL, 0, NULL, &r->err);
	if (ret == 0)
		ret = open_lanes(r, connections);
	set_phase(r, MIGRATE_PRECOPY);
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
	set_phase(r, r->phase);
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

/* ---- stop-and-copy ---- */

static bool was_cancelled(struct receiver *r)
{
	bool cancelled;

	pthread_mutex_lock(&r->lock);
	cancelled = r->cancelled;
	pthread_mutex_unlock(&r->lock);
	return cancelled;
}

/* While all of RAM is hashed, which takes its time: is it still wanted, by both sides? */
static int rehash_tick(void *arg)
{
	struct receiver *r = arg;

	if (was_cancelled(r))
		return errmsg_set(&r->err, -ECANCELED, "cancelled");
	return conn_poll(&r->conn, &r->err);
}

/* With --verify=full: is what is in RAM now still what the table says was stored? */
static int rehash_ram(struct receiver *r)
{
	uint64_t index = 0;
	int ret = hashes_compare_ram(&r->hashes, &r->vm->ram, &index, rehash_tick, r);

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

static int on_proof(struct receiver *r, const uint8_t *payload)
{
	int ret = r->verify == MIGRATE_VERIFY_FULL ? rehash_ram(r) : 0;

	if (ret == 0)
		ret = compare_digests(r, payload);
	if (ret == 0)
		ret = state_load(r->vm, r->state, r->state_len, &r->err);
	if (ret)
		return ret;
	set_phase(r, MIGRATE_READY);
	return conn_send(&r->conn, WIRE_READY, &r->root, sizeof(r->root), NULL, &r->err);
}

static int on_state(struct receiver *r, const struct wire_frame *f, uint8_t **payload)
{
	/* Kept until the memory is proved equal. */
	r->state = *payload;
	r->state_len = f->length;
	*payload = NULL;
	set_phase(r, MIGRATE_STOPCOPY);
	return 0;
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
		return type == WIRE_PING || type == WIRE_PAGES || type == WIRE_ASK ||
		       type == WIRE_ROUND_END || type == WIRE_STATE;
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
		ret = on_hello(r, &f, payload);
		break;
	case WIRE_PING:
		ret = on_ping(r, &f, payload);
		break;
	case WIRE_ROUND_END:
		ret = on_round_end(r, &f, payload);
		break;
	case WIRE_STATE:
		ret = on_state(r, &f, &payload);
		break;
	case WIRE_PROOF:
		ret = on_proof(r, payload);
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

/*
 * Waits for a source that speaks. Who connects only to see whether anybody listens (a port scan,
 * another receiver that wants this address) and leaves without a word, or says nothing for longer
 * than a source can take, has not been one: the real one may be waiting behind him.
 */
static int accept_source(struct receiver *r)
{
	int fd, ret;

	for (;;) {
		fd = uri_accept(r->listen_fd, r->cancel_fd, UINT64_MAX, &r->err);
		if (fd < 0)
			return fd;
		r->start_ns = now_ns();
		ret = conn_init(&r->conn, fd, r->cancel_fd, "source", &r->err);
		if (ret)
			return ret;
		conn_set_limit(&r->conn, r->opt.peer_timeout_ns);
		set_phase(r, MIGRATE_HANDSHAKE);
		r->conn.deadline_ns = r->start_ns + CONN_PRELUDE_LIMIT;
		ret = conn_recv_prelude(&r->conn, &r->session, &r->err);
		r->conn.deadline_ns = UINT64_MAX;
		if (ret != -ETIMEDOUT && (ret != -ECONNRESET || r->conn.received))
			break;
		if (ret == -ETIMEDOUT)
			log_info("a peer connected and did not begin within %llu s: waiting for "
				 "another",
				 (unsigned long long)(CONN_PRELUDE_LIMIT / NS_PER_SEC));
		else
			log_debug("a peer connected and left without a word");
		conn_close(&r->conn);
		r->err = (struct errmsg){0};
		r->start_ns = 0;
		set_phase(r, MIGRATE_LISTENING);
	}
	if (ret)
		stop_listening(r);
	return ret;
}

static int receive_guest(struct receiver *r)
{
	int ret = accept_source(r);

	/* A source of another version is to learn ours, too. */
	if (ret == 0 || ret == -EPROTONOSUPPORT) {
		int sent = conn_send_prelude(&r->conn, r->session, &r->err);

		ret = ret ? ret : sent;
	}
	if (ret == 0)
		ret = pulse_start(&r->pulse, &r->conn, &r->err);
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

static void *run_receiver(void *arg)
{
	struct receiver *r = arg;
	enum migrate_status status;
	uint64_t cpu = 0;
	int ret = receive_guest(r);

	status = ret == 0	    ? MIGRATE_COMPLETED
		 : was_cancelled(r) ? MIGRATE_CANCELLED
				    : MIGRATE_FAILED;
	if (ret && r->conn.fd >= 0 && r->phase != MIGRATE_HANDSHAKE && !r->conn.peer_failed)
		conn_fail(&r->conn, WIRE_FAIL, r->err.text);

	pulse_stop(&r->pulse);
	stop_listening(r);
	publish(r);
	lanes_close(&r->lanes, &cpu);
	pthread_mutex_lock(&r->lock);
	r->stats.cpu_ns = cpu + thread_cpu_ns();
	r->stats.verified_pages = ret == 0 ? r->hashes.npages : 0;
	r->stats.error = r->err;
	r->stats.status = status;
	r->stats.phase = MIGRATE_DONE;
	pthread_mutex_unlock(&r->lock);

	if (r->conn.fd >= 0)
		conn_close(&r->conn);
	unpack_free(&r->store.unpack);
	hashes_free(&r->hashes);
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
	if (r->opt.peer_timeout_ns == 0)
		r->opt.peer_timeout_ns = CONN_LIMIT_DEFAULT;
	r->conn.fd = -1;
	r->done_task.run = run_done;
	r->build_task.run = run_build;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->built, NULL);
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
	pthread_cond_destroy(&r->built);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
