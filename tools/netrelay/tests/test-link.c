/* SPDX-License-Identifier: MIT */
/* One direction of the link, by a clock of the test's own; and the packets in it. */
#include "../link.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../vmm/tests/check-main.h"
#include "../../../vmm/util.h"
#include "../settings.h"

#define IP 20U
#define TCP 32U /* with a time stamp */
#define HEADER (IP + TCP)
#define MSS 1448U
#define SEGMENT (HEADER + MSS)
#define SEQ 0xfffffff0U /* runs over soon */

static struct link l;

static void put(uint8_t *p, uint32_t v, int n)
{
	for (int i = 0; i < n; i++)
		p[i] = (uint8_t)(v >> 8 * (n - 1 - i));
}

static uint32_t get(const uint8_t *p, int n)
{
	uint32_t v = 0;

	for (int i = 0; i < n; i++)
		v = v << 8 | p[i];
	return v;
}

static uint32_t sum(const uint8_t *p, uint32_t len, uint32_t s)
{
	for (uint32_t i = 0; i < len; i++)
		s += i % 2 ? p[i] : (uint32_t)p[i] << 8;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return s;
}

/* As the kernel hands it out: TCP's sum has only the pseudo header in it. Byte i of the payload is
 * i % 251. */
static struct packet *make_run(uint32_t payload)
{
	struct packet *p = packet_new(HEADER + payload);
	uint8_t *tcp = p->data + IP;

	memset(p->data, 0, HEADER);
	p->data[0] = 0x45;
	put(p->data + 2, p->len, 2);
	put(p->data + 4, 0xfffe, 2);
	p->data[8] = 64;
	p->data[9] = IPPROTO_TCP;
	put(p->data + 12, 0x0a4d0001, 4);
	put(p->data + 16, 0x0a4d0002, 4);
	put(p->data + 10, 0xffff - sum(p->data, IP, 0), 2);
	put(tcp + 4, SEQ, 4);
	tcp[12] = TCP / 4 << 4;
	tcp[13] = TH_ACK | TH_PUSH | TH_FIN;
	put(tcp + 16, sum(p->data + 12, 8, IPPROTO_TCP + TCP + payload), 2);
	for (uint32_t i = 0; i < payload; i++)
		p->data[HEADER + i] = (uint8_t)(i % 251);
	p->vnet = (struct virtio_net_hdr){
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		.gso_type = payload > MSS ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_NONE,
		.gso_size = payload > MSS ? MSS : 0,
		.hdr_len = HEADER,
		.csum_start = IP,
		.csum_offset = 16,
	};
	return p;
}

static void begin(struct link_config c)
{
	link_free(&l);
	link_init(&l, &c, 7);
}

/* How many segments have come out by this time; frees them. */
static uint64_t arrived(uint64_t now)
{
	uint64_t before = l.stats.delivered;

	for (struct packet *p; (p = link_pop(&l, now));)
		free(p);
	return l.stats.delivered - before;
}

/* Is this what the segments from `from` on would be, were they sent alone? */
static void check_part(const struct packet *p, uint32_t from, uint32_t payload, bool last)
{
	const uint8_t *tcp = p->data + IP;

	ck_assert_uint_eq(p->len, HEADER + payload);
	ck_assert_uint_eq(get(p->data + 2, 2), p->len);
	ck_assert_uint_eq(get(p->data + 4, 2), (0xfffe + from) & 0xffff);
	ck_assert_uint_eq(sum(p->data, IP, 0), 0xffff);
	ck_assert_uint_eq(get(tcp + 4, 4), SEQ + from * MSS);
	ck_assert_int_eq((tcp[13] & TH_FIN) != 0, last);
	ck_assert_int_eq((tcp[13] & TH_PUSH) != 0, last);
	ck_assert_uint_eq(get(tcp + 16, 2), sum(p->data + 12, 8, IPPROTO_TCP + TCP + payload));
	for (uint32_t i = 0; i < payload; i++)
		ck_assert_uint_eq(p->data[HEADER + i], (from * MSS + i) % 251);
	ck_assert_uint_eq(p->vnet.gso_type,
			  payload > MSS ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_NONE);
}

START_TEST(ideal)
{
	struct packet *p = make_run(10 * MSS), *same;

	begin((struct link_config){.rate = 0});
	link_push(&l, p, 5);
	ck_assert_uint_eq(link_due(&l), 5);
	same = link_pop(&l, 5);
	ck_assert_ptr_eq(same, p);
	check_part(same, 0, 10 * MSS, true);
	free(same);
	ck_assert_uint_eq(l.stats.sent, 10);
	ck_assert_uint_eq(l.stats.bytes, 10 * SEGMENT);
	ck_assert_ptr_null(link_pop(&l, UINT64_MAX));
}

