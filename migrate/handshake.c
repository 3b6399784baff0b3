/* SPDX-License-Identifier: MIT */
#include "handshake.h"

#include <errno.h>
#include <string.h>

#include "state.h"

#define HELLO_VERSION 1U

static void options_fields(struct hello *h, struct sbuf *s)
{
	sb_u64(s, &h->tsc_khz);
	sb_u64(s, &h->hash_seed);
	sb_u64(s, &h->ram_used);
	sb_u8(s, &h->verify);
}

int hello_save(struct vm *vm, const struct migrate_options *opt, uint64_t hash_seed, struct sbuf *s,
	       struct errmsg *err)
{
	struct hello h = {
		.tsc_khz = vm->tsc_khz,
		.hash_seed = hash_seed,
		.ram_used = ram_used(&vm->ram),
		.verify = (uint8_t)opt->verify,
	};
	size_t mark;

	mark = sb_section_open(s, "config", 0, HELLO_VERSION, 0);
	vm_config_fields(&vm->cfg, s);
	sb_section_close(s, mark);
	mark = sb_section_open(s, "cpuid", 0, HELLO_VERSION, 0);
	cpuid_fields(&vm->cpuid, s);
	sb_section_close(s, mark);
	mark = sb_section_open(s, "options", 0, HELLO_VERSION, 0);
	options_fields(&h, s);
	sb_section_close(s, mark);
	mark = sb_section_open(s, "devices", 0, HELLO_VERSION, 0);
	state_device_list(vm, s, err);
	sb_section_close(s, mark);
	return s->err ? errmsg_set(err, s->err, "describing the machine: %s", strerror(-s->err))
		      : 0;
}

int hello_load(struct hello *h, const void *data, size_t len, struct errmsg *err)
{
	static const char *const tags[] = {"config", "cpuid", "options", "devices"};
	struct sb_section sec;
	struct sbuf s, body;
	unsigned seen = 0;
	int ret;

	memset(h, 0, sizeof(*h));
	sb_init_load(&s, data, len);
	while ((ret = sb_section_next(&s, &sec, &body)) > 0) {
		unsigned which = 0;

		while (which < ARRAY_SIZE(tags) && strcmp(sec.tag, tags[which]) != 0)
			which++;
		if (which == ARRAY_SIZE(tags)) {
			if (sec.flags & SB_OPTIONAL)
				continue;
			return errmsg_set(
				err, -ENOTSUP,
				"the source's HELLO has a section \"%s\" that this godwit "
				"does not know",
				sec.tag);
		}
		if (seen & 1U << which || sec.version != HELLO_VERSION)
			return errmsg_set(err, -EPROTO,
					  "HELLO section %s: twice, or of unknown version %u",
					  sec.tag, sec.version);
		seen |= 1U << which;
		switch (which) {
		case 0:
			vm_config_fields(&h->cfg, &body);
			break;
		case 1:
			cpuid_fields(&h->cpuid, &body);
			break;
		case 2:
			options_fields(h, &body);
			break;
		default:
			h->devices = body.data;
			h->devices_len = body.len;
			body.pos = body.len;
		}
		sb_end(&body);
		if (body.err)
			return errmsg_set(err, -EPROTO, "HELLO section %s is malformed", sec.tag);
	}
	if (ret || seen != (1U << ARRAY_SIZE(tags)) - 1)
		return errmsg_set(err, -EPROTO,
				  "the source's HELLO is malformed or lacks a section");
	if (h->verify > MIGRATE_VERIFY_FULL)
		return errmsg_set(
			err, -EPROTO,
			"the source asks for a verification that this godwit does not know");
	return 0;
}
