/* SPDX-License-Identifier: MIT */
#include "source.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zstd.h>

#include "../delta.h"

#define SESSION 0x5e55107eULL
#define DESCS_MAX 12U
#define PAYLOAD_MAX 2048U
#define CROWD_MAX 200U
#define SEND_LIMIT (10 * NS_PER_SEC)

/* Around the border of two chunks, and at both ends. */
uint64_t source_page(unsigned slot)
{
	if (slot < 16)
		return slot;
	if (slot < 24)
		return HASHES_CHUNK - 4 + (slot - 16);
	return SOURCE_NPAGES - SOURCE_SLOTS + slot;
}

void source_init(struct source *s, const struct source_way *way, unsigned variant)
{
	memset(s, 0, sizeof(*s));
	s->way = way;
	s->variant = variant;
	s->honest = true;
	for (unsigned i = 0; i < SOURCE_CONNS; i++)
		s->conn[i].fd = -1;
	fuzz_need(hashes_init(&s->hashes, SOURCE_NPAGES, GUEST_SEED) == 0, "no memory");
}

static void hang_up(struct source_conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	if (c->tls)
		tls_close(c->tls);
	c->fd = -1;
	c->tls = NULL;
}

static void send_crowd_home(struct source *s)
{
	while (s->n_crowd)
		close(s->crowd[--s->n_crowd]);
}

void source_free(struct source *s)
{
	for (unsigned i = 0; i < SOURCE_CONNS; i++)
		hang_up(&s->conn[i]);
	send_crowd_home(s);
	hashes_free(&s->hashes);
	if (s->state.data)
		sb_free(&s->state);
}

/* ---- what comes back ---- */

static void on_frame(struct source *s, const struct wire_frame *f, const uint8_t *payload)
{
	switch (f->type) {
	case WIRE_REFUSE:
	case WIRE_FAIL:
		/* Bytes of our own may be quoted in it: who shows it cleans it (conn.h). */
		fuzz_need(f->length, "%s without a reason", wire_type_name(f->type));
		s->refused = true;
		break;
	case WIRE_READY:
		s->ready = true;
		fuzz_need(s->phase >= SOURCE_COMMIT, "READY without a proof");
		fuzz_need(!s->honest || (f->length == sizeof(s->root) &&
					 !memcmp(payload, &s->root, sizeof(s->root))),
			  "READY for other memory than ours");
		break;
	case WIRE_RUNNING:
		fuzz_need(s->ready && s->phase == SOURCE_DONE, "it runs, and nobody said COMMIT");
		s->running = true;
		break;
	case WIRE_HELLO_OK:
	case WIRE_PONG:
	case WIRE_ROUND_ACK:
	case WIRE_IDLE:
	case WIRE_HAVE:
	case WIRE_HELD:
	case WIRE_TABLE:
		break;
	default:
		fuzz_bug("a destination says %s", wire_type_name(f->type));
	}
}

/* Whole frames of what has come; a destination of ours makes no mistake in them. */
static void take_frames(struct source *s, struct source_conn *c)
{
	size_t at = 0;

	if (c->deaf)
		c->n_in = 0;
	if (!c->began && c->n_in >= sizeof(struct wire_prelude)) {
		fuzz_need(!memcmp(c->in, WIRE_MAGIC, 8), "an answer without prelude");
		c->began = true;
		at = sizeof(struct wire_prelude);
	}
	while (c->began && c->n_in - at >= sizeof(struct wire_frame)) {
		struct wire_frame f;

		memcpy(&f, c->in + at, sizeof(f));
		fuzz_need(f.magic == WIRE_FRAME_MAGIC && f.seq == c->seq_in && !f.flags &&
				  f.length <= wire_max_length(f.type),
			  "a frame that is none came back: type %u, number %u for %u", f.type,
			  f.seq, c->seq_in);
		fuzz_need(sizeof(f) + f.length <= sizeof(c->in), "a frame of %u bytes", f.length);
		if (c->n_in - at < sizeof(f) + f.length)
			break;
		fuzz_need(wire_check_sum(&f, c->in + at + sizeof(f), f.length) == f.check,
			  "a wrong check in %s", wire_type_name(f.type));
		on_frame(s, &f, c->in + at + sizeof(f));
		c->seq_in++;
		at += sizeof(f) + f.length;
	}
	memmove(c->in, c->in + at, c->n_in - at);
	c->n_in -= at;
}

