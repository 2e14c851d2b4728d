# Pagurus: build, test, install. `make help` lists the targets. Objects go under build/ (build-san/ with SAN=1).

SHELL := /bin/bash
.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules
# As many jobs as processors, unless the caller says how many or this is a make below one that did.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc)
endif

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

# SAN=1: everything with ASan and UBSan, in its own folder. V=1: show the commands. SETUP=no: install no packages.
SAN ?=
V ?=
SETUP ?= yes
B := build$(if $(SAN),-san)

WARN := -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wwrite-strings -Wundef
CPPFLAGS := -I. -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DPAGURUS_VERSION='"$(VERSION)"'
CFLAGS ?= -O2 -g
LANGUAGE := -std=c11 $(WARN) -fno-strict-aliasing -fstack-protector-strong -pthread
ALL_CFLAGS := $(LANGUAGE) $(CFLAGS)
LDFLAGS ?=
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
ifneq ($(SAN),)
ALL_CFLAGS += $(SANITIZE) -fno-omit-frame-pointer
LDFLAGS += $(SANITIZE)
else
CPPFLAGS += -D_FORTIFY_SOURCE=2
endif
LIBS := -lssl -lcrypto -llz4 -lzstd -lz -lisal -lIPSec_MB -ljansson -laio -lnbd -ldl -lpthread -lm
BLK_XEN_LIBS := -lxenstore -lxengnttab -lxenevtchn
XEN_LIBS := -lxenlight -lxenctrl -lxenforeignmemory -lxencall -lxenstore -lxentoollog

