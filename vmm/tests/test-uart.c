/* SPDX-License-Identifier: MIT */
/*
 * The UART as a guest sees it: through its ports and its interrupt line. The Linux cases go
 * through what the 8250 driver does when it looks for a port and opens it.
 */
#include "device-fixture.h"

#include <linux/serial_reg.h>
#include <pthread.h>

#include "../uart.h"

#define PORT 0x3f8U
#define FIFO 16U

#define IIR_NONE UART_IIR_NO_INT
#define IIR_FIFOS 0xc0U
#define MODEM_UP (UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS)
#define TX_IDLE (UART_LSR_THRE | UART_LSR_TEMT)

static struct chan chan;
static struct fixture *f;

static struct fixture *new_uart(struct chan *c)
{
	const struct uart_config cfg = {.port = PORT, .gsi = IRQ_COM1, .chan = c};

	return fixture_new(&uart_ops, &cfg, 16 * MIB);
}

static void setup(void)
{
	ck_assert_int_eq(chan_init(&chan), 0);
	f = new_uart(&chan);
}

static void teardown(void)
{
	fixture_free(f);
	chan_destroy(&chan);
}

static unsigned in(unsigned reg)
{
	return fixture_in(f, PORT + reg);
}

static void out(unsigned reg, unsigned v)
{
	fixture_out(f, PORT + reg, v);
}

static bool irq_level(void)
{
	return fixture_level[IRQ_COM1];
}

static unsigned irq_rises(void)
{
	return atomic_exchange(&fixture_rises[IRQ_COM1], 0);
}

static void type(const char *text)
{
	ck_assert_uint_eq(chan_host_put(&chan, text, strlen(text)), strlen(text));
}

struct text {
	char data[2 * CHAN_OUT_SIZE];
	size_t len, max;
};

static ssize_t text_write(void *arg, const void *buf, size_t len)
{
	struct text *t = arg;

	len = MIN(len, t->max);
	ck_assert_uint_lt(t->len + len, sizeof(t->data));
	memcpy(t->data + t->len, buf, len);
	t->len += len;
	t->data[t->len] = '\0';
	return (ssize_t)len;
}

static struct text text;

/* Takes everything that the guest has sent. */
static const char *drain(struct chan *c)
{
	text.len = 0;
	text.data[0] = '\0';
	text.max = sizeof(text.data);
	while (chan_host_write(c, text_write, &text) > 0)
		;
	return text.data;
}

/* Writes until the transmitter is busy; gives how many bytes that took. */
static size_t fill_channel(void)
{
	size_t n = 0;

	while (in(UART_LSR)&UART_LSR_THRE) {
		out(UART_TX, 'a' + (unsigned)n % 26);
		n++;
	}
	return n;
}

START_TEST(test_power_on)
{
	ck_assert_uint_eq(in(UART_IER), 0);
	ck_assert_uint_eq(in(UART_IIR), IIR_NONE);
	ck_assert_uint_eq(in(UART_LCR), 0);
	ck_assert_uint_eq(in(UART_MCR), 0);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
	ck_assert_uint_eq(in(UART_MSR), MODEM_UP);
	ck_assert(!irq_level());
	ck_assert_uint_eq(irq_rises(), 0);
}
END_TEST

START_TEST(test_plain_registers)
{
	for (unsigned v = 0; v < 256; v++) {
		out(UART_SCR, v);
		ck_assert_uint_eq(in(UART_SCR), v);
		out(UART_LCR, v);
		ck_assert_uint_eq(in(UART_LCR), v);
		out(UART_LCR, 0);
		/* Reserved bits read as 0; later chips are told by them. */
		out(UART_IER, v);
		ck_assert_uint_eq(in(UART_IER), v & 0x0f);
		out(UART_IER, 0);
		out(UART_MCR, v);
		ck_assert_uint_eq(in(UART_MCR), v & 0x1f);
	}
	/* Read-only ones. */
	out(UART_MCR, 0);
	in(UART_MSR);
	out(UART_LSR, 0xff);
	out(UART_MSR, 0xff);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
	ck_assert_uint_eq(in(UART_MSR), MODEM_UP);
}
END_TEST

