# SPDX-License-Identifier: MIT
# The grid: moves over networks of many kinds. Included by the top-level Makefile.
#
#   make grid [GRID='--rate 100mbit ...']     all of it; the tests run it with --quick

grid_prog := $(B)/guest-tests/bench/grid
grid_objs := $(grid_prog).o $(grid_prog)_table.o $(B)/guest-tests/tests/netlab.o
grid_harness := $(patsubst guest-tests/tests/%.c,$(B)/guest-tests/tests/%.o,\
	$(wildcard guest-tests/tests/harness*.c))

.PHONY: grid
grid: setup
	@$(MAKE) --no-print-directory -j$$(nproc) all bare-payloads netrelay $(grid_prog)
	@$(grid_prog) $(GRID)

guest-tests: $(grid_prog) netrelay
$(grid_prog): $(grid_objs) $(grid_harness)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(PKG_LIBS) -lm $(shell pkg-config --libs check)

$(B)/guest-tests/tests/test-netlab: $(B)/guest-tests/tests/netlab.o

-include $(grid_objs:.o=.d)
