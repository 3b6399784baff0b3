/* SPDX-License-Identifier: MIT */
/*
 * The tables, one after the other in the BIOS area, where kernels that are told no address look for
 * the RSDP:
 *
 *	ACPI_TABLES_GPA	RSDP -> XSDT -> FADT -> DSDT, FACS
 *				     -> MADT
 *
 * They are built in a buffer whose offset 0 is ACPI_TABLES_GPA and stored at once.
 */
#include "acpi.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "acpi_pm.h"
#include "aml.h"
#include "irq.h"
#include "virtio_mmio.h"

#define OEM_ID "GODWIT"
#define OEM_TABLE_ID "GODWITVM"
#define CREATOR_ID "GDWT"

#define LAPIC_ADDR 0xfee00000U
#define IOAPIC_ADDR 0xfec00000U
#define COM1_PORT 0x3f8U
#define RTC_PORT 0x70U
#define PIT_PIN 2U /* ISA interrupt 0 at the IOAPIC, as irqchip_init() wires it */

struct gas {
	uint8_t space;
	uint8_t bit_width;
	uint8_t bit_offset;
	uint8_t access;
	uint64_t address;
} __attribute__((packed));

#define GAS_IO 1
#define GAS_BYTE 1
#define GAS_WORD 2

struct rsdp {
	char signature[8];
	uint8_t checksum; /* of the first 20 bytes */
	char oem_id[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t length;
	uint64_t xsdt;
	uint8_t ext_checksum; /* of all */
	uint8_t reserved[3];
} __attribute__((packed));

struct table_header {
	char signature[4];
	uint32_t length;
	uint8_t revision;
	uint8_t checksum;
	char oem_id[6];
	char oem_table_id[8];
	uint32_t oem_revision;
	char creator_id[4];
	uint32_t creator_revision;
} __attribute__((packed));

struct facs {
	char signature[4];
	uint32_t length;
	uint32_t hardware_signature;
	uint32_t waking_vector;
	uint32_t global_lock;
	uint32_t flags;
	uint64_t x_waking_vector;
	uint8_t version;
	uint8_t reserved[31];
} __attribute__((packed));

struct fadt {
	struct table_header h;
	uint32_t firmware_ctrl;
	uint32_t dsdt;
	uint8_t reserved1;
	uint8_t preferred_pm_profile;
	uint16_t sci_int;
	uint32_t smi_cmd;
	uint8_t acpi_enable;
	uint8_t acpi_disable;
	uint8_t s4bios_req;
	uint8_t pstate_cnt;
	uint32_t pm1a_evt_blk;
	uint32_t pm1b_evt_blk;
	uint32_t pm1a_cnt_blk;
	uint32_t pm1b_cnt_blk;
	uint32_t pm2_cnt_blk;
	uint32_t pm_tmr_blk;
	uint32_t gpe0_blk;
	uint32_t gpe1_blk;
	uint8_t pm1_evt_len;
	uint8_t pm1_cnt_len;
	uint8_t pm2_cnt_len;
	uint8_t pm_tmr_len;
	uint8_t gpe0_blk_len;
	uint8_t gpe1_blk_len;
	uint8_t gpe1_base;
	uint8_t cst_cnt;
	uint16_t p_lvl2_lat;
	uint16_t p_lvl3_lat;
	uint16_t flush_size;
	uint16_t flush_stride;
	uint8_t duty_offset;
	uint8_t duty_width;
	uint8_t day_alrm;
	uint8_t mon_alrm;
	uint8_t century;
	uint16_t iapc_boot_arch;
	uint8_t reserved2;
	uint32_t flags;
	struct gas reset_reg;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor_revision;
	uint64_t x_firmware_ctrl;
	uint64_t x_dsdt;
	struct gas x_pm1a_evt_blk;
	struct gas x_pm1b_evt_blk;
	struct gas x_pm1a_cnt_blk;
	struct gas x_pm1b_cnt_blk;
	struct gas x_pm2_cnt_blk;
	struct gas x_pm_tmr_blk;
	struct gas x_gpe0_blk;
	struct gas x_gpe1_blk;
	struct gas sleep_control_reg;
	struct gas sleep_status_reg;
	uint64_t hypervisor_vendor;
} __attribute__((packed));

#define FADT_WBINVD (1U << 0)
#define FADT_PROC_C1 (1U << 2)
#define FADT_SLP_BUTTON (1U << 5) /* not fixed hardware: with no device for it, absent */
#define FADT_FIX_RTC (1U << 6)	  /* the RTC's wake-up is not in the fixed registers */
#define FADT_RESET_REG_SUP (1U << 10)

#define BOOT_ARCH_LEGACY_DEVICES (1U << 0)
#define BOOT_ARCH_NO_VGA (1U << 2)

struct madt {
	struct table_header h;
	uint32_t lapic_addr;
	uint32_t flags;
} __attribute__((packed));

#define MADT_PCAT_COMPAT 1U
#define MADT_ENABLED 1U

struct madt_lapic { /* type 0 */
	uint8_t type, length;
	uint8_t uid;
	uint8_t apic_id;
	uint32_t flags;
} __attribute__((packed));

struct madt_ioapic { /* type 1 */
	uint8_t type, length;
	uint8_t id;
	uint8_t reserved;
	uint32_t addr;
	uint32_t gsi_base;
} __attribute__((packed));

struct madt_override { /* type 2 */
	uint8_t type, length;
	uint8_t bus;
	uint8_t source;
	uint32_t gsi;
	uint16_t flags;
} __attribute__((packed));

#define INTI_CONFORMS 0x0U
#define INTI_LEVEL_HIGH 0xdU

struct madt_lapic_nmi { /* type 4 */
	uint8_t type, length;
	uint8_t uid;
	uint16_t flags;
	uint8_t lint;
} __attribute__((packed));

#define MADT_ALL_LAPICS 0xffU
#define MADT_ALL_X2APICS 0xffffffffU

struct madt_x2apic { /* type 9 */
	uint8_t type, length;
	uint16_t reserved;
	uint32_t apic_id;
	uint32_t flags;
	uint32_t uid;
} __attribute__((packed));

struct madt_x2apic_nmi { /* type 10 */
	uint8_t type, length;
	uint16_t flags;
	uint32_t uid;
	uint8_t lint;
	uint8_t reserved[3];
} __attribute__((packed));

_Static_assert(sizeof(struct rsdp) == 36, "ACPI 5.2.5.3");
_Static_assert(sizeof(struct table_header) == 36, "ACPI 5.2.6");
_Static_assert(sizeof(struct facs) == 64, "ACPI 5.2.10");
_Static_assert(sizeof(struct fadt) == 276, "ACPI 5.2.9");

/* The buffer under construction. */
struct tables {
	uint8_t *buf;
	size_t len;
	bool full;
};

/* Room for n bytes, zeroed; NULL, and full, when there is none. */
static void *take(struct tables *t, size_t n, size_t align)
{
	size_t at = ALIGN_UP(t->len, align);

	if (t->full || n > ACPI_TABLES_SIZE - at) {
		t->full = true;
		return NULL;
	}
	t->len = at + n;
	return t->buf + at;
}

static uint64_t gpa_of(const struct tables *t, const void *p)
{
	return ACPI_TABLES_GPA + (uint64_t)((const uint8_t *)p - t->buf);
}

static uint8_t checksum(const void *data, size_t len)
{
	const uint8_t *p = data;
	unsigned sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += p[i];
	return (uint8_t)(0x100 - (sum & 0xff));
}

static void *begin_table(struct tables *t, const char *signature, uint8_t revision, size_t size)
{
	struct table_header *h = take(t, size, 16);

	if (!h)
		return NULL;
	memcpy(h->signature, signature, sizeof(h->signature));
	h->length = (uint32_t)size;
	h->revision = revision;
	memcpy(h->oem_id, OEM_ID, sizeof(h->oem_id));
	memcpy(h->oem_table_id, OEM_TABLE_ID, sizeof(h->oem_table_id));
	h->oem_revision = 1;
	memcpy(h->creator_id, CREATOR_ID, sizeof(h->creator_id));
	h->creator_revision = 1;
	return h;
}

/* The table that was begun last reaches up to where the buffer ends now. */
static void end_table(struct tables *t, struct table_header *h)
{
	if (t->full)
		return;
	h->length = (uint32_t)(t->buf + t->len - (uint8_t *)h);
	h->checksum = checksum(h, h->length);
}

/* A virtio-mmio slot. Its interrupt line is shared by several (see virtio_mmio_gsi()). */
static void describe_virtio(struct aml *a, uint32_t slot)
{
	char name[8];

	snprintf(name, sizeof(name), "VR%02X", slot & 0xff);
	aml_device(a, name);
	aml_name(a, "_HID");
	aml_string(a, "LNRO0005");
	aml_name(a, "_UID");
	aml_integer(a, slot);
	aml_name(a, "_CCA");
	aml_integer(a, 1);
	aml_name(a, "_CRS");
	aml_resources(a);
	aml_res_memory32(a, (uint32_t)virtio_mmio_gpa(slot), VIRTIO_MMIO_SIZE, true);
	aml_res_interrupt(a, virtio_mmio_gsi(slot), AML_EDGE_HIGH_SHARED);
	aml_end(a);
	aml_end(a);
}

static int build_dsdt(struct tables *t, const struct vm *vm, struct table_header **dsdt)
{
	struct aml a;
	int ret;

	aml_init(&a);
	aml_scope(&a, "\\_SB");
	aml_device(&a, "COM1");
	aml_name(&a, "_HID");
	aml_eisaid(&a, "PNP0501");
	aml_name(&a, "_UID");
	aml_integer(&a, 0);
	aml_name(&a, "_CRS");
	aml_resources(&a);
	aml_res_io(&a, COM1_PORT, 8);
	aml_res_irq(&a, IRQ_COM1);
	aml_end(&a);
	aml_end(&a);

	aml_device(&a, "RTC");
	aml_name(&a, "_HID");
	aml_eisaid(&a, "PNP0B00");
	aml_name(&a, "_CRS");
	aml_resources(&a);
	aml_res_io(&a, RTC_PORT, 2);
	aml_res_irq(&a, IRQ_RTC);
	aml_end(&a);
	aml_end(&a);

	for (const struct device *d = vm->devices; d; d = d->next) {
		if (d->ops == &virtio_mmio_ops)
			describe_virtio(&a, d->instance);
	}
	aml_end(&a);

	/* SLP_TYPa, SLP_TYPb, two reserved. */
	aml_name(&a, "\\_S5");
	aml_package(&a, 4);
	aml_integer(&a, ACPI_S5_SLP_TYP);
	aml_integer(&a, 0);
	aml_integer(&a, 0);
	aml_integer(&a, 0);
	aml_end(&a);

	ret = a.err;
	if (!ret && a.depth)
		ret = -EINVAL;
	if (!ret) {
		*dsdt = begin_table(t, "DSDT", 2, sizeof(struct table_header) + a.len);
		if (*dsdt) {
			memcpy(*dsdt + 1, a.data, a.len);
			end_table(t, *dsdt);
		}
	}
	aml_free(&a);
	return ret;
}

static struct facs *build_facs(struct tables *t)
{
	struct facs *f = take(t, sizeof(*f), 64);

