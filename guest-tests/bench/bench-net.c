/* SPDX-License-Identifier: MIT */
/*
 * What a network device of the guest can do: godwit's virtio-net against QEMU's on a tap, the same
 * payload and the same program at the other end.
 *
 * A run has a network namespace of its own, in which there is nothing but the tap; both are gone
 * with the run. The other end is a child with a packet socket on the tap: it takes what the guest
 * sends out before any protocol looks at it, and what it sends goes to the guest. So the figures
 * are about the device, the tap and a system call at the host's end.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "../bare/netframe.h"
#include "../tests/harness.h"
#include "bench-device.h"
#include "bench-qemu.h"
#include "bench.h"

#define TAP "bench0"
#define MIB (1ul << 20)

#define BOOT_MS 20000
#define END_MS 20000

#define BATCH 64U
#define HDR 10U		    /* struct netframe_hdr as packet sockets have it */
#define HEAD 128U	    /* all that is looked at of most frames */
#define CHECKED_FRAMES 256U /* the first of a run: they are looked at from end to end */
#define SOCKET_BYTES (64U << 20)
#define ACKS 4U /* in each depth of frames */

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

struct load {
	const char *mode, *frame;
	uint32_t frame_len;
	unsigned depth;
};

/* ---- the namespace ---- */

static bool prepare(const struct bench_case *c, char why[256])
{
	(void)c;
	if (geteuid() != 0) {
		snprintf(why, 256, "network namespaces and taps need root");
		return false;
	}
	if (access("/dev/net/tun", R_OK | W_OK)) {
		snprintf(why, 256, "/dev/net/tun: %s", strerror(errno));
		return false;
	}
	return true;
}

static void quiet_stack(void)
{
	/* A kernel that has no IPv6 has no such file, and sends nothing of itself either. */
	int fd = open("/proc/sys/net/ipv6/conf/all/disable_ipv6", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		need(write(fd, "1", 1) == 1, "disable_ipv6: %s", strerror(errno));
		close(fd);
	}
}

static void make_tap(void)
{
	int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq req = {.ifr_name = TAP};

	need(tun >= 0 && fd >= 0, "/dev/net/tun: %s", strerror(errno));
	req.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	need(!ioctl(tun, TUNSETIFF, &req) && !ioctl(tun, TUNSETPERSIST, 1), "tap: %s",
	     strerror(errno));
	close(tun);
	req.ifr_flags = IFF_UP;
	need(!ioctl(fd, SIOCSIFFLAGS, &req), "tap up: %s", strerror(errno));
	close(fd);
}

/* ---- the other end: a process that ends with the run ---- */

struct slot {
	uint8_t hdr[HDR];
	uint8_t frame[NETFRAME_LARGE];
	struct iovec iov[2];
};

struct peer {
	int fd;
	uint32_t depth, frame_len;
	struct slot *in, *out; /* [BATCH] */
	struct mmsghdr in_msg[BATCH], out_msg[BATCH];

	uint64_t received, acked; /* of the guest's frames */
	uint64_t sent, answered;  /* ours */
	uint32_t errors;
};

static void set_option(int fd, int level, int option, int value)
{
	need(!setsockopt(fd, level, option, &value, sizeof(value)), "setsockopt %d: %s", option,
	     strerror(errno));
}

static void open_peer(struct peer *p)
{
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};

	/* Bound before it listens to anything. */
	p->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	need(p->fd >= 0, "packet socket: %s", strerror(errno));
	set_option(p->fd, SOL_PACKET, PACKET_VNET_HDR, 1);
	set_option(p->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
	set_option(p->fd, SOL_PACKET, PACKET_QDISC_BYPASS, 1);
	set_option(p->fd, SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BYTES);
	set_option(p->fd, SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES);
	at.sll_ifindex = (int)if_nametoindex(TAP);
	need(!bind(p->fd, (struct sockaddr *)&at, sizeof(at)), "bind to the tap: %s",
	     strerror(errno));
	p->in = calloc(BATCH, sizeof(*p->in));
	p->out = calloc(BATCH, sizeof(*p->out));
	need(p->in && p->out, "out of memory");
	for (unsigned i = 0; i < BATCH; i++) {
		p->in_msg[i].msg_hdr.msg_iov = p->in[i].iov;
		p->out_msg[i].msg_hdr.msg_iov = p->out[i].iov;
		p->in_msg[i].msg_hdr.msg_iovlen = p->out_msg[i].msg_hdr.msg_iovlen = 2;
		p->in[i].iov[0] = (struct iovec){p->in[i].hdr, HDR};
		p->out[i].iov[0] = (struct iovec){p->out[i].hdr, HDR};
	}
}

static void make_frame(struct slot *s, enum netframe_kind kind, uint64_t number, uint32_t len,
		       uint32_t errors)
{
	struct netframe *msg = (struct netframe *)(s->frame + NETFRAME_HEADERS);
	uint64_t stamp = NETFRAME_STAMP(number);
	struct netframe_hdr hdr;

	if (msg->len != len) {
		netframe_make(&hdr, s->frame, len, false);
		memcpy(s->hdr, &hdr, HDR);
	}
	*msg = (struct netframe){NETFRAME_MAGIC, kind, number, len, errors};
	memcpy(s->frame + len - sizeof(stamp), &stamp, sizeof(stamp));
	s->iov[1] = (struct iovec){s->frame, len};
}

