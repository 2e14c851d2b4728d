// SPDX-License-Identifier: MIT
/*
 * Instructions that a guest's kernel uses as if it were in ring 0. They fault there, and what they ask for is done or refused here.
 *
 * What the guest's memory holds may change between the fault and our reading of it: the instruction that is read is the one that is
 * carried out, with the guest's rights, so nothing is gained by that.
 */
#include "vmm/cpu/policy.h"
#include "vmm/emul/emul.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/tlb.h"
#include "vmm/mm/walk.h"
#include "vmm/sched/sched.h"

/* Repetitions of a string operation until the guest may be interrupted. */
#define REPEAT_MAX 1024u

#define ACCESS_RIGHTS_LONG (1u << 21)

/* The guest's descriptor tables are loaded, so the processor can look. */
static bool in_64bit_code(const struct cpu_user_regs *regs)
{
	uint32_t rights = 0;

	__asm__ volatile("lar %1, %0" : "+r"(rights) : "r"((uint32_t)regs->cs) : "cc");
	return rights & ACCESS_RIGHTS_LONG;
}

int insn_fetch(const struct cpu_user_regs *regs, struct insn *out, uint64_t *fault_address)
{
	uint8_t code[INSTRUCTION_MAX];
	unsigned n = MIN(INSTRUCTION_MAX, (unsigned)(PAGE_SIZE - regs->rip % PAGE_SIZE));
	int rc;

	if (!in_64bit_code(regs))
		return -EINVAL;
	*fault_address = regs->rip;
	if (copy_from_guest(code, GUEST_VA(regs->rip), n))
		return -EFAULT;
	rc = insn_decode(code, n, regs, 0, 0, out);
	if (rc == -ENOBUFS) {
		/* It goes on in the next page, which exists: the processor has read it. */
		*fault_address = regs->rip + n;
		if (copy_from_guest(code + n, GUEST_VA(regs->rip + n), INSTRUCTION_MAX - n))
			return -EFAULT;
		rc = insn_decode(code, INSTRUCTION_MAX, regs, 0, 0, out);
	}
	if (rc)
		return -EINVAL;
	if (out->segment >= 0)
		out->address += rdmsr(out->segment == 4 ? MSR_FS_BASE : MSR_GS_BASE);
	return 0;
}

void insn_done(struct cpu_user_regs *regs, const struct insn *insn)
{
	regs->rip += insn->length;
	regs->rflags &= ~(uint64_t)EFLAGS_RF;
}

/* Its two bytes are the same in every mode; nobody puts prefixes before it. */
bool decode_int_n(const struct cpu_user_regs *regs, uint8_t *vector)
{
	uint8_t code[2];

	if (copy_from_guest(code, GUEST_VA(regs->rip), sizeof(code)) || code[0] != 0xcd)
		return false;
	*vector = code[1];
	return true;
}

/* ---- I/O ---- */

static uint32_t fault_code(uint64_t address, bool write)
{
	uint64_t l1e;
	mfn_t table;
	bool present = !guest_walk(address, &l1e, &table) && l1e & PTE_P;

	return PF_USER | (write ? PF_WRITE : 0) | (present ? PF_PRESENT : 0);
}

/* One element; 0 or -EFAULT with the address. A device's register is read after it is certain that the value arrives. */
static int string_element(const struct insn *i, unsigned port, uint64_t *address)
{
	uint32_t value = 0;

	if (i->kind == INSN_INS) {
		if (touch_guest(GUEST_VA(*address)))
			return -EFAULT;
		if (touch_guest(GUEST_VA(*address + i->size - 1))) {
			*address += i->size - 1;
			return -EFAULT;
		}
		value = guest_port_read(port, i->size);
		return copy_to_guest(GUEST_VA(*address), &value, i->size);
	}
	if (copy_from_guest(&value, GUEST_VA(*address), i->size))
		return -EFAULT;
	guest_port_write(port, i->size, value);
	return 0;
}

static enum emulated string_io(struct cpu_user_regs *regs, const struct insn *i,
			       uint64_t *fault_address, uint32_t *code)
{
	uint64_t *pointer = i->kind == INSN_INS ? &regs->rdi : &regs->rsi;
	uint64_t step = regs->rflags & EFLAGS_DF ? -(uint64_t)i->size : i->size;
	uint64_t address = i->address;
	unsigned port = (uint16_t)regs->rdx;

	for (unsigned n = 0; !i->rep || regs->rcx; n++) {
		if (n == REPEAT_MAX || (n && hypercall_preempt_check()))
			return EMUL_RETRY;
		*fault_address = address;
		if (string_element(i, port, fault_address)) {
			*code = fault_code(*fault_address, i->kind == INSN_INS);
			return EMUL_PAGE_FAULT;
		}
		*pointer += step;
		address += step;
		if (!i->rep)
			break;
		regs->rcx--;
	}
	insn_done(regs, i);
	return EMUL_DONE;
}

