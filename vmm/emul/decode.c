// SPDX-License-Identifier: MIT
/*
 * Bytes to an operation, for the instructions of enum insn_kind in 64-bit mode (APM vol. 3, appendix A).
 *
 * An opcode gives a form: the kind, and flags that say what follows it. Bytes that are not there read as zero and are remembered; the answer is
 * then "more bytes", whatever the zeros meant.
 */
#include "vmm/emul/emul.h"

#include "vmm/lib/errno.h"

enum {
	REX_B = 1,
	REX_X = 2,
	REX_R = 4,
	REX_W = 8,
};

struct decoder {
	const uint8_t *code;
	unsigned bytes, at;
	bool over;
	uint8_t rex;
	bool operand16, address32;
	const struct cpu_user_regs *regs;
	uint64_t fs_base, gs_base;
	bool rip_relative;
	uint64_t address;
};

enum form_flags {
	F_MODRM = 1 << 0,
	F_WIDTH = 1 << 1, /* the opcode's bit 0: bytes, or the operand's size */
	F_IMM8 = 1 << 2,  /* sign-extended */
	F_IMM = 1 << 3,	  /* of the operand's size, 4 bytes at most */
	F_PORT = 1 << 4,  /* operands of 4 bytes at most */
	/* ModRM with a control or debug register and a general one, whatever its mod says */
	F_CR = 1 << 5,
	F_LOCK = 1 << 6,  /* LOCK is allowed, with a memory operand */
	F_REP = 1 << 7,	  /* a string operation */
	F_GROUP = 1 << 8, /* the kind depends on ModRM.reg */
	F_UNSIGNED = 1 << 9,
};

struct form {
	enum insn_kind kind;
	unsigned flags;
};

static uint64_t take(struct decoder *d, unsigned n)
{
	uint64_t value = 0;

	if (d->bytes - d->at < n) {
		d->over = true;
		d->at = d->bytes;
		return 0;
	}
	for (unsigned i = 0; i < n; i++)
		value |= (uint64_t)d->code[d->at++] << 8 * i;
	return value;
}

static int64_t take_signed(struct decoder *d, unsigned n)
{
	uint64_t sign = 1ull << (8 * n - 1), value = take(d, n);

	return (int64_t)((value ^ sign) - sign);
}

/* Returns the first byte of the opcode. */
static uint8_t take_prefixes(struct decoder *d, struct insn *out)
{
	while (!d->over && d->at < INSTRUCTION_MAX) {
		uint8_t b = (uint8_t)take(d, 1);

		if ((b & 0xf0) == 0x40) {
			d->rex = b;
			continue;
		}
		switch (b) {
		case 0x66:
			d->operand16 = true;
			break;
		case 0x67:
			d->address32 = true;
			break;
		case 0xf0:
			out->lock = true;
			break;
		case 0xf2:
		case 0xf3:
			out->rep = true;
			break;
		case 0x64:
		case 0x65:
			out->segment = b == 0x64 ? 4 : 5;
			break;
		case 0x26:
		case 0x2e:
		case 0x36:
		case 0x3e:
			break;
		default:
			return b;
		}
		/* A REX prefix counts only right before the opcode. */
		d->rex = 0;
	}
	return 0;
}

/* What is not named is INSN_UNKNOWN and no group. */
#define TO_MEMORY (F_MODRM | F_WIDTH | F_LOCK)

