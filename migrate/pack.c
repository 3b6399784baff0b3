/* SPDX-License-Identifier: MIT */
#include "pack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

#define WINDOW 16U /* batches between two decisions */
#define CONTENT_MIN (4 * PAGE_SIZE)

/* Until they have been measured; the ratio also is what one hopes for when it is tried again. */
#define ZSTD_GUESS 3.0 /* ns a byte */
#define RATIO_HOPE 0.4
#define RATIO_BAD 0.95
/* A gain that is within the noise is none. */
#define WORTH 0.9
/* zstd has levels below 1, too, which are quicker. */
#define AUTO_LEVEL_MIN (-5)
#define AUTO_LEVEL_MAX 9
#define REST_MIN 8U
#define REST_MAX 512U

void pack_init(struct pack *p, enum migrate_compress mode, int level)
{
	*p = (struct pack){
		.mode = mode,
		.level = mode == MIGRATE_COMPRESS_ZSTD ? level : 1,
		.zstd = ZSTD_GUESS,
		.ratio = RATIO_HOPE,
		.rest = REST_MIN,
	};
}

void pack_free(struct pack *p)
{
	ZSTD_freeCCtx(p->ctx);
	p->ctx = NULL;
}

static double larger(double a, double b)
{
	return a > b ? a : b;
}

static double packed_cost(const struct pack *p, double zstd, double ratio)
{
	return larger(p->work + zstd, ratio * p->wire);
}

static bool pays(const struct pack *p, double ratio)
{
	return packed_cost(p, p->zstd, ratio) < WORTH * larger(p->work, p->wire);
}

/* CPU time of the whole host since it was booted: all, and idle. 0 where it is not told. */
static void read_host_cpu(uint64_t *idle, uint64_t *total)
{
	unsigned long long t[8] = {0};
	char line[256] = "";
	int fd = open("/proc/stat", O_RDONLY | O_CLOEXEC);

	*idle = *total = 0;
	if (fd < 0)
		return;
	if (read(fd, line, sizeof(line) - 1) > 0 &&
	    sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2], &t[3],
		   &t[4], &t[5], &t[6], &t[7]) == 8) {
		for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
			*total += t[i];
		*idle = t[3];
	}
	close(fd);
}

/* Has a tenth of the host's CPU time been left in this window? */
static bool host_was_idle(const struct pack *p)
{
	uint64_t idle, total;

	read_host_cpu(&idle, &total);
	return (idle - p->host_idle) * 10 > total - p->host_total;
}

/* What a byte has cost in the window that ends now. */
static void measure(struct pack *p, const struct conn *c, uint64_t now)
{
	double wall = (double)(now - p->start_ns), content = (double)p->content;
	double blocked = (double)(c->blocked_ns - p->blocked_ns);
	double sent = (double)(c->sent - p->sent);

	if (content <= 0 || sent <= 0)
		return;
	/* CPU time: what others take of this CPU is lost to either way. */
	p->work = larger((double)(thread_cpu_ns() - p->start_cpu - p->zstd_ns), 0) / content;
	/* Without waiting it is only known that it is not slower than that. */
	if (blocked > wall / 16 && c->local && !host_was_idle(p))
		p->wire = 0;
	else if (blocked > wall / 16 || p->wire > wall / sent)
		p->wire = wall / sent;
}

/*
 * A level costs about half as much again as the one below it: go up while the network would wait
 * even so, and down when it waits for us. 0 is none, but stands for the default.
 */
static void choose_level(struct pack *p)
{
	double wire = p->ratio * p->wire;
	int step = 0;

	if (p->work + 2 * p->zstd < wire && p->level < AUTO_LEVEL_MAX)
		step = 1;
	else if (p->work + p->zstd > wire && p->level > AUTO_LEVEL_MIN)
		step = -1;
	p->level += p->level + step ? step : 2 * step;
}

