/* SPDX-License-Identifier: MIT */
/*
 * The churn worker: address spaces that come and go while the machine moves.
 *
 * A round forks a child that shares the worker's pages copy-on-write; both check what they
 * inherited, write over pages the other still has, and check that the other's writes do not show.
 * Every second child then replaces itself (exec of this same program) and exercises a fresh
 * address space: fill, grow and move, unmap, check. It answers by its exit status, which depends
 * on the round.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "content.h"
#include "work.h"

#define PAGES 64u
#define ROUND_PAGES 8u
#define CHILD_PAGES 32u
#define OWNER 62u
#define STATUS_WRONG 1

struct churn {
	uint64_t *words;
	uint64_t gens[PAGES];
	uint64_t want[PAGE_WORDS];
	uint64_t rng;
};

/* 16 to 115: not a status that a shell, a signal or a failed exec gives. */
static int status_of(uint64_t seed, uint64_t round)
{
	return 16 + (int)(mix(seed ^ round) % 100);
}

static void page_make(struct churn *c, uint64_t seed, unsigned int page, uint64_t gen)
{
	content_make(c->words + page * PAGE_WORDS, PAGE_WORDS, stamp_make(OWNER, page, gen), 0,
		     seed);
	c->gens[page] = gen;
}

static bool page_holds(struct churn *c, uint64_t seed, unsigned int page)
{
	content_make(c->want, PAGE_WORDS, stamp_make(OWNER, page, c->gens[page]), 0, seed);
	return memcmp(c->want, c->words + page * PAGE_WORDS, PAGE_BYTES) == 0;
}

static uint64_t all_verify(struct worker *w)
{
	struct churn *c = w->data;
	char text[300];

	for (unsigned int page = 0; page < PAGES; page++) {
		add(&w->slot->pages, 1);
		if (page_holds(c, w->sh->seed, page))
			continue;
		content_explain(c->words + page * PAGE_WORDS, c->want, PAGE_WORDS, w->sh->seed,
				text, sizeof(text));
		worker_error(w, "page %u of %u: %s", page, PAGES, text);
		page_make(c, w->sh->seed, page, c->gens[page]);
	}
	return PAGES;
}

/* In the forked child: c is a copy; what it does to it must stay with it. */
static void child(struct worker *w, struct churn *c, uint64_t round, uint64_t first)
{
	char seed_text[32], round_text[32];
	char *argv[] = {(char[]){"init"}, (char[]){CHURN_ARG}, seed_text, round_text, NULL};
	char *envp[] = {NULL};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (unsigned int i = 0; i < 2 * ROUND_PAGES; i++) {
		if (!page_holds(c, w->sh->seed, (unsigned int)((first + i) % PAGES)))
			_exit(STATUS_WRONG);
	}
	for (unsigned int i = 0; i < ROUND_PAGES; i++)
		page_make(c, w->sh->seed, (unsigned int)((first + i) % PAGES), ~round);
	for (unsigned int i = 0; i < 2 * ROUND_PAGES; i++) {
		if (!page_holds(c, w->sh->seed, (unsigned int)((first + i) % PAGES)))
			_exit(STATUS_WRONG);
	}
	if (round % 2) {
		snprintf(seed_text, sizeof(seed_text), "%llu", (unsigned long long)w->sh->seed);
		snprintf(round_text, sizeof(round_text), "%llu", (unsigned long long)round);
		execve("/proc/self/exe", argv, envp);
		_exit(STATUS_WRONG);
	}
	_exit(status_of(w->sh->seed, round));
}

int churn_child(int argc, char **argv)
{
	static uint64_t want[PAGE_WORDS];
	uint64_t seed, round, *words, *moved;

	if (argc != 4)
		return STATUS_WRONG;
	seed = strtoull(argv[2], NULL, 10);
	round = strtoull(argv[3], NULL, 10);
	words = mmap(NULL, CHILD_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (words == MAP_FAILED)
		return STATUS_WRONG;
	for (unsigned int i = 0; i < CHILD_PAGES; i++)
		content_make(words + i * PAGE_WORDS, PAGE_WORDS, stamp_make(OWNER, i, round), 0,
			     seed);
	moved = mremap(words, CHILD_PAGES * PAGE_BYTES, 2 * CHILD_PAGES * PAGE_BYTES,
		       MREMAP_MAYMOVE);
	if (moved == MAP_FAILED)
		return STATUS_WRONG;
	if (munmap(moved, ROUND_PAGES * PAGE_BYTES) < 0)
		return STATUS_WRONG;
	for (unsigned int i = ROUND_PAGES; i < 2 * CHILD_PAGES; i++) {
		content_make(want, PAGE_WORDS, i < CHILD_PAGES ? stamp_make(OWNER, i, round) : 0, 0,
			     seed);
		if (memcmp(want, moved + i * PAGE_WORDS, PAGE_BYTES) != 0)
			return STATUS_WRONG;
	}
	return status_of(seed, round);
}

static void round_run(struct worker *w, struct churn *c, uint64_t round)
{
	uint64_t first = rng_next(&c->rng) >> 32;
	int status = 0;
	pid_t pid;

	for (unsigned int i = 0; i < ROUND_PAGES; i++)
		page_make(c, w->sh->seed, (unsigned int)((first + i) % PAGES), round);
	if (worker_fault(w, FAULT_COW))
		c->words[first % PAGES * PAGE_WORDS + 7] ^= 1;
	pid = fork();
	if (pid < 0) {
		worker_error(w, "fork: %s", strerror(errno));
		return;
	}
	if (pid == 0)
		child(w, c, round, first);
	for (unsigned int i = 0; i < ROUND_PAGES; i++)
		page_make(c, w->sh->seed, (unsigned int)((first + ROUND_PAGES + i) % PAGES), round);
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			worker_die(w, "waitpid");
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != status_of(w->sh->seed, round))
		worker_error(w,
			     "child of round %llu ended with wait status 0x%x, must exit with %d",
			     (unsigned long long)round, (unsigned int)status,
			     status_of(w->sh->seed, round));
	else
		add(&w->slot->execs, 1);
	all_verify(w);
}

void work_churn(struct worker *w)
{
	struct churn *c = worker_map(w, sizeof(*c));

	c->words = worker_map(w, PAGES * PAGE_BYTES);
	c->rng = mix(w->sh->seed + OWNER) | 1;
	for (unsigned int page = 0; page < PAGES; page++)
		page_make(c, w->sh->seed, page, 0);
	w->data = c;
	w->verify = all_verify;
	for (uint64_t round = 1;; round++) {
		worker_turn(w);
		round_run(w, c, round);
		worker_rest(w, w->opt->churn_ms * 1000);
	}
}
