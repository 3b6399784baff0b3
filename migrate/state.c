/* SPDX-License-Identifier: MIT */
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../vmm/clock.h"
#include "../vmm/device.h"

#define STATE_VERSION 1U /* of the sections of this file */
#define DEVICES_MAX 256U

/* What is machine-wide or per vCPU; devices come by their own list. */
static const char tag_vcpu[] = "vcpu";
static const char tag_pit[] = "pit";
static const char tag_clock[] = "clock";
static const char tag_irqchip[] = "irqchip";
static const char tag_run[] = "run";

static int save_clock(struct vm *vm, int64_t clock_offset_ns, struct sbuf *s, struct errmsg *err)
{
	struct vm_clock clock;
	int ret = clock_read(vm, &clock, err);

	if (ret)
		return ret;
	clock.read_at_ns += (uint64_t)clock_offset_ns;
	clock_fields(&clock, s);
	clock_free(&clock);
	return s->err;
}

static int load_clock(struct vm *vm, struct sbuf *s, struct errmsg *err)
{
	struct vm_clock clock = {0};
	int ret;

	clock_fields(&clock, s);
	ret = s->err ? s->err : clock_set(vm, &clock, err);
	clock_free(&clock);
	return ret;
}

/* A guest that its user has paused stays paused at the other side. */
static void run_fields(struct vm *vm, struct sbuf *s)
{
	bool paused = !s->loading && (vm_paused(vm) & VM_PAUSE_USER);

	sb_bool(s, &paused);
	if (s->loading && !s->err && paused)
		vm_pause(vm, VM_PAUSE_USER);
}

int state_save(struct vm *vm, int64_t clock_offset_ns, struct sbuf *s, struct errmsg *err)
{
	size_t mark;
	int ret;

	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		mark = sb_section_open(s, tag_vcpu, i, STATE_VERSION, 0);
		vcpu_fields(&vm->vcpu[i], s, err);
		sb_section_close(s, mark);
	}
	mark = sb_section_open(s, tag_pit, 0, STATE_VERSION, 0);
	pit_fields(vm->vm_fd, s);
	sb_section_close(s, mark);

	mark = sb_section_open(s, tag_clock, 0, STATE_VERSION, 0);
	ret = s->err ? s->err : save_clock(vm, clock_offset_ns, s, err);
	if (ret)
		return errmsg_set(err, ret, "saving the clock: %s", strerror(-ret));
	sb_section_close(s, mark);

	mark = sb_section_open(s, tag_irqchip, 0, STATE_VERSION, 0);
	irqchip_fields(vm->vm_fd, s);
	sb_section_close(s, mark);

	mark = sb_section_open(s, tag_run, 0, STATE_VERSION, 0);
	run_fields(vm, s);
	sb_section_close(s, mark);

	for (struct device *d = vm->devices; d; d = d->next) {
		mark = sb_section_open(s, d->ops->tag, d->instance, d->ops->version, 0);
		d->ops->fields(d, s);
		sb_section_close(s, mark);
	}
	return s->err ? errmsg_set(err, s->err, "saving the machine's state: %s", strerror(-s->err))
		      : 0;
}

static struct device *find_device(struct vm *vm, const struct sb_section *sec)
{
	for (struct device *d = vm->devices; d; d = d->next) {
		if (strcmp(d->ops->tag, sec->tag) == 0 && d->instance == sec->instance)
			return d;
	}
	return NULL;
}

static int check_version(const struct sb_section *sec, unsigned min, unsigned max,
			 struct errmsg *err)
{
	if (sec->version >= min && sec->version <= max)
		return 0;
	return errmsg_set(err, -ENOTSUP, "section %s has version %u, this godwit reads %u to %u",
			  sec->tag, sec->version, min, max);
}

static int load_device(struct device *d, const struct sb_section *sec, struct sbuf *body,
		       struct errmsg *err)
{
	int ret = check_version(sec, d->ops->min_version, d->ops->version, err);

	if (ret)
		return ret;
	d->ops->fields(d, body);
	sb_end(body);
	if (body->err)
		return body->err;
	return d->ops->loaded ? d->ops->loaded(d) : 0;
}

/* One section; *known is false when nobody here takes it. */
static int load_section(struct vm *vm, const struct sb_section *sec, struct sbuf *body, bool *known,
			struct errmsg *err)
{
	struct device *d = find_device(vm, sec);
	int ret;

