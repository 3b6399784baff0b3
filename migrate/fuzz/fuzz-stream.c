/* SPDX-License-Identifier: MIT */
/*
 * The receiving side, from a source's first byte on: `godwit receive` without KVM
 * (vmm/fuzz/fake_kvm.h), all of migrate/dest*.c with its door, lanes, store and pulse, on a UNIX
 * socket, or by TLS with a pre-shared key. What the receiver was told itself (what guest it takes,
 * how long it keeps one, what memory there is from before) the input says, too.
 *
 * What the source says is in source.h. Whatever that was,
 *
 *	- a guest runs only after a proof that was READY's, and a COMMIT of the same memory;
 *	- what is refused is refused with a reason, which the source is told;
 *	- the table of hashes tells what RAM holds, whenever either is kept or given up (store.h);
 *	- what RAM holds was stored by functions of ram.h, which mark it;
 *	- the guest's TSC runs at the speed that it was promised;
 *	- who has not the key is not heard;
 *	- no file descriptor is left, and (where the corpus is replayed) no memory.
 *
 * And a source that was honest has moved: the destination holds what it sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../../vmm/fuzz/fake_kvm.h"
#include "../dest_parts.h"
#include "../rehash.h"
#include "source.h"

#define KEEP_NS (10 * NS_PER_SEC)
#define HONEST_LIMIT (60 * NS_PER_SEC)
#define LIAR_LIMIT (20 * NS_PER_MS)
#define KEEP_SHORT (20 * NS_PER_MS)

/* Bits of an input's first byte, beside the guest's variant and the kind of host. */
enum {
	KEEP_NOTHING = 8,
	KEEP_BRIEFLY = 16,
	BASE = 32,
	PROTECTED = 64,
	WISHES = 128, /* another byte follows, with: */
};

enum {
	OTHER_RAM = 1,
	OTHER_VCPUS = 2,
	LESS_CPU = 4,
	NO_SUCH_CPU = 8,
	SMALL_HOST = 16,
	FULL_HOST = 32,
	SHORT_BASE = 64,
	SAME_GUEST = 128,
};

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
	struct source_way way;
	struct loop_task wake;
	bool done;
	atomic_bool played;
	bool brief; /* what is kept goes soon */
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

/* Nobody comes back for what is kept, which ends by itself. */
static void stay_away(struct receiver *r)
{
	uint64_t until = now_ns() + 10 * KEEP_SHORT;
	struct migrate_stats st;

	do {
		poll(NULL, 0, 1);
		receive_get_stats(r, &st);
	} while (st.phase == MIGRATE_KEEPING && now_ns() < until);
}

static void *run_source(void *arg)
{
	struct move *m = arg;
	bool over;

	source_play(&m->source, &m->in);
	/* Of a liar it is not known what the other side waits for. */
	over = source_drain(&m->source, m->source.honest ? HONEST_LIMIT : LIAR_LIMIT);
	if (over && m->brief)
		stay_away(m->receiver);
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
	if (vm)
		fuzz_need(vm->tsc_khz == (uint64_t)ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0),
			  "its TSC does not run at %llu kHz", (unsigned long long)vm->tsc_khz);
	if (!m->source.honest || m->source.phase != SOURCE_DONE)
		return;
	fuzz_need(vm && st.status == MIGRATE_COMPLETED, "an honest source was refused: %s",
		  st.error.text);
	check_content(m, vm);
}

/* ---- what the receiver was told ---- */