START_TEST(test_divisor)
{
	out(UART_IER, 0x05);
	out(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
	out(UART_DLL, 0x34);
	out(UART_DLM, 0x12);
	ck_assert_uint_eq(in(UART_DLL), 0x34);
	ck_assert_uint_eq(in(UART_DLM), 0x12);
	out(UART_LCR, UART_LCR_WLEN8);
	ck_assert_uint_eq(in(UART_IER), 0x05);
	ck_assert_str_eq(drain(&chan), ""); /* the divisor was not sent */
}
END_TEST

START_TEST(test_wide_accesses)
{
	ck_assert_uint_eq(bus_read(&f->vm.pio, PORT + UART_LCR, 4),
			  (uint64_t)MODEM_UP << 24 | TX_IDLE << 16);
	bus_write(&f->vm.pio, PORT + UART_IER, 2, 0x0701); /* IER and FCR */
	ck_assert_uint_eq(in(UART_IER), 1);
	ck_assert_uint_eq(in(UART_IIR), IIR_FIFOS | IIR_NONE);
}
END_TEST

START_TEST(test_send)
{
	const char *hello = "hello, world\r\n";

	for (const char *p = hello; *p; p++) {
		ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
		out(UART_TX, (unsigned char)*p);
	}
	ck_assert_str_eq(drain(&chan), hello);
}
END_TEST

/* How Linux's autoconfig() tells a 16550A from all the others. */
START_TEST(test_linux_autoconfig)
{
	unsigned count;

	out(UART_IER, 0);
	ck_assert_uint_eq(in(UART_IER)&0x0f, 0);
	out(UART_IER, 0x0f);
	ck_assert_uint_eq(in(UART_IER)&0x0f, 0x0f);
	out(UART_IER, 0);
	out(UART_MCR, UART_MCR_LOOP | 0x0a);
	ck_assert_uint_eq(in(UART_MSR)&0xf0, 0x90);
	out(UART_MCR, 0);

	out(UART_LCR, UART_LCR_CONF_MODE_B);
	out(UART_FCR, 0);
	out(UART_LCR, 0);
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	ck_assert_uint_eq(in(UART_IIR) >> 6, 3);
	/* No EFR behind either key. */
	out(UART_LCR, UART_LCR_CONF_MODE_A);
	ck_assert_uint_ne(in(UART_IIR), 0);
	out(UART_LCR, UART_LCR_CONF_MODE_B);
	ck_assert_uint_ne(in(UART_IIR), 0);
	/* No bank that shows the LOOP bit in EXCR1 (NS16550A). */
	out(UART_LCR, 0);
	out(UART_MCR, UART_MCR_LOOP);
	out(UART_LCR, 0xe0);
	ck_assert_uint_eq(in(UART_IIR)&UART_MCR_LOOP, 0);
	out(UART_LCR, 0);
	out(UART_MCR, 0);
	/* No 64-byte FIFO (TI16750), with and without DLAB. */
	for (unsigned lcr = 0; lcr <= UART_LCR_DLAB; lcr += UART_LCR_DLAB) {
		out(UART_LCR, lcr);
		out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR7_64BYTE);
		ck_assert_uint_eq(in(UART_IIR) >> 5, 6);
	}
	out(UART_LCR, 0);
	out(UART_IER, UART_IER_UUE);
	ck_assert_uint_eq(in(UART_IER), 0);

	out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT);
	out(UART_MCR, UART_MCR_LOOP);
	out(UART_LCR, UART_LCR_WLEN8);
	for (count = 0; count < 256; count++)
		out(UART_TX, count);
	for (count = 0; (in(UART_LSR)&UART_LSR_DR) && count < 256; count++)
		ck_assert_uint_eq(in(UART_RX), count);
	ck_assert_uint_eq(count, FIFO);
	ck_assert_str_eq(drain(&chan), "");
}
END_TEST

