/* SPDX-License-Identifier: MIT */
/*
 * The machine's state as sections, on a real machine with all its devices: what comes out goes in,
 * and whatever else is put in is refused and harms nobody.
 */
#include "../state.h"

#include <stdio.h>

#include "../../vmm/chan.h"
#include "../../vmm/machine.h"
#include "../../vmm/msr.h"
#include "../../vmm/tests/kvm-fixture.h"
#include "../handshake.h"

/* One that is as godwit sells it, not started. */
struct whole {
	struct loop loop;
	struct chan serial;
	struct vm *vm;
};

static struct cpuid host, table;
static struct errmsg err;

static struct whole *whole_new(uint32_t vcpus)
{
	struct vm_config cfg = {
		.name = "state", .ram_size = RAM_MIN, .vcpus = vcpus, .kernel = "/boot/k"};
	struct whole *w = calloc(1, sizeof(*w));
	struct kvm_caps caps;
	int fd;

	ck_assert_ptr_nonnull(w);
	err = (struct errmsg){""};
	fd = kvm_open(&caps, &err);
	ck_assert_msg(fd >= 0, "%s", err.text);
	ck_assert_int_eq(cpuid_host(&host, fd, "", &err), 0);
	ck_assert_int_eq(cpuid_build(&table, &host, vcpus, &err), 0);
	close(fd);
	ck_assert_int_eq(loop_init(&w->loop), 0);
	ck_assert_int_eq(chan_init(&w->serial), 0);
	ck_assert_msg(machine_create(&w->vm, &cfg, &table, &w->loop, &w->serial, &err) == 0, "%s",
		      err.text);
	ck_assert_int_eq(vm_quiesce_devices(w->vm, NS_PER_SEC, &err), 0);
	return w;
}

static void whole_free(struct whole *w)
{
	vm_destroy(w->vm);
	chan_destroy(&w->serial);
	loop_destroy(&w->loop);
	free(w);
}

static void save(struct whole *w, struct sbuf *s)
{
	err = (struct errmsg){""};
	sb_init_save(s);
	ck_assert_msg(state_save(w->vm, 0, s, &err) == 0, "%s", err.text);
}

static int load(struct whole *w, const void *data, size_t len)
{
	err = (struct errmsg){""};
	return state_load(w->vm, data, len, &err);
}

/* ---- the chips that KVM keeps ---- */

static void spoil_chips(struct whole *w)
{
	struct kvm_pit_state2 pit;
	struct kvm_irqchip chip;

	for (uint32_t id = 0; id < 2; id++) {
		chip = (struct kvm_irqchip){.chip_id = id};
		KVM_MUST(w->vm->vm_fd, KVM_GET_IRQCHIP, &chip);
		chip.chip.pic.imr = (uint8_t)(0xa5 + id);
		/* Lines that no device drives when it is loaded. */
		chip.chip.pic.irr = id ? 0x40 : 0x20;
		chip.chip.pic.isr = (uint8_t)(0x04 + id);
		chip.chip.pic.last_irr = id ? 0x40 : 0x20;
		chip.chip.pic.irq_base = (uint8_t)(0x30 + 8 * id);
		chip.chip.pic.priority_add = (uint8_t)(3 + id);
		chip.chip.pic.read_reg_select = 1;
		chip.chip.pic.special_mask = 1;
		chip.chip.pic.auto_eoi = 1;
		chip.chip.pic.rotate_on_auto_eoi = 1;
		chip.chip.pic.special_fully_nested_mode = 1;
		chip.chip.pic.init4 = 1;
		chip.chip.pic.init_state = 2;
		chip.chip.pic.poll = 1;
		chip.chip.pic.elcr = (uint8_t)(id ? 0x0e : 0x08);
		KVM_MUST(w->vm->vm_fd, KVM_SET_IRQCHIP, &chip);
	}
	chip = (struct kvm_irqchip){.chip_id = KVM_IRQCHIP_IOAPIC};
	KVM_MUST(w->vm->vm_fd, KVM_GET_IRQCHIP, &chip);
	chip.chip.ioapic.ioregsel = 0x12;
	chip.chip.ioapic.id = 5;
	for (unsigned i = 0; i < KVM_IOAPIC_NUM_PINS; i++)
		chip.chip.ioapic.redirtbl[i].bits = 0x0100000000010020ULL + i;
	KVM_MUST(w->vm->vm_fd, KVM_SET_IRQCHIP, &chip);

	KVM_MUST(w->vm->vm_fd, KVM_GET_PIT2, &pit);
	for (unsigned i = 0; i < 3; i++) {
		struct kvm_pit_channel_state *c = &pit.channels[i];

		c->count = 0x1234 + i;
		c->latched_count = (uint16_t)(0x4321 + i);
		c->count_latched = 2;
		c->status_latched = 1;
		c->status = (uint8_t)(0x30 + i);
		c->read_state = 1;
		c->write_state = 2;
		c->write_latch = (uint8_t)(7 + i);
		c->rw_mode = 2;
		c->mode = i == 0 ? 4 : 2;
		c->bcd = 1;
		c->gate = i != 2;
	}
	KVM_MUST(w->vm->vm_fd, KVM_SET_PIT2, &pit);
}

