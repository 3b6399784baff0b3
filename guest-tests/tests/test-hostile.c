/* SPDX-License-Identifier: MIT */
/*
 * Peers that are not what they seem: they speak nonsense, another version, half a frame, frames
 * that nobody asked for, or a recorded migration with things changed in it. A receiver ends with 1
 * and the reason and has let nothing run; a source's guest runs on. Nobody crashes, hangs or takes
 * memory for what was only announced.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../migrate/handshake.h"
#include "../../migrate/hashes.h"
#include "faults.h"

#define SESSION 0x1122334455667788ULL

/* ---- making streams ---- */

struct bytes {
	uint8_t data[1 << 17];
	size_t len;
};

static void add(struct bytes *b, const void *data, size_t len)
{
	need(b->len + len <= sizeof(b->data), "%zu bytes", b->len + len);
	memcpy(b->data + b->len, data, len);
	b->len += len;
}

static void add_prelude(struct bytes *b, uint16_t version, uint16_t min_version)
{
	struct wire_prelude p = {
		.version = version, .min_version = min_version, .session = SESSION};

	memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
	add(b, &p, sizeof(p));
}

/* A frame whose header says length, with len bytes of payload after it. */
static void add_frame(struct bytes *b, unsigned type, uint32_t seq, const void *payload, size_t len,
		      uint32_t length)
{
	struct wire_frame f = {
		.magic = WIRE_FRAME_MAGIC, .type = (uint16_t)type, .length = length, .seq = seq};

	f.check = wire_check_sum(&f, payload, len);
	add(b, &f, sizeof(f));
	add(b, payload, len);
}

static bool send_all(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		p += n;
		len -= (size_t)n;
	}
	return true;
}

static void set_timeouts(int fd)
{
	struct timeval tv = {.tv_sec = harness_slow(15)};

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
}

/* No byte that a terminal would obey. */
static void need_plain(const struct proc *p)
{
	for (size_t i = 0; i < p->err.len; i++) {
		unsigned char c = (unsigned char)p->err.buf[i];

		need(c == '\n' || (c >= ' ' && c != 0x7f), "%s: byte %#x in its messages", p->label,
		     c);
	}
}

static void receiver_refused(struct dest *d, const char *regex)
{
	proc_expect_err(d->proc, regex, 20000);
	proc_ended(d->proc, 1, 20000);
	need(!proc_next(d->proc, 0), "the receiver let something run");
	need_plain(d->proc);
}

/* ---- sources that are none ---- */

static void s_garbage(struct bytes *b)
{
	static const char http[] = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";

	add(b, http, sizeof(http) - 1);
}

static void s_nothing(struct bytes *b)
{
	(void)b;
}

static void s_newer(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION + 7, WIRE_VERSION + 3);
}

static void s_older(struct bytes *b)
{
	add_prelude(b, WIRE_MIN_VERSION - 1, WIRE_MIN_VERSION - 1);
}

static void s_half_header(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 0, "", 0, 100);
	b->len -= 10;
}

static void s_half_hello(struct bytes *b)
{
	static const uint8_t half[500] = {'c', 'o', 'n', 'f', 'i', 'g'};

	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 0, half, sizeof(half), 1000);
}

static void s_empty_hello(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 0, "", 0, 0);
}

static void s_half_prelude(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	b->len /= 2;
}

static void s_noise_hello(struct bytes *b)
{
	uint8_t noise[3000];

	for (size_t i = 0; i < sizeof(noise); i++)
		noise[i] = (uint8_t)(i * i + 7 * i);
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 0, noise, sizeof(noise), sizeof(noise));
}

static void s_huge_hello(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 0, "", 0, UINT32_MAX);
}

static void s_magic(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 0, "", 0, 0);
	b->data[sizeof(struct wire_prelude)] ^= 1;
}

static void s_type(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_N_TYPES, 0, "", 0, 0);
}

static void s_flags(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 0, "", 0, 0);
	b->data[sizeof(struct wire_prelude) + offsetof(struct wire_frame, flags)] = 1;
}

static void s_sequence(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_HELLO, 1, "", 0, 0);
}

