/* SPDX-License-Identifier: MIT */
/*
 * The CPU that a guest sees, out of tables made here; what KVM itself offers is looked at where
 * there is a /dev/kvm.
 */
#include "../cpuid.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "../cpuid_names.h"
#include "../kvm.h"
#include "check-main.h"

static struct cpuid host, guest, other;
static struct errmsg err;

static struct kvm_cpuid_entry2 *add(struct cpuid *c, uint32_t function, uint32_t index)
{
	struct kvm_cpuid_entry2 *e = &c->entry[c->n++];

	*e = (struct kvm_cpuid_entry2){.function = function, .index = index};
	if (function == 4 || function == 7 || function == 0xb || function == 0xd)
		e->flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
	return e;
}

static struct kvm_cpuid_entry2 *entry(struct cpuid *c, uint32_t function, uint32_t index)
{
	return (struct kvm_cpuid_entry2 *)(uintptr_t)cpuid_find(c, function, index);
}

/* A host as KVM might describe one. */
static void make_host(struct cpuid *c)
{
	struct kvm_cpuid_entry2 *e;

	memset(c, 0, sizeof(*c));
	e = add(c, 0, 0);
	e->eax = 0x1f;
	memcpy(&e->ebx, "Genu", 4);
	memcpy(&e->edx, "ineI", 4);
	memcpy(&e->ecx, "ntel", 4);
	e = add(c, 1, 0);
	e->eax = 0x806f8;
	e->ebx = 0x05400800;
	e->ecx = 0xfffaba0f; /* with monitor, vmx, osxsave */
	e->edx = 0xffffffff;
	e = add(c, 4, 3);
	e->eax = 0xfc1fc163; /* level 3 */
	e = add(c, 7, 0);
	e->ebx = 0xf1bf07ab; /* with avx2 */
	e->ecx = 0x1b415f6e;
	e = add(c, 0xa, 0);
	e->eax = 0x07300805;
	e = add(c, 0xb, 0);
	e->ebx = 2;
	e->edx = 5;
	e = add(c, 0xd, 0);
	e->eax = 7;
	e->ebx = e->ecx = 0x340;
	e = add(c, 0x40000000, 0);
	e->eax = 0x40000001;
	memcpy(&e->ebx, "KVMK", 4);
	memcpy(&e->ecx, "VMKV", 4);
	memcpy(&e->edx, "M\0\0\0", 4);
	e = add(c, 0x40000001, 0);
	e->eax = 0x01007efb;
	e = add(c, 0x80000000, 0);
	e->eax = 0x80000008;
	e = add(c, 0x80000001, 0);
	e->ecx = 0x121;
	e->edx = 0x2c100800;
	e = add(c, 0x80000008, 0);
	e->eax = 0x3034; /* 52 bits */
}

static void build(struct cpuid *c, unsigned n)
{
	err = (struct errmsg){""};
	ck_assert_msg(cpuid_build(c, &host, n, &err) == 0, "%s", err.text);
}

START_TEST(what_must_not_travel)
{
	const struct kvm_cpuid_entry2 *e;

	make_host(&host);
	build(&guest, 1);
	e = cpuid_find(&guest, 1, 0);
	ck_assert_uint_eq(e->ecx & (1U << 3 | 1U << 5 | 1U << 15 | 1U << 27), 0);
	ck_assert_msg(!(e->edx & 1U << 28), "one CPU without siblings");
	ck_assert_ptr_null(cpuid_find(&guest, 0xa, 0));
	ck_assert_uint_eq(cpuid_find(&guest, 0x40000001, 0)->eax & (1U << 4 | 1U << 10 | 1U << 14),
			  0);
	ck_assert_uint_ne(cpuid_find(&guest, 0x40000001, 0)->eax & (1U << 3 | 1U << 24), 0);
	build(&guest, 2);
	ck_assert(cpuid_find(&guest, 1, 0)->edx & 1U << 28);
	/* No leaf twice. */
	for (uint32_t i = 0; i < guest.n; i++) {
		for (uint32_t j = 0; j < i; j++)
			ck_assert_msg(guest.entry[i].function != guest.entry[j].function ||
					      guest.entry[i].index != guest.entry[j].index,
				      "leaf %x.%u twice", guest.entry[i].function,
				      guest.entry[i].index);
	}
}
END_TEST

