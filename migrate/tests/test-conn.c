/* SPDX-License-Identifier: MIT */
/* One end of a connection, and a peer made here byte by byte at the other. */
#include "../conn_parts.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"

/* Nothing here takes as long unless it hangs. */
#define SOON (20 * NS_PER_SEC)

static struct conn c;
static int peer, cancel_fd;
static struct errmsg err;
static uint32_t peer_seq;

static void begin(void)
{
	struct timeval tv = {.tv_sec = 10};
	int fds[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	peer = fds[1];
	setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	cancel_fd = eventfd(0, EFD_CLOEXEC);
	err = (struct errmsg){""};
	peer_seq = 0;
	ck_assert_msg(conn_init(&c, fds[0], cancel_fd, "peer", &err) == 0, "%s", err.text);
}

static void end(void)
{
	conn_close(&c);
	close(peer);
	close(cancel_fd);
}

static void cancel(void)
{
	uint64_t one = 1;

	ck_assert_int_eq((int)write(cancel_fd, &one, sizeof(one)), (int)sizeof(one));
}

static struct wire_frame frame(unsigned type, const void *payload, size_t len)
{
	struct wire_frame f = {.magic = WIRE_FRAME_MAGIC,
			       .type = (uint16_t)type,
			       .length = (uint32_t)len,
			       .seq = peer_seq++};

	f.check = wire_check_sum(&f, payload, len);
	return f;
}

static void put(const void *data, size_t len)
{
	ck_assert_int_eq(write_exact(peer, data, len), 0);
}

static void put_frame(unsigned type, const void *payload, size_t len)
{
	struct wire_frame f = frame(type, payload, len);

	put(&f, sizeof(f));
	put(payload, len);
}

/* The next frame that the peer gets; its payload into buf. */
static struct wire_frame get_frame(void *buf, size_t cap)
{
	struct wire_frame f;

	ck_assert_int_eq(read_exact(peer, &f, sizeof(f)), 0);
	ck_assert_uint_eq(f.magic, WIRE_FRAME_MAGIC);
	ck_assert_uint_le(f.length, cap);
	ck_assert_int_eq(read_exact(peer, buf, f.length), 0);
	return f;
}

/* ---- what goes out ---- */

START_TEST(frames_go_out)
{
	uint8_t payload[300], got[512];
	bool taken = false;

	begin();
	memset(payload, 0xab, sizeof(payload));
	for (uint32_t seq = 0; seq < 5; seq++) {
		struct wire_frame f;

		ck_assert_msg(conn_send(&c, WIRE_HELLO, payload, sizeof(payload), &taken, &err) ==
				      0,
			      "%s", err.text);
		ck_assert(taken);
		f = get_frame(got, sizeof(got));
		ck_assert(f.type == WIRE_HELLO && f.flags == 0 && f.seq == seq);
		ck_assert_uint_eq(f.length, sizeof(payload));
		ck_assert_mem_eq(got, payload, sizeof(payload));
		ck_assert_uint_eq(wire_check_sum(&f, got, f.length), f.check);
	}
	ck_assert_int_eq(conn_send(&c, WIRE_RUNNING, NULL, 0, NULL, &err), 0);
	ck_assert_uint_eq(get_frame(got, sizeof(got)).length, 0);
	ck_assert_uint_eq(c.sent, 5 * (24 + sizeof(payload)) + 24);
	end();
}
END_TEST

static struct reader {
	pthread_t thread;
	uint64_t batches, next_page, wrong;
	uint32_t seq;
	bool control;
} reader;

/* Takes batches slowly, so that the sender's buffers run full. */
static void *read_slowly(void *arg)
{
	static uint8_t page[PAGE_SIZE];
	struct wire_desc desc;
	struct wire_batch head;
	struct wire_frame f;

	(void)arg;
	while (read_exact(peer, &f, sizeof(f)) == 0) {
		reader.wrong += f.seq != reader.seq++;
		if (f.type != WIRE_PAGES) {
			reader.control = true;
			break;
		}
		read_exact(peer, &head, sizeof(head));
		read_exact(peer, &desc, sizeof(desc));
		for (uint32_t i = 1; i < head.n_descs; i++) {
			struct wire_desc more;

			read_exact(peer, &more, sizeof(more));
		}
		for (uint32_t i = 0; i < head.n_data; i++) {
			read_exact(peer, page, sizeof(page));
			for (size_t k = 0; k < sizeof(page); k += 8)
				reader.wrong += memcmp(page + k, &reader.next_page, 8) != 0;
			reader.next_page++;
		}
		reader.batches++;
		if (reader.batches % 8 == 0)
			usleep(1000);
	}
	return NULL;
}

/* Many batches through few buffers: none is changed before it is out, none changes places. */
START_TEST(batches_go_out)
{
	const unsigned n_batches = 60;
	uint64_t page = 0;
	int small = 4096;

	begin();
	memset(&reader, 0, sizeof(reader));
	setsockopt(c.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	ck_assert_int_eq(pthread_create(&reader.thread, NULL, read_slowly, NULL), 0);
	for (unsigned i = 0; i < n_batches; i++) {
		unsigned n = i % WIRE_BATCH_PAGES + 1;
		struct conn_batch *b;
		int ret;

		b = conn_batch(&c, &ret, &err);
		ck_assert_msg(b != NULL, "%s", err.text);
		b->head = (struct wire_batch){.n_descs = n, .n_data = n};
		for (unsigned k = 0; k < n; k++, page++) {
			b->desc[k] = (struct wire_desc){
				.index = page, .count = 1, .kind = WIRE_PAGE_DATA};
			for (size_t at = 0; at < PAGE_SIZE; at += 8)
				memcpy(b->data + k * PAGE_SIZE + at, &page, 8);
		}
		ck_assert_msg(conn_send_batch(&c, b, &err) == 0, "%s", err.text);
	}
	/* A frame that follows does not overtake them. */
	ck_assert_msg(conn_send(&c, WIRE_ROUND_END, "\1\0\0\0", 4, NULL, &err) == 0, "%s",
		      err.text);
	pthread_join(reader.thread, NULL);
	ck_assert(reader.control);
	ck_assert_uint_eq(reader.batches, n_batches);
	ck_assert_uint_eq(reader.next_page, page);
	ck_assert_uint_eq(reader.wrong, 0);
	end();
}
END_TEST

/* By conn_tell(), as often as it is called with nothing sent since; only once that is allowed. */
START_TEST(says_that_it_lives)
{
	uint8_t buf[8];

	begin();
	conn_tell(&c);
	ck_assert_uint_eq(c.sent, 0);
	conn_let_tell(&c);
	conn_tell(&c);
	ck_assert_uint_eq(get_frame(buf, sizeof(buf)).type, WIRE_IDLE);
	/* That itself, too, has been sent since the last look. */
	ck_assert_int_eq(conn_send(&c, WIRE_READY, NULL, 0, NULL, &err), 0);
	ck_assert_uint_eq(get_frame(buf, sizeof(buf)).seq, 1);
	conn_tell(&c);
	ck_assert_uint_eq(c.sent, 2 * sizeof(struct wire_frame));
	conn_tell(&c);
	ck_assert_uint_eq(get_frame(buf, sizeof(buf)).seq, 2);
	conn_hush(&c);
	for (unsigned i = 0; i < 3; i++)
		conn_tell(&c);
	ck_assert_uint_eq(c.sent, 3 * sizeof(struct wire_frame));
	end();
}
END_TEST

/* All that goes out counts, in whatever pieces: batches, their headers, other frames. */
START_TEST(rate_is_held)
{
	const uint64_t bytes_per_s = 2000000;
	uint64_t since, took;
	struct rate rate;
	pthread_t t;
	int ret;

	begin();
	rate_init(&rate, bytes_per_s);
	c.rate = &rate;
	memset(&reader, 0, sizeof(reader));
	pthread_create(&t, NULL, read_slowly, NULL);
	since = now_ns();
	for (uint64_t page = 0; c.sent < bytes_per_s;) {
		struct conn_batch *b = conn_batch(&c, &ret, &err);

		ck_assert_msg(b, "%s", err.text);
		ck_assert_uint_le(b->room, bytes_per_s / 10);
		for (size_t n = 0; n + PAGE_SIZE <= b->room; n += PAGE_SIZE, page++) {
			b->desc[b->head.n_descs++] = (struct wire_desc){
				.index = page, .count = 1, .kind = WIRE_PAGE_DATA};
			for (size_t at = 0; at < PAGE_SIZE; at += 8)
				memcpy(b->data + n + at, &page, 8);
			b->head.n_data++;
		}
		ck_assert_msg(conn_send_batch(&c, b, &err) == 0, "%s", err.text);
	}
	ck_assert_int_eq(conn_send(&c, WIRE_READY, NULL, 0, NULL, &err), 0);
	took = now_ns() - since;
	pthread_join(t, NULL);
	ck_assert_uint_eq(reader.wrong, 0);
	ck_assert(reader.control);
	ck_assert_msg((double)took >= (double)c.sent / (double)bytes_per_s * 1e9 * 0.97,
		      "%lu bytes in %lu ns", c.sent, took);
	rate_destroy(&rate);
	end();
}
END_TEST

/* Waiting for its turn is cancelled at once, and what the peer has to say is heard. */
START_TEST(waits_with_open_ears)
{
	uint64_t since = now_ns();
	struct rate rate;
	int ret = 0;

	for (unsigned way = 0; way < 2; way++) {
		begin();
		rate_init(&rate, 8000);
		c.rate = &rate;
		if (way)
			put_frame(WIRE_FAIL, "no room", 7);
		for (unsigned n = 0; ret == 0; n++) {
			struct conn_batch *b = conn_batch(&c, &ret, &err);

			if (n == 2 && !way)
				cancel();
			if (!b)
				break;
			b->head = (struct wire_batch){.n_descs = 1, .n_data = 1};
			ret = conn_send_batch(&c, b, &err);
		}
		ck_assert_int_eq(ret, way ? -ECONNABORTED : -ECANCELED);
		ret = 0;
		ck_assert_uint_lt(now_ns() - since, SOON);
		rate_destroy(&rate);
		end();
	}
}
END_TEST

/* Only what has begun to go is ended before the last words, even at a rate that is very low. */
START_TEST(last_words_at_a_low_rate)
{
	static uint8_t buf[64 * KIB];
	struct wire_frame f;
	struct rate rate;
	int ret;

	begin();
	rate_init(&rate, 8000);
	c.rate = &rate;
	for (unsigned n = 0; n < 3; n++) {
		struct conn_batch *b = conn_batch(&c, &ret, &err);

		b->head = (struct wire_batch){.n_descs = 1, .n_data = 1};
		ck_assert_int_eq(conn_send_batch(&c, b, &err), 0);
	}
	shutdown(peer, SHUT_WR);
	conn_fail(&c, WIRE_FAIL, "enough");
	f = get_frame(buf, sizeof(buf));
	ck_assert_uint_eq(f.type, WIRE_PAGES);
	f = get_frame(buf, sizeof(buf));
	ck_assert_uint_eq(f.type, WIRE_FAIL);
	ck_assert_uint_eq(f.seq, 1);
	ck_assert_mem_eq(buf, "enough", 6);
	rate_destroy(&rate);
	end();
}
END_TEST

/* ---- what comes in ---- */

START_TEST(frames_come_in)
{
	uint8_t buf[64];
	uint32_t len = 0;

	begin();
	put_frame(WIRE_PING, "12345678", 8);
	ck_assert_msg(conn_expect(&c, WIRE_PING, buf, sizeof(buf), &len, &err) == 0, "%s",
		      err.text);
	ck_assert_uint_eq(len, 8);
	ck_assert_mem_eq(buf, "12345678", 8);
	/* Busy peers are waited for in silence. */
	for (unsigned i = 0; i < 10; i++)
		put_frame(WIRE_IDLE, "", 0);
	put_frame(WIRE_RUNNING, "", 0);
	ck_assert_msg(conn_expect(&c, WIRE_RUNNING, NULL, 0, &len, &err) == 0, "%s", err.text);
	ck_assert_uint_eq(len, 0);
	end();
}
END_TEST

/* A peer's byte that is not as it must be, at each place of a header. */
static void spoil_magic(struct wire_frame *f)
{
	f->magic ^= 0x10000;
}

static void spoil_seq(struct wire_frame *f)
{
	f->seq = 7;
}

static void spoil_type(struct wire_frame *f)
{
	f->type = WIRE_N_TYPES;
}

static void spoil_type_0(struct wire_frame *f)
{
	f->type = 0;
}

static void spoil_flags(struct wire_frame *f)
{
	f->flags = 0x8000;
}

static void spoil_length(struct wire_frame *f)
{
	f->length = 9;
}

static void spoil_length_most(struct wire_frame *f)
{
	f->length = UINT32_MAX;
}

static void spoil_check(struct wire_frame *f)
{
	f->check ^= 1ULL << 40;
}

static void spoil_other(struct wire_frame *f)
{
	f->type = WIRE_HELLO;
	f->check = wire_check_sum(f, "12345678", 8);
}

START_TEST(headers_are_checked)
{
	static const struct {
		void (*spoil)(struct wire_frame *f);
		int ret;
		const char *text;
	} bad[] = {
		{spoil_magic, -EPROTO, "what is no frame"},
		{spoil_seq, -EPROTO, "frame 7 where 0 was due"},
		{spoil_type, -EPROTO, "unknown type 23"},
		{spoil_type_0, -EPROTO, "unknown type 0"},
		{spoil_flags, -EPROTO, "flags 0x8000"},
		{spoil_length, -EPROTO, "a PING frame of 9 bytes, 8 are allowed"},
		{spoil_length_most, -EPROTO, "4294967295 bytes"},
		{spoil_check, -EBADMSG, "damaged"},
		{spoil_other, -EPROTO, "sent HELLO where PING was due"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct wire_frame f;
		uint8_t buf[8];
		uint32_t len;

		begin();
		f = frame(WIRE_PING, "12345678", 8);
		bad[i].spoil(&f);
		put(&f, sizeof(f));
		put("12345678", 8);
		ck_assert_msg(conn_expect(&c, WIRE_PING, buf, sizeof(buf), &len, &err) ==
				      bad[i].ret,
			      "%zu: %s", i, err.text);
		ck_assert_msg(strstr(err.text, bad[i].text), "%zu: %s", i, err.text);
		end();
	}
}
END_TEST

/* Allowed by its type, but more than this caller has room for. */
/* Looking after the connection takes nothing that is due; whole or not, it is there later. */
START_TEST(what_is_due_waits)
{
	struct wire_frame idle = frame(WIRE_IDLE, NULL, 0), proof = frame(WIRE_PROOF, "proof", 5);
	char payload[8];
	uint32_t len;

	begin();
	c.due = WIRE_PROOF;
	put(&idle, sizeof(idle));
	ck_assert_int_eq(conn_poll(&c, &err), 0);
	ck_assert_uint_eq(c.received, sizeof(idle));
	proof.seq = 1;
	proof.check = wire_check_sum(&proof, "proof", 5);
	for (unsigned i = 0; i < sizeof(proof); i += 8) {
		ck_assert_msg(conn_poll(&c, &err) == 0, "%s", err.text);
		put((uint8_t *)&proof + i, 8);
	}
	put("proof", 5);
	ck_assert_msg(conn_poll(&c, &err) == 0, "%s", err.text);
	ck_assert_uint_eq(c.received, sizeof(idle));
	ck_assert_int_eq(conn_expect(&c, WIRE_PROOF, payload, sizeof(payload), &len, &err), 0);
	ck_assert_uint_eq(len, 5);
	/* Whatever else comes is no more welcome than ever. */
	put_frame(WIRE_READY, "", 0);
	ck_assert_int_eq(conn_poll(&c, &err), -EPROTO);
	end();
}
END_TEST

START_TEST(room_is_checked)
{
	uint8_t buf[8] = "unhurt.";
	uint32_t len;

	begin();
	put_frame(WIRE_PONG, "0123456789abcdef", 16);
	ck_assert_int_eq(conn_expect(&c, WIRE_PONG, buf, 7, &len, &err), -EPROTO);
	ck_assert_msg(strstr(err.text, "16 bytes, at most 7 fit"), "%s", err.text);
	ck_assert_str_eq((char *)buf, "unhurt.");
	end();
}
END_TEST

START_TEST(reasons_arrive)
{
	char text[WIRE_TEXT_MAX + 1];
	struct wire_frame f;

	begin();
	put_frame(WIRE_IDLE, "", 0);
	put_frame(WIRE_FAIL, "no room here", 12);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECONNABORTED);
	ck_assert_str_eq(err.text, "the peer says: no room here");
	end();

	begin();
	put_frame(WIRE_CANCEL, "", 0);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECONNABORTED);
	ck_assert_str_eq(err.text, "the peer cancelled");
	end();

	begin();
	memset(text, 'x', sizeof(text));
	put_frame(WIRE_FAIL, text, WIRE_TEXT_MAX);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECONNABORTED);
	end();

	begin();
	put_frame(WIRE_FAIL, text, WIRE_TEXT_MAX + 1);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -EPROTO);
	end();

	/* One that was damaged is no reason. */
	begin();
	f = frame(WIRE_FAIL, "no room here", 12);
	put(&f, sizeof(f));
	put("no doom here", 12);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -EBADMSG);
	end();
}
END_TEST

