/* SPDX-License-Identifier: MIT */
#include "throttle.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "vm.h"

/* glibc has no name for it. */
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define PERIOD (10 * NS_PER_MS) /* of a slice and a nap */
#define SLICE_MIN NS_PER_MS
#define SLICE_MAX (5 * NS_PER_MS)
/* After a long time in the kernel, say. */
#define NAP_MAX (500 * NS_PER_MS)
/* What an idle one uses of its time: being called out of the guest is part of it. */
#define IDLE_SHARE 32

static uint64_t slice_ns(unsigned percent)
{
	return MIN(MAX(PERIOD * (100 - percent) / 100, SLICE_MIN), SLICE_MAX);
}

static uint64_t nap_ns(uint64_t used, unsigned percent)
{
	return percent ? MIN(used * percent / (100 - percent), NAP_MAX) : 0;
}

void vm_throttle(struct vm *vm, unsigned vcpu, unsigned percent)
{
	percent = MIN(percent, THROTTLE_MAX);
	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct throttle *t = &vm->vcpu[i].throttle;
		bool begins = percent && !t->percent;

		if (vcpu != i && vcpu != THROTTLE_ALL_VCPUS)
			continue;
		t->percent = percent;
		/* It has no timer yet that would. */
		if (begins)
			vcpu_kick(&vm->vcpu[i]);
	}
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
}

uint64_t vm_slowed_ns(struct vm *vm, unsigned vcpu)
{
	uint64_t ns;

	pthread_mutex_lock(&vm->lock);
	ns = vm->vcpu[vcpu].throttle.slowed_ns;
	pthread_mutex_unlock(&vm->lock);
	return ns;
}

void throttle_nap(struct vcpu *v)
{
	struct throttle *t = &v->throttle;
	struct vm *vm = v->vm;
	uint64_t start, now, used;

	if (!t->percent)
		t->measures = false;
	if (!t->measures)
		return;
	start = now = now_ns();
	used = thread_cpu_ns() - t->cpu_ns;
	if (used < slice_ns(t->percent)) {
		if (now - t->wall_ns >= PERIOD && used < (now - t->wall_ns) / IDLE_SHARE)
			t->measures = false;
		return;
	}
	while (!vm->pause_reasons && !vm->quit && now < start + nap_ns(used, t->percent)) {
		uint64_t end = start + nap_ns(used, t->percent);
		struct timespec until = {.tv_sec = (time_t)(end / NS_PER_SEC),
					 .tv_nsec = (long)(end % NS_PER_SEC)};

		pthread_cond_timedwait(&vm->changed, &vm->lock, &until);
		now = now_ns();
	}
	t->slowed_ns += now - start;
	t->measures = false;
}

static bool make_timer(struct vcpu *v, int signal)
{
	struct throttle *t = &v->throttle;
	struct sigevent e = {
		.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signal, .sigev_value.sival_ptr = v};

	if (t->has_timer || t->no_timer)
		return t->has_timer;
	e.sigev_notify_thread_id = gettid();
	t->has_timer = timer_create(CLOCK_MONOTONIC, &e, &t->timer) == 0;
	t->no_timer = !t->has_timer;
	if (t->no_timer)
		log_warn("vCPU %u cannot be slowed: timer_create: %s (see ulimit -i)", v->id,
			 strerror(errno));
	return t->has_timer;
}

void throttle_arm(struct vcpu *v, int signal)
{
	struct throttle *t = &v->throttle;
	uint64_t cpu, wall, slice, used, ns;
	struct itimerspec at = {0};

	if (!t->percent && t->armed)
		timer_settime(t->timer, 0, &at, NULL);
	t->armed = t->percent && make_timer(v, signal);
	if (!t->armed)
		return;
	cpu = thread_cpu_ns();
	wall = now_ns();
	if (!t->measures) {
		t->measures = true;
		t->cpu_ns = cpu;
		t->wall_ns = wall;
	}
	slice = slice_ns(t->percent);
	used = cpu - t->cpu_ns;
	ns = used < slice ? slice - used : SLICE_MIN;
	/* One that is mostly idle need not be woken as often. */
	if (used < (wall - t->wall_ns) / 2)
		ns = MAX(ns, SLICE_MAX);
	at.it_value.tv_nsec = (long)ns;
	/* Again, should one be lost: a sanitizer, for one, keeps signals back. */
	at.it_interval.tv_nsec = (long)SLICE_MAX;
	timer_settime(t->timer, 0, &at, NULL);
}

void throttle_end(struct vcpu *v)
{
	if (v->throttle.has_timer)
		timer_delete(v->throttle.timer);
	v->throttle.has_timer = false;
}
