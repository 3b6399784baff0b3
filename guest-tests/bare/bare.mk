# SPDX-License-Identifier: MIT
# Bare payloads: PVH ELF files that run on a virtual machine without an operating system.
# Included by the top-level Makefile (whose `say` and Q it uses), and usable alone from there:
#     make -f guest-tests/bare/bare.mk B=build
# `bare-payloads` builds them all into $(B)/guest-tests/bare/NAME.elf.

B ?= build

bare_src := guest-tests/bare
bare_out := $(B)/guest-tests/bare

bare_names := hello dirty smp fpu timer virtio hostile blkbench netbench
bare_rt := entry rt_boot rt_console rt_cpu rt_irq rt_lib rt_mem rt_smp rt_time

# Nothing of the host program's flags: this code has no libc, no red zone (interrupts), and no SSE
# in compiled code (instruction emulators run it).
bare_flags := -m64 -ffreestanding -fno-pic -fno-pie -fno-stack-protector -fcf-protection=none \
	-fno-asynchronous-unwind-tables -mno-red-zone -mgeneral-regs-only -mcmodel=small \
	-MMD -MP
bare_cflags := $(bare_flags) -std=gnu17 -O2 -g -Wall -Wextra -Werror -Wshadow -Wconversion \
	-Wsign-conversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wpointer-arith -Wundef
bare_ldflags := -m64 -nostdlib -static -Wl,-T,$(bare_src)/rt/link.ld \
	-Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,-z,noexecstack

bare_elfs := $(bare_names:%=$(bare_out)/%.elf)
bare_rt_objs := $(bare_rt:%=$(bare_out)/rt/%.o)
bare_parts := dirty_ws fpu_hold virtio_dev virtio_disk
bare_objs := $(bare_names:%=$(bare_out)/%.o) $(bare_parts:%=$(bare_out)/%.o) $(bare_rt_objs)

.PHONY: bare-payloads
bare-payloads: $(bare_elfs)

$(bare_out)/dirty.elf: $(bare_out)/dirty_ws.o
$(bare_out)/fpu.elf: $(bare_out)/fpu_hold.o
$(bare_out)/hostile.elf: $(bare_out)/virtio_dev.o
$(bare_out)/virtio.elf: $(bare_out)/virtio_dev.o $(bare_out)/virtio_disk.o $(bare_out)/dirty_ws.o
$(bare_out)/blkbench.elf $(bare_out)/netbench.elf: $(bare_out)/virtio_dev.o
$(bare_elfs): %.elf: %.o $(bare_rt_objs) $(bare_src)/rt/link.ld
	$(call say,LD,$@)
	$(Q)$(CC) $(bare_ldflags) -o $@ $(filter %.o,$^)

$(bare_out)/%.o: $(bare_src)/%.c $(bare_src)/bare.mk
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(bare_cflags) -c -o $@ $<

$(bare_out)/%.o: $(bare_src)/%.S $(bare_src)/bare.mk
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(bare_flags) -c -o $@ $<

-include $(bare_objs:.o=.d)
