/* SPDX-License-Identifier: MIT */
/*
 * The handover as a model for spin: who may run the guest, whatever is lost, and whoever dies.
 *
 * Theory of operation: a source, a destination and a network between them that keeps order, may be
 * cut at any moment, and forgets or delivers what was on its way; each side learns of that when it
 * next looks, or gives up by its time limit. Either process may be killed anywhere. The
 * guest writes while it runs at the source, so that what was sent is no longer what it is; memory is a
 * number that each write changes. `make model` checks every order in which all this can happen.
 *
 *	here			in the engine
 *	S_PRECOPY		source_precopy(); the guest runs
 *	S_PAUSED		source_stop_and_copy(), send_rest()
 *	S_AWAIT			waits for READY
 *	S_COMMITTED		commit(): past the point of no return
 *	S_BROKEN		source_reconnect()
 *	S_HOME			source_settle(): failed or cancelled, the guest runs on
 *	S_UNCERTAIN		source_settle(): VM_PAUSE_LOST
 *	S_MOVED			VM_END_MOVED
 *	D_LISTEN		dest_take_source()
 *	D_TAKING		MIGRATE_PRECOPY, until STATE
 *	D_LOADED		MIGRATE_READY: READY has been said
 *	D_RUNS			on_commit()
 *	D_KEEPS			dest_keep(): RAM is kept, the machine is not
 *	D_GONE			the receiver has given up
 *
 * What must hold, at every moment:
 *
 *	one		never do both run it
 *	whole		what runs at the destination is the memory that was paused at the source
 *	locked		who runs it has the lock of its disks
 *
 * and, when nothing more can happen and nobody was killed:
 *
 *	somewhere	it runs at one side, or the source has all of it, paused, and says so
 *
 * Each BREAK_... takes out a line that keeps this; the model must then fail. REACH is what must be
 * possible: that a move completes after two cuts, say. scripts/model tries them all.
 *
 * What it shows besides: the lock of a disk keeps a guest from running twice even if a source guessed
 * that its COMMIT was lost; a guest without disks has only the source's silence. And a user who
 * resumes such a source must know that the receiver is gone: that the guest does not run there yet is
 * not enough, as COMMIT may still be on its way.
 */

#define WRITES 2 /* of the guest, at most */
#define CUTS   2

mtype = { HELLO, WELCOME, REFUSE, PAGES, STATE, READY, COMMIT, RUNNING, FAIL };
mtype = { S_PRECOPY, S_PAUSED, S_AWAIT, S_COMMITTED, S_BROKEN, S_HOME, S_UNCERTAIN, S_MOVED, S_DEAD };
mtype = { D_LISTEN, D_TAKING, D_LOADED, D_RUNS, D_KEEPS, D_GONE, D_DEAD };

/* One connection after another; a message of an older one is never taken for one of the newer. */
chan to_dest = [3] of { mtype, byte };
chan to_source = [3] of { mtype, byte };

mtype source = S_PRECOPY, dest = D_LISTEN;
bool up = false;	/* there is a connection, as far as the network knows */

byte memory = 0; /* of the guest, at the source */
byte held = 0;	 /* at the destination */
byte sent = 0;	 /* what the source's table says the destination holds */
bool source_runs = true, dest_runs = false;
bool source_locks = true, dest_locks = false;
byte writes = 0, cuts = 0;
bool killed = false;

/* A guest without disks has nothing that can be locked: anybody may go on. */
#ifdef DISKLESS
#define CAN_LOCK(theirs) true
#define EXCLUSIVE	 true
#else
#define CAN_LOCK(theirs) (!(theirs))
#define EXCLUSIVE	 (!(source_locks && dest_locks))
#endif

#define ONE	(!(source_runs && dest_runs))
#define LOCKED	((!source_runs || source_locks) && (!dest_runs || dest_locks) && EXCLUSIVE)

inline forget()
{
	do
	:: nempty(to_dest) -> to_dest ? _, _
	:: nempty(to_source) -> to_source ? _, _
	:: empty(to_dest) && empty(to_source) -> break
	od
}

/* The source gives up, and is sure that the destination has not run it. */
inline go_home()
{
	if
	:: source_locks -> skip
	:: else ->
		/* Taken back, if nobody was quicker: vm_acquire_devices(). */
		if
		:: CAN_LOCK(dest_locks) -> source_locks = true
		:: else -> skip
		fi
	fi;
	if
	:: source_locks -> source_runs = true; source = S_HOME
	:: else -> source = S_UNCERTAIN
	fi
}

