/* SPDX-License-Identifier: MIT */
/*
 * What the destination stores, and answers, when the source is wrong or lies: each batch here comes
 * with all its checks in order. And what the source does with answers that are no answers.
 */
#include "../store.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "../../vmm/tests/check-main.h"
#include "../asks.h"

#define SEED 12
#define NPAGES (RAM_MIN / PAGE_SIZE)

static struct conn source, dest;
static struct ram ram;
static struct hashes hashes;
static struct store store;
static struct errmsg err;

static void begin(void)
{
	int fds[2];

	err = (struct errmsg){0};
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ck_assert_int_eq(conn_init(&source, fds[0], -1, "destination", &err), 0);
	ck_assert_int_eq(conn_init(&dest, fds[1], -1, "source", &err), 0);
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, true, &err), 0);
	ck_assert_int_eq(hashes_init(&hashes, ram.npages, SEED), 0);
	store = (struct store){.ram = &ram, .hashes = &hashes};
}

static void end(void)
{
	conn_close(&source);
	conn_close(&dest);
	unpack_free(&store.unpack);
	hashes_free(&hashes);
	ram_destroy(&ram);
}

static struct conn_batch *batch(void)
{
	int ret;
	struct conn_batch *b = conn_batch(&source, &ret, &err);

	ck_assert_ptr_nonnull(b);
	b->head = (struct wire_batch){0};
	return b;
}

/* A page full of one value. */
static void add_page(struct conn_batch *b, uint64_t index, uint8_t value)
{
	uint8_t *page = b->data + wire_batch_unpacked(&b->head);

	memset(page, value, PAGE_SIZE);
	b->desc[b->head.n_descs++] = (struct wire_desc){.index = index,
							.count = 1,
							.kind = WIRE_PAGE_DATA,
							.hash = hash_page(&hashes, page)};
	b->head.n_data++;
}

/* The whole page's hash in a descriptor of a kind without all of it. */
static void add_desc(struct conn_batch *b, uint64_t index, enum wire_page_kind kind, uint32_t count,
		     uint8_t value)
{
	uint8_t page[PAGE_SIZE];

	memset(page, value, sizeof(page));
	b->desc[b->head.n_descs++] = (struct wire_desc){
		.index = index, .count = count, .kind = kind, .hash = hash_page(&hashes, page)};
}

static int take(struct conn_batch *b)
{
	struct wire_frame f;

	ck_assert_int_eq(conn_send_batch(&source, b, &err), 0);
	ck_assert_int_eq(conn_flush(&source, &err), 0);
	ck_assert_int_eq(conn_recv_header(&dest, &f, &err), 0);
	ck_assert_uint_eq(f.type, WIRE_PAGES);
	return store_batch(&store, &dest, &f, &err);
}

static void holds(uint64_t index, uint8_t value)
{
	const uint8_t *page = ram_page(&ram, index);

	for (size_t i = 0; i < PAGE_SIZE; i++)
		ck_assert_uint_eq(page[i], value);
}

static void refused(struct conn_batch *b, int ret, const char *text)
{
	ck_assert_int_eq(take(b), ret);
	ck_assert_msg(strstr(err.text, text), "'%s' instead of '%s'", err.text, text);
}

START_TEST(copies)
{
	struct conn_batch *b;

	begin();
	/* Of a page before it in the same batch, and of a copy. */
	b = batch();
	add_page(b, 10, 1);
	add_page(b, 11, 2);
	add_desc(b, 12, WIRE_PAGE_COPY, 11, 2);
	add_desc(b, 13, WIRE_PAGE_COPY, 12, 2);
	add_desc(b, 14, WIRE_PAGE_COPY, 10, 1);
	ck_assert_int_eq(take(b), 0);
	holds(12, 2);
	holds(13, 2);
	holds(14, 1);
	/* And of one from an earlier one, over another content. */
	b = batch();
	add_desc(b, 12, WIRE_PAGE_COPY, 14, 1);
	ck_assert_int_eq(take(b), 0);
	holds(12, 1);
	holds(11, 2);
	end();
}
END_TEST

START_TEST(copies_of_others)
{
	static const struct {
		uint64_t from;
		uint8_t value;
	} bad[] = {
		{11, 1},	 /* holds something else */
		{12, 1},	 /* has not come yet */
		{NPAGES - 1, 1}, /* never came */
		{13, 1},	 /* is itself */
		{10, 3},	 /* what nobody has */
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct conn_batch *b;

		begin();
		b = batch();
		add_page(b, 10, 1);
		add_page(b, 11, 2);
		add_desc(b, 13, WIRE_PAGE_COPY, (uint32_t)bad[i].from, bad[i].value);
		add_page(b, 12, 1);
		refused(b, -EPROTO, "page 13 as a copy of page");
		end();
	}
}
END_TEST

/* A delta that makes a page of one value into one of another: all blocks that may change. */
static uint32_t add_delta(struct conn_batch *b, uint64_t index, unsigned blocks, uint64_t mask0,
			  uint64_t mask1, uint8_t value)
{
	uint64_t mask[2] = {mask0, mask1};
	uint32_t len = blocks * DELTA_BLOCK + (uint32_t)sizeof(mask);
	uint8_t *at = b->data + wire_batch_unpacked(&b->head);

	memset(at, value, blocks * (size_t)DELTA_BLOCK);
	memcpy(at + blocks * (size_t)DELTA_BLOCK, mask, sizeof(mask));
	add_desc(b, index, WIRE_PAGE_DELTA, len, value);
	b->head.delta += len;
	return len;
}

