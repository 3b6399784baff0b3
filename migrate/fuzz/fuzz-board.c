/* SPDX-License-Identifier: MIT */
/*
 * What a guest can do to the devices that every machine has: serial line, clock, ACPI registers,
 * keyboard controller, by any port; while somebody types, or does not read what it writes, presses
 * the power button, and has it moved.
 *
 * Whatever it does,
 *
 *	- it ends only by the ports that are for that, and stores nothing into RAM;
 *	- a read gives no more bits than were asked for;
 *	- a move takes everything along: registers, what was typed and what was written, in order,
 *	  and interrupts that have not been served;
 *	- in the end an honest driver finds devices that work.
 */
#include <errno.h>
#include <linux/serial_reg.h>
#include <stdio.h>

#include "../../vmm/acpi_pm.h"
#include "../../vmm/fuzz/fake_kvm.h"
#include "../../vmm/machine.h"
#include "../state.h"
#include "guest.h"

#define COM1 0x3f8U
#define RTC 0x70U
#define MOVES_MAX 4U

static const uint16_t bases[] = {
	COM1, RTC, ACPI_PM1A_EVT, ACPI_PM1A_CNT, ACPI_RESET_PORT, 0x60, 0x64, RTC - 1,
};

/* Lines that stay up until the guest has seen to them. */
static const uint32_t lines[] = {IRQ_COM1, IRQ_RTC, IRQ_SCI};

struct board {
	struct fuzz_guest side[2], *g; /* where it is, one of the two */
	bool may_end;
	unsigned moves;
	char out[2 * CHAN_OUT_SIZE]; /* the latest that was taken off the line */
};

/* ---- ports ---- */

static bool overlaps(uint64_t port, unsigned size, uint64_t base, unsigned len)
{
	return port < base + len && base < port + size;
}

static void out(struct board *b, uint64_t port, unsigned size, uint64_t value)
{
	b->may_end |= overlaps(port, size, ACPI_PM1A_CNT, 2) ||
		      overlaps(port, size, ACPI_RESET_PORT, 1) || overlaps(port, size, 0x64, 1);
	bus_write(&b->g->vm->pio, port, size, value);
}

static uint64_t in(struct board *b, uint64_t port, unsigned size)
{
	uint64_t v = bus_read(&b->g->vm->pio, port, size);

	fuzz_need(v == UINT64_MAX || !(v >> 8 * size), "%u bytes of port %#llx are %#llx", size,
		  (unsigned long long)port, (unsigned long long)v);
	return v;
}

static uint64_t any_port(struct fuzz_in *input)
{
	uint8_t which = in_u8(input);

	if (which >= 0xf8)
		return in_u16(input);
	return bases[which % ARRAY_SIZE(bases)] + which / ARRAY_SIZE(bases) % 8;
}

static unsigned any_size(struct fuzz_in *input)
{
	return 1U << in_u8(input) % 3;
}

/* ---- the other end of the line ---- */

static ssize_t take(void *arg, const void *buf, size_t len)
{
	struct board *b = arg;

	len = MIN(len, sizeof(b->out));
	memcpy(b->out, buf, len);
	return (ssize_t)len;
}

static void type(struct board *b, struct fuzz_in *input)
{
	uint8_t text[256];
	uint8_t n = in_u8(input);

	memset(text, n, sizeof(text));
	in_bytes(input, text, MIN(n, 8U));
	chan_host_put(&b->g->serial, text, n);
}

/* ---- moves ---- */

static void ring_copy(const struct chan_ring *r, uint8_t *to)
{
	for (uint32_t i = 0; i < r->len; i++)
		to[i] = r->data[(r->head + i) % r->size];
}

static void need_same_ring(const struct chan_ring *x, const struct chan_ring *y, const char *what)
{
	static uint8_t a[CHAN_OUT_SIZE], b[CHAN_OUT_SIZE];

	fuzz_need(x->len == y->len, "%s: %u bytes, and %u after the move", what, x->len, y->len);
	ring_copy(x, a);
	ring_copy(y, b);
	fuzz_need(memcmp(a, b, x->len) == 0, "%s is another after the move", what);
}

static void rest(struct fuzz_guest *g)
{
	struct errmsg err = {""};

	fuzz_need(guest_quiesce(g, &err) == 0, "it does not come to rest: %s", err.text);
}

static void move(struct board *b)
{
	struct sbuf first, second;
	bool up[ARRAY_SIZE(lines)];
	struct errmsg err = {""};
	struct fuzz_guest *to = &b->side[b->g == &b->side[0]];

	if (b->moves++ == MOVES_MAX)
		return;
	rest(b->g);
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		up[i] = fake_kvm_line(b->g->vm->vm_fd, lines[i]);
	guest_save(b->g, &first, "what a guest has made of it");
	guest_create(to, 0);
	fuzz_need(state_load(to->vm, first.data, first.len, &err) == 0,
		  "it cannot move any more: %s", err.text);
	guest_save(to, &second, "what has moved");
	guest_compare(&first, &second);
	need_same_ring(&b->g->serial.out, &to->serial.out, "what was written");
	need_same_ring(&b->g->serial.in, &to->serial.in, "what was typed");
	sb_free(&first);
	sb_free(&second);
	guest_destroy(b->g);
	b->g = to;
	vm_resume_devices(b->g->vm);
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		fuzz_need(!up[i] || fake_kvm_line(b->g->vm->vm_fd, lines[i]),
			  "an interrupt of line %u is lost", lines[i]);
}

