// SPDX-License-Identifier: MIT
/*
 * The instruction decoder: what an assembler makes of each form, whatever stands behind it, and what must be refused. The invariants that
 * random bytes are held to are those of tests/fuzz/fuzz_vmm_decode.c.
 */
#define VMM_HOSTED
#include "vmm/emul/decode.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"

#define RAX 0x1111111111111111ull
#define RCX 0x0000000000000007ull
#define RDX 0xffffffffffffff81ull /* -127 */
#define RBX 0x2222222222222222ull
#define RSP 0xffffc90000001000ull
#define RBP 0xffffc90000002000ull
#define RSI 0xffff888000003000ull
#define RDI 0xffff888000004008ull
#define R9  0x3333333333333333ull
#define R12 0x4444444444444444ull
#define R13 0x5555555555555555ull
#define RIP 0xffffffff81000000ull
#define FS  0x00007f0000000000ull
#define GS  0xffff888100000000ull

static const struct cpu_user_regs regs = {
	.rax = RAX,
	.rcx = RCX,
	.rdx = RDX,
	.rbx = RBX,
	.rsp = RSP,
	.rbp = RBP,
	.rsi = RSI,
	.rdi = RDI,
	.r9 = R9,
	.r12 = R12,
	.r13 = R13,
	.rip = RIP,
};

struct sample {
	const char *text, *code;
	unsigned bytes;
	struct insn want;
};

