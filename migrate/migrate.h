/* SPDX-License-Identifier: MIT */
/*
 * Live migration: the engine's whole public face.
 *
 * Source and destination each run one coordinator thread. Life of a move, source on the left:
 *
 *	connect, HELLO ----------------->  check version, CPU, RAM, devices; build the machine
 *	                <---------------- HELLO_OK, or REFUSE with the reason: nothing was paused
 *	pre-copy rounds ---------------->  store, hash
 *	pause, last pages, state ------->  load the state
 *	                <---------------- READY: all held, applied and proved equal
 *	COMMIT ------------------------->  run                      (the point of no return)
 *	                <---------------- RUNNING
 *	exit
 *
 * Before COMMIT any failure leaves the source's guest running. Once COMMIT may have reached the
 * other side the source never runs the guest again by itself: without an answer it stays paused
 * and reports MIGRATE_UNCERTAIN.
 */
#ifndef GODWIT_MIGRATE_H
#define GODWIT_MIGRATE_H

#include <stdbool.h>
#include <stdint.h>

#include "../vmm/cpuid.h"
#include "../vmm/log.h"
#include "../vmm/loop.h"
#include "../vmm/vm.h"
#include "policy.h"

#define MIGRATE_URI_MAX 256
#define MIGRATE_CONNECTIONS_MAX 32U
#define MIGRATE_DOWNTIME_DEFAULT (50 * NS_PER_MS)
#define MIGRATE_KEEP_DEFAULT (600 * NS_PER_SEC) /* of either side, when a connection breaks */
#define MIGRATE_BANDWIDTH_MIN 8000U		/* bytes a second: 64kbit */
#define MIGRATE_PEER_TIMEOUT_MIN NS_PER_SEC

enum migrate_verify {
	MIGRATE_VERIFY_STREAM, /* the destination's hashes of what it stored against the source's
				  table */
	MIGRATE_VERIFY_FULL,   /* and both sides rehash all of RAM at the pause */
};

enum migrate_compress {
	MIGRATE_COMPRESS_AUTO, /* where the network is slower than zstd, and it helps */
	MIGRATE_COMPRESS_OFF,
	MIGRATE_COMPRESS_ZSTD, /* always, at a level of one's choice */
};
#define MIGRATE_LEVEL_MAX 19
#define MIGRATE_LEVEL_DEFAULT 1

/* "off", "auto", "zstd" or "zstd:LEVEL". -EINVAL. */
int migrate_parse_compress(const char *text, enum migrate_compress *mode, int *level);

/*
 * "1Gbit", "100Mbit", "64kbit" (decimal), a size for bytes a second ("125M"), "0" or "unlimited",
 * to bytes a second, 0 for no limit. -EINVAL, -ERANGE when it is too little or too much.
 */
int migrate_parse_bandwidth(const char *text, uint64_t *bytes_per_s);

enum migrate_phase {
	MIGRATE_IDLE,
	MIGRATE_LISTENING, /* destination */
	MIGRATE_CONNECTING,
	MIGRATE_HANDSHAKE,
	MIGRATE_PRECOPY,
	MIGRATE_STOPCOPY,
	MIGRATE_READY,	      /* destination: waits for COMMIT; source: about to send it */
	MIGRATE_COMMIT,	      /* source: COMMIT sent, no answer yet */
	MIGRATE_RECONNECTING, /* source: the connection broke, the guest runs on */
	MIGRATE_KEEPING,      /* destination: the same, what has come is kept */
	MIGRATE_DONE,
};
const char *migrate_phase_name(enum migrate_phase p);

enum migrate_status {
	MIGRATE_COMPLETED,
	MIGRATE_FAILED,	   /* source: the guest runs on here. destination: nothing ran */
	MIGRATE_CANCELLED, /* the same, because the user said so */
	MIGRATE_UNCERTAIN, /* source: paused; whether the guest runs at the destination is unknown
			    */
};
const char *migrate_status_name(enum migrate_status s); /* "completed", "failed", ... */

#define MIGRATE_ROUNDS_KEPT 64U
#define MIGRATE_VCPUS_KEPT 64U

/* What one round was, and what it cost. */
struct migrate_round {
	uint32_t number;
	uint64_t ns;	/* finding its pages, until the destination had all of them */
	uint64_t pages; /* that were dirty */
	uint64_t sent;	/* of these: others were zeros or unchanged */
	uint64_t wire_bytes;
	/* What was known when it had ended, and what was decided; of the last one nothing. */
	struct policy_facts facts;
	enum policy_action then;
	uint32_t next_throttle;
	bool converging;
};

