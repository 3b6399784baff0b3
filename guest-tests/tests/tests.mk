# SPDX-License-Identifier: MIT
# Tests on the host that boot guests: each test-NAME.c here is a program, linked with the harness
# and Check. Each payload-NAME.c is a bare payload, with the runtime of guest-tests/bare; each
# payload-NAME.S one without. Included by the top-level Makefile, after bare.mk.
#
#   make guest-tests     builds them all, and what they boot
#
# A program that needs more objects names them: $(tests_out)/test-NAME: $(tests_out)/x.o

tests_src := guest-tests/tests
tests_out := $(B)/guest-tests/tests

tests_progs := $(patsubst $(tests_src)/%.c,$(tests_out)/%,$(wildcard $(tests_src)/test-*.c))
tests_harness := $(patsubst $(tests_src)/%.c,$(tests_out)/%.o,$(wildcard $(tests_src)/harness*.c))
tests_elfs_c := $(patsubst $(tests_src)/payload-%.c,$(bare_out)/%.elf,\
	$(wildcard $(tests_src)/payload-*.c))
tests_elfs_s := $(patsubst $(tests_src)/payload-%.S,$(bare_out)/%.elf,\
	$(wildcard $(tests_src)/payload-*.S))
tests_payload_objs := $(patsubst $(bare_out)/%.elf,$(tests_out)/payload-%.o,\
	$(tests_elfs_c) $(tests_elfs_s))

.PHONY: guest-tests
guest-tests: $(tests_progs) bare-payloads $(tests_elfs_c) $(tests_elfs_s)

$(tests_progs): %: %.o $(tests_harness)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o %.a,$^) $(PKG_LIBS) $(shell pkg-config --libs check)

$(tests_elfs_c): $(bare_out)/%.elf: $(tests_out)/payload-%.o $(bare_rt_objs) $(bare_src)/rt/link.ld
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(bare_ldflags) -o $@ $(filter %.o,$^)

$(tests_elfs_s): $(bare_out)/%.elf: $(tests_out)/payload-%.o $(bare_src)/rt/link.ld
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(bare_ldflags) -o $@ $(filter %.o,$^)

$(tests_out)/payload-%.o: $(tests_src)/payload-%.c $(bare_src)/bare.mk
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(bare_cflags) -c -o $@ $<

$(tests_out)/payload-%.o: $(tests_src)/payload-%.S $(bare_src)/bare.mk
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(bare_flags) -c -o $@ $<

-include $(tests_progs:=.d) $(tests_harness:.o=.d) $(tests_payload_objs:.o=.d)
