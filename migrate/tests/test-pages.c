/* SPDX-License-Identifier: MIT */
/*
 * Rounds of pages on real KVM, with a destination made here that believes nothing: whatever the
 * guest does to a page while it is sent, in the end both sides hold the same, and every content
 * that came was what its hash says.
 *
 * The guest's worst moments are made, not waited for: ioctl() of this program is its own, so that
 * the guest can be made to store right before and right after its dirty bits are cleared; and so
 * are the calls by which pages are given back and by which it is found that they were.
 */
#include "../pages.h"
#include "../rehash.h"
#include "../store.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "../../vmm/tests/kvm-fixture.h"

#define NPAGES (RAM_MIN / PAGE_SIZE)
#define SEED 4711

/* ---- the guest's moments ---- */

static void (*before_clear)(void), (*after_clear)(void);
static uint64_t hook_page; /* the range with this page */

int ioctl(int fd, unsigned long request, ...)
{
	const struct kvm_clear_dirty_log *log;
	bool hook = false;
	va_list ap;
	void *arg;
	int ret;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == KVM_CLEAR_DIRTY_LOG) {
		log = arg;
		hook = hook_page >= log->first_page && hook_page < log->first_page + log->num_pages;
	}
	if (hook && before_clear)
		before_clear();
	ret = (int)syscall(SYS_ioctl, fd, request, arg);
	if (hook && ret == 0 && after_clear)
		after_clear();
	return ret;
}

/* What is said of holes: how often it is asked, and what happens right after it. */
static unsigned n_seek_data, n_seek_hole;
static void (*after_look)(void);
static enum { IN_CORE_TRUE, IN_CORE_NONE, IN_CORE_FAILS } in_core;
static const struct ram *source_ram; /* the other side's has no moments */

static bool is_hook_page(uint64_t offset, uint64_t len)
{
	return hook_page * PAGE_SIZE >= offset && hook_page * PAGE_SIZE < offset + len;
}

off_t lseek(int fd, off_t offset, int whence)
{
	off_t ret = syscall(SYS_lseek, fd, offset, whence);

	n_seek_data += whence == SEEK_DATA;
	n_seek_hole += whence == SEEK_HOLE;
	if (whence == SEEK_DATA && after_look && is_hook_page((uint64_t)offset, 1))
		after_look();
	return ret;
}

int mincore(void *addr, size_t len, unsigned char *vec)
{
	long ret = syscall(SYS_mincore, addr, len, vec);

	if (in_core == IN_CORE_FAILS) {
		errno = EAGAIN;
		return -1;
	}
	/* As for pages that are in swap. */
	if (in_core == IN_CORE_NONE)
		memset(vec, 0, len / PAGE_SIZE);
	if (after_look && is_hook_page((uint64_t)((uint8_t *)addr - source_ram->host), len))
		after_look();
	return (int)ret;
}

/* Right before and right after pages are punched out. */
static void (*before_punch)(void), (*after_punch)(void);

int fallocate(int fd, int mode, off_t offset, off_t len)
{
	bool hook = source_ram && fd == source_ram->fd;
	int ret;

	if (hook && before_punch)
		before_punch();
	ret = (int)syscall(SYS_fallocate, fd, mode, offset, len);
	if (hook && after_punch)
		after_punch();
	return ret;
}

/* ---- the other side ---- */

static struct other {
	pthread_t thread;
	struct conn conn;
	struct ram ram;
	struct hashes hashes; /* of what came */
	struct store store;
	struct errmsg err;
	_Atomic uint64_t frames;
	_Atomic uint64_t
		rounds; /* of this side; what it has looked at by then, that side may change */
} other;

static void *take_frames(void *arg)
{
	struct wire_frame f;
	int ret = 0;

	(void)arg;
	while (ret == 0 && (ret = conn_recv_header(&other.conn, &f, &other.err)) == 0) {
		(void)atomic_load(&other.rounds);
		if (f.type == WIRE_PAGES)
			ret = store_batch(&other.store, &other.conn, &f, &other.err);
		else if (f.type == WIRE_ASK)
			ret = store_answer(&other.store, &other.conn, &f, &other.err);
		else
			ret = -EPROTO;
		other.frames++;
	}
	return (void *)(intptr_t)ret;
}

/* ---- one migration ---- */