/* clang-format off */
static const struct sample samples[] = {
	{"in $0x71, %al", "\xe4\x71", 2, {.kind = INSN_IN, .length = 2, .size = 1, .has_imm = true, .imm = 0x71}},
	{"in $0x71, %eax", "\xe5\x71", 2, {.kind = INSN_IN, .length = 2, .size = 4, .has_imm = true, .imm = 0x71}},
	{"in %dx, %ax", "\x66\xed", 2, {.kind = INSN_IN, .length = 2, .size = 2}},
	{"rex.W in %dx, %eax", "\x48\xed", 2, {.kind = INSN_IN, .length = 2, .size = 4}},
	{"out %al, $0x80", "\xe6\x80", 2, {.kind = INSN_OUT, .length = 2, .size = 1, .has_imm = true, .imm = 0x80}},
	{"out %eax, %dx", "\xef", 1, {.kind = INSN_OUT, .length = 1, .size = 4}},
	{"rep insw", "\x66\xf3\x6d", 3, {.kind = INSN_INS, .length = 3, .size = 2, .rep = true, .memory = true, .address = RDI}},
	{"insb", "\x6c", 1, {.kind = INSN_INS, .length = 1, .size = 1, .memory = true, .address = RDI}},
	{"rep outsl", "\xf3\x6f", 2, {.kind = INSN_OUTS, .length = 2, .size = 4, .rep = true, .memory = true, .address = RSI}},
	{"outsb %gs:(%rsi), %dx", "\x65\x6e", 2, {.kind = INSN_OUTS, .length = 2, .size = 1, .segment = 5, .memory = true, .address = RSI + GS}},
	{"cli", "\xfa", 1, {.kind = INSN_CLI, .length = 1}},
	{"sti", "\xfb", 1, {.kind = INSN_STI, .length = 1}},
	{"hlt", "\xf4", 1, {.kind = INSN_HLT, .length = 1}},
	{"clts", "\x0f\x06", 2, {.kind = INSN_CLTS, .length = 2}},
	{"rdmsr", "\x0f\x32", 2, {.kind = INSN_RDMSR, .length = 2}},
	{"wrmsr", "\x0f\x30", 2, {.kind = INSN_WRMSR, .length = 2}},
	{"rdtsc", "\x0f\x31", 2, {.kind = INSN_RDTSC, .length = 2}},
	{"rdtscp", "\x0f\x01\xf9", 3, {.kind = INSN_RDTSCP, .length = 3}},
	{"cpuid", "\x0f\xa2", 2, {.kind = INSN_CPUID, .length = 2}},
	{"xsetbv", "\x0f\x01\xd1", 3, {.kind = INSN_XSETBV, .length = 3}},
	{"wbinvd", "\x0f\x09", 2, {.kind = INSN_WBINVD, .length = 2}},
	{"invlpg 8(%rax)", "\x0f\x01\x78\x08", 4, {.kind = INSN_INVLPG, .length = 4, .memory = true, .address = RAX + 8}},
	{"mov %cr4, %r9", "\x41\x0f\x20\xe1", 4, {.kind = INSN_READ_CR, .length = 4, .reg = 9, .cr = 4}},
	{"mov %rax, %cr0", "\x0f\x22\xc0", 3, {.kind = INSN_WRITE_CR, .length = 3, .reg = 0, .cr = 0}},
	{"mov %cr8, %rdi", "\x44\x0f\x20\xc7", 4, {.kind = INSN_READ_CR, .length = 4, .reg = 7, .cr = 8}},
	{"mov %dr7, %rcx", "\x0f\x21\xf9", 3, {.kind = INSN_READ_DR, .length = 3, .reg = 1, .cr = 7}},
	{"mov %r15, %dr0", "\x41\x0f\x23\xc7", 4, {.kind = INSN_WRITE_DR, .length = 4, .reg = 15, .cr = 0}},
	{"int $0x80", "\xcd\x80", 2, {.kind = INSN_INT, .length = 2, .has_imm = true, .imm = 0x80}},
	{"int $0xff", "\xcd\xff", 2, {.kind = INSN_INT, .length = 2, .has_imm = true, .imm = 0xff}},
	{"mov %rax, (%rdi)", "\x48\x89\x07", 3, {.kind = INSN_MOV_STORE, .length = 3, .size = 8, .reg = 0, .memory = true, .address = RDI}},
	{"mov %r8d, 0x10(%r9)", "\x45\x89\x41\x10", 4, {.kind = INSN_MOV_STORE, .length = 4, .size = 4, .reg = 8, .memory = true, .address = R9 + 0x10}},
	{"mov %ah, (%rdi)", "\x88\x27", 2, {.kind = INSN_MOV_STORE, .length = 2, .size = 1, .reg = 4, .high_byte = true, .memory = true, .address = RDI}},
	{"mov %sil, (%rdi)", "\x40\x88\x37", 3, {.kind = INSN_MOV_STORE, .length = 3, .size = 1, .reg = 6, .memory = true, .address = RDI}},
	{"mov %ax, -8(%rbp)", "\x66\x89\x45\xf8", 4, {.kind = INSN_MOV_STORE, .length = 4, .size = 2, .reg = 0, .memory = true, .address = RBP - 8}},
	{"movq $-2, (%rdi)", "\x48\xc7\x07\xfe\xff\xff\xff", 7, {.kind = INSN_MOV_STORE, .length = 7, .size = 8, .has_imm = true, .imm = (uint64_t)-2, .memory = true, .address = RDI}},
	{"movw $0x1234, (%rdi)", "\x66\xc7\x07\x34\x12", 5, {.kind = INSN_MOV_STORE, .length = 5, .size = 2, .has_imm = true, .imm = 0x1234, .memory = true, .address = RDI}},
	{"movb $-1, 0x12345(%rdi,%rcx,8)", "\xc6\x84\xcf\x45\x23\x01\x00\xff", 8, {.kind = INSN_MOV_STORE, .length = 8, .size = 1, .has_imm = true, .imm = (uint64_t)-1, .memory = true, .address = RDI + 8 * RCX + 0x12345}},
	{"movnti %rdx, (%rsi)", "\x48\x0f\xc3\x16", 4, {.kind = INSN_MOV_STORE, .length = 4, .size = 8, .reg = 2, .memory = true, .address = RSI}},
	{"mov %rax, %rbx", "\x48\x89\xc3", 3, {.kind = INSN_MOV_STORE, .length = 3, .size = 8, .reg = 0, .rm_is_reg = true, .rm = 3}},
	{"mov %rax, 0x1000", "\x48\x89\x04\x25\x00\x10\x00\x00", 8, {.kind = INSN_MOV_STORE, .length = 8, .size = 8, .reg = 0, .memory = true, .address = 0x1000}},
	{"mov %rax, (%rsp)", "\x48\x89\x04\x24", 4, {.kind = INSN_MOV_STORE, .length = 4, .size = 8, .reg = 0, .memory = true, .address = RSP}},
	{"mov %rax, (%r12)", "\x49\x89\x04\x24", 4, {.kind = INSN_MOV_STORE, .length = 4, .size = 8, .reg = 0, .memory = true, .address = R12}},
	{"mov %rax, (%r13)", "\x49\x89\x45\x00", 4, {.kind = INSN_MOV_STORE, .length = 4, .size = 8, .reg = 0, .memory = true, .address = R13}},
	{"mov %rax, (,%r12,4)", "\x4a\x89\x04\xa5\x00\x00\x00\x00", 8, {.kind = INSN_MOV_STORE, .length = 8, .size = 8, .reg = 0, .memory = true, .address = 4 * R12}},
	{"mov %rax, 0x100(%rip)", "\x48\x89\x05\x00\x01\x00\x00", 7, {.kind = INSN_MOV_STORE, .length = 7, .size = 8, .reg = 0, .memory = true, .address = RIP + 7 + 0x100}},
	{"movl $5, 0x100(%rip)", "\xc7\x05\x00\x01\x00\x00\x05\x00\x00\x00", 10, {.kind = INSN_MOV_STORE, .length = 10, .size = 4, .has_imm = true, .imm = 5, .memory = true, .address = RIP + 10 + 0x100}},
	{"mov %rax, %fs:8(%rdi)", "\x64\x48\x89\x47\x08", 5, {.kind = INSN_MOV_STORE, .length = 5, .size = 8, .reg = 0, .segment = 4, .memory = true, .address = RDI + 8 + FS}},
	{"mov %rax, %gs:0x28", "\x65\x48\x89\x04\x25\x28\x00\x00\x00", 9, {.kind = INSN_MOV_STORE, .length = 9, .size = 8, .reg = 0, .segment = 5, .memory = true, .address = 0x28 + GS}},
	{"mov %rax, (%edi)", "\x67\x48\x89\x07", 4, {.kind = INSN_MOV_STORE, .length = 4, .size = 8, .reg = 0, .memory = true, .address = (RDI & 0xffffffff)}},
	{"xchg %rax, (%rdi)", "\x48\x87\x07", 3, {.kind = INSN_XCHG, .length = 3, .size = 8, .reg = 0, .memory = true, .address = RDI}},
	{"lock cmpxchg %rdx, (%rdi)", "\xf0\x48\x0f\xb1\x17", 5, {.kind = INSN_CMPXCHG, .length = 5, .size = 8, .reg = 2, .lock = true, .memory = true, .address = RDI}},
	{"lock cmpxchg %cl, 3(%rdi)", "\xf0\x0f\xb0\x4f\x03", 5, {.kind = INSN_CMPXCHG, .length = 5, .size = 1, .reg = 1, .lock = true, .memory = true, .address = RDI + 3}},
	{"lock andq $-3, (%rdi)", "\xf0\x48\x83\x27\xfd", 5, {.kind = INSN_AND, .length = 5, .size = 8, .has_imm = true, .imm = (uint64_t)-3, .lock = true, .memory = true, .address = RDI}},
	{"lock andb $0xdf, (%rdi)", "\xf0\x80\x27\xdf", 4, {.kind = INSN_AND, .length = 4, .size = 1, .has_imm = true, .imm = (uint64_t)-33, .lock = true, .memory = true, .address = RDI}},
	{"andq $0x12345678, (%rdi)", "\x48\x81\x27\x78\x56\x34\x12", 7, {.kind = INSN_AND, .length = 7, .size = 8, .has_imm = true, .imm = 0x12345678, .memory = true, .address = RDI}},
	{"lock orq %rcx, (%rdi)", "\xf0\x48\x09\x0f", 4, {.kind = INSN_OR, .length = 4, .size = 8, .reg = 1, .lock = true, .memory = true, .address = RDI}},
	{"xorl %eax, (%rdi)", "\x31\x07", 2, {.kind = INSN_XOR, .length = 2, .size = 4, .reg = 0, .memory = true, .address = RDI}},
	{"andw $0x1234, (%rdi)", "\x66\x81\x27\x34\x12", 5, {.kind = INSN_AND, .length = 5, .size = 2, .has_imm = true, .imm = 0x1234, .memory = true, .address = RDI}},
	{"lock btrq $5, (%rdi)", "\xf0\x48\x0f\xba\x37\x05", 6, {.kind = INSN_BTR, .length = 6, .size = 8, .has_imm = true, .imm = 5, .lock = true, .memory = true, .address = RDI}},
	{"lock btsq $63, (%rdi)", "\xf0\x48\x0f\xba\x2f\x3f", 6, {.kind = INSN_BTS, .length = 6, .size = 8, .has_imm = true, .imm = 63, .lock = true, .memory = true, .address = RDI}},
	{"lock btrq %rdx, (%rdi)", "\xf0\x48\x0f\xb3\x17", 5, {.kind = INSN_BTR, .length = 5, .size = 8, .reg = 2, .lock = true, .memory = true, .address = RDI + 8 * ((int64_t)(RDX & ~63ull) / 64)}},
	{"btsl %edx, (%rdi)", "\x0f\xab\x17", 3, {.kind = INSN_BTS, .length = 3, .size = 4, .reg = 2, .memory = true, .address = RDI + 4 * ((int32_t)(RDX & ~31ull) / 32)}},
};
/* clang-format on */

