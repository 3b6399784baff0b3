/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: the line is as fast as the guest. A byte written to THR is in the channel
 * at once, so the transmitter is empty again at once and its interrupt comes at once; only when
 * the channel has less room than a FIFO's worth does the transmitter show itself busy, until
 * the host has written some of it out. In the other direction the channel stands in for the
 * receive FIFO: up to 16 of its bytes are what the guest sees as received, and a byte leaves it
 * when the guest reads RBR. So a FIFO reset loses no input, and a slow guest overruns nothing.
 * (In loopback there is no channel, and a FIFO of the device's own overruns as it should.)
 *
 * A driver reads RBR blindly while it starts, and would drop what a script has already piped in.
 * The host's side of the line therefore behaves as a peer that honours RTS: see rx_open().
 *
 * The interrupt is an edge on a PC. Where the chip would drop its line and raise it again after
 * some character times, here nothing happens in between; rearm in update_irq() makes the edge.
 * OUT2, which gates the interrupt on PC boards, is not wired: no other virtual machine does that,
 * and guests written for those forget it.
 */
#include "uart.h"

#include <errno.h>
#include <linux/serial_reg.h>
#include <string.h>

#include "irq.h"
#include "util.h"
#include "vm.h"

#define FIFO_SIZE 16U
#define N_REGS 8U

#define IER_BITS 0x0fU
#define MCR_BITS 0x1fU
#define FCR_BITS (UART_FCR_ENABLE_FIFO | UART_FCR_DMA_SELECT | UART_FCR_TRIGGER_MASK)
#define IIR_FIFO_ENABLED 0xc0U
#define MSR_INPUTS 0xf0U /* the lines' state; the low half tells of changes */

#define DIVISOR_9600 12U

struct uart {
	struct device dev;
	pthread_mutex_t lock;
	struct chan *chan;
	struct irq_line irq;
	bool level;   /* as we drive the line now */
	bool at_rest; /* quiesced, or loaded and not yet resumed */

	uint8_t ier, lcr, mcr, msr, scr, dll, dlm;
	uint8_t fcr;	  /* the bits that stay */
	bool mcr_written; /* since power-on */
	bool overrun;	  /* LSR's; cleared by reading it */
	bool thr_pending; /* a transmitter-empty interrupt that the guest has not seen */
	bool tx_busy;	  /* the channel has no room for another FIFO's worth */
	uint32_t rx_len;  /* loopback only */
	uint8_t rx[FIFO_SIZE];
};

static struct uart *to_uart(struct device *d)
{
	return container_of(d, struct uart, dev);
}

static uint32_t fifo_size(const struct uart *u)
{
	return u->fcr & UART_FCR_ENABLE_FIFO ? FIFO_SIZE : 1;
}

static uint32_t trigger_level(const struct uart *u)
{
	static const uint8_t levels[] = {1, 4, 8, 14};

	return u->fcr & UART_FCR_ENABLE_FIFO ? levels[u->fcr >> 6] : 1;
}

/*
 * Does the peer send? A guest that never touched the modem control lines gets everything; one that
 * did gets what comes while it asserts RTS, or while it shows by an enabled FIFO or receive
 * interrupt that it listens. While Linux opens and closes the port none of these holds.
 */
static bool rx_open(const struct uart *u)
{
	return !(u->mcr & UART_MCR_LOOP) &&
	       (!u->mcr_written || (u->mcr & UART_MCR_RTS) || (u->fcr & UART_FCR_ENABLE_FIFO) ||
		(u->ier & UART_IER_RDI));
}

/* Bytes in the receiver as the guest sees it. */
static uint32_t rx_count(struct uart *u)
{
	size_t n = u->rx_len;

	if (rx_open(u))
		n += chan_recv_avail(u->chan);
	return (uint32_t)MIN(n, fifo_size(u));
}

static uint8_t lsr(struct uart *u)
{
	unsigned v = 0;

	if (rx_count(u) > 0)
		v |= UART_LSR_DR;
	if (u->overrun)
		v |= UART_LSR_OE;
	if (!u->tx_busy || (u->mcr & UART_MCR_LOOP))
		v |= UART_LSR_THRE | UART_LSR_TEMT;
	return (uint8_t)v;
}

/* The highest interrupt that is enabled and pending, as IIR shows it. */
static uint8_t iir(struct uart *u)
{
	uint32_t n = rx_count(u);
	unsigned v = UART_IIR_NO_INT;

	if ((u->ier & UART_IER_RLSI) && u->overrun)
		v = UART_IIR_RLSI;
	else if ((u->ier & UART_IER_RDI) && n >= trigger_level(u))
		v = UART_IIR_RDI;
	else if ((u->ier & UART_IER_RDI) && n > 0)
		v = UART_IIR_RX_TIMEOUT; /* no more is coming at this moment */
	else if ((u->ier & UART_IER_THRI) && u->thr_pending)
		v = UART_IIR_THRI;
	else if ((u->ier & UART_IER_MSI) && (u->msr & UART_MSR_ANY_DELTA))
		v = UART_IIR_MSI;
	if (u->fcr & UART_FCR_ENABLE_FIFO)
		v |= IIR_FIFO_ENABLED;
	return (uint8_t)v;
}

/*
 * Drives the line as the registers want it. rearm: the cause went away and came back within this
 * access, so that the guest must see another edge.
 */
static void update_irq(struct uart *u, bool rearm)
{
	bool level = !(iir(u) & UART_IIR_NO_INT);

	if (u->level && level && rearm)
		irq_set(&u->irq, false);
	else if (u->level == level)
		return;
	irq_set(&u->irq, level);
	u->level = level;
}

/* Looks whether a busy transmitter has room again. */
static void tx_refresh(struct uart *u)
{
	if (u->tx_busy && chan_send_room(u->chan) >= FIFO_SIZE) {
		u->tx_busy = false;
		u->thr_pending = true;
	}
}

static void loopback(struct uart *u, uint8_t v)
{
	if (u->rx_len < fifo_size(u)) {
		u->rx[u->rx_len++] = v;
		return;
	}
	/* A full FIFO keeps what it has; the single RBR of a 16450 is overwritten. */
	u->overrun = true;
	if (fifo_size(u) == 1)
		u->rx[0] = v;
}

static void write_thr(struct uart *u, uint8_t v)
{
	u->thr_pending = false;
	if (u->mcr & UART_MCR_LOOP) {
		loopback(u, v);
		u->thr_pending = true;
	} else {
		/* Not taken when full: the guest has written although THRE was clear. */
		chan_send(u->chan, &v, 1);
		u->tx_busy = true;
		tx_refresh(u);
	}
	update_irq(u, (u->ier & UART_IER_THRI) && u->thr_pending);
}

static uint8_t read_rbr(struct uart *u)
{
	uint8_t v = 0;
	uint32_t left;

	if (u->rx_len > 0) {
		v = u->rx[0];
		u->rx_len--;
		memmove(u->rx, u->rx + 1, u->rx_len);
	} else if (rx_open(u)) {
		chan_recv(u->chan, &v, 1);
	}
	left = rx_count(u);
	/* From a FIFO that is above its trigger level the line stays up; else it falls and rises.
	 */
	update_irq(u, (u->ier & UART_IER_RDI) && left > 0 &&
			      (fifo_size(u) == 1 || left < trigger_level(u)));
	return v;
}

static void write_ier(struct uart *u, uint8_t v)
{
	/* Enabling the interrupt of an empty transmitter raises it, seen before or not. */
	if ((v & ~u->ier & UART_IER_THRI) && (lsr(u) & UART_LSR_THRE))
		u->thr_pending = true;
	u->ier = v & IER_BITS;
	update_irq(u, false);
}

static uint8_t read_iir(struct uart *u)
{
	uint8_t v = iir(u);

	if ((v & UART_IIR_ID) == UART_IIR_THRI && !(v & UART_IIR_NO_INT)) {
		u->thr_pending = false;
		update_irq(u, false);
	}
	return v;
}

static void write_fcr(struct uart *u, uint8_t v)
{
	bool toggled = (v ^ u->fcr) & UART_FCR_ENABLE_FIFO;

	/* The other bits are not programmed unless the FIFOs are on; switching empties them. */
	if (toggled || ((v & UART_FCR_ENABLE_FIFO) && (v & UART_FCR_CLEAR_RCVR)))
		u->rx_len = 0;
	u->fcr = v & UART_FCR_ENABLE_FIFO ? v & FCR_BITS : 0;
	update_irq(u, false);
}

/* The modem inputs: the peer's lines are all up; in loopback our own outputs come back. */
static uint8_t modem_inputs(const struct uart *u)
{
	unsigned v = 0;

	if (!(u->mcr & UART_MCR_LOOP))
		return UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
	if (u->mcr & UART_MCR_RTS)
		v |= UART_MSR_CTS;
	if (u->mcr & UART_MCR_DTR)
		v |= UART_MSR_DSR;
	if (u->mcr & UART_MCR_OUT1)
		v |= UART_MSR_RI;
	if (u->mcr & UART_MCR_OUT2)
		v |= UART_MSR_DCD;
	return (uint8_t)v;
}

static void write_mcr(struct uart *u, uint8_t v)
{
	uint8_t inputs, changed;

	u->mcr = v & MCR_BITS;
	u->mcr_written = true;
	inputs = modem_inputs(u);
	changed = (uint8_t)((inputs ^ u->msr) & MSR_INPUTS);
	/* Of RI only the end of a ring counts (TERI). */
	if (inputs & UART_MSR_RI)
		changed &= (uint8_t)~UART_MSR_RI;
	u->msr = (uint8_t)(inputs | (u->msr & UART_MSR_ANY_DELTA) | changed >> 4);
	update_irq(u, false);
}

static uint8_t read_lsr(struct uart *u)
{
	uint8_t v;

	tx_refresh(u);
	v = lsr(u);
	u->overrun = false;
	update_irq(u, false);
	return v;
}

static uint8_t read_msr(struct uart *u)
{
	uint8_t v = u->msr;

	u->msr &= MSR_INPUTS;
	update_irq(u, false);
	return v;
}

static uint8_t read_reg(struct uart *u, unsigned reg)
{
	bool dlab = u->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_RX:
		return dlab ? u->dll : read_rbr(u);
	case UART_IER:
		return dlab ? u->dlm : u->ier;
	case UART_IIR:
		return read_iir(u);
	case UART_LCR:
		return u->lcr;
	case UART_MCR:
		return u->mcr;
	case UART_LSR:
		return read_lsr(u);
	case UART_MSR:
		return read_msr(u);
	default:
		return u->scr;
	}
}

