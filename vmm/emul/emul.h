/* SPDX-License-Identifier: MIT */
/*
 * The little instruction decoding that PV needs: privileged instructions and I/O of a guest kernel after #GP, the forced-emulation prefix for CPUID after
 * #UD, writes to page tables after #PF. decode.c is pure: bytes in, an operation out.
 */
#pragma once

#include "vmm/lib/xen.h"

#include "vmm/lib/types.h"

struct vcpu;

#define INSTRUCTION_MAX 15u

enum insn_kind {
	INSN_UNKNOWN,
	INSN_IN, /* size, port in imm or dx */
	INSN_OUT,
	INSN_INS, /* with rep */
	INSN_OUTS,
	INSN_CLI,
	INSN_STI,
	INSN_HLT,
	INSN_CLTS,
	INSN_RDMSR,
	INSN_WRMSR,
	INSN_RDTSC,
	INSN_RDTSCP,
	INSN_CPUID,
	INSN_XSETBV,
	INSN_WBINVD,
	INSN_INVLPG,  /* memory operand */
	INSN_READ_CR, /* reg <- CR(cr) */
	INSN_WRITE_CR,
	INSN_READ_DR,
	INSN_WRITE_DR,
	INSN_INT, /* vector in imm: tells INT n from a fault */
	/* to memory: */
	INSN_MOV_STORE, /* from reg, or imm */
	INSN_XCHG,
	INSN_CMPXCHG,
	INSN_OR,
	INSN_AND,
	INSN_XOR,
	INSN_BTS,
	INSN_BTR,
};

struct insn {
	enum insn_kind kind;
	unsigned length; /* bytes, prefixes included */
	unsigned size;	 /* of the operand: 1, 2, 4, 8 */
	bool rep, lock;
	bool has_imm; /* the source is imm and no register */
	uint64_t imm; /* sign-extended; a port, a vector, a value */
	unsigned reg; /* the register operand, 0 rax .. 15 r15; CR/DR number in cr */
	unsigned cr;
	bool high_byte; /* reg is ah, ch, dh or bh (number 4 .. 7) */
	bool memory;	/* there is a memory operand at address */
	bool rm_is_reg; /* the other operand is register rm */
	unsigned rm;
	uint64_t
		address; /* effective, 64-bit, segment base of fs/gs included by the caller's bases */
	int segment;	 /* -1 none, 4 fs, 5 gs */
};

/*
 * Decode the instruction in the bytes (64-bit mode; `bytes` of them are valid). regs: for the effective address. fs_base, gs_base: likewise. 0, -EINVAL:
 * not one of the above, -ENOBUFS: more bytes are needed.
 */
/* Length is not above INSTRUCTION_MAX; a longer one is -EINVAL. */
int insn_decode(const uint8_t *code, unsigned bytes, const struct cpu_user_regs *regs,
		uint64_t fs_base, uint64_t gs_base, struct insn *out);
/* The bits of an operand of so many bytes. */
static inline uint64_t mask_of(unsigned size)
{
	return size >= 8 ? ~0ull : (1ull << 8 * size) - 1;
}

uint64_t *insn_register(struct cpu_user_regs *regs, unsigned n);
/* The register operand's value, zero-extended from the operand's size; and writing it as the processor does (32 bits clear the upper half). */
uint64_t insn_get(const struct cpu_user_regs *regs, unsigned n, unsigned size, bool high_byte);
void insn_set(struct cpu_user_regs *regs, unsigned n, unsigned size, bool high_byte,
	      uint64_t value);

/* What emulate_* returns. */
enum emulated {
	EMUL_DONE,  /* rip is behind the instruction */
	EMUL_FAULT, /* not ours: the guest gets the fault that the processor raised */
	EMUL_PAGE_FAULT, /* reading its memory faulted: the guest gets #PF at *fault_address with *fault_code */
	EMUL_RETRY, /* enter the guest again as it is */
};

/* What regs->rip points to, in 64-bit code of the current vCPU. 0, -EINVAL, or -EFAULT: it cannot be read at *fault_address. */
int insn_fetch(const struct cpu_user_regs *regs, struct insn *out, uint64_t *fault_address);
/* The instruction has been carried out: go behind it. */
void insn_done(struct cpu_user_regs *regs, const struct insn *insn);

/* #GP with error code 0 in the current vCPU's kernel mode (or user mode with IOPL 3 / an I/O bitmap). */
enum emulated emulate_privileged(struct cpu_user_regs *regs, uint64_t *fault_address,
				 uint32_t *fault_code);
/* The instruction at rip is INT n (of any kind that faults here): its vector. An error code of an emulator is not to be trusted for that. */
bool decode_int_n(const struct cpu_user_regs *regs, uint8_t *vector);
/* #UD: the prefix ud2a 'x' 'e' 'n' before CPUID (XEN_EMULATE_PREFIX). */
enum emulated emulate_forced(struct cpu_user_regs *regs);
/* #PF by a write to a present page in which the guest's table lies: decode, check, pt_update. */
enum emulated emulate_table_write(struct cpu_user_regs *regs, uint64_t address);

/* What the current domain may not use reads as all ones, and writes to it vanish. */
uint32_t guest_port_read(unsigned port, unsigned bytes);
void guest_port_write(unsigned port, unsigned bytes, uint32_t value);
/* Whether IN and OUT work at all for the current vCPU where it is now: by its IOPL, or its bitmap. Otherwise it gets #GP. */
bool guest_port_allowed(struct vcpu *v, unsigned port, unsigned bytes);
