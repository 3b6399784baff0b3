/* SPDX-License-Identifier: MIT */
/*
 * The file that guest RAM lives in.
 */
#ifndef GODWIT_RAM_FILE_H
#define GODWIT_RAM_FILE_H

#include <stdbool.h>

/*
 * An unnamed, empty file in memory, in huge pages (2 MiB, as far as there are some) if *huge says
 * so on return, and the host's settings for transparent huge pages are not "never". The file
 * (closed on exec), or -errno.
 */
int ram_file_open(bool *huge);

#endif