/* serial8250_do_startup()'s checks for chips with a broken transmitter interrupt. */
START_TEST(test_linux_tx_checks)
{
	unsigned i;

	for (i = 0; i < 2; i++) {
		out(UART_IER, UART_IER_THRI);
		ck_assert_uint_eq(in(UART_IIR), UART_IIR_THRI);
		ck_assert_uint_eq(in(UART_IIR), IIR_NONE); /* reading it has cleared it */
		out(UART_IER, 0);
	}
	out(UART_MCR, UART_MCR_OUT2);
	out(UART_IER, UART_IER_THRI);
	ck_assert(irq_level());
	ck_assert_uint_eq(in(UART_LSR)&UART_LSR_TEMT, UART_LSR_TEMT);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_THRI);
	out(UART_IER, 0);
	ck_assert_uint_eq(irq_rises(), 3);
}
END_TEST

START_TEST(test_tx_interrupt)
{
	/* Bytes sent with the interrupt off leave nothing behind but an empty transmitter. */
	out(UART_TX, 'a');
	ck_assert(!irq_level());
	out(UART_IER, UART_IER_THRI);
	ck_assert(irq_level());
	ck_assert_uint_eq(irq_rises(), 1);
	out(UART_IER, UART_IER_THRI); /* not enabled anew: nothing is raised anew */
	ck_assert_uint_eq(irq_rises(), 0);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_THRI);
	ck_assert(!irq_level());
	out(UART_IER, UART_IER_THRI);
	ck_assert(!irq_level());
	/* Each byte sent raises an edge, also for a driver that does not look at IIR. */
	out(UART_TX, 'b');
	ck_assert_uint_eq(irq_rises(), 1);
	out(UART_TX, 'c');
	ck_assert_uint_eq(irq_rises(), 1);
	ck_assert(irq_level());
	out(UART_IER, 0);
	ck_assert(!irq_level());
	ck_assert_uint_eq(in(UART_IIR), IIR_NONE);
	ck_assert_str_eq(drain(&chan), "abc");
}
END_TEST

START_TEST(test_busy_when_channel_is_full)
{
	size_t sent;

	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	out(UART_IER, UART_IER_THRI);
	sent = fill_channel();
	ck_assert_uint_gt(sent, CHAN_OUT_SIZE - FIFO);
	ck_assert_uint_eq(in(UART_LSR), 0);
	ck_assert(!irq_level());
	ck_assert_uint_eq(in(UART_IIR), IIR_FIFOS | IIR_NONE);
	/* Enabling the interrupt does not raise it while busy. */
	out(UART_IER, 0);
	out(UART_IER, UART_IER_THRI);
	ck_assert(!irq_level());
	irq_rises();

	/* A driver that does not look at THRE: what still fits is kept, the rest is lost. */
	while (sent < CHAN_OUT_SIZE + 3) {
		out(UART_TX, 'a' + (unsigned)sent % 26);
		sent++;
	}
	sent = CHAN_OUT_SIZE;
	/* Not before a whole FIFO fits: a driver writes as much once it sees THRE. */
	text.len = 0;
	text.max = 1;
	for (unsigned i = 0; i < FIFO; i++) {
		ck_assert(!irq_level());
		ck_assert_uint_eq(in(UART_LSR), 0);
		ck_assert_int_eq(chan_host_write(&chan, text_write, &text), 1);
	}
	ck_assert(irq_level());
	ck_assert_uint_eq(irq_rises(), 1);
	ck_assert_uint_eq(in(UART_IIR), IIR_FIFOS | UART_IIR_THRI);
	for (unsigned i = 0; i < FIFO; i++)
		out(UART_TX, 'a' + (unsigned)(sent + i) % 26);
	sent += FIFO;
	ck_assert_uint_eq(in(UART_LSR), 0);

	text.max = sizeof(text.data);
	while (chan_host_write(&chan, text_write, &text) > 0)
		;
	ck_assert_uint_eq(text.len, sent);
	for (size_t i = 0; i < sent; i++)
		ck_assert_int_eq(text.data[i], 'a' + (int)(i % 26));
}
END_TEST

