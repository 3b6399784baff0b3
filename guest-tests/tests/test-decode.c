/* SPDX-License-Identifier: MIT */
/*
 * decode-stream on a real move that a relay has recorded: all of it is understood, and agrees with
 * what the source reports and with what the guest is known to have in its registers and devices.
 * And on the same with things changed in it, each of which is named with the offset of the frame
 * that it is in.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../vmm/sbuf.h"
#include "disks.h"
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

static struct proc *decode_fields(int status, const char *path)
{
	const char *prog = harness_path("%s/build/tools/decode-stream", harness_root());
	struct proc *p = proc_start("decode", prog, "--sections", "--json", path, NULL);

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

/* A field of it, which may be a number, true or false, or a number in hex. */
static uint64_t field(const json_t *section, const char *what)
{
	const json_t *value = json_object_get(json_object_get(section, "fields"), what);

	need(value, "no field %s in %s", what,
	     json_string_value(json_object_get(section, "section")));
	if (json_is_boolean(value))
		return json_is_true(value);
	if (json_is_integer(value))
		return (uint64_t)json_integer_value(value);
	need(strncmp(json_string_value(value), "0x", 2) == 0, "%s is %s", what,
	     json_string_value(value));
	return strtoull(json_string_value(value), NULL, 16);
}

/* Where the program of an ELF file is in memory. */
static bool is_code(const char *elf, uint64_t addr)
{
	FILE *f = fopen(elf, "re");
	Elf64_Ehdr eh;
	Elf64_Phdr ph;
	bool found = false;

	need(f && fread(&eh, sizeof(eh), 1, f) == 1, "%s: %s", elf, strerror(errno));
	need(fseek(f, (long)eh.e_phoff, SEEK_SET) == 0, "%s: %s", elf, strerror(errno));
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		need(fread(&ph, sizeof(ph), 1, f) == 1, "%s: %s", elf, strerror(errno));
		found |= ph.p_type == PT_LOAD && (ph.p_flags & PF_X) && addr >= ph.p_vaddr &&
			 addr < ph.p_vaddr + ph.p_memsz;
	}
	fclose(f);
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

	/* For people, with all that there is in sections. */
	p = decode(0, "--sections", path);
	proc_expect(p, harness_path(" HELLO .*name=%s", name), 0);
	proc_expect(p, "section=config ", 0);
	proc_expect(p, "^ +name=.*ram_size=67108864  vcpus=1", 0);
	proc_expect(p, "section=options ", 0);
	proc_expect(p, "^ .*connections=1 ", 0);
	proc_expect(p, " ROUND_END .*round=1", 0);
	proc_expect(p, " STATE ", 0);
	proc_expect(p, "section=vcpu  instance=0", 0);
	proc_expect(p, "^ .*rip=0x", 0);
	proc_expect(p, "^ .*lapic\\[0x30\\]=0x", 0);
	proc_expect(p, "section=clock ", 0);
	proc_expect(p, "^ .*kvmclock_ns=[1-9]", 0);
	proc_expect(p, "section=run ", 0);
	proc_expect(p, "^ +paused=0", 0);
	proc_expect(p, " COMMIT .*digest=", 0);
}
END_TEST

/* ---- what the machine held ---- */

static void need_cpu(const json_t *vcpu, const char *payload, uint64_t ram)
{
	uint64_t cr3 = field(vcpu, "cr3");

	need(is_code(bare_elf(payload), field(vcpu, "rip")), "rip %#llx is not in %s.elf",
	     (unsigned long long)field(vcpu, "rip"), payload);
	need(field(vcpu, "rsp") > 0 && field(vcpu, "rsp") < ram, "rsp");
	need(cr3 > 0 && cr3 < ram && cr3 % 4096 == 0, "cr3 %#llx", (unsigned long long)cr3);
	/* 64-bit code with paging: PE and PG, LME and LMA; the APIC where it always is. */
	need((field(vcpu, "cr0") & 0x80000001) == 0x80000001, "cr0");
	need((field(vcpu, "efer") & 0x500) == 0x500, "efer");
	need(field(vcpu, "cs.l") == 1 && field(vcpu, "cs.present") == 1, "cs");
	need((field(vcpu, "apic_base") & ~0xfffULL) == 0xfee00000, "apic_base");
	/* Its version register, and the memory types that come with a CPU's reset. */
	need((field(vcpu, "lapic[0x30]") & 0xf0) == 0x10, "lapic[0x30]");
	need(field(vcpu, "msr[0x277]") != 0, "msr[0x277]");
}

static void need_queue(const json_t *device, unsigned queue, uint64_t ram)
{
	const char *const parts[] = {"desc", "avail", "used"};
	uint64_t size = field(device, harness_path("queue[%u].size", queue));

	need(field(device, harness_path("queue[%u].ready", queue)) == 1, "queue %u", queue);
	need(size > 0 && size <= 1024 && (size & (size - 1)) == 0, "a queue of %llu",
	     (unsigned long long)size);
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		uint64_t at = field(device, harness_path("queue[%u].%s", queue, parts[i]));

		need(at > 0 && at < ram, "queue[%u].%s = %#llx", queue, parts[i],
		     (unsigned long long)at);
	}
}

