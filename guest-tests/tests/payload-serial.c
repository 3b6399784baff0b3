/* SPDX-License-Identifier: MIT */
/* serial: a stream of numbered lines in which a lost, doubled or mangled byte shows. */
#include "../bare/rt/rt.h"
#include "payload-contract.h"

static void serial(void)
{
	uint64_t pause = rt_us_to_cycles(rt_option("report", 0) * 1000);
	uint64_t n = 0, count = 0, last = rt_tsc();

	for (;;) {
		int c = rt_getc();

		if (c == 'q')
			break;
		if (c >= 0) {
			rt_printf(SERIAL_GOT_FMT "\n", (uint64_t)c, ++count);
			continue;
		}
		if (pause && rt_tsc() - last < pause)
			continue;
		last = rt_tsc();
		n++;
		rt_printf(SERIAL_FMT "\n", n, SERIAL_CHECK(n));
	}
	rt_printf(SERIAL_DONE_FMT "\n", n);
}

const struct rt_payload rt_payload = {.name = "serial", .main = serial};
