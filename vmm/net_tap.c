/* SPDX-License-Identifier: MIT */
/*
 * A tap that exists already (`ip tuntap add ...`): a queue of it is a file, a read() is a frame
 * with its struct net_hdr in front, so is a write().
 *
 * Offloads, header size and byte order are the tap's, not the file's, and outlive us: each open()
 * sets them. A tap without multi_queue is for one process at a time, so it is attached to by
 * whoever runs the guest and by nobody else.
 *
 * What is dropped where: frames for the guest wait in the tap (its txqueuelen) until there are
 * buffers to read them into, and the kernel drops what comes beyond; frames of the guest wait in
 * its ring while the tap is full. The kernel checks the header that comes with a frame of the
 * guest, and what it refuses is dropped here; so is everything while the tap is down.
 */
#include "net_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

#define TUN_PATH "/dev/net/tun"
#define FRAME_ROOM (sizeof(struct net_hdr) + NET_FRAME_MAX)

struct net_tap {
	struct net_backend b;
	int fd[NET_MAX_PAIRS];
	unsigned n_fds;
	unsigned pairs; /* attached queues: fd[0 .. pairs) */
	uint8_t *in[NET_MAX_PAIRS];
};

static struct net_tap *to_tap(struct net_backend *b)
{
	return container_of(b, struct net_tap, b);
}

static int open_tun(struct errmsg *err)
{
	int fd = open(TUN_PATH, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	return errmsg_set(err, -errno, TUN_PATH ": %s; %s", strerror(errno),
			  errno == EACCES ? "let this user read and write it"
					  : "load the module: modprobe tun");
}

/* The MTU of an interface, or -errno. */
static int get_mtu(const char *name)
{
	struct ifreq req = {0};
	AUTO_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", name);
	return ioctl(fd, SIOCGIFMTU, &req) ? -errno : req.ifr_mtu;
}

static const char *queue_word(const struct vm_net *cfg)
{
	return cfg->queues > 1 ? " multi_queue" : "";
}

static int no_tap(const struct vm_net *cfg, struct errmsg *err)
{
	return errmsg_set(err, -ENODEV,
			  "there is no interface %s; make it: ip tuntap add dev %s mode tap%s "
			  "user $USER && ip link set dev %s up",
			  cfg->tap, cfg->tap, queue_word(cfg), cfg->tap);
}

static int not_a_tap(const struct vm_net *cfg, struct errmsg *err)
{
	return errmsg_set(err, -EINVAL,
			  "%s is not a tap%s; make it anew: ip tuntap add dev %s mode tap%s user "
			  "$USER",
			  cfg->tap, cfg->queues > 1 ? " of several queues" : "", cfg->tap,
			  queue_word(cfg));
}

static int not_ours(const struct vm_net *cfg, struct errmsg *err)
{
	return errmsg_set(err, -EPERM,
			  "this user may not attach to %s; make it for them: ip tuntap add dev %s "
			  "mode tap%s user $USER",
			  cfg->tap, cfg->tap, queue_word(cfg));
}

/*
 * What the kernel says of the tap in sysfs: a number; false when it says nothing, as when /sys
 * belongs to another network namespace.
 */
static bool read_attr(const char *name, const char *attr, long *value)
{
	char path[64 + VM_TAP_MAX], text[32];
	AUTO_CLOSE int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/class/net/%s/%s", name, attr);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	*value = strtol(text, NULL, 0);
	return true;
}

static bool may_administer(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3] = {0};

	if (syscall(SYS_capget, &head, caps))
		return false;
	return caps[CAP_NET_ADMIN / 32].effective & (1U << (CAP_NET_ADMIN % 32));
}

static bool in_group(long gid)
{
	gid_t groups[256];
	int n = getgroups(ARRAY_SIZE(groups), groups);

	if (gid == (long)getegid() || n < 0)
		return true;
	for (int i = 0; i < n; i++) {
		if (gid == (long)groups[i])
			return true;
	}
	return false;
}