START_TEST(ends_of_the_connection)
{
	struct wire_frame f;
	bool taken = true;
	uint8_t buf[16];
	uint32_t len;

	/* Between frames, in a header, in a payload. */
	for (size_t cut = 0; cut < 24 + 8; cut += 7) {
		uint8_t bytes[24 + 8] = {0};

		begin();
		f = frame(WIRE_PING, "12345678", 8);
		memcpy(bytes, &f, sizeof(f));
		memcpy(bytes + sizeof(f), "12345678", 8);
		put(bytes, cut);
		ck_assert(!conn_peer_gone(&c));
		shutdown(peer, SHUT_WR);
		ck_assert_int_eq(conn_expect(&c, WIRE_PING, buf, sizeof(buf), &len, &err),
				 -ECONNRESET);
		ck_assert_msg(strstr(err.text, "the peer closed the connection"), "%s", err.text);
		ck_assert(conn_peer_gone(&c));
		end();
	}
	/* Sending to one who is gone: it surely has nothing of it. */
	begin();
	close(peer);
	peer = dup(cancel_fd);
	ck_assert_int_eq(conn_send(&c, WIRE_COMMIT, "0123456789abcdef", 16, &taken, &err),
			 -ECONNRESET);
	ck_assert(!taken);
	ck_assert_msg(err.text[0], "no reason");
	end();
}
END_TEST

