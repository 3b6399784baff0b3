/* SPDX-License-Identifier: MIT */
/*
 * Guests that are a whole Debian, from scripts/guest-image, and shells in them: at the serial line
 * or over ssh. For test-linux-debian.c and test-linux-disk.c.
 *
 * Environment: GODWIT_TEST_DISK  a copy of the image that is the test's own, such as a block device
 *                                (a new copy in the scratch folder)
 */
#ifndef GODWIT_TEST_DEBIAN_H
#define GODWIT_TEST_DEBIAN_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

#define DEB_LOGIN_MS 90000
#define DEB_RUN_MS 30000
#define DEB_END_MS 60000
#define DEB_CMDLINE "root=/dev/vda console=ttyS0 quiet mitigations=off panic=-1"

/* What guest-image has made: "vmlinuz-6.1" and so on. */
static inline const char *deb_file(const char *name)
{
	const char *path = harness_path("%s/build/images/%s", harness_root(), name);

	if (access(path, R_OK))
		fail_test("%s is not there: scripts/guest-image makes it", path);
	return path;
}

/* A disk to write to. */
static inline const char *deb_disk(void)
{
	const char *given = getenv("GODWIT_TEST_DISK"), *path;

	if (given && *given) {
		need(access(given, R_OK | W_OK) == 0, "GODWIT_TEST_DISK: %s cannot be written to",
		     given);
		return given;
	}
	path = harness_path("%s/debian.img", harness_tmp());
	proc_ended(proc_start("guest-image", harness_path("%s/scripts/guest-image", harness_root()),
			      "-o", path, NULL),
		   0, 120000);
	return path;
}

/* ---- text without line ends: prompts ---- */

struct deb_prompt {
	struct proc *p;
	const char *text;
};

static inline bool deb_prompted(void *arg)
{
	struct deb_prompt *s = arg;
	struct stream *out = &s->p->out;
	char *found = out->buf ? memmem(out->buf + out->taken, out->len - out->taken, s->text,
					strlen(s->text))
			       : NULL;

	if (found)
		out->taken = (size_t)(found - out->buf) + strlen(s->text);
	return found || out->fd < 0;
}

static inline void deb_prompt(struct proc *p, const char *text, int timeout_ms)
{
	struct deb_prompt s = {p, text};
	size_t before = p->out.taken;

	need(harness_until(deb_prompted, &s, timeout_ms) && p->out.taken > before,
	     "%s: no '%s' within %d ms", p->label, text, harness_slow(timeout_ms));
}

/* ---- shells ---- */

/*
 * Runs words of a shell, which reads commands from p's input, and gives what they print on either
 * output, without newlines at the end. They must end with this exit status (-1: any).
 */
static inline const char *deb_run(struct proc *p, int status, int timeout_ms, const char *words)
{
	static unsigned number;
	size_t from = p->out.taken, len;
	const char *line;
	int got;

	number++;
	/* Not what an echo of these words by the terminal would look like. */
	proc_send(p, harness_path("{ %s\n} </dev/null 2>&1; rc=$?; echo; echo \"@%u= $rc\"\n",
				  words, number));
	line = proc_expect(p, harness_path("^@%u= [0-9]+$", number), timeout_ms);
	got = atoi(strchr(line, ' '));
	len = (size_t)((char *)memmem(p->out.buf + from, p->out.len - from,
				      harness_path("@%u= ", number),
				      strlen(harness_path("@%u= ", number))) -
		       (p->out.buf + from));
	while (len > 0 && p->out.buf[from + len - 1] == '\n')
		len--;
	line = harness_path("%.*s", (int)len, p->out.buf + from);
	need(status < 0 || got == status, "%s: '%s' ends with %d and says: %s", p->label, words,
	     got, line);
	return line;
}

/* Up to the prompt and in, at a terminal; from there on deb_run() works. */
static inline void deb_login(struct proc *p)
{
	deb_prompt(p, "login: ", DEB_LOGIN_MS);
	proc_send(p, "root\n");
	deb_prompt(p, "# ", DEB_RUN_MS);
	/* Neither line editing nor echo: what comes is what was asked for. */
	proc_send(p, "stty -echo -onlcr; PS1= PS2= exec sh\n");
	/* What has been echoed or prompted until now is passed over. */
	deb_run(p, 0, DEB_RUN_MS, ":");
}

/* After poweroff: godwit has ended well, and left a file system that nothing is wrong with. */
static inline void deb_ended(struct guest *g, const char *disk)
{
	guest_ended(g, 0, DEB_END_MS);
	setenv("PATH", harness_path("%s:/usr/sbin:/sbin", getenv("PATH")), 1);
	proc_ended(proc_start("e2fsck", "e2fsck", "-fn", disk, NULL), 0, 60000);
}

#endif
