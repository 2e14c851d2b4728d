# Pagurus: build, test, install. `make help` lists the targets. Objects go under build/ (build-san/ with SAN=1).

SHELL := /bin/bash
.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules

VERSION := 0.1.0
PREFIX ?= /usr
SYSCONFDIR ?= /etc
DESTDIR ?=
CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
CLANG ?= clang-14
PYTHON ?= /usr/bin/python3

# SAN=1: everything with ASan and UBSan, in its own folder.
SAN ?=
B := build$(if $(SAN),-san)

WARN := -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wwrite-strings -Wundef
CPPFLAGS := -I. -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DPAGURUS_VERSION='"$(VERSION)"'
CFLAGS ?= -O2 -g
ALL_CFLAGS := -std=c11 $(WARN) -fno-strict-aliasing -fstack-protector-strong -pthread $(CFLAGS)
LDFLAGS ?=
ifneq ($(SAN),)
ALL_CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
LDFLAGS += -fsanitize=address,undefined
else
CPPFLAGS += -D_FORTIFY_SOURCE=2
endif
LIBS := -lssl -lcrypto -llz4 -lzstd -ldeflate -ljansson -lpthread -lm
XEN_LIBS := -lxenlight -lxenctrl -lxenforeignmemory -lxencall -lxenstore -lxentoollog

# The parts. Everything that talks to a hypervisor is in files named *xen*, in a library of its own.
COMMON_SRC := $(wildcard common/*.c)
MIGRATE_SRC := $(filter-out $(wildcard migrate/*xen*.c),$(wildcard migrate/*.c))
XEN_SRC := $(wildcard migrate/*xen*.c)
TOOL_SRC := $(wildcard tools/pagurus/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
UNIT_LIB_SRC := $(filter-out $(UNIT_SRC),$(wildcard tests/unit/*.c))
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
BENCH_SRC := $(wildcard tests/bench/*.c)

obj = $(patsubst %.c,$(B)/obj/%.o,$(1))
LIB := $(B)/libpagurus.a
XEN_LIB := $(B)/libpagurus-xen.a
UNIT_LIB := $(B)/libunit.a
TOOL := $(if $(TOOL_SRC),$(B)/pagurus)
UNITS := $(patsubst tests/unit/%.c,$(B)/tests/%,$(UNIT_SRC))
BENCHES := $(patsubst tests/bench/%.c,$(B)/bench/%,$(BENCH_SRC))
FUZZERS := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(FUZZ_SRC))

.PHONY: all help setup check test lint fuzz bench demo lab install clean units fuzzers benches FORCE

all: $(LIB) $(XEN_LIB) $(TOOL)

-include Makefile.help.mk

$(B)/obj/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $<";) $(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# Rebuild when the compiler or its flags change.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(subst ','\'',$(CPPFLAGS)) $(ALL_CFLAGS)' | cmp -s - $@ || echo '$(CC) $(subst ','\'',$(CPPFLAGS)) $(ALL_CFLAGS)' > $@

define archive
@mkdir -p $(@D); rm -f $@; ar rcs $@ $(filter %.o,$^)
endef

$(LIB): $(call obj,$(COMMON_SRC) $(MIGRATE_SRC))
	$(archive)
$(XEN_LIB): $(call obj,$(XEN_SRC))
	$(archive)
$(UNIT_LIB): $(call obj,$(UNIT_LIB_SRC))
	$(archive)

$(B)/pagurus: $(call obj,$(TOOL_SRC)) $(XEN_LIB) $(LIB)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(XEN_LIBS) $(LIBS)

units: $(UNITS)
$(B)/tests/%: $(B)/obj/tests/unit/%.o $(UNIT_LIB) $(LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

benches: $(BENCHES)
$(B)/bench/%: $(B)/obj/tests/bench/%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# Fuzzers are clang's, with coverage in the code under test, so they compile the libraries again.
fuzzers: $(FUZZERS)
build/fuzz/%: tests/fuzz/%.c $(COMMON_SRC) $(MIGRATE_SRC) $(wildcard common/*.h migrate/*.h protocol-spec/*.h)
	@mkdir -p $(@D)
	$(CLANG) $(CPPFLAGS) -std=c11 -O1 -g -pthread -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -o $@ $(filter %.c,$^) $(LIBS)

-include $(wildcard $(B)/obj/*/*.d $(B)/obj/*/*/*.d)

clean:
	rm -rf build build-san

FORCE:
