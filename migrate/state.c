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
	if (s->loading && !s->err && paused && !sb_looking(s))
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
	mark = sb_section_open(s, tag_irqchip, 0, STATE_VERSION, 0);
	irqchip_fields(vm->vm_fd, s);
	sb_section_close(s, mark);
	/* After the irqchip: the PIT ticks at once, and a tick into a pin that is still masked is
	 * its last. */
	mark = sb_section_open(s, tag_pit, 0, STATE_VERSION, 0);
	pit_fields(vm->vm_fd, s);
	sb_section_close(s, mark);

	mark = sb_section_open(s, tag_clock, 0, STATE_VERSION, 0);
	ret = s->err ? s->err : save_clock(vm, clock_offset_ns, s, err);
	if (ret)
		return errmsg_set(err, ret, "saving the clock: %s", strerror(-ret));
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

/* Does this godwit read its version? ops: of the device, NULL: it is the machine's. */
static int check_version(const struct device_ops *ops, const struct sb_section *sec,
			 struct errmsg *err)
{
	unsigned min = ops ? ops->min_version : STATE_VERSION;
	unsigned max = ops ? ops->version : STATE_VERSION;

	if (sec->version < min || sec->version > max)
		return errmsg_set(err, -ENOTSUP, "it has version %u, this godwit reads %u to %u",
				  sec->version, min, max);
	return 0;
}

/* Whose section is it, and does this godwit read its version? *known: somebody's here. */
static int check_section(struct vm *vm, const struct sb_section *sec, bool *known,
			 struct errmsg *err)
{
	static const char *const of_machine[] = {tag_irqchip, tag_pit, tag_clock, tag_run};
	const struct device *d = vm_find_device(vm, sec->tag, sec->instance);

	*known = d || (strcmp(sec->tag, tag_vcpu) == 0 && sec->instance < vm->n_vcpus);
	for (size_t i = 0; i < ARRAY_SIZE(of_machine); i++)
		*known |= strcmp(sec->tag, of_machine[i]) == 0 && sec->instance == 0;
	if (!*known)
		return sec->flags & SB_OPTIONAL
			       ? 0
			       : errmsg_set(err, -ENOTSUP,
					    "it is for nothing that this machine has");
	return check_version(d ? d->ops : NULL, sec, err);
}

/* One section that check_section() knows. */
static int load_section(struct vm *vm, const struct sb_section *sec, struct sbuf *body,
			struct errmsg *err)
{
	struct device *d = vm_find_device(vm, sec->tag, sec->instance);
	int ret = 0;

	if (d)
		d->ops->fields(d, body);
	else if (strcmp(sec->tag, tag_vcpu) == 0)
		vcpu_fields(&vm->vcpu[sec->instance], body, err);
	else if (strcmp(sec->tag, tag_irqchip) == 0)
		irqchip_fields(vm->vm_fd, body);
	else if (strcmp(sec->tag, tag_pit) == 0)
		pit_fields(vm->vm_fd, body);
	else if (strcmp(sec->tag, tag_clock) == 0)
		ret = load_clock(vm, body, err);
	else
		run_fields(vm, body);
	sb_end(body);
	if (ret == 0)
		ret = body->err;
	if (ret == 0 && d && d->ops->loaded)
		ret = d->ops->loaded(d);
	return ret;
}

/* vcpu..., irqchip, pit, clock, run, devices: how many sections a whole machine has. */
static unsigned count_sections(const struct vm *vm)
{
	unsigned n = vm->n_vcpus + 4;

	for (const struct device *d = vm->devices; d; d = d->next)
		n++;
	return n;
}

static bool came_before(const struct sb_section *seen, unsigned n, const struct sb_section *sec)
{
	for (unsigned i = 0; i < n; i++) {
		if (seen[i].instance == sec->instance && strcmp(seen[i].tag, sec->tag) == 0)
			return true;
	}
	return false;
}