static void write_reg(struct uart *u, unsigned reg, uint8_t v)
{
	bool dlab = u->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_TX:
		if (dlab)
			u->dll = v;
		else
			write_thr(u, v);
		break;
	case UART_IER:
		if (dlab)
			u->dlm = v;
		else
			write_ier(u, v);
		break;
	case UART_FCR:
		write_fcr(u, v);
		break;
	case UART_LCR:
		u->lcr = v;
		break;
	case UART_MCR:
		write_mcr(u, v);
		break;
	case UART_SCR:
		u->scr = v;
		break;
	default:
		break; /* LSR and MSR: for the factory's test only */
	}
}

static uint64_t uart_read(void *dev, uint64_t offset, unsigned size)
{
	struct uart *u = dev;
	uint64_t v = 0;

	pthread_mutex_lock(&u->lock);
	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)read_reg(u, (unsigned)offset + i) << (8 * i);
	pthread_mutex_unlock(&u->lock);
	return v;
}

static void uart_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct uart *u = dev;

	pthread_mutex_lock(&u->lock);
	for (unsigned i = 0; i < size; i++)
		write_reg(u, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
	pthread_mutex_unlock(&u->lock);
}

static const struct bus_ops uart_bus_ops = {.read = uart_read, .write = uart_write};