active proctype Source()
{
	mtype what;
	byte n;

	{ /* The first connection. */
	atomic { up = true; to_dest ! HELLO, 0; source = S_BROKEN };
	do
	/* ---- no connection, or a new one whose destination has not answered ---- */
	:: source == S_BROKEN ->
		if
		:: atomic { to_source ? WELCOME, n ->
#ifndef BREAK_STOCK
			/* held_adopt(): the table is made what the destination says. */
			sent = n;
#endif
			source = S_PRECOPY }
		:: atomic { to_source ? REFUSE, n -> go_home() }
		/* It is lost, or takes too long; another try. */
		:: atomic { !up && dest != D_GONE && dest != D_DEAD && dest != D_RUNS ->
			forget(); up = true; to_dest ! HELLO, 0 }
		/* Or not: nobody is there, or the user has had enough. */
		:: atomic { !up -> go_home() }
		fi
	/* ---- rounds ---- */
	:: source == S_PRECOPY ->
		if
		:: atomic { writes < WRITES -> writes++; memory++ }
		:: atomic { up && sent != memory && nfull(to_dest) ->
			sent = memory; to_dest ! PAGES, memory }
		:: atomic { up -> source_runs = false; source = S_PAUSED }
		:: atomic { !up -> source = S_BROKEN }
		:: atomic { up -> /* cancelled, or out of time */
			up = false; forget(); go_home() }
		fi
	/* ---- the pause ---- */
	:: source == S_PAUSED ->
		if
		:: atomic { up && sent != memory && nfull(to_dest) ->
			sent = memory; to_dest ! PAGES, memory }
#ifndef BREAK_LAST_ROUND
		:: atomic { up && sent == memory && nfull(to_dest) ->
#else
		:: atomic { up && nfull(to_dest) ->
#endif
			to_dest ! STATE, memory; source = S_AWAIT }
		:: atomic { !up -> source_runs = true; source = S_BROKEN }
		fi
	:: source == S_AWAIT ->
		if
		:: atomic { to_source ? READY, n ->
			if
#ifndef BREAK_PROOF
			:: n != memory -> up = false; forget(); go_home()
#endif
			:: else ->
				/* The point of no return. */
				source_locks = false;
				source = S_COMMITTED;
				if
				:: up -> to_dest ! COMMIT, memory
				:: else -> skip
				fi
			fi }
		:: atomic { to_source ? FAIL, n -> up = false; forget(); go_home() }
		:: atomic { !up && empty(to_source) -> source_runs = true; source = S_BROKEN }
		fi
	:: source == S_COMMITTED ->
		if
		:: atomic { to_source ? RUNNING, n -> source = S_MOVED }
		/* The destination's word that it has not run it, and will not. */
		:: atomic { to_source ? FAIL, n -> up = false; forget(); go_home() }
		/* No answer: not known. */
		:: atomic { !up && empty(to_source) ->
#ifndef BREAK_GUESS
			source = S_UNCERTAIN
#else
			go_home()
#endif
			}
		/* Nor does it come in time, though nothing is known to be lost. */
		:: atomic { up && empty(to_source) -> source = S_UNCERTAIN }
		fi
#ifdef USER
	/* `godwit resolve --run`, by somebody who has seen to it that there is no receiver left. */
	:: atomic { source == S_UNCERTAIN && !source_runs &&
#ifndef BREAK_USER
		(dest == D_GONE || dest == D_DEAD) ->
#else
		!dest_runs ->
#endif
		source_locks = true; source_runs = true; break }
	:: source == S_UNCERTAIN && (dest == D_RUNS || source_runs) -> break
#else
	:: source == S_UNCERTAIN -> break
#endif
	:: source == S_HOME || source == S_MOVED || source == S_DEAD -> break
	od } unless { source == S_DEAD }
}

/* What is left of the guest at the destination when a connection is lost before COMMIT. */
inline lose()
{
	if
	:: dest = D_KEEPS
	:: dest = D_GONE
	fi
}

active proctype Dest()
{
	mtype what;
	byte n;

	{ do
	:: dest == D_LISTEN || dest == D_KEEPS ->
		if
		:: atomic { to_dest ? HELLO, n ->
			if
			:: up -> to_source ! WELCOME, held; dest = D_TAKING
			:: up -> to_source ! REFUSE, 0; dest = D_GONE
			:: else -> skip
			fi }
		/* Of another connection, that is none any more. */
		:: atomic { nempty(to_dest) && !to_dest ? [HELLO, n] -> to_dest ? what, n }
		/* It is not waited for for ever. */
		:: atomic { empty(to_dest) && (source == S_HOME || source == S_DEAD ||
			source == S_UNCERTAIN || dest == D_KEEPS) -> dest = D_GONE }
		fi
	:: dest == D_TAKING ->
		if
		:: atomic { to_dest ? PAGES, n -> held = n }
		:: atomic { to_dest ? STATE, n ->
			/* state_load() after compare_digests() */
			if
#ifndef BREAK_PROOF
			:: n != held ->
				if
				:: up -> to_source ! FAIL, 0
				:: else -> skip
				fi;
				dest = D_GONE
#endif
			:: else ->
				dest = D_LOADED;
#ifdef BREAK_EARLY
				dest_locks = true; dest_runs = true;
#endif
				if
				:: up -> to_source ! READY, held
				:: else -> skip
				fi
			fi }
		:: atomic { !up && empty(to_dest) -> lose() }
		:: atomic { to_dest ? [HELLO, n] -> lose() }
		fi
	:: dest == D_LOADED ->
		if
		:: atomic { to_dest ? COMMIT, n ->
			if
			:: !CAN_LOCK(source_locks) ->
				if
				:: up -> to_source ! FAIL, 0
				:: else -> skip
				fi;
				dest = D_GONE
			:: else ->
				dest_locks = true; dest_runs = true; dest = D_RUNS;
				assert(held == memory);
				if
				:: up -> to_source ! RUNNING, 0
				:: else -> skip
				fi
			fi }
		/* receive_cancel() was in time: FAIL is its word for that. */
		:: atomic { up && empty(to_dest) ->
#ifndef BREAK_WORD
			dest = D_GONE;
#endif
			if
			:: nfull(to_source) -> to_source ! FAIL, 0
			:: else -> skip
			fi;
#ifdef BREAK_WORD
			dest_locks = true; dest_runs = true; dest = D_RUNS
#endif
			}
		:: atomic { !up && empty(to_dest) -> lose() }
		:: atomic { to_dest ? [HELLO, n] -> lose() }
		fi
	:: dest == D_RUNS || dest == D_GONE || dest == D_DEAD -> break
	od } unless { dest == D_DEAD }
}

/* Cuts the connection now and then; and whoever leaves ends it. */
active proctype Network()
{
	do
	:: atomic { up && cuts < CUTS -> cuts++; up = false;
		/* What is on its way is lost, or arrives first. */
		if
		:: forget()
		:: skip
		fi }
	:: atomic { up && (dest == D_GONE || dest == D_DEAD || source == S_HOME ||
		source == S_DEAD || source == S_UNCERTAIN) -> up = false }
	:: atomic { source == S_MOVED || ((source == S_HOME || source == S_UNCERTAIN ||
		source == S_DEAD) && (dest == D_GONE || dest == D_RUNS || dest == D_DEAD)) -> break }
	od
}

#ifdef KILLS
/* Somebody pulls a plug, once. */
active proctype Killer()
{
	if
	:: atomic { source != S_MOVED && source != S_DEAD ->
		killed = true; source_runs = false; source_locks = false; source = S_DEAD }
	:: atomic { dest != D_DEAD ->
		killed = true; dest_runs = false; dest_locks = false; dest = D_DEAD }
	:: skip
	fi
}
#endif

active proctype Watch()
{
	assert(ONE);
	assert(LOCKED)
}

/* Can this come to pass at all? Then the model fails here. */
#ifdef REACH_MOVED
#define REACH (source == S_MOVED && dest == D_RUNS && cuts == CUTS && writes == WRITES)
#endif
#ifdef REACH_LOST_ANSWER
#define REACH (source == S_UNCERTAIN && dest == D_RUNS)
#endif
#ifdef REACH_LOST_COMMIT
#define REACH (source == S_UNCERTAIN && dest == D_GONE)
#endif
#ifdef REACH_HOME
#define REACH (source == S_HOME && dest == D_GONE && cuts > 0)
#endif
#ifdef REACH
active proctype Reach()
{
	assert(!(REACH))
}
#endif

/* Nothing more can happen. */
active proctype End()
{
	timeout ->
	assert(killed || source_runs || dest_runs || source == S_UNCERTAIN);
	assert(!(source == S_MOVED) || dest == D_RUNS || dest == D_DEAD)
}