/* What one connection has sent. */
struct migrate_connection {
	uint64_t bytes;
	uint64_t bytes_per_s;	 /* over the present round */
	uint64_t uncopied_bytes; /* of these: sent without a copy, as far as the kernel has told */
};

/* Progress while it runs and, once done, the report. Counts of pages are 4 KiB pages. */
struct migrate_stats {
	enum migrate_phase phase;
	enum migrate_status status; /* once phase is MIGRATE_DONE */
	struct errmsg error;	    /* why, unless completed */
	struct errmsg leave_error; /* source: why RAM could not be left behind; "" if all is well */
	uint32_t round;		   /* the present one, from 1; the final copy counts as one */
	uint64_t total_ns;	   /* since the start */
	uint64_t downtime_ns;	   /* source: from before the pause until RUNNING arrived */
	uint64_t downtime_target_ns;
	uint64_t ram_bytes;
	uint64_t wire_bytes;	    /* sent (source) or received (destination), framing included */
	uint64_t zc_tried_bytes;    /* of these: given to the kernel to be sent without a copy */
	uint64_t zc_uncopied_bytes; /* and really sent so, as far as the kernel has told */
	uint64_t bytes_per_s;	    /* measured over the present round */
	uint64_t dirty_pages_per_s; /* new dirty pages over the last round */
	uint64_t remaining_pages;   /* of the present round */
	uint64_t pages_scanned;
	uint64_t pages_zero;
	uint64_t pages_unchanged;
	uint64_t pages_sent; /* with their content, in one form or another */
	/* Of these (source): compressed; only what had changed; as a copy of another page. */
	uint64_t pages_compressed, pages_delta, pages_copied;
	uint64_t verified_pages;
	/* Source: those that are over, the latest MIGRATE_ROUNDS_KEPT; round n is at n % that. */
	struct migrate_round rounds[MIGRATE_ROUNDS_KEPT];
	/* Source: is it getting nearer to the pause, and if not, the numbers. */
	bool converging;
	struct errmsg not_converging;
	struct policy_choice choice;
	/* Source: percent by which the guest is slowed now and was at most; how long each of its
	 * first MIGRATE_VCPUS_KEPT vCPUs was held back, and all together. */
	uint32_t throttle, throttle_max, vcpus;
	uint64_t slowed_ns, vcpu_slowed_ns[MIGRATE_VCPUS_KEPT];
	enum migrate_verify verify;
	uint64_t rtt_ns;
	uint32_t connections;
	uint32_t reconnects; /* how often they broke and were made anew (destination: or may be) */
	uint64_t held_pages; /* that the destination had when the latest were made */
	uint64_t failed_pause_ns; /* source: the guest stood for a handover that was broken off */
	struct migrate_connection each[MIGRATE_CONNECTIONS_MAX]; /* source: the first so many */
	uint64_t bandwidth; /* source: what it may send at present, bytes a second; 0: no limit */
	/*
	 * Source: how long this round, and all of the move, will still take, if things go on as
	 * they do. 0: not known, or not to be foreseen, as the guest writes too much.
	 */
	uint64_t round_eta_ns, eta_ns;
	uint64_t cpu_ns; /* that this side's threads of the migration have used */
	/* What the source expects of the pause, after the latest round: 0 before there was one. */
	uint64_t estimate_downtime_ns;
	/*
	 * Downtime in parts (source): pausing, saving the state, sending the last pages and the
	 * state, loading and proof at the destination, commit.
	 */
	uint64_t pause_ns, state_ns, last_pages_ns, proof_ns, commit_ns;
};

/* Credentials of a tls: URI: files in PEM form, or one with a pre-shared key; "" for none. */
struct migrate_tls {
	char cert[VM_PATH_MAX], key[VM_PATH_MAX], ca[VM_PATH_MAX];
	char psk[VM_PATH_MAX];
	char name[256]; /* source: of the destination's certificate; "": the URI's host */
};

/* Do they go together, and with the URI? -EINVAL with what is wrong in err. Opens nothing. */
int migrate_check_tls(const char *uri, const struct migrate_tls *tls, struct errmsg *err);

/*
 * Would others on a network see, and be able to change, what goes there: is it a tcp: URI of
 * anything but loopback? listens: it is a receiver's.
 */
bool migrate_is_exposed(const char *uri, bool listens);

