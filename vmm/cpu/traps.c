/* SPDX-License-Identifier: MIT */
/*
 * Exceptions and SYSCALL.
 *
 * A guest's exception is either ours (it asked for something that we do for it: privileged instructions, writes to page tables, LDT pages) or the
 * guest kernel's. Then the frame that real hardware would have made is pushed on its kernel stack in the form of the ABI:
 *
 *   rcx r11 [error code] rip cs:upcall-mask rflags rsp ss        (lowest address first)
 *
 * and the vCPU goes on at its handler in kernel mode, in ring 3 as ever. cs has privilege 0 in that frame when the kernel itself was
 * interrupted: that is how Linux tells.
 */
#include "vmm/cpu/traps.h"

#include <xen/nmi.h>

#include "vmm/boot/boot.h"
#include "vmm/cpu/context.h"
#include "vmm/cpu/desc.h"
#include "vmm/cpu/mitigation.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/emul/emul.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/hypercall/table.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/map.h"
#include "vmm/mm/shadow.h"
#include "vmm/mm/tlb.h"
#include "vmm/mm/walk.h"
#include "vmm/platform/irq.h"
#include "vmm/platform/power.h"
#include "vmm/sched/sched.h"

/* What entry.S knows. */
_Static_assert(offsetof(struct cpu_user_regs, rip) == 128, "entry.S");
_Static_assert(offsetof(struct cpu_user_regs, entry_vector) == 124, "entry.S");
_Static_assert(offsetof(struct cpu_user_regs, ss) == 160, "entry.S");
_Static_assert(offsetof(struct stack_top, guest) == TOP_FRAME, "entry.S");
_Static_assert(offsetof(struct stack_top, cpu) == TOP_CPU, "entry.S");
_Static_assert(offsetof(struct stack_top, hv_cr3) == TOP_HV_CR3, "entry.S");
_Static_assert(offsetof(struct stack_top, guest_cr3) == TOP_GUEST_CR3, "entry.S");
_Static_assert(offsetof(struct stack_top, guest_rsp) == TOP_GUEST_RSP, "entry.S");
_Static_assert(offsetof(struct pcpu, pending) == PCPU_PENDING, "entry.S");
_Static_assert(offsetof(struct pcpu, vcpu) == PCPU_VCPU, "entry.S");
_Static_assert(offsetof(struct pcpu, tables) == PCPU_TABLES, "entry.S");
_Static_assert(offsetof(struct pcpu, fresh) == PCPU_FRESH, "entry.S");
_Static_assert(offsetof(struct vcpu, info) == VCPU_INFO, "entry.S");
_Static_assert(offsetof(struct vcpu, root_kernel) == VCPU_ROOT_KERNEL, "entry.S");
_Static_assert(offsetof(struct vcpu, root_user) == VCPU_ROOT_USER, "entry.S");
_Static_assert(offsetof(struct vcpu, syscall_entry) == VCPU_SYSCALL_ENTRY, "entry.S");
_Static_assert(offsetof(struct vcpu, kernel_sp) == VCPU_KERNEL_SP, "entry.S");
_Static_assert(offsetof(struct vcpu, iopl) == VCPU_IOPL, "entry.S");
_Static_assert(offsetof(struct vcpu, kernel_mode) == VCPU_MODE, "entry.S");
_Static_assert(offsetof(struct vcpu, nmi_pending) == VCPU_NMI_PENDING, "entry.S");
_Static_assert(offsetof(struct vcpu, nmi_masked) == VCPU_MODE + 3, "entry.S");
_Static_assert(offsetof(struct vcpu, syscall_disables_events) == VCPU_SYSCALL_MASKS, "entry.S");
_Static_assert(offsetof(struct vcpu, page_fault_entry) == VCPU_PF_ENTRY, "entry.S");
_Static_assert(offsetof(struct vcpu, trap[TRAP_PAGE_FAULT].flags) == VCPU_PF_FLAGS, "entry.S");
_Static_assert(offsetof(struct vcpu, ctrlreg[2]) == VCPU_CR2, "entry.S");
_Static_assert(offsetof(struct vcpu_info, evtchn_upcall_pending) == INFO_PENDING, "entry.S");
_Static_assert(offsetof(struct vcpu_info, evtchn_upcall_mask) == INFO_MASK, "entry.S");
_Static_assert(offsetof(struct vcpu_info, arch.cr2) == INFO_CR2, "entry.S");

