/* SPDX-License-Identifier: MIT */
#include "instance_devices.h"

#include <errno.h>
#include <stdio.h>

#include "report.h"
#include "virtio_balloon.h"
#include "virtio_net.h"
#include "virtio_vsock.h"

static json_t *u64(uint64_t v)
{
	return json_integer((json_int_t)v);
}

static json_t *disk_json(const struct vm_disk *d)
{
	return json_pack("{s:s,s:o,s:b,s:s}", "type", "disk", "path", report_text(d->path),
			 "readonly", d->readonly, "cache", vm_cache_name(d->cache));
}

static json_t *net_json(const struct vm *vm, uint32_t i)
{
	const struct vm_net *n = &vm->cfg.devices.net[i];
	struct device *d = vm_find_device(vm, virtio_net_ops.tag, i);
	struct net_counters c = {0};
	char mac[18];

	snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", n->mac[0], n->mac[1], n->mac[2],
		 n->mac[3], n->mac[4], n->mac[5]);
	if (d)
		virtio_net_counters(d, &c);
	return json_pack("{s:s,s:s,s:o,s:s,s:b,s:o,s:o,s:o,s:o,s:o,s:o}", "type", "net", "backend",
			 n->kind == VM_NET_TAP ? "tap" : "user", "tap", report_text(n->tap), "mac",
			 mac, "link", c.link_up, "rx_packets", u64(c.rx_packets), "rx_bytes",
			 u64(c.rx_bytes), "rx_dropped", u64(c.rx_dropped), "tx_packets",
			 u64(c.tx_packets), "tx_bytes", u64(c.tx_bytes), "tx_dropped",
			 u64(c.tx_dropped));
}

static json_t *vsock_json(const struct vm *vm)
{
	const struct vm_vsock *v = &vm->cfg.devices.vsock;
	struct device *d = vm_find_device(vm, virtio_vsock_ops.tag, 0);
	struct virtio_vsock_stats s = {0};

	if (d)
		virtio_vsock_stats(d, &s);
	return json_pack("{s:s,s:o,s:o,s:o,s:o,s:o}", "type", "vsock", "path", report_text(v->path),
			 "cid", u64(v->cid), "connections", u64(s.connections), "to_guest_bytes",
			 u64(s.to_guest), "from_guest_bytes", u64(s.from_guest));
}

/* A figure that the guest has told. */
static void add_known(json_t *obj, const char *key, uint64_t v)
{
	if (v != BALLOON_UNKNOWN)
		json_object_set_new(obj, key, u64(v));
}

static json_t *balloon_json(const struct vm *vm)
{
	struct device *d = vm_find_device(vm, virtio_balloon_ops.tag, 0);
	struct balloon_stats s = {0};
	json_t *obj;

	if (!d)
		return NULL;
	virtio_balloon_stats(d, &s);
	obj = json_pack("{s:s,s:b,s:o,s:o,s:o}", "type", "balloon", "driver", s.driver,
			"target_bytes", u64(s.target), "actual_bytes", u64(s.actual), "used_bytes",
			u64(ram_used(&vm->ram)));
	add_known(obj, "guest_total_bytes", s.total);
	add_known(obj, "guest_free_bytes", s.free);
	add_known(obj, "guest_available_bytes", s.available);
	add_known(obj, "guest_cache_bytes", s.caches);
	if (s.age_ns != BALLOON_UNKNOWN)
		json_object_set_new(obj, "age_ms", report_ms(s.age_ns));
	return obj;
}

json_t *instance_devices(const struct vm *vm)
{
	const struct vm_devices *c = &vm->cfg.devices;
	json_t *list = json_array();

	for (uint32_t i = 0; i < c->n_disks; i++)
		json_array_append_new(list, disk_json(&c->disk[i]));
	for (uint32_t i = 0; i < c->n_nets; i++)
		json_array_append_new(list, net_json(vm, i));
	if (c->vsock.present)
		json_array_append_new(list, vsock_json(vm));
	if (c->console.present)
		json_array_append_new(list, json_pack("{s:s,s:o}", "type", "console", "path",
						      report_text(c->console.path)));
	if (c->rng)
		json_array_append_new(list, json_pack("{s:s}", "type", "rng"));
	if (c->balloon)
		json_array_append_new(list, balloon_json(vm));
	return list;
}

json_t *instance_balloon(const struct vm *vm, uint64_t target, struct errmsg *err)
{
	struct device *d = vm_find_device(vm, virtio_balloon_ops.tag, 0);

	if (!d) {
		errmsg_set(err, -ENODEV,
			   "the guest has no balloon: it was started without --balloon");
		return NULL;
	}
	if (target != UINT64_MAX && virtio_balloon_set_target(d, target, err))
		return NULL;
	return balloon_json(vm);
}