/* What has come on all connections. */
static void listen_to(struct source *s, int timeout_ms)
{
	struct pollfd p[SOURCE_CONNS];

	for (unsigned i = 0; i < SOURCE_CONNS; i++)
		p[i] = (struct pollfd){.fd = s->conn[i].ended ? -1 : s->conn[i].fd,
				       .events = POLLIN};
	if (poll(p, SOURCE_CONNS, timeout_ms) <= 0)
		return;
	for (unsigned i = 0; i < SOURCE_CONNS; i++) {
		struct source_conn *c = &s->conn[i];
		ssize_t n;

		if (p[i].fd < 0 || !p[i].revents)
			continue;
		n = recv(c->fd, c->in + c->n_in, sizeof(c->in) - c->n_in, MSG_DONTWAIT);
		if (n > 0)
			c->n_in += (size_t)n;
		else if (n == 0 || errno != EAGAIN)
			c->ended = true;
		take_frames(s, c);
	}
}

bool source_drain(struct source *s, uint64_t timeout_ns)
{
	uint64_t until = now_ns() + timeout_ns;

	for (;;) {
		bool open = false;

		for (unsigned i = 0; i < SOURCE_CONNS; i++)
			open |= s->conn[i].fd >= 0 && !s->conn[i].ended;
		if (!open || now_ns() >= until)
			return !open;
		listen_to(s, 5);
	}
}

/* ---- what goes out ---- */

static void send_bytes(struct source *s, const void *bytes, size_t len)
{
	struct source_conn *c = &s->conn[s->at];
	uint64_t until = now_ns() + SEND_LIMIT;
	const uint8_t *at = bytes;

	while (len && c->fd >= 0 && !c->ended) {
		ssize_t n = send(c->fd, at, len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0) {
			at += n;
			len -= (size_t)n;
		} else if (n < 0 && errno != EAGAIN) {
			return;
		} else {
			fuzz_need(now_ns() < until, "the destination takes nothing any more");
			listen_to(s, 1);
		}
	}
}

/* With a check over the first `checked` bytes. lie: a byte, of which each bit spoils one thing. */
static void send_frame_checked(struct source *s, unsigned type, const void *payload, uint32_t len,
			       uint32_t checked, uint8_t lie)
{
	struct wire_frame f = {
		.magic = WIRE_FRAME_MAGIC ^ (lie & 1),
		.type = (uint16_t)type,
		.flags = lie >> 1 & 1,
		.length = len + (lie >> 2 & 1),
		.seq = s->conn[s->at].seq++ + (lie >> 3 & 1),
	};

	f.check = wire_check_sum(&f, payload, checked) ^ (lie >> 4 & 1);
	if (lie & 0x1f)
		s->honest = false;
	send_bytes(s, &f, sizeof(f));
	send_bytes(s, payload, len);
}

static void send_frame(struct source *s, unsigned type, const void *payload, uint32_t len)
{
	send_frame_checked(s, type, payload, len, len, 0);
}

/* ---- connections ---- */

static void send_prelude(struct source *s, uint64_t session, uint8_t lie)
{
	struct wire_prelude p = {
		.version = (uint16_t)(WIRE_VERSION + (lie >> 1 & 3)),
		.min_version = (uint16_t)(WIRE_MIN_VERSION + (lie >> 3 & 3)),
		.zero = lie >> 5 & 1,
		.session = session,
	};

	memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
	p.magic[0] ^= lie & 1;
	if (lie)
		s->honest = false;
	send_bytes(s, &p, sizeof(p));
}

