/* SPDX-License-Identifier: MIT */
/* What the guest program was asked to do; the option names are in contract.h. */
#ifndef GODWIT_GUEST_LINUX_OPTIONS_H
#define GODWIT_GUEST_LINUX_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RATE_MAX 100000000u

enum mode {
	MODE_STRESS,
	MODE_IDLE,
	MODE_POWEROFF,
	MODE_REBOOT,
	MODE_INFO,
	MODE_SHELL,
	MODE_DISK,
	MODE_COUNT,
};

struct options {
	enum mode mode;
	uint64_t procs;
	uint64_t mem;  /* bytes, all memory workers together */
	uint64_t rate; /* pages per second per memory worker; 0: unlimited */
	uint64_t secs;
	uint64_t report_ms;
	uint64_t clock;
	uint64_t clock_us;
	uint64_t burst;
	uint64_t stuck_ms;
	uint64_t pair_us;
	uint64_t churn_ms;
	uint64_t regs_us;
	uint64_t disk_us;
	uint64_t verify_ms;
	uint64_t seed; /* 0: none given */
	uint64_t corrupt;
	char tty[32];
	char dir[128]; /* "": on the disk */
};

const char *mode_name(enum mode mode);

/*
 * Parse digits with an optional K, M or G. Returns 0, or -EINVAL if text is anything else or too
 * large.
 */
int parse_size(const char *text, size_t len, uint64_t *value);

void options_default(struct options *opt);

/*
 * Take the gt.* options from a kernel command line (words separated by white space); other words
 * are skipped. Returns 0, or -EINVAL with a message in err.
 */
int options_parse(struct options *opt, const char *cmdline, char *err, size_t err_size);

#endif
