# SPDX-License-Identifier: MIT
# A godwit whose threads turn against it, for test-confine; nothing of this is in any other.

confine_out := $(B)/guest-tests/tests

$(confine_out)/test-confine: $(confine_out)/disks.o $(B)/libgodwit.a
$(confine_out)/test-confine: | $(confine_out)/godwit-attacked

$(confine_out)/godwit-attacked: $(MAIN_OBJ) $(confine_out)/confine-attacked.o \
		$(confine_out)/attack.o $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

$(confine_out)/confine-attacked.o $(confine_out)/attack.o: CPPFLAGS += -DGODWIT_TEST_HOOKS
$(confine_out)/confine-attacked.o: vmm/confine.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

-include $(confine_out)/confine-attacked.d $(confine_out)/attack.d
