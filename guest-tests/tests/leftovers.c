/* SPDX-License-Identifier: MIT */
#include "leftovers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SOON_MS 5000
#define MAX_LINES 256

void leftovers_begin(void)
{
	need(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "%s", strerror(errno));
}

/* ---- what a process holds ---- */

struct lines {
	const char *line[MAX_LINES];
	unsigned n;
};

static void add(struct lines *l, const char *text)
{
	need(l->n < MAX_LINES, "more than %d descriptors and threads", MAX_LINES);
	l->line[l->n++] = text;
}

/* Of "socket:[4711]" the number differs, of RUNDIR/NAME.lock the name; other things have names. */
static void add_fd(struct lines *l, const char *path, const char *but)
{
	const char *rundir = getenv("GODWIT_RUNDIR");
	char what[512];
	ssize_t n = readlink(path, what, sizeof(what) - 1);

	if (n < 0)
		return; /* closed meanwhile */
	what[n] = '\0';
	if (strncmp(what, "socket:", 7) == 0 || strncmp(what, "pipe:", 5) == 0)
		*strchr(what, ':') = '\0';
	else if (rundir && strncmp(what, rundir, strlen(rundir)) == 0)
		snprintf(what, sizeof(what), "the lock of its name");
	if (!but || strcmp(what, but) != 0)
		add(l, harness_path("%s", what));
}

/* One but the first that is still called like it has just begun: the kernel's, or ours. */
static void add_thread(struct lines *l, const char *path, bool first)
{
	FILE *f = fopen(harness_path("%s/comm", path), "r");
	char name[32] = "";

	if (!f)
		return; /* ended meanwhile */
	if (fgets(name, sizeof(name), f) && strncmp(name, "iou-", 4) != 0 &&
	    (first || strncmp(name, "godwit", 6) != 0)) {
		name[strcspn(name, "\n")] = '\0';
		add(l, harness_path("thread %s", name));
	}
	fclose(f);
}

static void add_all(struct lines *l, pid_t pid, const char *of, const char *but)
{
	const char *folder = harness_path("/proc/%d/%s", (int)pid, of);
	DIR *dir = opendir(folder);
	struct dirent *e;

	need(dir, "%s: %s", folder, strerror(errno));
	while ((e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		if (strcmp(of, "fd") == 0)
			add_fd(l, harness_path("%s/%s", folder, e->d_name), but);
		else
			add_thread(l, harness_path("%s/%s", folder, e->d_name),
				   atoi(e->d_name) == pid);
	}
	closedir(dir);
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

const char *holdings(const struct proc *p, const char *but)
{
	struct lines l = {.n = 0};
	const char *text = "";

	add_all(&l, p->pid, "fd", but);
	add_all(&l, p->pid, "task", NULL);
	qsort(l.line, l.n, sizeof(*l.line), compare);
	for (unsigned i = 0; i < l.n; i++)
		text = harness_path("%s%s\n", text, l.line[i]);
	return text;
}

struct wish {
	const struct proc *p;
	const char *before, *now, *but;
};

static bool is_as_before(void *arg)
{
	struct wish *w = arg;

	w->now = holdings(w->p, w->but);
	return strcmp(w->now, w->before) == 0;
}

void holds_again(const struct proc *p, const char *before, const char *but)
{
	struct wish w = {.p = p, .before = before, .but = but};

	need(harness_until(is_as_before, &w, SOON_MS), "%s held this:\n%sand now this:\n%s",
	     p->label, before, w.now);
}

/* ---- what is left ---- */

static bool no_child(void *arg)
{
	(void)arg;
	return waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD;
}

void no_process_left(void)
{
	need(harness_until(no_child, NULL, SOON_MS), "a process is left behind");
}

/* The first thing in it whose name does not match; NULL: there is none. */
static const char *other_in(const char *path, const char *regex)
{
	DIR *dir = opendir(path);
	const char *found = NULL;
	struct dirent *e;
	regex_t re;

	need(regcomp(&re, regex, REG_EXTENDED | REG_NOSUB) == 0, "'%s'", regex);
	need(dir, "%s: %s", path, strerror(errno));
	while (!found && (e = readdir(dir))) {
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
		    regexec(&re, e->d_name, 0, NULL, 0) != 0)
			found = harness_path("%s", e->d_name);
	}
	closedir(dir);
	regfree(&re);
	return found;
}

void folder_holds_only(const char *path, const char *regex)
{
	const char *other = other_in(path, regex);

	need(!other, "%s/%s is left behind", path, other);
}

bool folder_is_empty(const char *path)
{
	return !other_in(path, "^$");
}

bool image_is_free(const char *path)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd = open(path, O_RDWR | O_CLOEXEC), ret;

	need(fd >= 0, "%s: %s", path, strerror(errno));
	ret = fcntl(fd, F_OFD_SETLK, &fl);
	close(fd);
	return ret == 0;
}
