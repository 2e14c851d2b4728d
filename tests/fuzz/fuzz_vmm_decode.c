// SPDX-License-Identifier: MIT
/*
 * Any bytes through the instruction decoder.
 *
 * The first 24 bytes are registers that addresses are made of, the rest is code. Asserted: an instruction is decoded from the very bytes that it
 * has (each one less is "more bytes", those behind it do not matter), its length and operands are within bounds, and what is refused stays
 * refused.
 */
#define VMM_HOSTED
#include "vmm/emul/decode.c" /* NOLINT(bugprone-suspicious-include) */

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HEAD 24u

static void must(bool condition)
{
	if (!condition)
		abort();
}

static void check_operands(const struct insn *i)
{
	must(i->kind != INSN_UNKNOWN);
	must(i->length >= 1 && i->length <= INSTRUCTION_MAX);
	must(i->size == 1 || i->size == 2 || i->size == 4 || i->size == 8);
	must(i->reg < 16 && i->rm < 16 && i->cr < 16);
	must(i->segment == -1 || i->segment == 4 || i->segment == 5);
	must(!i->high_byte || (i->size == 1 && i->reg >= 4 && i->reg < 8));
	must(!(i->memory && i->rm_is_reg));
	must(!i->lock || i->memory);
}

static bool same(const struct insn *a, const struct insn *b)
{
	return a->kind == b->kind && a->length == b->length && a->size == b->size &&
	       a->rep == b->rep && a->lock == b->lock && a->has_imm == b->has_imm &&
	       a->imm == b->imm && a->reg == b->reg && a->cr == b->cr &&
	       a->high_byte == b->high_byte && a->memory == b->memory &&
	       a->rm_is_reg == b->rm_is_reg && a->rm == b->rm && a->address == b->address &&
	       a->segment == b->segment;
}

/* Bytes of their own on the heap, so that a read behind the last one is seen. */
static int decode_copy(const uint8_t *code, unsigned bytes, const struct cpu_user_regs *regs,
		       struct insn *out)
{
	uint8_t *copy = malloc(bytes ? bytes : 1);
	int rc;

	must(copy);
	memcpy(copy, code, bytes);
	rc = insn_decode(copy, bytes, regs, regs->rbx, regs->rsp, out);
	free(copy);
	return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cpu_user_regs regs;
	struct insn whole, part;
	unsigned bytes, needed;
	uint64_t value[3];
	int rc;

	if (size < HEAD)
		return 0;
	memcpy(value, data, HEAD);
	memset(&regs, 0, sizeof(regs));
	for (unsigned n = 0; n < 16; n++)
		insn_set(&regs, n, 8, false, value[n % 3] + n);
	regs.rip = value[0] ^ value[1];
	bytes = size - HEAD < 32 ? (unsigned)(size - HEAD) : 32;
	rc = decode_copy(data + HEAD, bytes, &regs, &whole);
	must(rc == 0 || rc == -EINVAL || (rc == -ENOBUFS && bytes < INSTRUCTION_MAX));
	needed = bytes;
	if (rc == 0) {
		check_operands(&whole);
		must(whole.length <= bytes);
		needed = whole.length;
	} else {
		must(whole.kind == INSN_UNKNOWN);
	}
	for (unsigned n = 0; n < bytes; n++) {
		int less = decode_copy(data + HEAD, n, &regs, &part);

		if (rc == 0 && n >= needed)
			must(less == 0 && same(&whole, &part));
		else if (rc == -EINVAL)
			must(less == -EINVAL || less == -ENOBUFS);
		else
			must(less == -ENOBUFS);
	}
	return 0;
}
