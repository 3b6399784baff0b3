/* SPDX-License-Identifier: MIT */
/*
 * decode-stream on a real move that a relay has recorded: all of it is understood, and agrees with
 * what the source reports. And on the same with things changed in it, each of which is named with
 * the offset of the frame that it is in.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "faults.h"

#define DECODE_MS 30000

static struct scene scene;
static char name[64]; /* of the guest, as it leaves */

/* A guest's move, recorded; it runs on at the destination, and is ended. */
static struct relay *recorded(void)
{
	scene_start_with(&scene, "unix:", "ws=2M rate=8M", NULL);
	snprintf(name, sizeof(name), "%s", scene.g.name);
	scene.relay->record = true;
	scene_migrate(&scene);
	scene_report(&scene, 0, "");
	dest_owns(&scene);
	return scene.relay;
}

static const char *write_file(const char *file, const void *data, size_t len)
{
	const char *path = harness_path("%s/%s", harness_tmp(), file);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	const char *at = data;

	need(fd >= 0, "%s: %s", path, strerror(errno));
	while (len) {
		ssize_t n = write(fd, at, len);

		need(n > 0, "%s: %s", path, strerror(errno));
		at += n;
		len -= (size_t)n;
	}
	close(fd);
	return path;
}

/* Runs it to its end, which must have this exit status. */
static struct proc *decode(int status, const char *option, const char *path)
{
	const char *prog = harness_path("%s/build/tools/decode-stream", harness_root());
	struct proc *p = proc_start("decode", prog, option, path, NULL);

	proc_ended(p, status, DECODE_MS);
	return p;
}

static json_int_t number(const json_t *line, const char *member)
{
	return json_integer_value(json_object_get(line, member));
}

static bool is(const json_t *line, const char *member, const char *value)
{
	const char *text = json_string_value(json_object_get(line, member));

	return text && strcmp(text, value) == 0;
}

/* The next line that is of this type; offset (may be NULL) is then its own. */
static json_t *next_of(struct proc *p, const char *type)
{
	const char *text;

	while ((text = proc_next(p, 0))) {
		json_error_t why;
		json_t *line = json_loads(text, 0, &why);

		need(line, "no JSON: %s: %s", why.text, text);
		if (is(line, "type", type))
			return line;
		json_decref(line);
	}
	fail_test("no %s in what decode-stream says", type);
}

/* Is it there, once? */
static const json_t *section(const json_t *line, const char *tag, unsigned instance)
{
	const json_t *found = NULL, *s;
	size_t i;

	json_array_foreach(json_object_get(line, "sections"), i, s)
	{
		if (!is(s, "section", tag) || number(s, "instance") != (json_int_t)instance)
			continue;
		need(!found, "section %s %u came twice", tag, instance);
		found = s;
	}
	need(found, "no section %s %u", tag, instance);
	return found;
}

static unsigned count_takes(const struct relay *r, unsigned type)
{
	unsigned n = 0;

	for (unsigned i = 0; i < r->n_takes; i++)
		n += r->take[i].type == type;
	return n;
}

