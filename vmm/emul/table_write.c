// SPDX-License-Identifier: MIT
/*
 * A guest's kernel writes to one of its page tables, which it can map read-only at most: the write faults, and becomes an update of that entry
 * with all the checks that mmu_update makes.
 *
 * The operation is applied under the page lock to the entry as it is then, so guests' operations are atomic to each other; when the processor sets bit A
 * or D in that moment, it is applied again, to the entry with that bit.
 */
#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"
#include "vmm/emul/emul.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/print.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/walk.h"

#define EFLAGS_PF	  0x4u
#define EFLAGS_AF	  0x10u
#define EFLAGS_ZF	  0x40u
#define EFLAGS_SF	  0x80u
#define EFLAGS_OF	  0x800u
#define EFLAGS_ARITHMETIC (EFLAGS_CF | EFLAGS_PF | EFLAGS_AF | EFLAGS_ZF | EFLAGS_SF | EFLAGS_OF)

/* An operation on an operand of `size` bytes: what is in memory before and after, and what it leaves behind besides. */
struct operation {
	uint64_t before, after;
	uint32_t flags; /* of EFLAGS, those in `changed` */
	uint32_t changed;
	bool sets_reg; /* XCHG: the register operand gets `before`; CMPXCHG that found another value: rax does */
	bool sets_rax;
};

static bool sign_of(uint64_t value, unsigned size)
{
	return value >> (8 * size - 1) & 1;
}

static uint32_t result_flags(uint64_t result, unsigned size)
{
	uint32_t flags = 0;

	if (!(result & mask_of(size)))
		flags |= EFLAGS_ZF;
	if (sign_of(result, size))
		flags |= EFLAGS_SF;
	if (!__builtin_parity((unsigned)(result & 0xff)))
		flags |= EFLAGS_PF;
	return flags;
}

/* Of a - b, of the size. */
static uint32_t comparison_flags(uint64_t a, uint64_t b, unsigned size)
{
	uint64_t result = (a - b) & mask_of(size);
	uint32_t flags = result_flags(result, size);

	if (a < b)
		flags |= EFLAGS_CF;
	if ((a ^ b ^ result) & 0x10)
		flags |= EFLAGS_AF;
	if (sign_of((a ^ b) & (a ^ result), size))
		flags |= EFLAGS_OF;
	return flags;
}

static void logical(struct operation *op, uint64_t result, unsigned size)
{
	op->after = result;
	op->changed = EFLAGS_ARITHMETIC;
	op->flags = result_flags(result, size);
}

static void compare(struct operation *op, uint64_t expected, uint64_t operand, unsigned size)
{
	op->changed = EFLAGS_ARITHMETIC;
	op->flags = comparison_flags(expected, op->before, size);
	op->sets_rax = op->before != expected;
	op->after = op->sets_rax ? op->before : operand;
}

static void bit(struct operation *op, enum insn_kind kind, uint64_t number, unsigned size)
{
	uint64_t one = 1ull << number % (8 * size);

	op->changed = EFLAGS_CF;
	op->flags = op->before & one ? EFLAGS_CF : 0;
	op->after = kind == INSN_BTS ? op->before | one : op->before & ~one;
}

/* Fill in the operation from `before`. source: the instruction's register or immediate. 0, or -EINVAL: not a write to memory that we know. */
static int operate(const struct insn *i, uint64_t source, uint64_t accumulator,
		   struct operation *op)
{
	switch (i->kind) {
	case INSN_MOV_STORE:
		op->after = source;
		break;
	case INSN_XCHG:
		op->after = source;
		op->sets_reg = true;
		break;
	case INSN_CMPXCHG:
		compare(op, accumulator, source, i->size);
		break;
	case INSN_OR:
		logical(op, op->before | source, i->size);
		break;
	case INSN_AND:
		logical(op, op->before & source, i->size);
		break;
	case INSN_XOR:
		logical(op, op->before ^ source, i->size);
		break;
	case INSN_BTS:
	case INSN_BTR:
		bit(op, i->kind, source, i->size);
		break;
	default:
		return -EINVAL;
	}
	op->after &= mask_of(i->size);
	return 0;
}

/* The second operand. */
static uint64_t source_of(const struct cpu_user_regs *regs, const struct insn *i)
{
	return i->has_imm ? i->imm & mask_of(i->size)
			  : insn_get(regs, i->reg, i->size, i->high_byte);
}

/* The table that the address is in: a frame of the domain's own, in use as a table now. The page lock is held. */
static struct frame *find_table(struct domain *d, uint64_t address, unsigned *level)
{
	struct frame *f;
	uint64_t l1e, type;
	mfn_t l1_table;

	if (guest_walk(address, &l1e, &l1_table) || !(l1e & PTE_P) || !mfn_valid(pte_mfn(l1e)))
		return NULL;
	f = mfn_frame(pte_mfn(l1e));
	if (!frame_get(f, d))
		return NULL;
	type = READ_ONCE(f->type);
	if (type_of(type) < TYPE_L1 || type_of(type) > TYPE_L4 || !(type & TYPE_VALID) ||
	    !(type & TYPE_COUNT_MASK) || frame_get_type(f, (enum page_type)type_of(type))) {
		frame_put(f);
		return NULL;
	}
	*level = type_of(type) - TYPE_L1 + 1;
	return f;
}

static int apply(struct domain *d, const struct insn *i, uint64_t source, uint64_t accumulator,
		 struct operation *op)
{
	unsigned shift = 8 * (unsigned)(i->address & 7), index = i->address % PAGE_SIZE / 8;
	unsigned level;
	struct frame *f = find_table(d, i->address, &level);
	uint64_t old, mask = mask_of(i->size) << shift;
	int rc;

	if (!f)
		return -EINVAL;
	do {
		old = READ_ONCE(((uint64_t *)mfn_to_ptr(frame_mfn(f)))[index]);
		*op = (struct operation){.before = (old & mask) >> shift};
		rc = operate(i, source, accumulator, op);
		if (!rc && op->after != op->before)
			rc = pt_compare_exchange(f, level, index, old,
						 (old & ~mask) | op->after << shift);
	} while (rc == -EAGAIN);
	frame_put_both(f);
	return rc;
}

static void finish(struct cpu_user_regs *regs, const struct insn *i, const struct operation *op)
{
	regs->rflags = (regs->rflags & ~(uint64_t)op->changed) | op->flags;
	if (op->sets_rax)
		insn_set(regs, 0, i->size, false, op->before);
	if (op->sets_reg)
		insn_set(regs, i->reg, i->size, i->high_byte, op->before);
	insn_done(regs, i);
}

enum emulated emulate_table_write(struct cpu_user_regs *regs, uint64_t address)
{
	struct domain *d = current->domain;
	struct operation op;
	uint64_t ignored;
	struct insn i;
	int rc;

	if (!current->kernel_mode || insn_fetch(regs, &i, &ignored))
		return EMUL_FAULT;
	/* One entry and no more, and the one that the processor meant. */
	if (!i.memory || i.address != address || address % 8 + i.size > 8)
		return EMUL_FAULT;
	rc = page_lock(d);
	if (!rc) {
		rc = apply(d, &i, source_of(regs, &i), insn_get(regs, 0, i.size, false), &op);
		page_unlock(d);
	}
	if (rc == -ERESTART)
		return EMUL_RETRY;
	if (rc)
		return EMUL_FAULT;
	finish(regs, &i, &op);
	return EMUL_DONE;
}
