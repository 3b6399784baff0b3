/* SPDX-License-Identifier: MIT */
/*
 * What tests of network devices share: the guest's side of the card on top of virtio-driver.h, a
 * network namespace with taps, and a stand-in for passt.
 *
 * The stand-in is the test program itself, which main() hands to fake_passt() when it is called by
 * that name: it sends its end of the frame socket and its arguments to the test and then does as
 * it is told. So everything about the child is the real thing, but for its frames.
 */
#ifndef GODWIT_TESTS_NET_FIXTURE_H
#define GODWIT_TESTS_NET_FIXTURE_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include "../net_device.h"
#include "virtio-driver.h"

#define GUEST_MAC                                                                                  \
	{                                                                                          \
		0x52, 0x54, 0x00, 0x12, 0x34, 0x56                                                 \
	}
static const uint8_t guest_mac[6] = GUEST_MAC;
static const uint8_t peer_mac[6] = {0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc};

#define ALL_FEATURES (~0ULL)
#define QUIET_NS (100 * NS_PER_MS) /* in which nothing may happen */
#define ETHERTYPE_TEST 0x88b5U	   /* for experiments */

static inline struct virtio_net *net_dev(struct driver *d)
{
	return container_of(d->v, struct virtio_net, v);
}

static inline struct net_counters net_count(struct driver *d)
{
	struct net_counters c;

	virtio_net_counters(&d->v->dev, &c);
	return c;
}

static inline struct net_config net_see_config(struct driver *d)
{
	struct net_config c;

	for (unsigned i = 0; i < sizeof(c); i++)
		((uint8_t *)&c)[i] = (uint8_t)virtio_config_read(d->v, i, 1);
	return c;
}

static inline bool net_link_is_up(struct driver *d)
{
	return net_see_config(d).status & NET_LINK_UP;
}

static inline void net_acquired(struct driver *d)
{
	struct errmsg err = {""};
	int ret = d->v->dev.ops->acquire(&d->v->dev, &err);

	ck_assert_msg(ret == 0, "acquire: %s: %s", strerror(-ret), err.text);
}

static inline struct driver *net_new(const struct vm_net *cfg)
{
	struct driver *d = driver_new(&virtio_net_ops, cfg, 64 * MIB);

	net_acquired(d);
	driver_settle(d);
	return d;
}

/* ---- frames ---- */

/* A frame of len bytes whose contents follow from seed. */
static inline void make_frame(uint8_t *f, size_t len, const uint8_t *to, const uint8_t *from,
			      unsigned seed)
{
	memcpy(f, to, 6);
	memcpy(f + 6, from, 6);
	f[12] = ETHERTYPE_TEST >> 8;
	f[13] = ETHERTYPE_TEST & 0xff;
	for (size_t i = 14; i < len; i++)
		f[i] = (uint8_t)(seed + i * 7 + (i >> 8));
}

