/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../kvm.h"
#include "../probe.h"
#include "../probe_code.h"
#include "../probe_guest.h"
#include "../probe_report.h"
#include "../util.h"

#define NO_DEVICE "/nonexistent/kvm"
#define ALL_PROBES_MAX_NS (10 * NS_PER_SEC) /* generous: hosts of tests are busy */

static const struct probe_item *find(const struct probe_report *r, const char *name)
{
	for (unsigned i = 0; i < r->n; i++)
		if (strcmp(r->item[i].name, name) == 0)
			return &r->item[i];
	return NULL;
}

/* What must hold for the report of any host. */
static void check_report(const struct probe_report *r)
{
	bool run = true, linux_guests = true, migrate = true;

	ck_assert_uint_gt(r->n, 10);
	ck_assert_uint_le(r->n, PROBE_MAX);
	for (unsigned i = 0; i < r->n; i++) {
		const struct probe_item *item = &r->item[i];

		ck_assert_ptr_eq(find(r, item->name), item); /* unique */
		ck_assert_msg(item->detail[0], "%s says nothing", item->name);
		if (item->result == PROBE_OK)
			ck_assert_msg(!item->remedy[0], "%s is ok and has a remedy", item->name);
		else if (!strstr(item->detail, "not tried"))
			ck_assert_msg(item->remedy[0], "%s has no remedy", item->name);
		if (item->result == PROBE_MISSING) {
			run &= !item->needed_run;
			linux_guests &= !item->needed_run && !item->needed_linux;
			migrate &= !item->needed_run && !item->needed_migration;
		}
	}
	ck_assert(r->can_run == run);
	ck_assert(r->can_linux == linux_guests);
	ck_assert(r->can_migrate == migrate);
}

START_TEST(twice_the_same_and_in_time)
{
	static struct probe_report a, b;
	uint64_t start = now_ns();

	probe_all(&a);
	ck_assert_uint_lt(now_ns() - start, ALL_PROBES_MAX_NS);
	probe_all(&b);
	check_report(&a);
	check_report(&b);
	ck_assert_uint_eq(a.n, b.n);
	for (unsigned i = 0; i < a.n; i++) {
		ck_assert_str_eq(a.item[i].name, b.item[i].name);
		ck_assert_msg(a.item[i].result == b.item[i].result, "%s: once \"%s\", then \"%s\"",
			      a.item[i].name, a.item[i].detail, b.item[i].detail);
	}
}
END_TEST

START_TEST(linux_verdicts_agree)
{
	static struct probe_report r;
	struct errmsg err = {""};
	int ret = probe_linux(&err);
	bool cpu_ok = true;

	probe_all(&r);
	for (unsigned i = 0; i < r.n; i++) {
		const struct probe_item *item = &r.item[i];
		/* Capabilities have items of their own only where they are missing. */
		bool cap = item->needed_run && strncmp(item->name, "KVM_CAP_", 8) == 0;

		if ((item->needed_linux || cap) && item->result == PROBE_MISSING)
			cpu_ok = false;
	}
	ck_assert_msg((ret == 0) == cpu_ok, "probe_linux() gives %d (%s)", ret, err.text);
	ck_assert_msg((ret == 0) == !err.text[0], "%d with message \"%s\"", ret, err.text);
	ck_assert_ptr_null(strchr(err.text, '\n'));
}
END_TEST

START_TEST(without_kvm)
{
	static const char *const devices[] = {NO_DEVICE, "/dev/null", "/"};
	static struct probe_report r, with;

	probe_all(&with);
	for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
		probe_all_with(devices[i], &r);
		check_report(&r);
		ck_assert_int_eq(find(&r, "kvm")->result, PROBE_MISSING);
		ck_assert_ptr_nonnull(strstr(find(&r, "kvm")->detail, devices[i]));
		ck_assert(!r.can_run && !r.can_linux && !r.can_migrate);
		ck_assert_int_eq(probe_status(&r), PROBE_STATUS_NONE);
		ck_assert_int_eq(find(&r, "dirty-log")->result, PROBE_MISSING);
		/* The rest of the host is looked at all the same. */
		ck_assert_int_eq(find(&r, "io_uring")->result, find(&with, "io_uring")->result);
	}
}
END_TEST

START_TEST(status_tells_all_apart)
{
	static const struct {
		bool linux_guests, migrate;
		int status;
	} cases[] = {{true, true, 0}, {false, false, 1}, {false, true, 4}, {true, false, 5}};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct probe_report r = {
			.can_run = true,
			.can_linux = cases[i].linux_guests,
			.can_migrate = cases[i].migrate,
		};

		ck_assert_int_eq((int)probe_status(&r), cases[i].status);
	}
}
END_TEST

static void made_up_report(struct probe_report *r)
{
	*r = (struct probe_report){
		.n = 3,
		.item = {{.name = "alpha", .needed_run = true, .detail = "all \"well\""},
			 {.name = "beta",
			  .result = PROBE_MISSING,
			  .needed_linux = true,
			  .detail = "gone",
			  .remedy = "find it"},
			 {.name = "gamma",
			  .result = PROBE_LIMITED,
			  .needed_migration = true,
			  .detail = "so so",
			  .remedy = "find it"}},
		.can_run = true,
		.can_migrate = true,
	};
}

START_TEST(text_output)
{
	struct probe_report r;
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	made_up_report(&r);
	probe_print(&r, f, false);
	fclose(f);
	ck_assert_str_eq(text, "alpha  ok       all \"well\"\n"
			       "beta   missing  gone\n"
			       "       -> find it\n"
			       "gamma  limited  so so\n"
			       "\n"
			       "Linux guests:  no (beta)\n"
			       "Migration:     yes\n"
			       "Bare guests:   yes\n");
	free(text);

	text = NULL;
	f = open_memstream(&text, &len);
	probe_print(&r, f, true);
	fclose(f);
	ck_assert_ptr_nonnull(strchr(text, '\033'));
	free(text);
}
END_TEST

