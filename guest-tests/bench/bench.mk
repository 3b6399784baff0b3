# SPDX-License-Identifier: MIT
# The measuring tools: each bench-NAME.c that is in bench_names is a program that compares godwit with
# others (bench.h); the other bench*.c are parts of all of them. Included by the top-level Makefile,
# after bare.mk.
#
#   make bench-tools     builds them, and what they boot; `make bench` runs them (scripts/bench)

bench_src := guest-tests/bench
bench_out := $(B)/guest-tests/bench

bench_names := $(filter migrate disk net,$(patsubst $(bench_src)/bench-%.c,%,\
	$(wildcard $(bench_src)/bench-*.c)))
bench_progs := $(bench_names:%=$(bench_out)/bench-%)
bench_parts := $(filter-out $(bench_progs:%=%.o),\
	$(patsubst $(bench_src)/%.c,$(bench_out)/%.o,$(wildcard $(bench_src)/bench*.c)))
bench_harness := $(patsubst guest-tests/tests/%.c,$(B)/guest-tests/tests/%.o,\
	$(wildcard guest-tests/tests/harness*.c))

.PHONY: bench-tools
bench-tools: $(bench_progs) bare-payloads

$(bench_progs): %: %.o $(bench_parts) $(bench_harness) $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o %.a,$^) $(PKG_LIBS) $(shell pkg-config --libs check)

-include $(bench_progs:=.d) $(bench_parts:.o=.d)
