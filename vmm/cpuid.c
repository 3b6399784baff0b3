/* SPDX-License-Identifier: MIT */
/*
 * What is taken out of every machine, and why:
 *
 * - bits that show the moment's state, not a feature: OSXSAVE, OSPKE;
 * - what KVM cannot carry to another host, or what needs state that is not saved: performance
 *   counters, processor trace, SGX, nested virtualisation (VMX, SVM), invariant TSC (a promise
 *   that a machine which moves cannot keep; kvmclock serves instead), asynchronous page faults;
 * - leaves that describe this host's caches, threads and clocks.
 */
#include "cpuid.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cpuid_names.h"
#include "kvm.h"

#define LEAF_KVM_SIGNATURE 0x40000000U
#define LEAF_KVM_FEATURES 0x40000001U
#define LEAF_TIMING 0x40000010U

static struct kvm_cpuid_entry2 *find(struct cpuid *c, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < c->n; i++) {
		struct kvm_cpuid_entry2 *e = &c->entry[i];

		if (e->function == function &&
		    (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index))
			return e;
	}
	return NULL;
}

const struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid *c, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < c->n; i++) {
		const struct kvm_cpuid_entry2 *e = &c->entry[i];

		if (e->function == function &&
		    (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index))
			return e;
	}
	return NULL;
}

static uint32_t *reg_of(struct kvm_cpuid_entry2 *e, enum cpuid_reg reg)
{
	switch (reg) {
	case CPUID_EAX:
		return &e->eax;
	case CPUID_EBX:
		return &e->ebx;
	case CPUID_ECX:
		return &e->ecx;
	case CPUID_EDX:
	default:
		return &e->edx;
	}
}

static uint32_t get_word(const struct cpuid *c, const struct cpuid_word *w)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(c, w->function, w->index);

	if (!e)
		return 0;
	switch (w->reg) {
	case CPUID_EAX:
		return e->eax;
	case CPUID_EBX:
		return e->ebx;
	case CPUID_ECX:
		return e->ecx;
	case CPUID_EDX:
	default:
		return e->edx;
	}
}

static void clear_bits(struct cpuid *c, uint32_t function, uint32_t index, enum cpuid_reg reg,
		       uint32_t bits)
{
	struct kvm_cpuid_entry2 *e = find(c, function, index);

	if (e)
		*reg_of(e, reg) &= ~bits;
}

static int clear_named(struct cpuid *c, const char *name, size_t len)
{
	for (size_t w = 0; w < cpuid_n_words; w++) {
		for (unsigned bit = 0; bit < 32; bit++) {
			const char *n = cpuid_words[w].names[bit];

			if (!n || strlen(n) != len || memcmp(n, name, len) != 0)
				continue;
			clear_bits(c, cpuid_words[w].function, cpuid_words[w].index,
				   cpuid_words[w].reg, 1U << bit);
			return 0;
		}
	}
	return -EINVAL;
}

/* "host,-avx2,-sse4.2": each word but an optional first "host" takes one feature away. */
static int apply_mask(struct cpuid *c, const char *mask, struct errmsg *err)
{
	const char *p = mask;
	bool first = true;

	while (p && *p) {
		size_t len = strcspn(p, ",");

		if (!(first && len == 4 && memcmp(p, "host", 4) == 0)) {
			if (p[0] != '-' || len < 2)
				return errmsg_set(err, -EINVAL,
						  "cpu \"%.*s\": want \"host\" and features to "
						  "take away, as in "
						  "host,-avx2",
						  (int)len, p);
			if (clear_named(c, p + 1, len - 1))
				return errmsg_set(err, -EINVAL, "cpu feature \"%.*s\" is not known",
						  (int)len - 1, p + 1);
		}
		first = false;
		p += len;
		if (*p == ',')
			p++;
	}
	return 0;
}

int cpuid_host(struct cpuid *c, int kvm_fd, const char *mask, struct errmsg *err)
{
	struct kvm_cpuid2 *k;
	struct kvm_cpuid_entry2 *e;
	int ret;

	k = calloc(1, sizeof(*k) + CPUID_MAX * sizeof(k->entries[0]));
	if (!k)
		return errmsg_set(err, -ENOMEM, "no memory for CPUID");
	k->nent = CPUID_MAX;
	ret = kvm_ioctl_ptr(kvm_fd, KVM_GET_SUPPORTED_CPUID, k);
	if (ret) {
		errmsg_set(err, ret, "KVM_GET_SUPPORTED_CPUID: %s", strerror(-ret));
		goto out;
	}
	c->n = k->nent;
	memcpy(c->entry, k->entries, k->nent * sizeof(k->entries[0]));

	/* Emulated by KVM or by the irqchip, but listed only if user space says so. */
	e = find(c, 1, 0);
	if (e) {
		e->ecx |= 1U << 31; /* hypervisor */
		e->ecx |= 1U << 21; /* x2apic */
		if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
			e->ecx |= 1U << 24;
		e->edx |= 1U << 28; /* ht: more than one vCPU is possible */
	}
	ret = apply_mask(c, mask, err);
out:
	free(k);
	return ret;
}

