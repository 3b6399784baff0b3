/* SPDX-License-Identifier: MIT */
/*
 * netbench: frames to and from a program on the host, counted. The options and the output are in
 * contract.h, the frames in netframe.h.
 *
 * One CPU polls both rings. Every frame to send has a buffer of its own, made once: only its number
 * and its stamp change. A frame that comes may lie in several buffers, which are given back to the
 * device as soon as it has been looked at.
 */

#include "contract.h"
#include "netframe.h"
#include "virtio_dev.h"

#define NET_CSUM VDEV_F(0)
#define NET_GUEST_CSUM VDEV_F(1)
#define NET_GUEST_TSO4 VDEV_F(7)
#define NET_HOST_TSO4 VDEV_F(11)
#define NET_MRG_RXBUF VDEV_F(15)
#define NET_ALL (NET_CSUM | NET_GUEST_CSUM | NET_GUEST_TSO4 | NET_HOST_TSO4 | NET_MRG_RXBUF)

#define RX_BUF RT_PAGE_SIZE
#define TX_MOST 128u /* frames that the device has at a time */
#define ACKS 4u	     /* of a receiver, in each depth of frames */
#define STALL_US 10000000

enum mode { MODE_SEND, MODE_RECEIVE, MODE_PING };

struct frame { /* one to send */
	struct netframe_hdr *hdr;
	uint8_t *bytes;
};

static struct {
	enum mode mode;
	uint32_t frame_len, depth;
	struct vdev dev;
	struct vring rx, tx;
	uint8_t *rx_buf[VRING_MOST];
	struct frame tx_frame[TX_MOST];
	uint32_t tx_free[TX_MOST], tx_nr_free;

	uint64_t sent;	   /* frames of DATA or ASK */
	uint64_t answered; /* ACK: up to here; ANSWER: so many */
	uint64_t received, acked;
	bool begun; /* receive: something has come */

	uint64_t count, slowest, errors;
	uint64_t last; /* cycles: when something was counted */
} bench;

/* --- Sending --- */

static void reap(void)
{
	uint32_t request, len;

	while (vring_take(&bench.tx, &request, &len))
		bench.tx_free[bench.tx_nr_free++] = request;
}

/* False when the device has all buffers. */
static bool send(enum netframe_kind kind, uint64_t number, uint32_t len)
{
	struct netframe *msg;
	struct frame *f;
	struct vbuf buf;
	uint32_t i;

	if (!bench.tx_nr_free)
		return false;
	i = bench.tx_free[--bench.tx_nr_free];
	f = &bench.tx_frame[i];
	msg = (struct netframe *)(f->bytes + NETFRAME_HEADERS);
	if (msg->len != len)
		netframe_make(f->hdr, f->bytes, len, true);
	*msg = (struct netframe){.magic = NETFRAME_MAGIC,
				 .kind = kind,
				 .number = number,
				 .len = len,
				 .errors = (uint32_t)bench.errors};
	number = NETFRAME_STAMP(number);
	memcpy(f->bytes + len - sizeof(number), &number, sizeof(number));
	buf = (struct vbuf){.addr = f->hdr, .len = (uint32_t)sizeof(*f->hdr) + len};
	vring_submit(&bench.tx, i, &buf, 1);
	return true;
}

static void send_what_may(void)
{
	enum netframe_kind kind = bench.mode == MODE_PING ? NETFRAME_ASK : NETFRAME_DATA;

	while (bench.sent - bench.answered < bench.depth && send(kind, bench.sent, bench.frame_len))
		bench.sent++;
}

static void acknowledge(void)
{
	uint64_t every = bench.depth < ACKS ? 1 : bench.depth / ACKS;

	if (bench.received - bench.acked >= every &&
	    send(NETFRAME_ACK, bench.received, NETFRAME_SMALL))
		bench.acked = bench.received;
}

/* --- Receiving --- */

static void wrong(const char *what, uint64_t want, uint64_t got)
{
	if (bench.errors++ < BARE_MAX_ERRORS)
		rt_printf(BARE_NETBENCH_ERROR "%s want=%lu got=%lu\n", what, want, got);
}

static void counted(uint64_t n, uint64_t now)
{
	if (now - bench.last > bench.slowest)
		bench.slowest = now - bench.last;
	bench.last = now;
	bench.count += n;
}

/* A frame has come: its head, the end of it, and how long it was. */
static void take(const struct netframe *msg, const uint8_t *end, uint32_t len, uint64_t now)
{
	static const enum netframe_kind kinds[] = {
		[MODE_SEND] = NETFRAME_ACK,
		[MODE_RECEIVE] = NETFRAME_DATA,
		[MODE_PING] = NETFRAME_ANSWER,
	};
	uint64_t stamp, want = bench.mode == MODE_RECEIVE ? bench.received : bench.answered;

	if (msg->magic != NETFRAME_MAGIC || msg->kind != kinds[bench.mode] || msg->len != len) {
		wrong("frame", kinds[bench.mode], msg->kind);
		return;
	}
	memcpy(&stamp, end - sizeof(stamp), sizeof(stamp));
	if (stamp != NETFRAME_STAMP(msg->number))
		wrong("content", NETFRAME_STAMP(msg->number), stamp);
	if (bench.mode == MODE_SEND) {
		if (msg->errors)
			wrong("order", 0, msg->errors);
		if (msg->number < want || msg->number > bench.sent) {
			wrong("order", want, msg->number);
			return;
		}
		counted(msg->number - want, now);
		bench.answered = msg->number;
		return;
	}
	if (msg->number != want)
		wrong("order", want, msg->number);
	counted(1, now);
	if (bench.mode == MODE_RECEIVE)
		bench.received = msg->number + 1;
	else
		bench.answered = msg->number + 1;
	bench.begun = true;
}