#define PORT_B	      0x61
#define PORT_B_KEPT   0x03
#define PORT_B_CAUSES 0xc0 /* and four bits lower, what switches them off */
#define PORT_B_SERR   0x80
#define PORT_B_IOCHK  0x40

#define MSR_MCG_CAP	  0x179u
#define MSR_MCG_STATUS	  0x17au
#define MSR_MC_STATUS(i)  (0x401u + 4 * (i))
#define MC_STATUS_VALID	  (1ull << 63)
#define MC_STATUS_ADDRESS (1ull << 58)

#define ERROR_IDT	   2u /* an error code's selector is an index of the IDT */
#define RFLAGS_GUEST_CLEAR (EFLAGS_TF | EFLAGS_VM | EFLAGS_RF | EFLAGS_NT | EFLAGS_IOPL)

void trap_from_guest(struct cpu_user_regs *regs);
void trap_from_hypervisor(struct cpu_user_regs *regs);
void trap_on_own_stack(struct cpu_user_regs *regs);
void syscall_from_guest(struct cpu_user_regs *regs);
void syscall32_from_guest(struct cpu_user_regs *regs);
void stack_fault(struct cpu_user_regs *regs);
void exit_work(struct cpu_user_regs *regs);
void exit_tables(void);

extern const uint64_t fixup_start[], fixup_end[];
extern char guest_iret[], image_start[], text_end[];

static const char *const trap_name[] = {"divide error",
					"debug",
					"NMI",
					"breakpoint",
					"overflow",
					"bounds",
					"invalid opcode",
					"no FPU",
					"double fault",
					"coprocessor overrun",
					"invalid TSS",
					"segment not present",
					"stack fault",
					"general protection",
					"page fault",
					"spurious",
					"FPU error",
					"alignment check",
					"machine check",
					"SIMD error"};

/* ---- saying what happened ---- */

void dump_registers(const struct cpu_user_regs *r)
{
	log_error("rip %04x:%016lx rsp %04x:%016lx rflags %lx error %x vector %u", r->cs, r->rip,
		  r->ss, r->rsp, r->rflags, r->error_code, r->entry_vector);
	log_error("rax %016lx rbx %016lx rcx %016lx rdx %016lx", r->rax, r->rbx, r->rcx, r->rdx);
	log_error("rsi %016lx rdi %016lx rbp %016lx r8  %016lx", r->rsi, r->rdi, r->rbp, r->r8);
	log_error("r9  %016lx r10 %016lx r11 %016lx r12 %016lx", r->r9, r->r10, r->r11, r->r12);
	log_error("r13 %016lx r14 %016lx r15 %016lx cr2 %016lx cr3 %lx", r->r13, r->r14, r->r15,
		  read_cr2(), read_cr3());
}

static void dump_stack(const struct cpu_user_regs *r)
{
	uint64_t end = (r->rsp | (STACK_SIZE - 1)) + 1;

	if (r->rsp < IMAGE_BASE || r->rsp >= DIRECT_BASE)
		return;
	for (uint64_t at = r->rsp & ~7ull, n = 0; at < end && n < 16; at += 8) {
		uint64_t word = *(const uint64_t *)at;

		if (word >= (uint64_t)image_start && word < (uint64_t)text_end) {
			log_error("  called from %016lx", word);
			n++;
		}
	}
}

static bool stopping;

void panic_stop(void)
{
	irq_disable();
	if (!__atomic_exchange_n(&stopping, true, __ATOMIC_SEQ_CST)) {
		apic_send_nmi_others();
		log_error("Pagurus cannot go on; %s",
			  boot_options.noreboot ? "halted (noreboot)" : "the machine restarts");
		if (!boot_options.noreboot)
			machine_restart();
	}
	for (;;)
		__asm__ volatile("hlt");
}

static __attribute__((noreturn)) void die(const struct cpu_user_regs *regs)
{
	dump_registers(regs);
	dump_stack(regs);
	panic_stop();
}

uint64_t fixup_find(uint64_t rip)
{
	uint64_t n = ((uint64_t)fixup_end - (uint64_t)fixup_start) / sizeof(uint64_t);

	for (uint64_t i = 0; i < n; i += 2)
		if (fixup_start[i] == rip)
			return fixup_start[i + 1];
	return 0;
}

/* ---- to the guest ---- */

