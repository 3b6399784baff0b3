/* SPDX-License-Identifier: MIT */
#include "disks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../bare/sector.h"

#define BOOT_MS 20000
#define WORK_MS 30000
#define VERIFY_MS 60000
#define END_MS 10000

const char *disk_new(const char *name, uint64_t size)
{
	const char *path = harness_path("%s/%s", harness_tmp(), name);
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	need(fd >= 0, "%s: %s", path, strerror(errno));
	need(!ftruncate(fd, (off_t)size), "%s: %s", path, strerror(errno));
	close(fd);
	return path;
}

void disks_ready(struct proc *p, struct disk *disks, unsigned n)
{
	const char *line;

	proc_fatal(p, DISK_FATAL);
	for (unsigned i = 0; i < n; i++) {
		line = proc_expect(p, "^virtio (disk=|skip )", BOOT_MS);
		need(strstr(line, " disk="), "%s", line);
		disks[i].index = kv(line, "disk");
		disks[i].block = kv(line, "block");
		disks[i].chunks = kv(line, "chunks");
		disks[i].seed = kv(line, "seed");
		ck_assert_uint_eq(disks[i].index, i);
	}
	line = proc_expect(p, "^virtio ready ", BOOT_MS);
	ck_assert_uint_eq(kv(line, "disks"), n);
}

uint64_t disk_told(const struct proc *p, const struct disk *d)
{
	uint64_t most = 0;

	for (const char *at = p->out.buf, *end; at && (end = strchr(at, '\n')); at = end + 1) {
		unsigned long index, n;

		if (sscanf(at, BARE_VIRTIO_DURABLE_FMT, &index, &n) == 2 && index == d->index &&
		    n > most)
			most = n;
	}
	return most;
}

/* ---- the image ---- */

/* How often each chunk has been written by the writes before n. */
static uint64_t *generations(const struct disk *d, uint64_t n)
{
	uint64_t *gen = calloc(d->chunks, sizeof(*gen));

	need(gen, "out of memory");
	for (uint64_t w = n > d->chunks ? n - d->chunks : 0; w < n; w++)
		gen[sector_chunk(w, d->chunks)] = sector_gen(w, d->chunks);
	return gen;
}

static void check_chunk(const struct disk *d, const uint64_t *w, uint64_t chunk, uint64_t gen,
			bool exact)
{
	for (uint64_t s = 0; s < d->block; s++, w += SECTOR_WORDS) {
		uint64_t number = chunk * d->block + s;

		need(sector_sound(w, d->seed, number),
		     "%s: sector %lu, which should have generation %lu, holds something else: "
		     "magic 0x%lx, seed %lu, number %lu, generation %lu",
		     d->path, number, gen, w[SECTOR_W_MAGIC], w[SECTOR_W_SEED], w[SECTOR_W_NUMBER],
		     w[SECTOR_W_GEN]);
		need(exact ? w[SECTOR_W_GEN] == gen : w[SECTOR_W_GEN] >= gen,
		     "%s: sector %lu has generation %lu, and should have %lu", d->path, number,
		     w[SECTOR_W_GEN], gen);
	}
}

void disk_check(const struct disk *d, uint64_t n, bool exact)
{
	size_t bytes = d->block * SECTOR_SIZE;
	uint64_t *gen = generations(d, n), *chunk = malloc(bytes);
	int fd = open(d->path, O_RDONLY | O_CLOEXEC);

	need(fd >= 0 && chunk, "%s: %s", d->path, strerror(errno));
	for (uint64_t c = 0; c < d->chunks; c++) {
		if (!gen[c])
			continue;
		need(pread(fd, chunk, bytes, (off_t)(c * bytes)) == (ssize_t)bytes,
		     "%s ends before chunk %lu", d->path, c);
		check_chunk(d, chunk, c, gen[c], exact);
	}
	close(fd);
	free(gen);
	free(chunk);
}

/* ---- guests ---- */

void disks_quit(struct proc *p, const struct disk *disks, unsigned n)
{
	uint64_t writes[8] = {0};
	const char *line;

	proc_send(p, "q");
	for (unsigned i = 0; i < n; i++) {
		line = proc_expect(p, "^virtio verify ", VERIFY_MS);
		ck_assert_uint_eq(kv(line, "disk"), i);
		ck_assert_uint_eq(kv(line, "errors"), 0);
		need(kv(line, "sectors") > 0, "nothing was verified: %s", line);
		writes[i] = kv(line, "n");
	}
	proc_expect(p, "^virtio done .* errors=0$", END_MS);
	proc_ended(p, 0, END_MS);
	for (unsigned i = 0; i < n; i++)
		disk_check(&disks[i], writes[i], true);
}

void disk_works(struct proc *p)
{
	uint64_t before, writes, until = harness_now_ms() + (uint64_t)harness_slow(WORK_MS);
	const char *line;

	proc_send(p, "r");
	line = proc_expect(p, "^virtio t_ms=", WORK_MS);
	before = kv(line, "writes");
	do {
		proc_send(p, "r");
		line = proc_expect(p, "^virtio t_ms=", WORK_MS);
		ck_assert_uint_eq(kv(line, "errors"), 0);
		writes = kv(line, "writes");
		need(harness_now_ms() < until, "its disk does not get on: %s", line);
	} while (writes < before + 100);
	/* One that was sent after that. */
	proc_expect(p, "^virtio durable ", WORK_MS);
	proc_expect(p, "^virtio durable ", WORK_MS);
}

void disk_in_use(const char *disk)
{
	struct proc *p = godwit_run(1, "run", "-n", "third", "-m", "32M", "-k", bare_elf("hello"),
				    "--disk", disk, NULL);
	const char *comma = strchr(disk, ',');
	char *real = realpath(
		harness_path("%.*s", comma ? (int)(comma - disk) : (int)strlen(disk), disk), NULL);

	need(real && strstr(p->err.buf, real) && strstr(p->err.buf, "in use"),
	     "does not say that %s is in use: '%s'", disk, p->err.buf);
	need(p->out.len == 0, "it ran: '%s'", p->out.buf);
	free(real);
}

void disk_is_free(const struct disk *d)
{
	struct disk fresh = *d;
	struct guest g;

	guest_start(&g, "fresh", "-m", "32M", "-k", bare_elf("virtio"), "--disk", d->path, "-p",
		    harness_path("seed=%lu rate=4M flush_every=16 report=0", d->seed + 1000), NULL);
	disks_ready(g.proc, &fresh, 1);
	ck_assert_uint_eq(fresh.seed, d->seed + 1000);
	proc_expect(g.proc, "^virtio durable ", WORK_MS);
	disks_quit(g.proc, &fresh, 1);
}
