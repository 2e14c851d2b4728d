# The hypervisor: build/vmm/pagurus, a flat image that GRUB and qemu -kernel load, and pagurus.elf with symbols for gdb.

VMM_CC := gcc
VMM_SRC := $(wildcard vmm/*/*.c)
VMM_ASM := $(wildcard vmm/*/*.S)
VMM_OBJ := $(patsubst %,build/vmm/obj/%.o,$(VMM_SRC) $(VMM_ASM))
VMM_CPPFLAGS := -I. -D__XEN_TOOLS__ -DPAGURUS_VERSION='"$(VERSION)"'
VMM_CFLAGS := -std=c11 $(WARN) -O2 -g -ffreestanding -fno-strict-aliasing -fno-common -fno-stack-protector \
	-mno-red-zone -mgeneral-regs-only -fpie -fvisibility=hidden -fno-asynchronous-unwind-tables -fno-jump-tables \
	-mindirect-branch=thunk-extern -mindirect-branch-register -mharden-sls=all

.PHONY: vmm vmm-size run run-gdb
vmm: build/vmm/pagurus

# Lines of code are those that are left without comments and blank lines.
define vmm_size
@total=0; printf '  hypervisor: image %d KiB, in memory %d KiB; lines of code:' $$(($$(stat -c %s build/vmm/pagurus) / 1024)) \
	$$(($$(size -A -d build/vmm/pagurus.elf | awk '$$1 ~ /^\.(text|rodata|data|bss)$$/ { n += $$2 } END { print n }') / 1024)); \
for room in $(sort $(patsubst vmm/%/,%,$(wildcard vmm/*/))); do \
	lines=$$($(VMM_CC) -x c -w -fpreprocessed -dD -E -P vmm/$$room/*.[chS] | grep -c '[^[:space:]]'); \
	total=$$((total + lines)); printf ' %s %d,' $$room $$lines; \
done; printf ' total %d\n' $$total
endef

vmm-size: build/vmm/pagurus
	$(vmm_size)

# One host on the hypervisor, with its console in this terminal; with run-gdb it waits for gdb first.
run: setup-build setup-lab
	@+$(AGAIN) all
	@$(ALONE) tests/lab/run
run-gdb: setup-build setup-lab
	@+$(AGAIN) all
	@$(ALONE) tests/lab/run --gdb

build/vmm/obj/%.c.o: %.c vmm/vmm.mk | setup-build
	$(call say,VMMCC,$<)
	@mkdir -p $(@D)
	$(Q)$(VMM_CC) $(VMM_CPPFLAGS) $(VMM_CFLAGS) -MMD -MP -c -o $@ $<
build/vmm/obj/%.S.o: %.S vmm/vmm.mk | setup-build
	$(call say,VMMAS,$<)
	@mkdir -p $(@D)
	$(Q)$(VMM_CC) $(VMM_CPPFLAGS) -g -D__ASSEMBLY__ -MMD -MP -c -o $@ $<

build/vmm/pagurus.elf: $(VMM_OBJ) vmm/vmm.lds
	$(call say,LD,$@)
	$(Q)ld -nostdlib -static --no-dynamic-linker -z noexecstack -z max-page-size=4096 --build-id=sha1 -T vmm/vmm.lds -o $@ $(VMM_OBJ) \
		$$($(VMM_CC) -print-libgcc-file-name)

build/vmm/pagurus: build/vmm/pagurus.elf
	$(call say,IMAGE,$@)
	$(Q)objcopy -O binary $< $@
	$(vmm_size)

-include $(wildcard build/vmm/obj/vmm/*/*.d)