static struct machine *m;
static struct dirty d;
static struct hashes hashes;
static struct conn conn;
static struct page_path path;
static struct page_work work;

static void begin(void)
{
	int fds[2];

	m = machine_new(RAM_MIN, 1);
	source_ram = &m->vm->ram;
	machine_store_code(m);
	kvm_guest_store(m->vm, MIB, 1);
	ck_assert_int_eq(hashes_init(&hashes, NPAGES, SEED), 0);
	memset(&other, 0, sizeof(other));
	ck_assert_int_eq(hashes_init(&other.hashes, NPAGES, SEED), 0);
	ck_assert_int_eq(ram_init(&other.ram, RAM_MIN, true, &m->err), 0);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ck_assert_int_eq(conn_init(&other.conn, fds[1], -1, "source", &m->err), 0);
	other.store.ram = &other.ram;
	other.store.hashes = &other.hashes;
	ck_assert_int_eq(conn_init(&conn, fds[0], -1, "other side", &m->err), 0);
	ck_assert_int_eq(dirty_start(&d, m->vm, &m->err), 0);
	path = (struct page_path){
		.vm = m->vm, .dirty = &d, .hashes = &hashes, .work = &work, .conn = &conn};
	pack_init(&path.pack, MIGRATE_COMPRESS_AUTO, 0);
	asks_init(&path.asks);
	work = (struct page_work){.stop = false};
	ck_assert_int_eq(pthread_create(&other.thread, NULL, take_frames, NULL), 0);
}

static void a_round(void)
{
	uint64_t pages;

	ck_assert_msg(dirty_collect(&d, &pages, &m->err) == 0, "%s", m->err.text);
	work.next = 0;
	/* ThreadSanitizer does not see what a socket says. */
	other.rounds++;
	ck_assert_msg(pages_send_round(&path, &m->err) == 0, "%s", m->err.text);
}

/* The last round of a guest that does nothing any more; then both must be equal. */
static void end(void)
{
	uint64_t index = 0, cpu = 0;
	void *ret;

	before_clear = after_clear = after_look = before_punch = after_punch = NULL;
	in_core = IN_CORE_TRUE;
	a_round();
	ck_assert_msg(conn_flush(&conn, &m->err) == 0, "%s", m->err.text);
	conn_close(&conn);
	pthread_join(other.thread, &ret);
	ck_assert_msg((intptr_t)ret == -ECONNRESET, "%s", other.err.text);
	for (uint64_t i = 0; i < NPAGES; i++) {
		ck_assert_msg(!memcmp(ram_page(&other.ram, i), ram_page(&m->vm->ram, i), PAGE_SIZE),
			      "page %llu is not what the guest has", (unsigned long long)i);
		ck_assert_msg(hash_equal(&hashes.table[i], &other.hashes.table[i]),
			      "of page %llu the table says what is not there",
			      (unsigned long long)i);
	}
	ck_assert_int_eq(rehash_compare(&hashes, &m->vm->ram, &index, NULL, NULL, &cpu), 0);
	conn_close(&other.conn);
	page_path_free(&path);
	unpack_free(&other.store.unpack);
	ram_destroy(&other.ram);
	dirty_stop(&d);
	hashes_free(&hashes);
	hashes_free(&other.hashes);
	machine_free(m);
}

static void fill(uint64_t index, uint8_t value)
{
	static uint8_t page[PAGE_SIZE];

	memset(page, value, sizeof(page));
	ck_assert_int_eq(ram_write(&m->vm->ram, index * PAGE_SIZE, page, PAGE_SIZE), 0);
}

static void put(uint64_t index, uint64_t offset, uint64_t value)
{
	ck_assert_int_eq(ram_write(&m->vm->ram, index * PAGE_SIZE + offset, &value, sizeof(value)),
			 0);
}

START_TEST(all_arrives)
{
	begin();
	for (uint64_t i = 300; i < 1500; i += 1 + i % 3)
		fill(i, (uint8_t)(i % 251 + 1));
	a_round();
	ck_assert_uint_eq(path.total.scanned, NPAGES);
	ck_assert_uint_eq(path.total.unchanged, 0);
	ck_assert_uint_gt(path.total.sent, 500);
	ck_assert_uint_gt(path.total.zero, 1000);
	end();
}
END_TEST

