/* SPDX-License-Identifier: MIT */
/*
 * What both sides agree on before anything moves: the HELLO frame's sections.
 */
#ifndef GODWIT_MIGRATE_HANDSHAKE_H
#define GODWIT_MIGRATE_HANDSHAKE_H

#include "../vmm/cpuid.h"
#include "../vmm/sbuf.h"
#include "../vmm/vm.h"
#include "migrate.h"

struct hello {
	struct vm_config cfg;
	struct cpuid cpuid;
	uint64_t tsc_khz;
	uint64_t hash_seed;
	uint64_t ram_used;	/* bytes that the destination will need memory for */
	uint8_t verify;		/* enum migrate_verify */
	const uint8_t *devices; /* of a loaded one: the device list, for state_device_list() */
	size_t devices_len;
};

/* The source's HELLO. -errno with the cause in err. */
int hello_save(struct vm *vm, const struct migrate_options *opt, uint64_t hash_seed, struct sbuf *s,
	       struct errmsg *err);

/*
 * Parses one; h->devices points into data. -EPROTO, or -ENOTSUP for a section that this godwit
 * does not understand and that is not optional.
 */
int hello_load(struct hello *h, const void *data, size_t len, struct errmsg *err);

#endif
