/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../config_devices.h"
#include "../util.h"
#include "check-main.h"

/* Each test is a process of its own: both are empty when it starts. */
static struct vm_devices d;
static struct errmsg err;

#define ck_ok(expr)                                                                                \
	do {                                                                                       \
		int ret_ = (expr);                                                                 \
		ck_assert_msg(ret_ == 0, "%s: %d %s", #expr, ret_, err.text);                      \
	} while (0)

/* Refused, and the text names the word. */
#define ck_bad(expr, named)                                                                        \
	do {                                                                                       \
		memset(&err, 0, sizeof(err));                                                      \
		ck_assert_int_eq(expr, -EINVAL);                                                   \
		ck_assert_msg(strstr(err.text, named), "'%s' does not name %s", err.text, named);  \
	} while (0)

START_TEST(disks)
{
	ck_ok(config_disk(&d, "root.img", &err));
	ck_ok(config_disk(&d, "/a,,b,ro,cache=none,serial=x1,queues=4,discard=off", &err));
	ck_ok(config_disk(&d, "c,cache=writethrough", &err));
	ck_ok(config_disk(&d, "c,cache=unsafe", &err));
	ck_assert_uint_eq(d.n_disks, 4);
	ck_assert_str_eq(d.disk[0].path, "root.img");
	ck_assert_uint_eq(d.disk[0].cache, VM_CACHE_WRITEBACK);
	ck_assert_uint_eq(d.disk[0].queues, 1);
	ck_assert(d.disk[0].discard && !d.disk[0].readonly);
	ck_assert_str_eq(d.disk[0].serial, "");
	ck_assert_str_eq(d.disk[1].path, "/a,b");
	ck_assert(d.disk[1].readonly && !d.disk[1].discard);
	ck_assert_uint_eq(d.disk[1].cache, VM_CACHE_NONE);
	ck_assert_uint_eq(d.disk[1].queues, 4);
	ck_assert_str_eq(d.disk[1].serial, "x1");
	ck_assert_uint_eq(d.disk[2].cache, VM_CACHE_WRITETHROUGH);
	ck_assert_uint_eq(d.disk[3].cache, VM_CACHE_UNSAFE);
}
END_TEST

START_TEST(bad_disks)
{
	char path[2 * VM_PATH_MAX];

	ck_bad(config_disk(&d, "", &err), "path");
	ck_bad(config_disk(&d, ",ro", &err), "path");
	ck_bad(config_disk(&d, "x,rw", &err), "'rw'");
	ck_bad(config_disk(&d, "x,", &err), "''");
	ck_bad(config_disk(&d, "x,cache=fast", &err), "fast");
	ck_bad(config_disk(&d, "x,queues=0", &err), "queues=0");
	ck_bad(config_disk(&d, "x,queues=9", &err), "queues=9");
	ck_bad(config_disk(&d, "x,serial=", &err), "serial");
	ck_bad(config_disk(&d, "x,serial=123456789012345678901", &err), "20");
	ck_bad(config_disk(&d, "x,discard=maybe", &err), "maybe");
	memset(path, 'p', sizeof(path));
	path[sizeof(path) - 1] = '\0';
	ck_bad(config_disk(&d, path, &err), "longer");
	path[VM_PATH_MAX - 1] = '\0';
	ck_ok(config_disk(&d, path, &err));
	ck_assert_uint_eq(d.n_disks, 1);
	while (d.n_disks < VM_MAX_DISKS)
		ck_ok(config_disk(&d, "x", &err));
	ck_bad(config_disk(&d, "x", &err), "16 disks");
}
END_TEST

START_TEST(nets)
{
	static const uint8_t mac[6] = {0x52, 0x54, 0, 0x12, 0xab, 0xff};

	ck_ok(config_net(&d, "user", &err));
	ck_ok(config_net(&d,
			 "user,hostfwd=tcp:2222:22,hostfwd=udp:127.0.0.1:53:5353,"
			 "hostfwd=tcp:[::1]:80:8080,mac=52:54:00:12:aB:ff",
			 &err));
	ck_ok(config_net(&d, "tap:tap0,queues=2", &err));
	ck_assert_uint_eq(d.n_nets, 3);
	ck_assert_uint_eq(d.net[0].kind, VM_NET_USER);
	ck_assert_uint_eq(d.net[0].n_forwards, 0);
	ck_assert_uint_eq(d.net[1].n_forwards, 3);
	ck_assert(!d.net[1].forward[0].udp && d.net[1].forward[1].udp);
	ck_assert_str_eq(d.net[1].forward[0].host, "");
	ck_assert_uint_eq(d.net[1].forward[0].host_port, 2222);
	ck_assert_uint_eq(d.net[1].forward[0].guest_port, 22);
	ck_assert_str_eq(d.net[1].forward[1].host, "127.0.0.1");
	ck_assert_uint_eq(d.net[1].forward[1].host_port, 53);
	ck_assert_uint_eq(d.net[1].forward[1].guest_port, 5353);
	ck_assert_str_eq(d.net[1].forward[2].host, "::1");
	ck_assert_uint_eq(d.net[1].forward[2].host_port, 80);
	ck_assert_mem_eq(d.net[1].mac, mac, 6);
	ck_assert_uint_eq(d.net[2].kind, VM_NET_TAP);
	ck_assert_str_eq(d.net[2].tap, "tap0");
	ck_assert_uint_eq(d.net[2].queues, 2);
}
END_TEST

START_TEST(bad_nets)
{
	static const char *const forwards[] = {
		"",	     "tcp",	     "tcp:22",	    "tcp::22",	"tcp:1:",
		"tcp:0:22",  "tcp:22:0",     "tcp:65536:1", "sctp:1:2", "2222:22",
		"tcp:a:b:c", "tcp:2222:22x", "tcp:-1:22",
	};
	static const char *const macs[] = {
		"",
		"52:54:00:12:34",
		"52:54:00:12:34:5",
		"52:54:00:12:34:zz",
		"52:54:00:12:34:56:78",
		"01:00:00:00:00:00",
		"00:00:00:00:00:00",
		"52-54-00-12-34-56",
	};
	char text[200];

	ck_bad(config_net(&d, "", &err), "''");
	ck_bad(config_net(&d, "bridge:br0", &err), "'bridge:br0'");
	ck_bad(config_net(&d, "tap:", &err), "tap");
	ck_bad(config_net(&d, "tap:sixteen-bytes-and", &err), "15");
	ck_bad(config_net(&d, "tap:t,hostfwd=tcp:1:2", &err), "hostfwd");
	ck_bad(config_net(&d, "user,queues=2", &err), "queues");
	for (size_t i = 0; i < ARRAY_SIZE(forwards); i++) {
		snprintf(text, sizeof(text), "user,hostfwd=%s", forwards[i]);
		ck_bad(config_net(&d, text, &err), "hostfwd");
	}
	for (size_t i = 0; i < ARRAY_SIZE(macs); i++) {
		snprintf(text, sizeof(text), "user,mac=%s", macs[i]);
		ck_bad(config_net(&d, text, &err), "mac=");
	}
	ck_assert_uint_eq(d.n_nets, 0);
}
END_TEST

START_TEST(vsock_and_console)
{
	char path[VM_SOCKET_MAX + 8];

	ck_bad(config_vsock(&d, "x,cid=2", &err), "cid=2");
	ck_bad(config_vsock(&d, "x,cid=4294967295", &err), "cid=4294967295");
	ck_bad(config_vsock(&d, "x,y", &err), "'y'");
	memset(path, 'p', sizeof(path));
	path[VM_SOCKET_MAX] = '\0';
	ck_bad(config_vsock(&d, path, &err), "96");
	ck_bad(config_console(&d, path, &err), "96");
	ck_bad(config_console(&d, "x,y", &err), "'y'");
	ck_ok(config_vsock(&d, "/run/v.sock", &err));
	ck_assert(d.vsock.present && d.vsock.cid == 3);
	ck_assert_str_eq(d.vsock.path, "/run/v.sock");
	ck_bad(config_vsock(&d, "/run/w.sock", &err), "twice");
	ck_ok(config_console(&d, "/run/c.sock", &err));
	ck_assert_str_eq(d.console.path, "/run/c.sock");
	ck_bad(config_console(&d, "x", &err), "twice");
}
END_TEST

START_TEST(overrides)
{
	struct vm_devices there = {0};

	ck_ok(config_disk(&there, "/there/a,serial=a,cache=none", &err));
	ck_ok(config_disk(&there, "/there/b,ro", &err));
	ck_ok(config_net(&there, "tap:tap9,mac=52:54:00:00:00:01,queues=2", &err));
	ck_ok(config_vsock(&there, "/there/v,cid=7", &err));
	ck_ok(config_disk(&d, "/here/a", &err));
	ck_ok(config_net(&d, "user,hostfwd=tcp:1:2", &err));
	ck_ok(config_vsock(&d, "/here/v", &err));
	ck_ok(config_override_devices(&there, &d, &err));
	/* What is local changes, what the guest sees stays. */
	ck_assert_str_eq(there.disk[0].path, "/here/a");
	ck_assert_str_eq(there.disk[0].serial, "a");
	ck_assert_str_eq(there.disk[1].path, "/there/b");
	ck_assert(there.disk[1].readonly);
	ck_assert_uint_eq(there.net[0].kind, VM_NET_USER);
	ck_assert_uint_eq(there.net[0].mac[5], 1);
	ck_assert_uint_eq(there.net[0].queues, 2);
	ck_assert_uint_eq(there.net[0].n_forwards, 1);
	ck_assert_str_eq(there.vsock.path, "/here/v");
	ck_assert_uint_eq(there.vsock.cid, 7);

	ck_ok(config_console(&d, "/here/c", &err));
	ck_assert_int_eq(config_override_devices(&there, &d, &err), -ENOTSUP);
	ck_assert_ptr_nonnull(strstr(err.text, "--console"));
}
END_TEST

START_TEST(addresses)
{
	ck_ok(config_net(&d, "user", &err));
	ck_ok(config_net(&d, "user,mac=52:54:00:00:00:01", &err));
	ck_ok(config_net(&d, "user", &err));
	ck_ok(config_choose_macs(&d, &err));
	ck_assert_uint_eq(d.net[0].mac[0] & 3, 2);
	ck_assert_uint_eq(d.net[1].mac[0], 0x52);
	ck_assert_int_ne(memcmp(d.net[0].mac, d.net[2].mac, 6), 0);
}
END_TEST

/* What a machine is made of survives the wire, and nonsense does not. */
START_TEST(on_the_wire)
{
	struct vm_devices back;
	struct sbuf s, l;

	ck_ok(config_disk(&d, "a,ro,serial=s", &err));
	ck_ok(config_net(&d, "user,hostfwd=tcp:1.2.3.4:1:2,mac=52:54:00:00:00:01", &err));
	ck_ok(config_vsock(&d, "v,cid=9", &err));
	d.balloon = true;
	sb_init_save(&s);
	vm_devices_fields(&d, &s);
	ck_assert_int_eq(s.err, 0);
	memset(&back, 0, sizeof(back));
	sb_init_load(&l, s.data, s.len);
	vm_devices_fields(&back, &l);
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	ck_assert_mem_eq(&back, &d, sizeof(d));
	for (size_t cut = 0; cut < s.len; cut++) {
		memset(&back, 0, sizeof(back));
		sb_init_load(&l, s.data, cut);
		vm_devices_fields(&back, &l);
		ck_assert_int_ne(l.err, 0);
	}
	sb_free(&s);
	d.vsock.cid = 2;
	sb_init_save(&s);
	vm_devices_fields(&d, &s);
	sb_init_load(&l, s.data, s.len);
	vm_devices_fields(&back, &l);
	ck_assert_int_ne(l.err, 0);
	sb_free(&s);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		disks,	   bad_disks, nets,	   bad_nets, vsock_and_console,
		overrides, addresses, on_the_wire,
	};

	return check_main("config-devices", tests, ARRAY_SIZE(tests));
}
