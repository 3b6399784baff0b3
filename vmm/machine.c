/* SPDX-License-Identifier: MIT */
#include "machine.h"

#include "acpi_pm.h"
#include "i8042.h"
#include "rtc.h"
#include "uart.h"

int machine_create(struct vm **out, const struct vm_config *cfg, const struct cpuid *cpuid,
		   struct loop *loop, struct chan *serial, struct errmsg *err)
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
	struct vm *vm;
	int ret;

	ret = vm_create(&vm, cfg, cpuid, loop, err);
	if (ret)
		return ret;
	for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
		ret = vm_add_device(vm, devices[i].ops, 0, devices[i].config, err);
		if (ret) {
			vm_destroy(vm);
			return ret;
		}
	}
	*out = vm;
	return 0;
}

void machine_power_button(struct vm *vm)
{
	for (struct device *d = vm->devices; d; d = d->next) {
		if (d->ops == &acpi_pm_ops)
			acpi_pm_power_button(d);
	}
}
