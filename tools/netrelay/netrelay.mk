# SPDX-License-Identifier: MIT
# The network laboratory: build/tools/netrelay/netrelay, which scripts/netlab runs. Its unit tests
# are among the others. Included by the top-level Makefile.

netrelay_src := tools/netrelay
netrelay_out := $(B)/tools/netrelay
netrelay_objs := $(patsubst $(netrelay_src)/%.c,$(netrelay_out)/%.o,$(wildcard $(netrelay_src)/*.c))
netrelay_parts := $(filter-out %/main.o,$(netrelay_objs))
netrelay_tests := $(patsubst %.c,$(B)/%,$(wildcard $(netrelay_src)/tests/test-*.c))

.PHONY: netrelay
netrelay: $(netrelay_out)/netrelay

$(netrelay_out)/netrelay: $(netrelay_objs) $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

unit: $(netrelay_tests)
$(netrelay_tests): %: %.o $(netrelay_parts) $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm $(shell pkg-config --libs check)

-include $(netrelay_objs:.o=.d) $(netrelay_tests:=.d)