static int decode_text(const char *code, unsigned bytes, struct insn *out)
{
	return insn_decode((const uint8_t *)code, bytes, &regs, FS, GS, out);
}

#define SAME(field)                                                                         \
	CHECK_MSG(got.field == want.field, "%s: " #field " is 0x%llx, not 0x%llx", s->text, \
		  (unsigned long long)got.field, (unsigned long long)want.field)

static void check_sample(const struct sample *s, const struct insn *got_p)
{
	struct insn got = *got_p, want = s->want;

	if (!want.segment)
		want.segment = -1;
	SAME(kind);
	SAME(length);
	if (want.size)
		SAME(size);
	SAME(rep);
	SAME(lock);
	SAME(has_imm);
	SAME(imm);
	SAME(reg);
	SAME(cr);
	SAME(high_byte);
	SAME(memory);
	SAME(rm_is_reg);
	SAME(rm);
	SAME(address);
	SAME(segment);
}

static void decodes_what_the_assembler_wrote(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(samples); i++) {
		const struct sample *s = &samples[i];
		struct insn got;
		int rc = decode_text(s->code, s->bytes, &got);

		CHECK_MSG(rc == 0, "%s: %d", s->text, rc);
		check_sample(s, &got);
	}
}

/* Each byte less is "more bytes", and bytes behind it change nothing. */
static void needs_all_bytes_and_no_more(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(samples); i++) {
		const struct sample *s = &samples[i];
		char code[INSTRUCTION_MAX];
		struct insn got;

		for (unsigned n = 0; n < s->bytes; n++) {
			int rc = decode_text(s->code, n, &got);

			CHECK_MSG(rc == -ENOBUFS, "%s: %d of %u bytes", s->text, rc, n);
			CHECK_EQ(got.kind, INSN_UNKNOWN);
		}
		for (unsigned fill = 0; fill < 256; fill += 15) {
			memset(code, (int)fill, sizeof(code));
			memcpy(code, s->code, s->bytes);
			CHECK_EQ(decode_text(code, sizeof(code), &got), 0);
			check_sample(s, &got);
		}
	}
}

