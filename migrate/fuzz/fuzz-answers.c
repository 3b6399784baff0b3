/* SPDX-License-Identifier: MIT */
/*
 * The sending side and the answers that it gets: `godwit migrate` without KVM
 * (vmm/fuzz/fake_kvm.h) to a receiver of ours, and between the two someone who changes what the
 * receiver says, as the input tells: any frame on any connection, with a check that is right again
 * unless that, too, is to be wrong, and the prelude before them. The guest writes between rounds,
 * so that pages are asked for and sent as deltas; a connection may break and be made anew, so that
 * tables are compared, or the receiver be gone. And the user may cancel, or the guest power off.
 *
 * Whatever is answered,
 *
 *	- the move completes, is given up with a reason and the guest runs on, or COMMIT was out and
 *	  the guest stands: nothing else;
 *	- what was cancelled in time has not moved;
 *	- both sides never run it, unless the receiver's word that it does not was forged;
 *	- it completes only if the other side runs the guest, with the memory that the source has;
 *	- no file descriptor is left.
 *
 * And with nothing changed it completes.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../dest_parts.h"
#include "../uri.h"
#include "guest.h"

#define LINKS_MAX 8U
#define EDITS_MAX 8U
#define BYTES_MAX 64U
#define ROOM (512 * 1024U) /* more than any frame of so small a guest */
#define QUIET_NS (60 * NS_PER_MS)
#define RECONNECT_LONG NS_PER_SEC
#define RECONNECT_SHORT (150 * NS_PER_MS)
#define WRITES_MAX 3U /* rounds in which the guest writes */
#define WRITE_PAGES 24U

struct edit {
	uint8_t link, nth, kind;
	uint16_t at;
	uint64_t value;
	uint8_t n, bytes[BYTES_MAX];
};

/* A connection of the source's and the one that it is passed on to. */
struct link {
	int fd[2];	/* of the source, of the receiver; -1: none */
	bool ended[2];	/* what came from there has ended */
	uint8_t *in[2]; /* no whole frame yet, of each */
	size_t n_in[2];
	bool began[2];
	unsigned nth; /* frames of the receiver's so far */
	uint32_t seq;
};

struct middle {
	int listen_fd; /* -1: not any more */
	char path[MIGRATE_URI_MAX];
	const char *to; /* the receiver's socket */
	struct link link[LINKS_MAX];
	unsigned n_links;
	struct edit edit[EDITS_MAX];
	unsigned n_edits;
	bool changed;
	uint64_t moved_ns; /* when anything but a sign of life came last */
	struct vm *vm;	   /* the source's */
	unsigned writes, to_write;
	uint64_t cancel_ns, end_ns; /* when the user, and the guest, want it to end; 0: not */
	bool was_cancelled;	    /* in time */
	bool ended;
	struct migration *_Atomic migration;
	atomic_bool quit;
};

/* ---- edits ---- */

static void read_edits(struct middle *m, struct fuzz_in *in)
{
	m->n_edits = in_u8(in) % (EDITS_MAX + 1);
	for (unsigned i = 0; i < m->n_edits; i++) {
		struct edit *e = &m->edit[i];

		e->link = in_u8(in) % LINKS_MAX;
		e->nth = in_u8(in) % 64;
		e->kind = in_u8(in) % 16;
		e->at = in_u16(in);
		e->value = in_u64(in);
		e->n = in_u8(in) % BYTES_MAX;
		in_bytes(in, e->bytes, e->n);
	}
}

static void write_all(int fd, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	while (len) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		at += n;
		len -= (size_t)n;
	}
}

static void send_frame(struct link *l, struct wire_frame *f, const uint8_t *payload, bool fix)
{
	f->seq += l->seq;
	if (fix)
		f->check = wire_check_sum(f, payload, f->length);
	write_all(l->fd[0], f, sizeof(*f));
	write_all(l->fd[0], payload, f->length);
}

static void cut(struct link *l)
{
	shutdown(l->fd[0], SHUT_RDWR);
	shutdown(l->fd[1], SHUT_RDWR);
}

/* Of the receiver's, which comes before all frames. */
static void change_prelude(struct middle *m, unsigned which, uint8_t prelude[])
{
	for (unsigned i = 0; i < m->n_edits; i++) {
		const struct edit *e = &m->edit[i];

		if (e->link != which || e->kind != 12)
			continue;
		m->changed = true;
		prelude[e->at % sizeof(struct wire_prelude)] ^= (uint8_t)(1 + e->value % 255);
	}
}

