/* SPDX-License-Identifier: MIT */
/*
 * A whole Debian moves back and forth between two hosts while it writes to its disk, reads back
 * what it wrote, and receives a stream over TCP: no block may be lost, no byte of the stream, and
 * the connection must live on.
 *
 * The hosts are network namespaces on one kernel, joined by a switch, each with a bridge and a tap
 * of the same name; the disk is what they share:
 *
 *	this process's		the hosts'
 *	  lan -- port0 ------- wire -- hub -- gw0 -- the guest
 *	      `- port1 ------- wire -- hub -- gw0
 *
 * The switch learns from frames where the guest is, and the stream goes to it: so until something
 * from the guest has come from its new place, what is sent to it goes to the old one.
 *
 * Environment: GODWIT_TEST_MOVES  how often it moves (20)
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "test-debian.h"

#define LAN "192.168.77"
#define MAC "52:54:00:77:00:02"
#define MOVE_MS 60000

/* ---- the sender: a program of its own ---- */

#define CHUNK 16384U
#define PERIOD_MS 100 /* a chunk each: a pace that a guest on an emulated host keeps up with */

/* A socket that listens there. Prints its port. */
static int stream_listen(void)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, LAN ".1", &addr.sin_addr);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, len) || listen(fd, 1) ||
	    getsockname(fd, (struct sockaddr *)&addr, &len)) {
		perror("listen");
		return -1;
	}
	printf("port %u\n", ntohs(addr.sin_port));
	return fd;
}

/* What has been acknowledged of sent bytes, for who waits for it to grow. */
static void stream_report(int fd, uint64_t sent)
{
	int queued = 0;

	ioctl(fd, SIOCOUTQ, &queued);
	printf("stream acked=%llu\n", (unsigned long long)sent - (unsigned long long)queued);
}

/*
 * Sends random bytes to the first who connects, until standard input ends; the last lines are what
 * sha256sum says of them and how many there were.
 */
static int stream_main(void)
{
	static uint8_t chunk[CHUNK];
	struct pollfd fds[2] = {{.fd = 0, .events = POLLIN}};
	size_t at = CHUNK;
	uint64_t sent = 0;
	FILE *sum;
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = stream_listen();
	if (fd < 0)
		return 1;
	fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	sum = popen("exec sha256sum", "we");
	if (fd < 0 || !sum)
		return 1;
	for (;;) {
		ssize_t n;

		if (at == CHUNK) {
			stream_report(fd, sent);
			if (poll(fds, 1, PERIOD_MS) != 0)
				break;
			if (getrandom(chunk, CHUNK, 0) != CHUNK ||
			    fwrite(chunk, 1, CHUNK, sum) != CHUNK)
				return 1;
			at = 0;
		}
		n = send(fd, chunk + at, CHUNK - at, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n > 0) {
			at += (size_t)n;
			sent += (uint64_t)n;
			continue;
		}
		if (errno != EAGAIN) {
			printf("broken after %llu bytes: %s\n", (unsigned long long)sent,
			       strerror(errno));
			return 1;
		}
		fds[1] = (struct pollfd){.fd = fd, .events = POLLOUT};
		poll(fds + 1, 1, 1000);
		stream_report(fd, sent);
	}
	shutdown(fd, SHUT_WR);
	/* Until the other end has seen all of it. */
	if (read(fd, chunk, CHUNK) != 0) {
		printf("broken at the end: %s\n", strerror(errno));
		return 1;
	}
	if (pclose(sum))
		return 1;
	printf("sent=%llu\n", (unsigned long long)sent);
	return 0;
}

/* ---- two hosts and a switch ---- */

struct net {
	int lan, host[2]; /* namespaces */
	int sniffer;
	unsigned rarps; /* that the switch has seen from the guest */
};

static int new_namespace(void)
{
	if (unshare(CLONE_NEWNET))
		harness_skip("network namespaces, for which one is root, cannot be made: %s",
			     strerror(errno));
	return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

static void enter(int namespace)
{
	need(setns(namespace, CLONE_NEWNET) == 0, "setns: %s", strerror(errno));
}

static void shell(const char *words)
{
	proc_ended(proc_start("sh", "sh", "-ec", words, NULL), 0, 20000);
}

static void on_sniffer(void *arg, int fd, short revents)
{
	static const uint8_t mac[] = {0x52, 0x54, 0x00, 0x77, 0x00, 0x02};
	struct net *net = arg;
	uint8_t frame[256];
	ssize_t n = recv(fd, frame, sizeof(frame), MSG_DONTWAIT);

	(void)revents;
	if (n >= 42 && memcmp(frame + 6, mac, 6) == 0)
		net->rarps++;
}

static void sniff(struct net *net)
{
	struct sockaddr_ll addr = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_RARP)};

	addr.sll_ifindex = (int)if_nametoindex("lan");
	net->sniffer = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	need(net->sniffer >= 0 && bind(net->sniffer, (struct sockaddr *)&addr, sizeof(addr)) == 0,
	     "a packet socket: %s", strerror(errno));
	harness_watch(net->sniffer, POLLIN, on_sniffer, net);
}

