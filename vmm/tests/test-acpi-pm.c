/* SPDX-License-Identifier: MIT */
/* Power button, power-off and the ways to reset: ACPI's fixed hardware and the i8042's. */
#include "device-fixture.h"

#include "../acpi_pm.h"
#include "../i8042.h"

#define STS ACPI_PM1A_EVT
#define EN (ACPI_PM1A_EVT + 2)
#define CNT ACPI_PM1A_CNT

#define SCI_EN 0x0001U
#define PWRBTN 0x0100U
#define SLP_EN 0x2000U

static struct fixture *f, *kbd;

static void setup(void)
{
	f = fixture_new(&acpi_pm_ops, NULL, 16 * MIB);
	kbd = fixture_new(&i8042_ops, NULL, 16 * MIB);
}

static void teardown(void)
{
	fixture_free(f);
	fixture_free(kbd);
}

static unsigned in16(struct fixture *on, uint64_t port)
{
	return (unsigned)bus_read(&on->vm.pio, port, 2);
}

static void out16(uint64_t port, unsigned v)
{
	bus_write(&f->vm.pio, port, 2, v);
}

static bool sci(void)
{
	return fixture_level[IRQ_SCI];
}

START_TEST(test_power_on)
{
	ck_assert_uint_eq(bus_read(&f->vm.pio, STS, 4), 0);
	ck_assert_uint_eq(in16(f, CNT), SCI_EN);
	ck_assert_uint_eq(fixture_in(f, ACPI_RESET_PORT), 0);
	ck_assert(!sci());
}
END_TEST

START_TEST(test_power_button)
{
	acpi_pm_power_button(f->dev);
	ck_assert_uint_eq(in16(f, STS), PWRBTN);
	ck_assert(!sci()); /* not enabled */
	out16(EN, PWRBTN);
	ck_assert(sci());
	out16(STS, 0); /* writing zeros clears nothing */
	out16(STS, 0xffff & ~PWRBTN);
	ck_assert_uint_eq(in16(f, STS), PWRBTN);
	ck_assert(sci());
	out16(STS, PWRBTN);
	ck_assert_uint_eq(in16(f, STS), 0);
	ck_assert(!sci());
	acpi_pm_power_button(f->dev);
	ck_assert(sci());
	out16(EN, 0);
	ck_assert(!sci());
	ck_assert_uint_eq(in16(f, STS), PWRBTN);
}
END_TEST

START_TEST(test_event_access_widths)
{
	acpi_pm_power_button(f->dev);
	ck_assert_uint_eq(fixture_in(f, STS), 0);
	ck_assert_uint_eq(fixture_in(f, STS + 1), PWRBTN >> 8);
	fixture_out(f, EN, 0x21);
	fixture_out(f, EN + 1, 0xff);
	/* Only what has an event can be enabled. */
	ck_assert_uint_eq(in16(f, EN), 0x4721);
	ck_assert(sci());
	fixture_out(f, STS, 0xff);
	ck_assert(sci());
	fixture_out(f, STS + 1, PWRBTN >> 8);
	ck_assert(!sci());
	/* A dword write clears and enables in one. */
	acpi_pm_power_button(f->dev);
	bus_write(&f->vm.pio, STS, 4, (uint64_t)PWRBTN << 16 | PWRBTN);
	ck_assert_uint_eq(bus_read(&f->vm.pio, STS, 4), (uint64_t)PWRBTN << 16);
	ck_assert(!sci());
}
END_TEST

START_TEST(test_control)
{
	out16(CNT, 0);
	ck_assert_uint_eq(in16(f, CNT), SCI_EN); /* there is no legacy mode to go back to */
	out16(CNT, 0x1c02);
	ck_assert_uint_eq(in16(f, CNT), 0x1c02 | SCI_EN);
	fixture_out(f, CNT + 1, 0x04);
	ck_assert_uint_eq(in16(f, CNT), 0x0402 | SCI_EN);
	ck_assert_int_eq(f->vm.end, VM_END_NONE);
}
END_TEST

