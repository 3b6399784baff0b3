/* SPDX-License-Identifier: MIT */
/*
 * What a connection that broke leaves behind, and how the next one begins: the destination's table
 * tells what its RAM holds, and the source's becomes the same.
 */
#include "../held.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "../../vmm/tests/check-main.h"
#include "../store.h"

#define SEED 12
#define NPAGES (RAM_MIN / PAGE_SIZE)

static struct conn source, dest;
static struct hashes here, there;
static struct page_hash *digests;
static struct errmsg err, dest_err;
static uint64_t bitmap[NPAGES / 64];
static int dest_ret;

static void begin(void)
{
	int fds[2];

	err = dest_err = (struct errmsg){0};
	memset(bitmap, 0, sizeof(bitmap));
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ck_assert_int_eq(conn_init(&source, fds[0], -1, "destination", &err), 0);
	ck_assert_int_eq(conn_init(&dest, fds[1], -1, "source", &err), 0);
	ck_assert_int_eq(hashes_init(&here, NPAGES, SEED), 0);
	ck_assert_int_eq(hashes_init(&there, NPAGES, SEED), 0);
}

static void end(void)
{
	free(digests);
	digests = NULL;
	conn_close(&source);
	conn_close(&dest);
	hashes_free(&here);
	hashes_free(&there);
}

/* What a receiver does with it: until the other side goes. */
static void *answer(void *arg)
{
	struct wire_frame f;
	uint8_t *payload;

	(void)arg;
	dest_ret = held_announce(&there, &dest, &dest_err);
	while (dest_ret == 0 && conn_recv_header(&dest, &f, &dest_err) == 0) {
		payload = malloc(f.length + 1);
		ck_assert_uint_eq(f.type, WIRE_WANT);
		ck_assert_int_eq(conn_recv(&dest, payload, f.length, &dest_err), 0);
		dest_ret = held_answer(&there, &dest, &f, payload, &dest_err);
		free(payload);
	}
	return NULL;
}

static void set(struct hashes *h, uint64_t index, uint64_t value)
{
	hashes_set(h, index, (struct page_hash){.low = value, .high = value});
}

static bool marked(uint64_t index)
{
	return bitmap[index / 64] >> (index % 64) & 1;
}

/* Whatever either side has: afterwards both say what the destination does, and no page is missed.
 */
START_TEST(becomes_the_same)
{
	static uint64_t before[NPAGES];
	pthread_t t;

	begin();
	srand((unsigned)_i);
	for (uint64_t i = 0; i < NPAGES; i++) {
		/* Chunks that are the same, differ in a page or in all, or that one side lacks. */
		unsigned how = (unsigned)(i / HASHES_CHUNK + (uint64_t)_i) % 5;
		bool differs =
			how == 1 ? i % HASHES_CHUNK == (uint64_t)rand() % HASHES_CHUNK : how == 2;

		if (how != 3)
			set(&here, i, i + 1);
		if (how != 4)
			set(&there, i, i + 1 + (differs ? 7777777 : 0));
		before[i] = here.table[i].low;
	}
	ck_assert_int_eq(pthread_create(&t, NULL, answer, NULL), 0);
	ck_assert_msg(held_receive(&here, &source, &digests, &err) == 0, "%s", err.text);
	ck_assert_msg(held_adopt(&here, &source, digests, bitmap, &err) == 0, "%s", err.text);
	conn_break(&source);
	pthread_join(t, NULL);
	for (uint64_t i = 0; i < NPAGES; i++) {
		ck_assert(hash_equal(&here.table[i], &there.table[i]));
		ck_assert_int_eq(marked(i), before[i] != there.table[i].low);
	}
	/* And the proof says so, too. */
	hashes_refresh(&here);
	hashes_refresh(&there);
	for (uint64_t i = 0; i < hashes_n_chunks(&here); i++)
		ck_assert(hash_equal(&here.digest[i], &there.digest[i]));
	end();
}
END_TEST

/* A destination that says what cannot be. */
START_TEST(bad_tables)
{
	static const struct {
		uint32_t chunk, n, len;
	} bad[] = {
		{1, HASHES_CHUNK, 0}, {0, 3, 3 * 16},	  {0, HASHES_CHUNK, 16},
		{0, 0, 16},	      {UINT32_MAX, 0, 0}, {0, UINT32_MAX, HASHES_CHUNK * 16},
	};
	struct page_hash wrong[NPAGES / HASHES_CHUNK] = {{1, 1}};
	uint8_t frame[sizeof(struct wire_table) + HASHES_CHUNK * 16] = {0};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct wire_table head = {.chunk = bad[i].chunk, .n = bad[i].n};

		begin();
		memcpy(frame, &head, sizeof(head));
		ck_assert_int_eq(conn_send(&dest, WIRE_TABLE, frame,
					   (uint32_t)sizeof(head) + bad[i].len, NULL, &err),
				 0);
		hashes_refresh(&here);
		for (size_t k = 1; k < ARRAY_SIZE(wrong); k++)
			wrong[k] = here.digest[k];
		ck_assert_int_eq(held_adopt(&here, &source, wrong, bitmap, &err), -EPROTO);
		ck_assert_msg(strstr(err.text, "malformed TABLE"), "%s", err.text);
		end();
	}
}
END_TEST