START_TEST(each_vcpu_its_own)
{
	make_host(&host);
	build(&guest, 6);
	for (unsigned id = 0; id < 6; id++) {
		cpuid_for_vcpu(&other, &guest, id, 6);
		ck_assert_uint_eq(other.n, guest.n);
		ck_assert_uint_eq(cpuid_find(&other, 1, 0)->ebx >> 24, id);
		ck_assert_uint_eq(cpuid_find(&other, 1, 0)->ebx >> 16 & 0xff, 8);
		ck_assert_uint_eq(cpuid_find(&other, 0xb, 0)->edx, id);
		ck_assert_uint_eq(cpuid_find(&other, 0xb, 1)->edx, id);
		ck_assert_uint_eq(cpuid_find(&other, 0xb, 1)->ebx, 6);
		ck_assert_uint_eq(cpuid_find(&other, 0xb, 1)->eax, 3);
	}
}
END_TEST

START_TEST(frequency)
{
	make_host(&host);
	build(&guest, 1);
	ck_assert_uint_eq(cpuid_find(&guest, 0x40000010, 0)->eax, 0);
	ck_assert_uint_ge(cpuid_find(&guest, 0x40000000, 0)->eax, 0x40000010);
	cpuid_set_tsc_khz(&guest, 2500000);
	ck_assert_uint_eq(cpuid_find(&guest, 0x40000010, 0)->eax, 2500000);
	/* A guest that came from elsewhere keeps what it was told. */
	cpuid_set_tsc_khz(&guest, 3000000);
	ck_assert_uint_eq(cpuid_find(&guest, 0x40000010, 0)->eax, 2500000);
}
END_TEST

START_TEST(same_host_is_fine)
{
	make_host(&host);
	build(&guest, 4);
	err = (struct errmsg){""};
	ck_assert_msg(cpuid_check(&guest, &host, &err) == 0, "%s", err.text);
	/* More than is needed is fine, too. */
	entry(&host, 7, 0)->edx = 0xffffffff;
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), 0);
}
END_TEST

/* Every bit of every word that is compared: taken from the host alone it is named. */
START_TEST(each_missing_bit_is_named)
{
	unsigned named = 0;

	for (size_t w = 0; w < cpuid_n_words; w++) {
		const struct cpuid_word *word = &cpuid_words[w];

		for (unsigned bit = 0; bit < 32; bit++) {
			const char *name = word->names[bit];
			struct kvm_cpuid_entry2 *e;
			uint32_t *reg;

			make_host(&host);
			build(&guest, 1);
			e = entry(&guest, word->function, word->index);
			if (!e)
				e = add(&guest, word->function, word->index);
			reg = word->reg == CPUID_EAX   ? &e->eax
			      : word->reg == CPUID_EBX ? &e->ebx
			      : word->reg == CPUID_ECX ? &e->ecx
						       : &e->edx;
			*reg |= 1U << bit;
			e = entry(&host, word->function, word->index);
			if (e) {
				reg = word->reg == CPUID_EAX   ? &e->eax
				      : word->reg == CPUID_EBX ? &e->ebx
				      : word->reg == CPUID_ECX ? &e->ecx
							       : &e->edx;
				*reg &= ~(1U << bit);
			}
			err = (struct errmsg){""};
			ck_assert_msg(cpuid_check(&guest, &host, &err) == -ENOTSUP,
				      "word %zu bit %u", w, bit);
			ck_assert_msg(strstr(err.text, name ? name : "cpuid-"),
				      "word %zu bit %u: %s", w, bit, err.text);
			named += name != NULL;
		}
	}
	ck_assert_uint_gt(named, 100);
}
END_TEST