/* Pieces, each of which arrives when its last bit has passed. */
START_TEST(rate)
{
	uint64_t segment_ns = SEGMENT * 8 * NS_PER_SEC / 100000000;
	struct packet *p;

	begin((struct link_config){.rate = 100000000, .delay_ns = 20 * NS_PER_MS});
	link_push(&l, make_run(20 * MSS - 1), 0);
	/* 12.5 kB in a millisecond. */
	p = link_pop(&l, 8 * segment_ns + 20 * NS_PER_MS);
	ck_assert_ptr_nonnull(p);
	check_part(p, 0, 8 * MSS, false);
	free(p);
	ck_assert_ptr_null(link_pop(&l, 8 * segment_ns + 20 * NS_PER_MS));
	p = link_pop(&l, UINT64_MAX / 2);
	check_part(p, 8, 8 * MSS, false);
	free(p);
	p = link_pop(&l, UINT64_MAX / 2);
	check_part(p, 16, 4 * MSS - 1, true);
	ck_assert_uint_ge(p->due_ns, 20 * segment_ns + 20 * NS_PER_MS - 1000);
	ck_assert_uint_le(p->due_ns, 20 * segment_ns + 20 * NS_PER_MS);
	free(p);
}

/* 50 ms at 10 Mbit/s are 62,500 bytes. */
START_TEST(full_queue)
{
	begin((struct link_config){.rate = 10000000});
	for (int i = 0; i < 20; i++)
		link_push(&l, make_run(10 * MSS), 0);
	ck_assert_uint_eq(l.stats.dropped, 200 - 42);
	ck_assert_uint_eq(arrived(UINT64_MAX / 2), 42);
	/* Empty again a second later. */
	link_push(&l, make_run(10 * MSS), NS_PER_SEC);
	ck_assert_uint_eq(arrived(UINT64_MAX / 2), 10);
}

START_TEST(loss)
{
	begin((struct link_config){.loss = 0.02});
	for (int i = 0; i < 2500; i++)
		link_push(&l, make_run(40 * MSS), 0);
	/* 2,000 of 100,000, give or take five standard deviations. */
	ck_assert_uint_ge(l.stats.lost, 2000 - 222);
	ck_assert_uint_le(l.stats.lost, 2000 + 222);
	ck_assert_uint_eq(arrived(0), 100000 - l.stats.lost);
}

/* What is around one that was lost is whole. */
START_TEST(around_a_loss)
{
	uint32_t next = 0, n;
	struct packet *p;

	begin((struct link_config){.loss = 0.1});
	link_push(&l, make_run(40 * MSS), 0);
	ck_assert_uint_gt(l.stats.lost, 0);
	while ((p = link_pop(&l, 0))) {
		next = (get(p->data + IP + 4, 4) - SEQ) / MSS;
		n = (p->len - HEADER) / MSS;
		check_part(p, next, n * MSS, next + n == 40);
		free(p);
	}
}

/* By the rules of RFC 1071 the sum of all, its own included, is 0xffff. */
static uint32_t tcp_sum(const struct packet *p)
{
	uint32_t tcp = p->len - IP;

	return sum(p->data + IP, tcp, sum(p->data + 12, 8, IPPROTO_TCP + tcp));
}

static unsigned bits_that_differ(const struct packet *p, const struct packet *q, uint32_t from)
{
	unsigned n = 0;

	for (uint32_t i = from; i < p->len; i++)
		n += (unsigned)__builtin_popcount((unsigned)(p->data[i] ^ q->data[i]));
	return n;
}

START_TEST(damage_is_seen)
{
	struct packet *good = make_run(999), *p;

	for (uint64_t bit = IP * 8; bit < good->len * 8UL; bit += 37) {
		p = make_run(999);
		packet_damage(p, bit);
		ck_assert_uint_ne(tcp_sum(p), 0xffff);
		ck_assert_uint_eq(p->vnet.flags, 0);
		free(p);
	}
	free(good);
}

START_TEST(forgery_is_not_seen)
{
	struct packet *good = make_run(999), *p;

	for (uint64_t bit = 0; bit < good->len * 8UL; bit += 37) {
		p = make_run(999);
		ck_assert(packet_forge(p, bit));
		ck_assert_uint_eq(tcp_sum(p), 0xffff);
		ck_assert_uint_eq(bits_that_differ(p, good, HEADER), 1);
		free(p);
	}
	p = make_run(0);
	ck_assert(!packet_forge(p, 0));
	free(p);
	free(good);
}

START_TEST(bit_errors)
{
	/* 12,000 bits a segment: one in 83 is hit. */
	begin((struct link_config){.corrupt_fixed = 1e-6});
	for (int i = 0; i < 2500; i++)
		link_push(&l, make_run(40 * MSS), 0);
	ck_assert_uint_ge(l.stats.forged, 1192 - 200);
	ck_assert_uint_le(l.stats.forged, 1192 + 200);
	ck_assert_uint_eq(arrived(0), 100000);
}

START_TEST(doubles)
{
	begin((struct link_config){.duplicate = 0.01});
	for (int i = 0; i < 250; i++)
		link_push(&l, make_run(40 * MSS), 0);
	ck_assert_uint_ge(l.stats.duplicated, 50);
	ck_assert_uint_le(l.stats.duplicated, 150);
	ck_assert_uint_eq(arrived(0), 10000 + l.stats.duplicated);
}

