/* SPDX-License-Identifier: MIT */
/*
 * The host's side of the serial line: stdin and stdout of this process.
 *
 * Theory of operation: the console is driven by the loop only. Output: when the channel has bytes,
 * wait until stdout takes some (poll), write them, go on. Input: read when the channel has room. A
 * terminal is put into raw mode while the guest owns it and put back on every way out of the
 * process, fatal signals included; Ctrl-A x leaves, Ctrl-A a sends a Ctrl-A, Ctrl-A h helps.
 * End of file on stdin only ends input.
 */
#ifndef GODWIT_CONSOLE_H
#define GODWIT_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

#include "chan.h"
#include "log.h"
#include "loop.h"

struct console {
	struct loop *loop;
	struct chan *chan;
	int in_fd, out_fd;
	bool in_is_tty;
	bool in_eof;
	bool attached;
	bool escape; /* Ctrl-A was typed */
	struct loop_op in_op, out_op;
	struct loop_task kick;	    /* the device made progress: from a vCPU's thread */
	void (*on_quit)(void *arg); /* Ctrl-A x */
	void *on_quit_arg;
	uint8_t in_buf[512];
};

/*
 * Binds console and channel. in_fd may be -1 (no input). Nothing is read yet and the terminal is
 * as it was, but output flows. on_quit runs on the loop's thread.
 */
int console_init(struct console *c, struct loop *loop, struct chan *chan, int in_fd, int out_fd,
		 void (*on_quit)(void *arg), void *arg);

/* Starts reading input; a terminal goes raw. 0 or -errno. */
int console_attach(struct console *c);

/* Stops reading, puts the terminal back. Output still flows. */
void console_detach(struct console *c);

/* Writes out what is waiting, for at most timeout_ns (a reader may be gone). */
void console_flush(struct console *c, uint64_t timeout_ns);

/* Detaches and lets go of the channel. Pending operations have ended when it returns. */
void console_destroy(struct console *c);

/* Puts the terminal back from anywhere, signal handlers included; called at exit too. */
void console_restore_terminal(void);

#endif