/* Who breaks off finds nobody any more. */
static void stop_listening(struct middle *m)
{
	if (m->listen_fd < 0)
		return;
	close(m->listen_fd);
	m->listen_fd = -1;
	unlink(m->path);
}

/* One frame of the receiver's, which lies in a buffer with room behind it. */
static void answer(struct middle *m, unsigned which, struct wire_frame f, uint8_t *payload)
{
	struct link *l = &m->link[which];
	bool fix = true, twice = false, end = false;
	unsigned nth = l->nth++;

	/* What was put in before moves the numbers of all that follow. */
	for (unsigned i = 0; i < m->n_edits; i++) {
		const struct edit *e = &m->edit[i];
		size_t width = (size_t)1 << e->n % 4;

		if (e->link != which || e->nth != nth)
			continue;
		m->changed = true;
		switch (e->kind) {
		case 0:
		case 1:
			if (f.length)
				payload[e->at % f.length] ^= (uint8_t)(1 + e->value % 255);
			break;
		case 2:
			if (f.length >= width)
				memcpy(payload + e->at % (f.length - width + 1), &e->value, width);
			break;
		case 3:
			f.type = (uint16_t)(e->value % (WIRE_N_TYPES + 1));
			break;
		case 4:
			f.length = e->at % (f.length + 1);
			break;
		case 5:
			memcpy(payload + f.length, e->bytes, e->n);
			f.length += e->n;
			break;
		case 6:
			memcpy(payload, e->bytes, e->n);
			f.length = e->n;
			break;
		case 7:
			f.check ^= e->value | 1;
			fix = false;
			break;
		case 8:
			twice = true;
			break;
		case 9:
			f.seq += (uint32_t)(e->value % 3);
			break;
		case 10:
			f.flags = (uint16_t)e->value;
			break;
		case 11:
			end = true;
			break;
		case 12:
			/* The prelude's. */
			break;
		case 13:
			m->cancel_ns = now_ns() + e->at % 256U * NS_PER_MS;
			break;
		case 14:
			m->end_ns = now_ns() + e->at % 256U * NS_PER_MS;
			break;
		default:
			stop_listening(m);
			end = true;
		}
	}
	send_frame(l, &f, payload, fix);
	if (twice) {
		l->seq++;
		send_frame(l, &f, payload, fix);
	}
	if (end)
		cut(l);
}

/* ---- the guest ---- */

/* Pages of it, before the round in which they were dirty is over: it does not stand yet. */
static void guest_writes(struct middle *m)
{
	if (m->writes == m->to_write || vm_paused(m->vm))
		return;
	m->writes++;
	for (uint64_t i = 0; i < WRITE_PAGES; i++)
		ram_write(&m->vm->ram, i * 3 * PAGE_SIZE + m->writes * 64, &m->writes, 4);
}

/* As a vCPU does it, which does not stand. */
static void guest_ends(struct middle *m)
{
	if (!m->end_ns || now_ns() < m->end_ns || vm_paused(m->vm))
		return;
	vm_set_end(m->vm, VM_END_POWEROFF, "it powered off");
	m->ended = true;
	m->end_ns = 0;
}

static void user_cancels(struct middle *m)
{
	if (!m->cancel_ns || now_ns() < m->cancel_ns)
		return;
	m->was_cancelled = migrate_cancel(m->migration) == 0;
	m->cancel_ns = 0;
}

/* ---- the man in the middle ---- */

static int call(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	fuzz_need(fd >= 0, "no socket: %s", strerror(errno));
	if (connect(fd, (void *)&a, sizeof(a)) == 0)
		return fd;
	close(fd);
	return -1;
}

static void drop(struct link *l)
{
	for (unsigned i = 0; i < 2; i++) {
		if (l->fd[i] >= 0)
			close(l->fd[i]);
		free(l->in[i]);
		l->in[i] = NULL;
		l->fd[i] = -1;
	}
}

static void take_in(struct middle *m)
{
	struct link *l = &m->link[m->n_links];
	int fd = accept(m->listen_fd, NULL, NULL);

	if (fd < 0)
		return;
	if (m->n_links == LINKS_MAX) {
		close(fd);
		return;
	}
	*l = (struct link){.fd = {fd, call(m->to)}};
	if (l->fd[1] < 0) {
		drop(l);
		return;
	}
	for (unsigned i = 0; i < 2; i++) {
		l->in[i] = malloc(ROOM);
		fuzz_need(l->in[i], "no memory");
	}
	m->n_links++;
	m->moved_ns = now_ns();
}