static void s_pages_first(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_PAGES, 0, "\0\0\0\0\0\0\0\0", 8, 8);
}

static void s_commit_first(struct bytes *b)
{
	uint8_t root[16] = {0};

	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_COMMIT, 0, root, sizeof(root), sizeof(root));
}

static void s_cancel_first(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_CANCEL, 0, "", 0, 0);
}

/* What a peer says ends on a terminal. */
static void s_escape(struct bytes *b)
{
	static const char text[] = "\033]0;owned\007\033[2Jnow\nroot# rm \200\377";

	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
	add_frame(b, WIRE_FAIL, 0, text, sizeof(text) - 1, sizeof(text) - 1);
}

static const struct {
	void (*make)(struct bytes *b);
	const char *regex;
} sources[] = {
	{s_garbage, "does not speak godwit's migration protocol"},
	{s_newer,
	 "source speaks migration protocol 8 \\(down to 4\\), this godwit 1 \\(down to 1\\)"},
	{s_older, "source speaks migration protocol 0 \\(down to 0\\), this godwit 1 "},
	{s_half_header, "the source closed the connection"},
	{s_half_hello, "the source closed the connection"},
	{s_empty_hello, "HELLO is malformed or lacks a section"},
	{s_noise_hello, "HELLO"},
	{s_huge_hello, "a HELLO frame of 4294967295 bytes, 65536 are allowed"},
	{s_magic, "what is no frame"},
	{s_type, "a frame of unknown type 23"},
	{s_flags, "flags 0x1"},
	{s_sequence, "sent frame 1 where 0 was due"},
	{s_pages_first, "sent PAGES during handshake"},
	{s_commit_first, "sent COMMIT during handshake"},
	{s_cancel_first, "the source cancelled"},
	{s_escape, "the source says: "},
};
#define N_SOURCES ((int)(sizeof(sources) / sizeof(sources[0])))

START_TEST(bad_source)
{
	static struct bytes b;
	struct dest d;
	int fd;

	sources[_i].make(&b);
	dest_start(&d, "there", _i % 2 ? "unix:" : "tcp:127.0.0.1:0", NULL);
	fd = relay_connect(d.uri);
	set_timeouts(fd);
	need(send_all(fd, b.data, b.len), "%s", strerror(errno));
	shutdown(fd, SHUT_WR);
	receiver_refused(&d, sources[_i].regex);
	close(fd);
}
END_TEST

/*
 * Who connects and leaves without a word (a port scan; somebody who looks whether the address is
 * free) is no source: the real one that comes later is taken.
 */
START_TEST(strangers)
{
	struct linger reset = {.l_onoff = 1};
	struct scene s;

	scene_start(&s, _i ? "unix:" : "tcp:127.0.0.1:0");
	for (unsigned i = 0; i < 4; i++) {
		int fd = relay_connect(s.d.uri);

		if (i % 2)
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		/* Or in the middle of one. */
		if (i >= 2)
			need(send_all(fd, WIRE_MAGIC, sizeof(WIRE_MAGIC) - 1), "%s",
			     strerror(errno));
		close(fd);
	}
	scene_migrate(&s);
	scene_report(&s, 0, "");
	guest_ended(&s.g, 0, 10000);
	dest_owns(&s);
}
END_TEST

/* The first n bytes of a prelude, and no more; the receiver hangs up. */
static void say_little(const struct dest *d, size_t n)
{
	static struct bytes b;
	int fd = relay_connect(d->uri);
	char byte;

	b.len = 0;
	add_prelude(&b, WIRE_VERSION, WIRE_MIN_VERSION);
	set_timeouts(fd);
	need(send_all(fd, b.data, n), "%s", strerror(errno));
	need(recv(fd, &byte, 1, 0) <= 0, "it answers");
	close(fd);
}

/*
 * Who connects and then says nothing, or stops in the middle of his first word, keeps a receiver
 * from the real source for a few seconds only.
 */