void toggle_guest_mode(struct vcpu *v)
{
	/* The base that is not in use stands in KERNEL_GS_BASE. */
	__asm__ volatile("swapgs" ::: "memory");
	v->kernel_mode = !v->kernel_mode;
	tlb_load(v);
	if (unlikely(v->areas_stale) && v->kernel_mode)
		vcpu_areas_update(v);
}

/* Push the frame and aim at the entry point. False: the guest's stack cannot take it. entry.S has the same in short. */
static bool push_frame(struct cpu_user_regs *regs, uint64_t entry, bool has_error,
		       uint32_t error_code, bool mask_events)
{
	struct vcpu *v = current;
	bool was_kernel = v->kernel_mode;
	uint64_t mask, sp, frame[8] = {regs->rcx, regs->r11, error_code};
	uint64_t *word = frame + (has_error ? 3 : 2);

	if (!was_kernel)
		toggle_guest_mode(v);
	mask = v->info->evtchn_upcall_mask & 1;
	*word++ = regs->rip;
	*word++ = (was_kernel ? regs->cs & ~3u : regs->cs) | mask << 32;
	*word++ = (regs->rflags & ~(uint64_t)(EFLAGS_IF | EFLAGS_IOPL)) | (mask ? 0 : EFLAGS_IF) |
		  (uint64_t)v->iopl << 12;
	*word++ = regs->rsp;
	*word++ = regs->ss;
	sp = ((was_kernel ? regs->rsp : v->kernel_sp) & ~15ull) - 8 * (uint64_t)(word - frame);
	if (copy_to_guest(GUEST_VA(sp), frame, 8 * (uint64_t)(word - frame)))
		return false;
	if (mask_events)
		v->info->evtchn_upcall_mask = 1;
	regs->rip = entry;
	regs->cs = SEL_RING3_64;
	regs->ss = SEL_RING3_SS;
	regs->rsp = sp;
	regs->rflags = (regs->rflags & ~(uint64_t)RFLAGS_GUEST_CLEAR) | EFLAGS_IF;
	/* rcx and r11 are in the frame: SYSRET may carry it there. */
	regs->entry_vector = ENTRY_SYSCALL;
	return true;
}

static bool has_error_code(unsigned vector)
{
	return vector == TRAP_DOUBLE_FAULT ||
	       (vector >= TRAP_INVALID_TSS && vector <= TRAP_PAGE_FAULT) ||
	       vector == TRAP_ALIGNMENT;
}

static const char *name_of(unsigned vector)
{
	return vector < ARRAY_SIZE(trap_name) ? trap_name[vector]
	       : vector == ENTRY_SYSCALL      ? "system call"
					      : "software interrupt";
}

static __attribute__((cold)) void crash_unwritable(const char *what)
{
	domain_crash(current->domain, "%s, and its kernel stack cannot be written", what);
}

/* Found out by entry.S's short ways to the kernel, which have gone to its tables already. */
void stack_fault(struct cpu_user_regs *regs)
{
	struct vcpu *v = current;

	if (unlikely(v->domain->shadow != NULL)) {
		/* Its shadow may have a hole there, which could not be mended with interrupts off: from the start, the long way. */
		toggle_guest_mode(v);
		syscall_from_guest(regs);
		return;
	}
	irq_enable();
	crash_unwritable(name_of(regs->entry_vector));
}

static void deliver(struct cpu_user_regs *regs, unsigned vector, bool has_error,
		    uint32_t error_code)
{
	struct vcpu *v = current;
	const struct trap_handler *h = &v->trap[vector];

	if (!h->address) {
		domain_crash(v->domain, "%s with error code %x, for which it has no handler",
			     name_of(vector), error_code);
		return;
	}
	if (!push_frame(regs, h->address, has_error, error_code, TI_GET_IF(h)))
		crash_unwritable(name_of(vector));
}

void deliver_trap(struct cpu_user_regs *regs, unsigned vector, uint32_t error_code)
{
	deliver(regs, vector, has_error_code(vector), error_code);
}

void deliver_page_fault(struct cpu_user_regs *regs, uint64_t address, uint32_t error_code)
{
	struct vcpu *v = current;

	v->ctrlreg[2] = address;
	v->info->arch.cr2 = address;
	/* What is the kernel's own doing looks so to it. */
	deliver_trap(regs, TRAP_PAGE_FAULT,
		     v->kernel_mode ? error_code & ~PF_USER : error_code | PF_USER);
}