/* The length of what is whole at the front: a prelude, then frames; 0: nothing yet. */
static size_t whole(const struct link *l, unsigned side, struct wire_frame *f)
{
	if (!l->began[side])
		return l->n_in[side] >= sizeof(struct wire_prelude) ? sizeof(struct wire_prelude)
								    : 0;
	if (l->n_in[side] < sizeof(*f))
		return 0;
	memcpy(f, l->in[side], sizeof(*f));
	fuzz_need(f->magic == WIRE_FRAME_MAGIC && f->length <= wire_max_length(f->type) &&
			  sizeof(*f) + f->length < ROOM - BYTES_MAX,
		  "%s sends no frames", side ? "the receiver" : "the source");
	return l->n_in[side] >= sizeof(*f) + f->length ? sizeof(*f) + f->length : 0;
}

static void pass_on(struct middle *m, unsigned which, unsigned side)
{
	struct link *l = &m->link[which];
	struct wire_frame f = {0};
	size_t len;

	while ((len = whole(l, side, &f))) {
		if (l->began[side] && f.type != WIRE_IDLE)
			m->moved_ns = now_ns();
		if (l->began[side] && side == 1) {
			static uint8_t payload[ROOM];

			memcpy(payload, l->in[side] + sizeof(f), f.length);
			answer(m, which, f, payload);
		} else {
			if (l->began[side] && f.type == WIRE_ROUND_END)
				guest_writes(m);
			if (!l->began[side] && side == 1)
				change_prelude(m, which, l->in[side]);
			write_all(l->fd[!side], l->in[side], len);
		}
		l->began[side] = true;
		l->n_in[side] -= len;
		memmove(l->in[side], l->in[side] + len, l->n_in[side]);
	}
}

static void listen_to(struct middle *m, unsigned which, unsigned side)
{
	struct link *l = &m->link[which];
	ssize_t n =
		recv(l->fd[side], l->in[side] + l->n_in[side], ROOM - l->n_in[side], MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		l->ended[side] = true;
		shutdown(l->fd[!side], SHUT_WR);
		m->moved_ns = now_ns();
		return;
	}
	l->n_in[side] += (size_t)n;
	pass_on(m, which, side);
}

static void *run_middle(void *arg)
{
	struct middle *m = arg;

	/* Whose move it is is known at once. */
	while (!m->migration && !m->quit)
		poll(NULL, 0, 1);
	while (!m->quit) {
		struct pollfd p[1 + 2 * LINKS_MAX] = {{.fd = m->listen_fd, .events = POLLIN}};

		for (unsigned i = 0; i < 2 * LINKS_MAX; i++) {
			const struct link *l = &m->link[i / 2];

			p[1 + i] = (struct pollfd){.fd = -1, .events = POLLIN};
			if (i / 2 < m->n_links && !l->ended[i % 2])
				p[1 + i].fd = l->fd[i % 2];
		}
		poll(p, 1 + 2 * LINKS_MAX, 5);
		for (unsigned i = 0; i < 2 * LINKS_MAX; i++) {
			if (p[1 + i].fd >= 0 && p[1 + i].revents)
				listen_to(m, i / 2, i % 2);
		}
		if (p[0].revents && m->listen_fd >= 0)
			take_in(m);
		guest_ends(m);
		user_cancels(m);
		/* Each waits for the other, who was misunderstood. */
		if (!m->changed || now_ns() - m->moved_ns < QUIET_NS)
			continue;
		for (unsigned i = 0; i < m->n_links; i++)
			cut(&m->link[i]);
		m->moved_ns = now_ns();
	}
	for (unsigned i = 0; i < m->n_links; i++)
		drop(&m->link[i]);
	return NULL;
}

/* ---- both sides ---- */

static bool sent, received;

static void on_sent(void *arg)
{
	(void)arg;
	sent = true;
}

static void on_received(void *arg)
{
	(void)arg;
	received = true;
}

static void start_guest(struct fuzz_guest *g, unsigned variant)
{
	struct errmsg err = {""};

	guest_create(g, variant);
	fuzz_need(vm_acquire_devices(g->vm, &err) == 0 && vm_start(g->vm, &err) == 0,
		  "it does not start: %s", err.text);
	for (uint64_t i = 0; i < 100; i++)
		ram_write(&g->vm->ram, i * PAGE_SIZE + i, &i, sizeof(i));
	vm_resume_devices(g->vm);
	vm_resume(g->vm, VM_PAUSE_START);
}