static const struct form one_byte[256] = {
	[0x08 ... 0x09] = {INSN_OR, TO_MEMORY},
	[0x20 ... 0x21] = {INSN_AND, TO_MEMORY},
	[0x30 ... 0x31] = {INSN_XOR, TO_MEMORY},
	[0x6c ... 0x6d] = {INSN_INS, F_WIDTH | F_PORT | F_REP},
	[0x6e ... 0x6f] = {INSN_OUTS, F_WIDTH | F_PORT | F_REP},
	[0x80 ... 0x81] = {INSN_UNKNOWN, TO_MEMORY | F_IMM | F_GROUP},
	[0x83] = {INSN_UNKNOWN, TO_MEMORY | F_IMM8 | F_GROUP},
	[0x86 ... 0x87] = {INSN_XCHG, TO_MEMORY},
	[0x88 ... 0x89] = {INSN_MOV_STORE, F_MODRM | F_WIDTH},
	[0xc6 ... 0xc7] = {INSN_MOV_STORE, F_MODRM | F_WIDTH | F_IMM | F_GROUP},
	[0xcd] = {INSN_INT, F_IMM8 | F_UNSIGNED},
	[0xe4 ... 0xe5] = {INSN_IN, F_WIDTH | F_PORT | F_IMM8 | F_UNSIGNED},
	[0xe6 ... 0xe7] = {INSN_OUT, F_WIDTH | F_PORT | F_IMM8 | F_UNSIGNED},
	[0xec ... 0xed] = {INSN_IN, F_WIDTH | F_PORT},
	[0xee ... 0xef] = {INSN_OUT, F_WIDTH | F_PORT},
	[0xf4] = {INSN_HLT, 0},
	[0xfa] = {INSN_CLI, 0},
	[0xfb] = {INSN_STI, 0},
};

static const struct form two_bytes[256] = {
	[0x01] = {INSN_UNKNOWN, F_MODRM | F_GROUP},
	[0x06] = {INSN_CLTS, 0},
	[0x09] = {INSN_WBINVD, 0},
	[0x20] = {INSN_READ_CR, F_CR},
	[0x21] = {INSN_READ_DR, F_CR},
	[0x22] = {INSN_WRITE_CR, F_CR},
	[0x23] = {INSN_WRITE_DR, F_CR},
	[0x30] = {INSN_WRMSR, 0},
	[0x31] = {INSN_RDTSC, 0},
	[0x32] = {INSN_RDMSR, 0},
	[0xa2] = {INSN_CPUID, 0},
	[0xab] = {INSN_BTS, F_MODRM | F_LOCK},
	[0xb0 ... 0xb1] = {INSN_CMPXCHG, F_MODRM | F_WIDTH | F_LOCK},
	[0xb3] = {INSN_BTR, F_MODRM | F_LOCK},
	[0xba] = {INSN_UNKNOWN, F_MODRM | F_IMM8 | F_LOCK | F_GROUP},
	[0xc3] = {INSN_MOV_STORE, F_MODRM}, /* MOVNTI */
};

/* The kind that an opcode with a group has by its ModRM byte. */
static enum insn_kind group_kind(bool second, uint8_t op, uint8_t modrm)
{
	static const enum insn_kind logical[8] = {[1] = INSN_OR, [4] = INSN_AND, [6] = INSN_XOR};
	static const enum insn_kind bits[8] = {[5] = INSN_BTS, [6] = INSN_BTR};
	unsigned reg = modrm >> 3 & 7;

	if (!second && op >= 0xc6)
		return reg == 0 ? INSN_MOV_STORE : INSN_UNKNOWN;
	if (!second)
		return logical[reg];
	if (op == 0xba)
		return bits[reg];
	if (modrm == 0xd1)
		return INSN_XSETBV;
	if (modrm == 0xf9)
		return INSN_RDTSCP;
	return reg == 7 && modrm < 0xc0 ? INSN_INVLPG : INSN_UNKNOWN;
}

static uint64_t reg_value(const struct decoder *d, unsigned n)
{
	return insn_get(d->regs, n, 8, false);
}