/* Nothing masks it but another one's handler, which ends with the next iret (hypercall/descriptor.c). */
static void deliver_nmi(struct cpu_user_regs *regs)
{
	struct vcpu *v = current;

	WRITE_ONCE(v->nmi_pending, false);
	if (!v->trap[TRAP_NMI].address)
		return;
	v->nmi_masked = true;
	if (!push_frame(regs, v->trap[TRAP_NMI].address, false, 0, true))
		crash_unwritable("an NMI");
}

static void deliver_events(struct cpu_user_regs *regs)
{
	struct vcpu *v = current;

	if (!v->callback)
		domain_crash(v->domain, "it has unmasked events without a callback for them");
	else if (!push_frame(regs, v->callback, false, 0, true))
		crash_unwritable("an event");
}

void syscall_from_guest(struct cpu_user_regs *regs)
{
	struct vcpu *v = current;

	if (v->kernel_mode) {
		hypercall(regs);
		return;
	}
	irq_enable();
	if (!v->syscall_entry)
		deliver_trap(regs, TRAP_INVALID_OP, 0);
	else if (!push_frame(regs, v->syscall_entry, false, 0, v->syscall_disables_events))
		crash_unwritable(name_of(ENTRY_SYSCALL));
}

void syscall32_from_guest(struct cpu_user_regs *regs)
{
	struct vcpu *v = current;

	irq_enable();
	if (v->kernel_mode || !v->syscall32_entry) {
		regs->rip -= 2;
		deliver_trap(regs, TRAP_INVALID_OP, 0);
		return;
	}
	if (!push_frame(regs, v->syscall32_entry, false, 0, v->syscall32_disables_events))
		crash_unwritable("a 32-bit system call");
}

/* Something may be to be done before the guest runs. Interrupts are off, and are again in the end. */
void exit_work(struct cpu_user_regs *regs)
{
	struct pcpu *c = this_cpu();

	for (;;) {
		irq_disable();
		if (unlikely(READ_ONCE(c->pending))) {
			irq_enable();
			soft_run();
			continue;
		}
		if (unlikely(READ_ONCE(c->vcpu->nmi_pending)) && !c->vcpu->nmi_masked) {
			irq_enable();
			deliver_nmi(regs);
			continue;
		}
		if (!vcpu_event_deliverable(c->vcpu))
			break;
		irq_enable();
		deliver_events(regs);
	}
}

/* Behind that, when guests' tables are isolated. */
void exit_tables(void)
{
	stack_top()->guest_cr3 = tlb_guest_cr3(current);
}

/* ---- from the guest ---- */

static bool in_ldt_window(uint64_t address, uint64_t *offset)
{
	uint64_t base = WINDOW_BASE + (uint64_t)this_cpu()->id * WINDOW_STRIDE + WINDOW_LDT;

	*offset = address - base;
	return address >= base && *offset < LDT_PAGES * PAGE_SIZE;
}

static void page_fault(struct cpu_user_regs *regs, uint64_t address)
{
	struct vcpu *v = current;
	uint64_t offset;

	if (in_ldt_window(address, &offset)) {
		if (desc_ldt_fault(v, offset))
			return;
		/* The processor was looking for a descriptor that the guest does not have. */
		deliver_trap(regs, TRAP_GP, ((uint32_t)offset & 0xfff8) | SELECTOR_LDT);
		return;
	}
	if (address >= HV_START && address < HV_END) {
		deliver_page_fault(regs, address, (regs->error_code & ~PF_RSVD) | PF_PRESENT);
		return;
	}
	if (unlikely(v->domain->shadow != NULL) &&
	    shadow_fault(v, address, &regs->error_code, true) == SHADOW_DONE)
		return;
	if ((regs->error_code & (PF_PRESENT | PF_WRITE | PF_RSVD)) == (PF_PRESENT | PF_WRITE) &&
	    v->kernel_mode) {
		switch (emulate_table_write(regs, address)) {
		case EMUL_DONE:
		case EMUL_RETRY:
			return;
		default:
			break;
		}
	}
	deliver_page_fault(regs, address, regs->error_code);
}