static inline uint16_t ip_sum(const uint8_t *p, size_t len, uint32_t sum)
{
	for (size_t i = 0; i + 1 < len; i += 2)
		sum += (uint32_t)(p[i] << 8 | p[i + 1]);
	if (len % 2)
		sum += (uint32_t)(p[len - 1] << 8);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static inline void put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

#define IP_AT 14U
#define L4_AT 34U

/* Ethernet and IPv4 in front of l4_len bytes that are there already; addresses in host order. */
static inline size_t finish_ip(uint8_t *f, const uint8_t *to, const uint8_t *from, uint32_t ip_from,
			       uint32_t ip_to, uint8_t protocol, size_t l4_len)
{
	uint8_t *ip = f + IP_AT;
	uint32_t a = htonl(ip_from), b = htonl(ip_to);

	memcpy(f, to, 6);
	memcpy(f + 6, from, 6);
	put16(f + 12, ETH_P_IP);
	memset(ip, 0, 20);
	ip[0] = 0x45;
	put16(ip + 2, (unsigned)(20 + l4_len));
	ip[8] = 64;
	ip[9] = protocol;
	memcpy(ip + 12, &a, 4);
	memcpy(ip + 16, &b, 4);
	put16(ip + 10, (uint16_t)~ip_sum(ip, 20, 0));
	return L4_AT + l4_len;
}

/* Of the pseudo header, as a checksum that hardware goes on from. */
static inline uint16_t pseudo_sum(uint32_t ip_from, uint32_t ip_to, uint8_t protocol, size_t l4_len)
{
	uint32_t sum = (ip_from >> 16) + (ip_from & 0xffff) + (ip_to >> 16) + (ip_to & 0xffff) +
		       protocol + (uint32_t)l4_len;

	return ip_sum(NULL, 0, sum);
}

/* ---- the guest ---- */

struct guest_buf {
	uint64_t gpa;
	uint32_t len;
};

/* The buffer of each receive chain, by pair and head. */
static struct guest_buf rx_buf[NET_MAX_PAIRS][NET_QUEUE_SIZE];

static inline void guest_add_rx(struct driver *d, unsigned pair, unsigned n, uint32_t len)
{
	for (unsigned i = 0; i < n; i++) {
		struct driver_buf b = {.gpa = driver_alloc(d, len), .len = len, .in = true};
		uint16_t head = driver_add(d, 2 * pair, &b, 1);

		rx_buf[pair][head] = (struct guest_buf){.gpa = b.gpa, .len = len};
	}
}

/*
 * Takes a received frame, which is there whole, out of the ring: its header, and its bytes into
 * `frame`. 0 when there is none.
 */
static inline size_t guest_take(struct driver *d, unsigned pair, struct net_hdr *hdr,
				uint8_t *frame)
{
	struct driver_used e;
	size_t len;

	if (!driver_take_used(d, 2 * pair, &e))
		return 0;
	ck_assert_uint_gt(e.len, sizeof(*hdr));
	ck_assert_uint_le(e.len, rx_buf[pair][e.id].len);
	driver_peek(d, rx_buf[pair][e.id].gpa, hdr, sizeof(*hdr));
	len = e.len - sizeof(*hdr);
	driver_peek(d, rx_buf[pair][e.id].gpa + sizeof(*hdr), frame, len);
	ck_assert_uint_ge(hdr->num_buffers, 1);
	for (unsigned i = 1; i < hdr->num_buffers; i++) {
		ck_assert(driver_take_used(d, 2 * pair, &e));
		ck_assert_uint_le(e.len, rx_buf[pair][e.id].len);
		ck_assert_uint_le(len + e.len, NET_FRAME_MAX);
		driver_peek(d, rx_buf[pair][e.id].gpa, frame + len, e.len);
		len += e.len;
	}
	return len;
}

static inline size_t guest_recv(struct driver *d, unsigned pair, struct net_hdr *hdr,
				uint8_t *frame)
{
	size_t len = 0;

	driver_run_until(d, (len = guest_take(d, pair, hdr, frame)) != 0);
	return len;
}

/* Queues a frame behind its header, in n_parts pieces; no kick. */
static inline uint16_t guest_queue(struct driver *d, unsigned pair, const struct net_hdr *hdr,
				   const uint8_t *frame, size_t len, unsigned n_parts)
{
	uint64_t gpa = driver_alloc(d, sizeof(*hdr) + len);
	struct driver_buf b[8];
	uint64_t at = gpa, end = gpa + sizeof(*hdr) + len;

	ck_assert_uint_le(n_parts, ARRAY_SIZE(b));
	driver_poke(d, gpa, hdr, sizeof(*hdr));
	driver_poke(d, gpa + sizeof(*hdr), frame, len);
	for (unsigned i = 0; i < n_parts; i++) {
		uint64_t part = i == n_parts - 1 ? end - at : (end - gpa) / n_parts;

		b[i] = (struct driver_buf){.gpa = at, .len = (uint32_t)part};
		at += part;
	}
	return n_parts == 1 ? driver_add(d, 2 * pair + 1, b, 1)
			    : driver_add_indirect(d, 2 * pair + 1, b, n_parts);
}

static inline void guest_send(struct driver *d, unsigned pair, const struct net_hdr *hdr,
			      const uint8_t *frame, size_t len)
{
	static const struct net_hdr plain;

	guest_queue(d, pair, hdr ? hdr : &plain, frame, len, 2);
	driver_kick(d, 2 * pair + 1);
	driver_wait_used(d, 2 * pair + 1);
}

/* A command on the control queue; the answer. */
static inline unsigned guest_ctrl(struct driver *d, unsigned queue, uint8_t class, uint8_t command,
				  const void *data, uint32_t len)
{
	uint8_t code[2] = {class, command}, ack = 0xaa;
	uint64_t gpa = driver_alloc(d, 2 + len), answer = driver_alloc(d, 1);
	const struct driver_buf b[] = {
		{.gpa = gpa, .len = 2},
		{.gpa = gpa + 2, .len = len},
		{.gpa = answer, .len = 1, .in = true},
	};

	driver_poke(d, gpa, code, 2);
	if (len)
		driver_poke(d, gpa + 2, data, len);
	driver_poke(d, answer, &ack, 1);
	if (len)
		driver_add(d, queue, b, 3);
	else
		driver_add(d, queue, (struct driver_buf[]){b[0], b[2]}, 2);
	driver_kick(d, queue);
	ck_assert_uint_eq(driver_wait_used(d, queue).len, 1);
	driver_peek(d, answer, &ack, 1);
	return ack;
}

/* Nothing comes out of fd for a while, though the loop runs. */
static inline void need_silence(struct driver *d, int fd)
{
	uint64_t end = now_ns() + QUIET_NS;
	struct pollfd p = {.fd = fd, .events = POLLIN};

	while (now_ns() < end) {
		driver_step(d, 5 * NS_PER_MS);
		ck_assert_int_eq(poll(&p, 1, 0), 0);
	}
}

static inline bool is_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* A RARP request that announces mac? */
static inline bool is_announcement(const uint8_t *f, size_t len, const uint8_t *mac)
{
	static const uint8_t all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	static const uint8_t rarp[10] = {0x80, 0x35, 0, 1, 0x08, 0, 6, 4, 0, 3};

	return len >= 42 && memcmp(f, all, 6) == 0 && memcmp(f + 6, mac, 6) == 0 &&
	       memcmp(f + 12, rarp, sizeof(rarp)) == 0 && memcmp(f + 22, mac, 6) == 0 &&
	       memcmp(f + 32, mac, 6) == 0;
}

/* ---- a stand-in for passt ---- */

struct fake {
	char dir[64];
	int listener;
	/* Of the last one that was started. */
	int ctl, frames;
	char args[4096];
};

static inline void fake_unix(const char *dir, struct sockaddr_un *addr)
{
	addr->sun_family = AF_UNIX;
	snprintf(addr->sun_path, sizeof(addr->sun_path), "%s/ctl", dir);
}

/* As a child: argv[0] is .../passt. Ends the process. */
static inline void fake_passt(int argc, char **argv)
{
	struct sockaddr_un addr = {0};
	char args[4096] = "", c;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = args};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
	const char *pid_file = NULL;
	int fd = -1, ctl, out;

	if (getenv("FAKE_PASST_FAILS")) {
		fprintf(stderr, "Failed to send 67 bytes to syslog\nFailed to bind, exiting\n");
		_exit(1);
	}
	for (int i = 1; i < argc; i++) {
		snprintf(args + strlen(args), sizeof(args) - strlen(args), "%s ", argv[i]);
		if (strcmp(argv[i], "--fd") == 0 && i + 1 < argc)
			fd = atoi(argv[i + 1]);
		if (strcmp(argv[i], "--pid") == 0 && i + 1 < argc)
			pid_file = argv[i + 1];
	}
	fake_unix(getenv("FAKE_PASST_DIR"), &addr);
	ctl = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	if (connect(ctl, (struct sockaddr *)&addr, sizeof(addr)))
		_exit(90);
	iov.iov_len = strlen(args);
	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cm), &fd, sizeof(fd));
	if (sendmsg(ctl, &msg, 0) < 0)
		_exit(91);
	close(fd);
	out = open(pid_file ? pid_file : "/nowhere", O_WRONLY | O_TRUNC | O_CREAT, 0600);
	if (out < 0 || write(out, "1\n", 2) != 2)
		_exit(92);
	close(out);
	if (read(ctl, &c, 1) == 1) {
		fprintf(stderr, "told to go\n");
		_exit(c);
	}
	_exit(0);
}

