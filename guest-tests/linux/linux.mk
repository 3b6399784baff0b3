# SPDX-License-Identifier: MIT
#
# The Linux guest program and its initramfs. Included by the top Makefile, or by itself:
#
#	make -f guest-tests/linux/linux.mk [B=build] [CC=clang]
#
# $(B)/guest-tests/linux/init            static; process 1 of a guest, or a plain program (see init.c)
# $(B)/guest-tests/linux/initramfs.cpio  newc archive that holds it as /init, the same bytes each time
# $(B)/guest-tests/linux/initramfs-virtio.cpio  the same with modules for a disk and a balloon, for the
#	kernel VIRTIO_KERNEL alone; `make linux-guest-virtio`, which fetches that kernel when it is not there
# $(B)/guest-tests/linux/tests/test-linux-guest  unit tests; `make unit` builds, linux-guest-check runs them

B ?= build
Q ?= @
LINUX_GUEST := $(B)/guest-tests/linux
LINUX_GUEST_SRC := $(wildcard guest-tests/linux/*.c)
LINUX_GUEST_OBJ := $(LINUX_GUEST_SRC:%.c=$(B)/%.o)

# Not the flags of the hypervisor: a guest program is static, small, and never built with a sanitizer.
LINUX_GUEST_CFLAGS := -std=gnu17 -O2 -D_GNU_SOURCE -Wall -Wextra -Werror -Wshadow -Wconversion -Wsign-conversion \
	-Wstrict-prototypes -Wmissing-prototypes -Wvla -Wpointer-arith -Wundef -ffunction-sections -fno-pie

.PHONY: linux-guest
linux-guest: $(LINUX_GUEST)/init $(LINUX_GUEST)/initramfs.cpio

$(LINUX_GUEST_OBJ): $(B)/%.o: %.c
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(LINUX_GUEST_CFLAGS) -MMD -MP -c -o $@ $<

$(LINUX_GUEST)/init: $(LINUX_GUEST_OBJ)
	$(Q)$(CC) -static -Wl,--gc-sections -s -o $@ $^

# The kernel brings /dev/console itself, and init makes the other directories.
$(LINUX_GUEST)/initramfs.cpio: $(LINUX_GUEST)/init
	$(Q)rm -rf $@.root && mkdir -p $@.root && cp $< $@.root/init && chmod 755 $@.root/init
	$(Q)touch -d @0 $@.root/init
	$(Q)(cd $@.root && echo init | cpio -o -H newc -R 0:0 --reproducible --quiet) >$@.part
	$(Q)rm -rf $@.root && mv $@.part $@

VIRTIO_KERNEL := 6.1

.PHONY: linux-guest-virtio
linux-guest-virtio: $(LINUX_GUEST)/initramfs-virtio.cpio

build/kernels/%/version:
	$(Q)scripts/guest-kernel $* >/dev/null

$(LINUX_GUEST)/initramfs-virtio.cpio: $(LINUX_GUEST)/init scripts/initramfs \
		build/kernels/$(VIRTIO_KERNEL)/version
	$(Q)scripts/initramfs --kernel $(VIRTIO_KERNEL) --modules virtio_mmio,virtio_blk,virtio_balloon \
		$@ $<=/init

LINUX_GUEST_TEST := $(LINUX_GUEST)/tests/test-linux-guest
# What the test calls itself; the rest it reaches by running init.
LINUX_GUEST_TESTED := $(addprefix $(LINUX_GUEST)/,content.o kmsg.o options.o records.o)

.PHONY: unit linux-guest-check
unit: $(LINUX_GUEST_TEST)
linux-guest-check: $(LINUX_GUEST_TEST)
	$(LINUX_GUEST_TEST)

$(LINUX_GUEST_TEST).o: guest-tests/linux/tests/test-linux-guest.c
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(LINUX_GUEST_CFLAGS) $$(pkg-config --cflags check) -MMD -MP -c -o $@ $<

$(LINUX_GUEST_TEST): $(LINUX_GUEST_TEST).o $(LINUX_GUEST_TESTED) | $(LINUX_GUEST)/init
	$(Q)$(CC) -no-pie -o $@ $^ $$(pkg-config --libs check)

-include $(LINUX_GUEST_OBJ:.o=.d) $(LINUX_GUEST_TEST).d