/* The effective address, save for the base of the segment and, where it counts from the next instruction, for that. */
static void take_address(struct decoder *d, uint8_t modrm)
{
	unsigned mod = modrm >> 6, rm = modrm & 7;
	uint64_t address = 0;

	if (rm == 4) {
		uint8_t sib = (uint8_t)take(d, 1);
		unsigned index = (sib >> 3 & 7) | (d->rex & REX_X ? 8 : 0);

		if (index != 4)
			address += reg_value(d, index) << (sib >> 6);
		if ((sib & 7) == 5 && mod == 0)
			address += (uint64_t)take_signed(d, 4);
		else
			address += reg_value(d, (sib & 7) | (d->rex & REX_B ? 8 : 0));
	} else if (rm == 5 && mod == 0) {
		address += (uint64_t)take_signed(d, 4);
		d->rip_relative = true;
	} else {
		address += reg_value(d, rm | (d->rex & REX_B ? 8 : 0));
	}
	if (mod == 1)
		address += (uint64_t)take_signed(d, 1);
	else if (mod == 2)
		address += (uint64_t)take_signed(d, 4);
	d->address = address;
}

static void finish_address(struct decoder *d, struct insn *out)
{
	uint64_t address = d->address + (d->rip_relative ? d->regs->rip + d->at : 0);

	if (d->address32)
		address = (uint32_t)address;
	if (out->segment >= 0)
		address += out->segment == 4 ? d->fs_base : d->gs_base;
	out->address = address;
}

/* BT* with a register reach beyond the operand: by the bit's number in whole operands. */
static void apply_bit_offset(struct decoder *d, struct insn *out)
{
	uint64_t bits = 8ull * out->size, offset = insn_get(d->regs, out->reg, out->size, false);
	int64_t signed_offset = out->size == 8	 ? (int64_t)offset
				: out->size == 4 ? (int32_t)offset
						 : (int16_t)offset;

	d->address += (uint64_t)((signed_offset & ~(int64_t)(bits - 1)) / 8);
}

static void take_modrm(struct decoder *d, const struct form *form, uint8_t modrm, struct insn *out)
{
	unsigned reg = (modrm >> 3 & 7) | (d->rex & REX_R ? 8 : 0);
	unsigned rm = (modrm & 7) | (d->rex & REX_B ? 8 : 0);

	if (form->flags & F_CR) {
		out->cr = reg;
		out->reg = rm;
		return;
	}
	if (!(form->flags & F_GROUP))
		out->reg = reg;
	out->high_byte = out->size == 1 && !d->rex && out->reg >= 4;
	if (modrm >= 0xc0) {
		/* Of these it is a part of the opcode. */
		out->rm_is_reg = out->kind != INSN_XSETBV && out->kind != INSN_RDTSCP;
		out->rm = out->rm_is_reg ? rm : 0;
		return;
	}
	out->memory = true;
	take_address(d, modrm);
	if (!(form->flags & F_IMM8) && (out->kind == INSN_BTS || out->kind == INSN_BTR))
		apply_bit_offset(d, out);
}

static unsigned operand_size(const struct decoder *d, const struct form *form, uint8_t op)
{
	if (form->flags & F_CR)
		return 8;
	if (form->flags & F_WIDTH && !(op & 1))
		return 1;
	if (d->rex & REX_W)
		return form->flags & F_PORT ? 4 : 8;
	return d->operand16 ? 2 : 4;
}

static void take_immediate(struct decoder *d, const struct form *form, struct insn *out)
{
	unsigned n = form->flags & F_IMM8 ? 1 : MIN(out->size, 4u);

	if (!(form->flags & (F_IMM8 | F_IMM)))
		return;
	out->has_imm = true;
	out->imm = form->flags & F_UNSIGNED ? take(d, n) : (uint64_t)take_signed(d, n);
}

/* Where a string operation's memory is: what INS writes, or what OUTS reads. The segment counts for what is read only. */
static void string_address(struct decoder *d, struct insn *out)
{
	d->address = out->kind == INSN_OUTS ? d->regs->rsi : d->regs->rdi;
	out->memory = true;
	out->address = d->address;
	if (out->kind == INSN_OUTS)
		finish_address(d, out);
}

