/* SPDX-License-Identifier: MIT */
/*
 * More than one CPU: the MADT says which there are, INIT and SIPI start them, one after the other.
 */

#include "private.h"

#define ICR_INIT 0x4500	   /* INIT, assert */
#define ICR_STARTUP 0x4600 /* start-up, assert */
#define ICR_PENDING 0x1000

#define MADT_LAPIC 0
#define MADT_OVERRIDE 2
#define MADT_X2APIC 9
#define MADT_ENABLED 1
#define ACPI_MAX_TABLE (1u << 20)

#define INIT_WAIT_US 10000
#define SIPI_WAIT_US 100000
#define ONLINE_WAIT_US 10000000
#define IPI_PATIENCE 100000 /* polls */

struct acpi_header {
	char signature[4];
	uint32_t length;
	uint8_t revision;
	uint8_t checksum;
	char oem[6 + 8];
	uint32_t oem_revision;
	char creator[8];
} __attribute__((packed));

struct acpi_rsdp {
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t length;
	uint64_t xsdt;
} __attribute__((packed));

uint64_t rt_ap_stack;
struct rt_cpu *rt_ap_cpu;

/* Is there a sound table with this signature at addr? */
static const struct acpi_header *acpi_table(uint64_t addr, const char *signature)
{
	const struct acpi_header *table = (const struct acpi_header *)addr;
	uint8_t sum = 0;

	if (addr == 0 || memcmp(table->signature, signature, 4) != 0)
		return NULL;
	if (table->length < sizeof(*table) || table->length > ACPI_MAX_TABLE)
		rt_panic_at("ACPI table has an impossible length", signature);
	for (uint32_t i = 0; i < table->length; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)addr)[i]);
	if (sum)
		rt_panic_at("ACPI table has a wrong checksum", signature);
	return table;
}

static const struct acpi_header *find_madt(void)
{
	const struct acpi_rsdp *rsdp = (const struct acpi_rsdp *)rt.rsdp;
	const struct acpi_header *root, *madt = NULL;
	const uint8_t *entry;
	size_t width = 8;

	if (!rsdp)
		return NULL;
	if (memcmp(rsdp->signature, "RSD PTR ", 8) != 0)
		rt_panic("start info names an RSDP that is none");
	root = rsdp->revision >= 2 ? acpi_table(rsdp->xsdt, "XSDT") : NULL;
	if (!root) {
		root = acpi_table(rsdp->rsdt, "RSDT");
		width = 4;
	}
	if (!root)
		rt_panic("RSDP leads to no XSDT or RSDT");
	entry = (const uint8_t *)(root + 1);
	for (size_t n = (root->length - sizeof(*root)) / width; n && !madt; n--, entry += width) {
		uint64_t addr = 0;

		memcpy(&addr, entry, width);
		madt = acpi_table(addr, "APIC");
	}
	return madt;
}

static void add_cpu(uint32_t apic_id)
{
	/* Number 0 is the CPU we are on, wherever the table lists it. */
	if (apic_id == rt.cpus[0].apic_id || rt.nr_cpus == RT_MAX_CPUS || apic_id > 254)
		return;
	rt.cpus[rt.nr_cpus].index = rt.nr_cpus;
	rt.cpus[rt.nr_cpus].apic_id = apic_id;
	rt.nr_cpus++;
}