/* The peer's last words count more than how it went. */
START_TEST(reason_before_the_end)
{
	bool taken = true;

	begin();
	put_frame(WIRE_FAIL, "I am full", 9);
	close(peer);
	peer = dup(cancel_fd);
	ck_assert_int_eq(conn_send(&c, WIRE_PROOF, "0123456789abcdef", 16, &taken, &err),
			 -ECONNABORTED);
	ck_assert_str_eq(err.text, "the peer says: I am full");
	end();
}
END_TEST

/* While pages go out the peer gives up: told at once, though it does not read any more. */
START_TEST(reason_while_sending)
{
	struct conn_batch *b;
	unsigned sent = 0;
	int ret = 0;

	begin();
	put_frame(WIRE_IDLE, "", 0);
	put_frame(WIRE_FAIL, "page 7 is bad", 13);
	while (ret == 0 && sent++ < 100) {
		b = conn_batch(&c, &ret, &err);
		if (!b)
			break;
		b->head = (struct wire_batch){.n_descs = 1, .n_data = 1};
		b->desc[0] = (struct wire_desc){.count = 1, .kind = WIRE_PAGE_DATA};
		ret = conn_send_batch(&c, b, &err);
	}
	ck_assert_int_eq(ret, -ECONNABORTED);
	ck_assert_str_eq(err.text, "the peer says: page 7 is bad");
	end();
}
END_TEST