/* Bytes that zstd cannot make smaller, others for each seed. */
static void fill_random(uint64_t seed, uint64_t index)
{
	static uint8_t page[PAGE_SIZE];
	uint64_t x = seed << 32 | (index + 1), *word = (uint64_t *)(void *)page;

	for (size_t i = 0; i < PAGE_SIZE / sizeof(*word); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		word[i] = x;
	}
	ck_assert_int_eq(ram_write(&m->vm->ram, index * PAGE_SIZE, page, PAGE_SIZE), 0);
}

/* Compressed where that makes a batch smaller, between holes, zeros and what is sent as it is. */
START_TEST(compressed_pages_arrive)
{
	begin();
	pack_init(&path.pack, MIGRATE_COMPRESS_ZSTD, 3);
	for (uint64_t i = 300; i < 900; i++) {
		fill(i, (uint8_t)(i % 16 ? i % 251 + 1 : 0));
		/* No two alike. */
		if (i % 16)
			put(i, 8, i);
	}
	for (uint64_t i = 1024; i < 1536; i++)
		fill_random(0, i);
	a_round();
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	ck_assert_uint_ge(path.total.packed, 500);
	ck_assert_uint_le(path.total.packed, 600 + 2 * WIRE_BATCH_PAGES);
	ck_assert_uint_gt(path.total.sent, 1000);
	ck_assert_uint_lt(conn.sent, 512 * PAGE_SIZE + MIB);
	fill(310, 7);
	fill_random(0, 311);
	end();
}
END_TEST

/* ---- the same as another page ---- */

START_TEST(copies_arrive)
{
	uint64_t sent;

	begin();
	for (uint64_t i = 300; i < 1500; i++)
		fill_random(7, i % 100);
	for (uint64_t i = 300; i < 1500; i++) {
		static uint8_t page[PAGE_SIZE];

		memset(page, (int)(i % 10 + 1), sizeof(page));
		ck_assert_int_eq(ram_write(&m->vm->ram, i * PAGE_SIZE, page, PAGE_SIZE), 0);
	}
	a_round();
	ck_assert_uint_ge(path.total.copied, 1180);
	ck_assert_uint_gt(path.total.sent, path.total.copied);
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	/* What they were copies of changes, and what they become is elsewhere already. */
	sent = conn.sent;
	for (uint64_t i = 300; i < 310; i++)
		fill_random(8, i);
	for (uint64_t i = 310; i < 1500; i++)
		fill(i, (uint8_t)((i + 1) % 10 + 1));
	a_round();
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	ck_assert_uint_lt(conn.sent - sent, 300 * PAGE_SIZE);
	end();
}
END_TEST

/* ---- what has changed ---- */

#define MANY 2000U

/* Rounds in each of which a few bytes of many pages change, at places that move. */
static uint64_t change_few(unsigned rounds, double byte_ns, uint64_t rtt_ns)
{
	uint64_t sent;

	work.net = (struct asks_network){.byte_ns = byte_ns, .rtt_ns = rtt_ns};
	for (uint64_t i = 0; i < MANY; i++)
		fill_random(0, 300 + i);
	a_round();
	ck_assert_uint_eq(path.total.delta, 0);
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	sent = conn.sent;
	for (unsigned n = 1; n <= rounds; n++) {
		for (uint64_t i = 0; i < MANY; i++) {
			for (uint64_t k = 0; k < i % 5; k++)
				put(300 + i, (i * 8 + n * 256 + k * 1000) % (PAGE_SIZE - 8), n + k);
		}
		a_round();
	}
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	return conn.sent - sent;
}

START_TEST(deltas_arrive)
{
	uint64_t sent;

	begin();
	sent = change_few(5, 1, 100000);
	ck_assert_uint_gt(path.total.delta, 5 * MANY / 2);
	ck_assert_uint_lt(sent, 5 * MANY * PAGE_SIZE / 8);
	/* Into pages that are zeros there, or were given back, or all new. */
	for (uint64_t i = 0; i < MANY; i++) {
		if (i % 4 == 0)
			fill(300 + i, 0);
		else if (i % 4 == 1)
			ck_assert_int_eq(ram_zero_pages(&m->vm->ram, 300 + i, 1), 0);
		else if (i % 4 == 2)
			fill_random(1, 300 + i);
	}
	a_round();
	for (uint64_t i = 0; i < MANY; i++)
		put(300 + i, 800, i + 1);
	a_round();
	end();
}
END_TEST