START_TEST(order)
{
	uint64_t reordered = 0;
	uint32_t last = 0, at;

	/* Jitter alone keeps it. */
	for (int reorder = 0; reorder < 2; reorder++) {
		begin((struct link_config){.delay_ns = 10 * NS_PER_MS,
					   .jitter_ns = 5 * NS_PER_MS,
					   .reorder = reorder ? 0.05 : 0});
		for (uint32_t i = 0; i < 1000; i++) {
			struct packet *p = make_run(100);

			put(p->data + IP + 4, i, 4);
			link_push(&l, p, i * NS_PER_MS / 10);
		}
		last = 0;
		for (struct packet *p; (p = link_pop(&l, UINT64_MAX / 2));) {
			at = get(p->data + IP + 4, 4);
			reordered += at < last;
			last = at;
			free(p);
		}
		ck_assert_int_eq(reordered > 0, reorder);
	}
}

START_TEST(cut_and_join)
{
	begin((struct link_config){.rate = 10000000, .delay_ns = NS_PER_SEC});
	link_push(&l, make_run(10 * MSS), 0);
	link_cut(&l, true);
	link_push(&l, make_run(10 * MSS), 0);
	ck_assert_uint_eq(l.stats.cut, 20);
	ck_assert_uint_eq(arrived(UINT64_MAX / 2), 0);
	link_cut(&l, false);
	link_push(&l, make_run(MSS), 0);
	ck_assert_uint_eq(arrived(2 * NS_PER_SEC), 1);
}

/* The order stays, and what is on its way keeps its time. */
START_TEST(shorter_delay)
{
	begin((struct link_config){.delay_ns = NS_PER_SEC});
	link_push(&l, make_run(MSS), 0);
	link_configure(&l, &(struct link_config){.delay_ns = NS_PER_MS});
	link_push(&l, make_run(MSS), 0);
	ck_assert_uint_eq(arrived(NS_PER_SEC - 1), 0);
	ck_assert_uint_eq(arrived(NS_PER_SEC), 2);
}

START_TEST(not_a_packet)
{
	struct packet *p = make_run(100);

	begin((struct link_config){.rate = 0});
	p->data[0] = 0x60;
	link_push(&l, p, 0);
	p = make_run(100);
	p->len--;
	link_push(&l, p, 0);
	p = packet_new(1);
	memset(PACKET_IO(p), 0, PACKET_IO_LEN(p));
	link_push(&l, p, 0);
	p = make_run(100);
	p->data[IP + 12] = 0xf0; /* a header longer than the packet would be with less payload */
	p->len = HEADER;
	put(p->data + 2, p->len, 2);
	link_push(&l, p, 0);
	ck_assert_uint_eq(l.stats.foreign, 4);
	ck_assert_uint_eq(arrived(UINT64_MAX / 2), 0);
}

START_TEST(words)
{
	static const char *const wrong[] = {"rate=fast", "rate=0mbit", "loss=2",  "loss=-1%",
					    "loss=1%%",	 "delay=x",    "speed=1", "loss",
					    "",		 "loss=nan"};
	struct link_config c = {.rate = 0};
	struct errmsg err = {""};
	char text[256];

	ck_assert_str_eq(settings_show(&c, text, sizeof(text)), "ideal");
	ck_assert_int_eq(settings_set(&c, "rate=1.5gbit", &err), 0);
	ck_assert_int_eq(settings_set(&c, "delay=20ms", &err), 0);
	ck_assert_int_eq(settings_set(&c, "loss=0.5%", &err), 0);
	ck_assert_int_eq(settings_set(&c, "corrupt-fixed=1e-6", &err), 0);
	ck_assert_uint_eq(c.rate, 1500000000);
	ck_assert_uint_eq(c.delay_ns, 20 * NS_PER_MS);
	ck_assert_double_eq_tol(c.loss, 0.005, 1e-9);
	ck_assert_double_eq_tol(c.corrupt_fixed, 1e-6, 1e-12);
	ck_assert_str_eq(settings_show(&c, text, sizeof(text)),
			 "rate=1500mbit delay=20ms loss=0.005 corrupt-fixed=1e-06");
	ck_assert_int_eq(settings_set(&c, "rate=none", &err), 0);
	ck_assert_uint_eq(c.rate, 0);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		err.text[0] = '\0';
		ck_assert_msg(settings_set(&c, wrong[i], &err) < 0, "'%s' was taken", wrong[i]);
		ck_assert_str_ne(err.text, "");
	}
}

int main(void)
{
	const TTest *const tests[] = {
		ideal,	       rate,	       full_queue,	    loss,
		around_a_loss, damage_is_seen, forgery_is_not_seen, bit_errors,
		doubles,       order,	       cut_and_join,	    shorter_delay,
		not_a_packet,  words,
	};

	return check_main("link", tests, ARRAY_SIZE(tests));
}
