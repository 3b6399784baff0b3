/* SPDX-License-Identifier: MIT */
/*
 * The contract between the Linux guest program (init.c) and the tests that boot it.
 *
 * The guest speaks lines on its serial port. Each one is
 *
 *	gt seq=N [WORD] [key=value ...] [text=TEXT] sum=XXXXXXXX
 *
 * ended by LF, or CR LF. N counts from 0 without a hole, so a lost, doubled or reordered line
 * shows; sum is the FNV-1a hash of all that precedes " sum=", so a damaged line shows. A reader
 * ignores every line that does not begin with GT_PREFIX (boot loader, kernel panic); the guest
 * begins with an empty line. text= is always the last field before sum, and may hold spaces.
 *
 *	ready    first line, once the workers are started: version= kernel= cpus= mem_kib= mode=
 *	         procs= workers= rate= simd=sse|avx|avx512 seed= init_ms= t_ms=
 *	(none)   a report: t_ms= pages= errors= back= gap_us= gap_at_ms= late_us= drift_us=
 *	         alive= full= blocks= execs= regs= dmesg= in=
 *	verify   answer to `v`: pages= new= errors= ms=
 *	flood    one flood line: i= n= data=, n=0 if there is no end; after the last, "flooded n="
 *	echo     answer to `echo TEXT`: the word is followed by TEXT itself
 *	reset    answer to `z`
 *	rate     answer to `rate=N`: pages=N
 *	cache    answer to `cache=N`: bytes=
 *	mem      answer to `mem`, from /proc/meminfo: total_kib= available_kib=
 *	found    in the mode disk: what a worker has found there, and goes on from: worker= n=
 *	durable  after each report of that mode: per worker, how many of its writes are durable:
 *		 log0= slots0= swap0= names0= (records.h)
 *	info     one fact about the machine: key= text=
 *	error    a check failed: worker= text=; after the eighth of one worker they are only counted
 *	death    a worker ended, which none should: worker= cause= code=
 *	dmesg    the kernel logged a problem: class=error|note text=
 *	unknown  the input line was not understood (damaged, perhaps): text=
 *	fatal    the program cannot run as asked: text=; the final line follows
 *	reboot   answer to `reboot`
 *	done     last line: pages= errors= back= gap_us= late_us= dmesg= t_ms= status=pass|fail
 *
 * Units: _ms, _us and _ns say theirs. t_ms and gap_at_ms are the guest's CLOCK_MONOTONIC (since its
 * boot). Counters (pages, errors, back, blocks, execs, regs, dmesg, in) only grow; gap_us, late_us
 * and drift_us are maxima since the start or the last `z`.
 *
 *	pages    pages whose whole content was verified
 *	blocks   blocks passed between processes
 *	execs    fork and exec children that answered rightly
 *	regs     register rounds that held
 *	errors   failed checks, deaths, and kernel problems
 *	back     backward steps of a clock; each is an error too
 *	gap_us   longest time between two looks at CLOCK_MONOTONIC by one CPU. Includes the
 *	         poller's own sleep (gt.clock_us), so it never understates how long the guest
 *	         was away by its own clock
 *	late_us  latest wake-up from a sleep
 *	drift_us how far CLOCK_REALTIME or CLOCK_BOOTTIME moved against CLOCK_MONOTONIC
 *	alive    workers living and moving; equals workers= of the ready line when all is well
 *	full     1 once every memory worker has filled its region, and every disk worker written
 *	dmesg    kernel complaints that are not errors: the clock source watchdog, mostly
 *	in       input lines seen
 *	init_ms  from the start of init to the ready line
 */
#ifndef GODWIT_GUEST_LINUX_CONTRACT_H
#define GODWIT_GUEST_LINUX_CONTRACT_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GT_VERSION 1
#define GT_PREFIX "gt seq="
#define GT_SUM " sum="
#define GT_LINE_MAX 640	 /* longest line, with its end and a final NUL */
#define GT_INPUT_MAX 256 /* longest input line; what exceeds it is cut */

