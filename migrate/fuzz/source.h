/* SPDX-License-Identifier: MIT */
/*
 * A source as an input describes it: honest where the input says nothing else, and with a model of
 * what the destination must hold then. See fuzz-stream.c for what is done with it.
 *
 * Frames have the right numbers and checks whatever is in them, unless the input says that they are
 * to be wrong: what lies behind the checks would never be reached otherwise.
 */
#ifndef GODWIT_MIGRATE_FUZZ_SOURCE_H
#define GODWIT_MIGRATE_FUZZ_SOURCE_H

#include "../../vmm/ram.h"
#include "../hashes.h"
#include "../tls.h"
#include "../wire.h"
#include "guest.h"

#define SOURCE_CONNS 3U
#define SOURCE_NPAGES (RAM_MIN / PAGE_SIZE)
#define SOURCE_SLOTS 32U /* pages that an input can name by a byte */
#define SOURCE_CROWD 60U /* who stay; a few more fill a door's queue */

/* Where the receiver is. */
struct source_way {
	const char *path; /* of its socket, unless: */
	uint16_t port;	  /* of 127.0.0.1, where it takes sources by TLS, with a key */
	struct tls *tls, *other_key;
	bool keeps; /* who breaks off may come back */
};

/* One connection to the receiver. */
struct source_conn {
	int fd; /* -1: none */
	struct tls_link *tls;
	uint32_t seq, seq_in;
	bool deaf;		/* what comes back is not for us: we have not said who we are */
	bool began;		/* the answer's prelude has come */
	bool ended;		/* the other side has closed */
	uint8_t in[128 * 1024]; /* the answer's bytes that are no whole frame yet */
	size_t n_in;
};

struct source {
	const struct source_way *way;
	unsigned variant;
	struct source_conn conn[SOURCE_CONNS];
	unsigned at;		   /* the connection that is spoken on */
	int crowd[SOURCE_CROWD];   /* connections on which nothing more is said */
	unsigned n_crowd, crowded; /* so many have come at any time */

	/* Nothing so far but what a source of ours could have sent, in an order of its. */
	bool honest;
	enum source_phase {
		SOURCE_HELLO, /* due next */
		SOURCE_PAGES, /* or STATE */
		SOURCE_PROOF,
		SOURCE_COMMIT,
		SOURCE_DONE,
	} phase;
	uint32_t round;
	bool round_open;

	/* What the destination holds if all was honest. */
	struct hashes hashes;
	uint8_t content[SOURCE_SLOTS][PAGE_SIZE];
	unsigned touched_by[SOURCE_SLOTS]; /* in this round: 1 + connection */
	struct sbuf state;
	struct page_hash root;

	/* What it says. */
	bool refused, ready, running;
};

void source_init(struct source *s, const struct source_way *way, unsigned variant);
void source_free(struct source *s);

/* Page of a slot. */
uint64_t source_page(unsigned slot);

/* Speaks as the input says, to its end, and then lets the other side say what it has to. */
void source_play(struct source *s, struct fuzz_in *in);

/* Waits at most timeout_ns for the other side to close all connections; true when it has. */
bool source_drain(struct source *s, uint64_t timeout_ns);

#endif