# The parts. Everything that talks to a hypervisor is in files named *xen*, in a library of its own.
COMMON_SRC := $(wildcard common/*.c)
MIGRATE_SRC := $(filter-out $(wildcard migrate/*xen*.c),$(wildcard migrate/*.c))
XEN_SRC := $(wildcard migrate/*xen*.c storage/*xen*.c)
STORAGE_SRC := $(filter-out $(wildcard storage/*xen*.c),$(wildcard storage/*.c))
TOOL_SRC := $(wildcard tools/pagurus/*.c)
# The server of guests' disks, which libxl starts.
BLK_SRC := $(wildcard tools/blk/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
UNIT_LIB_SRC := $(filter-out $(UNIT_SRC),$(wildcard tests/unit/*.c)) $(wildcard tests/storage/*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
# A program for each bench_*.c; what they share is in the other files.
BENCH_SRC := $(wildcard tests/bench/bench_*.c)
BENCH_LIB_SRC := $(filter-out $(BENCH_SRC),$(wildcard tests/bench/*.c))

obj = $(patsubst %.c,$(B)/obj/%.o,$(1))
LIB := $(B)/libpagurus.a
XEN_LIB := $(B)/libpagurus-xen.a
UNIT_LIB := $(B)/libunit.a
TOOL := $(if $(TOOL_SRC),$(B)/pagurus)
BLK := $(B)/pagurus-blk
UNITS := $(patsubst tests/unit/%.c,$(B)/tests/%,$(UNIT_SRC))
BENCHES := $(patsubst tests/bench/%.c,$(B)/bench/%,$(BENCH_SRC))
FUZZERS := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(FUZZ_SRC))

.PHONY: all help check test soak lint fuzz bench bench-vmm bench-storage bench-moves demo lab install clean units fuzzers benches print-flags FORCE
.PHONY: setup-build setup-lint setup-lab
.SECONDARY:

all: $(LIB) $(XEN_LIB) $(TOOL) $(BLK) vmm

help:
	@echo 'Targets (each installs the Debian packages that it lacks, which needs root; SETUP=no: it does not):'
	@echo '  all      build the pagurus command: $(B)/pagurus (the default)'
	@echo '  check    unit tests and other quick tests, under two minutes, no hosts'
	@echo '  test     what a change has to pass, hosts in QEMU included'
	@echo '  soak     what takes hours: the whole of what test shortens, a hundred moves, many boots, our engine on Debian'\''s Xen'
	@echo '  lint     formatting, static analysis, warnings of gcc and clang as errors'
	@echo '  fuzz     fuzz the stream readers; FUZZ_SECONDS=$(FUZZ_SECONDS) for each of them'
	@echo '  bench    how fast the engine is on this machine, beside QEMU'
	@echo '  bench-storage  disks over NBD, beside qemu-nbd'
	@echo '  bench-moves  moves of real guests between two hosts in QEMU, beside xl migrate; an hour'
	@echo '  bench-vmm  what the hypervisor costs, in instructions, beside Xen 4.17 and none'
	@echo '  demo     two hosts, a Debian guest that moves between them, and what that cost; HYPERVISOR=xen: on Debian'\''s'
	@echo '  lab      two hosts to look around in; HYPERVISOR=pagurus: ours'
	@echo '  run      boot one host on our own hypervisor and log in on its console; run-gdb: under gdb'
	@echo '  vmm      build the hypervisor: build/vmm/pagurus; vmm-size: its size and lines of code by room'
	@echo '  install  the command, its unit, man pages, completion, hypervisor and GRUB script; PREFIX=$(PREFIX) DESTDIR='
	@echo '  clean    remove build/ and build-san/'
	@echo 'Switches: SAN=1 ASan and UBSan, in build-san/; V=1 show the commands; CC=clang-14; SETUP=no.'
	@echo 'Single tests: tests/run --list, tests/run NAME...'

# -- packages: every target that compiles or runs something gets them first --

setup-build setup-lint setup-lab:
ifeq ($(SETUP),yes)
	@tools/setup $(@:setup-%=%)
endif

# -- compiling --

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' $(1) $(2))

$(B)/obj/%.o: %.c $(B)/flags | setup-build
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# Rebuild when the compiler or its flags change.
$(B)/flags: FORCE | setup-build
	@mkdir -p $(@D)
	@printf '%s\n' $(call quoted,$(COMPILE)) | cmp -s - $@ || printf '%s\n' $(call quoted,$(COMPILE)) > $@
COMPILE = $(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(LDFLAGS)
quoted = '$(subst ','\'',$(1))'

define archive
$(call say,AR,$@)
@mkdir -p $(@D); rm -f $@
$(Q)ar rcs $@ $(filter %.o,$^)
endef

# $(call link,LIBRARIES): a program from its objects and archives
define link
$(call say,LD,$@)
@mkdir -p $(@D)
$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(filter %.o %.a,$^) $(1) $(LIBS)
endef

$(LIB): $(call obj,$(COMMON_SRC) $(MIGRATE_SRC) $(STORAGE_SRC))
	$(archive)
$(XEN_LIB): $(call obj,$(XEN_SRC))
	$(archive)
$(UNIT_LIB): $(call obj,$(UNIT_LIB_SRC))
	$(archive)

$(B)/pagurus: $(call obj,$(TOOL_SRC)) $(XEN_LIB) $(LIB)
	$(call link,$(XEN_LIBS))

$(BLK): $(call obj,$(BLK_SRC)) $(XEN_LIB) $(LIB)
	$(call link,$(BLK_XEN_LIBS))

# A test of parts of the command itself.
$(B)/libtool.a: $(call obj,$(filter-out tools/pagurus/main.c,$(TOOL_SRC)))
	$(archive)
$(B)/tests/test_move_disks: $(B)/obj/tests/unit/test_move_disks.o $(UNIT_LIB) $(B)/libtool.a $(LIB)
	$(call link)

# Parts of the server of guests' disks.
$(B)/tests/test_serve_dial $(B)/tests/test_keeper_relay: $(B)/tests/%: $(B)/obj/tests/unit/%.o $(B)/obj/tools/blk/control.o $(UNIT_LIB) $(LIB)
	$(call link)
$(B)/tests/test_keeper: $(call obj,tests/unit/test_keeper.c $(addprefix tools/blk/,control.c keeper_dial.c keeper_freeze.c keeper_hold.c keeper_relay.c keeper_store.c qmp.c)) $(UNIT_LIB) $(LIB)
	$(call link)

# Part of the engine on Xen that needs none of Xen's libraries.
$(B)/tests/test_xen_console_log: $(B)/tests/%: $(B)/obj/tests/unit/%.o $(UNIT_LIB) $(XEN_LIB) $(LIB)
	$(call link)

units: $(UNITS)
$(B)/tests/%: $(B)/obj/tests/unit/%.o $(UNIT_LIB) $(LIB)
	$(call link)

benches: $(BENCHES)
$(B)/bench/%: $(B)/obj/tests/bench/%.o $(call obj,$(BENCH_LIB_SRC)) $(LIB)
	$(call link)

# Fuzzers are clang's, with coverage in the code under test, so they compile the libraries again.
fuzzers: $(FUZZERS)
FUZZ_LIB_SRC := $(COMMON_SRC) $(MIGRATE_SRC) $(STORAGE_SRC)
FUZZ_CFLAGS := -std=c11 -O1 -g -U_FORTIFY_SOURCE -pthread -fsanitize=fuzzer-no-link $(SANITIZE)
build/fuzz/obj/%.o: %.c | setup-lint
	$(call say,FUZZCC,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(CPPFLAGS) $(FUZZ_CFLAGS) -MMD -MP -c -o $@ $<
build/fuzz/fuzz_%: build/fuzz/obj/tests/fuzz/fuzz_%.o $(patsubst %.c,build/fuzz/obj/%.o,$(FUZZ_LIB_SRC))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CLANG) -pthread -fsanitize=fuzzer $(SANITIZE) -o $@ $^ $(LIBS)

-include $(wildcard $(B)/obj/*/*.d $(B)/obj/*/*/*.d build/fuzz/obj/*/*.d build/fuzz/obj/*/*/*.d)

# What tests/lint compiles with.
print-flags:
	@printf '%s\n' $(call quoted,$(CPPFLAGS) $(LANGUAGE))

# -- testing: the packages first, then a make for what the tests need, then the tests, which are no part of this make --

FUZZ_SECONDS ?= 300
AGAIN := $(MAKE) --no-print-directory SETUP=no
ALONE := env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u MAKEOVERRIDES

check: setup-build
	@+$(AGAIN) all units
	@$(ALONE) tests/run check

test: setup-build setup-lint setup-lab
	@+$(AGAIN) all units benches fuzzers vmm-guests
	@+$(AGAIN) SAN=1 all units
	@$(ALONE) tests/run test

soak: setup-build setup-lint setup-lab
	@+$(AGAIN) all
	@$(ALONE) tests/run soak

lint: setup-build setup-lint
	@$(ALONE) tests/lint

fuzz: setup-build setup-lint
	@+$(AGAIN) fuzzers
	@$(ALONE) tests/fuzz/run $(FUZZ_SECONDS)

bench: setup-build setup-lab
	@+$(AGAIN) benches
	@$(ALONE) tests/bench/run

bench-storage: setup-build setup-lab
	@+$(AGAIN) all benches
	@$(ALONE) tests/bench/storage_run

bench-moves: setup-build setup-lab
	@+$(AGAIN) all
	@$(ALONE) tests/bench/migrate_run

bench-vmm: setup-build setup-lab
	@+$(AGAIN) all vmm-guests
	@$(ALONE) tests/bench/vmm_run

demo: setup-build setup-lab
	@+$(AGAIN) all
	@$(ALONE) tests/lab/demo

lab: setup-build setup-lab
	@+$(AGAIN) all
	@$(ALONE) tests/lab/lab up --hypervisor $(or $(HYPERVISOR),xen)
	@echo
	@echo 'Two hosts, a and b, are up. Go on with, for example:'
	@echo '  tests/lab/lab sh a xl list         a command in host a, as root'
	@echo '  tests/lab/lab sh a                 a shell in host a'
	@echo '  tests/lab/lab sh a ls /var/lib/pagurus/guests    guests to start with xl create'
	@echo '  tests/lab/lab --help               everything it can do'
	@echo '  tests/lab/lab down                 end it'

-include tools/install.mk
-include vmm/vmm.mk
-include tests/guests/guests.mk

clean:
	rm -rf build build-san

FORCE:
