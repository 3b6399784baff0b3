/* SPDX-License-Identifier: MIT */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "../../vmm/fuzz/fake_kvm.h"
#include "../../vmm/machine.h"
#include "../state.h"

#define DISK_SIZE (64 * KIB)

static void make_disk(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	fuzz_need(fd >= 0 && ftruncate(fd, DISK_SIZE) == 0, "%s: %s", path, strerror(errno));
	close(fd);
}

const struct vm_config *guest_config(unsigned variant)
{
	static struct vm_config config[GUEST_VARIANTS];
	struct vm_config *c = &config[variant];
	struct vm_devices *d = &c->devices;

	if (c->ram_size)
		return c;
	*c = (struct vm_config){.ram_size = RAM_MIN, .vcpus = 1 + variant, .id = {1, 2}};
	snprintf(c->name, sizeof(c->name), "guest");
	snprintf(c->kernel, sizeof(c->kernel), "/boot/k");
	if (variant == 0)
		return c;
	d->n_disks = 1;
	snprintf(d->disk[0].path, sizeof(d->disk[0].path), "%s/disk", fuzz_folder());
	make_disk(d->disk[0].path);
	d->disk[0].queues = 2;
	d->vsock = (struct vm_vsock){.present = true, .cid = 3};
	snprintf(d->vsock.path, sizeof(d->vsock.path), "%s/vsock", fuzz_folder());
	d->console.present = true;
	snprintf(d->console.path, sizeof(d->console.path), "%s/console", fuzz_folder());
	d->rng = d->balloon = true;
	return c;
}

const struct cpuid *guest_cpuid(unsigned variant)
{
	static struct cpuid cpuid[GUEST_VARIANTS];

	if (!cpuid[variant].n)
		fake_kvm_cpuid(&cpuid[variant], 1 + variant);
	return &cpuid[variant];
}

struct loop *guest_loop(void)
{
	static struct loop loop;
	static bool up;

	if (up)
		return &loop;
	fuzz_need(loop_init(&loop) == 0, "no loop");
	up = true;
	return &loop;
}

/* ---- the machine ---- */

void guest_create(struct fuzz_guest *g, unsigned variant)
{
	struct errmsg err = {""};
	int ret;

	*g = (struct fuzz_guest){.loop = guest_loop()};
	fuzz_need(chan_init(&g->serial) == 0, "no serial line");
	ret = machine_create(&g->vm, guest_config(variant), guest_cpuid(variant), g->loop,
			     &g->serial, &err);
	fuzz_need(ret == 0, "no machine: %s", err.text);
	ret = guest_quiesce(g, &err);
	fuzz_need(ret == 0, "a machine that has not run does not come to rest: %s", err.text);
}

void guest_destroy(struct fuzz_guest *g)
{
	vm_destroy(g->vm);
	chan_destroy(&g->serial);
}

struct quiesce {
	struct vm *vm;
	struct loop *loop;
	struct loop_task wake;
	struct errmsg *err;
	int ret;
	atomic_bool done;
};

static void on_wake(struct loop_task *task)
{
	(void)task;
}

static void *run_quiesce(void *arg)
{
	struct quiesce *q = arg;

	q->ret = vm_quiesce_devices(q->vm, 10 * NS_PER_SEC, q->err);
	q->done = true;
	loop_post(q->loop, &q->wake);
	return NULL;
}

int guest_quiesce(struct fuzz_guest *g, struct errmsg *err)
{
	struct quiesce q = {.vm = g->vm, .loop = g->loop, .wake = {.run = on_wake}, .err = err};
	pthread_t thread;

	fuzz_need(!pthread_create(&thread, NULL, run_quiesce, &q), "no thread");
	while (!q.done)
		loop_step(g->loop, NS_PER_SEC);
	pthread_join(thread, NULL);
	loop_unpost(g->loop, &q.wake);
	return q.ret;
}

/* ---- one that arrives ---- */

void __wrap_host_memory_read(struct host_memory *m);

/* A small host, so that no input makes much of this one. */
struct host_memory guest_memory = {.total = 32 * MIB, .available = GIB};