	if (f) {
		memcpy(f->signature, "FACS", sizeof(f->signature));
		f->length = sizeof(*f);
		f->version = 2;
	}
	return f;
}

static struct gas io_gas(uint64_t port, uint8_t bit_width, uint8_t access)
{
	return (struct gas){
		.space = GAS_IO, .bit_width = bit_width, .access = access, .address = port};
}

/*
 * Fixed hardware without a way out of ACPI mode (SMI_CMD 0), without PM timer: KVM's clock and the
 * TSC are better. The power button is fixed hardware too, which is what no flag says.
 */
static struct fadt *build_fadt(struct tables *t, uint64_t dsdt, uint64_t facs)
{
	struct fadt *f = begin_table(t, "FACP", 6, sizeof(*f));

	if (!f)
		return NULL;
	/* Below 4 GiB. X_FIRMWARE_CTRL is not to be set beside the short field. */
	f->firmware_ctrl = (uint32_t)facs;
	f->dsdt = (uint32_t)dsdt;
	f->x_dsdt = dsdt;
	f->sci_int = IRQ_SCI;
	f->pm1a_evt_blk = ACPI_PM1A_EVT;
	f->pm1a_cnt_blk = ACPI_PM1A_CNT;
	f->pm1_evt_len = 4;
	f->pm1_cnt_len = 2;
	f->x_pm1a_evt_blk = io_gas(ACPI_PM1A_EVT, 32, GAS_WORD);
	f->x_pm1a_cnt_blk = io_gas(ACPI_PM1A_CNT, 16, GAS_WORD);
	f->p_lvl2_lat = 101;  /* above 100 us: no C2 */
	f->p_lvl3_lat = 1001; /* above 1000 us: no C3 */
	f->iapc_boot_arch = BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA;
	f->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_RESET_REG_SUP;
	f->reset_reg = io_gas(ACPI_RESET_PORT, 8, GAS_BYTE);
	f->reset_value = ACPI_RESET_VALUE;
	memcpy(&f->hypervisor_vendor, OEM_TABLE_ID, sizeof(f->hypervisor_vendor));
	end_table(t, &f->h);
	return f;
}

static void madt_add(struct tables *t, const void *entry, size_t size)
{
	void *p = take(t, size, 1);

	if (p)
		memcpy(p, entry, size);
}
#define MADT_ADD(t, kind, ...)                                                                     \
	madt_add(t, &(const struct kind){.length = sizeof(struct kind), __VA_ARGS__},              \
		 sizeof(struct kind))

static struct madt *build_madt(struct tables *t, uint32_t n_vcpus)
{
	struct madt *m = begin_table(t, "APIC", 5, sizeof(*m));

