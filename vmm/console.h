/* SPDX-License-Identifier: MIT */
/*
 * The host's side of the serial line: stdin and stdout of this process.
 *
 * Theory of operation: the console is driven by the loop only. Output: when the channel has bytes,
 * wait until stdout takes some (poll), write them, go on. Input: read when the channel has room;
 * nothing is ever read that the channel could not take at once, so no byte is in between when
 * it freezes. Neither blocks the loop, nor are the descriptors we were given made non-blocking:
 * those share their flags with the shell. End of file on stdin only ends input. A reader that
 * has gone away (EPIPE, EIO) does not stop the guest: its output is dropped from then on.
 *
 * A terminal is raw while the guest owns it and is put back on every way out of the process, fatal
 * signals included, and while the process is stopped. Ctrl-A x leaves, Ctrl-A a sends a
 * Ctrl-A, Ctrl-A h helps; other Ctrl-A sequences are swallowed. Input that is no terminal
 * is passed on byte by byte as it is. In the background (`&`) a terminal is left alone until the
 * process comes to the foreground.
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
	int in_fd, out_fd; /* the caller's */
	/* The same opened once more, non-blocking; -1 where that is not needed or not possible. */
	int own_in, own_out;
	bool out_is_socket;
	size_t out_max; /* bytes that one write may pass without blocking */
	bool in_is_tty;
	bool in_eof;
	bool out_gone;
	bool attached;
	bool dying;
	bool escape;   /* Ctrl-A was typed */
	bool quit_key; /* in the bytes just read */
	bool help_key;
	struct loop_op in_op, out_op;
	struct loop_task kick;	    /* the device made progress: from a vCPU's thread */
	void (*on_quit)(void *arg); /* Ctrl-A x */
	void *on_quit_arg;
	uint8_t in_buf[512];
};

/*
 * Binds console and channel. in_fd may be -1 (no input), out_fd too (output is dropped). Nothing
 * is read yet and the terminal is as it was, but output flows. on_quit runs on the loop's
 * thread. The process must ignore SIGPIPE. Always 0.
 */
int console_init(struct console *c, struct loop *loop, struct chan *chan, int in_fd, int out_fd,
		 void (*on_quit)(void *arg), void *arg);

/*
 * Starts reading input; a terminal goes raw. One console of a process can own a terminal: -EBUSY
 * for another. 0 or -errno.
 */
int console_attach(struct console *c);

/* Stops reading, puts the terminal back. Output still flows. */
void console_detach(struct console *c);

/* Writes out what is waiting, for at most timeout_ns (a reader may be gone). */
void console_flush(struct console *c, uint64_t timeout_ns);

/*
 * Detaches and lets go of the channel; its device must be at rest or gone. Pending operations have
 * ended when it returns. On the loop's thread, not from a callback of this console.
 */
void console_destroy(struct console *c);

/*
 * Puts the terminal back for good, from anywhere, signal handlers included. Called on the way out
 * of the process; a console that lives on must detach before it can attach again.
 */
void console_restore_terminal(void);

#endif
