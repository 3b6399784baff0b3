/* SPDX-License-Identifier: MIT */
/* The words that say what a link is like: "rate=100mbit", "delay=20ms", "loss=1%". */
#ifndef GODWIT_NETRELAY_SETTINGS_H
#define GODWIT_NETRELAY_SETTINGS_H

#include <stddef.h>

#include "../../vmm/log.h"
#include "link.h"

/*
 * Changes c as "name=value" says. -EINVAL with the cause in err: no such name, or no such value.
 *
 *	rate=NUMBER(bit|kbit|mbit|gbit)|none   delay, jitter=TIME ("20ms")   queue=TIME|auto
 *	loss, duplicate, reorder, corrupt, corrupt-fixed=PROBABILITY ("1%", "0.01", "1e-6")
 */
int settings_set(struct link_config *c, const char *word, struct errmsg *err);

/* The same for one line: names that differ from an ideal link's. Returns text. */
const char *settings_show(const struct link_config *c, char *text, size_t len);

#endif