START_TEST(silent)
{
	struct scene s;
	uint64_t start;

	scene_start(&s, _i ? "unix:" : "tcp:127.0.0.1:0");
	start = harness_now_ms();
	say_little(&s.d, _i ? 10 : 0);
	need(harness_now_ms() - start < 12000, "it was listened to for %llu ms",
	     (unsigned long long)(harness_now_ms() - start));
	proc_expect_err(s.d.proc, "did not begin within 5 s: waiting for another", 10000);
	/* One who is there before the real one does not keep that from coming either. */
	if (_i) {
		int fd = relay_connect(s.d.uri);

		scene_migrate(&s);
		scene_report(&s, 0, "");
		close(fd);
	} else {
		scene_migrate(&s);
		scene_report(&s, 0, "");
	}
	guest_ended(&s.g, 0, 10000);
	dest_owns(&s);
}
END_TEST

/* Even one of another version is told ours, so that both users learn what to do. */
START_TEST(versions_told)
{
	static struct bytes b;
	struct wire_prelude p;
	struct dest d;
	int fd;

	s_newer(&b);
	dest_start(&d, "there", "unix:", NULL);
	fd = relay_connect(d.uri);
	set_timeouts(fd);
	need(send_all(fd, b.data, b.len), "%s", strerror(errno));
	need(recv(fd, &p, sizeof(p), MSG_WAITALL) == sizeof(p), "no prelude came back");
	need(p.version == WIRE_VERSION && p.min_version == WIRE_MIN_VERSION && p.session == SESSION,
	     "version %u down to %u", p.version, p.min_version);
	receiver_refused(&d, "migration protocol");
	close(fd);
}
END_TEST

/* ---- destinations that are none ---- */

static void d_newer(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION + 1, WIRE_VERSION + 1);
}

/* Answers another session: it cannot know ours. */
static void d_session(struct bytes *b)
{
	add_prelude(b, WIRE_VERSION, WIRE_MIN_VERSION);
}

static const struct {
	void (*make)(struct bytes *b);
	bool session; /* the prelude is to be the real session's */
	const char *error;
} dests[] = {
	{s_garbage, false, "does not speak godwit's migration protocol"},
	{s_nothing, false, "the destination closed the connection"},
	{s_half_prelude, false, "the destination closed the connection"},
	{d_newer, false, "destination speaks migration protocol 2 \\(down to 2\\), this godwit 1 "},
	{d_session, false, "answers another migration"},
	{s_half_header, true, "the destination closed the connection"},
	{s_huge_hello, true, "a HELLO frame of 4294967295 bytes, 65536 are allowed"},
	{s_magic, true, "what is no frame"},
	{s_type, true, "a frame of unknown type 23"},
	{s_sequence, true, "sent frame 1 where 0 was due"},
	{s_empty_hello, true, "answers HELLO with HELLO"},
	{s_commit_first, true, "answers HELLO with COMMIT"},
	{s_cancel_first, true, "the destination cancelled"},
	{s_escape, true, "the destination says: "},
};
#define N_DESTS ((int)(sizeof(dests) / sizeof(dests[0])))

struct fake {
	struct bytes b;
	bool session;
	char uri[256];
	int listen_fd, fd;
	size_t got;
	struct wire_prelude prelude;
	bool sent, stays;
};

static void fake_read(void *arg, int fd, short revents)
{
	struct fake *f = arg;
	uint8_t buf[65536];
	ssize_t n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);

	(void)revents;
	if (n <= 0) {
		if (n < 0 && errno == EAGAIN)
			return;
		harness_watch(fd, 0, NULL, NULL);
		close(fd);
		return;
	}
	if (f->got < sizeof(f->prelude))
		memcpy((uint8_t *)&f->prelude + f->got, buf,
		       MIN((size_t)n, sizeof(f->prelude) - f->got));
	f->got += (size_t)n;
	if (f->sent || f->got < sizeof(f->prelude))
		return;
	f->sent = true;
	if (f->session && f->b.len >= sizeof(f->prelude))
		memcpy(f->b.data + offsetof(struct wire_prelude, session), &f->prelude.session, 8);
	send_all(fd, f->b.data, f->b.len);
	if (!f->stays)
		shutdown(fd, SHUT_WR);
}

