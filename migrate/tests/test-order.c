/* SPDX-License-Identifier: MIT */
/*
 * A whole move within this process, with a device that keeps an eye on the order of things: vCPUs
 * stopped, then devices brought to rest, then saved, and only then the last pages harvested; at the
 * destination loaded before resumed, and no vCPU runs before that.
 *
 * The device stores into guest RAM at each of its moments, as real ones do; what it stored must
 * have arrived.
 */
#include "../migrate.h"

#include <stdatomic.h>
#include <stdio.h>

#include "../../vmm/tests/kvm-fixture.h"

/* Guest-physical: the guest counts in one page, the device leaves its notes in others. */
#define COUNT_GPA 0x20000ULL
#define QUIESCE_GPA 0x300000ULL
#define SAVE_GPA 0x301000ULL
#define ENDLESS (60 * NS_PER_SEC)

enum moment {
	QUIESCED = 1,
	SAVED,
	LOADED,
	RESUMED,
};

struct spy {
	struct device dev;
	enum moment last;
	unsigned resumes;
	uint64_t note;	/* its state: what it wrote when it was brought to rest */
	uint64_t count; /* the guest's counter as it was then */
	bool refuse;	/* to be loaded */
};

static uint64_t count_of(struct vm *vm)
{
	return *(const volatile uint64_t *)ram_ptr(&vm->ram, COUNT_GPA, 8);
}

static void need_stopped(struct vm *vm, const char *when)
{
	uint64_t before;

	pthread_mutex_lock(&vm->lock);
	ck_assert_msg(vm->n_parked == vm->n_started, "%s: %u of %u vCPUs stand", when, vm->n_parked,
		      vm->n_started);
	pthread_mutex_unlock(&vm->lock);
	before = count_of(vm);
	usleep(2000);
	ck_assert_msg(count_of(vm) == before, "%s: the guest counts on", when);
}

static int spy_init(struct device *d, const void *config)
{
	struct spy *s = container_of(d, struct spy, dev);

	s->refuse = *(const bool *)config;
	return 0;
}

static void spy_reset(struct device *d)
{
	(void)d;
}

static int spy_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct spy *s = container_of(d, struct spy, dev);

	(void)deadline_ns;
	need_stopped(d->vm, "quiesce");
	s->last = QUIESCED;
	s->count = count_of(d->vm);
	s->note = 0x1000 + s->count;
	/* What was under way is finished now. */
	ck_assert_int_eq(ram_write(&d->vm->ram, QUIESCE_GPA, &s->note, sizeof(s->note)), 0);
	return 0;
}

static void spy_resume(struct device *d)
{
	struct spy *s = container_of(d, struct spy, dev);

	s->resumes++;
	s->last = RESUMED;
}

static void spy_fields(struct device *d, struct sbuf *b)
{
	struct spy *s = container_of(d, struct spy, dev);

	if (!b->loading) {
		ck_assert_msg(s->last == QUIESCED, "saved in moment %u", s->last);
		need_stopped(d->vm, "save");
		ck_assert_uint_eq(count_of(d->vm), s->count);
		/* Saving may store, too. */
		ck_assert_int_eq(ram_write(&d->vm->ram, SAVE_GPA, &s->note, sizeof(s->note)), 0);
		s->last = SAVED;
	}
	sb_u64(b, &s->note);
	sb_u64(b, &s->count);
}

static int spy_loaded(struct device *d)
{
	struct spy *s = container_of(d, struct spy, dev);
	uint64_t there;

	ck_assert_uint_eq(s->resumes, 0);
	need_stopped(d->vm, "load");
	/* All of RAM is here before any state is. */
	ck_assert_msg(count_of(d->vm) == s->count, "the guest had counted to %llu, here is %llu",
		      (unsigned long long)s->count, (unsigned long long)count_of(d->vm));
	ck_assert_int_eq(ram_read(&d->vm->ram, QUIESCE_GPA, &there, 8), 0);
	ck_assert_msg(there == s->note, "what was stored at rest is lost");
	ck_assert_int_eq(ram_read(&d->vm->ram, SAVE_GPA, &there, 8), 0);
	ck_assert_msg(there == s->note, "what was stored by saving is lost");
	s->last = LOADED;
	return s->refuse ? -EPROTO : 0;
}

static void spy_destroy(struct device *d)
{
	(void)d;
}

