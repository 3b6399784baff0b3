/* SPDX-License-Identifier: MIT */
#include "disk_sync.h"

#include <errno.h>
#include <time.h>

#include "fault.h"
#include "util.h"

static void start(struct disk_sync *s);

static void tell(struct disk_flush *list, int err)
{
	while (list) {
		struct disk_flush *f = list;

		list = f->next;
		f->ended(f, err);
	}
}

static void on_ended(struct disk_op *op, int err)
{
	struct disk_sync *s = container_of(op, struct disk_sync, op);
	struct disk_flush *served, *behind = NULL;

	pthread_mutex_lock(s->lock);
	served = s->served;
	s->served = NULL;
	s->running = false;
	if (!served && fault_at(FAULT_EIO, "own-sync"))
		err = -EIO;
	s->err = err;
	if (err) {
		/* Those that wait may be for writes that this one was the last to hear of. */
		behind = s->behind;
		s->behind = NULL;
		s->lost = !served && !behind;
		s->failed(s, err);
	} else {
		s->synced = s->covers;
	}
	tell(served, err);
	tell(behind, err);
	/* Who was told may have begun another by now. */
	if (!s->running && (s->behind || s->again))
		start(s);
	pthread_cond_broadcast(&s->ended);
	pthread_mutex_unlock(s->lock);
}

static void start(struct disk_sync *s)
{
	s->running = true;
	s->again = false;
	s->covers = s->writes;
	s->served = s->behind;
	s->behind = NULL;
	s->op.verb = DISK_SYNC;
	s->op.ended = on_ended;
	/* Nothing about a sync can fail before the kernel has it. */
	(void)disk_io_start(s->disk, &s->op);
}

static bool durable(const struct disk_sync *s)
{
	return s->needless || s->synced == s->writes;
}

static void on_task(struct loop_task *task)
{
	struct disk_sync *s = container_of(task, struct disk_sync, task);

	pthread_mutex_lock(s->lock);
	if (s->running)
		s->again |= s->covers != s->writes;
	else if (!durable(s) && s->disk->image->locked)
		start(s);
	pthread_mutex_unlock(s->lock);
}

void disk_sync_init(struct disk_sync *s, struct disk_io *disk, pthread_mutex_t *lock, bool needless,
		    void (*failed)(struct disk_sync *s, int err))
{
	pthread_condattr_t attr;

	*s = (struct disk_sync){.disk = disk, .lock = lock, .needless = needless, .failed = failed};
	s->task.run = on_task;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->ended, &attr);
	pthread_condattr_destroy(&attr);
}

void disk_sync_destroy(struct disk_sync *s)
{
	loop_unpost(s->disk->loop, &s->task);
	disk_io_abandon(s->disk, &s->op);
	pthread_cond_destroy(&s->ended);
}

void disk_sync_wrote(struct disk_sync *s)
{
	s->writes++;
}

int disk_sync_flush(struct disk_sync *s, struct disk_flush *f)
{
	if (s->lost) {
		s->lost = false;
		return -EIO;
	}
	if (durable(s) && !s->running)
		return 0;
	if (!s->disk->image->locked)
		return -EIO;
	f->next = s->behind;
	s->behind = f;
	if (!s->running)
		start(s);
	return -EINPROGRESS;
}

void disk_sync_begin(struct disk_sync *s)
{
	if (!s->needless)
		loop_post(s->disk->loop, &s->task);
}

int disk_sync_wait(struct disk_sync *s, uint64_t deadline_ns)
{
	struct timespec at = {
		.tv_sec = (time_t)(deadline_ns / NS_PER_SEC),
		.tv_nsec = (long)(deadline_ns % NS_PER_SEC),
	};
	int ret = 0;

	if (s->lost)
		return -EIO;
	s->err = 0;
	if (!durable(s))
		disk_sync_begin(s);
	while (ret == 0 && !s->err && (s->running || !durable(s)))
		ret = -pthread_cond_timedwait(&s->ended, s->lock, &at);
	if (s->err)
		return s->err;
	return s->running || !durable(s) ? ret : 0;
}