/* The same, compressed. */
START_TEST(packed_deltas_arrive)
{
	begin();
	pack_init(&path.pack, MIGRATE_COMPRESS_ZSTD, 1);
	change_few(3, 1, 100000);
	ck_assert_uint_gt(path.total.delta, 3 * MANY / 2);
	for (uint64_t i = 0; i < MANY; i++) {
		fill(300 + i, (uint8_t)(i % 9 + 1));
		put(300 + i, 16, i + 1);
	}
	a_round();
	for (uint64_t i = 0; i < MANY; i++)
		put(300 + i, 800, i % 3 + 1);
	a_round();
	ck_assert_uint_gt(path.total.packed, 0);
	end();
}
END_TEST

/* Where a round trip takes longer than the pages themselves nothing is asked for. */
START_TEST(deltas_that_do_not_pay)
{
	begin();
	change_few(5, 0.01, 10 * NS_PER_MS);
	ck_assert_uint_eq(path.total.delta, 0);
	end();
}
END_TEST

/* All of each page is new: after a few tries it is not asked for. */
START_TEST(deltas_of_new_pages)
{
	uint64_t asked;

	begin();
	work.net = (struct asks_network){.byte_ns = 1};
	for (unsigned n = 0; n < 20; n++) {
		for (uint64_t i = 0; i < MANY; i++)
			fill_random(n, 300 + i);
		a_round();
	}
	ck_assert_uint_eq(path.total.delta, 0);
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	asked = conn.received;
	ck_assert_uint_gt(asked, 0);
	ck_assert_uint_lt(asked, 20 * MANY * sizeof(struct delta_hashes) / 20);
	/* Then they change little, and it comes on again. */
	for (unsigned n = 0; n < 60 && path.total.delta < 4 * MANY; n++) {
		for (uint64_t i = 0; i < MANY; i++)
			put(300 + i, n * 8, i + n);
		a_round();
	}
	ck_assert_uint_ge(path.total.delta, 4 * MANY);
	end();
}
END_TEST

/* ---- the guest at rest ---- */

/* Straight from its RAM, everything that can be sent arrives as otherwise. */
START_TEST(at_rest)
{
	begin();
	change_few(2, 1, 100000);
	for (unsigned n = 0; n < 4; n++) {
		work.at_rest = true;
		if (n == 2)
			pack_init(&path.pack, MIGRATE_COMPRESS_ZSTD, 1);
		for (uint64_t i = 0; i < MANY; i++) {
			if (i % 7 == 0)
				fill_random(3 + n, 300 + i);
			else if (i % 7 == 1)
				fill(300 + i, (uint8_t)(i % 50));
			else if (i % 7 == 2)
				ck_assert_int_eq(ram_zero_pages(&m->vm->ram, 300 + i, 1), 0);
			else if (i % 7 < 6)
				put(300 + i, 800, i + n);
		}
		a_round();
		ck_assert_int_eq(path.direct, n < 2);
	}
	ck_assert_uint_gt(path.total.delta, 3 * MANY);
	ck_assert_uint_gt(path.total.copied, MANY / 10);
	end();
}
END_TEST

/* What never changed again is not sent again, and not even looked at. */
START_TEST(rounds_shrink)
{
	uint64_t frames;

	begin();
	for (uint64_t i = 300; i < 800; i++)
		fill(i, 1);
	a_round();
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	fill(400, 2);
	a_round();
	ck_assert_uint_ge(path.total.scanned, NPAGES + 1);
	ck_assert_uint_lt(path.total.scanned, NPAGES + 50);
	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	/* The same bytes again are no news. */
	frames = path.total.sent;
	fill(400, 2);
	a_round();
	ck_assert_uint_eq(path.total.sent, frames);
	ck_assert_uint_ge(path.total.unchanged, 1);
	end();
}
END_TEST

/* ---- clear, then read ---- */

#define HOT 1000U

static unsigned hook_stores;

static void store_hot(void)
{
	kvm_guest_store(m->vm, HOT * PAGE_SIZE + 8, 1000 + ++hook_stores);
}

/*
 * The guest stores right before its dirty bit is cleared: the store's bit goes with it, so the
 * page must not have been read yet.
 */
