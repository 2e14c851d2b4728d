// SPDX-License-Identifier: MIT
/*
 * A TCG plugin that counts what the processor does between two marks in the program that is measured: instructions of programs, kernel and hypervisor, and
 * the events that cost more than an instruction. A mark is a no-op (init.c), so the measured machine does not notice.
 *
 * One line a window goes to the file given as out=, in the order in which they end:
 *
 *   USER KERNEL HYPERVISOR SYSCALL RETURN CR3 INVLPG      (decimal counts; RETURN: IRET and SYSRET)
 *
 * and with profile=FILE a line "ADDRESS COUNT" for each instruction of the image at IMAGE_BASE that ran in it, and a line "end".
 *
 * Debian ships no header of the plugin interface: what is used of it is declared here, by version 4 of its documentation.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT	      __attribute__((visibility("default")))
#define API_VERSION   4
#define INLINE_ADD    0
#define CALLBACK_ONLY 0

#define HYPERVISOR_FIRST \
	0xffff800000000000ull /* the ABI's part of the address space, for Xen and for us */
#define HYPERVISOR_LAST 0xffff87ffffffffffull
#define IMAGE_BASE	0xffff828000200000ull
#define IMAGE_BYTES	0x100000ull

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_scoreboard;
struct entry {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
};

extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id,
						  void (*cb)(uint64_t id, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *to, size_t bytes);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t bytes);
extern void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *, unsigned vcpu);
extern void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *, int op,
								struct entry, uint64_t operand);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *,
						   void (*cb)(unsigned vcpu, void *data), int flags,
						   void *data);

EXPORT int qemu_plugin_version = API_VERSION;
EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv);

enum count { USER, KERNEL, HYPERVISOR, SYSCALL, RETURN, CR3, INVLPG, NR_COUNTS };

static struct qemu_plugin_scoreboard *counts, *addresses;
static uint64_t before[NR_COUNTS], profile_before[IMAGE_BYTES];
static FILE *out, *profile;

static void add(struct qemu_plugin_insn *insn, struct qemu_plugin_scoreboard *score, size_t index)
{
	struct entry e = {score, index * sizeof(uint64_t)};

	qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, INLINE_ADD, e, 1);
}

static void window_begins(unsigned vcpu, void *data)
{
	(void)data;
	memcpy(before, qemu_plugin_scoreboard_find(counts, vcpu), sizeof(before));
	if (addresses)
		memcpy(profile_before, qemu_plugin_scoreboard_find(addresses, vcpu),
		       sizeof(profile_before));
}

static void window_ends(unsigned vcpu, void *data)
{
	const uint64_t *now = qemu_plugin_scoreboard_find(counts, vcpu), *at;

	(void)data;
	for (unsigned i = 0; i < NR_COUNTS; i++)
		fprintf(out, "%" PRIu64 " ", now[i] - before[i]);
	fprintf(out, "\n");
	fflush(out);
	if (!addresses)
		return;
	at = qemu_plugin_scoreboard_find(addresses, vcpu);
	for (size_t i = 0; i < IMAGE_BYTES; i++)
		if (at[i] != profile_before[i])
			fprintf(profile, "%" PRIx64 " %" PRIu64 "\n", (uint64_t)(IMAGE_BASE + i),
				at[i] - profile_before[i]);
	fprintf(profile, "end\n");
	fflush(profile);
}

/* nopl number(%rax,%rax) */
static void mark(struct qemu_plugin_insn *insn, const uint8_t *code, size_t bytes)
{
	static const uint8_t begin[] = {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x41, 0x50};
	static const uint8_t end[] = {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x42, 0x50};

	if (bytes == sizeof(begin) && !memcmp(code, begin, bytes))
		qemu_plugin_register_vcpu_insn_exec_cb(insn, window_begins, CALLBACK_ONLY, NULL);
	else if (bytes == sizeof(end) && !memcmp(code, end, bytes))
		qemu_plugin_register_vcpu_insn_exec_cb(insn, window_ends, CALLBACK_ONLY, NULL);
}

static void event(struct qemu_plugin_insn *insn, const uint8_t *code, size_t bytes)
{
	if (bytes && (code[0] & 0xf0) == 0x40) { /* REX */
		code++;
		bytes--;
	}
	if (bytes == 1 && code[0] == 0xcf) {
		add(insn, counts, RETURN);
		return;
	}
	if (bytes < 2 || code[0] != 0x0f)
		return;
	if (code[1] == 0x05)
		add(insn, counts, SYSCALL);
	else if (code[1] == 0x07)
		add(insn, counts, RETURN);
	else if (bytes >= 3 && code[1] == 0x22 && (code[2] >> 3 & 7) == 3)
		add(insn, counts, CR3);
	else if (bytes >= 3 && code[1] == 0x01 && (code[2] >> 3 & 7) == 7 && code[2] >> 6 != 3)
		add(insn, counts, INVLPG);
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t at = qemu_plugin_insn_vaddr(insn);
		uint8_t code[16];
		size_t bytes = qemu_plugin_insn_data(insn, code, sizeof(code));

		add(insn, counts,
		    at < HYPERVISOR_FIRST  ? USER
		    : at > HYPERVISOR_LAST ? KERNEL
					   : HYPERVISOR);
		event(insn, code, bytes);
		mark(insn, code, bytes);
		if (addresses && at - IMAGE_BASE < IMAGE_BYTES)
			add(insn, addresses, at - IMAGE_BASE);
	}
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
		else if (!strncmp(argv[i], "profile=", 8))
			profile = fopen(argv[i] + 8, "w");
	}
	if (!out) {
		fprintf(stderr, "counts: out=FILE is missing or cannot be written\n");
		return -1;
	}
	counts = qemu_plugin_scoreboard_new(NR_COUNTS * sizeof(uint64_t));
	if (profile)
		addresses = qemu_plugin_scoreboard_new(IMAGE_BYTES * sizeof(uint64_t));
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