static void compare_chips(struct whole *a, struct whole *b)
{
	struct kvm_pit_state2 pa, pb;

	for (uint32_t id = 0; id <= KVM_IRQCHIP_IOAPIC; id++) {
		struct kvm_irqchip x = {.chip_id = id}, y = {.chip_id = id};

		KVM_MUST(a->vm->vm_fd, KVM_GET_IRQCHIP, &x);
		KVM_MUST(b->vm->vm_fd, KVM_GET_IRQCHIP, &y);
		for (size_t i = 0; i < sizeof(x.chip); i++)
			ck_assert_msg(((uint8_t *)&x.chip)[i] == ((uint8_t *)&y.chip)[i],
				      "irqchip %u differs at byte %zu", id, i);
	}
	KVM_MUST(a->vm->vm_fd, KVM_GET_PIT2, &pa);
	KVM_MUST(b->vm->vm_fd, KVM_GET_PIT2, &pb);
	ck_assert_uint_eq(pa.flags, pb.flags);
	for (unsigned i = 0; i < 3; i++) {
		struct kvm_pit_channel_state *x = &pa.channels[i], *y = &pb.channels[i];
		int64_t apart = x->count_load_time - y->count_load_time;

		/* An age on the wire: as old here as there, to the time the test takes. */
		ck_assert_msg(apart > -(int64_t)NS_PER_SEC && apart < (int64_t)NS_PER_SEC,
			      "channel %u was loaded %lld ns apart", i, (long long)apart);
		y->count_load_time = x->count_load_time;
		for (size_t k = 0; k < sizeof(*x); k++)
			ck_assert_msg(((uint8_t *)x)[k] == ((uint8_t *)y)[k],
				      "PIT channel %u differs at byte %zu", i, k);
	}
}

START_TEST(chips_arrive)
{
	struct whole *a = whole_new(2), *b = whole_new(2);
	struct sbuf s;

	spoil_chips(a);
	save(a, &s);
	ck_assert_msg(load(b, s.data, s.len) == 0, "%s", err.text);
	compare_chips(a, b);
	sb_free(&s);
	whole_free(a);
	whole_free(b);
}
END_TEST

/* ---- sections ---- */

struct part {
	struct sb_section sec;
	const uint8_t *body;
	size_t len;
};

#define PARTS_MAX 400

static unsigned split(const struct sbuf *s, struct part *parts)
{
	struct sbuf l, body;
	unsigned n = 0;
	int ret;

	sb_init_load(&l, s->data, s->len);
	while ((ret = sb_section_next(&l, &parts[n].sec, &body)) > 0) {
		parts[n].body = body.data;
		parts[n].len = body.len;
		n++;
		ck_assert_uint_lt(n, PARTS_MAX);
	}
	ck_assert_int_eq(ret, 0);
	return n;
}

static void put_part(struct sbuf *s, const struct part *p)
{
	size_t mark = sb_section_open(s, p->sec.tag, p->sec.instance, p->sec.version, p->sec.flags);

	sb_bytes(s, (void *)(uintptr_t)p->body, p->len);
	sb_section_close(s, mark);
}

static void join(struct sbuf *s, const struct part *parts, unsigned n)
{
	sb_init_save(s);
	for (unsigned i = 0; i < n; i++)
		put_part(s, &parts[i]);
	ck_assert_int_eq(s->err, 0);
}

static const struct part *find(const struct part *parts, unsigned n, const char *tag)
{
	for (unsigned i = 0; i < n; i++) {
		if (strcmp(parts[i].sec.tag, tag) == 0)
			return &parts[i];
	}
	ck_abort_msg("no section %s", tag);
}

