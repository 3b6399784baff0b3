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

START_TEST(held_up_at)
{
	static const unsigned long request[] = {0, KVM_GET_CLOCK, KVM_SET_CLOCK};
	struct machine *a = machine_new(RAM_SIZE, 1), *b = machine_new(RAM_SIZE, 1);
	struct vm_clock c;
	struct errmsg err = {""};
	double apart;

	if (request[_i] == KVM_SET_CLOCK && !b->vm->caps.clock_realtime)
		fprintf(stderr, "this KVM cannot tell how late it is asked: done again instead\n");
	held_up = request[_i] == KVM_GET_CLOCK ? request[_i] : 0;
	ck_assert_msg(clock_read(a->vm, &c, &err) == 0, "%s", err.text);
	ck_assert_uint_eq(held_up, 0);
	held_up = request[_i] == KVM_SET_CLOCK ? request[_i] : 0;
	ck_assert_msg(clock_set(b->vm, &c, &err) == 0, "%s", err.text);
	ck_assert_uint_eq(held_up, 0);
	apart = apart_ms(b, &c);
	/* As much as tells it from what was put between; a busy host may add to it. */
	ck_assert_msg(apart < HELD_UP_MS / 3.0, "the clocks are %.3f ms apart", apart);
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
	tcase_add_loop_test(tc, held_up_at, 0, 3);
	suite_add_tcase(s, tc);
	return check_run(s);
}