START_TEST(test_receive)
{
	out(UART_IER, UART_IER_RDI);
	type("xy");
	ck_assert(irq_level());
	ck_assert_uint_eq(irq_rises(), 1);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_RDI);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE | UART_LSR_DR);
	/* A driver that takes one byte per interrupt needs an edge for each. */
	ck_assert_uint_eq(in(UART_RX), 'x');
	ck_assert_uint_eq(irq_rises(), 1);
	ck_assert_uint_eq(in(UART_RX), 'y');
	ck_assert(!irq_level());
	ck_assert_uint_eq(in(UART_IIR), IIR_NONE);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
}
END_TEST

START_TEST(test_receive_trigger)
{
	static const struct {
		unsigned fcr, level;
	} triggers[] = {
		{UART_FCR_TRIGGER_1, 1},
		{UART_FCR_TRIGGER_4, 4},
		{UART_FCR_TRIGGER_8, 8},
		{UART_FCR_TRIGGER_14, 14},
	};

	out(UART_IER, UART_IER_RDI);
	for (size_t i = 0; i < ARRAY_SIZE(triggers); i++) {
		unsigned level = triggers[i].level;

		out(UART_FCR, UART_FCR_ENABLE_FIFO | triggers[i].fcr);
		/* Less than that is told by the time-out, which here is none. */
		for (unsigned n = 1; n <= level + 1; n++) {
			type("z");
			ck_assert(irq_level());
			ck_assert_uint_eq(in(UART_IIR)&UART_IIR_ID,
					  n < level ? UART_IIR_RX_TIMEOUT : UART_IIR_RDI);
		}
		irq_rises();
		ck_assert_uint_eq(in(UART_RX), 'z');
		ck_assert_uint_eq(irq_rises(), 0); /* at its level, the line stays up */
		for (unsigned n = level; n > 0; n--) {
			ck_assert_uint_eq(in(UART_RX), 'z');
			ck_assert_uint_eq(irq_rises(), n > 1 ? 1 : 0);
		}
		ck_assert(!irq_level());
	}
}
END_TEST

START_TEST(test_many_bytes_received)
{
	char sent[CHAN_IN_SIZE + 1];

	for (size_t i = 0; i < CHAN_IN_SIZE; i++)
		sent[i] = (char)('!' + i % 90);
	sent[CHAN_IN_SIZE] = '\0';
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	type(sent);
	for (size_t i = 0; i < CHAN_IN_SIZE; i++) {
		ck_assert_uint_eq(in(UART_LSR), TX_IDLE | UART_LSR_DR); /* and no overrun */
		ck_assert_uint_eq(in(UART_RX), (unsigned char)sent[i]);
	}
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
}
END_TEST

START_TEST(test_fcr)
{
	/* Without its enable bit nothing else of FCR is programmed. */
	out(UART_FCR, UART_FCR_TRIGGER_14);
	ck_assert_uint_eq(in(UART_IIR), IIR_NONE);
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	out(UART_IER, UART_IER_RDI);
	type("q");
	ck_assert_uint_eq(in(UART_IIR), IIR_FIFOS | UART_IIR_RDI);
	in(UART_RX);
	out(UART_IER, 0);

	/* In loopback: RCVR reset, and each change of the enable bit, empty the FIFO. */
	out(UART_MCR, UART_MCR_LOOP);
	for (unsigned i = 0; i < 3; i++) {
		static const unsigned fcr[] = {
			UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR,
			0,
			UART_FCR_ENABLE_FIFO,
		};

		out(UART_TX, 'x');
		ck_assert(in(UART_LSR)&UART_LSR_DR);
		out(UART_FCR, fcr[i]);
		ck_assert(!(in(UART_LSR)&UART_LSR_DR));
	}
	out(UART_TX, 'x');
	out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_XMIT);
	ck_assert(in(UART_LSR)&UART_LSR_DR);
}
END_TEST

