/* SPDX-License-Identifier: MIT */
/*
 * What both sides agree on before anything moves: the HELLO frame's sections.
 */
#ifndef GODWIT_MIGRATE_HANDSHAKE_H
#define GODWIT_MIGRATE_HANDSHAKE_H

#include "../vmm/cpuid.h"
#include "../vmm/sbuf.h"
#include "../vmm/vcpu.h"
#include "../vmm/vm.h"
#include "migrate.h"
#include "state.h"

struct hello {
	struct vm_config cfg;
	struct cpuid cpuid;
	uint64_t tsc_khz;
	uint64_t hash_seed;
	uint64_t ram_used;    /* bytes that the destination will need memory for */
	uint8_t verify;	      /* enum migrate_verify */
	uint32_t connections; /* of this move, 1 and more */
	uint32_t rounds;      /* begun so far, on connections that broke */
	uint32_t n_msrs;      /* see vcpu_msrs_in_use() */
	uint32_t msr[VCPU_MSRS_MAX];
	const uint8_t *devices; /* of a loaded one: the device list, for state_device_list() */
	size_t devices_len;
};

/* The source's HELLO. -errno with the cause in err. */
int hello_save(struct vm *vm, const struct migrate_options *opt, uint64_t hash_seed,
	       uint32_t rounds, struct sbuf *s, struct errmsg *err);

/*
 * Parses one; h->devices points into data. -EPROTO, or -ENOTSUP for a section that this godwit
 * does not understand and that is not optional.
 */
int hello_load(struct hello *h, const void *data, size_t len, struct errmsg *err);

/*
 * Loads one section, for who only looks at it: body has a view (sbuf.h); find: see state.h.
 * -ENOTSUP: a section, a version or a device that this godwit does not know; else what is wrong
 * with the body.
 */
int hello_look(struct hello *h, const struct sb_section *sec, state_find_device *find,
	       struct sbuf *body);

/* Memory of a host, in bytes. What is not known is UINT64_MAX, and limits nobody. */
struct host_memory {
	uint64_t total;	    /* swap included */
	uint64_t available; /* that the host can give without taking it from anyone */
};
void host_memory_read(struct host_memory *m);

/*
 * Does the guest fit? What it uses now must be available. Its size may be beyond what there is, as
 * most guests use little of theirs, but not beyond all reason unless this side named it (want_ram,
 * 0: it did not). -ENOMEM, -ENOTSUP with the cause and the remedy in err.
 */
int hello_check_memory(const struct hello *h, uint64_t want_ram, const struct host_memory *m,
		       struct errmsg *err);

/*
 * May a guest that grows while it arrives go on taking memory until the next look, after
 * MEMORY_STEP? -ENOMEM with the cause in err: to end it is better than to have the kernel do it,
 * which may choose another.
 */
#define MEMORY_STEP (64 * MIB)
#define MEMORY_RESERVE (64 * MIB)
int host_memory_check_step(const struct host_memory *m, struct errmsg *err);

#endif
