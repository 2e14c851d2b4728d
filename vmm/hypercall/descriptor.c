/* SPDX-License-Identifier: MIT */
/* What takes the place of descriptor tables, control and debug registers, and entry points in a paravirtualised kernel. */
#include "vmm/lib/xen.h"

#include <xen/callback.h>

#include "vmm/cpu/context.h"
#include "vmm/cpu/desc.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"

#define NR_VECTORS 256u
#define TI_IF	   4

long do_set_trap_table(arg_t traps)
{
	struct vcpu *v = current;

	if (!traps) {
		memset(v->trap, 0, sizeof(v->trap));
		return 0;
	}
	/* As many as there are vectors, if each came once; then its end mark. */
	for (unsigned n = 0; n <= NR_VECTORS; n++) {
		struct trap_info t;

		if (copy_from_guest(&t, GUEST_VA(traps + n * sizeof(t)), sizeof(t)))
			return -EFAULT;
		if (!t.address)
			return 0;
		if (!guest_address_ok(t.address))
			return -EINVAL;
		v->trap[t.vector] = (struct trap_handler){
			.address = t.address, .cs = (uint16_t)(t.cs | 3), .flags = t.flags};
		vcpu_traps_changed(v);
	}
	return -EINVAL;
}

int vcpu_set_gdt(struct vcpu *v, const uint64_t *frames, unsigned entries)
{
	struct domain *d = v->domain;
	unsigned nr = (entries + 511) / 512, held = 0;
	mfn_t fresh[GDT_PAGES];
	int rc;

	if (entries > GDT_PAGES * 512)
		return -EINVAL;
	rc = page_lock(d);
	if (rc)
		return rc;
	for (; held < nr && !rc; held++) {
		fresh[held] = MFN(frames[held]);
		rc = mfn_get_both(fresh[held], d, TYPE_DESC);
		if (rc)
			break;
	}
	for (unsigned i = 0; !rc && i < GDT_PAGES; i++) {
		vcpu_put_table(&v->gdt[i]);
		v->gdt[i] = i < nr ? fresh[i] : MFN_NONE;
	}
	while (rc && held--)
		frame_put_both(mfn_frame(fresh[held]));
	if (!rc)
		v->gdt_entries = entries;
	if (!rc && v == current)
		desc_load(v);
	page_unlock(d);
	return rc;
}

long do_set_gdt(arg_t frames, arg_t entries)
{
	uint64_t list[GDT_PAGES];

	if (entries > GDT_PAGES * 512)
		return -EINVAL;
	if (copy_from_guest(list, GUEST_VA(frames), (entries + 511) / 512 * sizeof(*list)))
		return -EFAULT;
	return vcpu_set_gdt(current, list, (unsigned)entries);
}

long do_update_descriptor(arg_t maddr, arg_t descriptor)
{
	struct domain *d = current->domain;
	mfn_t m = MFN(maddr >> PAGE_SHIFT);
	struct frame *f;
	uint64_t value = descriptor;
	int rc;

	if (maddr % 8 || !mfn_valid(m) || descriptor_check(&value))
		return -EINVAL;
	f = mfn_frame(m);
	rc = page_lock(d);
	if (rc)
		return rc;
	/* In use as descriptors: it stays so. Else a page to write to. */
	rc = frame_get_both(f, d,
			    type_of(f->type) == TYPE_DESC && (f->type & TYPE_COUNT_MASK)
				    ? TYPE_DESC
				    : TYPE_WRITABLE);
	if (!rc) {
		__atomic_store_n((uint64_t *)mfn_to_ptr(m) + maddr % PAGE_SIZE / 8, value,
				 __ATOMIC_SEQ_CST);
		shadow_mark(d, m);
		frame_put_both(f);
	}
	page_unlock(d);
	return rc;
}

long do_stack_switch(arg_t ss, arg_t sp)
{
	struct vcpu *v = current;

	v->kernel_ss = (uint16_t)(ss | 3);
	v->kernel_sp = sp;
	return 0;
}

long do_fpu_taskswitch(arg_t set)
{
	struct vcpu *v = current;

	v->ts = set != 0;
	if (set)
		write_cr0(read_cr0() | CR0_TS);
	else
		__asm__ volatile("clts");
	return 0;
}

long do_set_segment_base(arg_t which, arg_t base)
{
	struct vcpu *v = current;
	bool canonical = (int64_t)(base << 16) >> 16 == (int64_t)base, again;
	int lost;

	if (which != SEGBASE_GS_USER_SEL && (!canonical || (base && !guest_address_ok(base))))
		return -EINVAL;
	switch (which) {
	case SEGBASE_FS:
		wrmsr(MSR_FS_BASE, base);
		return 0;
	case SEGBASE_GS_USER:
		/* The kernel calls: its own base is the active one. */
		wrmsr(MSR_KERNEL_GS_BASE, base);
		return 0;
	case SEGBASE_GS_KERNEL:
		wrmsr(MSR_GS_BASE, base);
		return 0;
	case SEGBASE_GS_USER_SEL:
		/* It may have been interrupted. */
		again = (base & SELECTOR_LDT) && desc_ldt_fault(v, base & 0xfff8);
		__asm__ volatile("swapgs" ::: "memory");
		lost = load_selector_gs((unsigned)base & 0xffff);
		__asm__ volatile("swapgs" ::: "memory");
		return again && lost ? -ERESTART : 0;
	default:
		return -EINVAL;
	}
}

/* ---- debug registers ---- */

#define DR6_MASK 0xffff4ff0ull