START_TEST(test_loopback_overrun)
{
	out(UART_MCR, UART_MCR_LOOP);
	out(UART_IER, UART_IER_RLSI);
	/* A 16450 keeps the newest byte. */
	out(UART_TX, '1');
	ck_assert(!irq_level());
	out(UART_TX, '2');
	ck_assert(irq_level());
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_RLSI);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE | UART_LSR_DR | UART_LSR_OE);
	ck_assert(!irq_level());
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE | UART_LSR_DR); /* told once */
	ck_assert_uint_eq(in(UART_RX), '2');

	/* A FIFO keeps what it has. */
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	for (unsigned i = 0; i < FIFO; i++)
		out(UART_TX, i);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE | UART_LSR_DR);
	out(UART_TX, 99);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE | UART_LSR_DR | UART_LSR_OE);
	for (unsigned i = 0; i < FIFO; i++)
		ck_assert_uint_eq(in(UART_RX), i);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
}
END_TEST

START_TEST(test_loopback_cuts_the_line)
{
	out(UART_MCR, UART_MCR_LOOP | UART_MCR_RTS);
	type("typed");
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
	out(UART_TX, 'x');
	ck_assert_uint_eq(in(UART_RX), 'x');
	ck_assert_str_eq(drain(&chan), "");
	out(UART_MCR, UART_MCR_RTS);
	ck_assert_uint_eq(in(UART_RX), 't');
}
END_TEST

START_TEST(test_modem_status)
{
	unsigned idle = UART_MCR_LOOP;

	out(UART_MCR, idle);
	/* All three lines that were up fell. */
	ck_assert_uint_eq(in(UART_MSR), UART_MSR_DDCD | UART_MSR_DDSR | UART_MSR_DCTS);
	ck_assert_uint_eq(in(UART_MSR), 0);
	out(UART_IER, UART_IER_MSI);
	ck_assert(!irq_level());
	out(UART_MCR, idle | UART_MCR_DTR);
	ck_assert(irq_level());
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_MSI);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_MSI); /* only MSR clears it */
	ck_assert_uint_eq(in(UART_MSR), UART_MSR_DSR | UART_MSR_DDSR);
	ck_assert(!irq_level());
	out(UART_MCR, idle | UART_MCR_RTS);
	ck_assert_uint_eq(in(UART_MSR), UART_MSR_CTS | UART_MSR_DCTS | UART_MSR_DDSR);
	out(UART_MCR, idle | UART_MCR_OUT2);
	ck_assert_uint_eq(in(UART_MSR), UART_MSR_DCD | UART_MSR_DDCD | UART_MSR_DCTS);
	/* The ring indicator counts when it ends. */
	out(UART_MCR, idle | UART_MCR_OUT1);
	ck_assert_uint_eq(in(UART_MSR), UART_MSR_RI | UART_MSR_DDCD);
	out(UART_MCR, idle);
	ck_assert_uint_eq(in(UART_MSR), UART_MSR_TERI);
}
END_TEST

START_TEST(test_interrupt_priority)
{
	out(UART_MCR, UART_MCR_LOOP);
	out(UART_TX, '1');
	out(UART_TX, '2');
	out(UART_IER, 0x0f);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_RLSI);
	in(UART_LSR);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_RDI);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_RDI); /* and THRE is still to come */
	in(UART_RX);
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_THRI);
	ck_assert(irq_level());
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_MSI);
	in(UART_MSR);
	ck_assert_uint_eq(in(UART_IIR), IIR_NONE);
	ck_assert(!irq_level());
}
END_TEST

/* What a script has piped in survives a driver that reads RBR blindly while it starts. */
START_TEST(test_input_waits_for_listener)
{
	type("piped");
	ck_assert(in(UART_LSR)&UART_LSR_DR); /* a guest that never saw MCR gets it as it is */
	out(UART_MCR, 0);
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT);
	out(UART_FCR, 0);
	in(UART_LSR);
	in(UART_RX);
	in(UART_IIR);
	in(UART_MSR);
	out(UART_MCR, UART_MCR_DTR | UART_MCR_OUT2);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
	in(UART_RX);

	out(UART_IER, UART_IER_RDI);
	ck_assert(irq_level());
	ck_assert(in(UART_LSR)&UART_LSR_DR);
	ck_assert_uint_eq(in(UART_RX), 'p');
	out(UART_IER, 0);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	ck_assert_uint_eq(in(UART_RX), 'i');
	out(UART_FCR, 0);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
	out(UART_MCR, UART_MCR_RTS);
	ck_assert_uint_eq(in(UART_RX), 'p');
}
END_TEST