static void send_frames(struct peer *p, unsigned n)
{
	for (unsigned at = 0; at < n;) {
		int sent = sendmmsg(p->fd, p->out_msg + at, n - at, 0);

		/* The tap is full, or the socket's memory used up: the guest takes it soon. */
		if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == EINTR)) {
			sched_yield();
			continue;
		}
		if (sent < 0)
			_exit(2);
		at += (unsigned)sent;
	}
}

/* Frames that have come, at most BATCH; waits for the first if so asked. */
static unsigned receive_frames(struct peer *p, bool wait)
{
	size_t look = p->received < CHECKED_FRAMES ? NETFRAME_LARGE : HEAD;
	int n;

	for (unsigned i = 0; i < BATCH; i++)
		p->in[i].iov[1] = (struct iovec){p->in[i].frame, look};
	do
		n = recvmmsg(p->fd, p->in_msg, BATCH,
			     MSG_TRUNC | (wait ? MSG_WAITFORONE : MSG_DONTWAIT), NULL);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != EAGAIN)
		_exit(2);
	return n < 0 ? 0 : (unsigned)n;
}

/* What came in a slot, or NULL when it is no frame of the payload's. */
static const struct netframe *message(const struct peer *p, unsigned i)
{
	const struct slot *s = &p->in[i];
	const struct netframe *msg = (const struct netframe *)(s->frame + NETFRAME_HEADERS);
	uint32_t len = p->in_msg[i].msg_len - HDR;
	uint64_t stamp;

	if (p->in_msg[i].msg_len < HDR + NETFRAME_SMALL || msg->magic != NETFRAME_MAGIC ||
	    msg->len != len)
		return NULL;
	if (s->iov[1].iov_len >= len) {
		memcpy(&stamp, s->frame + len - sizeof(stamp), sizeof(stamp));
		if (stamp != NETFRAME_STAMP(msg->number))
			return NULL;
	}
	return msg;
}

/* The payload sends. */
static void peer_receives(struct peer *p)
{
	for (;;) {
		unsigned n = receive_frames(p, true);

		for (unsigned i = 0; i < n; i++) {
			const struct netframe *msg = message(p, i);

			if (!msg || msg->kind != NETFRAME_DATA || msg->number != p->received)
				p->errors++;
			if (msg)
				p->received = msg->number + 1;
		}
		if (p->received - p->acked >= p->depth / ACKS) {
			make_frame(&p->out[0], NETFRAME_ACK, p->received, NETFRAME_SMALL,
				   p->errors);
			send_frames(p, 1);
			p->acked = p->received;
		}
	}
}

/* The payload receives. */
static void peer_sends(struct peer *p)
{
	bool begun = false;

	for (;;) {
		uint64_t may = begun ? p->depth - (p->sent - p->answered) : 0;
		unsigned n = may < BATCH ? (unsigned)may : BATCH;

		for (unsigned i = 0; i < n; i++)
			make_frame(&p->out[i], NETFRAME_DATA, p->sent++, p->frame_len, 0);
		send_frames(p, n);
		n = receive_frames(p, p->sent - p->answered >= p->depth || !begun);
		for (unsigned i = 0; i < n; i++) {
			const struct netframe *msg = message(p, i);

			if (!msg || msg->kind != NETFRAME_ACK || msg->number > p->sent)
				continue;
			p->answered = msg->number;
			begun = true;
		}
	}
}

static void peer_answers(struct peer *p)
{
	for (;;) {
		unsigned n = receive_frames(p, true), m = 0;

		for (unsigned i = 0; i < n; i++) {
			const struct netframe *msg = message(p, i);

			if (msg && msg->kind == NETFRAME_ASK)
				make_frame(&p->out[m++], NETFRAME_ANSWER, msg->number, msg->len, 0);
		}
		send_frames(p, m);
	}
}

