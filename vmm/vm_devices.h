/* SPDX-License-Identifier: MIT */
/*
 * The devices that a user can give a guest, as the command line describes them and as the
 * handshake of a migration carries them. A receiver may put other host-local paths in their place.
 */
#ifndef GODWIT_VM_DEVICES_H
#define GODWIT_VM_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "sbuf.h"

#define VM_PATH_MAX 1024
#define VM_SOCKET_MAX 97 /* of a unix socket's path, room for a suffix in sun_path left */
#define VM_SERIAL_MAX 20 /* of a disk; virtio 1.2, section 5.2.6 */
#define VM_MAX_DISKS 16
#define VM_MAX_NETS 8
#define VM_MAX_FORWARDS 32
#define VM_MAX_DEVICE_QUEUES 8
#define VM_TAP_MAX 16 /* IFNAMSIZ */

enum vm_cache {
	VM_CACHE_WRITEBACK,    /* host page cache; durable after the guest's flush */
	VM_CACHE_NONE,	       /* O_DIRECT; durable after the guest's flush */
	VM_CACHE_WRITETHROUGH, /* durable when the guest is told that it is written */
	VM_CACHE_UNSAFE,       /* flushes are ignored */
};

/* As users write it: "writeback". */
const char *vm_cache_name(enum vm_cache cache);

struct vm_disk {
	char path[VM_PATH_MAX];
	char serial[VM_SERIAL_MAX + 1];
	uint8_t cache; /* enum vm_cache */
	bool readonly;
	bool discard;	 /* the guest's discards punch holes */
	uint16_t queues; /* 1 to VM_MAX_DEVICE_QUEUES */
};

enum vm_net_kind {
	VM_NET_USER, /* through passt */
	VM_NET_TAP,
};

struct vm_forward {
	bool udp;
	char host[46]; /* address to listen at, "" for any */
	uint16_t host_port;
	uint16_t guest_port;
};

struct vm_net {
	uint8_t kind; /* enum vm_net_kind */
	uint8_t mac[6];
	uint16_t queues; /* pairs, 1 to VM_MAX_DEVICE_QUEUES */
	char tap[VM_TAP_MAX];
	uint32_t n_forwards;
	struct vm_forward forward[VM_MAX_FORWARDS];
};

struct vm_vsock {
	bool present;
	uint64_t cid; /* of the guest, 3 or more */
	char path[VM_SOCKET_MAX];
};

struct vm_console {
	bool present;
	char path[VM_SOCKET_MAX]; /* unix socket at which one peer at a time is served */
};

struct vm_devices {
	uint32_t n_disks;
	struct vm_disk disk[VM_MAX_DISKS];
	uint32_t n_nets;
	struct vm_net net[VM_MAX_NETS];
	struct vm_vsock vsock;
	struct vm_console console;
	bool rng;
	bool balloon;
};

/* As one field list; a description that a machine cannot have is -EPROTO or -ERANGE. */
void vm_devices_fields(struct vm_devices *d, struct sbuf *s);

#endif