START_TEST(test_reset)
{
	type("kept");
	out(UART_TX, 'k');
	out(UART_IER, 0x0f);
	out(UART_LCR, 0x83);
	out(UART_MCR, 0x0b);
	out(UART_FCR, 0x01);
	out(UART_SCR, 0x55);
	ck_assert(irq_level());
	f->dev->ops->reset(f->dev);
	ck_assert(!irq_level());
	ck_assert_uint_eq(in(UART_LCR), 0);
	ck_assert_uint_eq(in(UART_IER), 0);
	ck_assert_uint_eq(in(UART_MCR), 0);
	ck_assert_uint_eq(in(UART_SCR), 0);
	ck_assert_uint_eq(in(UART_IIR), IIR_NONE);
	ck_assert_uint_eq(in(UART_RX), 'k');
	ck_assert_str_eq(drain(&chan), "k");
}
END_TEST

START_TEST(test_quiesce)
{
	out(UART_IER, UART_IER_RDI | UART_IER_THRI);
	fill_channel();
	in(UART_IIR);
	ck_assert(!irq_level());
	ck_assert_int_eq(f->dev->ops->quiesce(f->dev, now_ns() + DEADLINE_NS), 0);
	ck_assert_str_eq(drain(&chan), "");
	ck_assert_uint_eq(chan_host_put(&chan, "x", 1), 0);
	ck_assert(!irq_level());
	f->dev->ops->resume(f->dev);
	ck_assert(!irq_level());
	drain(&chan);
	ck_assert_uint_gt(text.len, CHAN_OUT_SIZE - FIFO);
	ck_assert(irq_level());
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_THRI);
	type("x");
	ck_assert_uint_eq(in(UART_RX), 'x');
}
END_TEST

/* Room came just before the device was put to rest, and word of it just after. */
START_TEST(test_late_kick)
{
	void (*kick)(void *arg) = chan.device_kick;
	void *arg = chan.device_arg;

	out(UART_IER, UART_IER_THRI);
	fill_channel();
	chan_set_device(&chan, NULL, NULL);
	drain(&chan);
	ck_assert_int_eq(f->dev->ops->quiesce(f->dev, now_ns() + DEADLINE_NS), 0);
	kick(arg);
	ck_assert(!irq_level());
	chan_set_device(&chan, kick, arg);
	f->dev->ops->resume(f->dev);
	ck_assert(irq_level());
	ck_assert_uint_eq(in(UART_IIR), UART_IIR_THRI);
}
END_TEST

/* Some state in which every field counts. */
static void make_state(unsigned seed)
{
	unsigned state = seed * 2654435761U + 1;

	for (unsigned i = 0; i < 200; i++) {
		unsigned reg;

		state = state * 1664525U + 1013904223U;
		reg = state >> 29;
		if ((state >> 8) % 5 == 0)
			in(reg);
		else
			out(reg, state >> 16 & 0xff);
		if ((state >> 8) % 7 == 0)
			chan_host_put(&chan, &state, 3);
	}
}

/* Everything a guest can find out, in an order that changes as little as possible. */
static void observe(struct fixture *on, unsigned *seen, size_t n)
{
	size_t i = 0;
	unsigned lcr = fixture_in(on, PORT + UART_LCR);

	ck_assert_uint_ge(n, 64);
	memset(seen, 0, n * sizeof(*seen));
	seen[i++] = fixture_level[IRQ_COM1];
	seen[i++] = lcr;
	seen[i++] = fixture_in(on, PORT + UART_MCR);
	seen[i++] = fixture_in(on, PORT + UART_SCR);
	fixture_out(on, PORT + UART_LCR, lcr & 0x7f);
	seen[i++] = fixture_in(on, PORT + UART_IER);
	fixture_out(on, PORT + UART_LCR, lcr | UART_LCR_DLAB);
	seen[i++] = fixture_in(on, PORT + UART_DLL);
	seen[i++] = fixture_in(on, PORT + UART_DLM);
	fixture_out(on, PORT + UART_LCR, lcr & 0x7f);
	for (unsigned k = 0; k < 3; k++) {
		seen[i++] = fixture_in(on, PORT + UART_IIR);
		seen[i++] = fixture_in(on, PORT + UART_LSR);
		seen[i++] = fixture_in(on, PORT + UART_MSR);
	}
	for (unsigned k = 0; k < 20; k++) {
		seen[i++] = fixture_in(on, PORT + UART_RX);
		seen[i++] = fixture_in(on, PORT + UART_IIR);
	}
	ck_assert_uint_le(i, n);
}