/* The channel has input, or room. */
static void on_chan(void *arg)
{
	struct uart *u = arg;

	pthread_mutex_lock(&u->lock);
	if (!u->at_rest) {
		tx_refresh(u);
		update_irq(u, false);
	}
	pthread_mutex_unlock(&u->lock);
}

static int uart_init(struct device *d, const void *config)
{
	const struct uart_config *cfg = config;
	struct uart *u = to_uart(d);
	struct bus_range range = {
		.base = cfg->port, .len = N_REGS, .name = "uart", .ops = &uart_bus_ops, .dev = u};
	int ret;

	if (!cfg->chan || cfg->gsi > IRQ_GSI_MAX)
		return -EINVAL;
	ret = bus_add(&d->vm->pio, &range);
	if (ret)
		return ret;
	pthread_mutex_init(&u->lock, NULL);
	u->chan = cfg->chan;
	u->irq = vm_irq(d->vm, cfg->gsi);
	chan_set_device(u->chan, on_chan, u);
	return 0;
}

/* Bytes on the line are the channel's and stay. */
static void uart_reset(struct device *d)
{
	struct uart *u = to_uart(d);

	pthread_mutex_lock(&u->lock);
	u->ier = u->lcr = u->mcr = u->scr = u->fcr = 0;
	u->dll = DIVISOR_9600;
	u->dlm = 0;
	u->mcr_written = false;
	u->msr = modem_inputs(u);
	u->overrun = false;
	u->thr_pending = false;
	u->rx_len = 0;
	u->tx_busy = chan_send_room(u->chan) < FIFO_SIZE;
	update_irq(u, false);
	pthread_mutex_unlock(&u->lock);
}