START_TEST(test_power_off)
{
	/* Sleep types that do not exist are no power-off; SLP_EN reads as 0. */
	for (unsigned typ = 0; typ < 8; typ++) {
		if (typ == ACPI_S5_SLP_TYP)
			continue;
		out16(CNT, SLP_EN | typ << 10);
		ck_assert_int_eq(f->vm.end, VM_END_NONE);
		ck_assert_uint_eq(in16(f, CNT), SCI_EN | typ << 10);
	}
	/* As Linux does it: the type first, then with SLP_EN. */
	out16(CNT, SCI_EN | ACPI_S5_SLP_TYP << 10);
	ck_assert_int_eq(f->vm.end, VM_END_NONE);
	if (_i == 0)
		out16(CNT, SCI_EN | SLP_EN | ACPI_S5_SLP_TYP << 10);
	else
		fixture_out(f, CNT + 1, (SLP_EN | ACPI_S5_SLP_TYP << 10) >> 8);
	ck_assert_int_eq(f->vm.end, VM_END_POWEROFF);
}
END_TEST

START_TEST(test_reset_port)
{
	static const struct {
		unsigned value;
		enum vm_end end;
	} writes[] = {
		{0x00, VM_END_NONE}, {0x02, VM_END_NONE},  {0x04, VM_END_NONE},
		{0x08, VM_END_NONE}, {0x06, VM_END_RESET}, {0x0e, VM_END_RESET},
	};

	for (size_t i = 0; i < ARRAY_SIZE(writes); i++) {
		f->vm.end = VM_END_NONE;
		fixture_out(f, ACPI_RESET_PORT, writes[i].value);
		ck_assert_int_eq(f->vm.end, writes[i].end);
		ck_assert_uint_eq(fixture_in(f, ACPI_RESET_PORT), writes[i].value);
	}
}
END_TEST

START_TEST(test_reset)
{
	acpi_pm_power_button(f->dev);
	out16(EN, PWRBTN);
	out16(CNT, 0x1c03);
	ck_assert(sci());
	f->dev->ops->reset(f->dev);
	ck_assert(!sci());
	ck_assert_uint_eq(bus_read(&f->vm.pio, STS, 4), 0);
	ck_assert_uint_eq(in16(f, CNT), SCI_EN);
}
END_TEST

START_TEST(test_save_and_load)
{
	struct fixture *other;
	struct sbuf s;

	acpi_pm_power_button(f->dev);
	out16(EN, PWRBTN | 0x20);
	out16(CNT, 0x0c03);
	fixture_out(f, ACPI_RESET_PORT, 0x02);
	fixture_save(f, &s);

	other = fixture_new(&acpi_pm_ops, NULL, 16 * MIB);
	fixture_level[IRQ_SCI] = false;
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	ck_assert(sci());
	other->dev->ops->resume(other->dev);
	ck_assert_uint_eq(bus_read(&other->vm.pio, STS, 4), bus_read(&f->vm.pio, STS, 4));
	ck_assert_uint_eq(bus_read(&other->vm.pio, STS, 4), (uint64_t)0x0120 << 16 | PWRBTN);
	ck_assert_uint_eq(in16(other, CNT), 0x0c03);
	ck_assert_uint_eq(fixture_in(other, ACPI_RESET_PORT), 0x02);
	bus_write(&other->vm.pio, STS, 2, PWRBTN);
	ck_assert(!sci());
	fixture_free(other);

	/* A line that came over raised and has no cause any more falls. */
	f->dev->ops->resume(f->dev);
	out16(STS, PWRBTN);
	sb_free(&s);
	fixture_save(f, &s);
	other = fixture_new(&acpi_pm_ops, NULL, 16 * MIB);
	fixture_level[IRQ_SCI] = true;
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	ck_assert(!sci());
	fixture_free(other);
	sb_free(&s);
}
END_TEST

START_TEST(test_button_at_rest)
{
	struct sbuf s;

	out16(EN, PWRBTN);
	fixture_save(f, &s);
	acpi_pm_power_button(f->dev);
	ck_assert_uint_eq(in16(f, STS), 0); /* what was saved stays true */
	ck_assert(!sci());
	f->dev->ops->resume(f->dev);
	ck_assert_uint_eq(in16(f, STS), PWRBTN);
	ck_assert(sci());
	sb_free(&s);
}
END_TEST

