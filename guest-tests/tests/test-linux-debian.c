/* SPDX-License-Identifier: MIT */
/*
 * A whole Debian with one of each device: it boots from its disk to a login prompt, people get in
 * by the serial line, by the second console and over the network, and each device does its work.
 * One boot for all of it: on an emulated host that takes a minute.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "test-debian.h"

/* ---- sockets of this process ---- */

/* A stream that is read as bytes come, from within all waits. */
struct peer {
	int fd; /* -1: none yet, or its end was seen */
	char buf[256 * 1024];
	size_t len;
};

static void on_peer(void *arg, int fd, short revents)
{
	struct peer *p = arg;
	ssize_t n;

	(void)revents;
	need(p->len < sizeof(p->buf) - 1, "much too much came");
	n = read(fd, p->buf + p->len, sizeof(p->buf) - 1 - p->len);
	if (n > 0) {
		p->len += (size_t)n;
		p->buf[p->len] = '\0';
	} else if (n == 0 || errno != EAGAIN) {
		harness_watch(fd, 0, NULL, NULL);
		close(fd);
		p->fd = -1;
	}
}

static void peer_is(struct peer *p, int fd)
{
	p->fd = fd;
	p->len = 0;
	p->buf[0] = '\0';
	fcntl(fd, F_SETFL, O_NONBLOCK);
	harness_watch(fd, POLLIN, on_peer, p);
}

static void on_listener(void *arg, int fd, short revents)
{
	int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

	(void)revents;
	need(conn >= 0, "accept: %s", strerror(errno));
	harness_watch(fd, 0, NULL, NULL);
	close(fd);
	peer_is(arg, conn);
}

/* The first who connects there is p. */
static void peer_listen(struct peer *p, const struct sockaddr *addr, socklen_t len)
{
	int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	p->fd = -1;
	p->len = 0;
	need(fd >= 0 && bind(fd, addr, len) == 0 && listen(fd, 1) == 0, "a socket to listen: %s",
	     strerror(errno));
	harness_watch(fd, POLLIN, on_listener, p);
}

static struct sockaddr_un unix_address(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	need(strlen(path) < sizeof(addr.sun_path), "%s is too long", path);
	strcpy(addr.sun_path, path);
	return addr;
}