static void check(struct middle *m, struct vm *from, struct vm *to, const struct migrate_stats *st,
		  const struct migrate_stats *there)
{
	bool arrived = there->status == MIGRATE_COMPLETED;

	fuzz_need(st->status == MIGRATE_COMPLETED || st->error.text[0],
		  "it was given up for no reason");
	switch (st->status) {
	case MIGRATE_COMPLETED:
		fuzz_need(arrived, "it has moved, and is not there");
		fuzz_need(!m->was_cancelled, "it has moved, and was cancelled");
		/* A guest's last word may cross the move's. */
		fuzz_need(vm_get_end(from) == VM_END_MOVED || m->ended, "it has moved and runs on");
		fuzz_need(from->ram.size == to->ram.size &&
				  !memcmp(from->ram.host, to->ram.host, from->ram.size),
			  "it has moved with other memory");
		break;
	case MIGRATE_UNCERTAIN:
		fuzz_need(!m->was_cancelled, "nobody knows, and it was cancelled");
		fuzz_need(vm_paused(from) & VM_PAUSE_LOST, "nobody knows, and it runs on");
		break;
	default:
		fuzz_need(vm_paused(from) == (m->ended ? VM_PAUSE_END : 0),
			  "it has not moved, and stands: %#x", vm_paused(from));
		fuzz_need(!arrived || m->changed, "it runs on both sides");
	}
	fuzz_need(m->changed || st->status == MIGRATE_COMPLETED, "nothing was changed, and: %s",
		  st->error.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct middle m;
	struct fuzz_in in = {data, data + size};
	struct migrate_options opt = {.downtime_ns = 20 * NS_PER_SEC};
	struct receive_options receive = {.build = guest_build};
	struct migrate_stats st, there;
	struct migration *migration;
	struct receiver *receiver;
	struct errmsg err = {""};
	char uri[MIGRATE_URI_MAX], path[MIGRATE_URI_MAX];
	unsigned variant = in_u8(&in) % GUEST_VARIANTS, fds;
	uint8_t how = in_u8(&in);
	struct fuzz_guest g;
	pthread_t thread;
	int ret;

	memset(&m, 0, sizeof(m));
	m.to_write = how >> 4 & 3;
	read_edits(&m, &in);
	opt.connections = 1 + (how & 1);
	opt.verify = how & 2 ? MIGRATE_VERIFY_FULL : MIGRATE_VERIFY_STREAM;
	opt.compress = how & 4 ? MIGRATE_COMPRESS_ZSTD : MIGRATE_COMPRESS_OFF;
	opt.compress_level = 1;
	/* The first try is made after a tenth of a second: not often. */
	opt.reconnect_ns = how & 64 ? RECONNECT_SHORT : how & 8 ? RECONNECT_LONG : 0;
	receive.keep_ns = opt.reconnect_ns;
	guest_config(1);
	guest_loop();

	fds = count_fds();
	start_guest(&g, variant);
	snprintf(path, sizeof(path), "%s/receive", fuzz_folder());
	snprintf(receive.uri, sizeof(receive.uri), "unix:%.200s", path);
	snprintf(m.path, sizeof(m.path), "%.200s/middle", fuzz_folder());
	snprintf(opt.uri, sizeof(opt.uri), "unix:%.200s", m.path);
	ret = receive_listen(&receiver, &receive, uri, &err);
	if (ret == 0)
		ret = receive_start(receiver, g.loop, on_received, NULL, &err);
	fuzz_need(ret == 0, "not receiving: %s", err.text);
	m.listen_fd = uri_listen(opt.uri, uri, sizeof(uri), &err);
	fuzz_need(m.listen_fd >= 0, "not listening: %s", err.text);
	m.to = path;
	m.vm = g.vm;
	m.moved_ns = now_ns();
	fuzz_need(!pthread_create(&thread, NULL, run_middle, &m), "no thread");
	sent = received = false;
	ret = migrate_start(&migration, g.vm, &opt, on_sent, NULL, &err);
	fuzz_need(ret == 0, "no move: %s", err.text);
	m.migration = migration;
	while (!sent)
		loop_step(g.loop, NS_PER_SEC);
	/* With the connections gone it knows that, too. */
	m.quit = true;
	pthread_join(thread, NULL);
	receive_cancel(receiver);
	while (!received)
		loop_step(g.loop, NS_PER_SEC);

	migrate_get_stats(migration, &st);
	receive_get_stats(receiver, &there);
	check(&m, g.vm, receive_vm(receiver), &st, &there);
	migrate_free(migration);
	vm_destroy(receive_vm(receiver));
	receive_free(receiver);
	stop_listening(&m);
	guest_destroy(&g);
	fuzz_need(count_fds() == fds, "%u file descriptors before, %u after", fds, count_fds());
	return 0;
}