START_TEST(test_load_hostile)
{
	struct sbuf s;

	fixture_save(f, &s);
	for (size_t len = 0; len < s.len; len++)
		ck_assert_int_lt(fixture_load(f, s.data, len), 0);
	/* A byte each of status, enable and control with a bit that is not there. */
	for (size_t i = 0; i < 3; i++) {
		static const struct {
			size_t at;
			uint8_t value;
		} bad[] = {{0, 0x02}, {3, 0x80}, {5, 0x20}};
		uint8_t good = s.data[bad[i].at];

		s.data[bad[i].at] = bad[i].value;
		ck_assert_int_eq(fixture_load(f, s.data, s.len), -EPROTO);
		s.data[bad[i].at] = good;
	}
	ck_assert_int_eq(fixture_load(f, s.data, s.len), 0);
	sb_free(&s);
}
END_TEST

START_TEST(test_i8042_reset)
{
	/* Pulses of other lines, and other commands, are no reset. */
	for (unsigned cmd = 0; cmd < 256; cmd++) {
		bool reset = cmd >= 0xf0 && !(cmd & 1);

		kbd->vm.end = VM_END_NONE;
		fixture_out(kbd, 0x60, cmd);
		ck_assert_int_eq(kbd->vm.end, VM_END_NONE);
		fixture_out(kbd, 0x64, cmd);
		ck_assert_int_eq(kbd->vm.end, reset ? VM_END_RESET : VM_END_NONE);
	}
}
END_TEST

START_TEST(test_i8042_probe)
{
	unsigned reads;

	/* Linux before it resets: until the input buffer is empty. */
	ck_assert_uint_eq(fixture_in(kbd, 0x64) & 0x02, 0);
	/* Linux when it looks: a buffer that 16 reads do not empty is no controller. */
	for (reads = 0; reads < 16 && (fixture_in(kbd, 0x64) & 0x01); reads++)
		fixture_in(kbd, 0x60);
	ck_assert_uint_eq(reads, 16);
	/* The self-test answers once. */
	fixture_out(kbd, 0x64, 0xaa);
	ck_assert_uint_eq(fixture_in(kbd, 0x60), 0x55);
	ck_assert_uint_eq(fixture_in(kbd, 0x60), 0xff);
	/* Port 0x61 belongs to the PIT. */
	ck_assert_uint_eq(bus_read(&kbd->vm.pio, 0x61, 1), UINT64_MAX);
}
END_TEST

START_TEST(test_i8042_save_and_load)
{
	struct fixture *other = fixture_new(&i8042_ops, NULL, 16 * MIB);
	struct sbuf s;

	fixture_out(kbd, 0x64, 0xaa);
	fixture_save(kbd, &s);
	ck_assert_int_lt(fixture_load(other, s.data, 0), 0);
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	other->dev->ops->resume(other->dev);
	ck_assert_uint_eq(fixture_in(other, 0x60), 0x55);
	fixture_free(other);
	sb_free(&s);
}
END_TEST

static Suite *acpi_pm_suite(void)
{
	Suite *s = suite_create("acpi-pm");
	TCase *t = tcase_create("acpi-pm");

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, test_power_on);
	tcase_add_test(t, test_power_button);
	tcase_add_test(t, test_event_access_widths);
	tcase_add_test(t, test_control);
	tcase_add_loop_test(t, test_power_off, 0, 2);
	tcase_add_test(t, test_reset_port);
	tcase_add_test(t, test_reset);
	tcase_add_test(t, test_save_and_load);
	tcase_add_test(t, test_button_at_rest);
	tcase_add_test(t, test_load_hostile);
	tcase_add_test(t, test_i8042_reset);
	tcase_add_test(t, test_i8042_probe);
	tcase_add_test(t, test_i8042_save_and_load);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	return fixture_main(acpi_pm_suite());
}