START_TEST(bad_digests)
{
	begin();
	ck_assert_int_eq(conn_send(&dest, WIRE_HELD, "0123456789abcdef", 16, NULL, &err), 0);
	ck_assert_int_eq(held_receive(&here, &source, &digests, &err), -EPROTO);
	ck_assert_ptr_null(digests);
	end();
}
END_TEST

/* A source that asks for what there is not. */
START_TEST(bad_wants)
{
	static const uint32_t beyond[] = {0, NPAGES / HASHES_CHUNK};
	static const struct {
		const void *payload;
		uint32_t len;
	} bad[] = {{"", 0}, {"123", 3}, {beyond, sizeof(beyond)}, {"\377\377\377\377", 4}};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct wire_frame f = {.length = bad[i].len};

		begin();
		ck_assert_int_eq(held_answer(&there, &dest, &f, bad[i].payload, &err), -EPROTO);
		end();
	}
}
END_TEST

/* ---- a batch that does not come to its end ---- */

static struct ram ram;
static struct store store;
static struct wire_frame cut_frame;
static int taken;

static void *take(void *arg)
{
	(void)arg;
	taken = store_batch(&store, &dest, &cut_frame, &dest_err);
	return NULL;
}

/*
 * However much of it has come: the table tells what RAM holds, page by page. The pages' older
 * content is known before, so a page that was half overwritten shows.
 */
START_TEST(cut_batch)
{
	static const uint64_t index[] = {3, 4, 900};
	size_t contents = ARRAY_SIZE(index) * PAGE_SIZE;
	struct {
		struct wire_frame f;
		struct wire_batch head;
		struct wire_desc desc[ARRAY_SIZE(index)];
	} m = {.head = {.n_descs = ARRAY_SIZE(index), .n_data = ARRAY_SIZE(index)}};
	uint8_t data[ARRAY_SIZE(index) * PAGE_SIZE], old[PAGE_SIZE];
	size_t cut = (unsigned)_i * (PAGE_SIZE / 2 + 1);
	pthread_t t;

	begin();
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, true, &err), 0);
	store = (struct store){.ram = &ram, .hashes = &there};
	memset(old, 0x11, sizeof(old));
	memset(data, 0x22, sizeof(data));
	for (size_t i = 0; i < ARRAY_SIZE(index); i++) {
		ck_assert_int_eq(ram_write(&ram, index[i] * PAGE_SIZE, old, PAGE_SIZE), 0);
		hashes_set(&there, index[i], hash_page(&there, old));
		m.desc[i] = (struct wire_desc){.index = index[i],
					       .count = 1,
					       .kind = WIRE_PAGE_DATA,
					       .hash = hash_page(&there, data)};
	}
	m.f = (struct wire_frame){
		.magic = WIRE_FRAME_MAGIC,
		.type = WIRE_PAGES,
		.length = (uint32_t)(sizeof(m.head) + sizeof(m.desc) + contents),
	};
	m.f.check = wire_check_sum(&m.f, &m.head, sizeof(m.head) + sizeof(m.desc));
	cut_frame = m.f;
	ck_assert_int_eq(pthread_create(&t, NULL, take, NULL), 0);
	ck_assert_uint_eq((size_t)send(source.fd, &m.head, sizeof(m.head) + sizeof(m.desc), 0),
			  sizeof(m.head) + sizeof(m.desc));
	if (cut)
		ck_assert_int_eq(send(source.fd, data, cut, 0), (ssize_t)cut);
	conn_break(&source);
	pthread_join(t, NULL);
	ck_assert_int_eq(taken, -ECONNRESET);
	for (size_t i = 0; i < ARRAY_SIZE(index); i++) {
		struct page_hash now = hash_page(&there, ram_page(&ram, index[i]));

		ck_assert(hash_equal(&there.table[index[i]], &now));
	}
	unpack_free(&store.unpack);
	ram_destroy(&ram);
	end();
}
END_TEST

/* A table that is made of what RAM holds forgets what it said before. */
START_TEST(from_ram)
{
	uint8_t page[PAGE_SIZE];

	begin();
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, true, &err), 0);
	set(&there, 100, 5);
	memset(page, 9, sizeof(page));
	ck_assert_int_eq(ram_write(&ram, 7 * PAGE_SIZE, page, PAGE_SIZE), 0);
	ck_assert_int_eq(hashes_from_ram(&there, &ram, NULL, NULL), 0);
	ck_assert_uint_eq(hashes_count_held(&there), 1);
	hashes_set(&here, 7, hash_page(&here, page));
	for (uint64_t i = 0; i < NPAGES; i++)
		ck_assert(hash_equal(&here.table[i], &there.table[i]));
	hashes_clear(&there);
	ck_assert_uint_eq(hashes_count_held(&there), 0);
	ram_destroy(&ram);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("held");
	TCase *tc = tcase_create("held");

	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, becomes_the_same, 0, 5);
	tcase_add_test(tc, bad_tables);
	tcase_add_test(tc, bad_digests);
	tcase_add_test(tc, bad_wants);
	tcase_add_loop_test(tc, cut_batch, 0, 6);
	tcase_add_test(tc, from_ram);
	suite_add_tcase(s, tc);
	return check_run(s);
}
