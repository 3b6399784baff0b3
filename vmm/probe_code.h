/* SPDX-License-Identifier: MIT */
/*
 * Guest code of the probes: labels within one position-independent blob. Code ends by a
 * store to PROBE_DONE, where there is no RAM, of its result: PROBE_PASS when it came out right.
 */
#ifndef GODWIT_PROBE_CODE_H
#define GODWIT_PROBE_CODE_H

#include <stdint.h>

#define PROBE_DONE 0x180000
#define PROBE_FAULT 0x180010 /* an exception that the test has no handler for: its vector */
#define PROBE_PASS 0x5a
#define PROBE_SELECTOR_USER_CODE 0x2b
#define PROBE_SELECTOR_USER_DATA 0x23
#define PROBE_STUB_SIZE 8 /* of each of the 32 entries at probe_code_stubs */

extern const uint8_t probe_code[], probe_code_end[];
extern const uint8_t probe_code_stubs[];

extern const uint8_t probe_code_loop[];	 /* counts rcx down to 0 */
extern const uint8_t probe_code_store[]; /* stores a byte at rcx */

/* Handlers. */
extern const uint8_t probe_on_trap[];	/* PROBE_PASS, returns */
extern const uint8_t probe_on_fault2[]; /* the same, past an instruction of two bytes */
extern const uint8_t probe_on_page_fault[];
extern const uint8_t probe_on_user_trap[]; /* PROBE_PASS, ends */

/* One thing each that a kernel does in ring 0. */
extern const uint8_t probe_code_int3[], probe_code_intn[], probe_code_ud2[];
extern const uint8_t probe_code_page_fault[], probe_code_user_int[], probe_code_syscall[];
extern const uint8_t probe_code_popcnt[], probe_code_cmpxchg16b[], probe_code_xgetbv[];
extern const uint8_t probe_code_xsave[], probe_code_x87[], probe_code_sse2[], probe_code_bmi[];
extern const uint8_t probe_code_swapgs[], probe_code_cr3[];
extern const uint8_t probe_code_vmcall[], probe_code_vmmcall[];

#endif
