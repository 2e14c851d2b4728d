# The hypervisor: build/vmm/pagurus, a flat image that GRUB and qemu -kernel load, and pagurus.elf with symbols for gdb.

VMM_CC := gcc
VMM_SRC := $(wildcard vmm/*/*.c)
VMM_ASM := $(wildcard vmm/*/*.S)
VMM_OBJ := $(patsubst %,build/vmm/obj/%.o,$(VMM_SRC) $(VMM_ASM))
VMM_CPPFLAGS := -I. -D__XEN_TOOLS__ -DPAGURUS_VERSION='"$(VERSION)"'
VMM_CFLAGS := -std=c11 $(WARN) -O2 -g -ffreestanding -fno-strict-aliasing -fno-common -fno-stack-protector \
	-mno-red-zone -mgeneral-regs-only -fpie -fvisibility=hidden -fno-asynchronous-unwind-tables -fno-jump-tables \
	-mindirect-branch=thunk-extern -mindirect-branch-register -mharden-sls=all

.PHONY: vmm
vmm: build/vmm/pagurus

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

-include $(wildcard build/vmm/obj/vmm/*/*.d)