static void fake_accept(void *arg, int fd, short revents)
{
	struct fake *f = arg;

	(void)revents;
	f->fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	need(f->fd >= 0, "%s", strerror(errno));
	harness_watch(f->fd, POLLIN, fake_read, f);
}

START_TEST(bad_dest)
{
	static struct fake f;
	struct scene s;

	dests[_i].make(&f.b);
	f.session = dests[_i].session;
	scene_start(&s, "unix:");
	f.listen_fd = relay_listen(_i % 2 ? "unix:" : "tcp:127.0.0.1:0", f.uri);
	harness_watch(f.listen_fd, POLLIN, fake_accept, &f);
	s.migrate = move_start(&s.g, f.uri, NULL);
	scene_report(&s, 1, dests[_i].error);
	need(s.m.rounds == 0 && s.m.downtime_ms <= 0, "it had begun");
	need_plain(s.migrate);
	need_plain(s.g.proc);
	source_owns(&s);
}
END_TEST

/* It answers HELLO with nothing but that it lives, for as long as one waits. */
START_TEST(only_lives)
{
	static struct fake f = {.session = true, .stays = true};
	uint64_t end = harness_now_ms() + (uint64_t)harness_slow(60000);
	struct scene s;

	add_prelude(&f.b, WIRE_VERSION, WIRE_MIN_VERSION);
	scene_start(&s, "unix:");
	f.listen_fd = relay_listen("unix:", f.uri);
	harness_watch(f.listen_fd, POLLIN, fake_accept, &f);
	s.migrate = move_start(&s.g, f.uri, "--timeout=2s", NULL);
	for (uint32_t seq = 0; proc_running(s.migrate); harness_pump(200)) {
		need(harness_now_ms() < end, "it is waited for without end");
		if (!f.sent)
			continue;
		f.b.len = 0;
		add_frame(&f.b, WIRE_IDLE, seq++, NULL, 0, 0);
		send_all(f.fd, f.b.data, f.b.len);
	}
	scene_report(&s, 1, "does not answer in the time allowed");
	source_owns(&s);
}
END_TEST

/* ---- a recorded migration ---- */

/* Records one, and leaves its guest gone. */
static struct relay *recorded(void)
{
	struct scene s;

	scene_start_with(&s, "unix:", "ws=1M rate=4M", NULL);
	s.relay->record = true;
	scene_migrate(&s);
	scene_report(&s, 0, "");
	need(s.relay->n_takes > 8, "%s", s.relay->trace);
	dest_owns(&s);
	return s.relay;
}

/* Played unchanged it is a migration: what is changed below is what makes the difference. */
START_TEST(tape_is_good)
{
	struct relay *r = recorded();
	struct dest d;
	int fd;

	dest_start(&d, "again", "unix:", NULL);
	fd = relay_connect(d.uri);
	set_timeouts(fd);
	need(send_all(fd, r->tape.data, r->tape.len), "%s", strerror(errno));
	guest_intact(d.proc);
	close(fd);
}
END_TEST

/* Frames at a time when nothing of the kind is due; the worst are those after the proof. */
static const struct {
	unsigned after, type; /* the first one of the tape of this type, sent after one of that */
} early[] = {
	{WIRE_HELLO, WIRE_COMMIT}, {WIRE_HELLO, WIRE_PROOF},  {WIRE_PAGES, WIRE_COMMIT},
	{WIRE_STATE, WIRE_PAGES},  {WIRE_STATE, WIRE_COMMIT}, {WIRE_STATE, WIRE_ROUND_END},
	{WIRE_PROOF, WIRE_PAGES},  {WIRE_PROOF, WIRE_STATE},  {WIRE_PROOF, WIRE_PROOF},
	{WIRE_PROOF, WIRE_HELLO},
};

static unsigned first_take(const struct relay *r, unsigned type)
{
	for (unsigned i = 0; i < r->n_takes; i++) {
		if (r->take[i].type == type)
			return i;
	}
	fail_test("no %s: %s", relay_type_name(type), r->trace);
}