static void give(uint32_t request)
{
	const struct vbuf buf = {.addr = bench.rx_buf[request], .len = RX_BUF, .in = true};

	vring_submit(&bench.rx, request, &buf, 1);
}

static bool receive_one(uint64_t now)
{
	uint32_t first, request, part, len;
	const struct netframe_hdr *hdr;

	if (!vring_take(&bench.rx, &first, &part))
		return false;
	request = first;
	hdr = (const struct netframe_hdr *)bench.rx_buf[first];
	len = part;
	for (uint32_t i = 1; i < hdr->buffers; i++) {
		/* The first is kept for its head; the others are given back once the end is there.
		 */
		if (request != first)
			give(request);
		if (!vring_take(&bench.rx, &request, &part))
			rt_panic("a frame lacks its end");
		len += part;
	}
	if (hdr->buffers == 0 || len < sizeof(*hdr) + NETFRAME_SMALL || part < sizeof(uint64_t))
		wrong("frame", 1, hdr->buffers);
	else
		take((const struct netframe *)(bench.rx_buf[first] + sizeof(*hdr) +
					       NETFRAME_HEADERS),
		     bench.rx_buf[request] + part, len - (uint32_t)sizeof(*hdr), now);
	if (request != first)
		give(request);
	give(first);
	return true;
}

/* --- All of it --- */

static uint64_t step(bool more)
{
	uint64_t now = rt_tsc();

	while (receive_one(now))
		now = rt_tsc();
	reap();
	if (more && bench.mode == MODE_RECEIVE)
		acknowledge();
	else if (more)
		send_what_may();
	if (now - bench.last > rt_us_to_cycles(STALL_US))
		rt_panic(vdev_needs_reset(&bench.dev) ? "the network device needs a reset"
						      : "no frame comes through");
	rt_relax();
	return now;
}

static void run_for(uint64_t ms)
{
	uint64_t start = rt_tsc(), span = rt_us_to_cycles(ms * 1000);

	while (step(true) - start < span)
		;
}

static void read_options(void)
{
	static const char *const modes[] = {"send", "receive", "ping", NULL};
	static const char *const frames[] = {"large", "mtu", "small", NULL};
	static const uint32_t lengths[] = {NETFRAME_LARGE, NETFRAME_MTU, NETFRAME_SMALL};

	bench.mode = (enum mode)rt_option_word("mode", modes, MODE_SEND);
	bench.frame_len = lengths[rt_option_word("frame", frames, 1)];
	bench.depth = (uint32_t)rt_option("depth", 1);
	if (bench.depth == 0 || bench.depth > NETFRAME_MAX_DEPTH)
		rt_panic("depth= is none of 1 to 512");
}

static void start(void)
{
	uint64_t room = sizeof(struct netframe_hdr) + bench.frame_len;
	uint32_t slot = 0;

	while (slot < VDEV_SLOTS && vdev_id(slot) != VDEV_NET)
		slot++;
	if (slot == VDEV_SLOTS)
		rt_skip("no virtio-mmio network device");
	vdev_start(&bench.dev, slot, NET_ALL | VDEV_F_EVENT_IDX);
	if ((bench.dev.features & NET_ALL) != NET_ALL)
		rt_panic("the network device lacks offloads or mergeable buffers");
	vring_start_of(&bench.rx, &bench.dev, 0, 1, VRING_MOST);
	vring_start_of(&bench.tx, &bench.dev, 1, 1, TX_MOST);
	for (uint32_t i = 0; i < bench.tx.requests; i++) {
		struct frame *f = &bench.tx_frame[i];

		f->hdr = memset(rt_alloc(room), 0, room);
		f->bytes = (uint8_t *)(f->hdr + 1);
		bench.tx_free[bench.tx_nr_free++] = i;
	}
	vdev_ready(&bench.dev);
	for (uint32_t i = 0; i < bench.rx.requests; i++) {
		bench.rx_buf[i] = rt_alloc(RX_BUF);
		give(i);
	}
	rt_printf(BARE_NETBENCH_READY_FMT "\n", (uint64_t)bench.frame_len, (uint64_t)bench.depth,
		  (uint64_t)rt.ring, rt.tsc_khz);
}

static void run(void)
{
	uint64_t begin, ns, count, kicks;

	read_options();
	start();
	bench.last = rt_tsc();
	/* The other end begins when it knows that somebody is here. */
	if (bench.mode == MODE_RECEIVE) {
		send(NETFRAME_ACK, 0, NETFRAME_SMALL);
		while (!bench.begun)
			step(true);
	}
	run_for(rt_option("warm_ms", 300));
	rt_printf(BARE_NETBENCH_GO "\n");
	/* What came while that was printed belongs to the time before. */
	begin = step(true);
	bench.count = bench.slowest = 0;
	kicks = bench.rx.kicks + bench.tx.kicks;
	run_for(rt_option("ms", 1000));
	ns = rt_cycles_to_ns(rt_tsc() - begin);
	count = bench.count;
	rt_printf(BARE_NETBENCH_RESULT_FMT "\n", count, count * bench.frame_len, ns,
		  bench.rx.kicks + bench.tx.kicks - kicks, rt_cycles_to_ns(bench.slowest) / 1000,
		  bench.errors);
	rt_printf(BARE_NETBENCH_DONE_FMT "\n", bench.errors);
}

const struct rt_payload rt_payload = {.name = "netbench", .main = run};
