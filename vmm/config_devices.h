/* SPDX-License-Identifier: MIT */
/*
 * What --disk, --net, --vsock and --console say: a word for the thing itself and, after commas,
 * "key=value" or flags.
 *
 *	--disk root.img,ro,cache=none,serial=root,queues=2,discard=off
 *	--net user,hostfwd=tcp:2222:22,hostfwd=udp:127.0.0.1:5353:53,mac=52:54:00:12:34:56
 *	--net tap:tap0,queues=2
 *	--vsock /run/x.sock,cid=3
 *	--console /run/x.console
 *
 * A comma within a value is written twice. All are -EINVAL with the wrong word in err.
 */
#ifndef GODWIT_CONFIG_DEVICES_H
#define GODWIT_CONFIG_DEVICES_H

#include "log.h"
#include "vm_devices.h"

/* Each adds to d; a single one that is given twice is refused. */
int config_disk(struct vm_devices *d, const char *value, struct errmsg *err);
int config_net(struct vm_devices *d, const char *value, struct errmsg *err);
int config_vsock(struct vm_devices *d, const char *value, struct errmsg *err);
int config_console(struct vm_devices *d, const char *value, struct errmsg *err);

/*
 * For a receiver: puts the host-local parts of `here` (paths, taps, forwards), the first of a
 * kind in the place of the first and so on, into what the source described. -ENOTSUP when the
 * guest has no such device.
 */
int config_override_devices(struct vm_devices *d, const struct vm_devices *here,
			    struct errmsg *err);

/*
 * The absolute path of a file: it must be found again when the guest resets, here or where it has
 * moved to. out may be path. -ENOENT, -ENAMETOOLONG, ... with `what` and the path in err.
 */
int config_absolute_path(const char *what, const char *path, char out[VM_PATH_MAX],
			 struct errmsg *err);

/* Makes every path absolute. Images must be there; of sockets only the folder. */
int config_absolute_paths(struct vm_devices *d, struct errmsg *err);

/* A random address for each network device that has none: locally administered, unicast. */
int config_choose_macs(struct vm_devices *d, struct errmsg *err);

#endif
