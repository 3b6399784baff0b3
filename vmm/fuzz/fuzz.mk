# SPDX-License-Identifier: MIT
# Fuzz targets: each fuzz-NAME.c in a folder fuzz/ is one; see fuzz.h. Included by the top-level
# Makefile.
#
#   make fuzz [FUZZ_SECONDS=60]      with libFuzzer, by clang, one after the other
#   make FUZZ=1 CC=clang fuzzers     only builds them, below build/fuzz/
#   make ASAN=1 UBSAN=1 fuzzers      programs that replay the corpus, by any compiler

FUZZ_SECONDS ?= 60

fuzz_src := $(wildcard vmm/fuzz/fuzz-*.c migrate/fuzz/fuzz-*.c)
fuzz_progs := $(fuzz_src:%.c=$(B)/%)
fuzz_parts := $(addprefix $(B)/vmm/fuzz/,fuzz.o machine.o machine_actions.o machine_move.o oracle.o)
fuzz_main := $(if $(FUZZ),,$(B)/vmm/fuzz/replay.o)

# What targets put themselves in front of. Those that a program has nothing of do not matter.
fuzz_wrapped := log_msg kvm_ioeventfd kvm_irqfd ram_zero_pages virtq_pop virtq_unpop virtq_push \
	virtq_put virtq_publish virtq_no_kicks virtq_want_kicks
fuzz_wrapped_blk := disk_image_open disk_image_acquire
fuzz_wraps = $(patsubst %,-Wl$(comma)--wrap=%,$(fuzz_wrapped) $(fuzz_wrapped_$(1)))
comma := ,

.PHONY: fuzz fuzzers
fuzzers: $(fuzz_progs)

$(fuzz_progs): %: %.o $(fuzz_parts) $(fuzz_main) $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(if $(FUZZ),-fsanitize=fuzzer) \
		$(call fuzz_wraps,$(patsubst fuzz-%,%,$(notdir $@))) -o $@ $^ $(PKG_LIBS)

fuzz: setup
	@$(MAKE) --no-print-directory -j$$(nproc) FUZZ=1 CC=clang fuzzers
	@scripts/fuzz --seconds $(FUZZ_SECONDS)

-include $(fuzz_progs:=.d) $(fuzz_parts:.o=.d) $(fuzz_main:.o=.d)