static int tap_check(const struct vm_net *cfg, struct errmsg *err)
{
	AUTO_CLOSE int fd = open_tun(err);
	unsigned features;
	long value;

	if (fd < 0)
		return fd;
	if (ioctl(fd, TUNGETFEATURES, &features) || !(features & IFF_VNET_HDR))
		return errmsg_set(err, -ENOTSUP, TUN_PATH " has no IFF_VNET_HDR");
	if (if_nametoindex(cfg->tap) == 0)
		return no_tap(cfg, err);
	if (read_attr(cfg->tap, "tun_flags", &value)) {
		if (!(value & IFF_TAP) || (cfg->queues > 1 && !(value & IFF_MULTI_QUEUE)))
			return not_a_tap(cfg, err);
	} else if (read_attr(cfg->tap, "mtu", &value)) {
		return not_a_tap(cfg, err);
	}
	/* As the kernel decides it when it comes to attaching. */
	if (may_administer())
		return 0;
	if (read_attr(cfg->tap, "owner", &value) && value != -1 && value != (long)geteuid())
		return not_ours(cfg, err);
	if (read_attr(cfg->tap, "group", &value) && value != -1 && !in_group(value))
		return not_ours(cfg, err);
	return 0;
}

static void tap_close(struct net_backend *b)
{
	struct net_tap *t = to_tap(b);

	while (t->n_fds > 0)
		close(t->fd[--t->n_fds]);
	t->pairs = 0;
	b->open = false;
	errmsg_set(&b->gone, -ENOLINK, "%s was removed", b->cfg.tap);
}

static void tap_destroy(struct net_backend *b)
{
	struct net_tap *t = to_tap(b);

	tap_close(b);
	for (unsigned i = 0; i < NET_MAX_PAIRS; i++)
		free(t->in[i]);
	free(t);
}

static int tap_create(struct net_backend **out, const struct vm_net *cfg)
{
	struct net_tap *t = calloc(1, sizeof(*t));
	int mtu;

	if (!t)
		return -ENOMEM;
	t->b.ops = &net_tap_ops;
	t->b.cfg = *cfg;
	for (unsigned i = 0; i < cfg->queues; i++) {
		t->in[i] = malloc(FRAME_ROOM);
		if (!t->in[i]) {
			tap_destroy(&t->b);
			return -ENOMEM;
		}
	}
	mtu = get_mtu(cfg->tap);
	if (mtu < 0) {
		tap_destroy(&t->b);
		return mtu;
	}
	t->b.mtu = (uint16_t)MIN(MAX((unsigned)mtu, NET_MTU_MIN), UINT16_MAX);
	*out = &t->b;
	return 0;
}

static bool tap_harmless(const struct net_backend *b)
{
	(void)b;
	return false;
}

static int attach(const struct vm_net *cfg, int fd, unsigned flags, struct errmsg *err)
{
	struct ifreq req = {0};

	snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", cfg->tap);
	req.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags);
	if (ioctl(fd, TUNSETIFF, &req) == 0)
		return 0;
	switch (errno) {
	case EBUSY:
		return errmsg_set(err, -EBUSY,
				  "%s is in use by another process; end that, or use another tap",
				  cfg->tap);
	case EPERM:
		return not_ours(cfg, err);
	case EINVAL:
		return not_a_tap(cfg, err);
	case E2BIG:
		return errmsg_set(err, -E2BIG, "%s has no room for %u more queues", cfg->tap,
				  cfg->queues);
	default:
		return errmsg_set(err, -errno, "%s: TUNSETIFF: %s", cfg->tap, strerror(errno));
	}
}

/* One queue of it, as the next of t->fd[]. */
static int open_queue(struct net_tap *t, struct errmsg *err)
{
	const struct vm_net *cfg = &t->b.cfg;
	struct errmsg why = {""};
	int fd = open_tun(err);
	int ret;

	if (fd < 0)
		return fd;
	ret = attach(cfg, fd, cfg->queues > 1 ? IFF_MULTI_QUEUE : 0, &why);
	if (ret == -EINVAL && cfg->queues == 1) {
		/* One of several queues is as good. */
		why.text[0] = '\0';
		ret = attach(cfg, fd, IFF_MULTI_QUEUE, &why);
	}
	if (ret) {
		close(fd);
		return errmsg_set(err, ret, "%s", why.text);
	}
	t->fd[t->n_fds++] = fd;
	return 0;
}

