/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: a guest that looks for a keyboard controller should find none, and soon. It
 * first empties the output buffer, so a buffer that stays full ends the search: Linux gives up
 * after 16 bytes. "Ready for a command" is the one status bit that differs from an empty
 * bus, since a guest that wants to reset the machine waits for it.
 */
#include "i8042.h"

#include <pthread.h>

#include "util.h"
#include "vm.h"

#define PORT_DATA 0x60U
#define PORT_COMMAND 0x64U

#define STATUS_INPUT_FULL 0x02U
#define STATUS (0xffU & ~STATUS_INPUT_FULL)
#define NO_DATA 0xffU

#define CMD_SELF_TEST 0xaaU
#define SELF_TEST_PASSED 0x55U
/* 0xf0 to 0xff pulse those of the four output lines whose bit is 0; line 0 is the CPU's reset. */
#define CMD_PULSE 0xf0U
#define PULSE_NOT_RESET 0x01U

struct i8042 {
	struct device dev;
	pthread_mutex_t lock;
	uint8_t data; /* what port 0x60 reads as */
};

static struct i8042 *to_i8042(struct device *d)
{
	return container_of(d, struct i8042, dev);
}

static uint64_t data_read(void *dev, uint64_t offset, unsigned size)
{
	struct i8042 *k = dev;
	uint8_t v;

	(void)offset;
	(void)size;
	pthread_mutex_lock(&k->lock);
	v = k->data;
	k->data = NO_DATA;
	pthread_mutex_unlock(&k->lock);
	return v;
}

static void data_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	(void)dev;
	(void)offset;
	(void)size;
	(void)value;
}

static uint64_t status_read(void *dev, uint64_t offset, unsigned size)
{
	(void)dev;
	(void)offset;
	(void)size;
	return STATUS;
}

static void command_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct i8042 *k = dev;
	uint8_t cmd = (uint8_t)value;

	(void)offset;
	(void)size;
	if ((cmd & CMD_PULSE) == CMD_PULSE && !(cmd & PULSE_NOT_RESET)) {
		vm_set_end(k->dev.vm, VM_END_RESET, "reset by the keyboard controller");
	} else if (cmd == CMD_SELF_TEST) {
		pthread_mutex_lock(&k->lock);
		k->data = SELF_TEST_PASSED;
		pthread_mutex_unlock(&k->lock);
	}
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write};
static const struct bus_ops command_ops = {.read = status_read, .write = command_write};

static int i8042_init(struct device *d, const void *config)
{
	struct i8042 *k = to_i8042(d);
	const struct bus_range data = {
		.base = PORT_DATA, .len = 1, .name = "i8042 data", .ops = &data_ops, .dev = k};
	const struct bus_range command = {.base = PORT_COMMAND,
					  .len = 1,
					  .name = "i8042 command",
					  .ops = &command_ops,
					  .dev = k};
	int ret;

	(void)config;
	ret = bus_add(&d->vm->pio, &data);
	if (ret)
		return ret;
	ret = bus_add(&d->vm->pio, &command);
	if (ret)
		return ret;
	pthread_mutex_init(&k->lock, NULL);
	return 0;
}

static void i8042_reset(struct device *d)
{
	struct i8042 *k = to_i8042(d);

	pthread_mutex_lock(&k->lock);
	k->data = NO_DATA;
	pthread_mutex_unlock(&k->lock);
}

/* It does nothing by itself. */
static int i8042_quiesce(struct device *d, uint64_t deadline_ns)
{
	(void)d;
	(void)deadline_ns;
	return 0;
}

static void i8042_resume(struct device *d)
{
	(void)d;
}

static void i8042_fields(struct device *d, struct sbuf *s)
{
	struct i8042 *k = to_i8042(d);

	pthread_mutex_lock(&k->lock);
	sb_x8(s, &k->data);
	pthread_mutex_unlock(&k->lock);
}

static void i8042_destroy(struct device *d)
{
	pthread_mutex_destroy(&to_i8042(d)->lock);
}

const struct device_ops i8042_ops = {
	.tag = "i8042",
	.size = sizeof(struct i8042),
	.version = 1,
	.min_version = 1,
	.init = i8042_init,
	.reset = i8042_reset,
	.quiesce = i8042_quiesce,
	.resume = i8042_resume,
	.fields = i8042_fields,
	.destroy = i8042_destroy,
};
