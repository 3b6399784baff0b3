/* SPDX-License-Identifier: MIT */
/* What the parts of the harness share, and tests have no business with. */
#ifndef GODWIT_HARNESS_PRIVATE_H
#define GODWIT_HARNESS_PRIVATE_H

#include "harness.h"

/* Here a failure is reported at the place in the test that called. */
#undef fail_test
#define fail_test(...) harness_fail_here(__VA_ARGS__)
_Noreturn void harness_fail_here(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Memory that lives as long as the test. */
char *harness_copy(const char *text, size_t len);

/* Words after a fixed beginning, as argv. The array lives as long as the test. */
#define HARNESS_MAX_ARGS 64
struct words {
	const char *argv[HARNESS_MAX_ARGS + 1];
	unsigned n;
};
void words_add(struct words *w, const char *word);
void words_add_list(struct words *w, va_list ap); /* up to NULL */

/* Takes what the pipes hold right now, for messages. */
void proc_collect_now(void);

/* Puts what is left of from's stdout before what has come from to's. */
void proc_carry(struct proc *from, struct proc *to);

#endif