static int uart_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct uart *u = to_uart(d);

	(void)deadline_ns; /* nothing to wait for */
	chan_freeze(u->chan);
	pthread_mutex_lock(&u->lock);
	u->at_rest = true;
	pthread_mutex_unlock(&u->lock);
	return 0;
}

static void uart_resume(struct device *d)
{
	struct uart *u = to_uart(d);

	chan_thaw(u->chan);
	/* What the channel had to tell while we did not listen. */
	pthread_mutex_lock(&u->lock);
	u->at_rest = false;
	tx_refresh(u);
	update_irq(u, false);
	pthread_mutex_unlock(&u->lock);
}

static void uart_fields(struct device *d, struct sbuf *s)
{
	struct uart *u = to_uart(d);

	pthread_mutex_lock(&u->lock);
	if (s->loading)
		u->at_rest = true;
	sb_x8(s, &u->ier);
	sb_x8(s, &u->lcr);
	sb_x8(s, &u->mcr);
	sb_x8(s, &u->msr);
	sb_x8(s, &u->scr);
	sb_x8(s, &u->dll);
	sb_x8(s, &u->dlm);
	sb_x8(s, &u->fcr);
	sb_bool(s, &u->mcr_written);
	sb_bool(s, &u->overrun);
	sb_bool(s, &u->thr_pending);
	sb_bool(s, &u->tx_busy);
	sb_u32_range(s, &u->rx_len, 0, FIFO_SIZE);
	sb_bytes(s, u->rx, sizeof(u->rx));
	chan_fields(u->chan, s);
	pthread_mutex_unlock(&u->lock);
}

static int uart_loaded(struct device *d)
{
	struct uart *u = to_uart(d);
	int ret = 0;

	pthread_mutex_lock(&u->lock);
	if ((u->ier & ~IER_BITS) || (u->mcr & ~MCR_BITS) || (u->fcr & ~FCR_BITS) ||
	    (u->fcr && !(u->fcr & UART_FCR_ENABLE_FIFO)) || u->rx_len > fifo_size(u)) {
		ret = -EPROTO;
	} else {
		/*
		 * The interrupt controller may believe that it has already seen this edge: give
		 * it one that it has not. One too many does no harm, the guest finds IIR empty.
		 */
		irq_set(&u->irq, false);
		u->level = false;
		update_irq(u, false);
	}
	pthread_mutex_unlock(&u->lock);
	return ret;
}

static void uart_destroy(struct device *d)
{
	struct uart *u = to_uart(d);

	chan_set_device(u->chan, NULL, NULL);
	pthread_mutex_destroy(&u->lock);
}

const struct device_ops uart_ops = {
	.tag = "uart",
	.size = sizeof(struct uart),
	.version = 1,
	.min_version = 1,
	.init = uart_init,
	.reset = uart_reset,
	.quiesce = uart_quiesce,
	.resume = uart_resume,
	.fields = uart_fields,
	.loaded = uart_loaded,
	.destroy = uart_destroy,
};