START_TEST(whole_move)
{
	static const char *const chips[] = {"irqchip", "pit", "clock", "run", "uart", "rtc"};
	struct relay *r = recorded();
	const char *path = write_file("stream", r->tape.data, r->tape.len);
	json_t *hello, *state, *end;
	json_int_t sent;
	struct proc *p = decode(0, "--json", path);

	need(p->err.len == 0, "%s", p->err.buf);
	hello = next_of(p, "HELLO");
	need(is(hello, "name", name), "name");
	need(number(hello, "ram") == 64 << 20 && number(hello, "vcpus") == 1, "machine");
	section(hello, "devices", 0);
	state = next_of(p, "STATE");
	section(state, "vcpu", 0);
	for (size_t i = 0; i < sizeof(chips) / sizeof(chips[0]); i++)
		section(state, chips[i], 0);
	json_decref(next_of(p, "PROOF"));
	json_decref(next_of(p, "COMMIT"));
	end = next_of(p, "end");

	/* What the source says that it did. */
	need(number(end, "rounds") == (json_int_t)scene.m.rounds, "%lld rounds, not %llu",
	     (long long)number(end, "rounds"), (unsigned long long)scene.m.rounds);
	sent = number(end, "plain") + number(end, "packed") + number(end, "delta") +
	       number(end, "copy");
	need(sent == (json_int_t)scene.m.sent, "%lld pages, not %llu", (long long)sent,
	     (unsigned long long)scene.m.sent);
	need(number(end, "batches") == (json_int_t)count_takes(r, WIRE_PAGES), "batches");
	/* The relay counts the prelude as one. */
	need(number(end, "frames") == (json_int_t)r->n_takes - 1, "frames");
	need(number(end, "offset") == (json_int_t)r->tape.len, "it does not end at the end");
	json_decref(hello);
	json_decref(state);
	json_decref(end);

	/* For people, with the fields that have names. */
	p = decode(0, "--sections", path);
	proc_expect(p, harness_path(" HELLO .*name=%s", name), 0);
	proc_expect(p, "section=config .*ram_size=67108864  vcpus=1", 0);
	proc_expect(p, "section=options .*connections=1", 0);
	proc_expect(p, " ROUND_END .*round=1", 0);
	proc_expect(p, "section=clock .*kvmclock_ns=[1-9]", 0);
	proc_expect(p, "section=run .*paused=0", 0);
	proc_expect(p, " COMMIT .*digest=", 0);
}
END_TEST

/* ---- damaged ones ---- */

static size_t offset_of(const struct relay *r, unsigned type)
{
	for (unsigned i = 0; i < r->n_takes; i++) {
		if (r->take[i].type == type)
			return r->take[i].at;
	}
	fail_test("no %s was recorded", relay_type_name(type));
}

static void need_named(struct relay *r, size_t len, size_t offset, const char *what)
{
	struct proc *p = decode(1, "--json", write_file("damaged", r->tape.data, len));
	json_t *end;

	proc_expect_err(p, harness_path("offset %zu: .*%s", offset, what), 0);
	end = next_of(p, "end");
	need(number(end, "problems") >= 1, "it counts no problem");
	json_decref(end);
}

static void flipped(struct relay *r, unsigned type, size_t at, const char *what)
{
	size_t offset = offset_of(r, type);

	r->tape.data[offset + at] ^= 0x10;
	need_named(r, r->tape.len, offset, what);
	r->tape.data[offset + at] ^= 0x10;
}

START_TEST(damaged)
{
	const size_t head = sizeof(struct wire_frame);
	struct relay *r = recorded();
	size_t state = offset_of(r, WIRE_STATE), commit = offset_of(r, WIRE_COMMIT);
	size_t pages = offset_of(r, WIRE_PAGES);
	struct wire_batch b;

	flipped(r, RELAY_PRELUDE, 1, "no recording of a migration");
	flipped(r, RELAY_PRELUDE, 10, "protocol of version");
	flipped(r, WIRE_HELLO, head + 40, "HELLO is damaged");
	flipped(r, WIRE_STATE, 0, "no frame");
	flipped(r, WIRE_STATE, 5, "unknown type");
	flipped(r, WIRE_STATE, 11, "are allowed");
	flipped(r, WIRE_STATE, 12, "has number");
	flipped(r, WIRE_STATE, head + 3000, "STATE is damaged");
	flipped(r, WIRE_PROOF, head + 5, "PROOF is damaged");
	flipped(r, WIRE_PAGES, head + sizeof(b), "PAGES is damaged");
	memcpy(&b, r->tape.data + pages + head, sizeof(b));
	if (b.n_data)
		flipped(r, WIRE_PAGES,
			head + sizeof(b) + b.n_descs * sizeof(struct wire_desc) + 100, "damaged");
	need_named(r, 10, 0, "ends within the prelude");
	need_named(r, state + 7, state, "ends within a frame's header");
	need_named(r, state + head + 100, state, "ends within STATE");
	/* Between two frames it is merely a move that went no further. */
	decode(0, "--json", write_file("short", r->tape.data, commit));
	decode(2, "--json", "/nowhere/at/all");
	decode(2, "--teapot", "/dev/null");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("decode");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_test(harness_case(s, "move", 60), whole_move);
	tcase_add_test(harness_case(s, "damaged", 120), damaged);
	return harness_main(s);
}
