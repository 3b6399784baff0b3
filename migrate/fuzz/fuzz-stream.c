/* SPDX-License-Identifier: MIT */
/*
 * The receiving side, from a source's first byte on: `godwit receive` without KVM
 * (vmm/fuzz/fake_kvm.h), all of migrate/dest*.c with its door, lanes, store and pulse, on a UNIX
 * socket.
 *
 * What the source says is in source.h. Whatever that was,
 *
 *	- a guest runs only after a proof that was READY's, and a COMMIT of the same memory;
 *	- what is refused is refused with a reason, which the source is told;
 *	- the table of hashes tells what RAM holds, whenever either is kept or given up (store.h);
 *	- what RAM holds was stored by functions of ram.h, which mark it;
 *	- no file descriptor is left, and (where the corpus is replayed) no memory.
 *
 * And a source that was honest has moved: the destination holds what it sent.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "../dest_parts.h"
#include "../rehash.h"
#include "source.h"

#define KEEP_NS (10 * NS_PER_SEC)
#define HONEST_LIMIT (60 * NS_PER_SEC)
#define LIAR_LIMIT (20 * NS_PER_MS)

static unsigned variant;
static struct hashes *model; /* the source's, which belongs to no receiver */

/* ---- in front of the engine ---- */

void __real_hashes_free(struct hashes *h);
void __wrap_hashes_free(struct hashes *h);
int __real_hashes_from_ram(struct hashes *h, const struct ram *ram, int (*tick)(void *arg),
			   void *arg);
int __wrap_hashes_from_ram(struct hashes *h, const struct ram *ram, int (*tick)(void *arg),
			   void *arg);
void __real_vm_destroy_but_ram(struct vm *vm, struct ram *ram);
void __wrap_vm_destroy_but_ram(struct vm *vm, struct ram *ram);

static struct hashes *half_made; /* not the whole of RAM has been looked at */

static void check_table(const struct hashes *h, const struct ram *ram, const char *when)
{
	uint64_t index = 0, cpu = 0;

	fuzz_need(rehash_compare(h, ram, &index, NULL, NULL, &cpu) == 0,
		  "%s the table does not tell what page %llu holds", when,
		  (unsigned long long)index);
	fuzz_need_marks(ram, when);
}

int __wrap_hashes_from_ram(struct hashes *h, const struct ram *ram, int (*tick)(void *arg),
			   void *arg)
{
	int ret = __real_hashes_from_ram(h, ram, tick, arg);

	half_made = ret ? h : NULL;
	return ret;
}

/* What is kept for a source that comes back is worth that only with a table that is right. */
void __wrap_vm_destroy_but_ram(struct vm *vm, struct ram *ram)
{
	const struct receiver *r = container_of(ram, struct receiver, kept.ram);

	if (r->hashes.table)
		check_table(&r->hashes, &vm->ram, "for one who comes back");
	__real_vm_destroy_but_ram(vm, ram);
}

/* A guest that runs has RAM of its own. */
void __wrap_hashes_free(struct hashes *h)
{
	struct receiver *r = container_of(h, struct receiver, hashes);
	const struct ram *ram = NULL;

	if (h != model && h != half_made && h->table && !r->running)
		ram = r->vm ? &r->vm->ram : r->kept.valid ? &r->kept.ram : NULL;
	if (ram && ram->npages == h->npages)
		check_table(h, ram, "in the end");
	if (h == half_made)
		half_made = NULL;
	__real_hashes_free(h);
}

/* ---- one move ---- */

struct move {
	struct receiver *receiver;
	struct source source;
	struct fuzz_in in;
	struct loop_task wake;
	bool done;
	atomic_bool played;
};

static void on_done(void *arg)
{
	struct move *m = arg;

	m->done = true;
}

static void on_wake(struct loop_task *task)
{
	(void)task;
}

static void *run_source(void *arg)
{
	struct move *m = arg;

	source_play(&m->source, &m->in);
	/* Of a liar it is not known what the other side waits for. */
	source_drain(&m->source, m->source.honest ? HONEST_LIMIT : LIAR_LIMIT);
	receive_cancel(m->receiver);
	m->played = true;
	loop_post(guest_loop(), &m->wake);
	return NULL;
}

static void check_content(struct move *m, struct vm *vm)
{
	for (unsigned i = 0; i < SOURCE_SLOTS; i++)
		fuzz_need(!memcmp(ram_page(&vm->ram, source_page(i)), m->source.content[i],
				  PAGE_SIZE),
			  "page %llu has not moved", (unsigned long long)source_page(i));
}

static void check(struct move *m, struct vm *vm)
{
	struct migrate_stats st;

	receive_get_stats(m->receiver, &st);
	fuzz_need(st.phase == MIGRATE_DONE, "it is over, and in phase %s",
		  migrate_phase_name(st.phase));
	fuzz_need(st.status == MIGRATE_COMPLETED || st.error.text[0], "it failed for no reason");
	fuzz_need(!m->source.running || st.status == MIGRATE_COMPLETED,
		  "the source was told that it runs, and it does not");
	fuzz_need(st.status != MIGRATE_COMPLETED || m->source.phase == SOURCE_DONE,
		  "it runs, and nobody said COMMIT");
	if (vm && st.status != MIGRATE_COMPLETED)
		fuzz_need(vm_paused(vm) & VM_PAUSE_START, "a guest runs that has not come");
	if (!m->source.honest || m->source.phase != SOURCE_DONE)
		return;
	fuzz_need(vm && st.status == MIGRATE_COMPLETED, "an honest source was refused: %s",
		  st.error.text);
	check_content(m, vm);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct move m;
	struct receive_options opt = {.build = guest_build, .keep_ns = KEEP_NS};
	char uri[MIGRATE_URI_MAX], path[MIGRATE_URI_MAX];
	struct errmsg err = {""};
	pthread_t thread;
	unsigned fds;
	int ret;

	memset(&m, 0, sizeof(m));
	m.in = (struct fuzz_in){data, data + size};
	m.wake.run = on_wake;
	variant = in_u8(&m.in) % GUEST_VARIANTS;
	/* Made before: they leave nothing behind but themselves. */
	guest_state(variant);
	guest_hello(variant);
	guest_config(1);
	fds = count_fds();
	snprintf(path, sizeof(path), "%s/receive", fuzz_folder());
	snprintf(opt.uri, sizeof(opt.uri), "unix:%.200s", path);
	ret = receive_listen(&m.receiver, &opt, uri, &err);
	fuzz_need(ret == 0, "not listening: %s", err.text);
	ret = receive_start(m.receiver, guest_loop(), on_done, &m, &err);
	fuzz_need(ret == 0, "not receiving: %s", err.text);

	source_init(&m.source, path, variant);
	model = &m.source.hashes;
	fuzz_need(!pthread_create(&thread, NULL, run_source, &m), "no thread");
	while (!m.done || !m.played)
		loop_step(guest_loop(), NS_PER_SEC);
	pthread_join(thread, NULL);
	loop_unpost(guest_loop(), &m.wake);

	check(&m, receive_vm(m.receiver));
	vm_destroy(receive_vm(m.receiver));
	receive_free(m.receiver);
	source_free(&m.source);
	fuzz_need(count_fds() == fds, "%u file descriptors before, %u after", fds, count_fds());
	return 0;
}
