/* SPDX-License-Identifier: MIT */
/*
 * The destination's part of the handshake: is the guest welcome, and its machine.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../vmm/clock.h"
#include "../vmm/kvm.h"
#include "../vmm/ram_image.h"
#include "dest_parts.h"
#include "held.h"
#include "state.h"

#define QUIESCE_LIMIT NS_PER_SEC

static int check_wishes(struct receiver *r, const struct hello *h)
{
	char theirs[32], ours[32];

	if (r->opt.want_ram && r->opt.want_ram != h->cfg.ram_size)
		return errmsg_set(&r->err, -ENOTSUP,
				  "the guest has %s of RAM, this receiver takes only %s (-m)",
				  format_size(theirs, sizeof(theirs), h->cfg.ram_size),
				  format_size(ours, sizeof(ours), r->opt.want_ram));
	if (r->opt.want_vcpus && r->opt.want_vcpus != h->cfg.vcpus)
		return errmsg_set(&r->err, -ENOTSUP,
				  "the guest has %u vCPUs, this receiver takes only %u (-c)",
				  h->cfg.vcpus, r->opt.want_vcpus);
	return 0;
}

static int check_memory(struct receiver *r, const struct hello *h)
{
	struct host_memory m;

	host_memory_read(&m);
	/* What is kept of it is not needed again. */
	if (r->kept.valid)
		m.available += MIN(ram_used(&r->kept.ram), UINT64_MAX - m.available);
	return hello_check_memory(h, r->opt.want_ram, &m, &r->err);
}

static int check_cpu(struct receiver *r, const struct hello *h)
{
	struct cpuid *host = malloc(sizeof(*host));
	struct kvm_caps caps;
	int kvm_fd, ret;

	if (!host)
		return errmsg_set(&r->err, -ENOMEM, "no memory for CPUID");
	kvm_fd = kvm_open(&caps, &r->err);
	ret = kvm_fd < 0 ? kvm_fd : cpuid_host(host, kvm_fd, r->opt.cpu_mask, &r->err);
	/* A guest that could never leave again is not taken in. */
	if (ret == 0 && caps.no_migrate)
		ret = errmsg_set(&r->err, -ENOTSUP,
				 "this host's KVM lacks %s: it cannot migrate guests",
				 caps.no_migrate);
	if (ret == 0)
		ret = cpuid_check(&h->cpuid, host, &r->err);
	if (kvm_fd >= 0)
		close(kvm_fd);
	free(host);
	return ret;
}

static int build(struct receiver *r, void *hello)
{
	struct hello *h = hello;

	return r->opt.build(r->opt.build_arg, &h->cfg, &h->cpuid, &r->vm, &r->err);
}

/* Is what is kept of this guest? */
static int check_kept(struct receiver *r, const struct hello *h)
{
	const struct kept *k = &r->kept;

	if (!k->valid || (k->id[0] == h->cfg.id[0] && k->id[1] == h->cfg.id[1] &&
			  k->ram.size == h->cfg.ram_size))
		return 0;
	return errmsg_set(&r->err, -EBUSY,
			  "this receiver waits for another guest to come back whose connection "
			  "broke; 'godwit cancel' there gives that up");
}

/* What an earlier stay of the guest, or a snapshot, has left. A guess that may be wrong. */
static void load_base(struct receiver *r)
{
	struct errmsg why = {0};

	/* What has come of it is as good as any. */
	if (ram_image_load(&r->vm->ram, r->base_fd, &why))
		log_warn("memory that %s should have had is sent, too: %s", r->opt.base, why.text);
}

/* The table of hashes, and RAM that it tells of. before: RAM is not a fresh machine's. */
static int prepare_table(struct receiver *r, const struct hello *h, bool before)
{
	bool base = !before && r->base_fd >= 0;
	int ret;

	/* The same source goes on: the table was kept, too. */
	if (before && r->kept.session == r->session && r->hashes.table &&
	    r->hashes.seed == h->hash_seed)
		return 0;
	hashes_free(&r->hashes);
	ret = hashes_init(&r->hashes, r->vm->ram.npages, h->hash_seed);
	if (ret)
		return errmsg_set(&r->err, ret, "no memory for the table of page hashes");
	if (base)
		load_base(r);
	if (before || base)
		ret = hashes_from_ram(&r->hashes, &r->vm->ram, dest_still_wanted, r);
	/* One that was broken off would be kept, and tell of zeros where RAM holds something. */
	if (ret)
		hashes_free(&r->hashes);
	return ret;
}