/* All but time comes out of the second machine as it came out of the first. */
START_TEST(same_again)
{
	static struct part first[PARTS_MAX], second[PARTS_MAX];
	struct whole *a = whole_new(2), *b = whole_new(2);
	struct sbuf s, t;
	unsigned n;

	for (unsigned port = 0x3f9; port < 0x400; port++)
		bus_write(&a->vm->pio, port, 1, 0x03 + (port & 1));
	chan_host_put(&a->serial, "typed", 5);
	spoil_chips(a);
	save(a, &s);
	ck_assert_msg(load(b, s.data, s.len) == 0, "%s", err.text);
	save(b, &t);
	n = split(&s, first);
	ck_assert_uint_eq(split(&t, second), n);
	ck_assert_uint_ge(n, 2 + 4 + 3);
	for (unsigned i = 0; i < n; i++) {
		const char *tag = first[i].sec.tag;

		ck_assert_str_eq(tag, second[i].sec.tag);
		ck_assert_uint_eq(first[i].sec.instance, second[i].sec.instance);
		/* Ages and clocks go on. */
		if (strcmp(tag, "clock") == 0 || strcmp(tag, "pit") == 0 ||
		    strcmp(tag, "rtc") == 0 || strcmp(tag, "acpi-pm") == 0)
			continue;
		ck_assert_msg(first[i].len == second[i].len &&
				      !memcmp(first[i].body, second[i].body, first[i].len),
			      "section %s %u", tag, first[i].sec.instance);
	}
	ck_assert_uint_eq(find(first, n, "run")->len, 1);
	sb_free(&s);
	sb_free(&t);
	whole_free(a);
	whole_free(b);
}
END_TEST

/* A timer that was to fire at a point of the TSC still is. */
START_TEST(deadline_travels)
{
	struct whole *a = whole_new(1), *b = whole_new(1);
	uint64_t tsc = 0, deadline = 0;
	const uint32_t lvtt = 0x40030, svr = 0x1ff;
	struct kvm_lapic_state l;
	struct sbuf s;
	int fd = a->vm->vcpu[0].fd;

	if (!(cpuid_find(&table, 1, 0)->ecx & 1U << 24)) {
		fprintf(stderr, "no TSC deadline here\n");
		return;
	}
	KVM_MUST(fd, KVM_GET_LAPIC, &l);
	memcpy(l.regs + 0xf0, &svr, 4);
	memcpy(l.regs + 0x320, &lvtt, 4);
	KVM_MUST(fd, KVM_SET_LAPIC, &l);
	ck_assert_int_eq(msr_get(fd, MSR_TSC, &tsc), 0);
	tsc += a->vm->tsc_khz * 1000 * 3600;
	ck_assert_int_eq(msr_set(fd, MSR_TSC_DEADLINE, tsc), 0);
	save(a, &s);
	ck_assert_msg(load(b, s.data, s.len) == 0, "%s", err.text);
	ck_assert_int_eq(msr_get(b->vm->vcpu[0].fd, MSR_TSC_DEADLINE, &deadline), 0);
	ck_assert_uint_eq(deadline, tsc);
	sb_free(&s);
	whole_free(a);
	whole_free(b);
}
END_TEST

/* A pause of the user's goes along. */
START_TEST(pause_travels)
{
	struct whole *a = whole_new(1), *b = whole_new(1);
	struct sbuf s;

	save(a, &s);
	ck_assert_int_eq(load(b, s.data, s.len), 0);
	ck_assert_uint_eq(vm_paused(b->vm) & VM_PAUSE_USER, 0);
	sb_free(&s);
	vm_pause(a->vm, VM_PAUSE_USER);
	save(a, &s);
	ck_assert_int_eq(load(b, s.data, s.len), 0);
	ck_assert_uint_ne(vm_paused(b->vm) & VM_PAUSE_USER, 0);
	sb_free(&s);
	whole_free(a);
	whole_free(b);
}
END_TEST

static void refused(struct whole *w, struct sbuf *s, int ret, const char *text)
{
	int got = load(w, s->data, s->len);

	ck_assert_msg(got == ret, "%d (%s) instead of %d (%s)", got, err.text, ret, text);
	ck_assert_msg(strstr(err.text, text), "'%s' is not like '%s'", err.text, text);
	sb_free(s);
}