struct migrate_options {
	char uri[MIGRATE_URI_MAX]; /* tcp:HOST:PORT, tls:HOST:PORT, unix:PATH */
	struct migrate_tls tls;
	uint64_t downtime_ns; /* the pause is entered when what is left fits this */
	uint64_t timeout_ns;  /* of everything before the pause; 0: see policy.h */
	enum on_timeout on_timeout;
	enum migrate_verify verify;
	unsigned connections; /* 1 to MIGRATE_CONNECTIONS_MAX; 0: as the host has CPUs for */
	enum migrate_compress compress;
	int compress_level;	 /* 1 to MIGRATE_LEVEL_MAX, of MIGRATE_COMPRESS_ZSTD */
	uint64_t reconnect_ns;	 /* try for so long to reach a destination again; 0: not at all */
	char leave[VM_PATH_MAX]; /* path where RAM is left behind once the guest has gone; "": none
				  */
	uint64_t bandwidth; /* bytes a second over all connections, all that is sent; 0: no limit */
	uint64_t peer_timeout_ns; /* a silent peer is dead after it, from _MIN; 0: the default */
};

struct migration;

/*
 * Starts moving vm away; returns at once. done(arg) runs on the loop's thread when it has ended;
 * then stats are final. The VM must outlive the migration. -EBUSY when one runs already, -EINVAL
 * for a bad URI or credentials, -errno. From a confined thread by confine_call(): its own inherit
 * the filters.
 *
 * When it completed, the machine has ended with VM_END_MOVED. When it failed or was cancelled it
 * runs as before. When uncertain, it is paused with VM_PAUSE_LOST.
 */
int migrate_start(struct migration **out, struct vm *vm, const struct migrate_options *opt,
		  void (*done)(void *arg), void *arg, struct errmsg *err);

/* Gives up if that is still possible: 0, or -EALREADY when COMMIT may be out. Any thread. */
int migrate_cancel(struct migration *m);

/*
 * Changes, while it runs, what it may send (bytes a second, 0 for no limit), which counts at once,
 * and the allowed pause, which counts from the end of the present round. NULL leaves one as it is.
 * What is in force is in the figures. Any thread.
 */
void migrate_tune(struct migration *m, const uint64_t *bandwidth, const uint64_t *downtime_ns);

/* A consistent copy of the figures; any thread, any time until free. */
void migrate_get_stats(struct migration *m, struct migrate_stats *out);

/* Waits for the coordinator (cancel first to be quick) and frees. NULL is allowed. */
void migrate_free(struct migration *m);

/* ---- destination ---- */

struct receive_options {
	char uri[MIGRATE_URI_MAX];
	struct migrate_tls tls;
	uint64_t want_ram;   /* 0, or refuse a guest of another size */
	uint32_t want_vcpus; /* 0, or refuse another number */
	char cpu_mask[256];  /* features that this host shall be taken not to have; see cpuid_host()
			      */
	uint64_t keep_ns; /* when the connection breaks, wait so long for the source to come back */
	char base[VM_PATH_MAX]; /* path of an older image of the guest's RAM (ram_image.h); "": none
				 */
	uint64_t peer_timeout_ns; /* a silent source is dead after it, from _MIN; 0: the default */
	struct confine *confine;  /* of the receiver's threads; may be NULL */
	/*
	 * Builds the machine out of the source's description once it has been checked; the VM has
	 * VM_PAUSE_START set. May change cfg (name). Runs on the loop's thread.
	 */
	int (*build)(void *arg, struct vm_config *cfg, const struct cpuid *cpuid, struct vm **out,
		     struct errmsg *err);
	void *build_arg;
};

struct receiver;

/*
 * Binds and listens. uri_out gets the URI as it can be connected to (port 0 resolved).
 * -EADDRINUSE, -EINVAL, -errno with the cause in err.
 */
int receive_listen(struct receiver **out, const struct receive_options *opt,
		   char uri_out[MIGRATE_URI_MAX], struct errmsg *err);

/*
 * Accepts one source, and, when its connection breaks, the same guest's again, and takes it in;
 * done(arg) runs on the loop's thread. On MIGRATE_COMPLETED the guest runs already. Otherwise it
 * has never run and receive_vm()'s machine must be destroyed by the owner.
 */
int receive_start(struct receiver *r, struct loop *loop, void (*done)(void *arg), void *arg,
		  struct errmsg *err);

/* Gives up unless COMMIT has come (-EALREADY). Any thread. */
int receive_cancel(struct receiver *r);

void receive_get_stats(struct receiver *r, struct migrate_stats *out);

/* The machine that build() made, or NULL. The caller's from then on. Once done. */
struct vm *receive_vm(struct receiver *r);
void receive_free(struct receiver *r);

#endif
