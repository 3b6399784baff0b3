# SPDX-License-Identifier: MIT
# Fuzz targets: each fuzz-NAME.c in a folder fuzz/ is one; see fuzz.h. Included by the top-level
# Makefile.
#
#   make fuzz [FUZZ_SECONDS=60]      with libFuzzer, by clang, one after the other
#   make fuzz-coverage               which lines the committed inputs reach
#   make FUZZ=1 CC=clang fuzzers     only builds them, below build/fuzz/
#   make ASAN=1 UBSAN=1 fuzzers      programs that replay the corpus, by any compiler

FUZZ_SECONDS ?= 60

fuzz_src := $(wildcard vmm/fuzz/fuzz-*.c migrate/fuzz/fuzz-*.c)
fuzz_progs := $(fuzz_src:%.c=$(B)/%)
fuzz_main := $(B)/vmm/fuzz/fuzz.o $(if $(FUZZ),,$(B)/vmm/fuzz/replay.o)

# What targets are made of beside their own file, and what they put themselves in front of: those of
# a virtio device, unless it is said otherwise.
fuzz_machine := vmm/fuzz/machine.o vmm/fuzz/machine_actions.o vmm/fuzz/machine_move.o vmm/fuzz/oracle.o
fuzz_machine_wraps := kvm_ioeventfd kvm_irqfd ram_zero_pages virtq_pop virtq_unpop virtq_push \
	virtq_put virtq_publish virtq_no_kicks virtq_want_kicks
fuzz_fake := vmm/fuzz/fake_kvm.o
fuzz_fake_wraps := ioctl kvm_open
fuzz_guest := $(fuzz_fake) migrate/fuzz/guest.o
fuzz_guest_wraps := $(fuzz_fake_wraps) host_memory_read

fuzz_wraps_blk := $(fuzz_machine_wraps) disk_image_open disk_image_acquire
fuzz_parts_state := $(fuzz_guest)
fuzz_wraps_state := $(fuzz_guest_wraps)
fuzz_parts_board := $(fuzz_guest)
fuzz_wraps_board := $(fuzz_guest_wraps)
fuzz_parts_stream := $(fuzz_guest) migrate/fuzz/source.o
fuzz_wraps_stream := $(fuzz_guest_wraps) hashes_free hashes_from_ram vm_destroy_but_ram
fuzz_parts_answers := $(fuzz_guest)
fuzz_wraps_answers := $(fuzz_guest_wraps)
fuzz_parts_control := $(fuzz_fake) vmm/fuzz/requests.o
fuzz_wraps_control := $(fuzz_fake_wraps) migrate_start migrate_cancel migrate_tune \
	migrate_get_stats receive_cancel receive_get_stats ctl_reply ctl_error loop_timer
# For the CPU.
fuzz_parts_options := $(fuzz_fake)
fuzz_wraps_options := $(fuzz_fake_wraps)
# Nothing: what they feed needs no machine.
fuzz_parts_boot :=
fuzz_wraps_boot :=
fuzz_parts_client :=
fuzz_wraps_client :=

fuzz_name = $(patsubst fuzz-%,%,$(notdir $(1)))
fuzz_parts_of = $(addprefix $(B)/,$(if $(filter undefined,$(origin fuzz_parts_$(fuzz_name))),$(fuzz_machine),$(fuzz_parts_$(fuzz_name))))
fuzz_wraps_of = $(if $(filter undefined,$(origin fuzz_wraps_$(fuzz_name))),$(fuzz_machine_wraps),$(fuzz_wraps_$(fuzz_name)))

.PHONY: fuzz fuzz-coverage fuzzers
fuzzers: $(fuzz_progs)

.SECONDEXPANSION:
$(fuzz_progs): %: %.o $(fuzz_main) $$(call fuzz_parts_of,$$@) $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(if $(FUZZ),-fsanitize=fuzzer) \
		$(patsubst %,-Wl$(comma)--wrap=%,log_msg $(call fuzz_wraps_of,$@)) -o $@ $^ $(PKG_LIBS)
comma := ,

fuzz: setup
	@$(MAKE) --no-print-directory -j$$(nproc) FUZZ=1 CC=clang fuzzers
	@scripts/fuzz --seconds $(FUZZ_SECONDS)

fuzz-coverage: setup
	@$(MAKE) --no-print-directory -j$$(nproc) COVERAGE=1 CC=clang fuzzers
	@scripts/fuzz --coverage

-include $(fuzz_progs:=.d) $(patsubst %.o,$(B)/%.d,$(fuzz_machine) $(fuzz_guest) migrate/fuzz/source.o vmm/fuzz/requests.o) $(fuzz_main:.o=.d)