/*
 * The state of a machine, part by part, for tests that put it together wrongly: part of `saved`, of
 * `from`. Returns a machine to load it into.
 */
static struct whole *from;
static struct sbuf saved;
static struct part parts[PARTS_MAX + 1];
static unsigned n_parts;

static struct whole *in_parts(unsigned vcpus)
{
	from = whole_new(vcpus);
	save(from, &saved);
	n_parts = split(&saved, parts);
	return whole_new(vcpus);
}

static void parts_end(struct whole *to)
{
	sb_free(&saved);
	whole_free(from);
	whole_free(to);
}

START_TEST(sections_lost_and_doubled)
{
	struct whole *b = in_parts(2);
	unsigned n = n_parts;
	struct sbuf t;

	for (unsigned i = 0; i < n; i++) {
		struct part some[PARTS_MAX + 1];

		memcpy(some, parts, sizeof(some));
		memmove(&some[i], &some[i + 1], (n - i - 1) * sizeof(some[0]));
		join(&t, some, n - 1);
		refused(b, &t, -EPROTO, "sections, this machine has");

		memcpy(some, parts, sizeof(some));
		some[n] = parts[i];
		join(&t, some, n + 1);
		refused(b, &t, -EPROTO, "came twice");
		/* Instead of another one. */
		memcpy(some, parts, sizeof(some));
		some[(i + 1) % n] = parts[i];
		join(&t, some, n);
		refused(b, &t, -EPROTO, "came twice");
	}
	sb_init_save(&t);
	refused(b, &t, -EPROTO, "0 sections");
	/* In another order they are still all there. */
	for (unsigned i = 0; i < n / 2; i++) {
		struct part p = parts[i];

		parts[i] = parts[n - 1 - i];
		parts[n - 1 - i] = p;
	}
	join(&t, parts, n);
	load(b, t.data, t.len);
	sb_free(&t);
	parts_end(b);
}
END_TEST

/* An instance that this machine has not, of each kind. */
START_TEST(instances)
{
	struct whole *b = in_parts(2);
	unsigned n = n_parts;
	struct sbuf t;

	for (unsigned i = 0; i < n; i++) {
		struct part some[PARTS_MAX];

		memcpy(some, parts, sizeof(some));
		some[i].sec.instance = 2 + i;
		join(&t, some, n);
		refused(b, &t, -ENOTSUP, "is for nothing that this machine has");
		some[i].sec.instance = UINT32_MAX;
		join(&t, some, n);
		refused(b, &t, -ENOTSUP, "is for nothing that this machine has");
	}
	parts_end(b);
}
END_TEST

/* More sections than this machine can have, all of one kind and each another instance. */
START_TEST(too_many)
{
	struct whole *b = in_parts(2);
	unsigned n = n_parts;
	struct sbuf t;

	for (unsigned i = 0; i < n; i++) {
		struct part some[PARTS_MAX];

		for (unsigned k = 0; k < PARTS_MAX; k++) {
			some[k] = parts[i];
			some[k].sec.instance = k;
		}
		join(&t, some, PARTS_MAX);
		refused(b, &t, -ENOTSUP, "is for nothing that this machine has");
	}
	parts_end(b);
}
END_TEST

START_TEST(unknown_sections)
{
	struct whole *b = in_parts(1);
	unsigned n = n_parts;
	struct sbuf t;

	parts[n] = (struct part){
		.sec = {.tag = "teapot", .version = 9}, .body = saved.data, .len = 20};
	join(&t, parts, n + 1);
	refused(b, &t, -ENOTSUP, "state section teapot 0: it is for nothing");
	/* What says that it may be skipped is skipped. */
	parts[n].sec.flags = SB_OPTIONAL;
	join(&t, parts, n + 1);
	ck_assert_msg(load(b, t.data, t.len) == 0, "%s", err.text);
	sb_free(&t);
	/* But not one of ours, however it is marked. */
	parts[n] = parts[0];
	parts[n].sec.flags = SB_OPTIONAL;
	join(&t, parts, n + 1);
	refused(b, &t, -EPROTO, "came twice");
	parts_end(b);
}
END_TEST

