/* SPDX-License-Identifier: MIT */
/*
 * The matrix of test-fault-matrix: every kind of fault at every place (vmm/fault.h), on either
 * side, and how a move that it happens to must end.
 */
#ifndef GODWIT_TESTS_FAULT_CELLS_H
#define GODWIT_TESTS_FAULT_CELLS_H

#include <stdbool.h>

enum fault_side {
	AT_SOURCE = 1,
	AT_DEST = 2,
	AT_BOTH = AT_SOURCE | AT_DEST, /* each side has it happen once */
};

/* Once it has come about. What holds after every move is looked at in any case. */
enum fault_end {
	ENDS_ANYHOW,
	ENDS_MOVED,	/* the move does not mind */
	ENDS_FAILED,	/* the guest runs on at the source */
	ENDS_LATE,	/* the same, unless the fault was over before the pause */
	ENDS_UNCERTAIN, /* the source does not know, and says so */
};

struct cell {
	char fault[64]; /* KIND@PLACE[#N] */
	enum fault_side sides;
	enum fault_end ends;
	const char *says; /* what migrate says, if it fails; NULL: anything */
	bool names_disk;  /* and the image's path with it */
	bool kill;	  /* a process dies of it */
	bool told;	  /* the guest is told of it: one request ends with an I/O error */
	bool leave;	  /* wants --leave */
};

unsigned fault_cells(void);

/* Cell i of these. */
struct cell fault_cell(unsigned i);

/*
 * Which cell a move takes, of so many: each in turn where there are enough of them. Fewer take one
 * of each kind and side first; the rest of them are spread over all.
 */
unsigned fault_pick(unsigned move, unsigned moves);

#endif
