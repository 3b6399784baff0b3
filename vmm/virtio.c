/* SPDX-License-Identifier: MIT */
/*
 * What is common to all virtio devices; see virtio.h.
 *
 * A kick is a count in an eventfd that the loop reads. That read goes on while the device is
 * stopped: the kick is dropped then, and whoever lets the device go on has every queue served
 * once, which finds whatever was kicked meanwhile.
 *
 * A driver that is busy is not asked to kick at all: a kick costs it an exit from the guest and us
 * a wake-up. As long as the loop has something to do, and a little longer, it looks at the rings
 * itself.
 */
#include "virtio.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define STATUS_BITS                                                                                \
	(VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_DRIVER_OK | VIRTIO_FEATURES_OK | VIRTIO_FAILED)

static struct virtio *to_virtio(struct device *d)
{
	return container_of(d, struct virtio, dev);
}

static struct ram *ram_of(struct virtio *v)
{
	return &v->dev.vm->ram;
}

/* ---- kicks ---- */

static void arm_kick(struct virtio_queue *q)
{
	io_uring_prep_read(loop_sqe(q->v->dev.vm->loop, &q->kick), q->kick_fd, &q->kick_count,
			   sizeof(q->kick_count), 0);
}

static void serve_queue(struct virtio *v, unsigned i)
{
	if (virtio_live(v) && v->queue[i].q.ready && !v->stopping)
		v->ops->serve(v, i);
}

static void on_kick(struct loop_op *op, int32_t res)
{
	struct virtio_queue *q = container_of(op, struct virtio_queue, kick);
	struct virtio *v = q->v;

	if (res == -ECANCELED)
		return;
	arm_kick(q);
	loop_missed(v->dev.vm->loop);
	pthread_mutex_lock(&v->lock);
	serve_queue(v, q->index);
	pthread_mutex_unlock(&v->lock);
}

static bool look_at_ring(struct loop_look *look)
{
	struct virtio_queue *q = container_of(look, struct virtio_queue, look);
	struct virtio *v = q->v;
	bool found;

	pthread_mutex_lock(&v->lock);
	found = virtio_live(v) && virtq_pending(&q->q, ram_of(v));
	if (found) {
		/* Serving it does so again, unless it has to wait for something else first. */
		loop_unlook(v->dev.vm->loop, look);
		serve_queue(v, q->index);
	}
	pthread_mutex_unlock(&v->lock);
	return found;
}

/* From now on it is for the driver to tell; unless it has not seen that yet. */
static bool want_kicks(struct loop_look *look)
{
	struct virtio_queue *q = container_of(look, struct virtio_queue, look);
	struct virtio *v = q->v;
	bool found;

	pthread_mutex_lock(&v->lock);
	found = virtio_want_kicks(v, q->index);
	if (found)
		serve_queue(v, q->index);
	pthread_mutex_unlock(&v->lock);
	return found;
}

static void on_serve_task(struct loop_task *task)
{
	struct virtio *v = container_of(task, struct virtio, serve_task);

	pthread_mutex_lock(&v->lock);
	for (unsigned i = 0; i < v->n_queues; i++)
		serve_queue(v, i);
	pthread_mutex_unlock(&v->lock);
}

void virtio_serve_all(struct virtio *v)
{
	loop_post(v->dev.vm->loop, &v->serve_task);
}

/* ---- life ---- */

static void init_sync(struct virtio *v)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&v->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&v->idle, &attr);
	pthread_condattr_destroy(&attr);
}

int virtio_init(struct virtio *v, const struct virtio_ops *ops, uint64_t features,
		const uint16_t *queue_max, unsigned n_queues)
{
	v->ops = ops;
	v->offered = features | VIRTIO_RING_INDIRECT | VIRTIO_RING_EVENT_IDX | VIRTIO_VERSION_1;
	v->serve_task.run = on_serve_task;
	if (n_queues > VIRTIO_MAX_QUEUES)
		return -EINVAL;
	init_sync(v);
	for (unsigned i = 0; i < n_queues; i++) {
		struct virtio_queue *q = &v->queue[i];

		q->v = v;
		q->index = i;
		q->q.max = queue_max[i];
		q->kick.done = on_kick;
		q->look.look = look_at_ring;
		q->look.sleep = want_kicks;
		q->kick_fd = eventfd(0, EFD_CLOEXEC);
		if (q->kick_fd < 0) {
			int ret = -errno;

			virtio_destroy(v);
			return ret;
		}
		v->n_queues++;
		arm_kick(q);
	}
	return 0;
}

