# SPDX-License-Identifier: MIT
# Tests of guests with disks.

disks_out := $(B)/guest-tests/tests
disks_users := $(addprefix $(disks_out)/test-,virtio-bare virtio-hostile disk-move disk-faults decode \
	linux-disk-faults linux-balloon fault-matrix)

$(disks_users): $(disks_out)/disks.o
$(disks_out)/test-disk-move $(disks_out)/test-disk-faults: $(disks_out)/relay.o $(B)/libgodwit.a
$(disks_out)/test-disk-faults: $(disks_out)/steps.o
$(disks_out)/test-fault-matrix: $(addprefix $(disks_out)/,fault_cells.o leftovers.o)

# What Linux guests write there. The guest's own object has other flags.
$(disks_out)/test-linux-disk-faults: $(addprefix $(disks_out)/,relay.o steps.o records.o) \
	$(B)/libgodwit.a
$(disks_out)/records.o: guest-tests/linux/records.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

-include $(addprefix $(disks_out)/,disks.d steps.d records.d fault_cells.d leftovers.d)
