/* SPDX-License-Identifier: MIT */
/* The machine's virtio disk, as process 1 deals with it; what works on it is work_disk.c. */
#ifndef GODWIT_GUEST_LINUX_DISK_H
#define GODWIT_GUEST_LINUX_DISK_H

#include <stddef.h>
#include <stdint.h>

#define DISK_DEVICE "/dev/vda"

/*
 * Loads what modules the initramfs brings, in the order of their names. Returns 0, with none as
 * well, or -errno with the reason in err.
 */
int modules_load(char *err, size_t err_size);

/* Mounts the disk's ext4 at dir, which is made. Returns 0, or -errno with the reason in err. */
int disk_mount(const char *dir, char *err, size_t err_size);

/*
 * Reads the first bytes of the disk into the page cache. Returns how many there were, or -errno.
 */
int64_t disk_cache(uint64_t bytes);

#endif