/* A machine with every device that needs nothing else of the host. */
START_TEST(fields)
{
	static const char *const tags[] = {"i8042",	     "rtc",	     "uart",
					   "acpi-pm",	     "virtio-mmio",  "virtio-blk",
					   "virtio-console", "virtio-vsock", "virtio-rng",
					   "virtio-balloon"};
	const uint64_t ram = 32 << 20;
	struct disk disk = {.path = disk_new("disk", 2 << 20)};
	const json_t *s;
	struct guest g;
	struct dest d;
	struct move m;
	struct relay *r;
	struct proc *p;
	json_t *hello, *state;
	size_t i;

	guest_start(&g, "vm", "-m", "32M", "-c", "2", "-k", bare_elf("virtio"), "--disk", disk.path,
		    "--console", harness_path("%s/console", harness_tmp()), "--vsock",
		    harness_path("%s/vsock", harness_tmp()), "--rng", "--balloon", "-p",
		    "rate=4M flush_every=16 report=0", NULL);
	disks_ready(g.proc, &disk, 1);
	guest_expect(&g, "^virtio durable ", 20000);
	dest_start(&d, "vm-1", "unix:", NULL);
	r = relay_start("unix:", d.uri);
	r->record = true;
	move_report(move_start(&g, r->uri, "--connections=1", NULL), 0, &m, 40000);
	guest_moved(&g, &d);
	disks_quit(g.proc, &disk, 1);

	p = decode_fields(0, write_file("stream", r->tape.data, r->tape.len));
	need(p->err.len == 0, "%s", p->err.buf);
	hello = next_of(p, "HELLO");
	s = section(hello, "config", 0);
	need(field(s, "vcpus") == 2 && field(s, "n_disks") == 1 && field(s, "rng") == 1, "config");
	need(strcmp(json_string_value(
			    json_object_get(json_object_get(s, "fields"), "disk[0].path")),
		    disk.path) == 0,
	     "disk[0].path");
	need(field(section(hello, "cpuid", 0), "leaf[0].eax") > 0, "cpuid");
	s = section(hello, "devices", 0);
	/* Four of the board, and five with a transport each, of which the disk is the first. */
	need(field(s, "devices") == 14, "%llu devices", (unsigned long long)field(s, "devices"));
	need(field(s, "device[4].size") == 2 << 20 && field(s, "device[4].max[0]") > 0, "disk");
	state = next_of(p, "STATE");
	need_cpu(section(state, "vcpu", 0), "virtio", ram);
	/* It was never started: it waits for the first CPU to do so (KVM_MP_STATE_*). */
	need(field(section(state, "vcpu", 1), "mp_state") == 1, "vcpu 1");
	for (i = 0; i < sizeof(tags) / sizeof(tags[0]); i++)
		section(state, tags[i], 0);
	json_array_foreach(json_object_get(state, "sections"), i, s)
		need(json_object_size(json_object_get(s, "fields")) > 0, "%s has no fields",
		     json_string_value(json_object_get(s, "section")));
	/* 8 bits, no parity, and the divisor not in the way: what the payload sets. */
	need(field(section(state, "uart", 0), "lcr") == 3, "lcr");
	s = section(state, "virtio-blk", 0);
	need(field(s, "status") == 0xf, "status of the disk");
	need(field(s, "features") & 1ULL << 32, "VERSION_1");
	need_queue(s, 0, ram);
	need(field(s, "queue[0].next_avail") == field(s, "queue[0].next_used"),
	     "a disk that is at rest has requests");
	need_queue(section(state, "virtio-rng", 0), 0, ram);
	/* Nobody has set this one up. */
	s = section(state, "virtio-vsock", 0);
	need(field(s, "status") == 0 && field(s, "queue[2].ready") == 0, "vsock");
	json_decref(hello);
	json_decref(state);
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

/* The frame is whole, but what it says cannot be. */
static void wrong_field(struct relay *r, size_t at, uint8_t value, const char *what)
{
	size_t offset = offset_of(r, WIRE_STATE);
	struct relay_frame f = {.type = WIRE_STATE, .bytes = r->tape.data + offset};
	uint8_t old = f.bytes[at];

	for (unsigned i = 0; i < r->n_takes; i++) {
		if (r->take[i].at == offset)
			f.len = r->take[i].len;
	}
	f.bytes[at] = value;
	relay_fix(&f);
	need_named(r, r->tape.len, offset, what);
	f.bytes[at] = old;
	relay_fix(&f);
}

/* Where the section's header is in STATE's frame. */
static size_t section_at(const struct relay *r, const char *tag)
{
	const uint8_t *frame = r->tape.data + offset_of(r, WIRE_STATE);
	const struct wire_frame *head = (const void *)frame;
	struct sb_section sec;
	struct sbuf s, body;

	sb_init_load(&s, frame + sizeof(*head), head->length);
	while (sb_section_next(&s, &sec, &body) > 0) {
		if (strcmp(sec.tag, tag) == 0)
			return (size_t)(body.data - frame) - SB_SECTION_HEADER;
	}
	fail_test("no section %s", tag);
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
	wrong_field(r, section_at(r, "run") + SB_SECTION_HEADER, 7,
		    "state section run 0 is malformed at byte 1, after its beginning");
	wrong_field(r, section_at(r, "uart") + SB_SECTION_HEADER + 8, 7,
		    "state section uart 0 is malformed at byte 9, after fcr");
	wrong_field(r, section_at(r, "rtc"), 'x', "state section xtc 0: no machine has");
	wrong_field(r, section_at(r, "pit") + 20, 9, "state section pit 0: it has version 9");
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
	tcase_add_test(harness_case(s, "fields", 120), fields);
	tcase_add_test(harness_case(s, "damaged", 120), damaged);
	return harness_main(s);
}
