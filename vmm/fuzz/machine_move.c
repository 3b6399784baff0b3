/* SPDX-License-Identifier: MIT */
/* The machine at rest, and its move to another one, as migrate/ has it done. */
#include "machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../virtio_mmio.h"
#include "machine_parts.h"
#include "oracle.h"

#define MAX_MOVES 2U

static int quiesce_ret;

static void do_quiesce(struct fuzz_machine *m)
{
	struct machine_side *s = m->side;

	quiesce_ret = s->dev->ops->quiesce(s->dev, now_ns() + MACHINE_WAIT_NS);
	if (quiesce_ret == 0)
		quiesce_ret = s->mmio->ops->quiesce(s->mmio, now_ns() + MACHINE_WAIT_NS);
}

void machine_quiesce(struct fuzz_machine *m)
{
	machine_on_vcpu(m, do_quiesce, "rest");
	fuzz_need(quiesce_ret == 0, "it does not come to rest: %s", strerror(-quiesce_ret));
	fuzz_need(m->side->v->inflight == 0, "%u in flight at rest", m->side->v->inflight);
	/* From here on a store into what the guest had offered is one too many. */
	oracle_check("before a pause");
}

void machine_resume(struct fuzz_machine *m)
{
	machine_settle(m);
	oracle_check("at rest");
	m->side->dev->ops->resume(m->side->dev);
	m->side->mmio->ops->resume(m->side->mmio);
}

void machine_at_rest(struct fuzz_machine *m, void (*fn)(struct fuzz_machine *m))
{
	machine_quiesce(m);
	fn(m);
	machine_resume(m);
}

static struct device *add_device(struct machine_side *s, const struct device_ops *ops,
				 const void *config)
{
	struct device *d = calloc(1, ops->size);
	int ret;

	fuzz_need(d, "no memory");
	d->ops = ops;
	d->vm = &s->vm;
	ret = ops->init(d, config);
	fuzz_need(ret == 0, "%s: init: %s", ops->tag, strerror(-ret));
	ops->reset(d);
	return d;
}

void machine_make_side(struct fuzz_machine *m)
{
	struct machine_side *s = calloc(1, sizeof(*s));
	struct virtio_mmio_config mmio = {0};

	fuzz_need(s, "no memory");
	s->vm.ram = m->ram;
	s->vm.loop = m->loop;
	s->vm.cfg.ram_size = m->ram.size;
	s->vm.kvm_fd = s->vm.vm_fd = -1;
	s->dev = add_device(s, m->target->ops, m->config);
	mmio.v = s->v = container_of(s->dev, struct virtio, dev);
	s->mmio = add_device(s, &virtio_mmio_ops, &mmio);
	m->side = s;
}

static void destroy_side(struct machine_side *s)
{
	s->mmio->ops->destroy(s->mmio);
	free(s->mmio);
	s->dev->ops->destroy(s->dev);
	free(s->dev);
	free(s);
}

void machine_acquire(struct fuzz_machine *m)
{
	struct device *d = m->side->dev;
	struct errmsg err = {""};
	int ret = d->ops->acquire ? d->ops->acquire(d, &err) : 0;

	fuzz_need(ret == 0, "acquire: %s", err.text);
}

static void release(struct machine_side *s)
{
	if (s->dev->ops->release)
		s->dev->ops->release(s->dev);
}

static void save(struct device *d, struct sbuf *s)
{
	sb_init_save(s);
	s->version = d->ops->version;
	d->ops->fields(d, s);
	fuzz_need(s->err == 0, "%s: saving: %s", d->ops->tag, strerror(-s->err));
}

static int load(struct device *d, struct sbuf *from)
{
	struct sbuf s;

	sb_init_load(&s, from->data, from->len);
	s.version = d->ops->version;
	d->ops->fields(d, &s);
	sb_end(&s);
	if (s.err)
		return s.err;
	return d->ops->loaded ? d->ops->loaded(d) : 0;
}

static void move_shape(struct device *from, struct device *to)
{
	struct errmsg err = {""};
	struct sbuf s, l;

	if (!from->ops->shape)
		return;
	sb_init_save(&s);
	s.version = from->ops->version;
	from->ops->shape(from, &s, NULL);
	sb_init_load(&l, s.data, s.len);
	l.version = s.version;
	to->ops->shape(to, &l, &err);
	sb_end(&l);
	fuzz_need(l.err == 0, "the same device is refused: %s: %s", strerror(-l.err), err.text);
	sb_free(&s);
}

/* What was loaded is what was saved. */
static void need_same(struct device *d, const struct sbuf *was)
{
	struct sbuf s;

	save(d, &s);
	fuzz_need(s.len == was->len && memcmp(s.data, was->data, s.len) == 0,
		  "%s: a state is not the same once loaded", d->ops->tag);
	sb_free(&s);
}

/*
 * To a machine that has the same memory. With a stream that lies the other side may refuse it, and
 * then this one goes on; what it does not refuse it must be able to live with.
 */
void machine_move(struct fuzz_machine *m, struct fuzz_in *in)
{
	struct machine_side *from = m->side;
	unsigned lies = in_u8(in) % 8;
	struct sbuf dev, mmio;
	int ret;

	if (lies > 4)
		lies = 0;
	if (m->moves++ == MAX_MOVES)
		return;
	if (m->target->before_move)
		m->target->before_move(m);
	machine_quiesce(m);
	save(from->dev, &dev);
	save(from->mmio, &mmio);
	for (unsigned i = 0; i < lies; i++) {
		size_t at = in_u16(in) % dev.len;

		dev.data[at] ^= in_u8(in);
	}
	machine_make_side(m);
	machine_quiesce(m);
	move_shape(from->dev, m->side->dev);
	ret = load(m->side->dev, &dev);
	if (ret == 0)
		ret = load(m->side->mmio, &mmio);
	fuzz_need(ret == 0 || lies, "a state that was saved does not load: %s", strerror(-ret));
	if (lies)
		oracle_state_lies();
	else if (!m->target->unordered)
		need_same(m->side->dev, &dev);
	sb_free(&dev);
	sb_free(&mmio);
	if (ret) {
		destroy_side(m->side);
		m->side = from;
	} else {
		release(from);
		machine_acquire(m);
		destroy_side(from);
	}
	machine_resume(m);
}