START_TEST(other_reasons)
{
	make_host(&host);
	build(&guest, 1);
	memcpy(&entry(&host, 0, 0)->ebx, "Auth", 4);
	err = (struct errmsg){""};
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "GenuineIntel"), "%s", err.text);

	make_host(&host);
	entry(&host, 0x80000008, 0)->eax = 0x3028;
	err = (struct errmsg){""};
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "52 physical address bits, this host has 40"), "%s",
		      err.text);

	make_host(&host);
	entry(&host, 0xd, 0)->ecx = 0x240;
	err = (struct errmsg){""};
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "XSAVE"), "%s", err.text);

	/* Everything is missing: as much as fits is said, no more. */
	make_host(&host);
	for (uint32_t i = 1; i < host.n; i++)
		host.entry[i].eax = host.entry[i].ebx = host.entry[i].ecx = host.entry[i].edx = 0;
	err = (struct errmsg){""};
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), -ENOTSUP);
	ck_assert_uint_lt(strlen(err.text), sizeof(err.text));

	guest.n = 0;
	err = (struct errmsg){""};
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), -EPROTO);
}
END_TEST

/* ---- the wire ---- */

START_TEST(travels)
{
	struct sbuf s, l;

	make_host(&host);
	build(&guest, 3);
	sb_init_save(&s);
	cpuid_fields(&guest, &s);
	memset(&other, 0, sizeof(other));
	sb_init_load(&l, s.data, s.len);
	cpuid_fields(&other, &l);
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	ck_assert_uint_eq(other.n, guest.n);
	ck_assert_mem_eq(other.entry, guest.entry, guest.n * sizeof(guest.entry[0]));
	sb_free(&s);
}
END_TEST

START_TEST(hostile_counts)
{
	static const uint32_t counts[] = {0, CPUID_MAX + 1, 0x7fffffff, 0xffffffff};
	static uint8_t data[8192];
	struct sbuf l;

	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		memcpy(data, &counts[i], 4);
		sb_init_load(&l, data, sizeof(data));
		memset(&other, 0, sizeof(other));
		cpuid_fields(&other, &l);
		ck_assert_int_eq(l.err, -ERANGE);
	}
	/* As many as fit, but they do not come. */
	memcpy(data, &(uint32_t){CPUID_MAX}, 4);
	sb_init_load(&l, data, 100);
	cpuid_fields(&other, &l);
	ck_assert_int_eq(l.err, -EPROTO);
}
END_TEST

/* ---- KVM ---- */

START_TEST(masks)
{
	struct kvm_caps caps;
	int fd;

	if (access("/dev/kvm", R_OK | W_OK))
		return;
	err = (struct errmsg){""};
	fd = kvm_open(&caps, &err);
	ck_assert_msg(fd >= 0, "%s", err.text);
	ck_assert_int_eq(cpuid_host(&host, fd, "", &err), 0);
	build(&guest, 1);
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), 0);
	/* What KVM takes must be taken from it: fpu, tsc and pae are everywhere. */
	ck_assert_int_eq(cpuid_host(&other, fd, "-tsc", &err), 0);
	ck_assert_int_eq(cpuid_check(&guest, &other, &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, " tsc"), "%s", err.text);
	ck_assert_int_eq(cpuid_host(&other, fd, "host,-pae,-tsc", NULL), 0);
	err = (struct errmsg){""};
	ck_assert_int_eq(cpuid_check(&guest, &other, &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, " tsc") && strstr(err.text, " pae"), "%s", err.text);
	/* A guest made without it goes there. */
	build(&guest, 1);
	ck_assert_int_eq(cpuid_build(&guest, &other, 1, &err), 0);
	ck_assert_int_eq(cpuid_check(&guest, &other, &err), 0);
	ck_assert_int_eq(cpuid_check(&guest, &host, &err), 0);

	err = (struct errmsg){""};
	ck_assert_int_eq(cpuid_host(&other, fd, "-nosuch", &err), -EINVAL);
	ck_assert_msg(strstr(err.text, "nosuch"), "%s", err.text);
	ck_assert_int_eq(cpuid_host(&other, fd, "tsc", NULL), -EINVAL);
	ck_assert_int_eq(cpuid_host(&other, fd, "-", NULL), -EINVAL);
	ck_assert_int_eq(cpuid_host(&other, fd, "-tsc,host", NULL), -EINVAL);
	close(fd);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		what_must_not_travel,
		each_vcpu_its_own,
		frequency,
		same_host_is_fine,
		each_missing_bit_is_named,
		other_reasons,
		travels,
		hostile_counts,
		masks,
	};

	return check_main("cpuid", tests, ARRAY_SIZE(tests));
}