/* ---- giving up ---- */

struct later {
	pthread_t thread;
};

static void *cancel_later(void *arg)
{
	(void)arg;
	usleep(30000);
	cancel();
	return NULL;
}

START_TEST(cancelled_while_receiving)
{
	struct later l;
	uint64_t start = now_ns();
	struct wire_frame f;

	begin();
	ck_assert_int_eq(pthread_create(&l.thread, NULL, cancel_later, NULL), 0);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECANCELED);
	ck_assert_str_eq(err.text, "cancelled");
	ck_assert_uint_lt(now_ns() - start, SOON);
	pthread_join(l.thread, NULL);
	end();
}
END_TEST

/* Nobody reads: how much is out nobody knows, so the frame counts as taken. */
START_TEST(cancelled_while_sending)
{
	static uint8_t big[8 * 1024 * 1024];
	uint64_t start = now_ns();
	bool taken = false;
	struct later l;

	begin();
	ck_assert_int_eq(pthread_create(&l.thread, NULL, cancel_later, NULL), 0);
	ck_assert_int_eq(conn_send(&c, WIRE_STATE, big, sizeof(big), &taken, &err), -ECANCELED);
	ck_assert(taken);
	ck_assert_uint_lt(now_ns() - start, SOON);
	pthread_join(l.thread, NULL);
	end();
}
END_TEST