START_TEST(json_output)
{
	static const char expect[] =
		"{'linux':false,'migration':true,'bare':true,'status':4,'items':["
		"{'name':'alpha','result':'ok','needed_for':['bare'],'detail':'all \\\"well\\\"',"
		"'remedy':''},"
		"{'name':'beta','result':'missing','needed_for':['linux'],'detail':'gone',"
		"'remedy':'find it'},"
		"{'name':'gamma','result':'limited','needed_for':['migration'],"
		"'detail':'so so','remedy':'find it'}]}";
	char want[sizeof(expect)];
	struct probe_report r;
	json_t *got_json, *want_json;
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	made_up_report(&r);
	ck_assert_int_eq(probe_print_json(&r, f), 0);
	fclose(f);
	ck_assert_ptr_eq(strchr(text, '\n'), text + len - 1); /* one line */
	for (size_t i = 0; i < sizeof(expect); i++)
		want[i] = expect[i] == '\'' ? '"' : expect[i];
	got_json = json_loads(text, 0, NULL);
	want_json = json_loads(want, 0, NULL);
	ck_assert_ptr_nonnull(want_json);
	ck_assert_msg(json_equal(got_json, want_json), "%s", text);
	json_decref(got_json);
	json_decref(want_json);
	free(text);
}
END_TEST

START_TEST(needs_are_named_once)
{
	for (const struct kvm_need *a = kvm_needs; a->name; a++) {
		ck_assert(a->why && a->why[0]);
		ck_assert_int_eq(strncmp(a->name, "KVM_CAP_", 8), 0);
		for (const struct kvm_need *b = kvm_needs; b != a; b++)
			ck_assert(a->cap != b->cap && strcmp(a->name, b->name) != 0);
	}
}
END_TEST

/* A guest for tests of the harness; false, and said so, where there is no KVM. */
static bool get_guest(struct probe_guest *g, int *kvm_fd)
{
	struct errmsg cause = {""}, remedy = {""};

	*kvm_fd = kvm_open_path("/dev/kvm", &cause, &remedy);
	if (*kvm_fd < 0) {
		fprintf(stderr, "test-probe: guest not run: %s\n", cause.text);
		ck_assert(cause.text[0] && remedy.text[0]);
		return false;
	}
	ck_assert_int_eq(probe_guest_init(g, *kvm_fd, NULL), 0);
	return true;
}

START_TEST(endless_guest_is_stopped)
{
	/* Counting down from 0 takes some centuries. */
	const struct probe_entry kernel = {.code = probe_code_loop};
	const struct probe_entry user = {.code = probe_code_loop, .user = true};
	const struct probe_entry again = {.code = probe_code_loop, .rcx = 3};
	struct probe_guest g;
	sigset_t before, after;
	uint64_t start;
	int kvm_fd;

	if (!get_guest(&g, &kvm_fd))
		return;
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	start = now_ns();
	ck_assert_int_eq(probe_guest_run(&g, &kernel), GUEST_HANG);
	ck_assert_int_eq(probe_guest_run(&g, &user), GUEST_HANG);
	ck_assert_uint_ge(now_ns() - start, 2 * PROBE_GUEST_LIMIT_NS);
	ck_assert_uint_lt(now_ns() - start, 10 * PROBE_GUEST_LIMIT_NS);

	/* Nothing is left behind: no signal, no change of mask, and the guest goes on. */
	ck_assert_int_eq(probe_guest_run(&g, &again), GUEST_DONE);
	ck_assert_uint_eq(g.value, PROBE_PASS);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	for (int sig = 1; sig < 65; sig++)
		ck_assert_int_eq(sigismember(&before, sig), sigismember(&after, sig));
	sigpending(&after);
	ck_assert_int_eq(sigismember(&after, SIGALRM), 0);
	probe_guest_destroy(&g);
	close(kvm_fd);
}
END_TEST

START_TEST(guest_failures_are_seen)
{
	const struct probe_entry ud2 = {.code = probe_code_ud2};
	const struct probe_entry fault = {.code = probe_code_page_fault};
	const struct probe_entry handled = {
		.code = probe_code_page_fault,
		.handler = probe_on_page_fault,
		.vector = 14,
	};
	struct probe_guest g;
	char text[80];
	int kvm_fd;

	if (!get_guest(&g, &kvm_fd))
		return;
	ck_assert_int_eq(probe_guest_run(&g, &ud2), GUEST_FAULT);
	ck_assert_uint_eq(g.value, 6);
	ck_assert_str_eq(probe_guest_describe(&g, text, sizeof(text)), "ends in exception 6");
	ck_assert_int_eq(probe_guest_run(&g, &fault), GUEST_FAULT);
	ck_assert_uint_eq(g.value, 14);
	ck_assert_int_eq(probe_guest_run(&g, &handled), GUEST_DONE);
	ck_assert_uint_eq(g.value, PROBE_PASS);
	probe_guest_destroy(&g);
	close(kvm_fd);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("probe");
	TCase *tc = tcase_create("probe");

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, twice_the_same_and_in_time);
	tcase_add_test(tc, linux_verdicts_agree);
	tcase_add_test(tc, without_kvm);
	tcase_add_test(tc, status_tells_all_apart);
	tcase_add_test(tc, text_output);
	tcase_add_test(tc, json_output);
	tcase_add_test(tc, needs_are_named_once);
	tcase_add_test(tc, endless_guest_is_stopped);
	tcase_add_test(tc, guest_failures_are_seen);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	SRunner *sr = srunner_create(suite());
	int failed;

	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