START_TEST(store_before_clearing)
{
	begin();
	hook_page = HOT;
	before_clear = store_hot;
	a_round();
	ck_assert_uint_eq(hook_stores, 1);
	kvm_guest_store(m->vm, HOT * PAGE_SIZE + 16, 1);
	a_round();
	ck_assert_uint_eq(hook_stores, 2);
	end();
}
END_TEST

/* Right after it: in this round's copy or not, it is in the next round's log. */
START_TEST(store_after_clearing)
{
	begin();
	hook_page = HOT;
	after_clear = store_hot;
	a_round();
	ck_assert_uint_eq(hook_stores, 1);
	a_round();
	ck_assert_uint_eq(hook_stores, 2);
	end();
}
END_TEST

/* ---- a page that does not hold still ---- */

#define RESTLESS 1100U
#define RESTLESS_PAGES 8U

static atomic_bool restless;

/* Another processor: the guest's vCPU in its RAM. Its stores are logged by hand, as KVM would. */
static void *never_still(void *arg)
{
	uint8_t *p = m->vm->ram.host + RESTLESS * PAGE_SIZE;

	(void)arg;
	for (uint64_t n = 1; restless; n++) {
		/* Now and then a whole page of zeros. */
		uint64_t v = n % 5 ? n * 0x9e3779b97f4a7c15 : 0;

		for (size_t i = 0; i < RESTLESS_PAGES * PAGE_SIZE; i += 64)
			*(volatile uint64_t *)(void *)(p + i) = v;
	}
	return NULL;
}

START_TEST(hash_is_of_what_was_sent)
{
	uint64_t deadline;
	pthread_t t;

	begin();
	restless = true;
	ck_assert_int_eq(pthread_create(&t, NULL, never_still, NULL), 0);
	deadline = now_ns() + 20 * NS_PER_SEC;
	while (path.total.sent < 600 && now_ns() < deadline) {
		for (unsigned i = 0; i < RESTLESS_PAGES; i++)
			ck_assert_int_eq(
				ram_write(&m->vm->ram, (RESTLESS + i) * PAGE_SIZE + 32, "x", 1), 0);
		a_round();
	}
	restless = false;
	pthread_join(t, NULL);
	ck_assert_msg(path.total.sent > 500, "only %llu pages sent",
		      (unsigned long long)path.total.sent);
	for (unsigned i = 0; i < RESTLESS_PAGES; i++)
		fill(RESTLESS + i, 9);
	end();
}
END_TEST

/* ---- the table says what the other side holds ---- */

/*
 * Every way from one content to another, among: nothing ever, a hole, zeros, A, B; each step in a
 * round of its own, or two within one.
 */
static void become(uint64_t index, unsigned content)
{
	switch (content) {
	case 0:
		ck_assert_int_eq(ram_zero_pages(&m->vm->ram, index, 1), 0);
		break;
	case 1:
		fill(index, 0);
		break;
	default:
		fill(index, (uint8_t)(content * 16));
	}
}

START_TEST(every_change)
{
	const unsigned kinds = 4;
	uint64_t index = 600;

	begin();
	a_round();
	for (unsigned seq = 0; seq < kinds * kinds * kinds * kinds; seq++)
		become(index + seq, seq % kinds);
	a_round();
	for (unsigned seq = 0; seq < kinds * kinds * kinds * kinds; seq++)
		become(index + seq, seq / kinds % kinds);
	a_round();
	for (unsigned seq = 0; seq < kinds * kinds * kinds * kinds; seq++) {
		/* Twice between two rounds: only the last counts. */
		become(index + seq, seq / kinds / kinds % kinds);
		become(index + seq, seq / kinds / kinds / kinds % kinds);
	}
	a_round();
	for (unsigned seq = 0; seq < kinds * kinds * kinds * kinds; seq++)
		become(index + seq, seq % kinds);
	end();
}
END_TEST

/* A content that goes away and comes back, each time in a round of its own. */
START_TEST(there_and_back)
{
	begin();
	fill(700, 7);
	a_round();
	for (unsigned i = 0; i < 3; i++) {
		fill(700, 0);
		a_round();
		fill(700, 7);
		a_round();
		ck_assert_uint_eq(hash_equal(&hashes.table[700], &hashes.zero), false);
		fill(700, 8);
		a_round();
		fill(700, 7);
		a_round();
	}
	end();
}
END_TEST

/* ---- holes ---- */

static uint64_t used_here(void)
{
	return ram_used(&m->vm->ram) / PAGE_SIZE;
}