void rt_smp_read_madt(void)
{
	const struct acpi_header *madt = find_madt();
	const uint8_t *p, *end;

	for (uint8_t irq = 0; irq < 16; irq++)
		rt.isa_pin[irq] = irq;
	if (!madt)
		return;
	end = (const uint8_t *)madt + madt->length;
	/* 8 bytes between the header and the first entry: address of the APIC, and flags. */
	for (p = (const uint8_t *)(madt + 1) + 8; p + 2 <= end && p[1] >= 2 && p + p[1] <= end;
	     p += p[1]) {
		uint32_t id, flags;

		if (p[0] == MADT_LAPIC && p[1] >= 8) {
			memcpy(&flags, p + 4, 4);
			if (flags & MADT_ENABLED)
				add_cpu(p[3]);
		} else if (p[0] == MADT_X2APIC && p[1] >= 16) {
			memcpy(&id, p + 4, 4);
			memcpy(&flags, p + 8, 4);
			if (flags & MADT_ENABLED)
				add_cpu(id);
		} else if (p[0] == MADT_OVERRIDE && p[1] >= 10 && p[3] < 16) {
			memcpy(&id, p + 4, 4);
			if (id < 240)
				rt.isa_pin[p[3]] = (uint8_t)id;
		}
	}
}

uint32_t rt_isa_pin(uint32_t irq)
{
	return rt.isa_pin[irq & 15];
}

/* Runs on the new CPU, in ring 0. */
void rt_ap_boot(struct rt_cpu *cpu)
{
	rt_cpu_init(cpu);
	rt_lapic_check(cpu);
	rt_lapic_enable();
	__atomic_store_n(&cpu->online, 1, __ATOMIC_RELEASE);
	rt_cpu_enter(cpu, cpu->fn);
}

static void send_ipi(uint32_t apic_id, uint32_t command)
{
	rt_lapic_write(LAPIC_ICR_HIGH, apic_id << 24);
	rt_lapic_write(LAPIC_ICR_LOW, command);
	for (uint32_t i = 0; rt_lapic_read(LAPIC_ICR_LOW) & ICR_PENDING; i++) {
		if (i == IPI_PATIENCE)
			rt_panic("the local APIC does not send");
		rt_relax();
	}
}

static bool is_ram(uint64_t addr, uint64_t size)
{
	for (uint32_t i = 0; i < rt.nr_ram; i++)
		if (addr >= rt.ram[i].base && addr - rt.ram[i].base + size <= rt.ram[i].size)
			return true;
	return false;
}

static bool wait_online(struct rt_cpu *cpu, uint64_t us)
{
	uint64_t start = rt_tsc(), limit = rt_us_to_cycles(us);

	while (!__atomic_load_n(&cpu->online, __ATOMIC_ACQUIRE)) {
		if (rt_tsc() - start > limit)
			return false;
		rt_relax();
	}
	return true;
}

void rt_cpu_start(uint32_t index, void (*fn)(struct rt_cpu *cpu), void *arg)
{
	struct rt_cpu *cpu = &rt.cpus[index];

	if (index == 0 || index >= rt.nr_cpus)
		rt_panic("no such CPU to start");
	if (!is_ram(RT_TRAMPOLINE, RT_PAGE_SIZE))
		rt_panic("no RAM at 0x8000, where other CPUs start");
	cpu->fn = fn;
	cpu->arg = arg;
	cpu->stack0 = (uint64_t)rt_alloc(RT_STACK_SIZE) + RT_STACK_SIZE;
	cpu->stack3 = (uint64_t)rt_alloc(RT_STACK_SIZE) + RT_STACK_SIZE;
	memcpy((void *)RT_TRAMPOLINE, rt_trampoline, (size_t)(rt_trampoline_end - rt_trampoline));
	rt_ap_stack = cpu->stack0;
	rt_ap_cpu = cpu;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);

	rt_lapic_enable();
	send_ipi(cpu->apic_id, ICR_INIT);
	wait_online(cpu, INIT_WAIT_US);
	/* A second start-up IPI is for CPUs that lost the first; one that runs ignores it. */
	send_ipi(cpu->apic_id, ICR_STARTUP | (RT_TRAMPOLINE >> 12));
	if (!wait_online(cpu, SIPI_WAIT_US))
		send_ipi(cpu->apic_id, ICR_STARTUP | (RT_TRAMPOLINE >> 12));
	if (!wait_online(cpu, ONLINE_WAIT_US))
		rt_panic("an application processor does not start");
}
