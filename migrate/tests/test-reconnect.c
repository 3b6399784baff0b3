/* SPDX-License-Identifier: MIT */
/* After which failures the source tries to get another connection. */
#include <errno.h>
#include <string.h>

#include "../../vmm/tests/check-main.h"
#include "../source_parts.h"

static uint64_t bitmap[1];
static struct migration m;

static void begin(void)
{
	m = (struct migration){.opt.reconnect_ns = NS_PER_SEC, .dirty.bitmap = bitmap};
}

/* The network's failures, also those that one of the other connections met as it was opened. */
START_TEST(network)
{
	static const int why[] = {ECONNRESET,	ETIMEDOUT,   ECONNREFUSED, ENOENT,
				  EHOSTUNREACH, ENETUNREACH, ENETDOWN,	   EHOSTDOWN};

	for (size_t i = 0; i < ARRAY_SIZE(why); i++) {
		begin();
		ck_assert_msg(source_may_reconnect(&m, -why[i]), "%s", strerror(why[i]));
		m.pause_start = now_ns();
		ck_assert_msg(source_may_reconnect(&m, -why[i]), "%s", strerror(why[i]));
	}
}
END_TEST

/* What is damaged may be the network's fault only as long as pages come. */
START_TEST(damage)
{
	begin();
	ck_assert(source_may_reconnect(&m, -EBADMSG) && source_may_reconnect(&m, -EPROTO));
	m.pause_start = now_ns();
	ck_assert(!source_may_reconnect(&m, -EBADMSG) && !source_may_reconnect(&m, -EPROTO));
}
END_TEST

/* Who is not let in by his certificate will not be the next time. */
START_TEST(refused)
{
	begin();
	ck_assert(!source_may_reconnect(&m, -EACCES));
}
END_TEST

/* A guest is not stopped again and again for a handover that the network does not let through. */
START_TEST(pauses_in_vain)
{
	begin();
	m.pause_start = now_ns() - 30 * NS_PER_SEC;
	ck_assert(source_may_reconnect(&m, -ETIMEDOUT));
	m.stats.failed_pause_ns = 31 * NS_PER_SEC;
	ck_assert(!source_may_reconnect(&m, -ETIMEDOUT));
	m.pause_start = 0;
	ck_assert(source_may_reconnect(&m, -ETIMEDOUT));
}
END_TEST

START_TEST(never)
{
	static const int why[] = {ECANCELED, ECONNABORTED, ESHUTDOWN, ETIME, ENOMEM, EIO, ENOTSUP};

	begin();
	for (size_t i = 0; i < ARRAY_SIZE(why); i++)
		ck_assert_msg(!source_may_reconnect(&m, -why[i]), "%s", strerror(why[i]));
	/* Once COMMIT may be out; a vCPU that does not stop; before anything was begun. */
	m.committed = true;
	ck_assert(!source_may_reconnect(&m, -ECONNRESET));
	begin();
	m.own_fault = true;
	ck_assert(!source_may_reconnect(&m, -ETIMEDOUT));
	begin();
	m.dirty.bitmap = NULL;
	ck_assert(!source_may_reconnect(&m, -ECONNRESET));
	begin();
	m.opt.reconnect_ns = 0;
	ck_assert(!source_may_reconnect(&m, -ECONNRESET));
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {network, damage, refused, pauses_in_vain, never};

	return check_main("reconnect", tests, ARRAY_SIZE(tests));
}
