// SPDX-License-Identifier: MIT
/* Writes to page tables: each operation against the processor's own, flags and all; which entry is changed and what of it; what is refused. */
#define VMM_HOSTED
#define __XEN_TOOLS__ 1
#include "vmm/emul/decode.c"	  /* NOLINT(bugprone-suspicious-include) */
#include "vmm/emul/table_write.c" /* NOLINT(bugprone-suspicious-include) */

#include <stdlib.h>

#include "tests/unit/unit.h"

#define FRAMES	 2u
#define TABLE	 1u /* the frame that is a table */
#define TABLE_VA 0xffff888000001000ull
#define L1E	 (TABLE << PAGE_SHIFT | PTE_P | PTE_US)

/* ---- what lies around it ---- */

static struct frame frames[FRAMES];
struct frame *frame_table = frames;
uint64_t frame_max = FRAMES;
static _Alignas(4096) uint64_t memory[FRAMES][PT_ENTRIES];
char *direct_base = (char *)memory;

static struct domain owner;
static uint64_t walked = L1E;
static int update_rc;
static unsigned updates, level_seen, typed;
#define OWNERS_REF 1u

int guest_walk(uint64_t va, uint64_t *l1e, mfn_t *l1_table)
{
	if (va >> PAGE_SHIFT != TABLE_VA >> PAGE_SHIFT)
		return -EFAULT;
	*l1e = walked;
	*l1_table = MFN(0);
	return 0;
}

void frame_release(struct frame *f)
{
	(void)f;
	abort();
}

void bug(const char *file, int line, const char *what)
{
	(void)file, (void)line, (void)what;
	abort();
}

int frame_get_type(struct frame *f, enum page_type type)
{
	CHECK_EQ(type, type_of(f->type));
	typed++;
	return 0;
}

void frame_put_both(struct frame *f)
{
	typed--;
	frame_put(f);
}

/* The processor sets the dirty bit at the moment of the first try. */
static bool dirty_once;

int pt_compare_exchange(struct frame *f, unsigned level, unsigned index, uint64_t old,
			uint64_t value)
{
	CHECK(f == &frames[TABLE]);
	CHECK(typed == 1 && f->ref == OWNERS_REF + 1);
	level_seen = level;
	if (dirty_once) {
		dirty_once = false;
		memory[TABLE][index] |= PTE_D;
	}
	if (memory[TABLE][index] != old)
		return -EAGAIN;
	updates++;
	if (!update_rc)
		memory[TABLE][index] = value;
	return update_rc;
}

int page_lock(struct domain *d)
{
	(void)d;
	abort();
}
void page_unlock(struct domain *d)
{
	(void)d;
	abort();
}
int insn_fetch(const struct cpu_user_regs *regs, struct insn *out, uint64_t *fault_address)
{
	(void)regs, (void)out, (void)fault_address;
	abort();
}
void insn_done(struct cpu_user_regs *regs, const struct insn *insn)
{
	regs->rip += insn->length;
}

static void fresh(void)
{
	memset(frames, 0, sizeof(frames));
	frames[TABLE].owner = &owner;
	frames[TABLE].type = (uint64_t)TYPE_L1 << TYPE_SHIFT | TYPE_VALID | 1;
	memset(memory, 0, sizeof(memory));
	walked = L1E;
	update_rc = 0;
	updates = typed = 0;
	frames[TABLE].ref = OWNERS_REF;
}

/* ---- operations against the processor ---- */

/* One instruction on memory with its register operand; rax is there for CMPXCHG. The compiler may keep things below the stack pointer. */
#define REAL(name, text)                                                                  \
	static void name(uint64_t *at, uint64_t *reg, uint64_t *rax, uint64_t *flags)     \
	{                                                                                 \
		__asm__ volatile("lea -128(%%rsp), %%rsp; push %3; popfq; " text          \
				 "; pushfq; pop %3; lea 128(%%rsp), %%rsp"                \
				 : "+m"(*at), "+d"(*reg), "+a"(*rax), "+r"(*flags)::"cc", \
				   "memory");                                             \
	}
