# SPDX-License-Identifier: MIT
# Tests on the host that boot guests: each test-NAME.c here is a program, linked with the harness
# and Check. Included by the top-level Makefile.
#
#   make guest-tests     builds them, and what they boot
#
# A program that needs other objects as well names them: $(tests_out)/test-NAME: $(tests_out)/x.o

tests_src := guest-tests/tests
tests_out := $(B)/guest-tests/tests

tests_progs := $(patsubst $(tests_src)/%.c,$(tests_out)/%,$(wildcard $(tests_src)/test-*.c))
tests_harness := $(patsubst $(tests_src)/%.c,$(tests_out)/%.o,$(wildcard $(tests_src)/harness*.c))

.PHONY: guest-tests
guest-tests: $(tests_progs) bare-payloads

$(tests_progs): %: %.o $(tests_harness)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o %.a,$^) $(PKG_LIBS) $(shell pkg-config --libs check)

-include $(tests_progs:=.d) $(tests_harness:.o=.d)