/*
 * Options, on the kernel command line. Sizes take K, M, G. An unknown gt.* option is fatal, so
 * that a misspelt test does not test something else. gt.mode:
 *
 *	stress    all workers
 *	idle      memory is filled once and then only held; clock workers run
 *	poweroff  power off as soon as ready     reboot  reboot as soon as ready
 *	info      say what the machine is, then power off
 *	shell     run /bin/sh on the serial line if the initramfs has one, then power off
 *	disk      as idle, and disk workers write to the ext4 on /dev/vda, which must be there; they
 *		  go on from what they find
 *
 * Modules that the initramfs brings (scripts/initramfs) are loaded in all modes.
 */
#define GT_OPT_PREFIX "gt."
#define GT_OPT_MODE "gt.mode"	      /* default stress */
#define GT_OPT_PROCS "gt.procs"	      /* memory workers, default 2 */
#define GT_OPT_MEM "gt.mem"	      /* memory of all memory workers together, default 16M */
#define GT_OPT_RATE "gt.rate"	      /* pages/s per memory worker, default 500; 0: no limit */
#define GT_OPT_SECS "gt.secs"	      /* do as if `q` came after so long; default 0: never */
#define GT_OPT_REPORT "gt.report"     /* ms between reports, default 1000; 0: on request only */
#define GT_OPT_CLOCK "gt.clock"	      /* 0: no clock workers; default 1: one on each CPU */
#define GT_OPT_CLOCK_US "gt.clock_us" /* sleep between polls of the clocks, default 2000 */
#define GT_OPT_BURST "gt.burst"	      /* readings per poll, default 8 */
#define GT_OPT_PAIR "gt.pair_us"      /* pause of the pair per block, default 20000; 0: none */
#define GT_OPT_CHURN "gt.churn_ms"    /* pause per fork and exec, default 100; 0: no worker */
#define GT_OPT_REGS "gt.regs_us"      /* pause per register round, default 10000; 0: no worker */
#define GT_OPT_DISK "gt.disk_us"      /* pause of a disk worker per round, default 5000 */
#define GT_OPT_DIR "gt.dir"	      /* where disk workers write, instead of to /dev/vda */
#define GT_OPT_VERIFY "gt.verify_ms"  /* limit of a full verification, default 120000 */
#define GT_OPT_SEED "gt.seed"	      /* content seed; default is taken from the clock */
#define GT_OPT_CORRUPT "gt.corrupt"   /* 1: permit `corrupt` */
#define GT_OPT_TTY "gt.tty"	      /* default ttyS0 */
/*
 * Default 5000: a sleep that ends so late, or a worker that stands still for so long, is an error.
 * Tests that stop the guest for longer while its clock goes on must raise it.
 */
#define GT_OPT_STUCK "gt.stuck_ms"

/* Commands, one per line, ended by LF or CR. */
#define GT_CMD_REPORT "r"      /* report now */
#define GT_CMD_ZERO "z"	       /* reset gap_us, late_us, drift_us */
#define GT_CMD_VERIFY "v"      /* stop the workers, verify all they hold, answer, go on */
#define GT_CMD_QUIT "q"	       /* verify all, unmount, say done, power off */
#define GT_CMD_REBOOT "reboot" /* reboot at once, without verifying */
#define GT_CMD_INFO "info"     /* the info lines */
#define GT_CMD_MEM "mem"       /* how much memory there is */
#define GT_CMD_ECHO "echo "    /* + TEXT */
/*
 * + N: N flood lines as fast as the port takes them; 0: in bursts without an end, until the next
 * input comes, which is obeyed after "flooded". Nothing else is said meanwhile.
 */
#define GT_CMD_FLOOD "flood="
#define GT_CMD_RATE "rate="   /* + N: as gt.rate, from now on */
#define GT_CMD_CACHE "cache=" /* + N: read the first N bytes of /dev/vda into the page cache */
/*
 * + WHAT: do damage that must be found, to prove that it would be; only with gt.corrupt=1. The
 * answer is "corrupt what=WHAT"; what follows, perhaps only after a `v`, is an error, death or
 * dmesg line, or back > 0. WHAT: byte, stale, zero (in a page of a memory worker), book (page and
 * its bookkeeping taken back together), block (a shared block), cow (a page under fork), regs,
 * clock, late, kmsg, die, seq (a serial line is lost), line (a serial line is damaged).
 */