START_TEST(versions)
{
	struct whole *b = in_parts(1);
	unsigned n = n_parts;
	struct sbuf t;

	for (unsigned i = 0; i < n; i++) {
		uint16_t right = parts[i].sec.version;

		parts[i].sec.version = 200;
		join(&t, parts, n);
		refused(b, &t, -ENOTSUP, "has version 200, this godwit reads");
		parts[i].sec.version = 0;
		join(&t, parts, n);
		refused(b, &t, -ENOTSUP, "has version 0, this godwit reads");
		parts[i].sec.version = right;
	}
	parts_end(b);
}
END_TEST

/* Each section a byte short, and a byte too long. */
START_TEST(lengths)
{
	static uint8_t longer[65536];
	struct whole *b = in_parts(1);
	unsigned n = n_parts;
	struct sbuf t;

	for (unsigned i = 0; i < n; i++) {
		struct part right = parts[i];

		if (right.len) {
			parts[i].len = right.len - 1;
			join(&t, parts, n);
			ck_assert_msg(load(b, t.data, t.len) < 0, "section %s short",
				      right.sec.tag);
			ck_assert_msg(err.text[0], "no reason");
			sb_free(&t);
		}
		ck_assert_uint_lt(right.len, sizeof(longer));
		memcpy(longer, right.body, right.len);
		parts[i].body = longer;
		parts[i].len = right.len + 1;
		join(&t, parts, n);
		ck_assert_msg(load(b, t.data, t.len) < 0, "section %s too long", right.sec.tag);
		sb_free(&t);
		parts[i] = right;
	}
	parts_end(b);
}
END_TEST

START_TEST(truncated)
{
	struct whole *a = whole_new(1), *b = whole_new(1);
	struct sbuf s;

	save(a, &s);
	for (size_t cut = 0; cut < s.len; cut += cut % 640 < 64 ? 1 : 31) {
		uint8_t *exact = malloc(cut + 1);

		ck_assert_ptr_nonnull(exact);
		memcpy(exact, s.data, cut);
		ck_assert_msg(load(b, exact, cut) < 0, "cut at %zu", cut);
		free(exact);
	}
	sb_free(&s);
	whole_free(a);
	whole_free(b);
}
END_TEST

/* Anything may be taken or refused; the process lives, and so does a machine that took it. */
START_TEST(flipped)
{
	struct whole *a = whole_new(1), *b = whole_new(1);
	uint64_t rng = 0x2545f4914f6cdd1d;
	struct sbuf s;

	save(a, &s);
	for (unsigned i = 0; i < 600; i++) {
		uint8_t *at, old;

		rng ^= rng << 13;
		rng ^= rng >> 7;
		rng ^= rng << 17;
		at = &s.data[rng % s.len];
		old = *at;
		*at ^= (uint8_t)(1U << (rng >> 60) % 8);
		if (load(b, s.data, s.len))
			ck_assert_msg(err.text[0], "no reason");
		*at = old;
	}
	ck_assert_msg(load(b, s.data, s.len) == 0, "%s", err.text);
	sb_free(&s);
	whole_free(a);
	whole_free(b);
}
END_TEST

/* ---- only looked at ---- */

/* Fields of a section, and the value of the one that is looked for. */
struct seen {
	const char *want;
	unsigned n, found;
	uint64_t value;
};

static void on_field(struct sb_view *view, const char *name, const struct sb_field *f)
{
	struct seen *seen = view->arg;

	seen->n++;
	if (strcmp(name, seen->want) != 0)
		return;
	seen->found++;
	seen->value = f->number;
}

static int look(const struct part *p, size_t len, struct seen *seen)
{
	struct sb_view view = {.field = on_field, .arg = seen};
	struct sbuf body;

	err = (struct errmsg){""};
	sb_init_load(&body, p->body, len);
	body.version = p->sec.version;
	sb_look(&body, &view);
	return state_look(&p->sec, machine_device_ops(p->sec.tag), &body, &err);
}

/* The value under this name, which one field of the section has. */
static uint64_t seen_in(unsigned n, const char *tag, const char *name)
{
	const struct part *p = find(parts, n, tag);
	struct seen seen = {.want = name};

	ck_assert_msg(look(p, p->len, &seen) == 0, "%s: %s", tag, err.text);
	ck_assert_msg(seen.found == 1, "%s has %u fields %s", tag, seen.found, name);
	return seen.value;
}

