/* SPDX-License-Identifier: MIT */
/*
 * The console: a polled 16550 at COM1, and what ends a run.
 *
 * Every port access may cost an exit of tens of microseconds, so the transmitter is asked only once
 * for as many bytes as its FIFO takes.
 */

#include <stdarg.h>

#include "../contract.h"
#include "private.h"

#define COM1 0x3f8
#define UART_DATA (COM1 + 0)
#define UART_IER (COM1 + 1)
#define UART_IIR (COM1 + 2)
#define UART_FCR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)

#define IIR_FIFO 0xc0
#define FCR_ENABLE 0x07 /* enable and clear both FIFOs */
#define LCR_8N1 0x03
#define MCR_DTR_RTS 0x03
#define LSR_DATA 0x01
#define LSR_THRE 0x20
#define FIFO_SIZE 16
#define TX_PATIENCE 1000000 /* polls before a byte is given up */

#define PM1A_CONTROL 0x604
#define PM1A_SLEEP 0x2000 /* SLP_EN, SLP_TYP 0: S5 */

#define LINE_MAX 3000

void (*rt_console_hook)(void);

static uint32_t tx_burst = 1, tx_room;
static uint32_t lock;

static void console_lock(void)
{
	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
		rt_relax();
}

static void console_unlock(void)
{
	__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

void rt_console_steal(void)
{
	rt_console_hook = NULL;
	/* Should a line be under way, what comes starts a new one. */
	if (__atomic_exchange_n(&lock, 0, __ATOMIC_ACQ_REL))
		rt_putc('\n');
}

static void after_access(void)
{
	if (rt_console_hook)
		rt_console_hook();
}

void rt_console_init(void)
{
	rt_outb(UART_IER, 0);
	rt_outb(UART_LCR, LCR_8N1);
	rt_outb(UART_MCR, MCR_DTR_RTS);
	rt_outb(UART_FCR, FCR_ENABLE);
	if ((rt_inb(UART_IIR) & IIR_FIFO) == IIR_FIFO)
		tx_burst = FIFO_SIZE;
}

void rt_putc(char c)
{
	for (uint32_t polls = 0; tx_room == 0 && polls < TX_PATIENCE; polls++) {
		if (rt_inb(UART_LSR) & LSR_THRE)
			tx_room = tx_burst;
		after_access();
	}
	if (tx_room == 0)
		return;
	tx_room--;
	rt_outb(UART_DATA, (uint8_t)c);
	after_access();
}

int rt_getc(void)
{
	int c = -1;

	if (rt_inb(UART_LSR) & LSR_DATA) {
		after_access();
		c = rt_inb(UART_DATA);
	}
	after_access();
	return c;
}

struct line {
	char text[LINE_MAX];
	size_t len;
};

static void put(struct line *line, char c)
{
	if (line->len < sizeof(line->text))
		line->text[line->len++] = c;
}

static void put_string(struct line *line, const char *s)
{
	while (*s != '\0')
		put(line, *s++);
}

static void put_number(struct line *line, uint64_t value, uint32_t base, uint32_t width, char pad)
{
	char digits[20];
	uint32_t n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	for (; width > n; width--)
		put(line, pad);
	while (n)
		put(line, digits[--n]);
}

static void format(struct line *line, const char *fmt, va_list args)
{
	for (; *fmt != '\0'; fmt++) {
		uint32_t width = 0;
		bool is_long = false;
		char pad = ' ';
		int64_t number;

		if (*fmt != '%') {
			put(line, *fmt);
			continue;
		}
		fmt++;
		if (*fmt == '0') {
			pad = '0';
			fmt++;
		}
		for (; *fmt >= '0' && *fmt <= '9'; fmt++)
			width = width * 10 + (uint32_t)(*fmt - '0');
		for (; *fmt == 'l'; fmt++)
			is_long = true;
		switch (*fmt) {
		case 's':
			put_string(line, va_arg(args, const char *));
			break;
		case 'c':
			put(line, (char)va_arg(args, int));
			break;
		case 'd':
			number = is_long ? va_arg(args, long) : va_arg(args, int);
			if (number < 0)
				put(line, '-');
			put_number(line, number < 0 ? -(uint64_t)number : (uint64_t)number, 10,
				   width, pad);
			break;
		case 'u':
		case 'x':
			put_number(line,
				   is_long ? va_arg(args, unsigned long)
					   : va_arg(args, unsigned int),
				   *fmt == 'u' ? 10 : 16, width, pad);
			break;
		case '\0':
			return;
		default:
			put(line, *fmt);
			break;
		}
	}
}

void rt_printf(const char *fmt, ...)
{
	static struct line line; /* under the console's lock: too large for a stack */
	va_list args;

	console_lock();
	line.len = 0;
	va_start(args, fmt);
	format(&line, fmt, args);
	va_end(args);
	for (size_t i = 0; i < line.len; i++)
		rt_putc(line.text[i]);
	console_unlock();
}

void rt_panic(const char *why)
{
	rt_console_steal();
	rt_printf("%s " BARE_PANIC_WHY_FMT "\n", rt_payload.name, why);
	rt_poweroff();
}

void rt_panic_at(const char *why, const char *detail)
{
	rt_console_steal();
	rt_printf("%s panic why=\"%s: %s\"\n", rt_payload.name, why, detail);
	rt_poweroff();
}

void rt_skip(const char *why)
{
	rt_printf("%s " BARE_SKIP_FMT "\n%s done\n", rt_payload.name, why, rt_payload.name);
	rt_poweroff();
}

void rt_poweroff(void)
{
	rt_outw(PM1A_CONTROL, PM1A_SLEEP);
	/* Still here: a machine without that port. A triple fault ends it, from either ring. */
	rt_cpu_triple_fault();
}
