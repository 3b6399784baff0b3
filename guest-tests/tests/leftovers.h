/* SPDX-License-Identifier: MIT */
/*
 * What processes hold while they run, and what is left behind when all have ended: descriptors,
 * threads, processes, files, sockets, locks.
 */
#ifndef GODWIT_TESTS_LEFTOVERS_H
#define GODWIT_TESTS_LEFTOVERS_H

#include <stdbool.h>

#include "harness.h"

/* Before anything is started: whatever loses its parent becomes a child of this test. */
void leftovers_begin(void);

/*
 * The descriptors and threads of a process, a line each, sorted, without what differs from time to
 * time or from guest to guest (numbers, names, the kernel's own workers) and without the file
 * `but`. As long as the test lives.
 */
const char *holdings(const struct proc *p, const char *but);

/* It holds what was held then, by it or another process with such a guest; or soon will. */
void holds_again(const struct proc *p, const char *before, const char *but);

/* All that the test has started has ended, and so has whatever that had started. */
void no_process_left(void);

/* Whatever is in the folder has a name like this extended regular expression. */
void folder_holds_only(const char *path, const char *regex);
bool folder_is_empty(const char *path);

/* Nobody has the image locked, now. */
bool image_is_free(const char *path);

#endif