/* -1: nobody is there any more. */
static int dial_up(const struct source_way *way)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons(way->port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(way->port ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ret;

	fuzz_need(fd >= 0, "no socket: %s", strerror(errno));
	snprintf(un.sun_path, sizeof(un.sun_path), "%s", way->path);
	ret = way->port ? connect(fd, (void *)&in, sizeof(in))
			: connect(fd, (void *)&un, sizeof(un));
	if (ret == 0)
		return fd;
	close(fd);
	return -1;
}

/* How a connection begins. */
enum manner {
	RIGHT,	   /* protected where that is asked for */
	PLAIN,	   /* in any case */
	JUNK,	   /* plain, with whatever else comes next */
	OTHER_KEY, /* protected, by one who has another key */
};

static bool protect(struct source_conn *c, struct tls *tls)
{
	struct errmsg why = {""};
	int fd = c->fd;

	c->fd = -1;
	return tls_shake(&c->tls, tls, fd, -1, now_ns() + SEND_LIMIT, &why) == 0 &&
	       tls_start(c->tls, &c->fd, &why) == 0;
}

/* True when a prelude is due. */
static bool call(struct source *s, enum manner manner)
{
	struct source_conn *c = &s->conn[s->at];
	const struct source_way *way = s->way;

	hang_up(c);
	memset(c, 0, sizeof(*c));
	c->fd = dial_up(way);
	c->deaf = manner == JUNK;
	if (manner != RIGHT)
		s->honest = false;
	if (c->fd < 0)
		return false;
	if (!way->tls || manner == PLAIN || manner == JUNK)
		return !c->deaf;
	return protect(c, manner == OTHER_KEY ? way->other_key : way->tls);
}

/* Many who say who they are, and no more, or less than that, or nothing. */
static void come_in_a_crowd(struct source *s, unsigned n, uint8_t how)
{
	struct wire_prelude p = {
		.version = WIRE_VERSION,
		.min_version = WIRE_MIN_VERSION,
		.session = SESSION ^ (how & 1),
	};

	memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
	s->honest = false;
	/* TCP has those who find a full queue try again after a second. */
	if (s->way->port)
		return;
	for (unsigned i = 0; i < n && s->crowded < CROWD_MAX; i++, s->crowded++) {
		int fd = dial_up(s->way);

		if (fd < 0)
			return;
		if (!(how & 8))
			(void)!send(fd, &p, how & 4 ? sizeof(p) / 2 : sizeof(p), MSG_NOSIGNAL);
		/* Whoever is not let in is given time to read why: he does not take it. */
		if (how & 15 || s->n_crowd == SOURCE_CROWD)
			close(fd);
		else
			s->crowd[s->n_crowd++] = fd;
	}
}

/* Another connection than the first. */
static void join(struct source *s, unsigned which, uint8_t lie)
{
	unsigned was = s->at;

	s->at = which;
	if (call(s, lie >> 6 & 1 ? PLAIN : RIGHT)) {
		send_prelude(s, SESSION ^ (lie & 1), lie & 0x3e);
		send_frame_checked(s, lie & 0x80 ? WIRE_PING : WIRE_JOIN, NULL, 0, 0, 0);
	}
	if (lie)
		s->honest = false;
	s->at = was;
}

/* Leaves, once the other side has read what was sent, and comes back. */
static void come_back(struct source *s, uint8_t lie)
{
	for (unsigned i = 0; i < SOURCE_CONNS; i++) {
		if (s->conn[i].fd >= 0)
			shutdown(s->conn[i].fd, SHUT_WR);
	}
	/* One that does not let go is given up, as any source does. */
	if (!source_drain(s, s->honest ? SEND_LIMIT : 20 * NS_PER_MS) || !s->way->keeps)
		s->honest = false;
	for (unsigned i = 0; i < SOURCE_CONNS; i++)
		hang_up(&s->conn[i]);
	send_crowd_home(s);
	s->at = 0;
	if (s->phase >= SOURCE_DONE)
		return;
	if (s->refused)
		s->honest = false;
	s->phase = SOURCE_HELLO;
	s->round = 0;
	s->round_open = s->ready = false;
	memset(s->touched_by, 0, sizeof(s->touched_by));
	if (call(s, lie >> 6))
		send_prelude(s, SESSION ^ (lie & 1), lie & 0x3e);
	if (lie)
		s->honest = false;
}

static void need_phase(struct source *s, enum source_phase phase)
{
	if (s->phase != phase || s->at != 0)
		s->honest = false;
}

/* ---- pages ---- */

struct building {
	struct wire_batch head;
	struct wire_desc desc[DESCS_MAX];
	uint8_t content[DESCS_MAX * PAGE_SIZE];
	size_t n;
	unsigned seen; /* slots, a bit each */
};

/* Is it this connection alone that deals with the page in this round, and once in a batch? */
static void touch(struct source *s, struct building *b, unsigned slot)
{
	if ((s->touched_by[slot] && s->touched_by[slot] != 1 + s->at) || b->seen >> slot & 1)
		s->honest = false;
	s->touched_by[slot] = 1 + s->at;
	b->seen |= 1U << slot;
}

static void set_page(struct source *s, unsigned slot, const void *page)
{
	memmove(s->content[slot], page, PAGE_SIZE);
	hashes_set(&s->hashes, source_page(slot), hash_page(&s->hashes, page));
}

static void put(struct building *b, const void *bytes, size_t len)
{
	memcpy(b->content + b->n, bytes, len);
	b->n += len;
}

static void desc_data(struct source *s, struct building *b, unsigned slot, struct fuzz_in *in)
{
	uint8_t page[PAGE_SIZE];

	memset(page, in_u8(in), sizeof(page));
	in_bytes(in, page + PAGE_SIZE / 2, in_u8(in) % 16);
	touch(s, b, slot);
	set_page(s, slot, page);
	put(b, page, sizeof(page));
	b->head.n_data++;
	b->desc[b->head.n_descs++] = (struct wire_desc){
		.index = source_page(slot),
		.count = 1,
		.kind = WIRE_PAGE_DATA,
		.hash = hash_page(&s->hashes, page),
	};
}

/* Some blocks are others now. */
static void desc_delta(struct source *s, struct building *b, unsigned slot, struct fuzz_in *in)
{
	uint8_t page[PAGE_SIZE], delta[PAGE_SIZE];
	struct delta_hashes had;
	unsigned n = in_u8(in) % 100;
	uint32_t len;

	memcpy(page, s->content[slot], sizeof(page));
	delta_hash(page, GUEST_SEED, &had);
	for (unsigned i = 0; i < n; i++)
		page[(i * 5 % DELTA_BLOCKS) * DELTA_BLOCK] ^= (uint8_t)(i + 1);
	memcpy(delta, page, sizeof(delta));
	len = delta_make(delta, GUEST_SEED, &had);
	if (len == 0)
		return;
	touch(s, b, slot);
	set_page(s, slot, page);
	put(b, delta, len);
	b->head.delta += len;
	b->desc[b->head.n_descs++] = (struct wire_desc){
		.index = source_page(slot),
		.count = len,
		.kind = WIRE_PAGE_DELTA,
		.hash = hash_page(&s->hashes, page),
	};
}

static void desc_copy(struct source *s, struct building *b, unsigned slot, struct fuzz_in *in)
{
	unsigned from = in_u8(in) % SOURCE_SLOTS;

	/* Nobody else may be at either of them, and what it is a copy of came before. */
	touch(s, b, slot);
	if (from != slot)
		touch(s, b, from);
	set_page(s, slot, s->content[from]);
	b->desc[b->head.n_descs++] = (struct wire_desc){
		.index = source_page(slot),
		.count = (uint32_t)source_page(from),
		.kind = WIRE_PAGE_COPY,
		.hash = s->hashes.table[source_page(slot)],
	};
}

static void desc_zero(struct source *s, struct building *b, unsigned slot, struct fuzz_in *in,
		      enum wire_page_kind kind)
{
	static const uint8_t zeros[PAGE_SIZE];
	uint64_t first = source_page(slot);
	uint32_t n = 1 + in_u8(in) % 32;

	if (first + n > SOURCE_NPAGES)
		s->honest = false;
	for (unsigned i = 0; i < SOURCE_SLOTS; i++) {
		if (source_page(i) < first || source_page(i) >= first + n)
			continue;
		touch(s, b, i);
		set_page(s, i, zeros);
	}
	b->desc[b->head.n_descs++] = (struct wire_desc){.index = first, .count = n, .kind = kind};
}

static void desc_lie(struct source *s, struct building *b, struct fuzz_in *in)
{
	struct wire_desc d = {0};

	/* One after the other: the order within an initializer is the compiler's. */
	d.index = in_u16(in);
	d.count = in_u16(in);
	d.kind = in_u8(in) % 8;
	d.hash.low = in_u8(in);
	if (in_u8(in) & 1)
		d.index = in_u64(in);
	if (in_u8(in) & 1)
		d.count = in_u32(in);
	s->honest = false;
	b->desc[b->head.n_descs++] = d;
}

static void add_desc(struct source *s, struct building *b, struct fuzz_in *in)
{
	unsigned kind = in_u8(in) % 8, slot = in_u8(in) % SOURCE_SLOTS;

	switch (kind) {
	case 2:
		desc_zero(s, b, slot, in, WIRE_PAGE_ZERO);
		break;
	case 3:
		desc_zero(s, b, slot, in, WIRE_PAGE_HOLE);
		break;
	case 4:
		desc_copy(s, b, slot, in);
		break;
	case 5:
	case 6:
		desc_delta(s, b, slot, in);
		break;
	case 7:
		desc_lie(s, b, in);
		break;
	default:
		desc_data(s, b, slot, in);
	}
}

/* As a source whose network is slow sends it. */
static void pack(struct building *b)
{
	uint8_t packed[sizeof(b->content)];
	size_t n = b->n ? ZSTD_compress(packed, b->n, b->content, b->n, 1) : 0;

	if (n == 0 || ZSTD_isError(n) || n >= b->n)
		return;
	memcpy(b->content, packed, n);
	b->head.packed = (uint32_t)n;
	b->n = n;
}

static void send_pages(struct source *s, struct fuzz_in *in)
{
	static _Thread_local struct building b;
	unsigned n = in_u8(in) % (DESCS_MAX + 1);
	uint8_t how = in_u8(in), frame[sizeof(b)];
	size_t descs;

	b.head = (struct wire_batch){0};
	b.n = 0;
	b.seen = 0;
	for (unsigned i = 0; i < n; i++)
		add_desc(s, &b, in);
	if (how & 1)
		pack(&b);
	if (how & 0xfe || b.head.n_descs == 0 || s->phase != SOURCE_PAGES)
		s->honest = false;
	if (how & 2)
		b.head.n_descs = in_u8(in);
	if (how & 4)
		b.head.n_data += in_u8(in);
	if (how & 8)
		b.head.delta += in_u16(in);
	if (how & 16)
		b.head.packed ^= in_u16(in);
	if (how & 32 && b.n) {
		size_t at = in_u16(in) % b.n;

		b.content[at] ^= 1 + in_u8(in) % 255;
	}
	if (how & 64 && n)
		b.desc[in_u8(in) % n].hash.low ^= 1;
	if (how & 128)
		b.n = b.n * in_u8(in) / 256;
	n = MIN(b.head.n_descs, DESCS_MAX);
	descs = sizeof(b.head) + n * sizeof(b.desc[0]);
	memcpy(frame, &b.head, sizeof(b.head));
	memcpy(frame + sizeof(b.head), b.desc, n * sizeof(b.desc[0]));
	memcpy(frame + descs, b.content, b.n);
	s->round_open = true;
	send_frame_checked(s, WIRE_PAGES, frame, (uint32_t)(descs + b.n), (uint32_t)descs, 0);
}

/* ---- the other frames ---- */

static void send_hello(struct source *s, struct fuzz_in *in)
{
	struct sbuf hello;

	need_phase(s, SOURCE_HELLO);
	if (sections_edit(guest_hello(s->variant), in, &hello))
		s->honest = false;
	send_frame(s, WIRE_HELLO, hello.data, (uint32_t)hello.len);
	sb_free(&hello);
	s->phase = MAX(s->phase, SOURCE_PAGES);
	/* A receiver waits for as many as HELLO speaks of. */
	if (s->variant && s->conn[1].fd < 0)
		join(s, 1, 0);
}

static void end_round(struct source *s, uint8_t lie)
{
	uint32_t round = s->round + 1 + (lie & 3);
	unsigned was = s->at;

	for (s->at = SOURCE_CONNS; s->at-- > 0;) {
		if (s->conn[s->at].fd >= 0 && !(lie >> (4 + s->at) & 1))
			send_frame(s, WIRE_ROUND_END, &round, sizeof(round) - (lie >> 2 & 1));
	}
	s->at = was;
	if (lie || s->phase != SOURCE_PAGES)
		s->honest = false;
	s->round = round;
	s->round_open = false;
	memset(s->touched_by, 0, sizeof(s->touched_by));
}

static void send_state(struct source *s, struct fuzz_in *in)
{
	need_phase(s, SOURCE_PAGES);
	if (s->round_open)
		end_round(s, 0);
	if (s->state.data)
		sb_free(&s->state);
	if (sections_edit(guest_state(s->variant), in, &s->state))
		s->honest = false;
	send_frame(s, WIRE_STATE, s->state.data, (uint32_t)s->state.len);
	s->phase = MAX(s->phase, SOURCE_PROOF);
}

static void send_proof(struct source *s, struct fuzz_in *in)
{
	uint8_t lie = in_u8(in);
	struct page_hash *proof;
	size_t n;

	need_phase(s, SOURCE_PROOF);
	proof = hashes_proof(&s->hashes, s->state.data, s->state.len, &n, &s->root);
	fuzz_need(proof, "no memory");
	if (lie & 1)
		proof[in_u8(in) % n].low ^= 1;
	if (lie & 2)
		n--;
	if (lie & 3)
		s->honest = false;
	/* First, for the answer may come before we go on. */
	s->phase = MAX(s->phase, SOURCE_COMMIT);
	send_frame(s, WIRE_PROOF, proof, (uint32_t)(n * sizeof(*proof)));
	free(proof);
}

/* What an honest one waits for before it goes on. */
static void await(struct source *s, const bool *said)
{
	uint64_t until = now_ns() + SEND_LIMIT;

	while (s->honest && !*said && !s->refused && !s->conn[0].ended && now_ns() < until)
		listen_to(s, 5);
}

static void send_commit(struct source *s, struct fuzz_in *in)
{
	struct page_hash root = s->root;
	uint8_t lie = in_u8(in);

	need_phase(s, SOURCE_COMMIT);
	root.high ^= lie & 1;
	if (lie & 3)
		s->honest = false;
	await(s, &s->ready);
	if (!(lie & 3) && s->phase == SOURCE_COMMIT)
		s->phase = SOURCE_DONE;
	send_frame(s, WIRE_COMMIT, &root, sizeof(root) - (lie >> 1 & 1));
}

static void send_ask(struct source *s, struct fuzz_in *in)
{
	uint64_t index[16];
	uint8_t n = in_u8(in), lie = in_u8(in);

	for (unsigned i = 0; i < ARRAY_SIZE(index); i++)
		index[i] = source_page(i * 7 % SOURCE_SLOTS);
	if (lie & 1)
		index[0] = in_u64(in);
	if (lie & 3 || n % 16 == 0 || s->phase != SOURCE_PAGES)
		s->honest = false;
	send_frame(s, WIRE_ASK, index, n % 16 * (uint32_t)sizeof(index[0]) + (lie >> 1 & 1));
}

static void send_want(struct source *s, struct fuzz_in *in)
{
	uint32_t chunk[8];
	uint8_t n = in_u8(in), lie = in_u8(in);

	need_phase(s, SOURCE_PAGES);
	for (unsigned i = 0; i < ARRAY_SIZE(chunk); i++)
		chunk[i] = i;
	if (lie & 1)
		chunk[0] = in_u32(in);
	if (lie & 3 || n % 8 == 0)
		s->honest = false;
	send_frame(s, WIRE_WANT, chunk, n % 8 * (uint32_t)sizeof(chunk[0]) + (lie >> 1 & 1));
}

static void send_ping(struct source *s, struct fuzz_in *in)
{
	const uint64_t zero = 0;
	uint8_t lie = in_u8(in) & 1;

	need_phase(s, SOURCE_PAGES);
	if (lie)
		s->honest = false;
	send_frame(s, WIRE_PING, &zero, sizeof(zero) - lie);
}

/* Any type with any payload, and wrong in any way. */
static void send_any(struct source *s, struct fuzz_in *in, uint8_t lie)
{
	uint8_t payload[PAYLOAD_MAX];
	unsigned type = in_u8(in) % (WIRE_N_TYPES + 2);
	uint16_t len = in_u16(in) % PAYLOAD_MAX;

	in_bytes(in, payload, len);
	s->honest = false;
	send_frame_checked(s, type, payload, len, len, lie);
}

static void send_raw(struct source *s, struct fuzz_in *in)
{
	uint8_t bytes[256];
	uint8_t n = in_u8(in);

	in_bytes(in, bytes, n);
	s->honest = s->honest && n == 0;
	send_bytes(s, bytes, n);
}

static void act(struct source *s, struct fuzz_in *in)
{
	unsigned which;

	switch (in_u8(in) % 19) {
	case 0:
		send_hello(s, in);
		break;
	case 1 ... 3:
		send_pages(s, in);
		break;
	case 4:
		end_round(s, in_u8(in) & 0x77);
		break;
	case 5:
		send_ping(s, in);
		break;
	case 6:
		send_ask(s, in);
		break;
	case 7:
		send_want(s, in);
		break;
	case 8:
		send_state(s, in);
		break;
	case 9:
		send_proof(s, in);
		break;
	case 10:
		send_commit(s, in);
		break;
	case 11:
		send_frame(s, WIRE_IDLE, NULL, 0);
		break;
	case 12:
		send_any(s, in, 0);
		break;
	case 13:
		send_any(s, in, in_u8(in));
		break;
	case 14:
		send_raw(s, in);
		break;
	case 15:
		come_back(s, in_u8(in));
		break;
	case 16:
		which = 1 + in_u8(in) % (SOURCE_CONNS - 1);
		join(s, which, in_u8(in));
		s->honest = false;
		break;
	case 17:
		/* Only those that are there. */
		s->at = in_u8(in) % SOURCE_CONNS;
		if (s->conn[s->at].fd < 0)
			s->at = 0;
		break;
	default:
		which = in_u8(in);
		come_in_a_crowd(s, which, in_u8(in));
	}
}

void source_play(struct source *s, struct fuzz_in *in)
{
	uint8_t prelude = in_u8(in);

	if (call(s, prelude >> 6))
		send_prelude(s, SESSION, prelude & 0x3f);
	while (in_left(in) && s->phase != SOURCE_DONE) {
		act(s, in);
		listen_to(s, 0);
	}
	/* No honest one closes another connection before it knows: that ends the first, too. */
	if (s->phase == SOURCE_DONE)
		await(s, &s->running);
	for (unsigned i = 0; i < SOURCE_CONNS; i++) {
		if (s->conn[i].fd >= 0)
			shutdown(s->conn[i].fd, SHUT_WR);
	}
}