static enum emulated port_io(struct cpu_user_regs *regs, const struct insn *i,
			     uint64_t *fault_address, uint32_t *code)
{
	unsigned port = i->has_imm ? (uint8_t)i->imm : (uint16_t)regs->rdx;

	if (!guest_port_allowed(current, port, i->size))
		return EMUL_FAULT;
	if (i->kind == INSN_INS || i->kind == INSN_OUTS)
		return string_io(regs, i, fault_address, code);
	if (i->kind == INSN_IN)
		insn_set(regs, 0, i->size, false, guest_port_read(port, i->size));
	else
		guest_port_write(port, i->size, (uint32_t)insn_get(regs, 0, i->size, false));
	insn_done(regs, i);
	return EMUL_DONE;
}

/* ---- what only a kernel may ---- */

static uint64_t edx_eax(const struct cpu_user_regs *regs)
{
	return (uint32_t)regs->rax | regs->rdx << 32;
}

static void give_cpuid(struct cpu_user_regs *regs)
{
	struct cpuid r = policy_cpuid(current->domain, (uint32_t)regs->rax, (uint32_t)regs->rcx);

	regs->rax = r.a;
	regs->rbx = r.b;
	regs->rcx = r.c;
	regs->rdx = r.d;
}

static int debug_register(struct cpu_user_regs *regs, const struct insn *i)
{
	if (i->cr > 7 || i->cr == 4 || i->cr == 5)
		return -EPERM;
	if (i->kind == INSN_WRITE_DR)
		return do_set_debugreg(i->cr, insn_get(regs, i->reg, 8, false)) ? -EPERM : 0;
	insn_set(regs, i->reg, 8, false, (uint64_t)do_get_debugreg(i->cr));
	return 0;
}

/* 0, or anything else: the guest gets its #GP. */
static int kernel_instruction(struct cpu_user_regs *regs, const struct insn *i)
{
	struct vcpu *v = current;
	uint64_t value;
	int rc;

	switch (i->kind) {
	case INSN_RDMSR:
		rc = policy_rdmsr(v, (uint32_t)regs->rcx, &value);
		if (rc)
			return rc;
		regs->rax = (uint32_t)value;
		regs->rdx = value >> 32;
		return 0;
	case INSN_WRMSR:
		return policy_wrmsr(v, (uint32_t)regs->rcx, edx_eax(regs));
	case INSN_READ_CR:
		if (i->cr != 0 && i->cr != 2 && i->cr != 3 && i->cr != 4)
			return -EPERM;
		insn_set(regs, i->reg, 8, false, policy_read_cr(v, i->cr));
		return 0;
	case INSN_WRITE_CR:
		return policy_write_cr(v, i->cr, insn_get(regs, i->reg, 8, false));
	case INSN_READ_DR:
	case INSN_WRITE_DR:
		return debug_register(regs, i);
	case INSN_CLTS:
		return (int)do_fpu_taskswitch(0);
	case INSN_XSETBV:
		if (!(v->ctrlreg[4] & CR4_OSXSAVE))
			return -EPERM;
		return fpu_xsetbv(v, (uint32_t)regs->rcx, edx_eax(regs));
	case INSN_WBINVD:
		/* Who has no devices sees no difference, and everybody would feel it. */
		if (v->domain->privileged)
			__asm__ volatile("wbinvd" ::: "memory");
		return 0;
	case INSN_INVLPG:
		if (i->memory && guest_address_ok(i->address))
			tlb_flush_page(1ull << this_cpu()->id, i->address);
		return 0;
	case INSN_HLT:
		vcpu_block();
		return 0;
	default:
		return -EPERM;
	}
}

enum emulated emulate_privileged(struct cpu_user_regs *regs, uint64_t *fault_address,
				 uint32_t *fault_code_out)
{
	struct vcpu *v = current;
	struct insn i;
	int rc = insn_fetch(regs, &i, fault_address);

	if (rc == -EFAULT) {
		*fault_code_out = fault_code(*fault_address, false);
		return EMUL_PAGE_FAULT;
	}
	if (rc)
		return EMUL_FAULT;
	switch (i.kind) {
	case INSN_IN:
	case INSN_OUT:
	case INSN_INS:
	case INSN_OUTS:
		return port_io(regs, &i, fault_address, fault_code_out);
	case INSN_CPUID:
		give_cpuid(regs);
		break;
	case INSN_CLI:
	case INSN_STI:
		/* A kernel masks events in its vcpu_info; POPF would not undo what CLI did. */
		if (v->iopl < (v->kernel_mode ? 1u : 3u))
			return EMUL_FAULT;
		break;
	default:
		if (!v->kernel_mode || kernel_instruction(regs, &i))
			return EMUL_FAULT;
		break;
	}
	insn_done(regs, &i);
	return EMUL_DONE;
}

enum emulated emulate_forced(struct cpu_user_regs *regs)
{
	/* ud2a, "xen" (XEN_EMULATE_PREFIX), then CPUID */
	static const uint8_t wanted[] = {0x0f, 0x0b, 'x', 'e', 'n', 0x0f, 0xa2};
	uint8_t code[sizeof(wanted)];

	if (copy_from_guest(code, GUEST_VA(regs->rip), sizeof(code)) ||
	    memcmp(code, wanted, sizeof(code)))
		return EMUL_FAULT;
	give_cpuid(regs);
	regs->rip += sizeof(wanted);
	regs->rflags &= ~(uint64_t)EFLAGS_RF;
	return EMUL_DONE;
}
