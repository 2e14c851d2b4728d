/* SPDX-License-Identifier: MIT */
/* A vCPU's whole context at once: struct vcpu_guest_context, as a kernel gives it to its further vCPUs and the toolstack to a new or restored domain. */
#include "vmm/cpu/context.h"
#include "vmm/cpu/desc.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"

static int check(const struct vcpu_guest_context *c)
{
	for (unsigned i = 0; i < ARRAY_SIZE(c->trap_ctxt); i++)
		if (c->trap_ctxt[i].address && !guest_address_ok(c->trap_ctxt[i].address))
			return -EINVAL;
	if (!guest_address_ok(c->event_callback_eip) ||
	    !guest_address_ok(c->failsafe_callback_eip) ||
	    !guest_address_ok(c->syscall_callback_eip) || c->gdt_ents > GDT_PAGES * 512 ||
	    c->ldt_ents > 8192 || (c->ldt_ents && c->ldt_base % PAGE_SIZE))
		return -EINVAL;
	if (!guest_address_ok(c->fs_base) || !guest_address_ok(c->gs_base_kernel) ||
	    !guest_address_ok(c->gs_base_user))
		return -EINVAL;
	return 0;
}

/* Hold the tables of the context instead of those that there are. Both or none. */
static int hold_tables(struct vcpu *v, const struct vcpu_guest_context *c)
{
	struct domain *d = v->domain;
	mfn_t kernel = MFN(c->ctrlreg[3] >> PAGE_SHIFT), user = MFN(c->ctrlreg[1] >> PAGE_SHIFT);
	bool has_user = c->ctrlreg[1];
	int rc = page_lock(d);

	if (rc)
		return rc;
	rc = mfn_get_both(kernel, d, TYPE_L4);
	if (!rc && has_user) {
		rc = mfn_get_both(user, d, TYPE_L4);
		if (rc)
			frame_put_both(mfn_frame(kernel));
	}
	if (!rc) {
		desc_ldt_drop(v);
		vcpu_put_table(&v->table_kernel);
		vcpu_put_table(&v->table_user);
		v->table_kernel = kernel;
		v->table_user = has_user ? user : MFN_NONE;
		vcpu_tables_changed(v);
	}
	page_unlock(d);
	return rc;
}

void vcpu_put_table(mfn_t *m)
{
	if (!mfn_eq(*m, MFN_NONE))
		frame_put_both(mfn_frame(*m));
	*m = MFN_NONE;
}

