/* SPDX-License-Identifier: MIT */
/*
 * Guests that this destination cannot or may not take, found out in the handshake: the source's
 * HELLO is changed on its way so that it describes such a guest. It is refused by name before a
 * page has moved and before any pause.
 */
#include <string.h>

#include "../../vmm/sbuf.h"
#include "faults.h"

/* The body of a section of HELLO. */
static uint8_t *section(struct relay_frame *f, const char *tag, size_t *len)
{
	struct sb_section sec;
	struct sbuf s, body;

	sb_init_load(&s, relay_payload(f), relay_payload_len(f));
	while (sb_section_next(&s, &sec, &body) > 0) {
		if (strcmp(sec.tag, tag) == 0) {
			*len = body.len;
			return body.data;
		}
	}
	fail_test("HELLO has no section %s", tag);
}

static void put64(uint8_t *at, uint64_t value)
{
	memcpy(at, &value, sizeof(value));
}

static void put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, sizeof(value));
}

/* config: name (a length and so many bytes), ram_size, vcpus, ... */
static uint8_t *after_name(struct relay_frame *f)
{
	size_t len;
	uint8_t *p = section(f, "config", &len);
	uint32_t n;

	memcpy(&n, p, sizeof(n));
	need(sizeof(n) + n + 12 < len, "a name of %u bytes", n);
	return p + sizeof(n) + n;
}

static void more_ram(struct relay_frame *f)
{
	put64(after_name(f), 1ULL << 62);
}

static void odd_ram(struct relay_frame *f)
{
	put64(after_name(f), (64ULL << 20) + 1);
}

static void no_ram(struct relay_frame *f)
{
	put64(after_name(f), 0);
}

static void more_cpus(struct relay_frame *f)
{
	put32(after_name(f) + 8, 1025);
}

static void no_cpus(struct relay_frame *f)
{
	put32(after_name(f) + 8, 0);
}

static void bad_name(struct relay_frame *f)
{
	size_t len;
	uint8_t *p = section(f, "config", &len);

	memcpy(p + 4, "..", 2);
}

static void other_vendor(struct relay_frame *f)
{
	size_t len;
	uint8_t *p = section(f, "cpuid", &len);

	/* The number of entries, then each: function, index, flags, eax, ebx, ... */
	memcpy(p + 4 + 16, "Zilo", 4);
}

static void other_device(struct relay_frame *f)
{
	size_t len;
	uint8_t *p = section(f, "devices", &len), *uart = memmem(p, len, "uart", 4);

	need(uart, "no uart among the devices");
	memcpy(uart, "tuba", 4);
}

static void newer_device(struct relay_frame *f)
{
	size_t len;
	uint8_t *p = section(f, "devices", &len), *uart = memmem(p, len, "uart", 4);

	need(uart, "no uart among the devices");
	/* After the tag: instance, version. */
	uart[8] = 99;
}

static void more_devices(struct relay_frame *f)
{
	size_t len;

	put32(section(f, "devices", &len), 200);
}

/* options: tsc_khz, hash_seed, ram_used, verify */
static void more_used(struct relay_frame *f)
{
	size_t len;

	put64(section(f, "options", &len) + 16, 1ULL << 50);
}

static void unknown_check(struct relay_frame *f)
{
	size_t len;

	section(f, "options", &len)[24] = 7;
}

static void unknown_section(struct relay_frame *f)
{
	memcpy(relay_payload(f), "teapot", 7);
}

static const struct {
	void (*change)(struct relay_frame *f);
	const char *error;
} hellos[] = {
	{more_ram, "refuses: 4 EiB of RAM|refuses: this host refuses"},
	{odd_ram, "refuses: RAM size 67108865"},
	{no_ram, "refuses: RAM size 0"},
	{more_cpus, "refuses: HELLO section config is malformed"},
	{no_cpus, "refuses: HELLO section config is malformed"},
	{other_vendor, "refuses: the guest was started on a CPU of vendor Zilo"},
	{other_device, "refuses: device tuba 0 of the guest is not here"},
	{newer_device, "refuses: device uart 0 has state version 99"},
	{more_devices, "refuses: "},
	{more_used, "refuses: the guest uses 1 PiB of memory, this host has"},
	{unknown_check, "refuses: .*a verification that this godwit does not know"},
	{unknown_section, "refuses: .*a section \"teapot\" that this godwit does not know"},
};
#define N_HELLOS ((int)(sizeof(hellos) / sizeof(hellos[0])))

static void change(void *arg, struct relay_frame *f)
{
	void (*const *fn)(struct relay_frame *) = arg;

	(*fn)(f);
}

static void through(struct scene *s, void (*fn)(struct relay_frame *f))
{
	relay_act(s->relay, (struct relay_act){.dir = TO_DEST,
					       .type = WIRE_HELLO,
					       .what = RELAY_EDIT,
					       .edit = change,
					       .arg = &fn,
					       .fix = true});
	scene_migrate(s);
	relay_wait(s->relay, 0, 10000);
}

static void nothing_began(struct scene *s)
{
	need(s->m.rounds == 0 && s->m.sent == 0 && s->m.downtime_ms <= 0, "%s",
	     json_dumps(s->m.json, 0));
	need(relay_seen(s->relay, TO_DEST, WIRE_PAGES) == 0, "%s", s->relay->trace);
}

START_TEST(refused)
{
	struct scene s;

	scene_start(&s, "unix:");
	through(&s, hellos[_i].change);
	scene_report(&s, 1, hellos[_i].error);
	nothing_began(&s);
	dest_refused(&s, "no guest came to run here: ");
	source_owns(&s);
}
END_TEST

/* A receiver without a name of its own takes the guest's, but not any. */
START_TEST(name_refused)
{
	struct scene s;

	scene_start(&s, "unix:");
	godwit_run(0, "cancel", s.d.name, NULL);
	dest_start(&s.d, NULL, "unix:", NULL);
	s.relay = relay_start("unix:", s.d.uri);
	through(&s, bad_name);
	scene_report(&s, 1, "refuses: the source gave its guest a malformed name");
	nothing_began(&s);
	dest_refused(&s, "malformed name");
	source_owns(&s);
}
END_TEST

/* Where the TSC cannot be scaled a guest of another frequency stays where it is. */
static void twice_the_tsc(struct relay_frame *f)
{
	size_t len;
	uint8_t *p = section(f, "options", &len);
	uint64_t khz;

	memcpy(&khz, p, sizeof(khz));
	put64(p, 2 * khz);
}

START_TEST(tsc_refused)
{
	struct proc *doctor = godwit_run(-1, "doctor", NULL);
	struct scene s;

	if (!strstr(doctor->out.buf, "no scaling"))
		harness_skip("this host scales TSCs");
	scene_start(&s, "unix:");
	through(&s, twice_the_tsc);
	scene_report(&s, 1, "refuses: the guest's TSC runs at [0-9]+ kHz, this host's at");
	nothing_began(&s);
	dest_refused(&s, "it cannot scale");
	source_owns(&s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("faults-hello");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_loop_test(harness_case(s, "refused", 60), refused, 0, N_HELLOS);
	tcase_add_test(harness_case(s, "name", 60), name_refused);
	tcase_add_test(harness_case(s, "tsc", 60), tsc_refused);
	return harness_main(s);
}