void __wrap_host_memory_read(struct host_memory *m)
{
	*m = guest_memory;
}

int guest_build(void *arg, struct vm_config *cfg, const struct cpuid *cpuid, struct vm **out,
		struct errmsg *err)
{
	const struct vm_devices *own = &guest_config(1)->devices;
	struct vm_devices *d = &cfg->devices;
	static struct chan serial;
	static bool up;

	(void)arg;
	/* That of the one before, which is gone: nothing of it is to be seen. */
	if (up)
		chan_destroy(&serial);
	up = chan_init(&serial) == 0;
	fuzz_need(up, "no serial line");
	for (uint32_t i = 0; i < d->n_disks; i++)
		memcpy(d->disk[i].path, own->disk[0].path, sizeof(d->disk[i].path));
	memcpy(d->vsock.path, own->vsock.path, sizeof(d->vsock.path));
	memcpy(d->console.path, own->console.path, sizeof(d->console.path));
	if (d->n_nets)
		return errmsg_set(err, -ENOTSUP, "no networks here");
	return machine_create(out, cfg, cpuid, guest_loop(), &serial, err);
}

/* ---- what an honest source sends ---- */

const struct sbuf *guest_state(unsigned variant)
{
	static struct sbuf state[GUEST_VARIANTS];
	struct errmsg err = {""};
	struct fuzz_guest g;

	if (state[variant].data)
		return &state[variant];
	guest_create(&g, variant);
	sb_init_save(&state[variant]);
	fuzz_need(state_save(g.vm, 0, &state[variant], &err) == 0, "no state: %s", err.text);
	guest_destroy(&g);
	return &state[variant];
}

const struct sbuf *guest_hello(unsigned variant)
{
	static struct sbuf hello[GUEST_VARIANTS];
	const struct migrate_options opt = {.verify = (enum migrate_verify)variant,
					    .connections = 1 + variant};
	struct errmsg err = {""};
	struct fuzz_guest g;

	if (hello[variant].data)
		return &hello[variant];
	guest_create(&g, variant);
	sb_init_save(&hello[variant]);
	fuzz_need(hello_save(g.vm, &opt, GUEST_SEED, 0, &hello[variant], &err) == 0, "no HELLO: %s",
		  err.text);
	guest_destroy(&g);
	return &hello[variant];
}

/* ---- what one machine saves and another loads ---- */

/* Sections that may differ from one save to the next. */
static bool is_time(const char *tag)
{
	return !strcmp(tag, "clock") || !strcmp(tag, "pit") || !strcmp(tag, "rtc") ||
	       !strcmp(tag, "acpi-pm");
}

void guest_save(struct fuzz_guest *g, struct sbuf *s, const char *what)
{
	struct errmsg err = {""};

	sb_init_save(s);
	fuzz_need(state_save(g->vm, 0, s, &err) == 0, "%s cannot be saved: %s", what, err.text);
}

void guest_compare(const struct sbuf *a, const struct sbuf *b)
{
	struct sb_section x, y;
	struct sbuf s, t, s_body, t_body;

	sb_init_load(&s, a->data, a->len);
	sb_init_load(&t, b->data, b->len);
	while (sb_section_next(&s, &x, &s_body) > 0) {
		fuzz_need(sb_section_next(&t, &y, &t_body) > 0 && !strcmp(x.tag, y.tag),
			  "section %s %u is gone", x.tag, x.instance);
		if (is_time(x.tag))
			continue;
		fuzz_need(s_body.len == t_body.len && !memcmp(s_body.data, t_body.data, s_body.len),
			  "section %s %u is not the same once loaded", x.tag, x.instance);
	}
}

/* ---- lies ---- */

#define PARTS_MAX 48U
#define EDITS_MAX 16U

struct part {
	struct sb_section sec;
	uint8_t *body;
	size_t len;
};

struct parts {
	struct part part[PARTS_MAX];
	unsigned n;
};