void virtio_destroy(struct virtio *v)
{
	struct loop *loop = v->dev.vm->loop;

	loop_unpost(loop, &v->serve_task);
	for (unsigned i = 0; i < v->n_queues; i++) {
		loop_unlook(loop, &v->queue[i].look);
		loop_cancel_wait(loop, &v->queue[i].kick);
		close(v->queue[i].kick_fd);
	}
	v->n_queues = 0;
	pthread_cond_destroy(&v->idle);
	pthread_mutex_destroy(&v->lock);
}

void virtio_attach(struct virtio *v, const struct virtio_transport *t, void *arg)
{
	v->transport = t;
	v->transport_arg = arg;
}

/* Power-on state of all but the offer. Nothing is in flight. */
static void reset_locked(struct virtio *v)
{
	for (unsigned i = 0; i < v->n_queues; i++)
		virtq_reset(&v->queue[i].q);
	v->status = 0;
	v->features = 0;
	if (v->ops->reset)
		v->ops->reset(v);
}

void virtio_reset(struct device *d)
{
	struct virtio *v = to_virtio(d);

	pthread_mutex_lock(&v->lock);
	reset_locked(v);
	pthread_mutex_unlock(&v->lock);
}

int virtio_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct virtio *v = to_virtio(d);
	struct timespec at = {
		.tv_sec = (time_t)(deadline_ns / NS_PER_SEC),
		.tv_nsec = (long)(deadline_ns % NS_PER_SEC),
	};
	int ret = 0;

	v->stopping = true;
	pthread_mutex_lock(&v->lock);
	v->stopped = true;
	v->stopping = false;
	while (v->inflight && ret == 0)
		ret = -pthread_cond_timedwait(&v->idle, &v->lock, &at);
	if (v->inflight) {
		v->stopped = false;
		virtio_serve_all(v);
	} else {
		ret = 0;
	}
	pthread_mutex_unlock(&v->lock);
	return ret;
}

void virtio_resume(struct device *d)
{
	struct virtio *v = to_virtio(d);

	pthread_mutex_lock(&v->lock);
	v->stopped = false;
	v->came = false;
	pthread_mutex_unlock(&v->lock);
	/* Kicks that came while it was stopped were dropped, and those of the source never came. */
	virtio_serve_all(v);
}

/* ---- state ---- */

void virtio_fields(struct device *d, struct sbuf *s)
{
	struct virtio *v = to_virtio(d);
	/* A blank one has as many as there are. */
	uint32_t most = sb_looking(s) ? VIRTIO_MAX_QUEUES : v->n_queues;
	uint32_t queues = v->n_queues;

	/* A late kick on the loop's thread looks whether it is stopped. */
	pthread_mutex_lock(&v->lock);
	sb_x8(s, &v->status);
	sb_x64(s, &v->features);
	sb_u32(s, &v->generation);
	sb_bytes(s, v->config, v->config_len);
	sb_u32_range(s, &queues, v->n_queues, most);
	for (unsigned i = 0; i < queues; i++) {
		size_t mark = sb_enter(s, "queue[%u]", i);

		virtq_fields(&v->queue[i].q, s);
		sb_leave(s, mark);
	}
	pthread_mutex_unlock(&v->lock);
}

/* What a driver can have made of the device, in the order in which it does so. */
static int check_loaded(struct virtio *v)
{
	bool features_ok = v->status & VIRTIO_FEATURES_OK;

	if (v->features & ~v->offered)
		return -ENOTSUP;
	if (v->status & ~(STATUS_BITS | VIRTIO_NEEDS_RESET))
		return -EPROTO;
	if (features_ok ? !virtio_has(v, VIRTIO_VERSION_1) : v->status & VIRTIO_DRIVER_OK)
		return -EPROTO;
	for (unsigned i = 0; i < v->n_queues; i++) {
		struct virtq *q = &v->queue[i].q;

		if (q->ready && !features_ok)
			return -EPROTO;
		if (virtq_check(q, ram_of(v), virtio_has(v, VIRTIO_RING_EVENT_IDX)))
			return -EPROTO;
	}
	return 0;
}

int virtio_loaded(struct device *d)
{
	struct virtio *v = to_virtio(d);
	int ret;

	pthread_mutex_lock(&v->lock);
	ret = check_loaded(v);
	if (ret == 0)
		v->came = true;
	pthread_mutex_unlock(&v->lock);
	return ret;
}

