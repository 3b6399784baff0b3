/* SPDX-License-Identifier: MIT */
/*
 * The source slows its guest: which vCPUs, and what it came to.
 *
 * With dirty rings it is known who writes. A vCPU that once had a notable share of a round's pages
 * is among the slowed from then on: of one that hardly runs any more little will be found. With the
 * dirty log, and before the first look, all are slowed.
 */
#include <errno.h>
#include <stdlib.h>

#include "source_parts.h"

_Static_assert(POLICY_THROTTLE_MAX == THROTTLE_MAX, "as strong as a throttle gets");

/* Of what each would have if all wrote alike, this part is notable. */
#define NOTABLE_PART 4U

int source_throttle_init(struct migration *m)
{
	struct vm *vm = m->vm;

	/* On an earlier connection. */
	if (m->vcpus)
		return 0;
	m->vcpus = calloc(vm->n_vcpus, sizeof(*m->vcpus));
	if (!m->vcpus)
		return errmsg_set(&m->err, -ENOMEM, "no memory for what %u vCPUs write",
				  vm->n_vcpus);
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		m->vcpus[i] = (struct source_vcpu){
			.pages = dirty_ring_pages_of(vm, i),
			.slowed_ns = vm_slowed_ns(vm, i),
			.writes = !vm->dirty_ring.entries,
		};
	}
	pthread_mutex_lock(&m->lock);
	m->stats.vcpus = vm->n_vcpus;
	pthread_mutex_unlock(&m->lock);
	return 0;
}

void source_throttle_look(struct migration *m)
{
	struct vm *vm = m->vm;
	uint64_t all = 0;

	m->looked = true;
	if (!vm->dirty_ring.entries)
		return;
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		all += dirty_ring_pages_of(vm, i) - m->vcpus[i].pages;
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct source_vcpu *v = &m->vcpus[i];
		uint64_t pages = dirty_ring_pages_of(vm, i);

		if ((pages - v->pages) * vm->n_vcpus * NOTABLE_PART > all)
			v->writes = true;
		v->pages = pages;
	}
}

void source_throttle_set(struct migration *m, unsigned percent)
{
	if (percent != m->throttle)
		log_debug("the guest is slowed by %u %%", percent);
	/* Also when it stays: there may be more of those that write. */
	for (unsigned i = 0; i < m->vm->n_vcpus && (percent || m->throttle); i++) {
		bool slowed = m->vcpus[i].writes || !m->looked;

		vm_throttle(m->vm, i, slowed ? percent : 0);
	}
	m->throttle = percent;
	pthread_mutex_lock(&m->lock);
	m->stats.throttle = percent;
	m->stats.throttle_max = MAX(m->stats.throttle_max, percent);
	pthread_mutex_unlock(&m->lock);
}

void source_throttle_publish(struct migration *m)
{
	uint64_t all = 0;

	/* There was no round yet, or nothing to count. */
	if (!m->vcpus || !m->stats.throttle_max)
		return;
	for (unsigned i = 0; i < m->vm->n_vcpus; i++) {
		uint64_t ns = vm_slowed_ns(m->vm, i) - m->vcpus[i].slowed_ns;

		if (i < MIGRATE_VCPUS_KEPT)
			m->stats.vcpu_slowed_ns[i] = ns;
		all += ns;
	}
	m->stats.slowed_ns = all;
}

void source_throttle_end(struct migration *m)
{
	if (!m->vcpus)
		return;
	source_throttle_set(m, 0);
	pthread_mutex_lock(&m->lock);
	source_throttle_publish(m);
	pthread_mutex_unlock(&m->lock);
	free(m->vcpus);
	m->vcpus = NULL;
}
