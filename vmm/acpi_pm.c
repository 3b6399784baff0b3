/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: two fixed register blocks. The SCI line is up while a status bit is set
 * whose enable bit is set too; the guest takes it down by writing a one to the status bit. There
 * is no legacy mode to leave: SCI_EN always reads as set, so SMI_CMD in the FADT can be 0.
 */
#include "acpi_pm.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "irq.h"
#include "util.h"
#include "vm.h"

/* ACPI 6.x tables 4.11 to 4.13. Same positions in status and enable. */
#define PM1_TMR 0x0001U
#define PM1_BM_STS 0x0010U
#define PM1_GBL 0x0020U
#define PM1_PWRBTN 0x0100U
#define PM1_SLPBTN 0x0200U
#define PM1_RTC 0x0400U
#define PM1_PCIEXP_WAKE 0x4000U /* _STS; as an enable bit it disables, and raises no SCI */
#define PM1_WAK_STS 0x8000U
#define PM1_EVENTS (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)
#define PM1_STS_BITS (PM1_EVENTS | PM1_BM_STS | PM1_PCIEXP_WAKE | PM1_WAK_STS)
#define PM1_EN_BITS (PM1_EVENTS | PM1_PCIEXP_WAKE)

#define CNT_SCI_EN 0x0001U
#define CNT_BM_RLD 0x0002U
#define CNT_SLP_TYP_SHIFT 10
#define CNT_SLP_TYP (7U << CNT_SLP_TYP_SHIFT)
#define CNT_SLP_EN 0x2000U
#define CNT_BITS (CNT_SCI_EN | CNT_BM_RLD | CNT_SLP_TYP) /* that read back */

/* Reset control as Intel's chipsets have it at 0xcf9. */
#define RST_SYS 0x02U /* the whole system rather than the CPU */
#define RST_CPU 0x04U /* its rising edge does it */

#define EVT_LEN 4U
#define CNT_LEN 2U

struct acpi_pm {
	struct device dev;
	pthread_mutex_t lock;
	struct irq_line sci;
	bool level;
	bool at_rest;
	bool button; /* pressed while at rest */
	uint16_t status, enable, control;
	uint8_t reset_control;
};

static struct acpi_pm *to_acpi_pm(struct device *d)
{
	return container_of(d, struct acpi_pm, dev);
}

static void update_sci(struct acpi_pm *p)
{
	bool level = p->status & p->enable & PM1_EVENTS;

	if (level == p->level)
		return;
	p->level = level;
	irq_set(&p->sci, level);
}

/* size bytes of a register block of 16-bit registers, from offset on. */
static uint64_t block_read(const uint16_t *regs, uint64_t offset, unsigned size)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++) {
		uint64_t at = offset + i;
		uint8_t byte = (uint8_t)(regs[at / 2] >> (8 * (at % 2)));

		v |= (uint64_t)byte << (8 * i);
	}
	return v;
}

/* The same backwards: what a write of size bytes at offset puts where, and which bits it covers. */
static void block_write(uint16_t *regs, uint16_t *mask, uint64_t offset, unsigned size,
			uint64_t value)
{
	for (unsigned i = 0; i < size; i++) {
		uint64_t at = offset + i;
		unsigned shift = 8 * (unsigned)(at % 2);
		uint8_t byte = (uint8_t)(value >> (8 * i));

		regs[at / 2] = (uint16_t)(regs[at / 2] | byte << shift);
		mask[at / 2] = (uint16_t)(mask[at / 2] | 0xffU << shift);
	}
}

static uint64_t evt_read(void *dev, uint64_t offset, unsigned size)
{
	struct acpi_pm *p = dev;
	uint64_t v;

	pthread_mutex_lock(&p->lock);
	v = block_read((const uint16_t[]){p->status, p->enable}, offset, size);
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void evt_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *p = dev;
	uint16_t v[2] = {0}, mask[2] = {0};

	block_write(v, mask, offset, size, value);
	pthread_mutex_lock(&p->lock);
	p->status &= (uint16_t)~v[0];
	p->enable = (uint16_t)((p->enable & ~mask[1]) | (v[1] & PM1_EN_BITS));
	update_sci(p);
	pthread_mutex_unlock(&p->lock);
}

static uint64_t cnt_read(void *dev, uint64_t offset, unsigned size)
{
	struct acpi_pm *p = dev;
	uint64_t v;

	pthread_mutex_lock(&p->lock);
	v = block_read(&p->control, offset, size);
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void cnt_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *p = dev;
	uint16_t v = 0, mask = 0;
	bool off;

	block_write(&v, &mask, offset, size, value);
	pthread_mutex_lock(&p->lock);
	p->control = (uint16_t)((p->control & ~mask) | (v & CNT_BITS) | CNT_SCI_EN);
	/* Other sleep types are states that the DSDT does not offer. */
	off = (v & CNT_SLP_EN) &&
	      (p->control & CNT_SLP_TYP) >> CNT_SLP_TYP_SHIFT == ACPI_S5_SLP_TYP;
	pthread_mutex_unlock(&p->lock);
	if (off)
		vm_set_end(p->dev.vm, VM_END_POWEROFF, "powered off by the guest");
}