static void decide(struct pack *p)
{
	bool was = p->on;

	p->on = pays(p, p->ratio);
	if (p->on)
		choose_level(p);
	else if (was)
		p->wait = p->rest = REST_MIN;
}

/* Of a batch when packing is off: is it time to see whether content has become better? */
static bool try_again(struct pack *p)
{
	if (p->wait) {
		p->wait--;
		return false;
	}
	return pays(p, RATIO_HOPE);
}

static void begin_window(struct pack *p, const struct conn *c, uint64_t now)
{
	p->start_ns = now;
	p->start_cpu = thread_cpu_ns();
	p->blocked_ns = c->blocked_ns;
	p->sent = c->sent;
	if (c->local)
		read_host_cpu(&p->host_idle, &p->host_total);
	p->content = p->zstd_ns = 0;
	p->batches = 0;
}

void pack_begin_round(struct pack *p)
{
	p->start_ns = 0;
}

static int compress(struct pack *p, struct conn_batch *b, struct errmsg *err)
{
	size_t len = wire_batch_unpacked(&b->head), n;
	uint64_t start = thread_cpu_ns(), ns;
	double ratio = 1;

	if (!p->ctx)
		p->ctx = ZSTD_createCCtx();
	if (!b->packed)
		b->packed = malloc(CONN_BATCH_BYTES);
	if (!p->ctx || !b->packed)
		return errmsg_set(err, -ENOMEM, "no memory for compression");
	/* No room for what would be no smaller: it gives up then. */
	n = ZSTD_compressCCtx(p->ctx, b->packed, (size_t)((double)len * RATIO_BAD), b->data, len,
			      p->level);
	if (!ZSTD_isError(n)) {
		b->head.packed = (uint32_t)n;
		ratio = (double)n / (double)len;
	}
	ns = thread_cpu_ns() - start;
	p->zstd_ns += ns;
	p->zstd = (3 * p->zstd + (double)ns / (double)len) / 4;
	p->ratio = (3 * p->ratio + ratio) / 4;
	return 0;
}

int pack_batch(struct pack *p, struct conn *c, struct conn_batch *b, struct errmsg *err)
{
	uint64_t now;
	bool tried;
	int ret;

	if (p->mode == MIGRATE_COMPRESS_OFF || wire_batch_unpacked(&b->head) < CONTENT_MIN)
		return 0;
	if (p->mode == MIGRATE_COMPRESS_ZSTD)
		return compress(p, b, err);
	now = now_ns();
	if (p->start_ns == 0)
		begin_window(p, c, now);
	if (p->batches >= WINDOW) {
		measure(p, c, now);
		decide(p);
		begin_window(p, c, now);
	}
	p->batches++;
	p->content += wire_batch_unpacked(&b->head);
	if (p->on)
		return compress(p, b, err);
	tried = try_again(p);
	ret = tried ? compress(p, b, err) : 0;
	if (tried && !pays(p, p->ratio)) {
		p->rest = MIN(2 * p->rest, REST_MAX);
		p->wait = p->rest;
	}
	return ret;
}

/* ---- the other side ---- */

void unpack_free(struct unpack *u)
{
	ZSTD_freeDCtx(u->ctx);
	free(u->packed);
	free(u->contents);
	*u = (struct unpack){0};
}

int unpack_prepare(struct unpack *u)
{
	if (!u->ctx)
		u->ctx = ZSTD_createDCtx();
	if (!u->packed)
		u->packed = malloc(CONN_BATCH_BYTES);
	if (!u->contents)
		u->contents = malloc(CONN_BATCH_BYTES);
	return u->ctx && u->packed && u->contents ? 0 : -ENOMEM;
}

int unpack(struct unpack *u, uint32_t len, uint32_t want)
{
	size_t n = ZSTD_decompressDCtx(u->ctx, u->contents, want, u->packed, len);

	return ZSTD_isError(n) || n != want ? -EBADMSG : 0;
}