/* #GP: an instruction that we do for the guest, INT n, or its own fault. */
static void protection_fault(struct cpu_user_regs *regs)
{
	struct vcpu *v = current;
	uint64_t address = 0;
	uint32_t code = 0;
	uint8_t vector;

	if (decode_int_n(regs, &vector)) {
		const struct trap_handler *h = &v->trap[vector];
		unsigned level = v->kernel_mode ? 1 : 3;

		if (h->address && TI_GET_DPL(h) >= level) {
			regs->rip += 2;
			/* INT pushes no error code, whatever the vector. */
			deliver(regs, vector, false, 0);
		} else {
			deliver_trap(regs, TRAP_GP, vector * 8u | ERROR_IDT);
		}
		return;
	}
	if (!regs->error_code) {
		switch (emulate_privileged(regs, &address, &code)) {
		case EMUL_DONE:
		case EMUL_RETRY:
			return;
		case EMUL_PAGE_FAULT:
			deliver_page_fault(regs, address, code);
			return;
		default:
			break;
		}
	}
	deliver_trap(regs, TRAP_GP, regs->error_code);
}

static void reset_dr6(void)
{
	__asm__ volatile("mov %0, %%dr6" ::"r"(0xffff0ff0ull));
}

static void debug_fault(struct cpu_user_regs *regs)
{
	uint64_t dr6;

	__asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
	current->debugreg[6] = (current->debugreg[6] & ~0xfull) | (dr6 & 0xf00f);
	reset_dr6();
	deliver_trap(regs, TRAP_DEBUG, 0);
}

/* It comes in the middle of anything: what is to be done is done later (nmi_run). */
static void note_nmi(void)
{
	while (READ_ONCE(stopping))
		__asm__ volatile("cli; hlt");
	raise_soft(this_cpu(), SOFT_NMI);
}

/* The processor takes no other NMI before an IRET, and the way out may be SYSRET. */
static void end_nmi(void)
{
	__asm__ volatile("mov %%rsp, %%rax\n"
			 "pushq %0\n"
			 "pushq %%rax\n"
			 "pushfq\n"
			 "pushq %1\n"
			 "leaq 1f(%%rip), %%rax\n"
			 "pushq %%rax\n"
			 "iretq\n"
			 "1:" ::"i"(SEL_HV_DATA),
			 "i"(SEL_HV_CODE)
			 : "rax", "memory");
}

/* Devices and the firmware report by the first CPU's: what they mean stands in a port of the chip set (system control port B). */
void nmi_run(void)
{
	struct vcpu *v = dom0 ? dom0->vcpu[0] : NULL;
	uint8_t port = inb(PORT_B), mask = (uint8_t)((port & PORT_B_CAUSES) >> 4);
	uint64_t reason = 0;
	bool taken = v && v->trap[TRAP_NMI].address;

	if (this_cpu()->id)
		return;
	if (port & PORT_B_SERR)
		reason |= XEN_NMIREASON_pci_serr;
	if (port & PORT_B_IOCHK)
		reason |= XEN_NMIREASON_io_error;
	/* Both causes are switched off: they would go on for ever. */
	if (reason)
		outb(PORT_B, (port & PORT_B_KEPT) | mask);
	else
		reason = XEN_NMIREASON_unknown;
	log_info("NMI: %s; %s",
		 reason & XEN_NMIREASON_pci_serr   ? "a PCI device reports a fault (SERR)"
		 : reason & XEN_NMIREASON_io_error ? "a device reports a fault (I/O check)"
						   : "nobody says why",
		 taken ? "dom0 is told" : "dom0 did not ask for them");
	if (!taken)
		return;
	__atomic_fetch_or(&dom0->shared_info->arch.nmi_reason, reason, __ATOMIC_SEQ_CST);
	vcpu_send_nmi(v);
}

static void machine_check(void)
{
	uint64_t cap = 0, status = 0, address;

	rdmsr_safe(MSR_MCG_CAP, &cap);
	rdmsr_safe(MSR_MCG_STATUS, &status);
	log_error("CPU %u: machine check: the processor reports a hardware fault, status %lx",
		  this_cpu()->id, status);
	for (unsigned i = 0; i < (cap & 0xff); i++) {
		if (rdmsr_safe(MSR_MC_STATUS(i), &status) || !(status & MC_STATUS_VALID))
			continue;
		address = 0;
		if (status & MC_STATUS_ADDRESS)
			rdmsr_safe(MSR_MC_STATUS(i) + 1, &address);
		log_error("  bank %u: status %lx, address %lx", i, status, address);
	}
}

