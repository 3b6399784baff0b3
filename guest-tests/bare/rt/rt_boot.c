/* SPDX-License-Identifier: MIT */
/*
 * From the PVH entry to the payload's main().
 *
 * Some hosts run ring 3 natively and emulate ring 0, a thousand times slower and with gaps. So
 * what has to be done in ring 0 comes first and is kept short; then a two-instruction loop is
 * timed, and where it is slow the rest, the payload included, runs in ring 3.
 */

#include "private.h"

#define START_MAGIC 0x336ec578
#define MEMMAP_RAM 1

/* Cycles of a loop turn above which ring 0 counts as emulated: native is about 1, TCG below 50. */
#define SLOW_RING0 200
#define PROBE_TURNS 128
#define PROBE_ROUNDS 4

struct hvm_start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist_paddr;
	uint64_t cmdline_paddr;
	uint64_t rsdp_paddr;
	/* version 1 and later */
	uint64_t memmap_paddr;
	uint32_t memmap_entries;
	uint32_t reserved;
};

struct hvm_memmap_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

struct rt_state rt = {.nr_cpus = 1, .tsc_from = "nowhere"};

/* Copy what is needed out of the loader's structures, for their memory will be reused. */
static void read_start_info(const struct hvm_start_info *si)
{
	const struct hvm_memmap_entry *map;
	const char *cmdline;
	size_t len = 0;

	if (si->magic != START_MAGIC)
		rt_panic("start info has a wrong magic: not booted by PVH");
	cmdline = (const char *)si->cmdline_paddr;
	if (cmdline) {
		while (len < sizeof(rt.cmdline) - 1 && cmdline[len] != '\0')
			len++;
		memcpy(rt.cmdline, cmdline, len);
	}
	rt.rsdp = si->rsdp_paddr;

	map = (const struct hvm_memmap_entry *)si->memmap_paddr;
	if (si->version < 1 || !map || si->memmap_entries == 0)
		rt_panic("start info has no memory map");
	for (uint32_t i = 0; i < si->memmap_entries && rt.nr_ram < RT_MAX_RANGES; i++) {
		if (map[i].type != MEMMAP_RAM)
			continue;
		rt.ram[rt.nr_ram].base = map[i].addr;
		rt.ram[rt.nr_ram].size = map[i].size;
		rt.ram_bytes += map[i].size;
		rt.nr_ram++;
	}
}

/* The fastest of a few rounds: one that was interrupted must not make ring 0 look slow. */
static uint64_t measure_ring0(void)
{
	uint64_t best = UINT64_MAX;

	for (int round = 0; round < PROBE_ROUNDS; round++) {
		uint64_t start = rt_tsc(), turns = PROBE_TURNS, cycles;

		__asm__ volatile("1: dec %0; jnz 1b" : "+r"(turns));
		cycles = (rt_tsc() - start) / PROBE_TURNS;
		if (cycles < best)
			best = cycles;
	}
	return best;
}

/* In the ring of the payload from here on. */
static void boot_late(struct rt_cpu *cpu)
{
	(void)cpu;
	rt_mem_init();
	rt_time_init();
	rt_smp_read_madt();
	rt_payload.main();
	rt_poweroff();
}

void rt_boot(uint64_t start_info)
{
	/* Until the stacks of its own are there the boot CPU uses these. */
	static uint8_t stack0[RT_STACK_SIZE] __attribute__((aligned(16)));
	static uint8_t stack3[4 * RT_STACK_SIZE] __attribute__((aligned(16)));
	static const char *const rings[] = {"0", "3", NULL};
	struct rt_cpu *cpu = &rt.cpus[0];

	cpu->stack0 = (uint64_t)stack0 + sizeof(stack0);
	cpu->stack3 = (uint64_t)stack3 + sizeof(stack3);
	cpu->online = 1;
	rt_console_init();
	rt_cpu_init_tables();
	rt_cpu_identify();
	rt_cpu_init(cpu);
	read_start_info((const struct hvm_start_info *)start_info);
	rt.ring0_cycles = measure_ring0();
	rt.ring = rt_option_word("ring", rings, rt.ring0_cycles > SLOW_RING0) ? 3 : 0;
	rt_time_probe();
	if (rt_payload.interrupts)
		rt_irq_init();
	rt_cpu_enter(cpu, boot_late);
}