static uint64_t reset_read(void *dev, uint64_t offset, unsigned size)
{
	struct acpi_pm *p = dev;
	uint8_t v;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&p->lock);
	v = p->reset_control;
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void reset_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *p = dev;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&p->lock);
	p->reset_control = (uint8_t)value;
	pthread_mutex_unlock(&p->lock);
	if ((value & RST_SYS) && (value & RST_CPU))
		vm_set_end(p->dev.vm, VM_END_RESET, "reset by the guest");
}

static const struct bus_ops evt_ops = {.read = evt_read, .write = evt_write};
static const struct bus_ops cnt_ops = {.read = cnt_read, .write = cnt_write};
static const struct bus_ops reset_ops = {.read = reset_read, .write = reset_write};

void acpi_pm_power_button(struct device *d)
{
	struct acpi_pm *p = to_acpi_pm(d);

	pthread_mutex_lock(&p->lock);
	if (p->at_rest) {
		p->button = true;
	} else {
		p->status |= PM1_PWRBTN;
		update_sci(p);
	}
	pthread_mutex_unlock(&p->lock);
}

static int acpi_pm_init(struct device *d, const void *config)
{
	struct acpi_pm *p = to_acpi_pm(d);
	const struct bus_range ranges[] = {
		{ACPI_PM1A_EVT, EVT_LEN, "acpi events", &evt_ops, p},
		{ACPI_PM1A_CNT, CNT_LEN, "acpi control", &cnt_ops, p},
		{ACPI_RESET_PORT, 1, "reset", &reset_ops, p},
	};

	(void)config;
	for (size_t i = 0; i < ARRAY_SIZE(ranges); i++) {
		int ret = bus_add(&d->vm->pio, &ranges[i]);

		if (ret)
			return ret;
	}
	pthread_mutex_init(&p->lock, NULL);
	p->sci = vm_irq(d->vm, IRQ_SCI);
	return 0;
}

static void acpi_pm_reset(struct device *d)
{
	struct acpi_pm *p = to_acpi_pm(d);

	pthread_mutex_lock(&p->lock);
	p->status = p->enable = 0;
	p->control = CNT_SCI_EN;
	p->reset_control = 0;
	update_sci(p);
	pthread_mutex_unlock(&p->lock);
}

static int acpi_pm_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct acpi_pm *p = to_acpi_pm(d);

	(void)deadline_ns; /* nothing to wait for */
	pthread_mutex_lock(&p->lock);
	p->at_rest = true;
	pthread_mutex_unlock(&p->lock);
	return 0;
}

static void acpi_pm_resume(struct device *d)
{
	struct acpi_pm *p = to_acpi_pm(d);

	pthread_mutex_lock(&p->lock);
	p->at_rest = false;
	if (p->button)
		p->status |= PM1_PWRBTN;
	p->button = false;
	update_sci(p);
	pthread_mutex_unlock(&p->lock);
}

static void acpi_pm_fields(struct device *d, struct sbuf *s)
{
	struct acpi_pm *p = to_acpi_pm(d);

	pthread_mutex_lock(&p->lock);
	if (s->loading)
		p->at_rest = true;
	sb_x16(s, &p->status);
	sb_x16(s, &p->enable);
	sb_x16(s, &p->control);
	sb_x8(s, &p->reset_control);
	pthread_mutex_unlock(&p->lock);
}

static int acpi_pm_loaded(struct device *d)
{
	struct acpi_pm *p = to_acpi_pm(d);
	int ret = 0;

	pthread_mutex_lock(&p->lock);
	if ((p->status & ~PM1_STS_BITS) || (p->enable & ~PM1_EN_BITS) || (p->control & ~CNT_BITS) ||
	    !(p->control & CNT_SCI_EN)) {
		ret = -EPROTO;
	} else {
		/* What the interrupt controller was loaded with is nobody's doing here. */
		p->level = false;
		irq_set(&p->sci, false);
		update_sci(p);
	}
	pthread_mutex_unlock(&p->lock);
	return ret;
}

static void acpi_pm_destroy(struct device *d)
{
	pthread_mutex_destroy(&to_acpi_pm(d)->lock);
}

const struct device_ops acpi_pm_ops = {
	.tag = "acpi-pm",
	.size = sizeof(struct acpi_pm),
	.version = 1,
	.min_version = 1,
	.init = acpi_pm_init,
	.reset = acpi_pm_reset,
	.quiesce = acpi_pm_quiesce,
	.resume = acpi_pm_resume,
	.fields = acpi_pm_fields,
	.loaded = acpi_pm_loaded,
	.destroy = acpi_pm_destroy,
};
