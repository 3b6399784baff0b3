/* SPDX-License-Identifier: MIT */
/*
 * virtio-balloon (virtio 1.2, section 5.5): memory that the guest can spare goes back to the host,
 * and is neither held here nor sent when the guest moves.
 *
 *	the balloon	the host asks for an amount, the driver gives pages and may have them back
 *	free pages	the driver tells by itself of memory that is free for the moment
 *	statistics	what the guest says of its memory, asked for every few seconds
 */
#ifndef GODWIT_VIRTIO_BALLOON_H
#define GODWIT_VIRTIO_BALLOON_H

#include <stdbool.h>
#include <stdint.h>

#include "device.h"

/* The device's config may be NULL. */
struct virtio_balloon_config {
	uint64_t stats_interval_ns; /* how often the guest is asked for statistics; 0: 5 s */
};

extern const struct device_ops virtio_balloon_ops;

#define BALLOON_UNKNOWN UINT64_MAX /* a figure that the guest has not reported */

struct balloon_stats {
	bool driver;	 /* a driver is up; without one nothing changes */
	uint64_t target; /* bytes that the guest is to give back */
	uint64_t actual; /* bytes that it says it has given */

	/* What the guest reported last, and how long ago: BALLOON_UNKNOWN for what it did not. */
	uint64_t age_ns;
	uint64_t total, free, available, caches; /* bytes */
	uint64_t swapped_in, swapped_out;	 /* bytes since it booted */
	uint64_t major_faults, minor_faults;	 /* since it booted */
};

/*
 * Asks the guest to give back this much of its memory, in whole pages; 0 lets it have all. It
 * takes its time, may stop short of it, and keeps it over a reboot. Any thread. -EINVAL when less
 * would be left than a guest can live on, -EBUSY while it is being handed over, with the cause in
 * err.
 */
int virtio_balloon_set_target(struct device *d, uint64_t bytes, struct errmsg *err);

/* Any thread. */
void virtio_balloon_stats(struct device *d, struct balloon_stats *out);

#endif
