/* SPDX-License-Identifier: MIT */
/*
 * QEMU as a peer: its microvm with the same payload, steered by QMP, and moved. For runs (bench.h):
 * what goes wrong ends the run as failed.
 */
#ifndef GODWIT_BENCH_QEMU_H
#define GODWIT_BENCH_QEMU_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "../tests/harness.h"

#define QEMU_PROGRAM "qemu-system-x86_64"

struct qemu_config {
	const char *label;
	unsigned ram_mib, cpus;
	const char *kernel; /* PVH ELF */
	const char *append;
	bool incoming;		  /* waits for a guest instead of booting */
	const char *machine;	  /* more properties of the machine: ",rtc=off"; or NULL */
	const char *const *extra; /* more words, ended by NULL; or NULL */
};

/* One QEMU. The guest's serial line is on proc's stdin and stdout. */
struct qemu {
	struct proc *proc;
	int qmp; /* socket */
	char *buf;
	size_t len, cap;
	json_t *answer; /* to the command under way */
	/* Events, by QEMU's own time stamps; seconds, 0: has not happened. */
	double stopped_s, resumed_s;
	char migration[32];  /* its status by the latest event; "" for none */
	double completed_at; /* bench_now() when `completed` was heard */
	double resumed_at;
};

/* Starts it and connects to it; the guest boots at once. */
void qemu_start(struct qemu *q, const struct qemu_config *c);

/* Runs a command; its answer, which must be no error. arguments may be NULL; is consumed. */
json_t *qemu_command(struct qemu *q, const char *command, json_t *arguments);

/* `quit`, and waits for the end. */
void qemu_quit(struct qemu *q);

bool qemu_installed(void);

/* ---- moves ---- */

struct qemu_move {
	unsigned channels;	 /* of multifd; 0: without it */
	const char *compression; /* of multifd: "zstd"; or NULL */
	unsigned downtime_ms;
	const char *host; /* address at which the destination listens */
};

struct qemu_moved {
	bool completed;
	double total_s;	    /* from the command until the guest runs there and the source knows */
	double own_total_s; /* what QEMU says */
	double own_downtime_s;
	double pause_s; /* from STOP at the source to RESUME at the destination, by QEMU's time
			   stamps */
	double wire_bytes;
	double rounds;
};

/*
 * Starts a move from src to dst, which has been started with .incoming; when it returns the move is
 * under way, since *start_s of bench_now().
 */
void qemu_move_start(struct qemu *src, struct qemu *dst, const struct qemu_move *m,
		     double *start_s);

/* Has it ended, one way or the other? */
bool qemu_move_over(const struct qemu *src, const struct qemu *dst);

/* After that: how it went. */
void qemu_move_result(struct qemu *src, struct qemu *dst, double start_s, struct qemu_moved *out);

/* Gives it up, and waits until it has been; the guest runs on at the source. */
void qemu_move_cancel(struct qemu *src);

#endif