START_TEST(test_save_and_load)
{
	static struct text far_text;
	unsigned here[64], there[64];
	struct fixture *other;
	struct chan far;
	struct sbuf s;

	make_state((unsigned)_i);
	fixture_save(f, &s);

	ck_assert_int_eq(chan_init(&far), 0);
	other = new_uart(&far);
	fixture_level[IRQ_COM1] = false;
	irq_rises();
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	/* What the source may yet have to write is not written here before the guest runs here. */
	ck_assert_uint_eq(chan_host_pending(&far), 0);
	other->dev->ops->resume(other->dev);
	observe(other, there, ARRAY_SIZE(there));
	drain(&far);
	far_text = text;
	fixture_free(other);
	chan_destroy(&far);

	/* A load is given an edge if the line is up, and the source goes on as it was. */
	ck_assert_uint_ge(irq_rises(), there[0]);
	fixture_level[IRQ_COM1] = there[0];
	f->dev->ops->resume(f->dev);
	observe(f, here, ARRAY_SIZE(here));
	ck_assert_mem_eq(here, there, sizeof(here));
	drain(&chan);
	ck_assert_uint_eq(text.len, far_text.len);
	ck_assert_mem_eq(text.data, far_text.data, text.len);
	sb_free(&s);
}
END_TEST

START_TEST(test_load_busy_transmitter)
{
	struct fixture *other;
	struct chan far;
	struct sbuf s;
	size_t sent;

	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	out(UART_IER, UART_IER_THRI);
	sent = fill_channel();
	type("for the guest");
	fixture_save(f, &s);

	ck_assert_int_eq(chan_init(&far), 0);
	other = new_uart(&far);
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	other->dev->ops->resume(other->dev);
	ck_assert(!irq_level());
	irq_rises();
	drain(&far);
	ck_assert_uint_eq(text.len, sent);
	ck_assert_uint_eq(irq_rises(), 1);
	ck_assert_uint_eq(fixture_in(other, PORT + UART_IIR), IIR_FIFOS | UART_IIR_THRI);
	for (const char *p = "for the guest"; *p; p++)
		ck_assert_uint_eq(fixture_in(other, PORT + UART_RX), (unsigned char)*p);
	fixture_free(other);
	chan_destroy(&far);
	sb_free(&s);
}
END_TEST

/* The interrupt controller came over with the edge already seen: the line must fall first. */
START_TEST(test_load_makes_an_edge)
{
	struct fixture *other;
	struct chan far;
	struct sbuf s;

	out(UART_IER, UART_IER_THRI);
	ck_assert(irq_level());
	fixture_save(f, &s);
	ck_assert_int_eq(chan_init(&far), 0);
	other = new_uart(&far);
	fixture_level[IRQ_COM1] = true;
	irq_rises();
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	ck_assert(irq_level());
	ck_assert_uint_eq(irq_rises(), 1);
	other->dev->ops->resume(other->dev);
	ck_assert_uint_eq(fixture_in(other, PORT + UART_IIR), UART_IIR_THRI);
	fixture_free(other);
	chan_destroy(&far);
	sb_free(&s);
}
END_TEST

START_TEST(test_load_hostile)
{
	struct sbuf s;

	type("abc");
	fixture_save(f, &s);
	for (size_t len = 0; len < s.len; len++)
		ck_assert_int_lt(fixture_load(f, s.data, len), 0);
	ck_assert_int_eq(fixture_load(f, s.data, s.len), 0);
	/* ier, mcr, fcr; the FIFO's length: no chip can be in that state. */
	for (size_t i = 0; i < 4; i++) {
		static const struct {
			size_t at;
			uint8_t value;
		} bad[] = {{0, 0x10}, {2, 0x20}, {7, 0xc0}, {12, 2}};
		uint8_t good = s.data[bad[i].at];

		s.data[bad[i].at] = bad[i].value;
		ck_assert_int_lt(fixture_load(f, s.data, s.len), 0);
		s.data[bad[i].at] = good;
	}
	ck_assert_int_eq(fixture_load(f, s.data, s.len), 0);
	sb_free(&s);
}
END_TEST