/* All of a machine that is gone, by name; and cut anywhere it is told so. */
START_TEST(looked_at)
{
	struct whole *a = whole_new(2);
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct sbuf s;
	unsigned n;

	KVM_MUST(a->vm->vcpu[0].fd, KVM_GET_REGS, &regs);
	regs.rip = 0x123456;
	regs.r15 = 0xfedcba9876543210;
	KVM_MUST(a->vm->vcpu[0].fd, KVM_SET_REGS, &regs);
	KVM_MUST(a->vm->vcpu[0].fd, KVM_GET_SREGS, &sregs);
	bus_write(&a->vm->pio, 0x3fb, 1, 0x1b);
	spoil_chips(a);
	save(a, &s);
	whole_free(a);
	n = split(&s, parts);
	for (unsigned i = 0; i < n; i++) {
		struct seen seen = {.want = ""};

		ck_assert_msg(look(&parts[i], parts[i].len, &seen) == 0, "%s: %s", parts[i].sec.tag,
			      err.text);
		ck_assert_msg(seen.n > 0, "%s has no fields", parts[i].sec.tag);
		for (size_t cut = 0; cut < parts[i].len; cut += cut < 600 ? 1 : 37)
			ck_assert_int_lt(look(&parts[i], cut, &seen), 0);
	}
	ck_assert_uint_eq(seen_in(n, "vcpu", "rip"), 0x123456);
	ck_assert_uint_eq(seen_in(n, "vcpu", "r15"), 0xfedcba9876543210);
	ck_assert_uint_eq(seen_in(n, "vcpu", "cs.selector"), sregs.cs.selector);
	ck_assert_uint_eq(seen_in(n, "vcpu", "gdt.limit"), sregs.gdt.limit);
	ck_assert_uint_eq(seen_in(n, "vcpu", "cr0"), sregs.cr0);
	ck_assert_uint_eq(seen_in(n, "vcpu", "apic_base"), sregs.apic_base);
	ck_assert_uint_ne(seen_in(n, "vcpu", "lapic[0x30]"), 0);
	ck_assert_uint_eq(seen_in(n, "irqchip", "pic[1].imr"), 0xa6);
	ck_assert_uint_eq(seen_in(n, "irqchip", "ioapic.redirtbl[7].bits"), 0x0100000000010027ULL);
	ck_assert_uint_eq(seen_in(n, "pit", "channel[2].count"), 0x1236);
	ck_assert_uint_eq(seen_in(n, "uart", "lcr"), 0x1b);
	ck_assert_uint_eq(seen_in(n, "uart", "out.len"), 0);
	sb_free(&s);
}
END_TEST

START_TEST(looked_at_strange)
{
	struct part p = {.sec = {.tag = "teapot", .version = 1}, .body = (const uint8_t *)"\0"};
	struct seen seen = {.want = ""};

	ck_assert_int_eq(look(&p, 1, &seen), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "no machine") != NULL, "%s", err.text);
	strcpy(p.sec.tag, "run");
	ck_assert_int_eq(look(&p, 1, &seen), 0);
	ck_assert_int_lt(look(&p, 2, &seen), 0);
	p.sec.version = 9;
	ck_assert_int_eq(look(&p, 1, &seen), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "version 9") != NULL, "%s", err.text);
	strcpy(p.sec.tag, "uart");
	ck_assert_int_eq(look(&p, 1, &seen), -ENOTSUP);
}
END_TEST

/* ---- the handshake ---- */

static void save_hello(struct whole *w, struct sbuf *s)
{
	struct migrate_options opt = {.verify = MIGRATE_VERIFY_FULL};

	err = (struct errmsg){""};
	sb_init_save(s);
	ck_assert_msg(hello_save(w->vm, &opt, 0x55, 0, s, &err) == 0, "%s", err.text);
}

START_TEST(hello_travels)
{
	static struct hello h;
	struct whole *w = whole_new(3);
	struct sbuf s, list;

	save_hello(w, &s);
	ck_assert_msg(hello_load(&h, s.data, s.len, &err) == 0, "%s", err.text);
	ck_assert_str_eq(h.cfg.name, "state");
	ck_assert_uint_eq(h.cfg.ram_size, RAM_MIN);
	ck_assert_uint_eq(h.cfg.vcpus, 3);
	ck_assert_str_eq(h.cfg.kernel, "/boot/k");
	ck_assert_uint_eq(h.hash_seed, 0x55);
	ck_assert_uint_eq(h.tsc_khz, w->vm->tsc_khz);
	ck_assert_uint_eq(h.verify, MIGRATE_VERIFY_FULL);
	ck_assert_uint_eq(h.cpuid.n, w->vm->cpuid.n);
	ck_assert_mem_eq(h.cpuid.entry, w->vm->cpuid.entry, h.cpuid.n * sizeof(h.cpuid.entry[0]));
	/* Its own MSRs and devices are those that are here. */
	ck_assert_uint_gt(h.n_msrs, 0);
	ck_assert_msg(vcpu_check_msrs(&w->vm->vcpu[0], h.msr, h.n_msrs, &err) == 0, "%s", err.text);
	sb_init_load(&list, h.devices, h.devices_len);
	state_device_list(w->vm, &list, &err);
	sb_end(&list);
	ck_assert_msg(list.err == 0, "%s", err.text);
	sb_free(&s);
	whole_free(w);
}
END_TEST