static inline bool called_passt(char **argv)
{
	const char *slash = strrchr(argv[0], '/');

	return strcmp(slash ? slash + 1 : argv[0], "passt") == 0;
}

/* From here on passt is this program. */
static inline void fake_init(struct fake *f)
{
	struct sockaddr_un addr = {0};
	char self[PATH_MAX] = "", link[128];

	*f = (struct fake){.dir = "/tmp/godwit-fake-passt-XXXXXX", .ctl = -1, .frames = -1};
	ck_assert_ptr_nonnull(mkdtemp(f->dir));
	ck_assert_int_gt(readlink("/proc/self/exe", self, sizeof(self) - 1), 0);
	snprintf(link, sizeof(link), "%s/passt", f->dir);
	ck_assert_int_eq(symlink(self, link), 0);
	fake_unix(f->dir, &addr);
	f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	ck_assert_int_eq(bind(f->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(listen(f->listener, 8), 0);
	setenv("PATH", f->dir, 1);
	setenv("FAKE_PASST_DIR", f->dir, 1);
	unsetenv("FAKE_PASST_FAILS");
}

static inline void fake_forget(struct fake *f)
{
	if (f->ctl >= 0)
		close(f->ctl);
	if (f->frames >= 0)
		close(f->frames);
	f->ctl = f->frames = -1;
}

static inline void fake_destroy(struct fake *f)
{
	char path[128];

	fake_forget(f);
	close(f->listener);
	snprintf(path, sizeof(path), "%s/ctl", f->dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/passt", f->dir);
	unlink(path);
	rmdir(f->dir);
}

/* Takes the next one that was started, whose socket is f->frames then. */
static inline void fake_accept(struct fake *f)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {.iov_base = f->args, .iov_len = sizeof(f->args) - 1};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct pollfd p = {.fd = f->listener, .events = POLLIN};
	ssize_t n;

	fake_forget(f);
	ck_assert_int_eq(poll(&p, 1, 20000), 1);
	f->ctl = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
	ck_assert_int_ge(f->ctl, 0);
	n = recvmsg(f->ctl, &msg, MSG_CMSG_CLOEXEC);
	ck_assert_int_gt(n, 0);
	f->args[n] = '\0';
	ck_assert_ptr_nonnull(CMSG_FIRSTHDR(&msg));
	memcpy(&f->frames, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
}

/* It ends with that status. */
static inline void fake_exit(struct fake *f, uint8_t status)
{
	ck_assert_int_eq(write(f->ctl, &status, 1), 1);
}

/* false when the socket is full. */
static inline bool fake_try_send(struct fake *f, const uint8_t *frame, size_t len)
{
	uint32_t be = htonl((uint32_t)len);
	struct iovec iov[] = {{&be, sizeof(be)}, {(void *)frame, len}};
	const struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
	ssize_t n = sendmsg(f->frames, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

	ck_assert(n == (ssize_t)(sizeof(be) + len) || (n < 0 && errno == EAGAIN));
	return n > 0;
}

static inline void fake_send(struct fake *f, const uint8_t *frame, size_t len)
{
	ck_assert(fake_try_send(f, frame, len));
}

/* Reads len bytes while the loop runs. */
static inline void fake_read(struct fake *f, struct driver *d, void *buf, size_t len)
{
	uint8_t *p = buf;

	while (len) {
		ssize_t n;

		driver_run_until(d, is_readable(f->frames));
		n = recv(f->frames, p, len, MSG_DONTWAIT);
		ck_assert_int_gt(n, 0);
		p += n;
		len -= (size_t)n;
	}
}

static inline size_t fake_recv(struct fake *f, struct driver *d, uint8_t *frame)
{
	uint32_t be;

	fake_read(f, d, &be, sizeof(be));
	ck_assert_uint_le(ntohl(be), NET_FRAME_MAX);
	fake_read(f, d, frame, ntohl(be));
	return ntohl(be);
}

/* ---- a network of one's own ---- */

static inline bool write_file(const char *path, const char *text)
{
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

/* Root of a user namespace of its own, which may make a network for itself. */
static inline bool own_user(void)
{
	char uid[64], gid[64];

	snprintf(uid, sizeof(uid), "0 %u 1", geteuid());
	snprintf(gid, sizeof(gid), "0 %u 1", getegid());
	return unshare(CLONE_NEWUSER) == 0 && write_file("/proc/self/setgroups", "deny") &&
	       write_file("/proc/self/uid_map", uid) && write_file("/proc/self/gid_map", gid);
}

/*
 * Puts the process into new network and mount namespaces, with /sys and /dev/net/tun that belong to
 * them. NULL, or what is not permitted here.
 */
static inline const char *own_network(void)
{
	static char why[128];
	char node[] = "/tmp/godwit-tun-XXXXXX";
	int fd;

	if ((geteuid() != 0 && !own_user()) || unshare(CLONE_NEWNET | CLONE_NEWNS)) {
		snprintf(why, sizeof(why), "no network namespace: %s", strerror(errno));
		return why;
	}
	/* Where these three fail we go without what they are for. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
	    mount("sysfs", "/sys", "sysfs", 0, NULL) == 0 && mkdtemp(node)) {
		char tun[64];

		snprintf(tun, sizeof(tun), "%s/tun", node);
		if (mknod(tun, S_IFCHR | 0666, makedev(10, 200)) == 0 && chmod(tun, 0666) == 0)
			(void)!mount(tun, "/dev/net/tun", NULL, MS_BIND, NULL);
		unlink(tun);
		rmdir(node);
	}
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		snprintf(why, sizeof(why), "/dev/net/tun: %s", strerror(errno));
		return why;
	}
	close(fd);
	return NULL;
}

static inline void if_request(const char *name, unsigned long request, struct ifreq *req)
{
	AUTO_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(req->ifr_name, sizeof(req->ifr_name), "%s", name);
	ck_assert_msg(ioctl(fd, request, req) == 0, "%s: %#lx: %s", name, request, strerror(errno));
}

static inline void if_set_up(const char *name, bool up)
{
	struct ifreq req = {0};

	if_request(name, SIOCGIFFLAGS, &req);
	req.ifr_flags = (short)(up ? req.ifr_flags | IFF_UP : req.ifr_flags & ~IFF_UP);
	if_request(name, SIOCSIFFLAGS, &req);
}

static inline void if_set_mtu(const char *name, int mtu)
{
	struct ifreq req = {.ifr_mtu = mtu};

	if_request(name, SIOCSIFMTU, &req);
}

static inline void if_del(const char *name)
{
	AUTO_CLOSE int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct {
		struct nlmsghdr head;
		struct ifinfomsg info;
	} msg = {
		.head = {.nlmsg_len = sizeof(msg),
			 .nlmsg_type = RTM_DELLINK,
			 .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
		.info = {.ifi_index = (int)if_nametoindex(name)},
	};
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		uint8_t more[256];
	} answer;

	ck_assert_int_eq(send(fd, &msg, sizeof(msg), 0), sizeof(msg));
	ck_assert_int_gt(recv(fd, &answer, sizeof(answer), 0), 0);
	ck_assert_int_eq(answer.error.error, 0);
}

static inline int tap_ioctl(const char *name, unsigned flags, unsigned long request, long arg)
{
	AUTO_CLOSE int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	struct ifreq req = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags)};

	ck_assert_int_ge(fd, 0);
	snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", name);
	ck_assert_msg(ioctl(fd, TUNSETIFF, &req) == 0, "%s: %s", name, strerror(errno));
	return ioctl(fd, request, arg);
}

/* A tap that stays; flags is 0 or IFF_MULTI_QUEUE. No IPv6 noise comes out of it. */
static inline void tap_add(const char *name, unsigned flags)
{
	char path[128];

	/* An earlier test's: all share one namespace. */
	if (if_nametoindex(name))
		if_del(name);
	ck_assert_int_eq(tap_ioctl(name, flags, TUNSETPERSIST, 1), 0);
	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	(void)write_file(path, "1");
	if_set_up(name, true);
}

/* A socket that sees what the guest sends through the tap and can send to it, with vnet headers. */
static inline int tap_peer(const char *name)
{
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETH_P_ALL));
	struct sockaddr_ll addr = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = (int)if_nametoindex(name),
	};
	int one = 1, size = 4 << 20;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* What the guest has sent, if there is any by now; frames to it are skipped. */
static inline size_t tap_peer_take(int fd, struct virtio_net_hdr *hdr, uint8_t *frame)
{
	for (;;) {
		struct sockaddr_ll from;
		struct iovec iov[] = {{hdr, sizeof(*hdr)}, {frame, NET_FRAME_MAX}};
		struct msghdr msg = {
			.msg_name = &from,
			.msg_namelen = sizeof(from),
			.msg_iov = iov,
			.msg_iovlen = 2,
		};
		ssize_t n = recvmsg(fd, &msg, 0);

		if (n < 0)
			return 0;
		if (from.sll_pkttype != PACKET_OUTGOING)
			return (size_t)n - sizeof(*hdr);
	}
}

static inline size_t tap_peer_recv(int fd, struct driver *d, struct virtio_net_hdr *hdr,
				   uint8_t *frame)
{
	size_t len = 0;

	driver_run_until(d, (len = tap_peer_take(fd, hdr, frame)) != 0);
	return len;
}

static inline void tap_peer_send(int fd, const struct virtio_net_hdr *hdr, const uint8_t *frame,
				 size_t len)
{
	static const struct virtio_net_hdr plain;
	struct iovec iov[] = {
		{(void *)(hdr ? hdr : &plain), sizeof(plain)},
		{(void *)frame, len},
	};
	ssize_t n = writev(fd, iov, 2);

	ck_assert_msg(n == (ssize_t)(sizeof(plain) + len), "send: %s", strerror(errno));
}

#endif