/* ---- the guest ---- */

static void act(struct board *b, struct fuzz_in *input)
{
	uint64_t port, value;
	unsigned size, n;

	switch (in_u8(input) % 14) {
	case 0 ... 3:
		port = any_port(input);
		size = any_size(input);
		value = size == 4 ? in_u32(input) : size == 2 ? in_u16(input) : in_u8(input);
		out(b, port, size, value);
		break;
	case 4:
	case 5:
		port = any_port(input);
		in(b, port, any_size(input));
		break;
	case 6:
		/* A register of the clock. */
		out(b, RTC, 1, in_u8(input));
		out(b, RTC + 1, 1, in_u8(input));
		break;
	case 7:
		type(b, input);
		break;
	case 8:
		chan_host_write(&b->g->serial, take, b);
		break;
	case 9:
		machine_power_button(b->g->vm);
		break;
	case 10:
		loop_step(b->g->loop, 0);
		break;
	case 11:
		move(b);
		break;
	case 12:
		rest(b->g);
		vm_resume_devices(b->g->vm);
		break;
	default:
		/* More than a line takes whose other end does not read. */
		n = in_u8(input) * 512U;
		value = in_u8(input);
		while (n--)
			out(b, COM1, 1, value);
	}
}

/* ---- an honest driver ---- */

static void check_serial(struct board *b)
{
	static const char text[] = "honest words";
	unsigned n = 0;

	out(b, COM1 + UART_LCR, 1, 0);
	out(b, COM1 + UART_IER, 1, 0);
	out(b, COM1 + UART_MCR, 1, UART_MCR_DTR | UART_MCR_RTS);
	out(b, COM1 + UART_FCR, 1, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
	while (chan_host_write(&b->g->serial, take, b) > 0)
		;
	for (; in(b, COM1 + UART_LSR, 1) & UART_LSR_DR; n++) {
		in(b, COM1 + UART_RX, 1);
		fuzz_need(n <= CHAN_IN_SIZE, "what was typed does not end");
	}
	for (size_t i = 0; text[i]; i++) {
		fuzz_need(in(b, COM1 + UART_LSR, 1) & UART_LSR_THRE, "the line stays busy");
		out(b, COM1 + UART_TX, 1, (uint8_t)text[i]);
	}
	memset(b->out, 0, sizeof(text));
	/* Two pieces where the ring's end is between them. */
	n = 0;
	while (n < sizeof(text) - 1) {
		ssize_t got = chan_host_write(&b->g->serial, take, b);

		fuzz_need(got > 0 && memcmp(b->out, text + n, (size_t)got) == 0,
			  "honest words do not get out");
		n += (unsigned)got;
	}
	fuzz_need(chan_host_put(&b->g->serial, "y", 1) == 1 &&
			  in(b, COM1 + UART_LSR, 1) & UART_LSR_DR && in(b, COM1, 1) == 'y',
		  "what is typed does not get in");
}

static void check_clock(struct board *b)
{
	out(b, RTC, 1, 0x0d);
	fuzz_need(in(b, RTC + 1, 1) & 0x80, "the clock has no time");
}

/* Who presses it is heard. */
static void check_button(struct board *b)
{
	out(b, ACPI_PM1A_EVT, 2, 0xffff);
	out(b, ACPI_PM1A_EVT + 2, 2, 0x0100);
	fuzz_need(!fake_kvm_line(b->g->vm->vm_fd, IRQ_SCI), "an event that nobody waits for");
	machine_power_button(b->g->vm);
	fuzz_need(fake_kvm_line(b->g->vm->vm_fd, IRQ_SCI) && in(b, ACPI_PM1A_EVT, 2) & 0x0100,
		  "the power button is not heard");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct board b;
	struct fuzz_in input = {data, data + size};
	enum vm_end end;
	unsigned fds;

	guest_loop();
	guest_config(0);
	fds = count_fds();
	memset(&b, 0, sizeof(b));
	b.g = &b.side[0];
	guest_create(b.g, 0);
	vm_resume_devices(b.g->vm);
	while (in_left(&input) && vm_get_end(b.g->vm) == VM_END_NONE)
		act(&b, &input);
	end = vm_get_end(b.g->vm);
	fuzz_need(end == VM_END_NONE || b.may_end, "nothing ends it, and it has: %d", end);
	check_serial(&b);
	check_clock(&b);
	check_button(&b);
	fuzz_need(ram_used(&b.g->vm->ram) == 0, "a device has stored into RAM");
	rest(b.g);
	guest_destroy(b.g);
	fuzz_need(count_fds() == fds, "%u file descriptors before, %u after", fds, count_fds());
	return 0;
}