static void interrupt(unsigned vector)
{
	switch (vector) {
	case VECTOR_TIMER:
		apic_eoi();
		raise_soft(this_cpu(), SOFT_TIMER);
		break;
	case VECTOR_EVENT:
		apic_eoi(); /* pending is looked at on the way out */
		break;
	case VECTOR_CALL:
		apic_eoi();
		apic_call_handler();
		break;
	case VECTOR_ERROR:
		apic_eoi();
		apic_error_handler();
		break;
	case VECTOR_SPURIOUS:
		break;
	default:
		irq_dispatch((uint8_t)vector);
	}
}

void trap_from_guest(struct cpu_user_regs *regs)
{
	unsigned vector = regs->entry_vector;
	uint64_t cr2;

	if (vector >= 32) {
		interrupt(vector);
		return;
	}
	cr2 = read_cr2();
	irq_enable();
	switch (vector) {
	case TRAP_PAGE_FAULT:
		page_fault(regs, cr2);
		break;
	case TRAP_GP:
		protection_fault(regs);
		break;
	case TRAP_INVALID_OP:
		if (emulate_forced(regs) != EMUL_DONE)
			deliver_trap(regs, vector, 0);
		break;
	case TRAP_DEBUG:
		debug_fault(regs);
		break;
	case TRAP_NMI:
		note_nmi();
		end_nmi();
		break;
	case TRAP_NO_DEVICE:
		/* Only when the guest asked for it. */
		current->ts = false;
		__asm__ volatile("clts");
		deliver_trap(regs, vector, 0);
		break;
	default:
		deliver_trap(regs, vector, regs->error_code);
	}
}

/* ---- from the hypervisor ---- */

/*
 * IRET to the guest faulted: its cs, ss, rip or flags cannot be. The frame of this exception lies over the guest's, whose general registers
 * are in the processor and so in this one.
 */
static void iret_fault(const struct cpu_user_regs *regs)
{
	struct cpu_user_regs copy = *regs, *guest = guest_frame();
	unsigned vector = regs->entry_vector;
	uint32_t error_code = regs->error_code;
	uint64_t offset, cr2 = read_cr2();

	memcpy(guest, &copy, offsetof(struct cpu_user_regs, error_code));
	guest->entry_vector = vector;
	irq_enable();
	if (vector == TRAP_PAGE_FAULT && in_ldt_window(cr2, &offset)) {
		/* Its cs or ss is in a page of the LDT that was not used before: again, then. */
		if (desc_ldt_fault(current, offset))
			enter_guest();
		error_code = ((uint32_t)offset & 0xfff8) | SELECTOR_LDT;
	}
	/* As if the guest's instruction at its rip had done it; what it returned to is told by the frame. */
	deliver_trap(guest, vector == TRAP_PAGE_FAULT ? TRAP_GP : vector, error_code);
	enter_guest();
}

/* A page fault of the hypervisor's at a guest's address; true: again, it will succeed. */
static bool shadow_follows(struct cpu_user_regs *regs)
{
	uint64_t cr2 = read_cr2();

	if (!current->domain->shadow || !guest_range_ok(GUEST_VA(cr2), 1))
		return false;
	switch (shadow_fault(current, cr2, &regs->error_code, regs->rflags & EFLAGS_IF)) {
	case SHADOW_DONE:
		return true;
	case SHADOW_LATER:
		current->areas_stale = true;
		raise_soft(this_cpu(), SOFT_AREAS);
		return false;
	default:
		return false;
	}
}

void trap_from_hypervisor(struct cpu_user_regs *regs)
{
	unsigned vector = regs->entry_vector;
	uint64_t to;

	if (vector >= 32) {
		interrupt(vector);
		return;
	}
	if (regs->rip == (uint64_t)guest_iret)
		iret_fault(regs);
	if (vector == TRAP_PAGE_FAULT && shadow_follows(regs))
		return;
	to = fixup_find(regs->rip);
	if (to) {
		regs->rip = to;
		return;
	}
	log_force();
	log_error("CPU %u: %s in the hypervisor", this_cpu()->id, name_of(vector));
	die(regs);
}

void trap_on_own_stack(struct cpu_user_regs *regs)
{
	switch (regs->entry_vector) {
	case TRAP_DEBUG:
		/* A guest's breakpoint that came due behind its SYSCALL: nobody's business. */
		reset_dr6();
		return;
	case TRAP_NMI:
		note_nmi();
		return;
	case TRAP_MACHINE_CHECK:
		log_force();
		machine_check();
		break;
	default:
		log_force();
		log_error(
			"double fault: the hypervisor's stack is exhausted or its tables are damaged");
	}
	die(regs);
}