	if (!m)
		return NULL;
	m->lapic_addr = LAPIC_ADDR;
	m->flags = MADT_PCAT_COMPAT;
	/* vCPU number and APIC id are the same; APIC id 255 is the xAPIC's broadcast. */
	for (uint32_t id = 0; id < n_vcpus; id++) {
		if (id < 255)
			MADT_ADD(t, madt_lapic, .type = 0, .uid = (uint8_t)id,
				 .apic_id = (uint8_t)id, .flags = MADT_ENABLED);
		else
			MADT_ADD(t, madt_x2apic, .type = 9, .uid = id, .apic_id = id,
				 .flags = MADT_ENABLED);
	}
	MADT_ADD(t, madt_ioapic, .type = 1, .id = 0, .addr = IOAPIC_ADDR, .gsi_base = 0);
	MADT_ADD(t, madt_override, .type = 2, .source = 0, .gsi = PIT_PIN, .flags = INTI_CONFORMS);
	MADT_ADD(t, madt_override, .type = 2, .source = IRQ_SCI, .gsi = IRQ_SCI,
		 .flags = INTI_LEVEL_HIGH);
	MADT_ADD(t, madt_lapic_nmi, .type = 4, .uid = MADT_ALL_LAPICS, .lint = 1);
	if (n_vcpus > 255)
		MADT_ADD(t, madt_x2apic_nmi, .type = 10, .uid = MADT_ALL_X2APICS, .lint = 1);
	end_table(t, &m->h);
	return m;
}

static void build_xsdt(struct tables *t, struct rsdp *rsdp, const uint64_t *entries, size_t n)
{
	struct table_header *x = begin_table(t, "XSDT", 1, sizeof(*x) + n * sizeof(*entries));

	if (!x)
		return;
	memcpy(x + 1, entries, n * sizeof(*entries));
	end_table(t, x);

	memcpy(rsdp->signature, "RSD PTR ", sizeof(rsdp->signature));
	memcpy(rsdp->oem_id, OEM_ID, sizeof(rsdp->oem_id));
	rsdp->revision = 2;
	rsdp->length = sizeof(*rsdp);
	rsdp->xsdt = gpa_of(t, x);
	rsdp->checksum = checksum(rsdp, 20);
	rsdp->ext_checksum = checksum(rsdp, sizeof(*rsdp));
}

static int build_tables(struct tables *t, const struct vm *vm, struct errmsg *err)
{
	uint32_t n_vcpus = vm->cfg.vcpus;
	struct rsdp *rsdp = take(t, sizeof(*rsdp), 16);
	struct facs *facs = build_facs(t);
	struct table_header *dsdt = NULL;
	struct fadt *fadt;
	struct madt *madt;
	int ret;

	ret = build_dsdt(t, vm, &dsdt);
	if (ret)
		return errmsg_set(err, ret, "ACPI tables: building the DSDT: %s", strerror(-ret));
	if (rsdp && facs && dsdt) {
		fadt = build_fadt(t, gpa_of(t, dsdt), gpa_of(t, facs));
		madt = build_madt(t, n_vcpus);
		if (fadt && madt)
			build_xsdt(t, rsdp, (uint64_t[]){gpa_of(t, fadt), gpa_of(t, madt)}, 2);
	}
	if (t->full)
		return errmsg_set(err, -ENOSPC,
				  "ACPI tables of %u vCPUs do not fit into %u KiB: use fewer",
				  n_vcpus, ACPI_TABLES_SIZE / 1024);
	return 0;
}

int acpi_build(struct vm *vm, uint64_t *rsdp_gpa, struct errmsg *err)
{
	struct tables t = {.buf = calloc(1, ACPI_TABLES_SIZE)};
	int ret;

	if (!t.buf)
		return errmsg_set(err, -ENOMEM, "ACPI tables: no memory");
	ret = build_tables(&t, vm, err);
	if (!ret) {
		ret = ram_write(&vm->ram, ACPI_TABLES_GPA, t.buf, t.len);
		if (ret)
			errmsg_set(err, ret, "ACPI tables: writing them: %s", strerror(-ret));
	}
	free(t.buf);
	if (!ret)
		*rsdp_gpa = ACPI_TABLES_GPA; /* where the first one is */
	return ret;
}
