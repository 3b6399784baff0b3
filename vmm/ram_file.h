/* SPDX-License-Identifier: MIT */
/*
 * The file that guest RAM lives in.
 */
#ifndef GODWIT_RAM_FILE_H
#define GODWIT_RAM_FILE_H

#include <stdbool.h>

/*
 * An unnamed, empty file in memory; in huge pages (2 MiB, as far as there are some) where *huge
 * asks for them and the host lets it, which *huge says on return. The file (closed on exec), or
 * -errno.
 */
int ram_file_open(bool *huge);

/*
 * Can it be told which pages of the file hold nothing? Until Linux 6.4 all of a huge page looks
 * like a hole while khugepaged puts it together, and on some hosts khugepaged works on memfds.
 */
bool ram_file_knows_holes(bool huge);

#endif
