/* SPDX-License-Identifier: MIT */
#include "fault.h"

#ifdef GODWIT_FAULTS

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

static const char *const kind_name[N_FAULTS] = {
	[FAULT_KILL] = "kill",	   [FAULT_CUT] = "cut",	      [FAULT_DELAY] = "delay",
	[FAULT_WIRE] = "wire",	   [FAULT_SHORT] = "short",   [FAULT_RAM] = "ram",
	[FAULT_DIRTY] = "dirty",   [FAULT_ENOMEM] = "enomem", [FAULT_EIO] = "eio",
	[FAULT_SLOW] = "slow",	   [FAULT_HANG] = "hang",     [FAULT_ENOSPC] = "enospc",
	[FAULT_REFUSE] = "refuse",
};

/* The one state of the process that nothing is passed: a fault may be anywhere. */
static struct {
	pthread_once_t once;
	enum fault kind; /* N_FAULTS: none is wanted */
	char place[64];
	int log_fd;	   /* -1: nobody wants to know */
	_Atomic long left; /* times that the place is still passed before it happens */
	atomic_bool armed;
} wanted = {.once = PTHREAD_ONCE_INIT, .kind = N_FAULTS, .log_fd = -1};

/* A test that asks for what there is not must not pass. */
static void parse(void)
{
	const char *text = getenv("GODWIT_FAULT"), *at = text ? strchr(text, '@') : NULL;
	const char *hash = at ? strchr(at, '#') : NULL;
	size_t len;

	if (!text)
		return;
	len = at ? (hash ? (size_t)(hash - at) : strlen(at)) - 1 : 0;
	for (enum fault k = 0; k < N_FAULTS && at; k++) {
		if (strlen(kind_name[k]) == (size_t)(at - text) &&
		    strncmp(kind_name[k], text, (size_t)(at - text)) == 0)
			wanted.kind = k;
	}
	if (wanted.kind == N_FAULTS || len == 0 || len >= sizeof(wanted.place)) {
		log_error("GODWIT_FAULT: '%s' is no fault", text);
		abort();
	}
	memcpy(wanted.place, at + 1, len);
	wanted.left = hash ? atol(hash + 1) : 1;
	/* Now: a thread that may open files is the one that begins a migration. */
	if (getenv("GODWIT_FAULT_LOG"))
		wanted.log_fd = open(getenv("GODWIT_FAULT_LOG"),
				     O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

void fault_arm(void)
{
	pthread_once(&wanted.once, parse);
	wanted.armed = true;
}

static void say(void)
{
	if (wanted.log_fd >= 0)
		dprintf(wanted.log_fd, "%s@%s\n", kind_name[wanted.kind], wanted.place);
}

bool fault_at(enum fault kind, const char *place)
{
	int saved = errno;
	bool now = wanted.armed && kind == wanted.kind && strcmp(place, wanted.place) == 0 &&
		   atomic_fetch_sub(&wanted.left, 1) == 1;

	if (now)
		say();
	errno = saved;
	return now;
}

bool fault_frame(const char *direction, const char *name, int fd)
{
	char place[64];

	if (!wanted.armed)
		return false;
	snprintf(place, sizeof(place), "%s%s", direction, name);
	if (fault_at(FAULT_KILL, place))
		raise(SIGKILL);
	if (fault_at(FAULT_CUT, place))
		shutdown(fd, SHUT_RDWR);
	if (fault_at(FAULT_DELAY, place))
		nanosleep(&(struct timespec){.tv_sec = FAULT_DELAY_NS / NS_PER_SEC}, NULL);
	return fault_at(FAULT_WIRE, place);
}

/*
 * The allocator's functions, as this program's own objects call them: linked with --wrap. Those of
 * the libraries are their own affair.
 */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);

static bool refuse_memory(void)
{
	if (!fault_at(FAULT_ENOMEM, "alloc"))
		return false;
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t size)
{
	return refuse_memory() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return refuse_memory() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return refuse_memory() ? NULL : __real_realloc(p, size);
}

#endif
