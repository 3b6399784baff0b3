/* SPDX-License-Identifier: MIT */
/* What keeps a guest in that breaks out of its devices: confine.h. Guests run without it. */
#include <errno.h>
#include <string.h>

#include "confine.h"
#include "probe_parts.h"

void probe_seccomp(struct probe_ctx *ctx, struct probe_item *item)
{
	int ret = confine_probe_seccomp();

	(void)ctx;
	if (ret)
		probe_not(item, PROBE_MISSING,
			  "use a kernel built with CONFIG_SECCOMP_FILTER; guests run without, less "
			  "confined",
			  "system calls cannot be filtered: %s", strerror(-ret));
	else
		probe_ok(item, "system calls can be filtered");
}

void probe_landlock(struct probe_ctx *ctx, struct probe_item *item)
{
	int version = confine_probe_landlock();

	(void)ctx;
	if (version > 0)
		probe_ok(item, "version %d", version);
	else
		probe_not(item, PROBE_MISSING,
			  version == -EOPNOTSUPP
				  ? "add landlock to the lsm= list that the kernel is booted with; "
				    "guests run without, less confined"
				  : "use Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK; guests "
				    "run "
				    "without, less confined",
			  "%s", strerror(-version));
}