static int build_machine(struct receiver *r, struct hello *h)
{
	bool before = r->kept.valid;
	struct sbuf list;
	int ret;

	ret = check_kept(r, h);
	if (ret == 0)
		ret = check_wishes(r, h);
	if (ret == 0)
		ret = check_memory(r, h);
	if (ret == 0)
		ret = check_cpu(r, h);
	if (ret == 0)
		h->cfg.adopt = before ? &r->kept.ram : NULL;
	if (ret == 0)
		ret = dest_on_loop(r, build, h);
	/* If it has been taken over it is the machine's, or gone with it. */
	if (before && r->kept.ram.fd < 0)
		r->kept.valid = false;
	if (ret)
		return ret;
	r->kept.id[0] = h->cfg.id[0];
	r->kept.id[1] = h->cfg.id[1];
	sb_init_load(&list, h->devices, h->devices_len);
	state_device_list(r->vm, &list, &r->err);
	sb_end(&list);
	if (list.err)
		return errmsg_set(&r->err, list.err, "the source's list of devices is malformed");
	ret = clock_take_frequency(r->vm, h->tsc_khz, &r->err);
	if (ret == 0)
		ret = vcpu_check_msrs(&r->vm->vcpu[0], h->msr, h->n_msrs, &r->err);
	if (ret == 0)
		ret = vm_quiesce_devices(r->vm, QUIESCE_LIMIT, &r->err);
	if (ret == 0)
		ret = vm_start(r->vm, &r->err);
	if (ret)
		return ret;
	ret = prepare_table(r, h, before);
	if (ret)
		return ret;
	r->store.ram = &r->vm->ram;
	r->store.hashes = &r->hashes;
	r->verify = (enum migrate_verify)h->verify;
	pthread_mutex_lock(&r->lock);
	r->stats.ram_bytes = r->vm->ram.size;
	r->stats.verify = r->verify;
	r->stats.connections = h->connections;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

/* Tells the source that all is ready, and what is here already. */
static int welcome(struct receiver *r)
{
	struct wire_hello_ok ok = {.held = hashes_count_held(&r->hashes)};
	int ret = conn_send(&r->conn, WIRE_HELLO_OK, &ok, sizeof(ok), NULL, &r->err);

	if (ret == 0 && ok.held)
		ret = held_announce(&r->hashes, &r->conn, &r->err);
	pthread_mutex_lock(&r->lock);
	r->stats.held_pages = ok.held;
	pthread_mutex_unlock(&r->lock);
	return ret;
}

int dest_on_hello(struct receiver *r, const struct wire_frame *f, const uint8_t *payload)
{
	struct hello *h = malloc(sizeof(*h));
	uint32_t connections = 1, rounds = 0;
	int ret;

	if (!h)
		return errmsg_set(&r->err, -ENOMEM, "no memory for the handshake");
	r->conn.deadline_ns = UINT64_MAX;
	ret = hello_load(h, payload, f->length, &r->err);
	if (ret == 0)
		ret = build_machine(r, h);
	if (ret == 0) {
		connections = h->connections;
		rounds = h->rounds;
	}
	free(h);
	if (ret) {
		conn_fail(&r->conn, WIRE_REFUSE, r->err.text);
		return ret;
	}
	r->holding = true;
	door_admit(&r->door, true, r->session);
	ret = welcome(r);
	if (ret == 0 && connections > 1)
		ret = lanes_open(&r->lanes, connections - 1, &r->door, r->cancel_fd, r->session,
				 rounds, &r->conn, &r->store, &r->err);
	dest_set_phase(r, MIGRATE_PRECOPY);
	return ret;
}
