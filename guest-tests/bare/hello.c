/* SPDX-License-Identifier: MIT */
/* hello: says what it sees of the machine, and ends. With echo=1 it first echoes the console. */

#include "contract.h"
#include "rt/rt.h"

static void echo(void)
{
	for (;;) {
		int c = rt_getc();

		if (c == BARE_CMD_QUIT)
			return;
		if (c >= 0)
			rt_putc((char)c);
		else
			rt_relax();
	}
}

static void hello(void)
{
	rt_printf(BARE_HELLO_FMT "\n", rt.cmdline, rt.ram_bytes, (uint64_t)rt.ring, rt.tsc_khz,
		  rt.tsc_from, (uint64_t)rt.nr_cpus, rt.ring0_cycles);
	if (rt_option("echo", 0))
		echo();
	rt_printf("hello done\n");
}

const struct rt_payload rt_payload = {.name = "hello", .main = hello};
