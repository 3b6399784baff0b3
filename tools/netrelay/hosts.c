/* SPDX-License-Identifier: MIT */
#include "hosts.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../../vmm/util.h"

#define NETMASK "255.255.255.0"
#define QUEUE_PACKETS 10000 /* that the relay has not read: drops are for its own queue */

static const char *const addresses[HOSTS] = {HOST_ADDRESS_A, HOST_ADDRESS_B};

static int write_file(const char *path, const char *text)
{
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd < 0 ? -errno : write_exact(fd, text, strlen(text));
}

static int set_address(int sock, struct ifreq *req, unsigned long what, const char *address)
{
	struct sockaddr_in in = {.sin_family = AF_INET};

	inet_pton(AF_INET, address, &in.sin_addr);
	memcpy(&req->ifr_addr, &in, sizeof(in));
	return ioctl(sock, what, req) ? -errno : 0;
}

static int bring_up(int sock, const char *device)
{
	struct ifreq req = {.ifr_flags = 0};

	snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", device);
	if (ioctl(sock, SIOCGIFFLAGS, &req))
		return -errno;
	req.ifr_flags |= IFF_UP;
	return ioctl(sock, SIOCSIFFLAGS, &req) ? -errno : 0;
}

static int set_up_devices(const char *address, unsigned mtu, struct errmsg *err)
{
	AUTO_CLOSE int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq req = {.ifr_name = HOST_DEVICE};
	int ret;

	if (sock < 0)
		return errmsg_set(err, -errno, "a socket: %s", strerror(errno));
	req.ifr_mtu = (int)mtu;
	if (ioctl(sock, SIOCSIFMTU, &req))
		return errmsg_set(err, -errno, "an MTU of %u: %s", mtu, strerror(errno));
	req.ifr_qlen = QUEUE_PACKETS;
	ret = ioctl(sock, SIOCSIFTXQLEN, &req) ? -errno : 0;
	if (ret == 0)
		ret = set_address(sock, &req, SIOCSIFADDR, address);
	if (ret == 0)
		ret = set_address(sock, &req, SIOCSIFNETMASK, NETMASK);
	if (ret == 0)
		ret = bring_up(sock, HOST_DEVICE);
	if (ret == 0)
		ret = bring_up(sock, "lo");
	return ret ? errmsg_set(err, ret, "setting up " HOST_DEVICE ": %s", strerror(-ret)) : 0;
}

static int open_tun(struct host *h, struct errmsg *err)
{
	struct ifreq req = {.ifr_name = HOST_DEVICE};
	int ret;

	req.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
	h->tun_fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (h->tun_fd < 0) {
		ret = -errno;
		return errmsg_set(err, ret, "/dev/net/tun: %s (modprobe tun?)", strerror(-ret));
	}
	if (ioctl(h->tun_fd, TUNSETIFF, &req) ||
	    ioctl(h->tun_fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) {
		ret = -errno;
		return errmsg_set(err, ret, "a TUN device: %s", strerror(-ret));
	}
	return 0;
}

/* In a namespace of its own, in which the process is then. */
static int make_host(struct host *h, const char *address, unsigned mtu, const char *tcp,
		     struct errmsg *err)
{
	int ret;

	if (unshare(CLONE_NEWNET)) {
		ret = -errno;
		return errmsg_set(err, ret, "a network namespace: %s%s", strerror(-ret),
				  ret == -EPERM ? " (root is needed)" : "");
	}
	h->ns_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (h->ns_fd < 0)
		return errmsg_set(err, -errno, "/proc/thread-self/ns/net: %s", strerror(errno));
	/* IPv6, where there is any, has no link here, and its own chatter would be among the
	 * counts. */
	(void)write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
	ret = tcp ? write_file("/proc/sys/net/ipv4/tcp_congestion_control", tcp) : 0;
	if (ret)
		return errmsg_set(
			err, ret,
			"the congestion control '%s': %s (hosts other than the machine itself "
			"get those in net.ipv4.tcp_allowed_congestion_control)",
			tcp, strerror(-ret));
	ret = open_tun(h, err);
	return ret ? ret : set_up_devices(address, mtu, err);
}

int hosts_make(struct host h[HOSTS], unsigned mtu, const char *tcp, struct errmsg *err)
{
	AUTO_CLOSE int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	int ret = home < 0 ? errmsg_set(err, -errno, "/proc: %s", strerror(errno)) : 0;

	for (int i = 0; i < HOSTS; i++)
		h[i] = (struct host){.ns_fd = -1, .tun_fd = -1};
	for (int i = 0; i < HOSTS && ret == 0; i++)
		ret = make_host(&h[i], addresses[i], mtu, tcp, err);
	if (home >= 0 && setns(home, CLONE_NEWNET) && ret == 0)
		ret = errmsg_set(err, -errno, "back to the own namespace: %s", strerror(errno));
	for (int i = 0; i < HOSTS && ret; i++) {
		if (h[i].tun_fd >= 0)
			close(h[i].tun_fd);
		if (h[i].ns_fd >= 0)
			close(h[i].ns_fd);
	}
	return ret;
}