START_TEST(deltas)
{
	struct conn_batch *b;
	uint8_t page[PAGE_SIZE];

	begin();
	b = batch();
	add_page(b, 10, 1);
	ck_assert_int_eq(take(b), 0);
	b = batch();
	add_page(b, 9, 7);
	add_delta(b, 10, 2, 1ULL << 5, 1ULL << 63, 4);
	add_page(b, 11, 8);
	memset(page, 1, sizeof(page));
	memset(page + 5 * DELTA_BLOCK, 4, DELTA_BLOCK);
	memset(page + 127 * DELTA_BLOCK, 4, DELTA_BLOCK);
	b->desc[1].hash = hash_page(&hashes, page);
	ck_assert_msg(take(b) == 0, "%s", err.text);
	ck_assert_mem_eq(ram_page(&ram, 10), page, PAGE_SIZE);
	holds(9, 7);
	holds(11, 8);
	end();
}
END_TEST

START_TEST(deltas_that_lie)
{
	struct conn_batch *b;

	/* The mask tells of other blocks than came. */
	begin();
	b = batch();
	add_delta(b, 10, 2, 1, 0, 4);
	refused(b, -EPROTO, "malformed delta of page 10");
	end();
	begin();
	b = batch();
	add_delta(b, 10, 2, ~0ULL, ~0ULL, 4);
	refused(b, -EPROTO, "malformed delta of page 10");
	end();
	/* Together they do not make the page that they are said to make. */
	begin();
	b = batch();
	add_delta(b, 10, 2, 3, 0, 4);
	refused(b, -EBADMSG, "page 10 was damaged");
	end();
}
END_TEST

/* ---- questions ---- */

static struct asks asks;
static struct delta_hashes answer[WIRE_ASK_PAGES];
static uint32_t answer_len;

/* A destination that answers, or what a liar says. */
static void *answer_one(void *arg)
{
	struct errmsg ignored = {0};
	struct wire_frame f;
	uint64_t index[WIRE_ASK_PAGES];
	uint32_t len;

	if (!arg) {
		if (conn_recv_header(&dest, &f, &ignored) == 0 && f.type == WIRE_ASK)
			store_answer(&store, &dest, &f, &ignored);
		return NULL;
	}
	if (conn_expect(&dest, WIRE_ASK, index, sizeof(index), &len, &ignored) == 0)
		conn_send(&dest, WIRE_HAVE, answer, answer_len, NULL, &ignored);
	return NULL;
}

static int ask(unsigned n, bool lie)
{
	const struct asks_network net = {.byte_ns = 1};
	pthread_t t;
	int ret;

	ck_assert_int_eq(pthread_create(&t, NULL, answer_one, lie ? &asks : NULL), 0);
	ck_assert_int_gt(asks_begin(&asks, &err), 0);
	for (unsigned i = 0; i < n; i++)
		asks_add(&asks, 10 + 2 * i);
	ret = asks_send(&asks, &source, &net, &err);
	pthread_join(t, NULL);
	return ret;
}

START_TEST(answers)
{
	static const uint8_t zeros[PAGE_SIZE];
	struct delta_hashes want;
	struct conn_batch *b;
	uint64_t used;

	begin();
	asks_init(&asks);
	b = batch();
	add_page(b, 12, 5);
	ck_assert_int_eq(take(b), 0);
	used = ram_used(&ram);
	ck_assert_msg(ask(32, false) == 0, "%s", err.text);
	ck_assert_ptr_null(asks_have(&asks, 9));
	/* Nothing is there, and no memory is taken to see that. */
	ck_assert_uint_eq(ram_used(&ram), used);
	delta_hash(zeros, SEED, &want);
	ck_assert_mem_eq(asks_have(&asks, 10), &want, sizeof(want));
	ck_assert_ptr_null(asks_have(&asks, 11));
	delta_hash(ram_page(&ram, 12), SEED, &want);
	ck_assert_mem_eq(asks_have(&asks, 12), &want, sizeof(want));
	ck_assert_ptr_nonnull(asks_have(&asks, 72));
	ck_assert_ptr_null(asks_have(&asks, 73));
	ck_assert_ptr_null(asks_have(&asks, 74));
	asks_free(&asks);
	end();
}
END_TEST

START_TEST(no_answers)
{
	static const uint32_t lens[] = {0, 1, 768, 31 * 768, 32 * 768 - 1, 33 * 768};

	for (size_t i = 0; i < ARRAY_SIZE(lens); i++) {
		begin();
		asks_init(&asks);
		answer_len = lens[i];
		ck_assert_int_eq(ask(32, true), -EPROTO);
		ck_assert_msg(strstr(err.text, "destination"), "%s", err.text);
		asks_free(&asks);
		end();
	}
}
END_TEST

static void question_refused(const void *payload, uint32_t len, const char *text)
{
	struct wire_frame f;

	begin();
	ck_assert_int_eq(conn_send(&source, WIRE_ASK, payload, len, NULL, &err), 0);
	ck_assert_int_eq(conn_recv_header(&dest, &f, &err), 0);
	ck_assert_int_eq(store_answer(&store, &dest, &f, &err), -EPROTO);
	ck_assert_msg(strstr(err.text, text), "'%s' instead of '%s'", err.text, text);
	end();
}

START_TEST(bad_questions)
{
	static const uint64_t beyond[] = {1, NPAGES, 2}, far[] = {UINT64_MAX};

	question_refused("", 0, "ASK frame of 0 bytes");
	question_refused(beyond, 7, "ASK frame of 7 bytes");
	question_refused(beyond, sizeof(beyond), "asks for page");
	question_refused(far, sizeof(far), "asks for page");
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {copies,  copies_of_others, deltas,       deltas_that_lie,
				      answers, no_answers,	 bad_questions};

	return check_main("store", tests, ARRAY_SIZE(tests));
}
