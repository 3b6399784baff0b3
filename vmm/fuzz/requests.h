/* SPDX-License-Identifier: MIT */
/*
 * What the clients of a control socket say, as an input describes it: requests with members of any
 * type, lines that are no JSON, too long or without an end, the same line many times.
 */
#ifndef GODWIT_FUZZ_REQUESTS_H
#define GODWIT_FUZZ_REQUESTS_H

#include "fuzz.h"

#define REQUESTS_ROOM (128 * KIB)
#define REQUESTS_CLIENTS 4U

/* One client's. */
struct requests {
	enum manner {
		ASKS,	/* says that it has no more requests, and reads to the end */
		STAYS,	/* leaves when it has all answers */
		DEAF,	/* reads nothing */
		LEAVES, /* as soon as it has asked */
		MANNERS,
	} manner;
	char data[REQUESTS_ROOM];
	size_t len;
	size_t early; /* so many bytes before the process begins to end */
};

/* Fills the first ones and returns how many. *crowd: are there many more, who say nothing? */
unsigned requests_make(struct requests all[REQUESTS_CLIENTS], struct fuzz_in *in, bool *crowd);

/* Lines that want an answer, with one that is too long or has no end among them. */
unsigned requests_count(const struct requests *r);

/* Is there one that is too long? Nothing after it is looked at. */
bool requests_too_long(const struct requests *r);

#endif
