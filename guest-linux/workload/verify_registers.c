// SPDX-License-Identifier: MIT
#include "verify_registers.h"

#include <asm/ldt.h>
#include <asm/prctl.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "prng.h"

_Static_assert(offsetof(struct register_image, general) == 0, "hold.S knows this");
_Static_assert(offsetof(struct register_image, x87) == 72, "hold.S knows this");
_Static_assert(offsetof(struct register_image, x87_control) == 152, "hold.S knows this");
_Static_assert(offsetof(struct register_image, mxcsr) == 156, "hold.S knows this");
_Static_assert(offsetof(struct register_image, mask) == 160, "hold.S knows this");
_Static_assert(offsetof(struct register_image, vector) == 256, "hold.S knows this");

/* Exceptions masked as the ABI wants them, but rounding, precision and flushing unlike the default. */
#define X87_CONTROL 0x0a7f
#define MXCSR	    0xbf80

#define X87_EXPONENT_ONE 0x3fff
#define SEGMENT_WORD	 0x70616775727573aaULL

int hold_registers(const struct register_image *in, struct register_image *out, uint64_t spins,
		   const struct timespec *sleep, unsigned int level);

enum vector_level registers_level(void)
{
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f"))
		return VECTOR_AVX512;
	if (__builtin_cpu_supports("avx"))
		return VECTOR_AVX;
	return VECTOR_SSE;
}

const char *registers_level_name(enum vector_level level)
{
	static const char *const names[] = {
		[VECTOR_SSE] = "sse",
		[VECTOR_AVX] = "avx",
		[VECTOR_AVX512] = "avx512",
	};

	return names[level];
}

void registers_fill(struct register_image *image, uint64_t seed, enum vector_level level)
{
	static const struct {
		unsigned int registers, bytes;
	} shape[] = {
		[VECTOR_SSE] = {16, 16},
		[VECTOR_AVX] = {16, 32},
		[VECTOR_AVX512] = {VECTOR_REGISTERS, VECTOR_BYTES},
	};
	struct prng prng = {.state = seed};
	unsigned int i, j;
	uint64_t word;

	memset(image, 0, sizeof(*image));
	for (i = 0; i < GENERAL_REGISTERS; i++)
		image->general[i] = prng_next(&prng);
	for (i = 0; i < X87_REGISTERS; i++) {
		uint16_t exponent = X87_EXPONENT_ONE;

		/* A normal number: the top bit of the fraction is set, so no load changes it. */
		word = prng_next(&prng) | 1ULL << 63;
		memcpy(image->x87[i], &word, sizeof(word));
		memcpy(image->x87[i] + sizeof(word), &exponent, sizeof(exponent));
	}
	image->x87_control = X87_CONTROL;
	image->mxcsr = MXCSR;
	for (i = 0; i < shape[level].registers; i++) {
		for (j = 0; j < shape[level].bytes; j += sizeof(word)) {
			word = prng_next(&prng);
			memcpy(image->vector[i] + j, &word, sizeof(word));
		}
	}
	if (level == VECTOR_AVX512)
		for (i = 0; i < MASK_REGISTERS; i++)
			image->mask[i] = (uint16_t)prng_next(&prng);
}

struct finding registers_compare(const struct register_image *in, const struct register_image *out)
{
	struct finding finding = {.kind = FINDING_NONE};
	const uint8_t *expected = (const uint8_t *)in, *found = (const uint8_t *)out;
	size_t i;

	if (!memcmp(expected, found, sizeof(*in)))
		return finding;
	for (i = 0; expected[i] == found[i]; i++)
		;
	i &= ~(sizeof(uint64_t) - 1);
	finding.kind = FINDING_REGISTER;
	finding.address = i;
	memcpy(&finding.expected, expected + i, sizeof(finding.expected));
	memcpy(&finding.found, found + i, sizeof(finding.found));
	return finding;
}

struct finding registers_hold(uint64_t seed, uint64_t spins, const struct timespec *sleep)
{
	enum vector_level level = registers_level();
	struct register_image in, out;

	registers_fill(&in, seed, level);
	memset(&out, 0, sizeof(out));
	hold_registers(&in, &out, spins, sleep, level);
	return registers_compare(&in, &out);
}

static uint64_t segment_read(void)
{
	uint64_t word;

	__asm__ volatile("movq %%gs:0, %0" : "=r"(word));
	return word;
}

/* There are virtual machines whose kernel writes an LDT that the processor then does not have: loading would fault. */
static bool selector_loadable(unsigned int selector)
{
	unsigned int rights = 0;
	bool there;

	__asm__ volatile("lar %2, %0" : "+r"(rights), "=@ccz"(there) : "r"(selector));
	return there;
}

int segment_set(bool ldt)
{
	uint64_t *word;
	struct user_desc desc;
	unsigned int selector;

	/* A descriptor of the LDT holds 32 bits of base. */
	word = mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (word == MAP_FAILED)
		return -errno;
	*word = SEGMENT_WORD;
	if (!ldt)
		return syscall(SYS_arch_prctl, ARCH_SET_GS, word) ? -errno : 0;

	memset(&desc, 0, sizeof(desc));
	desc.base_addr = (unsigned int)(uintptr_t)word;
	desc.limit = 0xfff;
	desc.seg_32bit = 1;
	desc.useable = 1;
	if (syscall(SYS_modify_ldt, 0x11, &desc, sizeof(desc)))
		return -errno;
	selector = desc.entry_number << 3 | 7;
	if (!selector_loadable(selector))
		return -ENOSYS;
	__asm__ volatile("movw %w0, %%gs" : : "r"(selector) : "memory");
	return 0;
}

struct finding segment_check(void)
{
	struct finding finding = {.kind = FINDING_NONE};
	uint64_t word = segment_read();

	if (word == SEGMENT_WORD)
		return finding;
	finding.kind = FINDING_REGISTER;
	finding.expected = SEGMENT_WORD;
	finding.found = word;
	return finding;
}
