/* SPDX-License-Identifier: MIT */
/* The supervisor: starts the workers, hears them, answers the serial line, ends the machine. */
#ifndef GODWIT_GUEST_LINUX_SUPERVISE_H
#define GODWIT_GUEST_LINUX_SUPERVISE_H

#include <stdbool.h>
#include <stdint.h>

#include "info.h"
#include "kmsg.h"
#include "options.h"
#include "serial.h"
#include "work.h"

struct guest {
	struct options opt;
	struct serial serial;
	struct shared *sh;
	bool hosted;	     /* not process 1 of a machine */
	bool mounted;	     /* the disk, at opt.dir */
	bool traced;	     /* the kernel was asked for backtraces */
	int kmsg_fd;	     /* -1: not read */
	int msg_in, msg_out; /* pipe of struct msg from the workers */
	int child_fd;	     /* signalfd of SIGCHLD */
	unsigned int cpus;
	unsigned int workers;	  /* slots in use */
	unsigned int verify_left; /* answers outstanding */
	uint64_t verify_pages;
	uint64_t errors; /* the supervisor's own: deaths, kernel problems, stalls */
	uint64_t kernel_notes;
	uint64_t start_ns;
	uint64_t report_ns; /* when the next report is due */
	uint64_t look_ns;   /* when stalls were last looked for */
};

/* Start what the mode asks for. A worker that cannot be started is an error (start.c). */
void start_workers(struct guest *g);

/* Tell all workers. */
void give_order(struct guest *g, enum order order);

/* Count and say an error of the supervisor itself. */
void guest_error(struct guest *g, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Serve until the end of the machine. */
void supervise(struct guest *g) __attribute__((noreturn));

/* Verify all, say done, power off (hosted: exit). */
void guest_quit(struct guest *g) __attribute__((noreturn));
void guest_reboot(struct guest *g) __attribute__((noreturn));
void guest_fatal(struct guest *g, const char *why) __attribute__((noreturn));

#endif