int state_load(struct vm *vm, const void *data, size_t len, struct errmsg *err)
{
	struct errmsg why = {0};
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
		ret = check_section(vm, &sec, &known, &why);
		if (ret == 0 && !known)
			continue;
		/* Known and not yet seen, there is room for it in `seen`. */
		if (ret == 0 && came_before(seen, n, &sec))
			ret = errmsg_set(&why, -EPROTO, "it came twice");
		if (ret == 0)
			ret = load_section(vm, &sec, &body, &why);
		if (ret) {
			errmsg_set(err, ret, "state section %s %u: %s", sec.tag, sec.instance,
				   why.text[0] ? why.text : strerror(-ret));
			goto out;
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

/* To be freed; NULL with s failed. */
static struct device *blank_device(const struct device_ops *ops, struct sbuf *s)
{
	/* A mutex of zeroes is one that is initialized: PTHREAD_MUTEX_INITIALIZER. */
	struct device *d = calloc(1, ops->size);

	if (!d) {
		sb_fail(s, -ENOMEM);
		return NULL;
	}
	d->ops = ops;
	if (ops->blank)
		ops->blank(d);
	return d;
}

static void look_at_device(const struct device_ops *ops, struct sbuf *s)
{
	struct device *d = blank_device(ops, s);

	if (d)
		ops->fields(d, s);
	free(d);
}

static void look_at_vcpu(struct sbuf *s, struct errmsg *err)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	struct vcpu vcpu = {.vm = vm, .fd = -1};

	if (vm)
		vcpu_fields(&vcpu, s, err);
	else
		sb_fail(s, -ENOMEM);
	free(vm);
}

int state_look(const struct sb_section *sec, const struct device_ops *ops, struct sbuf *body,
	       struct errmsg *err)
{
	struct vm_clock clock = {0};
	int ret = check_version(ops, sec, err);

	if (ret)
		return ret;
	if (ops)
		look_at_device(ops, body);
	else if (strcmp(sec->tag, tag_vcpu) == 0)
		look_at_vcpu(body, err);
	else if (strcmp(sec->tag, tag_irqchip) == 0)
		irqchip_fields(-1, body);
	else if (strcmp(sec->tag, tag_pit) == 0)
		pit_fields(-1, body);
	else if (strcmp(sec->tag, tag_clock) == 0)
		clock_fields(&clock, body);
	else if (strcmp(sec->tag, tag_run) == 0)
		run_fields(NULL, body);
	else
		return errmsg_set(err, -ENOTSUP, "no machine has anything that it is for");
	clock_free(&clock);
	sb_end(body);
	return body->err;
}

/* ---- the list of devices ---- */

struct listed {
	char tag[SB_TAG_LEN + 1];
	uint32_t instance;
	uint16_t version;
};

static void listed_fields(struct listed *l, struct sbuf *s)
{
	sb_str(s, l->tag, sizeof(l->tag));
	sb_u32(s, &l->instance);
	sb_u16(s, &l->version);
	if (s->loading && !s->err && !sb_tag_ok(l->tag))
		sb_fail(s, -EPROTO);
}

/* d: what is here in its place, NULL for nothing. */
static void check_listed(const struct device *d, const struct listed *l, struct sbuf *s,
			 struct errmsg *err)
{
	if (!d || strcmp(l->tag, d->ops->tag) != 0 || l->instance != d->instance)
		sb_fail(s, errmsg_set(err, -ENOTSUP, "device %s %u of the guest is not here",
				      l->tag, l->instance));
	else if (l->version > d->ops->version || l->version < d->ops->min_version)
		sb_fail(s, errmsg_set(err, -ENOTSUP,
				      "device %s %u has state version %u, this godwit reads %u to "
				      "%u",
				      l->tag, l->instance, l->version, d->ops->min_version,
				      d->ops->version));
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
		struct listed l = {.instance = 0};

		if (!s->loading && d) {
			memcpy(l.tag, d->ops->tag, strnlen(d->ops->tag, SB_TAG_LEN));
			l.instance = d->instance;
			l.version = d->ops->version;
		}
		listed_fields(&l, s);
		if (s->loading && !s->err)
			check_listed(d, &l, s, err);
		if (d && d->ops->shape && !s->err)
			d->ops->shape(d, s, err);
		if (d)
			d = d->next;
	}
	if (s->loading && d && !s->err)
		sb_fail(s, errmsg_set(err, -ENOTSUP, "device %s %u is not one of the guest's",
				      d->ops->tag, d->instance));
}

void state_look_at_list(state_find_device *find, struct sbuf *s)
{
	uint32_t n = 0;

	sb_u32_range_as(s, &n, 0, DEVICES_MAX, "devices");
	for (uint32_t i = 0; i < n && !s->err; i++) {
		size_t mark = sb_enter(s, "device[%u]", i);
		const struct device_ops *ops;
		struct errmsg ignored = {""};
		struct device *d = NULL;
		struct listed l = {.instance = 0};

		listed_fields(&l, s);
		ops = s->err ? NULL : find(l.tag);
		/* How long its shape is nobody knows. */
		if (!ops)
			sb_fail(s, -ENOTSUP);
		else if (ops->shape)
			d = blank_device(ops, s);
		if (d)
			ops->shape(d, s, &ignored);
		free(d);
		sb_leave(s, mark);
	}
}