#define GT_CMD_CORRUPT "corrupt "

static inline uint32_t gt_sum(const char *data, size_t len)
{
	uint32_t h = 2166136261u;

	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)data[i]) * 16777619u;
	return h;
}

/* The data= field of flood line i: GT_FLOOD_LEN printable characters that depend on i alone. */
#define GT_FLOOD_LEN 160

static inline void gt_flood_data(uint32_t i, char data[GT_FLOOD_LEN + 1])
{
	uint32_t x = i * 2654435761u + 1;

	if (x == 0) /* where xorshift would stay */
		x = 1;
	for (int k = 0; k < GT_FLOOD_LEN; k++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		/* 64 characters from '0' to 'o': no space, no control character. */
		data[k] = (char)('0' + (x >> 7) % 64);
	}
	data[GT_FLOOD_LEN] = '\0';
}

/* One parsed line. body points into the caller's text, between "seq=N " and " sum=". */
struct gt_line {
	uint64_t seq;
	char word[16]; /* "" for a report */
	const char *body;
	size_t body_len;
};

/*
 * Parse text (NUL-terminated, with or without its line end). Returns 1 if it is a whole,
 * undamaged line of the protocol, 0 if it does not begin like one (not ours), -1 if it does but
 * is damaged.
 */
static inline int gt_parse(const char *text, struct gt_line *out)
{
	const size_t prefix = strlen(GT_PREFIX), tail = strlen(GT_SUM) + 8;
	size_t len = strcspn(text, "\r\n"), word;
	char want[sizeof(GT_SUM) + 8], *end;

	if (strncmp(text, GT_PREFIX, prefix) != 0)
		return 0;
	if (len < prefix + 2 + tail || text[prefix] < '0' || text[prefix] > '9')
		return -1;
	len -= tail;
	snprintf(want, sizeof(want), GT_SUM "%08" PRIx32, gt_sum(text, len));
	if (memcmp(text + len, want, tail) != 0)
		return -1;
	out->seq = strtoull(text + prefix, &end, 10);
	if (*end != ' ' || end >= text + len)
		return -1;
	out->body = end + 1;
	out->body_len = (size_t)(text + len - out->body);
	word = strcspn(out->body, " =");
	if (word > out->body_len)
		word = out->body_len;
	if (out->body[word] == '=')
		word = 0;
	if (word >= sizeof(out->word))
		return -1;
	memcpy(out->word, out->body, word);
	out->word[word] = '\0';
	return 1;
}

/*
 * Find field key. Returns a pointer into the line and sets *len, or NULL. The value ends at a
 * space, and that of text= at the end of the body.
 */
static inline const char *gt_field(const struct gt_line *line, const char *key, size_t *len)
{
	const char *p = line->body, *end = line->body + line->body_len;
	size_t klen = strlen(key);

	while (p < end) {
		const char *space = memchr(p, ' ', (size_t)(end - p));
		const char *stop = space ? space : end;
		bool text = stop - p >= 5 && memcmp(p, "text=", 5) == 0;

		if (text)
			stop = end;
		if ((size_t)(stop - p) > klen && memcmp(p, key, klen) == 0 && p[klen] == '=') {
			*len = (size_t)(stop - p) - klen - 1;
			return p + klen + 1;
		}
		p = stop < end ? stop + 1 : end;
	}
	return NULL;
}

/* The unsigned value of field key. Returns false if there is none or it is not a number. */
static inline bool gt_field_u64(const struct gt_line *line, const char *key, uint64_t *value)
{
	size_t len = 0;
	const char *p = gt_field(line, key, &len);
	uint64_t v = 0;

	if (!p || len == 0 || len > 19)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (p[i] < '0' || p[i] > '9')
			return false;
		v = v * 10 + (uint64_t)(p[i] - '0');
	}
	*value = v;
	return true;
}

#endif
