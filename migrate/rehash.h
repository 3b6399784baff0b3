/* SPDX-License-Identifier: MIT */
/*
 * All of RAM hashed again, for --verify=full: by as many threads as help, since the guest stands
 * meanwhile.
 */
#ifndef GODWIT_MIGRATE_REHASH_H
#define GODWIT_MIGRATE_REHASH_H

#include <stdint.h>

#include "hashes.h"

/*
 * Compares RAM with the table: 0, or -EBADMSG with *index the first page that differs. A stopped
 * guest only. tick(arg), when not NULL, is called every few MiB on the caller's thread; what it
 * returns other than 0 ends the comparison and is returned. CPU time of the other threads is added
 * to *cpu_ns.
 */
int rehash_compare(const struct hashes *h, const struct ram *ram, uint64_t *index,
		   int (*tick)(void *arg), void *arg, uint64_t *cpu_ns);

/*
 * How long that takes for a page, by a sample; 0 where there is nothing to hash. While the other
 * threads have CPUs of their own.
 */
double rehash_page_ns(const struct hashes *h, const struct ram *ram);

#endif