static void start_peer(const struct load *l)
{
	static struct peer p;
	pid_t pid;

	p.depth = l->depth;
	p.frame_len = l->frame_len;
	open_peer(&p);
	pid = fork();
	need(pid >= 0, "fork: %s", strerror(errno));
	if (pid > 0) {
		close(p.fd);
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	device_cpus_peer();
	if (strcmp(l->mode, "send") == 0)
		peer_receives(&p);
	else if (strcmp(l->mode, "receive") == 0)
		peer_sends(&p);
	else
		peer_answers(&p);
}

/* ---- runs ---- */

static const char *cmdline(const struct bench_run *r, const struct load *l)
{
	return harness_path("mode=%s frame=%s depth=%u warm_ms=%u ms=%u", l->mode, l->frame,
			    l->depth, bench_quick(r) ? 100 : 300, bench_quick(r) ? 300 : 1500);
}

static void measure(struct bench_run *r, struct proc *p, const struct load *l)
{
	double cpu, frames, bytes, seconds;
	const char *line;

	proc_fatal(p, BARE_NETBENCH_ERROR "| panic | skip ");
	proc_expect(p, "^netbench ready ", BOOT_MS);
	device_cpus_guest(p);
	proc_expect(p, "^" BARE_NETBENCH_GO "$", BOOT_MS);
	cpu = device_cpu_s(p);
	line = proc_expect(p, "^netbench result ", END_MS);
	cpu = device_cpu_s(p) - cpu;
	need(kv(line, "errors") == 0 && kv(line, "frames") > 0, "%s", line);
	frames = (double)kv(line, "frames");
	bytes = (double)kv(line, "bytes");
	seconds = (double)kv(line, "ns") / 1e9;
	if (strcmp(l->mode, "ping") == 0) {
		bench_put(r, "rate", frames / seconds);
		bench_put(r, "cpu", cpu / frames * 1e5);
	} else {
		bench_put(r, "rate", bytes / (double)MIB / seconds);
		bench_put(r, "cpu", cpu / bytes * (double)(1024 * MIB));
	}
	bench_note(r, "%.2f kicks a frame, device %.0f %% of a CPU, longest wait %.1f ms",
		   (double)kv(line, "kicks") / frames, cpu / seconds * 100,
		   (double)kv(line, "slow_us") / 1e3);
	proc_expect(p, "^netbench done errors=0$", END_MS);
	proc_wait(p, END_MS);
}

static void begin(const struct load *l)
{
	device_cpus_begin();
	need(!unshare(CLONE_NEWNET), "network namespace: %s", strerror(errno));
	quiet_stack();
	make_tap();
	start_peer(l);
}

static void run_godwit(struct bench_run *r)
{
	const struct load *l = bench_arg(r);
	struct guest g;

	begin(l);
	guest_start(&g, "vm", "-m", "256M", "-k", bare_elf("netbench"), "--net", "tap:" TAP, "-p",
		    cmdline(r, l), NULL);
	measure(r, g.proc, l);
}

static void run_qemu(struct bench_run *r)
{
	static const char *const words[] = {
		"-global", "virtio-mmio.force-legacy=false",
		"-netdev", "tap,id=net,ifname=" TAP ",script=no,downscript=no",
		"-device", "virtio-net-device,netdev=net",
		NULL,
	};
	const struct load *l = bench_arg(r);
	struct qemu q;

	begin(l);
	qemu_start(&q, &(struct qemu_config){.label = "qemu",
					     .ram_mib = 256,
					     .cpus = 1,
					     .kernel = bare_elf("netbench"),
					     .append = cmdline(r, l),
					     .extra = words});
	measure(r, q.proc, l);
}

/* ---- cases ---- */

static const struct bench_figure stream_figures[] = {
	{.name = "rate",
	 .unit = "MiB/s",
	 .more = true,
	 .aim = BENCH_RATIO_MIN,
	 .limit = BENCH_DEVICE_EQUAL},
	{.name = "cpu", .unit = "s/GiB", .digits = 2},
	{0},
};
static const struct bench_figure ping_figures[] = {
	{.name = "rate",
	 .unit = "per s",
	 .more = true,
	 .aim = BENCH_RATIO_MIN,
	 .limit = BENCH_DEVICE_EQUAL},
	{.name = "cpu", .unit = "s/100k", .digits = 2},
	{0},
};

#define CASE(name_, what_, mode_, frame_, len_, depth_, figures_)                                  \
	{                                                                                          \
		.name = "net/" name_, .what = what_,                                               \
		.contenders = {{"godwit", run_godwit}, {"qemu", run_qemu}}, .figures = figures_,   \
		.timeout_s = 60,                                                                   \
		.arg = &(const struct load){.mode = mode_,                                         \
					    .frame = frame_,                                       \
					    .frame_len = len_,                                     \
					    .depth = depth_},                                      \
		.prepare = prepare,                                                                \
	}

static const struct bench_case cases[] = {
	CASE("send-64k", "guest to host, frames of 64 KiB (TSO)", "send", "large", NETFRAME_LARGE,
	     64, stream_figures),
	CASE("receive-64k", "host to guest, frames of 64 KiB (TSO)", "receive", "large",
	     NETFRAME_LARGE, 64, stream_figures),
	CASE("send-1500", "guest to host, frames of 1500 bytes", "send", "mtu", NETFRAME_MTU, 256,
	     stream_figures),
	CASE("receive-1500", "host to guest, frames of 1500 bytes", "receive", "mtu", NETFRAME_MTU,
	     256, stream_figures),
	CASE("ping-1", "questions of 96 bytes, one at a time", "ping", "small", NETFRAME_SMALL, 1,
	     ping_figures),
	CASE("ping-32", "questions of 96 bytes, 32 at a time", "ping", "small", NETFRAME_SMALL, 32,
	     ping_figures),
	{0},
};

int main(int argc, char **argv)
{
	return bench_main(argc, argv, &(struct bench){.name = "net", .cases = cases});
}
