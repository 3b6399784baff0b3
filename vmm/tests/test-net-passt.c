/* SPDX-License-Identifier: MIT */
/*
 * virtio-net through the real passt, in a network namespace whose only way out is a tap that
 * nobody serves: the guest is given an address, reaches a socket of the host's and is reached.
 */
#include <netinet/in.h>
#include <signal.h>

#include "check-main.h"
#include "net-fixture.h"

#define HOST_IP 0x0a630002U /* 10.99.0.2, which passt gives the guest, too */
#define GATEWAY_IP 0x0a630001U
#define SSH_PORT 22022
#define DNS_PORT 5353

static uint8_t frame[NET_FRAME_MAX], got[NET_FRAME_MAX];
static uint8_t gateway_mac[6];

static struct sockaddr_in address(uint32_t ip, uint16_t port)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(ip),
	};
}

static void set_address(const char *name, uint32_t ip, unsigned long request)
{
	const struct sockaddr_in addr = address(ip, 0);
	struct ifreq req = {0};

	memcpy(&req.ifr_addr, &addr, sizeof(addr));
	if_request(name, request, &req);
}

/* An interface with an address and a default route: passt looks for that. */
static void make_outside(void)
{
	AUTO_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	const struct sockaddr_in any = address(0, 0), gateway = address(GATEWAY_IP, 0);
	char name[] = "gwout0";
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = name};

	tap_add(name, 0);
	set_address(name, HOST_IP, SIOCSIFADDR);
	set_address(name, 0xffffff00, SIOCSIFNETMASK);
	memcpy(&route.rt_dst, &any, sizeof(any));
	memcpy(&route.rt_genmask, &any, sizeof(any));
	memcpy(&route.rt_gateway, &gateway, sizeof(gateway));
	ck_assert_msg(ioctl(fd, SIOCADDRT, &route) == 0, "default route: %s", strerror(errno));
	if_set_up("lo", true);
}

static struct vm_net user_net(void)
{
	return (struct vm_net){
		.kind = VM_NET_USER,
		.mac = GUEST_MAC,
		.queues = 1,
		.n_forwards = 2,
		.forward = {{.host = "127.0.0.1", .host_port = SSH_PORT, .guest_port = 22},
			    {.udp = true, .host_port = DNS_PORT, .guest_port = 53}},
	};
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

/* The next frame for the guest of that protocol and destination port. */
static size_t recv_ip(struct driver *d, uint8_t protocol, uint16_t port)
{
	struct net_hdr hdr;

	for (;;) {
		size_t len = guest_recv(d, 0, &hdr, got);

		guest_add_rx(d, 0, hdr.num_buffers, 2048);
		driver_kick(d, 0);
		if (len >= 42 && get16(got + 12) == ETH_P_IP && got[IP_AT + 9] == protocol &&
		    get16(got + L4_AT + 2) == port)
			return len;
	}
}

static void send_udp(struct driver *d, uint32_t from, uint32_t to, uint16_t from_port,
		     uint16_t to_port, const void *data, size_t n)
{
	static const uint8_t all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	uint8_t *udp = frame + L4_AT;

	put16(udp, from_port);
	put16(udp + 2, to_port);
	put16(udp + 4, (unsigned)(8 + n));
	put16(udp + 6, 0);
	memcpy(udp + 8, data, n);
	put16(udp + 6, (uint16_t)~ip_sum(udp, 8 + n, pseudo_sum(from, to, IPPROTO_UDP, 8 + n)));
	guest_send(d, 0, NULL, frame,
		   finish_ip(frame, to == 0xffffffff ? all : gateway_mac, guest_mac, from, to,
			     IPPROTO_UDP, 8 + n));
}

/* Asks for an address as a DHCP client does. */
static void need_dhcp(struct driver *d)
{
	uint8_t request[300] = {1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78};
	const uint8_t options[] = {0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255};
	uint32_t given;

	memcpy(request + 28, guest_mac, 6);
	memcpy(request + 236, options, sizeof(options));
	send_udp(d, 0, 0xffffffff, 68, 67, request, sizeof(request));
	recv_ip(d, IPPROTO_UDP, 68);
	ck_assert_uint_eq(got[L4_AT + 8], 2);
	memcpy(&given, got + L4_AT + 8 + 16, 4);
	ck_assert_uint_eq(ntohl(given), HOST_IP);
	memcpy(gateway_mac, got + 6, 6);
}

/* What the guest sends to its gateway reaches the host's loopback, and the answer the guest. */
static void need_udp_out(struct driver *d)
{
	AUTO_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in addr = address(INADDR_LOOPBACK, 7777), from;
	socklen_t from_len = sizeof(from);
	char text[64] = "";
	size_t len;

	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	send_udp(d, HOST_IP, GATEWAY_IP, 4321, 7777, "from the guest", 14);
	driver_run_until(d, is_readable(fd));
	ck_assert_int_eq(recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&from, &from_len),
			 14);
	ck_assert_str_eq(text, "from the guest");
	ck_assert_int_eq(sendto(fd, "from the host", 13, 0, (struct sockaddr *)&from, from_len),
			 13);
	len = recv_ip(d, IPPROTO_UDP, 4321);
	ck_assert_uint_ge(len, L4_AT + 8 + 13);
	ck_assert_mem_eq(got + L4_AT + 8, "from the host", 13);
}

