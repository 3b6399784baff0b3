/* SPDX-License-Identifier: MIT */
#include "machine.h"

#include <string.h>

#include "acpi_pm.h"
#include "disk_image.h"
#include "i8042.h"
#include "rtc.h"
#include "uart.h"
#include "virtio_balloon.h"
#include "virtio_blk.h"
#include "virtio_console.h"
#include "virtio_mmio.h"
#include "virtio_net.h"
#include "virtio_rng.h"
#include "virtio_vsock.h"

/* What every machine has. */
static int add_board(struct vm *vm, struct chan *serial, struct errmsg *err)
{
	const struct uart_config com1 = {.port = 0x3f8, .gsi = IRQ_COM1, .chan = serial};
	const struct {
		const struct device_ops *ops;
		const void *config;
	} devices[] = {
		{&i8042_ops, NULL},
		{&rtc_ops, NULL},
		{&uart_ops, &com1},
		{&acpi_pm_ops, NULL},
	};
	int ret = 0;

	for (size_t i = 0; i < ARRAY_SIZE(devices) && ret == 0; i++)
		ret = vm_add_device(vm, devices[i].ops, 0, devices[i].config, err);
	return ret;
}

/* A virtio device and, in the next free slot, the transport that shows it to the guest. */
static int add_virtio(struct vm *vm, unsigned *slot, const struct device_ops *ops,
		      uint32_t instance, const void *config, struct errmsg *err)
{
	struct virtio_mmio_config mmio = {.slot = *slot};
	int ret = vm_add_device(vm, ops, instance, config, err);

	if (ret)
		return ret;
	mmio.v = container_of(vm_find_device(vm, ops->tag, instance), struct virtio, dev);
	ret = vm_add_device(vm, &virtio_mmio_ops, (*slot)++, &mmio, err);
	return ret;
}

/* What the user gave it. The order is the guest's: its first disk is /dev/vda. */
static int add_configured(struct vm *vm, struct errmsg *err)
{
	const struct vm_devices *c = &vm->cfg.devices;
	unsigned slot = 0;
	int ret = 0;

	for (uint32_t i = 0; i < c->n_disks && ret == 0; i++) {
		ret = disk_image_check(&c->disk[i], err);
		if (ret == 0)
			ret = add_virtio(vm, &slot, &virtio_blk_ops, i, &c->disk[i], err);
	}
	for (uint32_t i = 0; i < c->n_nets && ret == 0; i++) {
		ret = virtio_net_check(&c->net[i], err);
		if (ret == 0)
			ret = add_virtio(vm, &slot, &virtio_net_ops, i, &c->net[i], err);
	}
	if (ret == 0 && c->console.present)
		ret = add_virtio(vm, &slot, &virtio_console_ops, 0, &c->console, err);
	if (ret == 0 && c->vsock.present)
		ret = add_virtio(vm, &slot, &virtio_vsock_ops, 0, &c->vsock, err);
	if (ret == 0 && c->rng)
		ret = add_virtio(vm, &slot, &virtio_rng_ops, 0, NULL, err);
	if (ret == 0 && c->balloon)
		ret = add_virtio(vm, &slot, &virtio_balloon_ops, 0, NULL, err);
	return ret;
}

int machine_create(struct vm **out, const struct vm_config *cfg, const struct cpuid *cpuid,
		   struct loop *loop, struct chan *serial, struct errmsg *err)
{
	struct vm *vm;
	int ret;

	ret = vm_create(&vm, cfg, cpuid, loop, err);
	if (ret)
		return ret;
	ret = add_board(vm, serial, err);
	if (ret == 0)
		ret = add_configured(vm, err);
	if (ret) {
		vm_destroy(vm);
		return ret;
	}
	*out = vm;
	return 0;
}

const struct device_ops *machine_device_ops(const char *tag)
{
	static const struct device_ops *const all[] = {
		&i8042_ops,	   &rtc_ops,	    &uart_ops,		 &acpi_pm_ops,
		&virtio_mmio_ops,  &virtio_blk_ops, &virtio_net_ops,	 &virtio_console_ops,
		&virtio_vsock_ops, &virtio_rng_ops, &virtio_balloon_ops,
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		if (strcmp(all[i]->tag, tag) == 0)
			return all[i];
	}
	return NULL;
}

void machine_power_button(struct vm *vm)
{
	acpi_pm_power_button(vm_find_device(vm, acpi_pm_ops.tag, 0));
}