/* Once the other side has taken all frames. */
static uint64_t used_there(void)
{
	uint64_t deadline = now_ns() + 60 * NS_PER_SEC;

	ck_assert_int_eq(conn_flush(&conn, &m->err), 0);
	while (other.frames < conn.seq_out && now_ns() < deadline)
		usleep(100);
	ck_assert_uint_eq(other.frames, conn.seq_out);
	return ram_used(&other.ram) / PAGE_SIZE;
}

/* What was never touched is not read, not sent and not stored. */
START_TEST(untouched)
{
	uint64_t used;

	begin();
	for (uint64_t i = 300; i < 1500; i += 2)
		fill(i, 1);
	used = used_here();
	ck_assert_uint_lt(used, NPAGES / 2);
	a_round();
	ck_assert_uint_eq(path.total.scanned, NPAGES);
	ck_assert_uint_eq(used_here(), used);
	ck_assert_uint_le(used_there(), used);
	ck_assert_uint_eq(other.store.pages_zeroed, 0);
	end();
}
END_TEST

/* Given back before anything was sent: the destination takes no more memory than the source has. */
START_TEST(given_back_before)
{
	uint64_t used;

	begin();
	for (uint64_t i = 300; i < 1500; i += 2)
		fill(i, 1);
	for (uint64_t i = 301; i < 1500; i += 2)
		ck_assert_int_eq(ram_zero_pages(&m->vm->ram, i, 1), 0);
	used = used_here();
	a_round();
	ck_assert_uint_eq(used_here(), used);
	ck_assert_uint_le(used_there(), used);
	end();
}
END_TEST

/*
 * A guest that gives most of its memory back once it was sent: the source does not grow by telling,
 * which takes a few bytes, and the destination gives it back, too.
 */
START_TEST(given_back)
{
	uint64_t used, sent;

	begin();
	for (uint64_t i = 300; i < 4000; i++)
		fill(i, (uint8_t)(i % 200 + 1));
	a_round();
	ck_assert_uint_gt(used_there(), 3600);
	ck_assert_int_eq(ram_zero_pages(&m->vm->ram, 400, 3500), 0);
	/* What is in between: a page that was written after it was given back, and one of zeros. */
	fill(2000, 3);
	fill(2001, 0);
	used = used_here();
	ck_assert_uint_lt(used, 1200);
	sent = conn.sent;
	a_round();
	ck_assert_uint_eq(used_here(), used);
	ck_assert_uint_le(used_there(), used);
	ck_assert_uint_eq(other.store.pages_zeroed, 3499);
	ck_assert_uint_lt(conn.sent - sent, 32 * 1024);
	/* It is known there now, and is not told again. */
	ck_assert_int_eq(ram_zero_pages(&m->vm->ram, 400, 1000), 0);
	a_round();
	used_there();
	ck_assert_uint_eq(other.store.pages_zeroed, 3499);
	/* A few holes here and there. */
	for (uint64_t i = 300; i < 400; i += 3)
		ck_assert_int_eq(ram_zero_pages(&m->vm->ram, i, 1), 0);
	used = used_here();
	a_round();
	ck_assert_uint_eq(used_here(), used);
	ck_assert_uint_le(used_there(), used);
	end();
}
END_TEST

/* However much memory there is, finding out about a range takes a call or two. */
START_TEST(holes_are_cheap)
{
	begin();
	for (uint64_t i = 16; i < NPAGES; i++)
		fill(i, 1);
	n_seek_data = 0;
	a_round();
	ck_assert_uint_gt(n_seek_data, 0);
	/* The first range is not of one piece. */
	ck_assert_uint_le(n_seek_data, NPAGES / (PAGES_RANGE_WORDS * 64) + 8);
	ck_assert_uint_eq(n_seek_hole, 0);
	end();
}
END_TEST

/* Pages in swap are not in memory, and are no holes. */
START_TEST(swapped_out)
{
	begin();
	in_core = IN_CORE_NONE;
	for (uint64_t i = 300; i < 1500; i += 1 + i % 3)
		fill(i, (uint8_t)(i % 251 + 1));
	a_round();
	ck_assert_uint_gt(path.total.sent, 500);
	ck_assert_int_eq(ram_zero_pages(&m->vm->ram, 400, 300), 0);
	a_round();
	in_core = IN_CORE_FAILS;
	for (uint64_t i = 300; i < 500; i += 1 + i % 3)
		fill(i, (uint8_t)(i % 201 + 2));
	a_round();
	end();
}
END_TEST

