# Tiny PV kernels that boot in dom0's place and try the hypervisor: build/guests/NAME for each tests/guests/test_NAME.c; and one that is measured.

GUEST_SRC := $(wildcard tests/guests/test_*.c)
# The hypervisor's own formatting and copying serve here, too; what else stands in those files is left out by the linker.
GUEST_LIB_OBJ := $(patsubst %,build/guests/obj/%.o,$(wildcard tests/guests/lib/*.c tests/guests/lib/*.S) vmm/lib/print.c vmm/lib/string.c)
GUESTS := $(patsubst tests/guests/test_%.c,build/guests/%,$(GUEST_SRC))
GUEST_CPPFLAGS := -I. -D__XEN_TOOLS__
GUEST_CFLAGS := -std=c11 $(WARN) -O2 -g -ffreestanding -fno-strict-aliasing -fno-common -fno-stack-protector -ffunction-sections \
	-mno-red-zone -mgeneral-regs-only -mcmodel=kernel -fno-pic -fno-asynchronous-unwind-tables -fno-jump-tables -fcf-protection=none

.PHONY: vmm-guests
vmm-guests: $(GUESTS) build/guests/bench/peers build/vmm/pagurus

build/guests/obj/%.c.o: %.c tests/guests/guests.mk | setup-build
	$(call say,GUESTCC,$<)
	@mkdir -p $(@D)
	$(Q)$(VMM_CC) $(GUEST_CPPFLAGS) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<
build/guests/obj/%.S.o: %.S tests/guests/guests.mk | setup-build
	$(call say,GUESTAS,$<)
	@mkdir -p $(@D)
	$(Q)$(VMM_CC) $(GUEST_CPPFLAGS) -g -D__ASSEMBLY__ -MMD -MP -c -o $@ $<

$(GUESTS): build/guests/%: build/guests/obj/tests/guests/test_%.c.o
build/guests/bench/peers: build/guests/obj/tests/bench/vmm_guest/peers.c.o
$(GUESTS) build/guests/bench/peers: $(GUEST_LIB_OBJ) tests/guests/guest.lds
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)ld -nostdlib -static -z noexecstack --no-warn-rwx-segments -z max-page-size=4096 --gc-sections -T tests/guests/guest.lds -o $@ $(filter %.o,$^)

-include $(wildcard build/guests/obj/*/*/*.d build/guests/obj/*/*/*/*.d)