START_TEST(cancelled_while_batches_wait)
{
	uint64_t start = now_ns();
	unsigned sent = 0;
	struct later l;
	int ret = 0;

	begin();
	ck_assert_int_eq(pthread_create(&l.thread, NULL, cancel_later, NULL), 0);
	while (ret == 0 && sent++ < 10000) {
		struct conn_batch *b = conn_batch(&c, &ret, &err);

		if (!b)
			break;
		b->head = (struct wire_batch){.n_descs = 64, .n_data = 64};
		ret = conn_send_batch(&c, b, &err);
	}
	ck_assert_int_eq(ret, -ECANCELED);
	ck_assert_uint_lt(now_ns() - start, SOON);
	pthread_join(l.thread, NULL);
	end();
}
END_TEST

/* It is known beforehand. */
START_TEST(cancelled_before)
{
	struct wire_frame f;

	begin();
	cancel();
	put_frame(WIRE_RUNNING, "", 0);
	/* A frame that is there may be taken, or not; one that is not is not waited for. */
	if (conn_recv_header(&c, &f, &err) == 0)
		ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECANCELED);
	end();
}
END_TEST

/* ---- last words ---- */

START_TEST(last_words)
{
	char text[600], got[WIRE_TEXT_MAX + 1] = "";
	uint64_t start = now_ns();
	struct wire_frame f;

	begin();
	/* Input that nobody has read must not take them away. */
	put_frame(WIRE_PING, "12345678", 8);
	shutdown(peer, SHUT_WR);
	conn_fail(&c, WIRE_FAIL, "it does not fit");
	f = get_frame(got, WIRE_TEXT_MAX);
	ck_assert_uint_eq(f.type, WIRE_FAIL);
	ck_assert_uint_eq(f.check, wire_check_sum(&f, got, f.length));
	ck_assert_str_eq(got, "it does not fit");
	conn_close(&c);
	ck_assert_int_eq((int)read(peer, got, 1), 0);
	close(peer);
	close(cancel_fd);
	ck_assert_uint_lt(now_ns() - start, SOON);

	/* Cut to what a frame may hold. */
	begin();
	memset(text, 'y', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	shutdown(peer, SHUT_WR);
	conn_fail(&c, WIRE_REFUSE, text);
	ck_assert_uint_eq(get_frame(got, WIRE_TEXT_MAX).length, WIRE_TEXT_MAX);
	end();

	/* To one who does not listen: it does not take long. */
	begin();
	cancel();
	start = now_ns();
	conn_fail(&c, WIRE_FAIL, "anybody there?");
	ck_assert_uint_lt(now_ns() - start, SOON);
	end();
}
END_TEST

/* ---- limits ---- */

/* A peer that goes on saying IDLE is alive, and still has to answer in the time allowed. */
static void *say_idle(void *arg)
{
	atomic_bool *stop = arg;

	while (!*stop) {
		struct wire_frame f = frame(WIRE_IDLE, NULL, 0);

		if (write_exact(peer, &f, sizeof(f)))
			break;
		poll(NULL, 0, 20);
	}
	return NULL;
}

START_TEST(idle_does_not_hold)
{
	uint64_t start = now_ns();
	atomic_bool stop = false;
	pthread_t thread;
	uint32_t len;

	begin();
	ck_assert_int_eq(pthread_create(&thread, NULL, say_idle, &stop), 0);
	c.deadline_ns = start + 300 * NS_PER_MS;
	ck_assert_int_eq(conn_expect(&c, WIRE_READY, NULL, 0, &len, &err), -ETIMEDOUT);
	ck_assert_msg(strstr(err.text, "time allowed"), "%s", err.text);
	ck_assert(now_ns() - start < SOON);
	stop = true;
	pthread_join(thread, NULL);
	end();
}
END_TEST

/* Only a FAIL frame is the peer's word that it has given up; its going away is not. */
START_TEST(whose_word)
{
	struct wire_frame f;

	begin();
	shutdown(peer, SHUT_RDWR);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECONNRESET);
	ck_assert(!c.peer_failed);
	end();

	begin();
	put_frame(WIRE_CANCEL, "", 0);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECONNABORTED);
	ck_assert(!c.peer_failed);
	end();

	begin();
	put_frame(WIRE_FAIL, "no", 2);
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ECONNABORTED);
	ck_assert(c.peer_failed);
	end();
}
END_TEST

/* ---- preludes ---- */

static int try_prelude(const struct wire_prelude *p, uint64_t *session)
{
	err = (struct errmsg){""};
	put(p, sizeof(*p));
	return conn_recv_prelude(&c, session, &err);
}

START_TEST(preludes)
{
	struct wire_prelude good = {
		.version = WIRE_VERSION, .min_version = WIRE_MIN_VERSION, .session = 99};
	struct wire_prelude p, got;
	uint64_t session = 0;

	memcpy(good.magic, WIRE_MAGIC, sizeof(good.magic));
	begin();
	ck_assert_int_eq(conn_send_prelude(&c, 0x1234567890, &err), 0);
	ck_assert_int_eq(read_exact(peer, &got, sizeof(got)), 0);
	ck_assert_uint_eq(got.session, 0x1234567890);
	got.session = good.session;
	ck_assert_mem_eq(&got, &good, sizeof(got));

	ck_assert_int_eq(try_prelude(&good, &session), 0);
	ck_assert_uint_eq(session, 99);
	/* A newer one that still speaks ours. */
	p = good;
	p.version = WIRE_VERSION + 5;
	ck_assert_int_eq(try_prelude(&p, &session), 0);
	p.min_version = WIRE_VERSION + 1;
	ck_assert_int_eq(try_prelude(&p, &session), -EPROTONOSUPPORT);
	ck_assert_msg(strstr(err.text, "protocol 6 (down to 2), this godwit 1 (down to 1)"), "%s",
		      err.text);
	p = good;
	p.version = p.min_version = WIRE_MIN_VERSION - 1;
	ck_assert_int_eq(try_prelude(&p, &session), -EPROTONOSUPPORT);
	p = good;
	p.magic[7] ^= 1;
	ck_assert_int_eq(try_prelude(&p, &session), -EPROTO);
	p = good;
	p.zero = 1;
	ck_assert_int_eq(try_prelude(&p, &session), -EPROTO);
	memcpy(&p, "SSH-2.0-OpenSSH_9.2p1 De", sizeof(p));
	ck_assert_int_eq(try_prelude(&p, &session), -EPROTO);
	ck_assert_msg(strstr(err.text, "does not speak godwit's"), "%s", err.text);
	end();
}
END_TEST