static const struct device_ops spy_ops = {
	.tag = "spy",
	.size = sizeof(struct spy),
	.version = 1,
	.min_version = 1,
	.init = spy_init,
	.reset = spy_reset,
	.quiesce = spy_quiesce,
	.resume = spy_resume,
	.fields = spy_fields,
	.loaded = spy_loaded,
	.destroy = spy_destroy,
};

/* ---- both sides ---- */

static struct machine *m;
static struct receiver *receiver;
static struct vm *arrived;
static bool refuse, source_done, dest_done;
static char dir[] = "/tmp/godwit-order-XXXXXX", uri[MIGRATE_URI_MAX];

static struct spy *spy_of(struct vm *vm)
{
	return container_of(vm->devices, struct spy, dev);
}

static int build(void *arg, struct vm_config *cfg, const struct cpuid *cpuid, struct vm **out,
		 struct errmsg *err)
{
	int ret = vm_create(&arrived, cfg, cpuid, arg, err);

	if (ret == 0)
		ret = vm_add_device(arrived, &spy_ops, 0, &refuse, err);
	*out = arrived;
	return ret;
}

static void set_flag(void *arg)
{
	*(bool *)arg = true;
}

/* A guest of this code, with this port unless NULL. */
static void begin_with(const uint8_t *code, size_t len, const struct bus_range *port)
{
	struct kvm_regs regs = {.rdi = COUNT_GPA};
	struct receive_options opt = {.build = build};
	static const bool no = false;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	m = machine_new(RAM_MIN, 1);
	ck_assert_int_eq(vm_add_device(m->vm, &spy_ops, 0, &no, &m->err), 0);
	if (port)
		ck_assert_int_eq(bus_add(&m->vm->pio, port), 0);
	machine_code(m, 0, code, len, &regs);
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	vm_resume(m->vm, VM_PAUSE_START);

	opt.build_arg = &m->loop;
	snprintf(opt.uri, sizeof(opt.uri), "unix:%s/s", dir);
	ck_assert_msg(receive_listen(&receiver, &opt, uri, &m->err) == 0, "%s", m->err.text);
	ck_assert_int_eq(receive_start(receiver, &m->loop, set_flag, &dest_done, &m->err), 0);
}

static void begin(void)
{
	/* 1: incq (%rdi); jmp 1b */
	static const uint8_t code[] = {0x48, 0xff, 0x07, 0xeb, 0xfb};

	begin_with(code, sizeof(code), NULL);
}

static void end(void)
{
	receive_free(receiver);
	vm_destroy(arrived);
	machine_free(m);
	rmdir(dir);
}

static void move(enum migrate_verify verify, struct migrate_stats *there,
		 struct migrate_stats *here)
{
	struct migrate_options opt = {
		.downtime_ns = NS_PER_SEC, .timeout_ns = ENDLESS, .verify = verify};
	uint64_t deadline = now_ns() + 45 * NS_PER_SEC;
	struct migration *mig;

	snprintf(opt.uri, sizeof(opt.uri), "%s", uri);
	ck_assert_msg(migrate_start(&mig, m->vm, &opt, set_flag, &source_done, &m->err) == 0, "%s",
		      m->err.text);
	while (!(source_done && dest_done) && now_ns() < deadline)
		ck_assert_int_eq(loop_step(&m->loop, NS_PER_SEC / 10), 0);
	ck_assert_msg(source_done && dest_done, "no end of it");
	migrate_get_stats(mig, there);
	receive_get_stats(receiver, here);
	migrate_free(mig);
}

static void wait_count(struct vm *vm, uint64_t more_than)
{
	uint64_t deadline = now_ns() + 30 * NS_PER_SEC;

	while (count_of(vm) <= more_than && now_ns() < deadline)
		usleep(100);
	ck_assert_msg(count_of(vm) > more_than, "the guest does not count on");
}