static int tap_configure(struct net_backend *b, unsigned pairs, unsigned offloads)
{
	struct net_tap *t = to_tap(b);
	unsigned long arg = 0;

	if (offloads & NET_OFFLOAD_CSUM) {
		arg = TUN_F_CSUM;
		arg |= offloads & NET_OFFLOAD_TSO4 ? TUN_F_TSO4 : 0;
		arg |= offloads & NET_OFFLOAD_TSO6 ? TUN_F_TSO6 : 0;
		if ((offloads & NET_OFFLOAD_ECN) && arg != TUN_F_CSUM)
			arg |= TUN_F_TSO_ECN;
	}
	if (ioctl(t->fd[0], TUNSETOFFLOAD, arg))
		return -errno;
	/* The kernel spreads frames over the queues that are attached. */
	while (t->pairs != pairs) {
		bool more = t->pairs < pairs;
		struct ifreq req = {.ifr_flags = more ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

		if (ioctl(t->fd[more ? t->pairs : t->pairs - 1], TUNSETQUEUE, &req))
			return -errno;
		t->pairs = more ? t->pairs + 1 : t->pairs - 1;
	}
	return 0;
}

static int tap_open(struct net_backend *b, struct errmsg *err)
{
	struct net_tap *t = to_tap(b);
	int len = sizeof(struct net_hdr), little = 1;
	int ret;

	/* TUNSETIFF would make one that is not there. */
	if (if_nametoindex(b->cfg.tap) == 0)
		return no_tap(&b->cfg, err);
	for (unsigned i = 0; i < b->cfg.queues; i++) {
		ret = open_queue(t, err);
		if (ret)
			goto fail;
	}
	t->pairs = t->n_fds;
	if (ioctl(t->fd[0], TUNSETVNETHDRSZ, &len) || ioctl(t->fd[0], TUNSETVNETLE, &little)) {
		ret = errmsg_set(err, -errno, "%s: the form of headers: %s", b->cfg.tap,
				 strerror(errno));
		goto fail;
	}
	ret = tap_configure(b, 1, 0);
	if (ret) {
		errmsg_set(err, ret, "%s: offloads and queues: %s", b->cfg.tap, strerror(-ret));
		goto fail;
	}
	b->open = true;
	b->gone.text[0] = '\0';
	return 0;
fail:
	tap_close(b);
	return ret;
}

static int tap_fd(const struct net_backend *b, unsigned pair)
{
	return container_of(b, const struct net_tap, b)->fd[pair];
}

static int tap_recv(struct net_backend *b, unsigned pair, struct net_frame *f)
{
	struct net_tap *t = to_tap(b);
	ssize_t n;

	for (;;) {
		n = read(t->fd[pair], t->in[pair], FRAME_ROOM);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -ENOLINK;
		if ((size_t)n >= sizeof(f->hdr) + NET_FRAME_MIN)
			break;
	}
	memcpy(&f->hdr, t->in[pair], sizeof(f->hdr));
	f->data = t->in[pair] + sizeof(f->hdr);
	f->len = (size_t)n - sizeof(f->hdr);
	return 1;
}

static int tap_send(struct net_backend *b, unsigned pair, const struct iovec *iov, uint32_t n,
		    size_t len)
{
	struct net_tap *t = to_tap(b);
	ssize_t sent;

	(void)len;
	do
		sent = writev(t->fd[pair], iov, (int)n);
	while (sent < 0 && errno == EINTR);
	if (sent >= 0)
		return 0;
	return errno == EBADFD ? -ENOLINK : -errno;
}

const struct net_backend_ops net_tap_ops = {
	.name = "tap",
	.offloads = true,
	.pairs = true,
	.check = tap_check,
	.create = tap_create,
	.destroy = tap_destroy,
	.open = tap_open,
	.harmless = tap_harmless,
	.close = tap_close,
	.configure = tap_configure,
	.fd = tap_fd,
	.recv = tap_recv,
	.send = tap_send,
};