static bool dr7_ok(uint64_t value, const struct vcpu *v)
{
	if (value >> 32)
		return false;
	for (unsigned i = 0; i < 4; i++) {
		unsigned rw = (unsigned)(value >> (16 + i * 4)) & 3;

		if (!(value >> i * 2 & 3))
			continue;
		if (rw == 2) /* I/O: not for guests */
			return false;
		if (!guest_range_ok(GUEST_VA(v->debugreg[i]), 8))
			return false;
	}
	return true;
}

int vcpu_set_debugreg(struct vcpu *v, unsigned reg, uint64_t value)
{
	switch (reg) {
	case 0 ... 3:
		if (!guest_range_ok(GUEST_VA(value), 8))
			return -EPERM;
		v->debugreg[reg] = value;
		break;
	case 4:
	case 6:
		v->debugreg[6] = (value & ~DR6_MASK & 0xffffffff) | 0xffff0ff0;
		break;
	case 5:
	case 7:
		/* General detect and the reserved bits are not the guest's. */
		value = (value & ~0xfc00ull) | 0x400;
		if (!dr7_ok(value, v))
			return -EPERM;
		v->debugreg[7] = value;
		break;
	default:
		return -EINVAL;
	}
	return 0;
}

long do_set_debugreg(arg_t reg, arg_t value)
{
	struct vcpu *v = current;
	int rc = vcpu_set_debugreg(v, (unsigned)MIN(reg, 8), value);

	if (rc)
		return rc;
	load_debug_registers(v);
	return 0;
}

long do_get_debugreg(arg_t reg)
{
	static const uint8_t shown[] = {0, 1, 2, 3, 6, 7, 6, 7};

	if (reg >= ARRAY_SIZE(shown))
		return -EINVAL;
	return (long)current->debugreg[shown[reg]];
}

/* ---- entry points ---- */

long do_vm_assist(arg_t command, arg_t type)
{
	struct domain *d = current->domain;

	if (type >= 64 || !(VM_ASSIST_KNOWN >> type & 1))
		return -EINVAL;
	switch (command) {
	case VMASST_CMD_enable:
		__atomic_fetch_or(&d->vm_assist, 1ull << type, __ATOMIC_SEQ_CST);
		return 0;
	case VMASST_CMD_disable:
		__atomic_fetch_and(&d->vm_assist, ~(1ull << type), __ATOMIC_SEQ_CST);
		return 0;
	default:
		return -ENOSYS;
	}
}

static int register_callback(const struct callback_register *c)
{
	struct vcpu *v = current;
	bool mask = c->flags & CALLBACKF_mask_events;

	if (!guest_address_ok(c->address))
		return -EINVAL;
	switch (c->type) {
	case CALLBACKTYPE_event:
		v->callback = c->address;
		return 0;
	case CALLBACKTYPE_failsafe:
		v->failsafe = c->address;
		v->failsafe_disables_events = mask;
		return 0;
	case CALLBACKTYPE_syscall:
		v->syscall_entry = c->address;
		v->syscall_disables_events = mask;
		return 0;
	case CALLBACKTYPE_syscall32:
		v->syscall32_entry = c->address;
		v->syscall32_disables_events = mask;
		return 0;
	case CALLBACKTYPE_sysenter:
		v->sysenter_entry = c->address;
		v->sysenter_disables_events = mask;
		return 0;
	case CALLBACKTYPE_nmi:
		v->trap[TRAP_NMI] = (struct trap_handler){
			.address = c->address, .cs = SEL_RING3_64, .flags = TI_IF};
		return 0;
	default:
		return -ENOSYS;
	}
}

long do_callback_op(arg_t command, arg_t arg)
{
	struct callback_register add;
	struct callback_unregister drop;

	switch (command) {
	case CALLBACKOP_register:
		if (copy_from_guest(&add, GUEST_VA(arg), sizeof(add)))
			return -EFAULT;
		return register_callback(&add);
	case CALLBACKOP_unregister:
		if (copy_from_guest(&drop, GUEST_VA(arg), sizeof(drop)))
			return -EFAULT;
		if (drop.type != CALLBACKTYPE_nmi)
			return -EINVAL;
		current->trap[TRAP_NMI].address = 0;
		return 0;
	default:
		return -ENOSYS;
	}
}

/* ---- iret ---- */

long do_iret(void)
{
	struct vcpu *v = current;
	struct cpu_user_regs *r = guest_frame();
	struct iret_context c;
	bool to_user;

	if (copy_from_guest(&c, GUEST_VA(r->rsp), sizeof(c))) {
		domain_crash(v->domain,
			     "it returns from an exception with a stack at %lx that cannot be read",
			     r->rsp);
		return 0;
	}
	to_user = (c.cs & 3) == 3;
	if (to_user && mfn_eq(v->table_user, MFN_NONE)) {
		domain_crash(v->domain, "it returns to user mode without tables for it");
		return 0;
	}
	r->rip = c.rip;
	r->cs = (uint16_t)(c.cs | 3);
	r->rflags = (c.rflags & ~(uint64_t)(EFLAGS_IOPL | EFLAGS_VM)) | EFLAGS_IF;
	r->rsp = c.rsp;
	r->ss = (uint16_t)(c.ss | 3);
	r->rax = c.rax;
	r->entry_vector = ENTRY_SYSCALL; /* SYSRET will do */
	if (!(c.flags & VGCF_in_syscall)) {
		r->entry_vector = 0;
		r->r11 = c.r11;
		r->rcx = c.rcx;
	}
	v->info->evtchn_upcall_mask = !(c.rflags & EFLAGS_IF);
	v->nmi_masked = false;
	if (to_user)
		toggle_guest_mode(v);
	return 0;
}