/* What is compared is fixed, but a driver's reset stores all of its queues anew. */
static void shape_locked(struct virtio *v, struct sbuf *s, struct errmsg *err)
{
	uint32_t instance = v->dev.instance;
	bool compare = s->loading && !sb_looking(s);
	uint64_t offered = v->offered;
	uint32_t n = v->n_queues;

	sb_x64(s, &offered);
	sb_u32_as(s, &n, "queues", SB_NUMBER);
	if (compare && !s->err && n != v->n_queues)
		sb_fail(s, errmsg_set(err, -ENOTSUP, "%s %u: it has %u queues, here it has %u",
				      v->ops->name, instance, n, v->n_queues));
	/* What is only looked at has as many as there are. */
	n = sb_looking(s) ? MIN(n, VIRTIO_MAX_QUEUES) : v->n_queues;
	for (unsigned i = 0; i < n; i++) {
		uint16_t max = v->queue[i].q.max;

		sb_index(s, i);
		sb_u16_as(s, &max, "max[i]", SB_NUMBER);
		if (compare && !s->err && max != v->queue[i].q.max)
			sb_fail(s, errmsg_set(err, -ENOTSUP,
					      "%s %u: its queue %u has %u entries, here it has %u",
					      v->ops->name, instance, i, max, v->queue[i].q.max));
	}
	if (!compare || s->err)
		return;
	if (offered & ~v->offered)
		sb_fail(s, errmsg_set(err, -ENOTSUP,
				      "%s %u: this host's device lacks features %#llx that the "
				      "guest was offered",
				      v->ops->name, instance,
				      (unsigned long long)(offered & ~v->offered)));
	else
		v->offered = offered;
}

void virtio_shape(struct device *d, struct sbuf *s, struct errmsg *err)
{
	struct virtio *v = to_virtio(d);

	pthread_mutex_lock(&v->lock);
	shape_locked(v, s, err);
	pthread_mutex_unlock(&v->lock);
}

/* ---- for device models ---- */

void virtio_begin(struct virtio *v)
{
	v->inflight++;
}

void virtio_end(struct virtio *v)
{
	if (--v->inflight == 0)
		pthread_cond_broadcast(&v->idle);
}

int virtio_pop(struct virtio *v, unsigned queue, struct virtq_chain *c)
{
	const char *why = "";
	int ret;

	if (!virtio_live(v))
		return 0;
	ret = virtq_pop(&v->queue[queue].q, ram_of(v), c, &why);
	if (ret >= 0)
		return ret;
	virtio_fail(v, "queue %u: %s", queue, why);
	return 0;
}

bool virtio_want_kicks(struct virtio *v, unsigned queue)
{
	struct virtq *q = &v->queue[queue].q;

	if (!virtio_live(v) || !virtq_want_kicks(q, ram_of(v)))
		return false;
	/*
	 * Not wanting them can take chains away, where the two rings overlap: an index that goes
	 * back would do so for ever.
	 */
	virtq_no_kicks(q, ram_of(v));
	if (virtq_pending(q, ram_of(v)))
		return true;
	virtio_fail(v, "queue %u: chains that are available and then are not", queue);
	return false;
}

int virtio_take(struct virtio *v, unsigned queue, struct virtq_chain *c)
{
	if (virtio_pop(v, queue, c))
		return 1;
	if (virtio_live(v))
		loop_look(v->dev.vm->loop, &v->queue[queue].look);
	return 0;
}

struct virtio_turn virtio_begin_turn(struct virtio *v, unsigned queue, int64_t left)
{
	virtq_no_kicks(&v->queue[queue].q, ram_of(v));
	return (struct virtio_turn){.v = v, .queue = queue, .left = left};
}

int virtio_next(struct virtio_turn *t, struct virtq_chain *c)
{
	if (t->v->stopping)
		return 0;
	if (t->left > 0)
		return virtio_take(t->v, t->queue, c);
	virtio_serve_all(t->v);
	return 0;
}

void virtio_signal(struct virtio *v, unsigned queue)
{
	if (v->transport && virtq_must_signal(&v->queue[queue].q, ram_of(v)))
		v->transport->signal_queue(v->transport_arg, queue);
}

void virtio_expect(struct virtio *v, unsigned queue)
{
	if (!virtio_live(v))
		return;
	virtq_no_kicks(&v->queue[queue].q, ram_of(v));
	loop_look(v->dev.vm->loop, &v->queue[queue].look);
	loop_expect(v->dev.vm->loop, LOOP_ANSWER);
}

void virtio_push(struct virtio *v, unsigned queue, uint16_t head, uint32_t written)
{
	virtio_expect(v, queue);
	virtq_push(&v->queue[queue].q, ram_of(v), head, written);
	virtio_signal(v, queue);
}