static void check_refused(const char *code, unsigned bytes)
{
	char padded[INSTRUCTION_MAX] = {0};
	struct insn got;

	memcpy(padded, code, bytes);
	CHECK_EQ(decode_text(padded, sizeof(padded), &got), -EINVAL);
	CHECK_EQ(got.kind, INSN_UNKNOWN);
}

#define REFUSED(text) check_refused(text, sizeof(text) - 1)

static void refuses_the_rest(void)
{
	/* Writes to memory that no kernel changes its tables by: STOS, MOVS, ADD, XADD, BTC. */
	REFUSED("\x48\xab");
	REFUSED("\xf3\x48\xa5");
	REFUSED("\x48\x83\x07\x01");
	REFUSED("\xf0\x48\x0f\xc1\x07");
	REFUSED("\x0f\xba\x3f\x03");
	REFUSED("\x90");		     /* nop */
	REFUSED("\xcc");		     /* int3 */
	REFUSED("\x8b\x07");		     /* mov (%rdi), %eax: a load */
	REFUSED("\x0f\x0b");		     /* ud2 */
	REFUSED("\x0f\x01\x00");	     /* sgdt */
	REFUSED("\x0f\x01\xd0");	     /* xgetbv */
	REFUSED("\x0f\x01\xf8");	     /* swapgs */
	REFUSED("\x0f\xba\x27\x05");	     /* bt: reads */
	REFUSED("\x80\x3f\x00");	     /* cmpb */
	REFUSED("\x80\x17\x00");	     /* adcb */
	REFUSED("\xc7\x0f");		     /* a group's hole */
	REFUSED("\xf0\x48\x89\x07");	     /* lock mov */
	REFUSED("\xf0\x48\x01\xc3");	     /* lock add to a register */
	REFUSED("\xf0\xfa");		     /* lock cli */
	REFUSED("\x67\xf3\xab");	     /* rep stosl (%edi) */
	REFUSED("\x62\xf1\x7c\x48\x11\x07"); /* EVEX */
	REFUSED("\xc5\xf8\x11\x07");	     /* VEX */
}