static int decode(struct decoder *d, struct insn *out)
{
	uint8_t op = take_prefixes(d, out), modrm;
	bool second = op == 0x0f;
	struct form form;

	if (second)
		op = (uint8_t)take(d, 1);
	form = second ? two_bytes[op] : one_byte[op];
	if (form.kind == INSN_UNKNOWN && !(form.flags & F_GROUP))
		return -EINVAL;
	out->kind = form.kind;
	out->size = operand_size(d, &form, op);
	if (form.flags & (F_MODRM | F_CR)) {
		modrm = (uint8_t)take(d, 1);
		if (form.flags & F_GROUP)
			out->kind = group_kind(second, op, modrm);
		if (out->kind == INSN_UNKNOWN)
			return -EINVAL;
		take_modrm(d, &form, modrm, out);
	}
	take_immediate(d, &form, out);
	if (form.flags & F_REP) {
		/* Counting in ecx and addressing by esi and edi is for 32-bit code. */
		if (d->address32)
			return -EINVAL;
		string_address(d, out);
	} else if (out->memory) {
		finish_address(d, out);
	}
	if (out->lock && !(form.flags & F_LOCK && out->memory))
		return -EINVAL;
	out->length = d->at;
	return 0;
}

int insn_decode(const uint8_t *code, unsigned bytes, const struct cpu_user_regs *regs,
		uint64_t fs_base, uint64_t gs_base, struct insn *out)
{
	struct decoder d = {
		.code = code,
		.bytes = MIN(bytes, INSTRUCTION_MAX),
		.regs = regs,
		.fs_base = fs_base,
		.gs_base = gs_base,
	};
	int rc;

	*out = (struct insn){.segment = -1};
	rc = decode(&d, out);
	if (d.over)
		rc = bytes < INSTRUCTION_MAX ? -ENOBUFS : -EINVAL;
	if (rc)
		*out = (struct insn){.segment = -1};
	return rc;
}

/* ---- registers ---- */

uint64_t *insn_register(struct cpu_user_regs *regs, unsigned n)
{
	/* By the processor's numbers. */
	static const uint8_t offset[16] = {
		offsetof(struct cpu_user_regs, rax), offsetof(struct cpu_user_regs, rcx),
		offsetof(struct cpu_user_regs, rdx), offsetof(struct cpu_user_regs, rbx),
		offsetof(struct cpu_user_regs, rsp), offsetof(struct cpu_user_regs, rbp),
		offsetof(struct cpu_user_regs, rsi), offsetof(struct cpu_user_regs, rdi),
		offsetof(struct cpu_user_regs, r8),  offsetof(struct cpu_user_regs, r9),
		offsetof(struct cpu_user_regs, r10), offsetof(struct cpu_user_regs, r11),
		offsetof(struct cpu_user_regs, r12), offsetof(struct cpu_user_regs, r13),
		offsetof(struct cpu_user_regs, r14), offsetof(struct cpu_user_regs, r15),
	};

	return (uint64_t *)(void *)((char *)regs + offset[n & 15]);
}

uint64_t insn_get(const struct cpu_user_regs *regs, unsigned n, unsigned size, bool high_byte)
{
	/* The register is only read. */
	struct cpu_user_regs *r = (struct cpu_user_regs *)(uintptr_t)regs;

	if (high_byte)
		return *insn_register(r, n - 4) >> 8 & 0xff;
	return *insn_register(r, n) & mask_of(size);
}

void insn_set(struct cpu_user_regs *regs, unsigned n, unsigned size, bool high_byte, uint64_t value)
{
	uint64_t *reg = insn_register(regs, high_byte ? n - 4 : n), mask = mask_of(size);

	if (high_byte) {
		value <<= 8;
		mask <<= 8;
	}
	if (size == 4)
		*reg = (uint32_t)value;
	else
		*reg = (*reg & ~mask) | (value & mask);
}
