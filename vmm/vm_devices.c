/* SPDX-License-Identifier: MIT */
#include "vm_devices.h"

#include <errno.h>
#include <string.h>

#include "util.h"

const char *vm_cache_name(enum vm_cache cache)
{
	static const char *const names[] = {
		[VM_CACHE_WRITEBACK] = "writeback",
		[VM_CACHE_NONE] = "none",
		[VM_CACHE_WRITETHROUGH] = "writethrough",
		[VM_CACHE_UNSAFE] = "unsafe",
	};

	return names[cache];
}

/* A small number that must be min to max. */
static void u8_range(struct sbuf *s, uint8_t *v, uint32_t min, uint32_t max, const char *name)
{
	uint32_t n = *v;

	sb_u32_range_as(s, &n, min, max, name);
	if (s->loading)
		*v = (uint8_t)n;
}

static void queues_fields(struct sbuf *s, uint16_t *v)
{
	uint32_t queues = *v;

	sb_u32_range(s, &queues, 1, VM_MAX_DEVICE_QUEUES);
	if (s->loading)
		*v = (uint16_t)queues;
}

static void disk_fields(struct vm_disk *d, struct sbuf *s)
{
	sb_str(s, d->path, sizeof(d->path));
	sb_str(s, d->serial, sizeof(d->serial));
	u8_range(s, &d->cache, VM_CACHE_WRITEBACK, VM_CACHE_UNSAFE, "cache");
	sb_bool(s, &d->readonly);
	sb_bool(s, &d->discard);
	queues_fields(s, &d->queues);
}

static void net_fields(struct vm_net *n, struct sbuf *s)
{
	u8_range(s, &n->kind, VM_NET_USER, VM_NET_TAP, "kind");
	sb_bytes(s, n->mac, sizeof(n->mac));
	queues_fields(s, &n->queues);
	sb_str(s, n->tap, sizeof(n->tap));
	sb_u32_range(s, &n->n_forwards, 0, VM_MAX_FORWARDS);
	for (uint32_t i = 0; i < n->n_forwards && !s->err; i++) {
		struct vm_forward *f = &n->forward[i];
		size_t mark = sb_enter(s, "forward[%u]", i);

		sb_bool(s, &f->udp);
		sb_str(s, f->host, sizeof(f->host));
		sb_u16(s, &f->host_port);
		sb_u16(s, &f->guest_port);
		sb_leave(s, mark);
	}
}

void vm_devices_fields(struct vm_devices *d, struct sbuf *s)
{
	size_t mark;

	sb_u32_range(s, &d->n_disks, 0, VM_MAX_DISKS);
	for (uint32_t i = 0; i < d->n_disks && !s->err; i++) {
		mark = sb_enter(s, "disk[%u]", i);
		disk_fields(&d->disk[i], s);
		sb_leave(s, mark);
	}
	sb_u32_range(s, &d->n_nets, 0, VM_MAX_NETS);
	for (uint32_t i = 0; i < d->n_nets && !s->err; i++) {
		mark = sb_enter(s, "net[%u]", i);
		net_fields(&d->net[i], s);
		sb_leave(s, mark);
	}
	sb_bool(s, &d->vsock.present);
	sb_u64(s, &d->vsock.cid);
	sb_str(s, d->vsock.path, sizeof(d->vsock.path));
	sb_bool(s, &d->console.present);
	sb_str(s, d->console.path, sizeof(d->console.path));
	sb_bool(s, &d->rng);
	sb_bool(s, &d->balloon);
	if (s->loading && !s->err && d->vsock.present &&
	    (d->vsock.cid < 3 || d->vsock.cid > UINT32_MAX))
		sb_fail(s, -EPROTO);
}