static void takes_15_bytes_at_most(void)
{
	char code[32];
	struct insn got;

	memset(code, 0x66, sizeof(code));
	code[14] = (char)0xed;
	CHECK_EQ(decode_text(code, sizeof(code), &got), 0);
	CHECK_EQ(got.length, 15);
	CHECK_EQ(got.size, 2);
	code[14] = 0x66;
	code[15] = (char)0xed;
	CHECK_EQ(decode_text(code, sizeof(code), &got), -EINVAL);
	CHECK_EQ(decode_text(code, 14, &got), -ENOBUFS);
	CHECK_EQ(decode_text(code, 15, &got), -EINVAL);
}

/* REX before another prefix counts for nothing; a prefix may stand twice. */
static void prefixes_in_any_order(void)
{
	struct insn got;

	CHECK_EQ(decode_text("\x48\x66\x89\x07", 4, &got), 0);
	CHECK_EQ(got.size, 2);
	CHECK_EQ(decode_text("\x66\x48\x89\x07", 4, &got), 0);
	CHECK_EQ(got.size, 8);
	CHECK_EQ(decode_text("\x64\x65\x48\x89\x07", 5, &got), 0);
	CHECK_EQ(got.segment, 5);
	CHECK_EQ(got.address, RDI + GS);
	CHECK_EQ(decode_text("\x2e\x3e\x48\x89\x07", 5, &got), 0);
	CHECK_EQ(got.segment, -1);
}

static void registers_by_number(void)
{
	struct cpu_user_regs r;
	uint64_t *all[16];

	memset(&r, 0, sizeof(r));
	for (unsigned n = 0; n < 16; n++) {
		all[n] = insn_register(&r, n);
		for (unsigned before = 0; before < n; before++)
			CHECK(all[before] != all[n]);
		insn_set(&r, n, 8, false, 0x0123456789abcdef);
		CHECK_EQ(insn_get(&r, n, 8, false), 0x0123456789abcdef);
		CHECK_EQ(insn_get(&r, n, 4, false), 0x89abcdef);
		CHECK_EQ(insn_get(&r, n, 2, false), 0xcdef);
		CHECK_EQ(insn_get(&r, n, 1, false), 0xef);
	}
	CHECK(all[0] == &r.rax && all[1] == &r.rcx && all[2] == &r.rdx && all[3] == &r.rbx);
	CHECK(all[4] == &r.rsp && all[5] == &r.rbp && all[6] == &r.rsi && all[7] == &r.rdi);
	CHECK(all[8] == &r.r8 && all[15] == &r.r15);
}

static void registers_in_parts(void)
{
	struct cpu_user_regs r;

	memset(&r, 0xff, sizeof(r));
	insn_set(&r, 0, 1, false, 0x1234);
	CHECK_EQ(r.rax, 0xffffffffffffff34);
	insn_set(&r, 0, 2, false, 0x5678);
	CHECK_EQ(r.rax, 0xffffffffffff5678);
	insn_set(&r, 4, 1, true, 0x9a);
	CHECK_EQ(r.rax, 0xffffffffffff9a78);
	CHECK_EQ(insn_get(&r, 4, 1, true), 0x9a);
	CHECK_EQ(r.rsp, 0xffffffffffffffff);
	insn_set(&r, 0, 4, false, 0xfedcba9812345678);
	CHECK_EQ(r.rax, 0x12345678);
}

UNIT_MAIN(TEST(decodes_what_the_assembler_wrote), TEST(needs_all_bytes_and_no_more),
	  TEST(refuses_the_rest), TEST(takes_15_bytes_at_most), TEST(prefixes_in_any_order),
	  TEST(registers_by_number), TEST(registers_in_parts))