/* Memory from before: of a guest's size or not, with pages of the source's slots and another. */
static const char *make_base(bool whole)
{
	static char path[2][MIGRATE_URI_MAX];
	char *p = path[whole], page[PAGE_SIZE];
	int fd;

	if (p[0])
		return p;
	snprintf(p, sizeof(path[0]), "%.200s/base%d", fuzz_folder(), whole);
	fd = open(p, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	fuzz_need(fd >= 0 && ftruncate(fd, (off_t)RAM_MIN - (whole ? 0 : 1)) == 0, "%s: %s", p,
		  strerror(errno));
	for (unsigned i = 0; i <= SOURCE_SLOTS; i++) {
		uint64_t index = i < SOURCE_SLOTS ? source_page(i) : SOURCE_NPAGES / 2;

		memset(page, (int)i, sizeof(page));
		fuzz_need(pwrite(fd, page, PAGE_SIZE - 1, (off_t)(index * PAGE_SIZE)) ==
				  PAGE_SIZE - 1,
			  "%s: %s", p, strerror(errno));
	}
	close(fd);
	return p;
}

static const char *make_key(char digit)
{
	static char path[2][MIGRATE_URI_MAX];
	char *p = path[digit == 'a'], text[33];
	int fd;

	if (p[0])
		return p;
	snprintf(p, sizeof(path[0]), "%.200s/key-%c", fuzz_folder(), digit);
	memset(text, digit, sizeof(text) - 1);
	text[sizeof(text) - 1] = '\n';
	fd = open(p, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	fuzz_need(fd >= 0 && write(fd, text, sizeof(text)) == sizeof(text), "%s: %s", p,
		  strerror(errno));
	close(fd);
	return p;
}

/* The source's side of it. */
static struct tls *credentials(char digit)
{
	static struct tls *made[2];
	struct tls **tls = &made[digit == 'a'];
	struct migrate_tls files = {.psk = ""};
	struct errmsg err = {""};

	if (*tls)
		return *tls;
	signal(SIGPIPE, SIG_IGN);
	snprintf(files.psk, sizeof(files.psk), "%s", make_key(digit));
	fuzz_need(tls_load(tls, &files, "tls:127.0.0.1:1", false, &err) == 0, "%s", err.text);
	return *tls;
}

/* True when it takes any guest that fits. */
static bool choose(struct receive_options *opt, struct fuzz_in *in, uint8_t first)
{
	uint8_t wishes = first & WISHES ? in_u8(in) : 0;

	variant = first % GUEST_VARIANTS;
	fake_kvm_set_host(first / GUEST_VARIANTS % FAKE_KVM_HOSTS);
	guest_memory = (struct host_memory){.total = 32 * MIB, .available = GIB};
	opt->keep_ns = first & KEEP_NOTHING ? 0 : first & KEEP_BRIEFLY ? KEEP_SHORT : KEEP_NS;
	if (first & BASE)
		snprintf(opt->base, sizeof(opt->base), "%s", make_base(!(wishes & SHORT_BASE)));
	if (wishes & (OTHER_RAM | SAME_GUEST))
		opt->want_ram = wishes & OTHER_RAM ? 2 * RAM_MIN : RAM_MIN;
	if (wishes & (OTHER_VCPUS | SAME_GUEST))
		opt->want_vcpus = wishes & OTHER_VCPUS ? 7 : 1 + variant;
	if (wishes & (LESS_CPU | NO_SUCH_CPU))
		snprintf(opt->cpu_mask, sizeof(opt->cpu_mask), "%s",
			 wishes & LESS_CPU ? "host,-sse2" : "-x");
	if (wishes & SMALL_HOST)
		guest_memory.total = RAM_MIN / 32;
	if (wishes & FULL_HOST)
		guest_memory.available = 0;
	return !(wishes & ~(SAME_GUEST | SHORT_BASE));
}

static void listen_for_it(struct move *m, struct receive_options *opt)
{
	static char path[MIGRATE_URI_MAX];
	char uri[MIGRATE_URI_MAX];
	struct errmsg err = {""};
	int ret;

	snprintf(path, sizeof(path), "%s/receive", fuzz_folder());
	m->way.path = path;
	snprintf(opt->uri, sizeof(opt->uri), "unix:%.200s", path);
	if (m->way.tls) {
		snprintf(opt->uri, sizeof(opt->uri), "tls:127.0.0.1:0");
		snprintf(opt->tls.psk, sizeof(opt->tls.psk), "%s", make_key('a'));
	}
	ret = receive_listen(&m->receiver, opt, uri, &err);
	fuzz_need(ret == 0, "not listening: %s", err.text);
	if (m->way.tls)
		m->way.port = (uint16_t)atoi(strrchr(uri, ':') + 1);
	ret = receive_start(m->receiver, guest_loop(), on_done, m, &err);
	fuzz_need(ret == 0, "not receiving: %s", err.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct move m;
	struct receive_options opt = {.build = guest_build};
	bool any_guest;
	pthread_t thread;
	uint8_t first;
	unsigned fds;

	memset(&m, 0, sizeof(m));
	m.in = (struct fuzz_in){data, data + size};
	m.wake.run = on_wake;
	first = in_u8(&m.in);
	/* Made before: they leave nothing behind but themselves. */
	fake_kvm_set_host(0);
	guest_state(first % GUEST_VARIANTS);
	guest_hello(first % GUEST_VARIANTS);
	guest_config(1);
	if (first & PROTECTED) {
		m.way.tls = credentials('a');
		m.way.other_key = credentials('b');
	}
	any_guest = choose(&opt, &m.in, first);
	m.brief = opt.keep_ns == KEEP_SHORT;
	m.way.keeps = opt.keep_ns == KEEP_NS;
	fds = count_fds();
	listen_for_it(&m, &opt);

	source_init(&m.source, &m.way, variant);
	/* What is there already it would have to ask for. */
	m.source.honest = any_guest && !(first & BASE);
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
