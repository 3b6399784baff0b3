/* SPDX-License-Identifier: MIT */
/* The clocks of one machine, set in another: on real KVM, whose caller is held up now and then. */
#include "../clock.h"

#include <stdarg.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kvm-fixture.h"

#define RAM_SIZE RAM_MIN
#define HELD_UP_MS 30

static unsigned long held_up; /* the request before which its thread loses the CPU once */

/* In place of the C library's, for all that this program is made of. */
int ioctl(int fd, unsigned long request, ...)
{
	struct timespec ts = {.tv_nsec = HELD_UP_MS * (long)NS_PER_MS};
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == held_up) {
		held_up = 0;
		nanosleep(&ts, NULL);
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

/* How far the guest's two clocks have moved against each other since then. */
static double apart_ms(struct machine *m, const struct vm_clock *then)
{
	struct errmsg err = {""};
	struct vm_clock now;
	double tsc_ms, kvmclock_ms;

	ck_assert_msg(clock_read(m->vm, &now, &err) == 0, "%s", err.text);
	tsc_ms = (double)(now.tsc[0] - then->tsc[0]) / (double)then->tsc_khz;
	kvmclock_ms = (double)(now.kvmclock_ns - then->kvmclock_ns) / (double)NS_PER_MS;
	clock_free(&now);
	return tsc_ms > kvmclock_ms ? tsc_ms - kvmclock_ms : kvmclock_ms - tsc_ms;
}

/* As much as tells it from what was put between; a busy host may add to it. */
static void need_together(struct machine *m, const struct vm_clock *c)
{
	double apart = apart_ms(m, c);

	ck_assert_msg(apart < HELD_UP_MS / 3.0, "the clocks are %.3f ms apart", apart);
}

static const struct {
	unsigned long request;
	bool alone; /* by a KVM that cannot tell how late it is asked */
} held[] = {{0, false}, {KVM_GET_CLOCK, false}, {KVM_SET_CLOCK, false}, {KVM_SET_CLOCK, true}};

START_TEST(held_up_at)
{
	struct machine *a = machine_new(RAM_SIZE, 1), *b = machine_new(RAM_SIZE, 1);
	struct errmsg err = {""};
	struct vm_clock c;

	if (held[_i].alone)
		b->vm->caps.clock_realtime = false;
	held_up = held[_i].request == KVM_GET_CLOCK ? held[_i].request : 0;
	ck_assert_msg(clock_read(a->vm, &c, &err) == 0, "%s", err.text);
	ck_assert_uint_eq(held_up, 0);
	need_together(a, &c);
	held_up = held[_i].request == KVM_SET_CLOCK ? held[_i].request : 0;
	ck_assert_msg(clock_set(b->vm, &c, &err) == 0, "%s", err.text);
	ck_assert_uint_eq(held_up, 0);
	need_together(b, &c);
	clock_free(&c);
	machine_free(a);
	machine_free(b);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("clock");
	TCase *tc = tcase_create("held-up");

	if (!kvm_here())
		return check_skip("clock", "no /dev/kvm");
	tcase_add_loop_test(tc, held_up_at, 0, ARRAY_SIZE(held));
	suite_add_tcase(s, tc);
	return check_run(s);
}
