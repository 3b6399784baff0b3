/* SPDX-License-Identifier: MIT */
/*
 * KVM_GET/SET_IRQCHIP moves a union of chip states as the kernel lays them out; here each chip is
 * taken apart into its fields, so that the wire does not depend on a kernel header.
 */
#include "irq.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>

#include "kvm.h"

void irq_set(const struct irq_line *line, bool level)
{
	struct kvm_irq_level l = {.irq = line->gsi, .level = level};

	/* Fails only for a line that does not exist, which vm_irq()'s callers do not make up. */
	kvm_ioctl_ptr(line->vm_fd, KVM_IRQ_LINE, &l);
}

/*
 * Which pins a gsi goes to: the ISA ones to PIC and IOAPIC, the rest to the IOAPIC alone. As on a
 * PC the timer, ISA interrupt 0, is wired to IOAPIC pin 2 (the MADT says so, too), where KVM's own
 * default has it on pin 0.
 */
static int set_routes(int vm_fd)
{
	struct kvm_irq_routing *r;
	int ret;

	r = calloc(1, sizeof(*r) + (16 + IRQ_GSI_MAX + 1) * sizeof(r->entries[0]));
	if (!r)
		return -ENOMEM;
	for (uint32_t gsi = 0; gsi < 16; gsi++) {
		if (gsi == 2) /* the cascade of the PICs */
			continue;
		r->entries[r->nr++] = (struct kvm_irq_routing_entry){
			.gsi = gsi,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
				      gsi % 8},
		};
	}
	for (uint32_t gsi = 0; gsi <= IRQ_GSI_MAX; gsi++) {
		if (gsi == 2)
			continue;
		r->entries[r->nr++] = (struct kvm_irq_routing_entry){
			.gsi = gsi,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi},
		};
	}
	ret = kvm_ioctl_ptr(vm_fd, KVM_SET_GSI_ROUTING, r);
	free(r);
	return ret;
}

int irqchip_init(int vm_fd, struct errmsg *err)
{
	struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
	int ret;

	ret = kvm_ioctl(vm_fd, KVM_CREATE_IRQCHIP, 0);
	if (ret)
		return errmsg_set(err, ret, "KVM_CREATE_IRQCHIP: %s", strerror(-ret));
	ret = set_routes(vm_fd);
	if (ret)
		return errmsg_set(err, ret, "KVM_SET_GSI_ROUTING: %s", strerror(-ret));
	ret = kvm_ioctl_ptr(vm_fd, KVM_CREATE_PIT2, &pit);
	if (ret)
		return errmsg_set(err, ret, "KVM_CREATE_PIT2: %s", strerror(-ret));
	return 0;
}

static void pic_fields(struct kvm_pic_state *p, struct sbuf *s)
{
	sb_x8(s, &p->last_irr);
	sb_x8(s, &p->irr);
	sb_x8(s, &p->imr);
	sb_x8(s, &p->isr);
	sb_x8(s, &p->priority_add);
	sb_x8(s, &p->irq_base);
	sb_x8(s, &p->read_reg_select);
	sb_x8(s, &p->poll);
	sb_x8(s, &p->special_mask);
	sb_x8(s, &p->init_state);
	sb_x8(s, &p->auto_eoi);
	sb_x8(s, &p->rotate_on_auto_eoi);
	sb_x8(s, &p->special_fully_nested_mode);
	sb_x8(s, &p->init4);
	sb_x8(s, &p->elcr);
	sb_x8(s, &p->elcr_mask);
}

static void ioapic_fields(struct kvm_ioapic_state *io, struct sbuf *s)
{
	sb_int(s, io->base_address, 64);
	sb_x32(s, &io->ioregsel);
	sb_x32(s, &io->id);
	sb_x32(s, &io->irr);
	for (uint32_t i = 0; i < KVM_IOAPIC_NUM_PINS; i++) {
		sb_index(s, i);
		sb_int(s, io->redirtbl[i].bits, 64);
	}
}

void irqchip_fields(int vm_fd, struct sbuf *s)
{
	for (uint32_t id = KVM_IRQCHIP_PIC_MASTER; id <= KVM_IRQCHIP_IOAPIC; id++) {
		static const char *const names[] = {"pic[0]", "pic[1]", "ioapic"};
		struct kvm_irqchip chip = {.chip_id = id};
		size_t mark = sb_enter(s, "%s", names[id]);
		int ret = 0;

		/* When loading, what is not in the field list keeps the value of a fresh chip. */
		if (!sb_looking(s))
			ret = kvm_ioctl_ptr(vm_fd, KVM_GET_IRQCHIP, &chip);
		if (ret)
			sb_fail(s, ret);
		if (id == KVM_IRQCHIP_IOAPIC)
			ioapic_fields(&chip.chip.ioapic, s);
		else
			pic_fields(&chip.chip.pic, s);
		sb_leave(s, mark);
		if (s->loading && !s->err && !sb_looking(s)) {
			ret = kvm_ioctl_ptr(vm_fd, KVM_SET_IRQCHIP, &chip);
			if (ret)
				sb_fail(s, ret);
		}
	}
}

void pit_fields(int vm_fd, struct sbuf *s)
{
	struct kvm_pit_state2 pit = {0};
	int64_t now = (int64_t)now_ns();
	int ret = 0;

	if (!sb_looking(s))
		ret = kvm_ioctl_ptr(vm_fd, KVM_GET_PIT2, &pit);
	if (ret)
		sb_fail(s, ret);
	for (unsigned i = 0; i < ARRAY_SIZE(pit.channels); i++) {
		struct kvm_pit_channel_state *c = &pit.channels[i];
		/* count_load_time is this host's clock: on the wire it is an age. */
		int64_t age = now - c->count_load_time;
		size_t mark = sb_enter(s, "channel[%u]", i);

		/* What comes from the wire may be anything; it only has to be harmless. */
		sb_u32(s, &c->count);
		sb_u16(s, &c->latched_count);
		sb_u8(s, &c->count_latched);
		sb_u8(s, &c->status_latched);
		sb_x8(s, &c->status);
		sb_u8(s, &c->read_state);
		sb_u8(s, &c->write_state);
		sb_u8(s, &c->write_latch);
		sb_u8(s, &c->rw_mode);
		sb_u8(s, &c->mode);
		sb_u8(s, &c->bcd);
		sb_u8(s, &c->gate);
		sb_i64_as(s, &age, "age_ns");
		sb_leave(s, mark);
		if (age < 0 || age > now)
			age = 0;
		c->count_load_time = now - age;
	}
	sb_x32(s, &pit.flags);
	if (s->loading && !s->err && !sb_looking(s)) {
		ret = kvm_ioctl_ptr(vm_fd, KVM_SET_PIT2, &pit);
		if (ret)
			sb_fail(s, ret);
	}
}