/* What a source says of its machine, by name; and cut anywhere it is told so. */
START_TEST(hello_looked_at)
{
	static struct hello h;
	struct whole *w = whole_new(3);
	uint32_t n_devices = 0;
	struct sbuf s;
	unsigned n;

	for (struct device *d = w->vm->devices; d; d = d->next)
		n_devices++;
	save_hello(w, &s);
	whole_free(w);
	n = split(&s, parts);
	for (unsigned i = 0; i < n; i++) {
		static const char *const wants[][2] = {{"config", "vcpus"},
						       {"cpuid", "leaf[0].function"},
						       {"options", "hash_seed"},
						       {"msrs", "n_msrs"},
						       {"devices", "devices"}};
		struct seen seen = {.want = ""};
		struct sb_view view = {.field = on_field, .arg = &seen};

		for (size_t k = 0; k < ARRAY_SIZE(wants); k++) {
			if (strcmp(parts[i].sec.tag, wants[k][0]) == 0)
				seen.want = wants[k][1];
		}
		for (size_t len = 0; len <= parts[i].len; len++) {
			struct sbuf body;
			int ret;

			sb_init_load(&body, parts[i].body, len);
			sb_look(&body, &view);
			seen.found = 0;
			ret = hello_look(&h, &parts[i].sec, machine_device_ops, &body);
			ck_assert_msg((ret == 0) == (len == parts[i].len), "%s: %zu of %zu bytes",
				      parts[i].sec.tag, len, parts[i].len);
		}
		ck_assert_msg(seen.found == 1, "no %s", seen.want);
		if (strcmp(seen.want, "devices") == 0)
			ck_assert_uint_eq(seen.value, n_devices);
		if (strcmp(seen.want, "vcpus") == 0)
			ck_assert_uint_eq(seen.value, 3);
	}
	sb_free(&s);
}
END_TEST

START_TEST(hello_hostile)
{
	static struct hello h;
	struct whole *w = whole_new(1);
	uint64_t rng = 88172645463325252ULL;
	struct sbuf s, t;
	unsigned n;

	save_hello(w, &s);
	n = split(&s, parts);
	ck_assert_uint_eq(n, 5);
	for (unsigned i = 0; i < n; i++) {
		struct part some[8];

		/* Lost, doubled, of another version, with a byte too many. */
		memcpy(some, parts, sizeof(some));
		memmove(&some[i], &some[i + 1], (n - i - 1) * sizeof(some[0]));
		join(&t, some, n - 1);
		ck_assert_int_eq(hello_load(&h, t.data, t.len, &err), -EPROTO);
		sb_free(&t);
		memcpy(some, parts, sizeof(some));
		some[n] = parts[i];
		join(&t, some, n + 1);
		ck_assert_int_eq(hello_load(&h, t.data, t.len, &err), -EPROTO);
		sb_free(&t);
		some[i].sec.version++;
		join(&t, some, n);
		ck_assert_int_eq(hello_load(&h, t.data, t.len, &err), -EPROTO);
		sb_free(&t);
		memcpy(some, parts, sizeof(some));
		some[n] = (struct part){.sec = {.tag = "more", .version = 1}, .body = s.data};
		join(&t, some, n + 1);
		ck_assert_int_eq(hello_load(&h, t.data, t.len, &err), -ENOTSUP);
		sb_free(&t);
		some[n].sec.flags = SB_OPTIONAL;
		join(&t, some, n + 1);
		err = (struct errmsg){""};
		ck_assert_msg(hello_load(&h, t.data, t.len, &err) == 0, "%s", err.text);
		sb_free(&t);
	}
	for (size_t cut = 0; cut < s.len; cut++) {
		uint8_t *exact = malloc(cut + 1);

		ck_assert_ptr_nonnull(exact);
		memcpy(exact, s.data, cut);
		ck_assert_int_lt(hello_load(&h, exact, cut, &err), 0);
		free(exact);
	}
	for (unsigned i = 0; i < 20000; i++) {
		uint8_t *at, old;

		rng ^= rng << 13;
		rng ^= rng >> 7;
		rng ^= rng << 17;
		at = &s.data[rng % s.len];
		old = *at;
		*at = (uint8_t)(rng >> 40);
		if (hello_load(&h, s.data, s.len, &err) == 0) {
			ck_assert_ptr_nonnull(memchr(h.cfg.name, 0, sizeof(h.cfg.name)));
			ck_assert_ptr_nonnull(memchr(h.cfg.kernel, 0, sizeof(h.cfg.kernel)));
			ck_assert(h.cfg.vcpus >= 1 && h.cfg.vcpus <= VM_MAX_VCPUS);
			ck_assert(h.cpuid.n >= 1 && h.cpuid.n <= CPUID_MAX);
			ck_assert(h.verify <= MIGRATE_VERIFY_FULL);
			ck_assert(h.n_msrs <= VCPU_MSRS_MAX);
		}
		*at = old;
	}
	sb_free(&s);
	whole_free(w);
}
END_TEST