static void add_part(struct parts *p, const struct sb_section *sec, const void *body, size_t len)
{
	struct part *to = &p->part[p->n];

	if (p->n == PARTS_MAX)
		return;
	*to = (struct part){.sec = *sec, .body = malloc(len + 1), .len = len};
	fuzz_need(to->body, "no memory");
	memcpy(to->body, body, len);
	p->n++;
}

static void split(struct parts *p, const struct sbuf *from)
{
	struct sb_section sec;
	struct sbuf s, body;

	*p = (struct parts){0};
	sb_init_load(&s, from->data, from->len);
	while (sb_section_next(&s, &sec, &body) > 0)
		add_part(p, &sec, body.data, body.len);
}

static void append(struct part *p, struct fuzz_in *in)
{
	size_t n = in_u8(in) % 64;

	p->body = realloc(p->body, p->len + n + 1);
	fuzz_need(p->body, "no memory");
	in_bytes(in, p->body + p->len, n);
	p->len += n;
}

static void overwrite(struct part *p, struct fuzz_in *in, size_t width)
{
	static const uint64_t values[] = {0,	 1,	    0x7f,	0x80,		0xff,
					  0x100, 0x7fff,    0x8000,	0xffff,		0x10000,
					  4096,	 INT32_MAX, UINT32_MAX, 1ULL << 32,	INT64_MAX,
					  3,	 1 << 24,   1ULL << 63, UINT64_MAX - 1, UINT64_MAX};
	size_t at = in_u16(in);
	uint8_t which = in_u8(in);
	uint64_t value = which < ARRAY_SIZE(values) ? values[which] : in_u64(in);

	if (p->len >= width)
		memcpy(p->body + at % (p->len - width + 1), &value, width);
}

static void flip(struct part *p, struct fuzz_in *in)
{
	size_t at = in_u16(in);
	uint8_t bits = in_u8(in);

	if (p->len)
		p->body[at % p->len] ^= bits;
}

static void drop(struct parts *p, unsigned i)
{
	free(p->part[i].body);
	memmove(&p->part[i], &p->part[i + 1], (--p->n - i) * sizeof(p->part[0]));
}

static void edit(struct parts *p, struct fuzz_in *in)
{
	unsigned kind = in_u8(in) % 16, i = in_u8(in) % MAX(p->n, 1U), j;
	struct part *part = &p->part[i], other;

	if (p->n == 0)
		return;
	switch (kind) {
	case 0 ... 3:
		flip(part, in);
		break;
	case 4 ... 7:
		overwrite(part, in, (size_t)1 << (kind - 4));
		break;
	case 8:
		part->len = in_u16(in) % (part->len + 1);
		break;
	case 9:
		append(part, in);
		break;
	case 10:
		drop(p, i);
		break;
	case 11:
		add_part(p, &part->sec, part->body, part->len);
		break;
	case 12:
		j = in_u8(in) % p->n;
		other = *part;
		*part = p->part[j];
		p->part[j] = other;
		break;
	case 13:
		part->sec.version = in_u8(in);
		break;
	case 14:
		part->sec.instance = in_u8(in);
		break;
	default:
		part->sec.flags ^= in_u8(in);
		j = in_u8(in) % (SB_TAG_LEN - 1);
		part->sec.tag[j] = (char)in_u8(in);
	}
}

bool sections_edit(const struct sbuf *from, struct fuzz_in *in, struct sbuf *out)
{
	unsigned edits = in_u8(in) % EDITS_MAX, flips;
	struct parts p;

	split(&p, from);
	for (unsigned i = 0; i < edits; i++)
		edit(&p, in);
	sb_init_save(out);
	for (unsigned i = 0; i < p.n; i++) {
		const struct part *part = &p.part[i];
		size_t mark = sb_section_open(out, part->sec.tag, part->sec.instance,
					      part->sec.version, part->sec.flags);

		sb_bytes(out, part->body, part->len);
		sb_section_close(out, mark);
		free(part->body);
	}
	/* Heads of sections included. */
	flips = in_u8(in) % 4;
	for (unsigned i = 0; i < flips && out->len; i++) {
		size_t at = in_u16(in) % out->len;

		out->data[at] ^= in_u8(in);
	}
	return edits || flips;
}
