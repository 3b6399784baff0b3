/* SPDX-License-Identifier: MIT */
#include "faults.h"

#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define BOOT_MS 15000
#define ANSWER_MS 10000
#define MOVE_MS 30000
#define END_MS 10000
/* More than the guest's period of one second. */
#define SILENT_MS 1300

#define PAYLOAD_LINE "^(dirty|virtio) "

static void start_guest(struct scene *s, const char *cmdline)
{
	*s = (struct scene){.migrate = NULL};
	guest_start(&s->g, "vm", "-m", "64M", "-k", bare_elf("dirty"), "-p", cmdline, NULL);
	proc_fatal(s->g.proc, "^dirty (error|panic) ");
	guest_expect(&s->g, "^dirty ready ", BOOT_MS);
}

void scene_start(struct scene *s, const char *uri)
{
	start_guest(s, "ws=4M rate=8M");
	dest_start(&s->d, "vm-at-dest", uri, NULL);
	s->relay = relay_start(uri, s->d.uri);
}

void scene_start_with(struct scene *s, const char *uri, const char *cmdline, ...)
{
	const char *words[4] = {NULL};
	unsigned n = 0;
	va_list ap;

	start_guest(s, cmdline);
	va_start(ap, cmdline);
	while (n < 3 && (words[n] = va_arg(ap, const char *)))
		n++;
	va_end(ap);
	dest_start(&s->d, "vm-at-dest", uri, words[0], words[1], words[2], NULL);
	s->relay = relay_start(uri, s->d.uri);
}

void scene_migrate(struct scene *s)
{
	s->migrate = move_start(&s->g, s->relay->uri, "--connections=1", NULL);
}

static void need_match(const char *text, const char *regex, const char *what)
{
	regex_t re;
	int ret = regcomp(&re, regex, REG_EXTENDED | REG_NOSUB);

	need(ret == 0, "'%s'", regex);
	ret = regexec(&re, text, 0, NULL, 0);
	regfree(&re);
	need(ret == 0, "%s: '%s' is not like '%s'", what, text, regex);
}

void scene_report(struct scene *s, int exit_code, const char *error)
{
	move_report(s->migrate, exit_code, &s->m, MOVE_MS);
	relay_all_done(s->relay);
	if (exit_code)
		need_match(s->m.error, error, "error of migrate");
}

void guest_intact(struct proc *p)
{
	const char *line;

	proc_send(p, "v");
	line = proc_expect(p, "^dirty verify ", ANSWER_MS);
	need(kv(line, "errors") == 0, "%s", line);
	proc_send(p, "r");
	line = proc_expect(p, "^dirty t_ms=", ANSWER_MS);
	need(kv(line, "errors") == 0, "%s", line);
}

void guest_silent(struct proc *p)
{
	const char *line;

	/* What it said while it might. */
	while (proc_try(p, PAYLOAD_LINE, 20))
		;
	line = proc_try(p, PAYLOAD_LINE, SILENT_MS);
	need(!line, "%s runs and must not: '%s'", p->label, line);
}

/* Nothing but "listening" may have come out of a receiver whose guest never ran. */
static void said_nothing(struct proc *p)
{
	const char *line = proc_next(p, 0);

	need(!line, "%s let the guest run: '%s'", p->label, line);
}

void dest_refused(struct scene *s, const char *error)
{
	struct proc *p = s->d.proc;

	proc_ended(p, 1, END_MS);
	need_match(p->err.buf, error, "stderr of receive");
	said_nothing(p);
}

static bool is_listening(void *arg)
{
	const struct scene *s = arg;
	json_t *status = json_of(godwit_run(0, "status", "--json", s->d.name, NULL)->out.buf);

	return strcmp(json_text(status, "migration.phase"), "listening") == 0;
}

void dest_listens(struct scene *s)
{
	need(harness_until(is_listening, s, END_MS), "%s does not listen any more", s->d.name);
	godwit_run(0, "cancel", s->d.name, NULL);
	proc_ended(s->d.proc, 1, END_MS);
	said_nothing(s->d.proc);
}

void dest_dead(struct scene *s)
{
	proc_ended(s->d.proc, 128 + SIGKILL, END_MS);
	said_nothing(s->d.proc);
}

void source_owns(struct scene *s)
{
	json_t *status = guest_status(&s->g);

	need(strcmp(json_text(status, "state"), "running") == 0, "state '%s'",
	     json_text(status, "state"));
	guest_intact(s->g.proc);
	guest_move(&s->g, NULL, "unix:", NULL);
	guest_send(&s->g, "q");
	guest_expect(&s->g, "^dirty done .* errors=0$", ANSWER_MS);
	guest_ended(&s->g, 0, END_MS);
}

void dest_owns(struct scene *s)
{
	struct proc *p = s->d.proc;

	guest_intact(p);
	proc_send(p, "q");
	proc_expect(p, "^dirty done .* errors=0$", ANSWER_MS);
	proc_ended(p, 0, END_MS);
}

void source_uncertain(struct scene *s)
{
	json_t *status = guest_status(&s->g);
	struct proc *p;

	need(strcmp(json_text(status, "state"), "uncertain") == 0, "state '%s'",
	     json_text(status, "state"));
	need(strcmp(json_text(status, "migration.status"), "uncertain") == 0, "'%s'",
	     json_text(status, "migration.status"));
	guest_silent(s->g.proc);
	p = godwit_run(1, "resume", s->g.name, NULL);
	need_match(p->err.buf, "resolve .* --run", "stderr of resume");
	p = godwit_run(2, "resolve", s->g.name, NULL);
	need_match(p->err.buf, "--run if .* or --discard if", "stderr of resolve");
	p = godwit_run(1, "migrate", s->g.name, s->relay->uri, "--connections=1", NULL);
	need_match(p->err.buf, "uncertain", "stderr of a second migrate");
	guest_silent(s->g.proc);
}

void force_resume(struct scene *s)
{
	struct proc *p;

	godwit_run(0, "resolve", "--run", s->g.name, NULL);
	p = godwit_run(1, "resolve", "--discard", s->g.name, NULL);
	need_match(p->err.buf, "nothing to resolve: it is running here", "stderr of resolve");
	guest_intact(s->g.proc);
	guest_send(&s->g, "q");
	guest_expect(&s->g, "^dirty done .* errors=0$", ANSWER_MS);
	guest_ended(&s->g, 0, END_MS);
}