START_TEST(too_early)
{
	static uint8_t copy[1 << 20];
	struct relay *r = recorded();

	for (unsigned i = 0; i < ARRAY_SIZE(early); i++) {
		unsigned after = first_take(r, early[i].after), n = first_take(r, early[i].type);
		struct relay_frame f = {
			.type = early[i].type, .bytes = copy, .len = r->take[n].len};
		struct dest d;
		int fd;

		need(f.len <= sizeof(copy), "a frame of %zu bytes", f.len);
		memcpy(copy, r->tape.data + r->take[n].at, f.len);
		/* The prelude has no number. */
		relay_header(&f)->seq = after;
		relay_fix(&f);
		dest_start(&d, "there", "unix:", NULL);
		fd = relay_connect(d.uri);
		set_timeouts(fd);
		need(send_all(fd, r->tape.data, r->take[after].at + r->take[after].len) &&
			     send_all(fd, f.bytes, f.len),
		     "%s", strerror(errno));
		shutdown(fd, SHUT_WR);
		receiver_refused(&d, harness_path("the source sent %s during",
						  relay_type_name(early[i].type)));
		close(fd);
	}
}
END_TEST

static uint64_t rng_state;

static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static uint32_t nasty(void)
{
	static const uint32_t values[] = {0,	      1,	  2,	      0x7f,	  0x80,
					  0xff,	      0x100,	  0x7fff,     0xffff,	  0x10000,
					  0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 4096};

	return values[rng() % (sizeof(values) / sizeof(values[0]))];
}

/* Changes one frame; its check is right afterwards. False: the stream ends here. */
static bool mutate(struct relay_frame *f)
{
	struct wire_frame *h = relay_header(f);
	size_t len = relay_payload_len(f);
	uint32_t v = nasty();

	switch (rng() % 6) {
	case 0: /* bits of the payload */
		for (unsigned i = 0; i <= rng() % 4 && len; i++)
			relay_payload(f)[rng() % len] ^= (uint8_t)(1U << (rng() % 8));
		break;
	case 1: /* a number of the payload, most likely near its start */
	case 2:
		if (len >= 8) {
			size_t most = rng() % 2 ? len : MIN(len, 400U);

			memcpy(relay_payload(f) + rng() % (most - 3), &v, sizeof(v));
		}
		break;
	case 3: /* less payload than there was */
		if (len) {
			h->length = (uint32_t)(rng() % len);
			f->len = sizeof(*h) + h->length;
		}
		break;
	case 4: /* another type */
		h->type = (uint16_t)(rng() % (WIRE_N_TYPES + 1));
		break;
	default: /* cut off in it */
		f->len = 1 + rng() % (f->len - 1);
		return false;
	}
	relay_fix(f);
	return true;
}

/* The hashes of the recorded migration: by its seed. */
static struct hashes tape_hashes(const struct relay *r)
{
	static struct hello hello;
	struct errmsg err = {""};
	struct hashes h;
	unsigned i = 0;

	while (r->take[i].type != WIRE_HELLO)
		i++;
	need(!hello_load(&hello, r->tape.data + r->take[i].at + sizeof(struct wire_frame),
			 r->take[i].len - sizeof(struct wire_frame), &err),
	     "%s", err.text);
	need(!hashes_init(&h, 1, hello.hash_seed), "out of memory");
	h.npages = 0;
	return h;
}

/*
 * The proof covers the state: for a changed one to get as far as being loaded, its digest, the
 * proof's last, is made to fit.
 */
static void forge_proof(struct hashes *h, const struct relay_frame *state,
			struct relay_frame *proof)
{
	struct page_hash root, *digest;
	size_t n;

	digest = hashes_proof(h, state->bytes + sizeof(struct wire_frame),
			      state->len - sizeof(struct wire_frame), &n, &root);
	need(digest && n == 1, "out of memory");
	memcpy(proof->bytes + proof->len - sizeof(*digest), digest, sizeof(*digest));
	free(digest);
	relay_fix(proof);
}