int vcpu_set_context(struct vcpu *v, const struct vcpu_guest_context *c)
{
	int rc = check(c);

	if (rc)
		return rc;
	/* Debug registers first: they refuse without leaving anything behind. */
	for (unsigned i = 0; !rc && i < 4; i++)
		rc = vcpu_set_debugreg(v, i, c->debugreg[i]);
	if (!rc)
		rc = vcpu_set_debugreg(v, 6, c->debugreg[6]);
	if (!rc)
		rc = vcpu_set_debugreg(v, 7, c->debugreg[7]);
	if (!rc)
		rc = vcpu_set_gdt(v, (const uint64_t *)c->gdt_frames, (unsigned)c->gdt_ents);
	if (!rc)
		rc = hold_tables(v, c);
	if (rc)
		return rc;
	v->regs = c->user_regs;
	v->regs.rflags = (v->regs.rflags & ~(uint64_t)(EFLAGS_IOPL | EFLAGS_VM)) | EFLAGS_IF | 2;
	v->iopl = (unsigned)(c->user_regs.rflags & EFLAGS_IOPL) >> 12;
	v->regs.cs |= 3;
	v->regs.ss |= 3;
	v->regs.entry_vector = 0;
	v->kernel_mode = c->flags & VGCF_in_kernel;
	if (!v->kernel_mode && mfn_eq(v->table_user, MFN_NONE))
		v->kernel_mode = true;
	v->failsafe_disables_events = c->flags & VGCF_failsafe_disables_events;
	v->syscall_disables_events = c->flags & VGCF_syscall_disables_events;
	for (unsigned i = 0; i < ARRAY_SIZE(v->trap); i++)
		v->trap[i] = (struct trap_handler){.address = c->trap_ctxt[i].address,
						   .cs = (uint16_t)(c->trap_ctxt[i].cs | 3),
						   .flags = c->trap_ctxt[i].flags};
	vcpu_traps_changed(v);
	v->ldt_base = c->ldt_base;
	v->ldt_entries = (unsigned)c->ldt_ents;
	v->kernel_ss = (uint16_t)(c->kernel_ss | 3);
	v->kernel_sp = c->kernel_sp;
	v->ctrlreg[0] = c->ctrlreg[0];
	v->ctrlreg[2] = c->ctrlreg[2];
	v->ctrlreg[4] = c->ctrlreg[4];
	v->ts = c->ctrlreg[0] & CR0_TS;
	v->callback = c->event_callback_eip;
	v->failsafe = c->failsafe_callback_eip;
	v->syscall_entry = c->syscall_callback_eip;
	v->fs_base = c->fs_base;
	v->gs_base_kernel = c->gs_base_kernel;
	v->gs_base_user = c->gs_base_user;
	if (c->flags & VGCF_i387_valid)
		fpu_set_legacy(v, &c->fpu_ctxt);
	__atomic_fetch_or(&v->domain->vm_assist, c->vm_assist & VM_ASSIST_KNOWN, __ATOMIC_SEQ_CST);
	v->initialised = true;
	return 0;
}

void vcpu_get_context(struct vcpu *v, struct vcpu_guest_context *c)
{
	memset(c, 0, sizeof(*c));
	fpu_get_legacy(v, &c->fpu_ctxt);
	c->flags = VGCF_i387_valid | (v->kernel_mode ? VGCF_in_kernel : 0) |
		   (v->failsafe_disables_events ? VGCF_failsafe_disables_events : 0) |
		   (v->syscall_disables_events ? VGCF_syscall_disables_events : 0) |
		   (v->down ? 0 : VGCF_online);
	c->user_regs = v->regs;
	c->user_regs.error_code = c->user_regs.entry_vector = 0;
	c->user_regs.rflags |= (uint64_t)v->iopl << 12;
	if (v->kernel_mode)
		c->user_regs.cs &= (uint16_t)~3u;
	for (unsigned i = 0; i < ARRAY_SIZE(v->trap); i++)
		c->trap_ctxt[i] = (struct trap_info){.vector = (uint8_t)i,
						     .flags = v->trap[i].flags,
						     .cs = v->trap[i].cs,
						     .address = v->trap[i].address};
	c->ldt_base = v->ldt_base;
	c->ldt_ents = v->ldt_entries;
	for (unsigned i = 0; i < GDT_PAGES && !mfn_eq(v->gdt[i], MFN_NONE); i++)
		c->gdt_frames[i] = v->gdt[i].v;
	c->gdt_ents = v->gdt_entries;
	c->kernel_ss = v->kernel_ss;
	c->kernel_sp = v->kernel_sp;
	memcpy(c->ctrlreg, v->ctrlreg, sizeof(c->ctrlreg));
	c->ctrlreg[3] = mfn_eq(v->table_kernel, MFN_NONE) ? 0 : v->table_kernel.v << PAGE_SHIFT;
	c->ctrlreg[1] = mfn_eq(v->table_user, MFN_NONE) ? 0 : v->table_user.v << PAGE_SHIFT;
	memcpy(c->debugreg, v->debugreg, sizeof(c->debugreg));
	c->event_callback_eip = v->callback;
	c->failsafe_callback_eip = v->failsafe;
	c->syscall_callback_eip = v->syscall_entry;
	c->vm_assist = v->domain->vm_assist;
	c->fs_base = v->fs_base;
	c->gs_base_kernel = v->gs_base_kernel;
	c->gs_base_user = v->gs_base_user;
}