	*known = true;
	if (d)
		return load_device(d, sec, body, err);
	if (strcmp(sec->tag, tag_vcpu) == 0 && sec->instance < vm->n_vcpus) {
		ret = check_version(sec, STATE_VERSION, STATE_VERSION, err);
		if (ret)
			return ret;
		vcpu_fields(&vm->vcpu[sec->instance], body, err);
	} else if (strcmp(sec->tag, tag_pit) == 0) {
		pit_fields(vm->vm_fd, body);
	} else if (strcmp(sec->tag, tag_run) == 0) {
		run_fields(vm, body);
	} else if (strcmp(sec->tag, tag_irqchip) == 0) {
		irqchip_fields(vm->vm_fd, body);
	} else if (strcmp(sec->tag, tag_clock) == 0) {
		ret = load_clock(vm, body, err);
		if (ret)
			return ret;
	} else {
		*known = false;
		return 0;
	}
	sb_end(body);
	return body->err;
}

/* vcpu..., pit, clock, irqchip, run, devices: how many sections a whole machine has. */
static unsigned count_sections(const struct vm *vm)
{
	unsigned n = vm->n_vcpus + 4;

	for (const struct device *d = vm->devices; d; d = d->next)
		n++;
	return n;
}

int state_load(struct vm *vm, const void *data, size_t len, struct errmsg *err)
{
	struct sb_section *seen;
	struct sbuf s, body;
	unsigned n = 0, want = count_sections(vm);
	int ret;

	seen = calloc(want, sizeof(*seen));
	if (!seen)
		return errmsg_set(err, -ENOMEM, "no memory to load the state");
	sb_init_load(&s, data, len);
	for (;;) {
		struct sb_section sec;
		bool known;

		ret = sb_section_next(&s, &sec, &body);
		if (ret <= 0)
			break;
		ret = load_section(vm, &sec, &body, &known, err);
		if (ret) {
			errmsg_set(err, ret, "state section %s %u: %s", sec.tag, sec.instance,
				   strerror(-ret));
			goto out;
		}
		if (!known) {
			if (sec.flags & SB_OPTIONAL)
				continue;
			ret = errmsg_set(err, -ENOTSUP,
					 "state section %s %u is for nothing that this machine has",
					 sec.tag, sec.instance);
			goto out;
		}
		for (unsigned i = 0; i < n; i++) {
			if (strcmp(seen[i].tag, sec.tag) == 0 && seen[i].instance == sec.instance) {
				ret = errmsg_set(err, -EPROTO, "state section %s %u came twice",
						 sec.tag, sec.instance);
				goto out;
			}
		}
		seen[n++] = sec;
	}
	if (ret)
		errmsg_set(err, ret, "the state's sections are malformed");
	else if (n != want)
		ret = errmsg_set(err, -EPROTO, "the state has %u sections, this machine has %u", n,
				 want);
	/* The TSC is set by now; a deadline before that would be taken for one in the past. */
	for (unsigned i = 0; i < vm->n_vcpus && ret == 0; i++) {
		ret = vcpu_arm_timer(&vm->vcpu[i]);
		if (ret)
			errmsg_set(err, ret, "arming the timer of vCPU %u: %s", i, strerror(-ret));
	}
out:
	free(seen);
	return ret;
}

void state_device_list(struct vm *vm, struct sbuf *s, struct errmsg *err)
{
	uint32_t n = 0;
	struct device *d;

	for (d = vm->devices; d; d = d->next)
		n++;
	sb_u32_range(s, &n, 0, DEVICES_MAX);
	d = vm->devices;
	for (uint32_t i = 0; i < n && !s->err; i++) {
		char tag[SB_TAG_LEN + 1] = "";
		uint32_t instance = 0;
		uint16_t version = 0;

		if (!s->loading && d) {
			memcpy(tag, d->ops->tag, strnlen(d->ops->tag, SB_TAG_LEN));
			instance = d->instance;
			version = d->ops->version;
		}
		sb_str(s, tag, sizeof(tag));
		sb_u32(s, &instance);
		sb_u16(s, &version);
		if (s->loading && !s->err && !sb_tag_ok(tag))
			sb_fail(s, -EPROTO);
		if (s->loading && !s->err) {
			if (!d || strcmp(tag, d->ops->tag) != 0 || instance != d->instance)
				sb_fail(s, errmsg_set(err, -ENOTSUP,
						      "device %s %u of the guest is not here", tag,
						      instance));
			else if (version > d->ops->version || version < d->ops->min_version)
				sb_fail(s, errmsg_set(err, -ENOTSUP,
						      "device %s %u has state version %u, this "
						      "godwit reads %u to %u",
						      tag, instance, version, d->ops->min_version,
						      d->ops->version));
		}
		if (d)
			d = d->next;
	}
	if (s->loading && d && !s->err)
		sb_fail(s, errmsg_set(err, -ENOTSUP, "device %s %u is not one of the guest's",
				      d->ops->tag, d->instance));
}