static void peer_connect(struct peer *p, const char *path)
{
	struct sockaddr_un addr = unix_address(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	need(fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "%s: %s", path,
	     strerror(errno));
	peer_is(p, fd);
}

static void peer_say(struct peer *p, const char *text)
{
	ssize_t len = (ssize_t)strlen(text);

	need(write(p->fd, text, (size_t)len) == len, "a socket does not take %zd bytes", len);
}

struct sight {
	struct peer *p;
	const char *text;
};

static bool is_seen(void *arg)
{
	struct sight *s = arg;

	return memmem(s->p->buf, s->p->len, s->text, strlen(s->text));
}

static bool is_over(void *arg)
{
	struct peer *p = arg;

	return p->fd < 0 && p->len > 0;
}

static void peer_expect(struct peer *p, const char *what, const char *text, int timeout_ms)
{
	struct sight s = {p, text};

	need(harness_until(is_seen, &s, timeout_ms), "%s: '%s' does not come, but: %s", what, text,
	     p->buf);
}

static struct sockaddr_in loopback(void)
{
	return (struct sockaddr_in){.sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* A TCP port that nobody has at present. */
static unsigned free_port(void)
{
	struct sockaddr_in addr = loopback();
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	need(fd >= 0 && bind(fd, (struct sockaddr *)&addr, len) == 0 &&
		     getsockname(fd, (struct sockaddr *)&addr, &len) == 0,
	     "no free port: %s", strerror(errno));
	close(fd);
	return ntohs(addr.sin_port);
}

/* ---- the guest ---- */

struct debian {
	struct guest g;
	const char *disk, *vsock, *console;
	unsigned port; /* of this host, to the guest's ssh */
	struct peer peer, peer2;
};

static void boot(struct debian *d)
{
	uint64_t started = harness_now_ms();

	d->disk = deb_disk();
	d->vsock = harness_path("%s/vsock", harness_tmp());
	d->console = harness_path("%s/console", harness_tmp());
	d->port = free_port();
	guest_start(&d->g, "vm", "-m", "512M", "-k", deb_file("vmlinuz-6.1"), "-i",
		    deb_file("initrd-6.1.img"), "-p", DEB_CMDLINE, "--disk", d->disk, "--net",
		    harness_path("user,hostfwd=tcp:127.0.0.1:%u:22", d->port), "--rng", "--vsock",
		    d->vsock, "--console", d->console, "--balloon", NULL);
	deb_login(d->g.proc);
	harness_say("logged in after %.1f s", (double)(harness_now_ms() - started) / 1000);
}

static void serial_line(struct debian *d)
{
	struct proc *p = d->g.proc;
	const char *text;

	ck_assert_str_eq(deb_run(p, 0, DEB_RUN_MS, "echo $((6 * 7)); tty <&1; id -u; nproc"),
			 "42\n/dev/ttyS0\n0\n1");
	ck_assert_str_eq(deb_run(p, 3, DEB_RUN_MS, "(exit 3)"), "");
	ck_assert_str_eq(deb_run(p, 0, DEB_RUN_MS, "findmnt -no SOURCE,FSTYPE /"), "/dev/vda ext4");
	/* Each device has its driver. */
	text = deb_run(p, 0, DEB_RUN_MS,
		       "for d in /sys/bus/virtio/devices/*; do "
		       "basename \"$(readlink $d/driver)\"; done | sort");
	ck_assert_str_eq(text, "virtio_balloon\nvirtio_blk\nvirtio_console\nvirtio_net\n"
			       "virtio_rng\nvmw_vsock_virtio_transport");
	/* What the disk takes is there when the cache is not. */
	text = deb_run(p, 0, DEB_RUN_MS,
		       "head -c 2M /dev/urandom >/root/f && sync /root/f && sha256sum /root/f "
		       ">/run/sum && echo 3 >/proc/sys/vm/drop_caches && sha256sum -c /run/sum");
	ck_assert_str_eq(text, "/root/f: OK");
	ck_assert_str_eq(deb_run(p, 0, DEB_RUN_MS, "head -c 64 /dev/hwrng | wc -c"), "64");
	ck_assert_str_eq(deb_run(p, 0, DEB_RUN_MS, "cat /sys/class/misc/hw_random/rng_current"),
			 "virtio_rng.0");
}

/* systemd offers a login there, too. */
static void second_console(struct debian *d)
{
	peer_connect(&d->peer, d->console);
	peer_say(&d->peer, "\n");
	peer_expect(&d->peer, "hvc0", "login: ", DEB_RUN_MS);
	peer_say(&d->peer, "root\n");
	peer_expect(&d->peer, "hvc0", "# ", DEB_RUN_MS);
	peer_say(&d->peer, "echo $(tty) $((6 * 9))\n");
	peer_expect(&d->peer, "hvc0", "/dev/hvc0 54", DEB_RUN_MS);
}

/* Over passt: in by ssh, out by TCP; the rest of its services by what DHCP has brought. */
static void network(struct debian *d)
{
	struct sockaddr_in addr = loopback();
	socklen_t len = sizeof(addr);
	uint64_t started = harness_now_ms();
	struct proc *ssh;

	ssh = proc_start("ssh", "ssh", "-F", deb_file("ssh/config"), "-p",
			 harness_path("%u", d->port), "127.0.0.1", "sh", NULL);
	ck_assert_str_eq(deb_run(ssh, 0, DEB_LOGIN_MS, "echo \"${SSH_CONNECTION:+ssh} $USER\""),
			 "ssh root");
	harness_say("in by ssh after %.1f s", (double)(harness_now_ms() - started) / 1000);
	deb_run(ssh, 0, DEB_RUN_MS, "grep ^nameserver /etc/resolv.conf");
	/* More than a buffer or two, both ways, in one connection. */
	addr.sin_port = htons((in_port_t)free_port());
	peer_listen(&d->peer2, (struct sockaddr *)&addr, len);
	deb_run(ssh, 0, DEB_RUN_MS,
		harness_path("gw=$(ip -4 route show default | awk '{ print $3 }')\n"
			     "seq 20000 | nc -N $gw %u",
			     ntohs(addr.sin_port)));
	need(harness_until(is_over, &d->peer2, DEB_RUN_MS), "the connection does not end");
	ck_assert_uint_eq(d->peer2.len, 108894);
	need(strcmp(d->peer2.buf + d->peer2.len - 12, "19999\n20000\n") == 0, "it ends otherwise");
	proc_send(ssh, "exit\n");
	proc_ended(ssh, 0, DEB_RUN_MS);
}

static void vsock(struct debian *d)
{
	struct proc *p = d->g.proc;
	struct sockaddr_un addr = unix_address(harness_path("%s_5000", d->vsock));
	char data[8192];

	/* From the guest. */
	peer_listen(&d->peer2, (struct sockaddr *)&addr, sizeof(addr));
	deb_run(p, 0, DEB_RUN_MS, "seq 20000 | socat -u - VSOCK-CONNECT:2:5000");
	need(harness_until(is_over, &d->peer2, DEB_RUN_MS), "the connection does not end");
	ck_assert_uint_eq(d->peer2.len, 108894);
	deb_run(p, 1, DEB_RUN_MS, "socat -u - VSOCK-CONNECT:2:5001");

	/* To it. */
	deb_run(p, 0, DEB_RUN_MS, "(socat VSOCK-LISTEN:6000 EXEC:cat &); sleep 1");
	for (unsigned i = 0; i < sizeof(data) - 1; i++)
		data[i] = (char)('a' + (i * 2654435761U >> 16) % 26);
	data[sizeof(data) - 1] = '\0';
	peer_connect(&d->peer2, d->vsock);
	peer_say(&d->peer2, "CONNECT 6000\n");
	peer_expect(&d->peer2, "vsock", "OK ", DEB_RUN_MS);
	peer_say(&d->peer2, data);
	peer_expect(&d->peer2, "vsock", data, DEB_RUN_MS);
	shutdown(d->peer2.fd, SHUT_WR);
	need(harness_until(is_over, &d->peer2, DEB_RUN_MS), "the connection does not end");
}

START_TEST(whole_system)
{
	static struct debian d;

	boot(&d);
	serial_line(&d);
	second_console(&d);
	vsock(&d);
	network(&d);
	/* Nothing has gone wrong that only the kernel noticed. */
	ck_assert_str_eq(deb_run(d.g.proc, -1, DEB_RUN_MS,
				 "dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|blocked for|"
				 "call trace|oops|virtio.*(fail|error)'"),
			 "");
	proc_send(d.g.proc, "poweroff\n");
	deb_ended(&d.g, d.disk);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-debian");

	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");
	if (system("command -v passt ssh >/dev/null") != 0)
		return harness_skip_all("passt or ssh is missing: run scripts/setup");
	tcase_add_test(harness_case(s, "whole-system", 360), whole_system);
	return harness_main(s);
}