static void order(enum migrate_verify verify)
{
	struct migrate_stats from, to;
	struct spy *a, *b;

	begin();
	wait_count(m->vm, 100);
	move(verify, &from, &to);
	ck_assert_msg(from.status == MIGRATE_COMPLETED, "%s", from.error.text);
	ck_assert_msg(to.status == MIGRATE_COMPLETED, "%s", to.error.text);
	a = spy_of(m->vm);
	b = spy_of(arrived);
	/* The source's devices stay at rest, and its guest stands for good. */
	ck_assert(a->last == SAVED && a->resumes == 0);
	need_stopped(m->vm, "after the move");
	ck_assert_int_eq(vm_get_end(m->vm), VM_END_MOVED);
	ck_assert(b->last == RESUMED && b->resumes == 1);
	ck_assert_uint_eq(b->note, a->note);
	wait_count(arrived, a->count);
	/* What it reports adds up. */
	ck_assert_uint_eq(from.verified_pages, RAM_MIN / PAGE_SIZE);
	ck_assert_uint_eq(to.verified_pages, RAM_MIN / PAGE_SIZE);
	ck_assert_uint_eq(from.pages_sent, to.pages_sent);
	ck_assert_uint_eq(from.wire_bytes, to.wire_bytes);
	ck_assert_uint_eq(from.pages_scanned,
			  from.pages_sent + from.pages_zero + from.pages_unchanged);
	ck_assert_uint_eq(from.downtime_ns, from.pause_ns + from.state_ns + from.last_pages_ns +
						    from.proof_ns + from.commit_ns);
	ck_assert_uint_gt(from.total_ns, from.downtime_ns);
	end();
}

START_TEST(order_of_a_move)
{
	order(MIGRATE_VERIFY_STREAM);
}
END_TEST

START_TEST(order_with_full_verification)
{
	order(MIGRATE_VERIFY_FULL);
}
END_TEST

/* A state that the destination cannot take: all goes back, and the guest counts on at the source.
 */
START_TEST(back_again)
{
	struct migrate_stats from, to;
	struct spy *a;

	refuse = true;
	begin();
	wait_count(m->vm, 100);
	move(MIGRATE_VERIFY_STREAM, &from, &to);
	ck_assert_int_eq(from.status, MIGRATE_FAILED);
	ck_assert_int_eq(to.status, MIGRATE_FAILED);
	ck_assert_msg(strstr(from.error.text, "spy"), "%s", from.error.text);
	a = spy_of(m->vm);
	ck_assert(a->last == RESUMED && a->resumes == 1);
	ck_assert_uint_eq(vm_paused(m->vm), 0);
	wait_count(m->vm, a->count);
	ck_assert_uint_eq(spy_of(arrived)->resumes, 0);
	need_stopped(arrived, "refused");
	end();
}
END_TEST

/* ---- a vCPU that the host holds in a device's handler ---- */

#define HELD_PORT 0x9aU

static _Atomic bool held, in_handler;

static void held_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	uint64_t deadline = now_ns() + 50 * NS_PER_SEC;

	(void)dev;
	(void)offset;
	(void)size;
	(void)value;
	while (held && now_ns() < deadline) {
		in_handler = true;
		usleep(1000);
	}
}

static uint64_t held_read(void *dev, uint64_t offset, unsigned size)
{
	(void)dev;
	(void)offset;
	(void)size;
	return 0;
}

/* It is given up, names the vCPU, and the guest counts on as soon as the host lets it. */
START_TEST(held_up)
{
	/* 1: incq (%rdi); out %al, $0x9a; jmp 1b */
	static const uint8_t code[] = {0x48, 0xff, 0x07, 0xe6, HELD_PORT, 0xeb, 0xf9};
	static const struct bus_ops ops = {.read = held_read, .write = held_write};
	struct bus_range port = {.base = HELD_PORT, .len = 1, .name = "held", .ops = &ops};
	struct migrate_stats from, to;

	begin_with(code, sizeof(code), &port);
	wait_count(m->vm, 10);
	held = true;
	for (unsigned i = 0; i < 1000 && !in_handler; i++)
		usleep(10000);
	ck_assert(in_handler);
	move(MIGRATE_VERIFY_STREAM, &from, &to);
	ck_assert_int_eq(from.status, MIGRATE_FAILED);
	ck_assert_int_eq(to.status, MIGRATE_FAILED);
	ck_assert_msg(strstr(from.error.text, "vCPU 0 has not stopped"), "%s", from.error.text);
	/* The destination learns why. */
	ck_assert_msg(strstr(to.error.text, "vCPU 0 has not stopped"), "%s", to.error.text);
	ck_assert_uint_ge(from.downtime_ns, 4 * NS_PER_SEC);
	ck_assert_uint_eq(spy_of(m->vm)->resumes, 0);
	ck_assert_uint_eq(vm_paused(m->vm), 0);
	held = false;
	wait_count(m->vm, count_of(m->vm));
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {order_of_a_move, order_with_full_verification, back_again,
				      held_up};

	if (!kvm_here())
		return check_skip("order", "no /dev/kvm");
	return check_main("order", tests, ARRAY_SIZE(tests));
}
