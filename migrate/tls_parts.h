/* SPDX-License-Identifier: MIT */
/* What tls.c (credentials, handshake), tls_pump.c and tls_explain.c have of each other. */
#ifndef GODWIT_MIGRATE_TLS_PARTS_H
#define GODWIT_MIGRATE_TLS_PARTS_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "tls.h"

#define TLS_PSK_MIN 16U /* bytes */
#define TLS_PSK_MAX 64U

/* AES-GCM is good for 2^24.5 full records under one key (RFC 8446, 5.5). */
#define TLS_REKEY_RECORDS (1ULL << 23)

struct tls {
	SSL_CTX *ctx;
	bool listens;
	uint8_t psk[TLS_PSK_MAX];
	size_t psk_len;		/* 0: certificates */
	char name[256];		/* that the destination's certificate must have */
	uint64_t rekey_records; /* of one direction, under one key */
};

/* Bytes on their way through the pump. */
struct tls_flow {
	uint8_t data[TLS_PUMP_BYTES];
	size_t at, len; /* data[at] to data[at + len - 1] are to go on */
	bool ended;	/* nothing more comes in */
	bool told;	/* and the other side knows */
};

struct tls_link {
	const struct tls *tls;
	SSL *ssl;
	const char *peer; /* "destination" or "source", for messages */
	int net;	  /* TCP */
	int near;	  /* our end of the pair; -1 before tls_start() */
	bool broken;	  /* nothing more can be said on it */
	pthread_t thread;
	bool started;

	/* The pump's own. */
	struct tls_flow out, in; /* to the network, from it */
	bool blocked;		 /* what goes out waits for the socket */
	bool more;		 /* the library holds some that came in */
	bool deaf;		 /* the owner reads no more */
	bool left;		 /* nor writes */
	uint64_t linger_until;	 /* of one that has left */
	uint64_t records;	 /* sent under the present key */

	struct errmsg why; /* text of: */
	int cause;	   /* -errno; 0: nothing has failed */

	_Atomic int failed; /* the same once it is told; then `why` stays as it is */
	_Atomic bool over;  /* the thread ends; then: */
	_Atomic uint64_t cpu_ns;
};

/*
 * After an operation on l->ssl that failed with error (SSL_get_error()) and errno sys: -errno, as
 * of tls_shake(), with the cause in err unless it is a plain -errno of TCP.
 */
int tls_explain(const struct tls_link *l, int error, int sys, struct errmsg *err);

#endif