/* A list that is not this machine's: the first difference is named. */
static void add_device(struct sbuf *s, const char *tag, uint32_t instance, uint16_t version)
{
	char copy[SB_TAG_LEN + 1] = "";

	snprintf(copy, sizeof(copy), "%s", tag);
	sb_str(s, copy, sizeof(copy));
	sb_u32(s, &instance);
	sb_u16(s, &version);
}

static void try_list(struct whole *w, uint32_t count, const char *skip, const char *change,
		     uint16_t version, const char *extra, const char *text)
{
	struct sbuf s, l;

	sb_init_save(&s);
	sb_u32(&s, &count);
	for (struct device *d = w->vm->devices; d; d = d->next) {
		if (strcmp(d->ops->tag, skip) == 0)
			continue;
		add_device(&s, d->ops->tag, d->instance,
			   strcmp(d->ops->tag, change) ? d->ops->version : version);
	}
	if (extra[0])
		add_device(&s, extra, 0, 1);
	err = (struct errmsg){""};
	sb_init_load(&l, s.data, s.len);
	state_device_list(w->vm, &l, &err);
	sb_end(&l);
	ck_assert_int_eq(l.err != 0, text[0] != '\0');
	ck_assert_msg(strstr(err.text, text), "'%s' is not like '%s'", err.text, text);
	sb_free(&s);
}

START_TEST(device_lists)
{
	struct whole *w = whole_new(1);
	const char *last = "";
	uint32_t n = 0;

	for (struct device *d = w->vm->devices; d; d = d->next, n++)
		last = d->ops->tag;
	try_list(w, n, "", "", 0, "", "");
	try_list(w, n + 1, "", "", 0, "teapot", "device teapot 0 of the guest is not here");
	try_list(w, n - 1, last, "", 0, "", "is not one of the guest's");
	try_list(w, n, "", "uart", 99, "", "device uart 0 has state version 99");
	try_list(w, n, "", "uart", 0, "", "device uart 0 has state version 0");
	/* Counts that are a lie. */
	try_list(w, n - 1, "", "", 0, "", "is not one of the guest's");
	err = (struct errmsg){""};
	for (uint32_t count = 257; count; count *= 3) {
		struct sbuf l;

		sb_init_load(&l, &count, sizeof(count));
		state_device_list(w->vm, &l, &err);
		ck_assert_int_ne(l.err, 0);
		if (count > UINT32_MAX / 3)
			break;
	}
	whole_free(w);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		chips_arrive,
		deadline_travels,
		same_again,
		pause_travels,
		sections_lost_and_doubled,
		instances,
		too_many,
		unknown_sections,
		versions,
		lengths,
		truncated,
		flipped,
		looked_at,
		looked_at_strange,
		hello_travels,
		hello_looked_at,
		hello_hostile,
		device_lists,
	};

	if (!kvm_here())
		return check_skip("state", "no /dev/kvm");
	return check_main("state", tests, ARRAY_SIZE(tests));
}