/* Plays the tape up to PROOF, with one frame changed. */
static void play(const struct relay *r, struct hashes *h, int fd, unsigned victim)
{
	static uint8_t copy[1 << 20], proof[1 << 16];
	struct relay_frame state = {.type = 0};

	for (unsigned i = 0; i < r->n_takes && r->take[i].type != WIRE_COMMIT; i++) {
		struct relay_frame f = {.dir = TO_DEST,
					.type = r->take[i].type,
					.bytes = r->tape.data + r->take[i].at,
					.len = r->take[i].len};
		bool go = true;

		if (i == victim && f.type != RELAY_PRELUDE) {
			need(f.len <= sizeof(copy), "a frame of %zu bytes", f.len);
			memcpy(copy, f.bytes, f.len);
			f.bytes = copy;
			go = mutate(&f);
			if (f.type == WIRE_STATE && f.len >= sizeof(struct wire_frame))
				state = f;
		}
		if (f.type == WIRE_PROOF && state.type) {
			need(f.len <= sizeof(proof), "a proof of %zu bytes", f.len);
			memcpy(proof, f.bytes, f.len);
			f.bytes = proof;
			forge_proof(h, &state, &f);
		}
		if (!send_all(fd, f.bytes, f.len) || !go)
			return;
	}
}

/*
 * Each round another seed. Without COMMIT nothing may ever run, so the receiver must end with 1,
 * whether or not it noticed.
 */
START_TEST(mutated)
{
	const unsigned rounds = harness_env("GODWIT_TEST_MUTATIONS", 60);
	struct relay *r = recorded();
	struct hashes h = tape_hashes(r);
	unsigned pages = 0;

	/* Not to change PAGES nearly always: most frames are. */
	while (r->take[pages].type != WIRE_PAGES)
		pages++;
	for (unsigned i = 0; i < rounds; i++) {
		struct dest d;
		unsigned victim;
		int fd;

		rng_state = 0x9e3779b97f4a7c15ULL * (i + 1);
		do
			victim = (unsigned)(rng() % r->n_takes);
		while (r->take[victim].type == WIRE_PAGES && victim != pages && rng() % 8);
		dest_start(&d, "there", "unix:", NULL);
		fd = relay_connect(d.uri);
		set_timeouts(fd);
		play(r, &h, fd, victim);
		shutdown(fd, SHUT_WR);
		if (proc_wait(d.proc, 20000) != 1)
			fail_test("seed %u, %s changed: exit code %d", i,
				  relay_type_name(r->take[victim].type), d.proc->status);
		need(!proc_next(d.proc, 0), "seed %u: the receiver let something run", i);
		need(strstr(d.proc->err.buf, "no guest came to run here: "), "seed %u: '%s'", i,
		     d.proc->err.buf);
		need_plain(d.proc);
		close(fd);
	}
}
END_TEST

/* ---- HELLO ---- */

/* The body of a section of HELLO. */
static uint8_t *hello_section(struct relay_frame *f, const char *tag, size_t *len)
{
	struct sb_section sec;
	struct sbuf s, body;

	sb_init_load(&s, relay_payload(f), relay_payload_len(f));
	while (sb_section_next(&s, &sec, &body) > 0) {
		if (strcmp(sec.tag, tag) == 0) {
			*len = body.len;
			return body.data;
		}
	}
	fail_test("HELLO has no section %s", tag);
}

/* A string of config: its length, then so many bytes. Gives what follows, the bytes in *text. */
static uint8_t *string(uint8_t *at, uint8_t **text, uint32_t *len)
{
	memcpy(len, at, sizeof(*len));
	*text = at + sizeof(*len);
	return *text + *len;
}

static void unknown_msr(void *arg, struct relay_frame *f)
{
	static const uint32_t none = 0x7ffffff1;
	size_t len;
	uint8_t *p = hello_section(f, "msrs", &len);

	(void)arg;
	need(len >= 8, "no MSRs");
	memcpy(p + len - sizeof(none), &none, sizeof(none));
}

static void too_many_msrs(void *arg, struct relay_frame *f)
{
	static const uint32_t n = VCPU_MSRS_MAX + 1;
	size_t len;

	(void)arg;
	memcpy(hello_section(f, "msrs", &len), &n, sizeof(n));
}

static void huge_ram(void *arg, struct relay_frame *f)
{
	static const uint64_t size = 1ULL << 50;
	size_t len;
	uint32_t n;
	uint8_t *name, *p = string(hello_section(f, "config", &len), &name, &n);

	(void)arg;
	memcpy(p, &size, sizeof(size));
}

