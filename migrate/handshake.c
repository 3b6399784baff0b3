/* SPDX-License-Identifier: MIT */
#include "handshake.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

#define HELLO_VERSION 1U
#define RAM_BEYOND_REASON 16U /* times all the memory that the host has */

static void msrs_fields(struct hello *h, struct sbuf *s)
{
	sb_u32_range(s, &h->n_msrs, 0, VCPU_MSRS_MAX);
	for (uint32_t i = 0; i < h->n_msrs && !s->err; i++) {
		sb_index(s, i);
		sb_x32(s, &h->msr[i]);
	}
}

static void save_msrs(struct vm *vm, struct hello *h, struct sbuf *s)
{
	uint32_t *index = NULL;
	/* The first one speaks for all: they run the same kernel. */
	int ret = vcpu_msrs_in_use(&vm->vcpu[0], &index, &h->n_msrs);

	if (ret) {
		sb_fail(s, ret);
		return;
	}
	h->n_msrs = MIN(h->n_msrs, VCPU_MSRS_MAX);
	memcpy(h->msr, index, h->n_msrs * sizeof(*index));
	free(index);
	msrs_fields(h, s);
}

static void options_fields(struct hello *h, struct sbuf *s)
{
	sb_u64(s, &h->tsc_khz);
	sb_x64(s, &h->hash_seed);
	sb_u64(s, &h->ram_used);
	sb_u8(s, &h->verify);
	sb_u32_range(s, &h->connections, 1, MIGRATE_CONNECTIONS_MAX);
	sb_u32(s, &h->rounds);
}

int hello_save(struct vm *vm, const struct migrate_options *opt, uint64_t hash_seed,
	       uint32_t rounds, struct sbuf *s, struct errmsg *err)
{
	struct hello *h = calloc(1, sizeof(*h));
	size_t mark;

	if (!h)
		return errmsg_set(err, -ENOMEM, "no memory for the handshake");
	h->tsc_khz = vm->tsc_khz;
	h->hash_seed = hash_seed;
	h->ram_used = ram_used(&vm->ram);
	h->verify = (uint8_t)opt->verify;
	h->connections = MAX(opt->connections, 1U);
	h->rounds = rounds;

	mark = sb_section_open(s, "config", 0, HELLO_VERSION, 0);
	vm_config_fields(&vm->cfg, s);
	sb_section_close(s, mark);
	mark = sb_section_open(s, "cpuid", 0, HELLO_VERSION, 0);
	cpuid_fields(&vm->cpuid, s);
	sb_section_close(s, mark);
	mark = sb_section_open(s, "options", 0, HELLO_VERSION, 0);
	options_fields(h, s);
	sb_section_close(s, mark);
	mark = sb_section_open(s, "msrs", 0, HELLO_VERSION, 0);
	save_msrs(vm, h, s);
	sb_section_close(s, mark);
	mark = sb_section_open(s, "devices", 0, HELLO_VERSION, 0);
	state_device_list(vm, s, err);
	sb_section_close(s, mark);
	free(h);
	return s->err ? errmsg_set(err, s->err, "describing the machine: %s", strerror(-s->err))
		      : 0;
}

#define SECTION_DEVICES 4
static const char *const tags[] = {"config", "cpuid", "options",
				   "msrs", [SECTION_DEVICES] = "devices"};

/* ARRAY_SIZE(tags): of no section that is known. */
static unsigned which_section(const char *tag)
{
	unsigned which = 0;

	while (which < ARRAY_SIZE(tags) && strcmp(tag, tags[which]) != 0)
		which++;
	return which;
}

static void load_section(struct hello *h, unsigned which, struct sbuf *body)
{
	switch (which) {
	case 0:
		vm_config_fields(&h->cfg, body);
		break;
	case 1:
		cpuid_fields(&h->cpuid, body);
		break;
	case 2:
		options_fields(h, body);
		break;
	case 3:
		msrs_fields(h, body);
		break;
	case SECTION_DEVICES:
		h->devices = body->data;
		h->devices_len = body->len;
		if (!sb_looking(body))
			body->pos = body->len;
		break;
	default:
		break;
	}
	sb_end(body);
}

int hello_load(struct hello *h, const void *data, size_t len, struct errmsg *err)
{
	struct sb_section sec;
	struct sbuf s, body;
	unsigned seen = 0;
	int ret;

	memset(h, 0, sizeof(*h));
	sb_init_load(&s, data, len);
	while ((ret = sb_section_next(&s, &sec, &body)) > 0) {
		unsigned which = which_section(sec.tag);

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
		load_section(h, which, &body);
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

int hello_look(struct hello *h, const struct sb_section *sec, state_find_device *find,
	       struct sbuf *body)
{
	unsigned which = which_section(sec->tag);

	if (which == ARRAY_SIZE(tags) || sec->version != HELLO_VERSION)
		return -ENOTSUP;
	if (which == SECTION_DEVICES)
		state_look_at_list(find, body);
	load_section(h, which, body);
	return body->err;
}

/* ---- memory ---- */

void host_memory_read(struct host_memory *m)
{
	unsigned long long ram = 0, swap = 0, available = 0, swap_free = 0;
	bool know_ram = false, know_available = false;
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];

	while (f && fgets(line, sizeof(line), f)) {
		know_ram |= sscanf(line, "MemTotal: %llu kB", &ram) == 1;
		know_available |= sscanf(line, "MemAvailable: %llu kB", &available) == 1;
		sscanf(line, "SwapTotal: %llu kB", &swap);
		sscanf(line, "SwapFree: %llu kB", &swap_free);
	}
	if (f)
		fclose(f);
	m->total = know_ram ? (ram + swap) * KIB : UINT64_MAX;
	m->available = know_available ? (available + swap_free) * KIB : UINT64_MAX;
}

int hello_check_memory(const struct hello *h, uint64_t want_ram, const struct host_memory *m,
		       struct errmsg *err)
{
	char a[32], b[32];
	uint64_t most;

	if (mul_u64(m->total, RAM_BEYOND_REASON, &most) && !want_ram && h->cfg.ram_size > most)
		return errmsg_set(
			err, -ENOTSUP,
			"%s of RAM, which is more than %u times the %s of memory and swap "
			"of this host; 'godwit receive -m %lluK' takes it all the same",
			format_size(a, sizeof(a), h->cfg.ram_size), RAM_BEYOND_REASON,
			format_size(b, sizeof(b), m->total),
			(unsigned long long)(h->cfg.ram_size / KIB));
	if (h->ram_used > m->available)
		return errmsg_set(err, -ENOMEM,
				  "the guest uses %s of memory, this host has %s available",
				  format_size(a, sizeof(a), h->ram_used),
				  format_size(b, sizeof(b), m->available));
	return 0;
}

int host_memory_check_step(const struct host_memory *m, struct errmsg *err)
{
	char left[32];

	if (m->available >= MEMORY_STEP + MEMORY_RESERVE)
		return 0;
	return errmsg_set(err, -ENOMEM,
			  "this host runs out of memory while the guest arrives: %s are left, and "
			  "the guest uses more than it did at the start",
			  format_size(left, sizeof(left), m->available));
}