/* Whatever the network gives as a reason: the connection is what broke, and nothing else. */
START_TEST(unreachable)
{
	static const int why[] = {EHOSTUNREACH, EHOSTDOWN, ENETUNREACH, ENETDOWN,
				  ENETRESET,	ENONET,	   ECONNREFUSED};

	begin();
	for (size_t i = 0; i < ARRAY_SIZE(why); i++) {
		err = (struct errmsg){""};
		ck_assert_int_eq(conn_error(&c, -why[i], &err), -ECONNRESET);
		ck_assert_msg(strstr(err.text, "the connection to the peer broke: ") &&
				      strstr(err.text, strerror(why[i])),
			      "%s", err.text);
	}
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		frames_go_out,
		batches_go_out,
		says_that_it_lives,
		rate_is_held,
		waits_with_open_ears,
		last_words_at_a_low_rate,
		frames_come_in,
		headers_are_checked,
		what_is_due_waits,
		room_is_checked,
		reasons_arrive,
		ends_of_the_connection,
		reason_before_the_end,
		reason_while_sending,
		cancelled_while_receiving,
		cancelled_while_sending,
		cancelled_while_batches_wait,
		cancelled_before,
		last_words,
		idle_does_not_hold,
		whose_word,
		preludes,
		unreachable,
	};

	return check_main("conn", tests, ARRAY_SIZE(tests));
}