/* A connection to the forwarded port is one that the guest is asked for. */
static void need_forwards(struct driver *d)
{
	AUTO_CLOSE int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	AUTO_CLOSE int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in ssh = address(INADDR_LOOPBACK, SSH_PORT);
	struct sockaddr_in dns = address(INADDR_LOOPBACK, DNS_PORT);
	int ret = connect(tcp, (struct sockaddr *)&ssh, sizeof(ssh));

	ck_assert(ret == 0 || errno == EINPROGRESS);
	recv_ip(d, IPPROTO_TCP, 22);
	ck_assert_uint_eq(got[L4_AT + 13], 0x02); /* SYN */
	ck_assert_int_eq(sendto(udp, "query", 5, 0, (struct sockaddr *)&dns, sizeof(dns)), 5);
	recv_ip(d, IPPROTO_UDP, 53);
	ck_assert_mem_eq(got + L4_AT + 8, "query", 5);
}

static struct driver *up(const struct vm_net *cfg)
{
	struct errmsg err = {""};
	struct driver *d;

	ck_assert_msg(virtio_net_check(cfg, &err) == 0, "%s", err.text);
	d = net_new(cfg);
	driver_up(d, ALL_FEATURES);
	guest_add_rx(d, 0, 60, 2048);
	driver_kick(d, 0);
	return d;
}

START_TEST(connects)
{
	const struct vm_net cfg = user_net();
	struct driver *d;
	uint64_t begin;

	make_outside();
	d = up(&cfg);
	need_dhcp(d);
	need_udp_out(d);
	need_forwards(d);
	begin = now_ns();
	driver_free(d);
	/* It ends with us, and at once. */
	ck_assert_uint_lt(now_ns() - begin, 5 * NS_PER_SEC);
	d = up(&cfg);
	need_dhcp(d);
	need_forwards(d);
	driver_free(d);
}
END_TEST

static pid_t child(void)
{
	char path[64], text[64] = "";
	AUTO_CLOSE int fd = -1;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_gt(read(fd, text, sizeof(text) - 1), 0);
	return (pid_t)strtol(text, NULL, 10);
}

START_TEST(is_started_again)
{
	const struct vm_net cfg = user_net();
	struct driver *d;

	make_outside();
	d = up(&cfg);
	need_dhcp(d);
	ck_assert_int_eq(kill(child(), SIGKILL), 0);
	driver_run_until(d, !net_link_is_up(d));
	driver_run_until(d, net_link_is_up(d));
	need_dhcp(d);
	need_forwards(d);
	driver_free(d);
}
END_TEST

START_TEST(says_what_is_wrong)
{
	const struct vm_net cfg = user_net();
	struct sockaddr_in addr = address(INADDR_LOOPBACK, SSH_PORT);
	AUTO_CLOSE int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct errmsg err = {""};
	struct driver *d;

	make_outside();
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(listen(fd, 1), 0);
	d = driver_new(&virtio_net_ops, &cfg, RAM_MIN);
	ck_assert_int_lt(virtio_net_ops.acquire(&d->v->dev, &err), 0);
	ck_assert_msg(strstr(err.text, "passt ended") && strstr(err.text, "127.0.0.1/22022:22"),
		      "%s", err.text);
	driver_free(d);
}
END_TEST

/* With ports, on one host: the destination's can start once the source's has ended. */
START_TEST(moves)
{
	const struct vm_net cfg = user_net();
	struct driver *d, *to;

	make_outside();
	d = up(&cfg);
	need_dhcp(d);
	to = driver_move(d, &cfg);
	d->v->dev.ops->release(&d->v->dev);
	net_acquired(to);
	driver_resume(to);
	driver_free(d);
	need_udp_out(to);
	need_forwards(to);
	driver_free(to);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		connects,
		is_started_again,
		says_what_is_wrong,
		moves,
	};
	const struct vm_net cfg = user_net();
	struct errmsg err = {""};
	const char *why;

	if (virtio_net_check(&cfg, &err))
		return check_skip("net-passt", err.text);
	why = own_network();
	if (why)
		return check_skip("net-passt", why);
	return check_main("net-passt", tests, ARRAY_SIZE(tests));
}
