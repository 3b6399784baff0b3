/* SPDX-License-Identifier: MIT */
/*
 * Guest RAM in a file: page i at offset i * 4096, holes where it holds nothing. No more than that:
 * it says nothing of whose RAM it is, or when it was.
 */
#ifndef GODWIT_RAM_IMAGE_H
#define GODWIT_RAM_IMAGE_H

#include "log.h"
#include "ram.h"

/*
 * Reads the file into fresh RAM. -EINVAL when it is not as long as RAM, -errno, with the cause in
 * err; pages before the failure have been read then.
 */
int ram_image_load(struct ram *ram, int fd, struct errmsg *err);

/*
 * Writes RAM to path, whose file, if there is one, is replaced when all has been written. For the
 * owner's eyes only (mode 0600). -errno with the cause in err; path is as it was then.
 */
int ram_image_save(const struct ram *ram, const char *path, struct errmsg *err);

#endif