/* Leaves whose content is this host's or the moment's. */
static bool leaf_dropped(uint32_t function)
{
	static const uint32_t dropped[] = {
		0x3,					  /* serial number */
		0x5,					  /* MONITOR */
		0x9,					  /* direct cache access */
		0xa,					  /* performance counters */
		0xb,					  /* topology: made anew */
		0xf,	    0x10,			  /* resource monitoring */
		0x12,					  /* SGX */
		0x14,					  /* processor trace */
		0x15,	    0x16,	0x17,		  /* clocks */
		0x18,					  /* TLBs */
		0x19,	    0x1a,	0x1b,	    0x1c, /* key locker, hybrid, pconfig, LBR */
		0x1f,					  /* topology */
		0x80000005,				  /* AMD: L1 and TLBs */
		0x8000000a,				  /* SVM */
		0x80000019, 0x8000001a, 0x8000001b, 0x8000001d,
		0x8000001e,					/* TLB, IBS, caches, topology */
		0x8000001f, 0x80000020, 0x80000022, 0x80000026, /* SEV, QoS, counters, topology */
	};

	for (size_t i = 0; i < ARRAY_SIZE(dropped); i++) {
		if (function == dropped[i])
			return true;
	}
	if (function >= 0x40000000U && function < 0x40010000U)
		return function != LEAF_KVM_SIGNATURE && function != LEAF_KVM_FEATURES;
	return false;
}

static void clear_unstable_bits(struct cpuid *c)
{
	/* A feature without a name here is one whose state nobody has thought about. */
	for (size_t w = 0; w < cpuid_n_words; w++) {
		for (unsigned bit = 0; bit < 32; bit++) {
			if (!cpuid_words[w].names[bit])
				clear_bits(c, cpuid_words[w].function, cpuid_words[w].index,
					   cpuid_words[w].reg, 1U << bit);
		}
	}
	/* dtes64 monitor ds_cpl vmx smx est tm2 pdcm dca osxsave */
	clear_bits(c, 1, 0, CPUID_ECX,
		   1U << 2 | 1U << 3 | 1U << 4 | 1U << 5 | 1U << 6 | 1U << 7 | 1U << 8 | 1U << 15 |
			   1U << 18 | 1U << 27);
	/* dts acpi tm pbe */
	clear_bits(c, 1, 0, CPUID_EDX, 1U << 21 | 1U << 22 | 1U << 29 | 1U << 31);
	/* sgx cqm mpx rdt_a intel_pt */
	clear_bits(c, 7, 0, CPUID_EBX, 1U << 2 | 1U << 12 | 1U << 14 | 1U << 15 | 1U << 25);
	/* ospke shstk key_locker sgx_lc */
	clear_bits(c, 7, 0, CPUID_ECX, 1U << 4 | 1U << 7 | 1U << 23 | 1U << 30);
	/* pconfig arch_lbr ibt core_capabilities */
	clear_bits(c, 7, 0, CPUID_EDX, 1U << 18 | 1U << 19 | 1U << 20 | 1U << 30);
	/* cet_u cet_s: went with shstk and ibt, whose live pointer KVM has no MSR for */
	clear_bits(c, 0xd, 1, CPUID_ECX, 1U << 11 | 1U << 12);
	/* bndregs bndcsr: went with mpx */
	clear_bits(c, 0xd, 0, CPUID_EAX, 1U << 3 | 1U << 4);
	/* asyncpf asyncpf_vmexit asyncpf_int msi_ext_dest_id hc_map_gpa_range migration_control */
	clear_bits(c, LEAF_KVM_FEATURES, 0, CPUID_EAX,
		   1U << 4 | 1U << 10 | 1U << 14 | 1U << 15 | 1U << 16 | 1U << 17);
	/* svm extapic ibs skinit wdt lwp nodeid_msr topoext perfctr_core perfctr_nb bpext
	 * perfctr_llc mwaitx */
	clear_bits(c, 0x80000001, 0, CPUID_ECX,
		   1U << 2 | 1U << 3 | 1U << 10 | 1U << 12 | 1U << 13 | 1U << 15 | 1U << 19 |
			   1U << 22 | 1U << 23 | 1U << 24 | 1U << 26 | 1U << 28 | 1U << 29);
	/* invtsc and all other power management */
	clear_bits(c, 0x80000007, 0, CPUID_EDX, UINT32_MAX);
	/* irperf rdpru mba amd_ppin cppc brs */
	clear_bits(c, 0x80000008, 0, CPUID_EBX,
		   1U << 1 | 1U << 4 | 1U << 6 | 1U << 23 | 1U << 27 | 1U << 31);
}

