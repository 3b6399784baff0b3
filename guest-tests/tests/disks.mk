# SPDX-License-Identifier: MIT
# Tests of guests with disks.

disks_out := $(B)/guest-tests/tests
disks_users := $(addprefix $(disks_out)/test-,virtio-bare virtio-hostile disk-move disk-faults)

$(disks_users): $(disks_out)/disks.o
$(disks_out)/test-disk-move $(disks_out)/test-disk-faults: $(disks_out)/relay.o $(B)/libgodwit.a

-include $(disks_out)/disks.d
