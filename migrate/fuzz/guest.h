/* SPDX-License-Identifier: MIT */
/*
 * A whole machine on a KVM that is none (vmm/fuzz/fake_kvm.h), for targets that feed the engine:
 * its state and its HELLO as an honest source sends them, and ways to lie in them.
 */
#ifndef GODWIT_MIGRATE_FUZZ_GUEST_H
#define GODWIT_MIGRATE_FUZZ_GUEST_H

#include "../../vmm/chan.h"
#include "../../vmm/fuzz/fuzz.h"
#include "../../vmm/vm.h"
#include "../handshake.h"

/* 0: nothing but the board. 1: two vCPUs and devices of every kind but network. */
#define GUEST_VARIANTS 2U

#define GUEST_SEED 0x5eedULL /* of the hashes, in its HELLO */

struct fuzz_guest {
	struct loop *loop;
	struct chan serial;
	struct vm *vm;
};

/* What the guest is made of. Its files and sockets are in fuzz_folder(). */
const struct vm_config *guest_config(unsigned variant);
const struct cpuid *guest_cpuid(unsigned variant);

/* The machine, with its devices at rest. The loop is one for all. */
void guest_create(struct fuzz_guest *g, unsigned variant);
void guest_destroy(struct fuzz_guest *g);

/*
 * build() of receive_options, which a guest arrives by: the machine of the source's description,
 * but with files and sockets of here, and without networks. One at a time; its owner's to destroy.
 */
int guest_build(void *arg, struct vm_config *cfg, const struct cpuid *cpuid, struct vm **out,
		struct errmsg *err);

/* Brings its devices to rest, as the engine does: on another thread than the loop's. */
int guest_quiesce(struct fuzz_guest *g, struct errmsg *err);

/* What the host has when a guest arrives: 32 MiB and 1 GiB unless a target changes it. */
extern struct host_memory guest_memory;

/* The one loop; it is the caller's thread that runs it. */
struct loop *guest_loop(void);

/* What an honest source sends, made once. */
const struct sbuf *guest_state(unsigned variant);
const struct sbuf *guest_hello(unsigned variant);

/* Saves a machine at rest into s, which is the caller's to sb_free(). `what` is for the message. */
void guest_save(struct fuzz_guest *g, struct sbuf *s, const char *what);

/* Is it the same state but for what is time? */
void guest_compare(const struct sbuf *a, const struct sbuf *b);

/* The sections of `from` with changes that the input asks for; none when it has ended. out is the
 * caller's to sb_free(). Returns whether there were any. */
bool sections_edit(const struct sbuf *from, struct fuzz_in *in, struct sbuf *out);

#endif