static struct kvm_cpuid_entry2 *append(struct cpuid *c, uint32_t function, uint32_t index,
				       uint32_t flags)
{
	struct kvm_cpuid_entry2 *e;

	if (c->n == CPUID_MAX)
		return NULL;
	e = &c->entry[c->n++];
	*e = (struct kvm_cpuid_entry2){.function = function, .index = index, .flags = flags};
	return e;
}

/* Bits of an APIC id that name n things. */
static uint32_t id_bits(unsigned n)
{
	uint32_t bits = 0;

	while ((1U << bits) < n)
		bits++;
	return bits;
}

int cpuid_build(struct cpuid *c, const struct cpuid *host, unsigned n_vcpus, struct errmsg *err)
{
	struct kvm_cpuid_entry2 *e;

	c->n = 0;
	for (uint32_t i = 0; i < host->n; i++) {
		if (leaf_dropped(host->entry[i].function))
			continue;
		if (c->n == CPUID_MAX)
			goto full;
		c->entry[c->n++] = host->entry[i];
	}
	clear_unstable_bits(c);
	if (n_vcpus == 1)
		clear_bits(c, 1, 0, CPUID_EDX, 1U << 28); /* ht */

	for (uint32_t i = 0; i < c->n; i++) {
		e = &c->entry[i];
		switch (e->function) {
		case 0:
			/* The topology leaf is ours, whatever the host's highest. */
			e->eax = MIN(MAX(e->eax, 0xbU), 0x1eU);
			break;
		case 4:
			/* Caches: one per vCPU but the last level, which all share. */
			e->eax &= 0x3fffU;
			if ((e->eax & 0x1f) != 0) {
				uint32_t level = (e->eax >> 5) & 7,
					 cores = (1U << id_bits(n_vcpus)) - 1;

				if (level >= 3)
					e->eax |= MIN(cores, 0xfffU) << 14;
				e->eax |= MIN(cores, 0x3fU) << 26;
			}
			break;
		case 6:
			/* Only that the LAPIC timer never stops. */
			e->eax &= 1U << 2;
			e->ebx = e->ecx = e->edx = 0;
			break;
		case LEAF_KVM_SIGNATURE:
			e->eax = LEAF_TIMING;
			break;
		case 0x80000000U:
			e->eax = MIN(e->eax, 0x80000021U);
			break;
		case 0x80000008U:
			e->ecx = id_bits(n_vcpus) << 12 | (MIN(n_vcpus, 256U) - 1);
			e->edx = 0;
			break;
		default:
			break;
		}
	}
	/* Topology: threads, then cores, then the end; per vCPU only the id is filled in. */
	for (uint32_t level = 0; level < 3; level++) {
		e = append(c, 0xb, level, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
		if (!e)
			goto full;
		e->ecx = level;
		if (level == 0) {
			e->ebx = 1;
			e->ecx |= 1U << 8;
		} else if (level == 1) {
			e->eax = id_bits(n_vcpus);
			e->ebx = n_vcpus;
			e->ecx |= 2U << 8;
		}
	}
	if (!append(c, LEAF_TIMING, 0, 0))
		goto full;
	return 0;
full:
	return errmsg_set(err, -E2BIG, "KVM lists more than %d CPUID leaves", CPUID_MAX);
}

void cpuid_set_tsc_khz(struct cpuid *c, uint32_t khz)
{
	struct kvm_cpuid_entry2 *e = find(c, LEAF_TIMING, 0);

	if (e && e->eax == 0) {
		e->eax = khz;
		e->ebx = 1000000; /* KVM's LAPIC bus runs at 1 GHz */
	}
}

void cpuid_for_vcpu(struct cpuid *out, const struct cpuid *c, unsigned id, unsigned n_vcpus)
{
	memcpy(out->entry, c->entry, c->n * sizeof(c->entry[0]));
	out->n = c->n;
	for (uint32_t i = 0; i < out->n; i++) {
		struct kvm_cpuid_entry2 *e = &out->entry[i];

		if (e->function == 1)
			e->ebx = (e->ebx & 0xffffU) | MIN(1U << id_bits(n_vcpus), 255U) << 16 |
				 (id & 0xffU) << 24;
		else if (e->function == 0xb)
			e->edx = id;
	}
}

int cpuid_set(int vcpu_fd, const struct cpuid *c)
{
	struct kvm_cpuid2 *k = calloc(1, sizeof(*k) + c->n * sizeof(k->entries[0]));
	int ret;

	if (!k)
		return -ENOMEM;
	k->nent = c->n;
	memcpy(k->entries, c->entry, c->n * sizeof(k->entries[0]));
	ret = kvm_ioctl_ptr(vcpu_fd, KVM_SET_CPUID2, k);
	free(k);
	return ret;
}

static int check_vendor(const struct cpuid *c, const struct cpuid *host, struct errmsg *err)
{
	const struct kvm_cpuid_entry2 *g = cpuid_find(c, 0, 0), *h = cpuid_find(host, 0, 0);

	if (!g || !h)
		return errmsg_set(err, -EPROTO, "CPUID without leaf 0");
	if (g->ebx != h->ebx || g->ecx != h->ecx || g->edx != h->edx)
		return errmsg_set(
			err, -ENOTSUP,
			"the guest was started on a CPU of vendor %.4s%.4s%.4s, this host's is "
			"%.4s%.4s%.4s",
			(const char *)&g->ebx, (const char *)&g->edx, (const char *)&g->ecx,
			(const char *)&h->ebx, (const char *)&h->edx, (const char *)&h->ecx);
	return 0;
}

int cpuid_check(const struct cpuid *c, const struct cpuid *host, struct errmsg *err)
{
	const struct kvm_cpuid_entry2 *g, *h;
	char list[400];
	size_t n = 0;
	int ret = check_vendor(c, host, err);

	if (ret)
		return ret;
	for (size_t w = 0; w < cpuid_n_words; w++) {
		uint32_t missing = get_word(c, &cpuid_words[w]) & ~get_word(host, &cpuid_words[w]);

		for (unsigned bit = 0; bit < 32; bit++) {
			const char *name = cpuid_words[w].names[bit];

			if (!(missing & 1U << bit) || n >= sizeof(list))
				continue;
			if (name)
				n += (size_t)snprintf(list + n, sizeof(list) - n, " %s", name);
			else
				n += (size_t)snprintf(
					list + n, sizeof(list) - n, " cpuid-%x.%u-%s-bit%u",
					cpuid_words[w].function, cpuid_words[w].index,
					&"eax\0ebx\0ecx\0edx"[4 * cpuid_words[w].reg], bit);
		}
	}
	if (n)
		return errmsg_set(err, -ENOTSUP,
				  "CPU features that the guest uses are missing here:%s", list);

	g = cpuid_find(c, 0x80000008, 0);
	h = cpuid_find(host, 0x80000008, 0);
	if (g && h && (g->eax & 0xff) > (h->eax & 0xff))
		return errmsg_set(
			err, -ENOTSUP,
			"the guest was promised %u physical address bits, this host has %u",
			g->eax & 0xff, h->eax & 0xff);
	g = cpuid_find(c, 0xd, 0);
	h = cpuid_find(host, 0xd, 0);
	if (g && (!h || g->ecx > h->ecx) && g->ecx)
		return errmsg_set(err, -ENOTSUP,
				  "the guest's XSAVE area takes %u bytes, this host's %u", g->ecx,
				  h ? h->ecx : 0);
	return 0;
}

void cpuid_fields(struct cpuid *c, struct sbuf *s)
{
	sb_u32_range_as(s, &c->n, 1, CPUID_MAX, "leaves");
	for (uint32_t i = 0; i < c->n && !s->err; i++) {
		struct kvm_cpuid_entry2 *e = &c->entry[i];
		size_t mark = sb_enter(s, "leaf[%u]", i);

		sb_x32(s, &e->function);
		sb_x32(s, &e->index);
		sb_x32(s, &e->flags);
		sb_x32(s, &e->eax);
		sb_x32(s, &e->ebx);
		sb_x32(s, &e->ecx);
		sb_x32(s, &e->edx);
		sb_leave(s, mark);
	}
}