#define REAL_SIZES(op)                        \
	REAL(real_##op##_8, #op " %%rdx, %0") \
	REAL(real_##op##_4, #op " %%edx, %0") \
	REAL(real_##op##_2, #op " %%dx, %0")  \
	REAL(real_##op##_1, #op " %%dl, %0")
REAL_SIZES(or)
REAL_SIZES(and)
REAL_SIZES(xor)
REAL_SIZES(cmpxchg)
REAL_SIZES(xchg)
REAL_SIZES(mov)
/* With a register the bit may be in another word: the number is below 16 here. */
REAL(real_bts_8, "btsq %%rdx, %0")
REAL(real_bts_4, "btsl %%edx, %0")
REAL(real_btr_8, "btrq %%rdx, %0")
REAL(real_btr_2, "btrw %%dx, %0")

/* What the manuals leave undefined: AF after logical operations, all but CF and ZF after BT*. */
#define LOGICAL_FLAGS (EFLAGS_ARITHMETIC & ~EFLAGS_AF)

static const struct {
	enum insn_kind kind;
	unsigned size;
	uint32_t defined;
	void (*real)(uint64_t *, uint64_t *, uint64_t *, uint64_t *);
} operations[] = {
#define SIZES(kind, op, defined)                                              \
	{kind, 8, defined, real_##op##_8}, {kind, 4, defined, real_##op##_4}, \
		{kind, 2, defined, real_##op##_2}, {kind, 1, defined, real_##op##_1},
	SIZES(INSN_OR, or, LOGICAL_FLAGS) SIZES(INSN_AND, and, LOGICAL_FLAGS)
		SIZES(INSN_XOR, xor, LOGICAL_FLAGS) SIZES(INSN_CMPXCHG, cmpxchg, EFLAGS_ARITHMETIC)
			SIZES(INSN_XCHG, xchg, EFLAGS_ARITHMETIC)
				SIZES(INSN_MOV_STORE, mov,
				      EFLAGS_ARITHMETIC){INSN_BTS, 8, EFLAGS_CF, real_bts_8},
	{INSN_BTS, 4, EFLAGS_CF, real_bts_4},
	{INSN_BTR, 8, EFLAGS_CF, real_btr_8},
	{INSN_BTR, 2, EFLAGS_CF, real_btr_2},
};

/* Values at which carries and signs change, and any others. */
static uint64_t some_value(uint64_t *state)
{
	static const uint64_t edge[] = {0,	    1,	       0x7f,	   0x80,
					0xff,	    0x7fff,    0x8000,	   0x7fffffff,
					0x80000000, INT64_MAX, 1ull << 63, UINT64_MAX};

	return unit_below(state, 2) ? edge[unit_below(state, ARRAY_SIZE(edge))]
				    : unit_random(state);
}

static void try_operation(unsigned n, uint64_t *state)
{
	struct insn i = {.kind = operations[n].kind,
			 .size = operations[n].size,
			 .reg = 2,
			 .memory = true,
			 .address = TABLE_VA + 8 * unit_below(state, PT_ENTRIES),
			 .length = 4};
	uint64_t *entry = &memory[TABLE][i.address % PAGE_SIZE / 8], start = some_value(state);
	uint64_t reg = some_value(state), rax = unit_below(state, 2) ? start : some_value(state);
	uint64_t flags = 0x202 | (unit_random(state) & EFLAGS_ARITHMETIC), expected = start;
	struct cpu_user_regs regs = {.rax = rax, .rflags = flags, .rip = 100};
	struct operation op;

	if (i.kind == INSN_BTS || i.kind == INSN_BTR)
		reg %= 16;
	regs.rdx = reg;
	*entry = start;
	CHECK_EQ(apply(&owner, &i, source_of(&regs, &i), insn_get(&regs, 0, i.size, false), &op),
		 0);
	finish(&regs, &i, &op);
	operations[n].real(&expected, &reg, &rax, &flags);
	CHECK_MSG(
		*entry == expected && regs.rdx == reg && regs.rax == rax &&
			!((regs.rflags ^ flags) & operations[n].defined),
		"kind %u size %u from %llx: memory %llx, not %llx; rdx %llx, not %llx; rax %llx, not %llx; flags %llx, not %llx",
		i.kind, i.size, (unsigned long long)start, (unsigned long long)*entry,
		(unsigned long long)expected, (unsigned long long)regs.rdx, (unsigned long long)reg,
		(unsigned long long)regs.rax, (unsigned long long)rax,
		(unsigned long long)regs.rflags, (unsigned long long)flags);
	CHECK_EQ(regs.rip, 104);
	CHECK(typed == 0 && frames[TABLE].ref == OWNERS_REF);
}

static void does_what_the_processor_does(void)
{
	uint64_t state = unit_seed();

	fresh();
	for (unsigned n = 0; n < ARRAY_SIZE(operations); n++)
		for (unsigned run = 0; run < 2000; run++)
			try_operation(n, &state);
}

/* ---- where ---- */

static int store(uint64_t address, unsigned size, uint64_t value)
{
	struct insn i = {.kind = INSN_MOV_STORE, .size = size, .memory = true, .address = address};
	struct operation op;
	int rc = apply(&owner, &i, value, 0, &op);

	CHECK(typed == 0 && frames[TABLE].ref == OWNERS_REF);
	return rc;
}

static void parts_of_an_entry(void)
{
	fresh();
	memory[TABLE][3] = 0x1111111111111111;
	CHECK_EQ(store(TABLE_VA + 24, 4, 0x22222222), 0);
	CHECK_EQ(memory[TABLE][3], 0x1111111122222222);
	CHECK_EQ(store(TABLE_VA + 28, 4, 0x33333333), 0);
	CHECK_EQ(memory[TABLE][3], 0x3333333322222222);
	CHECK_EQ(store(TABLE_VA + 31, 1, 0x44), 0);
	CHECK_EQ(memory[TABLE][3], 0x4433333322222222);
	CHECK_EQ(store(TABLE_VA + 25, 2, 0x5555), 0);
	CHECK_EQ(memory[TABLE][3], 0x4433333322555522);
	CHECK_EQ(memory[TABLE][2], 0);
	CHECK_EQ(memory[TABLE][4], 0);
	CHECK_EQ(updates, 4);
}

static void levels_are_the_types(void)
{
	fresh();
	for (unsigned level = 1; level <= 4; level++) {
		frames[TABLE].type = (uint64_t)(TYPE_L1 + level - 1) << TYPE_SHIFT | TYPE_VALID | 1;
		CHECK_EQ(store(TABLE_VA, 8, level), 0);
		CHECK_EQ(level_seen, level);
	}
	/* What is there already needs no check. */
	updates = 0;
	CHECK_EQ(store(TABLE_VA, 8, 4), 0);
	CHECK_EQ(updates, 0);
}

static void refuses_what_is_no_table(void)
{
	static const uint64_t types[] = {
		(uint64_t)TYPE_NONE << TYPE_SHIFT | TYPE_VALID | 1,
		(uint64_t)TYPE_DESC << TYPE_SHIFT | TYPE_VALID | 1,
		(uint64_t)TYPE_WRITABLE << TYPE_SHIFT | TYPE_VALID | 1,
		(uint64_t)TYPE_L1 << TYPE_SHIFT | TYPE_VALID, /* not in use */
		(uint64_t)TYPE_L1 << TYPE_SHIFT | 1,	      /* being made */
	};

	for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
		fresh();
		frames[TABLE].type = types[i];
		CHECK_EQ(store(TABLE_VA, 8, 1), -EINVAL);
	}
	fresh();
	frames[TABLE].owner = NULL;
	CHECK_EQ(store(TABLE_VA, 8, 1), -EINVAL);
	fresh();
	CHECK_EQ(store(TABLE_VA + PAGE_SIZE, 8, 1), -EINVAL);
	walked = 0;
	CHECK_EQ(store(TABLE_VA, 8, 1), -EINVAL);
	walked = FRAMES << PAGE_SHIFT | PTE_P;
	CHECK_EQ(store(TABLE_VA, 8, 1), -EINVAL);
	CHECK_EQ(updates, 0);
}

static void hands_on_what_the_update_says(void)
{
	fresh();
	update_rc = -ERESTART;
	CHECK_EQ(store(TABLE_VA, 8, 1), -ERESTART);
	update_rc = -EPERM;
	CHECK_EQ(store(TABLE_VA, 8, 1), -EPERM);
	CHECK_EQ(memory[TABLE][0], 0);
}

/* Taking an entry away must not lose that its page was written to. */
static void a_dirty_bit_that_comes_meanwhile_is_seen(void)
{
	struct insn i = {.kind = INSN_XCHG, .size = 8, .address = TABLE_VA, .reg = 1};
	struct operation op;

	fresh();
	memory[TABLE][0] = PTE_P | PTE_RW;
	dirty_once = true;
	CHECK_EQ(apply(&owner, &i, 0, 0, &op), 0);
	CHECK_EQ(op.before, PTE_P | PTE_RW | PTE_D);
	CHECK_EQ(memory[TABLE][0], 0);
	CHECK(typed == 0 && frames[TABLE].ref == OWNERS_REF);
}

UNIT_MAIN(TEST(does_what_the_processor_does), TEST(parts_of_an_entry), TEST(levels_are_the_types),
	  TEST(refuses_what_is_no_table), TEST(hands_on_what_the_update_says),
	  TEST(a_dirty_bit_that_comes_meanwhile_is_seen))