#define STRESS_BYTES 20000U

/* A vCPU that sends, waiting for THRE as a polling driver does. */
static void *stress_sender(void *arg)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;

	(void)arg;
	for (unsigned i = 0; i < STRESS_BYTES && now_ns() < deadline;) {
		if (in(UART_LSR)&UART_LSR_THRE)
			out(UART_TX, i++ & 0xff);
	}
	return NULL;
}

/* Another one that receives. */
static void *stress_receiver(void *arg)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;
	unsigned *wrong = arg;

	for (unsigned i = 0; i < STRESS_BYTES && now_ns() < deadline;) {
		if (in(UART_LSR)&UART_LSR_DR)
			*wrong += in(UART_RX) != (i++ & 0xff);
		else
			in(UART_IIR);
	}
	return NULL;
}

static ssize_t stress_write(void *arg, const void *buf, size_t len)
{
	unsigned *seen = arg;
	const uint8_t *b = buf;

	for (size_t i = 0; i < len; i++)
		ck_assert_uint_eq(b[i], (*seen)++ & 0xff);
	return (ssize_t)len;
}

START_TEST(test_threads)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;
	unsigned seen = 0, typed = 0, wrong = 0;
	pthread_t sender, receiver;

	out(UART_IER, 0x0f);
	pthread_create(&sender, NULL, stress_sender, NULL);
	pthread_create(&receiver, NULL, stress_receiver, &wrong);
	while ((seen < STRESS_BYTES || typed < STRESS_BYTES) && now_ns() < deadline) {
		uint8_t b = typed & 0xff;

		chan_host_write(&chan, stress_write, &seen);
		if (typed < STRESS_BYTES)
			typed += (unsigned)chan_host_put(&chan, &b, 1);
	}
	pthread_join(sender, NULL);
	pthread_join(receiver, NULL);
	ck_assert_uint_eq(seen, STRESS_BYTES);
	ck_assert_uint_eq(typed, STRESS_BYTES);
	ck_assert_uint_eq(wrong, 0);
	ck_assert_uint_eq(in(UART_LSR), TX_IDLE);
}
END_TEST

static Suite *uart_suite(void)
{
	Suite *s = suite_create("uart");
	TCase *t = tcase_create("uart");

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, test_power_on);
	tcase_add_test(t, test_plain_registers);
	tcase_add_test(t, test_divisor);
	tcase_add_test(t, test_wide_accesses);
	tcase_add_test(t, test_send);
	tcase_add_test(t, test_linux_autoconfig);
	tcase_add_test(t, test_linux_tx_checks);
	tcase_add_test(t, test_tx_interrupt);
	tcase_add_test(t, test_busy_when_channel_is_full);
	tcase_add_test(t, test_receive);
	tcase_add_test(t, test_receive_trigger);
	tcase_add_test(t, test_many_bytes_received);
	tcase_add_test(t, test_fcr);
	tcase_add_test(t, test_loopback_overrun);
	tcase_add_test(t, test_loopback_cuts_the_line);
	tcase_add_test(t, test_modem_status);
	tcase_add_test(t, test_interrupt_priority);
	tcase_add_test(t, test_input_waits_for_listener);
	tcase_add_test(t, test_reset);
	tcase_add_test(t, test_quiesce);
	tcase_add_test(t, test_late_kick);
	tcase_add_loop_test(t, test_save_and_load, 0, 20);
	tcase_add_test(t, test_load_busy_transmitter);
	tcase_add_test(t, test_load_makes_an_edge);
	tcase_add_test(t, test_load_hostile);
	tcase_add_test(t, test_threads);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	return fixture_main(uart_suite());
}