static const struct {
	void (*edit)(void *arg, struct relay_frame *f);
	const char *error;
} hellos[] = {
	{unknown_msr, "refuses: the guest uses MSR 0x7ffffff1, which this host's KVM does not"},
	{too_many_msrs, "refuses: HELLO section msrs is malformed"},
	{huge_ram,
	 "refuses: 1 PiB of RAM, which is more than 16 times .* 'godwit receive -m 10995"},
};
#define N_HELLOS ((int)(sizeof(hellos) / sizeof(hellos[0])))

static bool kvm_ignores_msrs(void)
{
	FILE *f = fopen("/sys/module/kvm/parameters/ignore_msrs", "re");
	int c = f ? fgetc(f) : EOF;

	if (f)
		fclose(f);
	return c == 'Y' || c == '1';
}

/* What this host cannot hold is found before the guest is paused. */
START_TEST(hello_refused)
{
	struct scene s;

	if (hellos[_i].edit == unknown_msr && kvm_ignores_msrs())
		harness_skip("this KVM has every MSR (ignore_msrs)");
	scene_start(&s, "unix:");
	relay_act(s.relay, (struct relay_act){.dir = TO_DEST,
					      .type = WIRE_HELLO,
					      .what = RELAY_EDIT,
					      .edit = hellos[_i].edit,
					      .fix = true});
	scene_migrate(&s);
	scene_report(&s, 1, hellos[_i].error);
	need(s.m.rounds == 0 && s.m.downtime_ms <= 0, "it had begun: %s", json_dumps(s.m.json, 0));
	need(relay_seen(s.relay, TO_DEST, WIRE_PAGES) == 0, "%s", s.relay->trace);
	dest_refused(&s, "no guest came to run here: ");
	need_plain(s.d.proc);
	source_owns(&s);
}
END_TEST

#define KERNEL_WORDS "\033]0;owned\007"
#define CMDLINE_WORDS "\033[2J\r\xc2\x9b"

static void escapes(void *arg, struct relay_frame *f)
{
	size_t len;
	uint32_t n;
	uint8_t *text, *p = string(hello_section(f, "config", &len), &text, &n);

	(void)arg;
	/* ram_size and vcpus; kernel, initrd, cmdline */
	p = string(p + 12, &text, &n);
	need(n > sizeof(KERNEL_WORDS), "a path of %u bytes", n);
	memcpy(text, KERNEL_WORDS, sizeof(KERNEL_WORDS) - 1);
	p = string(p, &text, &n);
	string(p, &text, &n);
	need(n > sizeof(CMDLINE_WORDS), "a command line of %u bytes", n);
	memcpy(text, CMDLINE_WORDS, sizeof(CMDLINE_WORDS) - 1);
}

/* What a guest says of itself is shown to people as letters, and to programs as it is. */
START_TEST(words_of_a_guest)
{
	struct scene s;
	struct proc *p;
	json_t *status;

	scene_start(&s, "unix:");
	relay_act(s.relay, (struct relay_act){.dir = TO_DEST,
					      .type = WIRE_HELLO,
					      .what = RELAY_EDIT,
					      .edit = escapes,
					      .fix = true});
	scene_migrate(&s);
	scene_report(&s, 0, "");
	/* That kernel is not to be found, which is said. */
	proc_expect_err(s.d.proc, "warning: kernel \\?]0;owned\\?", 10000);
	need_plain(s.d.proc);
	for (int i = 0; i < 2; i++) {
		p = godwit_run(0, "status", i ? s.d.name : NULL, NULL);
		need(strstr(p->out.buf, "?]0;owned?") && strstr(p->out.buf, "?[2J??"), "'%s'",
		     p->out.buf);
		for (const char *c = p->out.buf; *c; c++)
			need(*c == '\n' || (*c >= ' ' && *c <= '~'), "byte %#x in '%s'",
			     (unsigned char)*c, p->out.buf);
	}
	status = json_of(godwit_run(0, "status", "--json", s.d.name, NULL)->out.buf);
	need(strncmp(json_text(status, "kernel"), KERNEL_WORDS, sizeof(KERNEL_WORDS) - 1) == 0 &&
		     strncmp(json_text(status, "cmdline"), CMDLINE_WORDS,
			     sizeof(CMDLINE_WORDS) - 1) == 0,
	     "%s", json_dumps(status, 0));
	guest_ended(&s.g, 0, 10000);
	dest_owns(&s);
}
END_TEST