static void config_changed(struct virtio *v)
{
	v->generation++;
	if (v->transport && (v->status & VIRTIO_DRIVER_OK))
		v->transport->signal_config(v->transport_arg);
}

void virtio_set_config(struct virtio *v, unsigned offset, const void *bytes, unsigned len)
{
	if (offset + len > v->config_len || memcmp(v->config + offset, bytes, len) == 0)
		return;
	memcpy(v->config + offset, bytes, len);
	config_changed(v);
}

void virtio_fail(struct virtio *v, const char *fmt, ...)
{
	char text[200];
	va_list ap;

	if (v->status & VIRTIO_NEEDS_RESET)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (log_allowed(&v->mistakes))
		log_warn("%s %u: the guest's driver made a mistake: %s; it is stopped until its "
			 "reset%s",
			 v->ops->name, v->dev.instance, text, v->mistakes.more);
	v->status |= VIRTIO_NEEDS_RESET;
	config_changed(v);
}

/* ---- for transports ---- */

/*
 * The driver resets the device. virtio-mmio's drivers do not look whether a reset is over before
 * they take their memory back, so the write waits here, on the vCPU that made it.
 */
static void driver_reset(struct virtio *v)
{
	v->resetting = true;
	while (v->inflight)
		pthread_cond_wait(&v->idle, &v->lock);
	reset_locked(v);
	v->resetting = false;
}

void virtio_set_status(struct virtio *v, uint8_t status)
{
	pthread_mutex_lock(&v->lock);
	if (v->resetting)
		goto out;
	if (status == 0) {
		driver_reset(v);
		goto out;
	}
	status &= (uint8_t)STATUS_BITS;
	/* Features without VERSION_1 are a legacy driver's, which this device is not for. */
	if ((status & VIRTIO_FEATURES_OK) && !(v->status & VIRTIO_FEATURES_OK) &&
	    !(v->features & VIRTIO_VERSION_1))
		status &= (uint8_t)~VIRTIO_FEATURES_OK;
	if (!(status & VIRTIO_FEATURES_OK))
		status &= (uint8_t)~VIRTIO_DRIVER_OK;
	if ((status & VIRTIO_DRIVER_OK) && !(v->status & VIRTIO_DRIVER_OK)) {
		v->status |= status;
		if (v->ops->activate)
			v->ops->activate(v);
		virtio_serve_all(v);
	}
	/* Bits are only ever added, but by a reset. */
	v->status |= status;
out:
	pthread_mutex_unlock(&v->lock);
}

void virtio_set_features(struct virtio *v, unsigned word, uint32_t bits)
{
	unsigned shift = word * 32;

	if (word > 1)
		return;
	pthread_mutex_lock(&v->lock);
	if (!(v->status & VIRTIO_FEATURES_OK)) {
		v->features &= ~(0xffffffffULL << shift);
		v->features |= ((uint64_t)bits << shift) & v->offered;
	}
	pthread_mutex_unlock(&v->lock);
}

void virtio_set_ready(struct virtio *v, unsigned queue, bool ready)
{
	struct virtq *q;

	if (queue >= v->n_queues)
		return;
	pthread_mutex_lock(&v->lock);
	q = &v->queue[queue].q;
	/* What the rings look like is among the features. */
	if (!ready)
		q->ready = false;
	else if (!(v->status & VIRTIO_FEATURES_OK))
		virtio_fail(v, "queue %u is made ready before FEATURES_OK", queue);
	else if (!q->ready && virtq_enable(q, ram_of(v), virtio_has(v, VIRTIO_RING_EVENT_IDX)))
		virtio_fail(v, "queue %u: %u entries at %#llx, %#llx, %#llx", queue, q->size,
			    (unsigned long long)q->desc, (unsigned long long)q->avail,
			    (unsigned long long)q->used);
	pthread_mutex_unlock(&v->lock);
}

uint64_t virtio_config_read(struct virtio *v, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	pthread_mutex_lock(&v->lock);
	if (offset < v->config_len)
		memcpy(&value, v->config + offset, MIN(size, v->config_len - (unsigned)offset));
	pthread_mutex_unlock(&v->lock);
	return value;
}

void virtio_config_write(struct virtio *v, uint64_t offset, unsigned size, uint64_t value)
{
	const struct virtio_ops *ops = v->ops;
	unsigned end = ops->writable + ops->writable_len;

	pthread_mutex_lock(&v->lock);
	if (offset >= ops->writable && offset < end && size <= end - offset) {
		memcpy(v->config + offset, &value, size);
		if (ops->config_written)
			ops->config_written(v);
	}
	pthread_mutex_unlock(&v->lock);
}