/* Leaves us beside the switch. */
static void net_build(struct net *net)
{
	setenv("PATH", harness_path("%s:/usr/sbin:/sbin", getenv("PATH")), 1);
	if (access("/dev/net/tun", R_OK | W_OK))
		harness_skip("/dev/net/tun: %s", strerror(errno));
	net->lan = new_namespace();
	shell("ip link set lo up; ip link add lan type bridge;"
	      "ip addr add " LAN ".1/24 dev lan; ip link set lan up");
	for (int i = 0; i < 2; i++) {
		net->host[i] = new_namespace();
		shell(harness_path("ip link set lo up; ip link add hub type bridge;"
				   "ip addr add " LAN ".%d/24 dev hub; ip link set hub up;"
				   "ip tuntap add gw0 mode tap; ip link set gw0 master hub up",
				   11 + i));
		enter(net->lan);
		shell(harness_path(
			"ip link add port%d type veth peer name wire netns /proc/%d/fd/%d;"
			"ip link set port%d master lan up",
			i, getpid(), net->host[i], i));
		enter(net->host[i]);
		shell("ip link set wire master hub up");
	}
	enter(net->lan);
	sniff(net);
}

/* ---- the guest and its work ---- */

struct journey {
	struct guest g;
	struct net net;
	const char *disk;
	struct proc *stream;
	uint64_t acked, writes;
	double longest_ms, total_ms;
};

/*
 * fio again and again: each run writes, makes durable, reads back and compares. Its own start is
 * what takes time on an emulated host.
 */
#define WORK                                                                                       \
	"( (n=0; while [ ! -e /run/stop ]; do"                                                     \
	" fio --thread --gtod_reduce=1 --name=w --filename=/root/w --size=4m --rw=randwrite "      \
	"--bsrange=4k-32k"                                                                         \
	" --ioengine=libaio --iodepth=8 --direct=1 --fsync=16 --verify=crc32c --verify_fatal=1"    \
	" --verify_backlog=128 --time_based --runtime=30 >/run/fio.log 2>&1 ||"                    \
	" { echo failed with $? after $n >/run/fio; exit; };"                                      \
	" n=$((n + 1)); done; echo passes $n >/run/fio) & )"

static uint64_t writes_done(struct journey *j)
{
	const char *text = deb_run(j->g.proc, 0, DEB_RUN_MS,
				   "sleep 0.5; [ ! -e /run/fio ] || cat /run/fio /run/fio.log;"
				   " set -- $(cat /sys/block/vda/stat); echo $5");
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	need(*end == '\0', "fio has ended: %s", text);
	return n;
}

/* The guest works: its disk takes writes, and its end of the connection bytes. */
static void works(struct journey *j)
{
	uint64_t acked, now, deadline = harness_now_ms() + (uint64_t)harness_slow(MOVE_MS);

	while ((now = writes_done(j)) <= j->writes)
		need(harness_now_ms() < deadline, "no writes to the disk since %llu",
		     (unsigned long long)now);
	j->writes = now;
	/* As many as were under way before the move may be acknowledged by what came before it. */
	do {
		acked = kv(proc_expect(j->stream, "^stream acked=", DEB_RUN_MS), "acked");
		need(harness_now_ms() < deadline, "the stream rests at %llu bytes",
		     (unsigned long long)acked);
	} while (acked < j->acked + (uint64_t)4 * CHUNK);
	/* Up to the present. */
	for (const char *line; (line = proc_try(j->stream, "^stream acked=", 1));)
		acked = kv(line, "acked");
	j->acked = acked;
}