/* ---- the control socket ---- */

static int control(const struct guest *g)
{
	return relay_connect(harness_path("unix:%s/%s.sock", getenv("GODWIT_RUNDIR"), g->name));
}

/* Sends it and reads up to the end or the first newline. */
static const char *ask(int fd, const void *data, size_t len, bool end)
{
	static char answer[8192];
	size_t n = 0;

	set_timeouts(fd);
	send_all(fd, data, len);
	if (end)
		shutdown(fd, SHUT_WR);
	while (n < sizeof(answer) - 1) {
		ssize_t got = recv(fd, answer + n, 1, 0);

		if (got <= 0 || answer[n] == '\n')
			break;
		n++;
	}
	answer[n] = '\0';
	return answer;
}

static void need_answer(const struct guest *g, const void *data, size_t len, bool end,
			const char *text)
{
	int fd = control(g);
	const char *answer = ask(fd, data, len, end);

	need(strstr(answer, "\"ok\":false") && strstr(answer, text), "'%s' does not say '%s'",
	     answer, text);
	close(fd);
}

START_TEST(control_socket)
{
	static char big[70000];
	struct scene s;
	int fds[40];

	scene_start(&s, "unix:");
	memset(big, 'a', sizeof(big));
	need_answer(&s.g, "garbage\n", 8, false, "not JSON");
	need_answer(&s.g, "\0\377\0\n", 4, false, "not JSON");
	need_answer(&s.g, "[1,2]\n", 6, false, "an object with a string");
	need_answer(&s.g, "{\"cmd\":7}\n", 10, false, "an object with a string");
	need_answer(&s.g, "{\"cmd\":\"dance\"}\n", 16, false, "no command");
	need_answer(&s.g, "{\"cmd\":\"pause\",\"x\":1}\n", 22, false, "request: ");
	need_answer(&s.g, "{\"cmd\":\"migrate\"}\n", 18, false, "request: ");
	need_answer(&s.g, "{\"cmd\":\"migrate\",\"uri\":\"x\"}\n", 28, false, "none of tcp:");
	need_answer(&s.g, big, sizeof(big), false, "a line is longer than 64 KiB");
	need_answer(&s.g, "{\"cmd\":\"stat", 12, true, "the last line does not end");
	/* Many, who say nothing; then they go. */
	for (unsigned i = 0; i < 40; i++)
		fds[i] = control(&s.g);
	need(strstr(ask(fds[39], "", 0, false), "too many connections"), "40 clients at once");
	for (unsigned i = 0; i < 40; i++)
		close(fds[i]);
	source_owns(&s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("hostile");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_loop_test(harness_case(s, "source", 60), bad_source, 0, N_SOURCES);
	tcase_add_loop_test(harness_case(s, "strangers", 60), strangers, 0, 2);
	tcase_add_loop_test(harness_case(s, "silent", 60), silent, 0, 2);
	tcase_add_test(harness_case(s, "versions", 60), versions_told);
	tcase_add_loop_test(harness_case(s, "dest", 60), bad_dest, 0, N_DESTS);
	tcase_add_test(harness_case(s, "only-lives", 120), only_lives);
	tcase_add_test(harness_case(s, "tape", 60), tape_is_good);
	tcase_add_test(harness_case(s, "early", 60), too_early);
	tcase_add_test(harness_case(s, "mutated", 300), mutated);
	tcase_add_loop_test(harness_case(s, "hello", 60), hello_refused, 0, N_HELLOS);
	tcase_add_test(harness_case(s, "words", 60), words_of_a_guest);
	tcase_add_test(harness_case(s, "control", 60), control_socket);
	return harness_main(s);
}