static void punch_hot(void)
{
	hook_stores++;
	ck_assert_int_eq(ram_zero_pages(&m->vm->ram, HOT, 1), 0);
}

/* A page that is given back, and stored into, at each moment around the clearing and the look. */
START_TEST(given_back_meanwhile)
{
	void (**const moments[])(void) = {&before_clear, &after_clear, &after_look};
	void (*const deeds[])(void) = {store_hot, punch_hot};

	begin();
	hook_page = HOT;
	for (unsigned i = 0; i < 2 * ARRAY_SIZE(moments) * ARRAY_SIZE(deeds); i++) {
		void (**moment)(void) = moments[i / 2 % ARRAY_SIZE(moments)];

		/* From what the destination holds, and from a hole there. */
		fill(HOT, (uint8_t)(i + 1));
		fill(HOT - 1, (uint8_t)(i + 1));
		a_round();
		if (i % 2)
			ck_assert_int_eq(ram_zero_pages(&m->vm->ram, HOT, 1), 0);
		else
			fill(HOT, (uint8_t)(i + 100));
		fill(HOT - 1, (uint8_t)(i + 100));
		hook_stores = 0;
		*moment = deeds[i / 2 / ARRAY_SIZE(moments)];
		a_round();
		ck_assert_uint_ge(hook_stores, 1);
		*moment = NULL;
		a_round();
		used_there();
		ck_assert(
			!memcmp(ram_page(&other.ram, HOT), ram_page(&m->vm->ram, HOT), PAGE_SIZE));
	}
	end();
}
END_TEST

static void round_within(void)
{
	before_punch = after_punch = NULL;
	hook_stores++;
	a_round();
}

/* A round between the punch and its mark sees zeros or what was before, and the next one looks. */
START_TEST(punch_then_mark)
{
	void (**const moments[])(void) = {&before_punch, &after_punch};

	begin();
	for (unsigned i = 0; i < 2; i++) {
		fill(HOT, 7);
		a_round();
		hook_stores = 0;
		*moments[i] = round_within;
		ck_assert_int_eq(ram_zero_pages(&m->vm->ram, HOT, 1), 0);
		ck_assert_uint_eq(hook_stores, 1);
		a_round();
		used_there();
		ck_assert(hash_equal(&hashes.table[HOT], &hashes.zero));
		ck_assert(page_is_zero(ram_page(&other.ram, HOT)));
	}
	end();
}
END_TEST

/* A balloon that breathes while rounds go, on the pages that they are at. */
static void *breathe(void *arg)
{
	static uint8_t page[PAGE_SIZE];

	(void)arg;
	for (unsigned n = 1; restless; n++) {
		uint64_t at = RESTLESS + n % RESTLESS_PAGES;

		memset(page, (int)n, sizeof(page));
		if (n % 3 == 0)
			ram_zero_pages(&m->vm->ram, RESTLESS, RESTLESS_PAGES);
		else
			ram_write(&m->vm->ram, at * PAGE_SIZE, page, PAGE_SIZE);
	}
	return NULL;
}

START_TEST(given_back_at_random)
{
	uint64_t deadline = now_ns() + 60 * NS_PER_SEC;
	pthread_t t;

	begin();
	restless = true;
	ck_assert_int_eq(pthread_create(&t, NULL, breathe, NULL), 0);
	while (path.total.sent < 300 && now_ns() < deadline)
		a_round();
	restless = false;
	pthread_join(t, NULL);
	ck_assert_uint_gt(path.total.sent, 200);
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		all_arrives,
		compressed_pages_arrive,
		copies_arrive,
		deltas_arrive,
		packed_deltas_arrive,
		deltas_that_do_not_pay,
		deltas_of_new_pages,
		at_rest,
		rounds_shrink,
		store_before_clearing,
		store_after_clearing,
		hash_is_of_what_was_sent,
		every_change,
		there_and_back,
		untouched,
		given_back_before,
		given_back,
		holes_are_cheap,
		swapped_out,
		given_back_meanwhile,
		punch_then_mark,
		given_back_at_random,
	};

	if (!kvm_here())
		return check_skip("pages", "no /dev/kvm");
	return check_main("pages", tests, ARRAY_SIZE(tests));
}