static void set_out(struct journey *j)
{
	uint64_t started = harness_now_ms();
	const char *port;

	j->disk = deb_disk();
	enter(j->net.host[0]);
	guest_start(&j->g, "vm", "-m", "256M", "-k", deb_file("vmlinuz-6.1"), "-i",
		    deb_file("initrd-6.1.img"), "-p",
		    DEB_CMDLINE " net.ifnames=0 ip=" LAN ".2::" LAN ".1:255.255.255.0::eth0:off",
		    "--disk", j->disk, "--net", "tap:gw0,mac=" MAC, "--rng", NULL);
	enter(j->net.lan);
	deb_login(j->g.proc);
	deb_run(j->g.proc, 0, DEB_RUN_MS,
		"for i in $(seq 30); do ! ping -q -c 1 -W 1 " LAN ".1 || break; done >/dev/null;"
		" ping -c 1 " LAN ".1");
	harness_say("there and in the network after %.1f s",
		    (double)(harness_now_ms() - started) / 1000);

	j->stream = proc_start("stream", "/proc/self/exe", "--stream", NULL);
	proc_fatal(j->stream, "^broken");
	port = proc_expect(j->stream, "^port ", DEB_RUN_MS);
	deb_run(j->g.proc, 0, DEB_RUN_MS,
		harness_path("(socat -u TCP:" LAN ".1:%s - | sha256sum >/run/sum &)", port + 5));
	deb_run(j->g.proc, 0, DEB_RUN_MS, WORK);
	works(j);
}

static void move(struct journey *j, unsigned n)
{
	unsigned to = (n + 1) % 2, rarps = j->net.rarps;
	uint64_t started;
	struct proc *migrate;
	struct move m;
	struct dest d;

	enter(j->net.host[to]);
	dest_start(&d, harness_path("vm-%u", n + 1),
		   n % 4 == 3 ? "unix:" : harness_path("tcp:" LAN ".%u:0", 11 + to), NULL);
	enter(j->net.lan);
	migrate = move_start(&j->g, d.uri, n % 5 == 1 ? "--verify=full" : "--verify=stream", NULL);
	move_report(migrate, 0, &m, MOVE_MS);
	guest_moved(&j->g, &d);
	started = harness_now_ms();
	works(j);
	need(j->net.rarps > rarps, "the guest's new place was not announced");
	j->total_ms += m.total_ms;
	if (m.downtime_ms > j->longest_ms)
		j->longest_ms = m.downtime_ms;
	harness_say("move %u: %.0f ms, %u rounds, paused for %.1f ms; seen at work %.1f s later, "
		    "%u announcements, %llu bytes of the stream so far",
		    n + 1, m.total_ms, (unsigned)m.rounds, m.downtime_ms,
		    (double)(harness_now_ms() - started) / 1000, j->net.rarps - rarps,
		    (unsigned long long)j->acked);
}

static void arrive(struct journey *j)
{
	struct proc *p = j->g.proc;
	const char *fio, *sum, *sent;

	fio = deb_run(
		p, 0, 2 * DEB_RUN_MS,
		"touch /run/stop; for i in $(seq 300); do [ ! -e /run/fio ] || break; sleep 1;"
		" done; cat /run/fio");
	need(strncmp(fio, "passes ", 7) == 0, "fio: %s; %s", fio,
	     deb_run(p, -1, DEB_RUN_MS, "tail -n 30 /run/fio.log"));
	proc_close(j->stream);
	sum = proc_expect(j->stream, "^[0-9a-f]{64}  -$", 2 * DEB_RUN_MS);
	sent = proc_expect(j->stream, "^sent=", DEB_RUN_MS);
	proc_ended(j->stream, 0, DEB_RUN_MS);
	ck_assert_str_eq(deb_run(p, 0, DEB_RUN_MS, "cat /run/sum"), sum);
	ck_assert_str_eq(deb_run(p, -1, DEB_RUN_MS,
				 "dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|blocked for|"
				 "call trace|oops|virtio.*(fail|error)'"),
			 "");
	proc_send(p, "poweroff\n");
	deb_ended(&j->g, j->disk);
	harness_say("%u moves in %.1f s, paused for %.1f ms at most; fio %s, stream %s", j->g.moves,
		    j->total_ms / 1000, j->longest_ms, fio, sent);
}

START_TEST(under_load)
{
	unsigned moves = harness_env("GODWIT_TEST_MOVES", 20);
	static struct journey j;

	net_build(&j.net);
	set_out(&j);
	for (unsigned n = 0; n < moves; n++)
		move(&j, n);
	arrive(&j);
}
END_TEST

int main(int argc, char **argv)
{
	Suite *s;

	if (argc == 2 && strcmp(argv[1], "--stream") == 0)
		return stream_main();
	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");
	s = suite_create("linux-disk");
	tcase_add_test(
		harness_case(s, "under-load", 300 + 20 * harness_env("GODWIT_TEST_MOVES", 20)),
		under_load);
	return harness_main(s);
}
