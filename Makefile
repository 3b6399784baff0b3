# SPDX-License-Identifier: MIT
#
# godwit: `make` builds build/godwit; `make demo` and `make check` do everything else by themselves.
#
#   make [V=1] [CC=clang] [ASAN=1] [UBSAN=1] [TSAN=1] [FAULTS=1]
#   make demo | check | bench | grid | fuzz | lint | format | install [PREFIX=/usr/local] [DESTDIR=] | clean
#
# A build with sanitizers or faults goes to a folder of its own below build/, beside the plain one.

.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))

VERSION := 0.1.0
B := build
ifdef ASAN
B := $(B)/asan
SANITIZE += -fsanitize=address
endif
ifdef UBSAN
B := $(B)/ubsan
SANITIZE += -fsanitize=undefined -fno-sanitize-recover=all
endif
ifdef TSAN
B := $(B)/tsan
SANITIZE += -fsanitize=thread
endif
# Faults on purpose (vmm/fault.h), for tests.
ifdef FAULTS
B := $(B)/faults
VERSION := $(VERSION)-faults
FAULTS_CPPFLAGS := -DGODWIT_FAULTS
FAULTS_LDFLAGS := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc
endif
ifdef COVERAGE
B := $(B)/coverage
SANITIZE += -fprofile-instr-generate -fcoverage-mapping
endif
ifdef FUZZ
B := $(B)/fuzz
SANITIZE += -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
else ifneq ($(CC),gcc)
B := $(B)/$(notdir $(CC))
endif

PREFIX ?= /usr/local
V ?= 0
Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-7s %s\n' "$(1)" "$(2)")

WARN := -Wall -Wextra -Werror -Wshadow -Wconversion -Wsign-conversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wvla -Wpointer-arith -Wundef
PKGS := liburing libxxhash libzstd jansson openssl libseccomp
# Deferred: pkg-config may only be there once `setup` has run.
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS))
PKG_LIBS = $(shell pkg-config --libs $(PKGS))
OPT ?= -O2 -g
CPPFLAGS := -D_GNU_SOURCE -DGODWIT_VERSION='"$(VERSION)"' $(FAULTS_CPPFLAGS)
CFLAGS = -std=gnu17 $(OPT) -fno-omit-frame-pointer -pthread $(WARN) $(SANITIZE) $(PKG_CFLAGS)
LDFLAGS = -pthread $(SANITIZE) $(FAULTS_LDFLAGS)

LIB_SRC := $(filter-out vmm/main.c,$(wildcard vmm/*.c)) $(wildcard migrate/*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(B)/%.o)
MAIN_OBJ := $(B)/vmm/main.o
UNIT_SRC := $(wildcard vmm/tests/test-*.c) $(wildcard migrate/tests/test-*.c) \
	$(wildcard tools/tests/test-*.c)
UNIT := $(UNIT_SRC:%.c=$(B)/%)
TOOLS := $(patsubst %.c,$(B)/%,$(wildcard tools/*.c))

.PHONY: all tools unit payloads demo check bench lint format install clean setup
all: $(B)/godwit tools

# Installs what is missing from Debian's packages; silent and quick when nothing is.
setup:
	@scripts/setup

# Recursive, because only after set-up are there packages to ask for flags.
demo: setup
	@$(MAKE) --no-print-directory -j$$(nproc) all payloads
	@scripts/demo

check: setup
	@$(MAKE) --no-print-directory -j$$(nproc) all unit payloads guest-tests
	@scripts/check

# Against QEMU; takes its time. `scripts/bench --help` says what can be left out.
bench: setup
	@$(MAKE) --no-print-directory -j$$(nproc) all bench-tools
	@scripts/bench

lint: setup
	@scripts/lint

format:
	git ls-files --cached --others --exclude-standard -- '*.c' '*.h' | xargs clang-format -i

install: all
	install -D -m 755 $(B)/godwit $(DESTDIR)$(PREFIX)/bin/godwit
	install -D -m 644 vmm/godwit.1 $(DESTDIR)$(PREFIX)/share/man/man1/godwit.1

# Guests that test us; the rules are in guest-tests/*/*.mk.
payloads: bare-payloads linux-guest

$(B)/godwit: $(MAIN_OBJ) $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

$(B)/libgodwit.a: $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(B)/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# Chosen at run time by what the CPU has.
$(B)/migrate/hash_page_avx2.o: CFLAGS += -mavx2
$(B)/migrate/hash_page_avx512.o: CFLAGS += -mavx512f

# Unit tests: tests/test-NAME.c in each folder, linked with Check and everything but main.
unit: $(UNIT) tools
$(UNIT): $(B)/%: $(B)/%.o $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) $(shell pkg-config --libs check)

# Programs of one file each, with everything but main.
tools: $(TOOLS)
$(TOOLS): $(B)/%: $(B)/%.o $(B)/libgodwit.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

clean:
	rm -rf $(B)

-include $(wildcard guest-tests/*/*.mk tools/*/*.mk vmm/fuzz/*.mk)
-include $(LIB_OBJ:.o=.d) $(MAIN_OBJ:.o=.d) $(UNIT:=.d) $(TOOLS:=.d)
