// SPDX-License-Identifier: MIT
/*
 * What a boot loader hands over: multiboot information of both versions, the command line, and a kernel.
 *
 * The first byte chooses. Information ends at 4 GiB, where nothing can be read any more; a kernel is in a heap block of its own. Asserted:
 * what is taken over is within its bounds, sorted and terminated; a kernel that is accepted lies inside of its file.
 */
#define VMM_HOSTED
#define __XEN_TOOLS__		// the interface of the headers, not the oldest
#include "vmm/boot/multiboot.c" /* NOLINT(bugprone-suspicious-include) */
#include "vmm/boot/options.c"	/* NOLINT(bugprone-suspicious-include) */

#undef NOTE_NAME
#include "vmm/domain/elf.c" /* NOLINT(bugprone-suspicious-include) */

#include <stdlib.h>
#include <sys/mman.h>

#include "tests/unit/vmm_log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INFO_MAX 0x10000u

char *direct_base;

static void must(bool condition)
{
	if (!condition)
		abort();
}

static bool terminated(const char *text, size_t size)
{
	return strnlen(text, size) < size;
}

static void check_boot_info(int rc)
{
	const struct boot_info *b = &boot_info;

	must(terminated(b->loader, sizeof(b->loader)));
	must(terminated(b->command_line, sizeof(b->command_line)));
	must(b->nr_modules <= BOOT_MODULES_MAX && b->nr_ranges <= BOOT_RANGES_MAX);
	must(b->rsdp_bytes <= RSDP_BYTES_2);
	for (unsigned i = 0; i < b->nr_modules; i++) {
		must(terminated(b->module[i].command, sizeof(b->module[i].command)));
		must(b->module[i].start + b->module[i].bytes <= LOADER_END);
	}
	for (unsigned i = 0; i < b->nr_ranges; i++) {
		must(b->range[i].start < b->range[i].end);
		must(b->range[i].type >= RANGE_RAM && b->range[i].type <= RANGE_BAD);
		must(!i || b->range[i - 1].end <= b->range[i].start);
	}
	/* A refusal says why. */
	must(rc == 0 ? b->nr_ranges > 0 : rc == -EINVAL && logged[0]);
}

static void fuzz_information(uint32_t magic, const uint8_t *data, size_t size)
{
	char *at;

	if (!direct_base) {
		direct_base = mmap(NULL, LOADER_END + PAGE_SIZE, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		must(direct_base != MAP_FAILED &&
		     !mprotect(direct_base, LOADER_END, PROT_READ | PROT_WRITE));
	}
	size = MIN(size, INFO_MAX) & ~7ul;
	if (!size)
		return;
	at = direct_base + LOADER_END - size;
	memcpy(at, data, size);
	check_boot_info(multiboot_parse(magic, (uint32_t)(LOADER_END - size)));
	memset(at, 0, size);
}

static void fuzz_options(const uint8_t *data, size_t size)
{
	char *line = calloc(size + 1, 1);

	must(line);
	memcpy(line, data, size);
	options_parse(line);
	free(line);
	must(terminated(boot_options.console, sizeof(boot_options.console)));
	must(terminated(boot_options.com[0], sizeof(boot_options.com[0])));
	must(terminated(boot_options.com[1], sizeof(boot_options.com[1])));
	must(boot_options.maxcpus <= COUNT_MAX);
	must(boot_options.dom0_vcpus_min <= boot_options.dom0_vcpus_max);
	must(boot_options.dom0_vcpus_max && boot_options.dom0_vcpus_max <= COUNT_MAX);
	must(log_console_level <= LOG_DEBUG);
}

static void fuzz_kernel(const uint8_t *data, size_t size)
{
	uint8_t *file = malloc(size ? size : 1);
	struct elf_kernel k;
	const char *why;
	int rc;

	must(file);
	memcpy(file, data, size);
	rc = elf_parse(file, size, &k, &why);
	free(file);
	if (rc) {
		must(rc == -EINVAL && why && *why);
		return;
	}
	must(k.nr_segments && k.nr_segments <= ELF_SEGMENTS_MAX && k.entry);
	must(terminated(k.guest_os, sizeof(k.guest_os)));
	for (unsigned i = 0; i < k.nr_segments; i++) {
		const struct elf_segment *s = &k.segment[i];

		must(s->file_bytes <= s->bytes && s->file_bytes <= size);
		must(s->file_offset <= size - s->file_bytes);
		must(s->paddr >= k.paddr_first && s->paddr + s->bytes <= k.paddr_last);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	logged[0] = 0;
	switch (data[0] & 3) {
	case 0:
		fuzz_information(MAGIC1, data + 1, size - 1);
		break;
	case 1:
		fuzz_information(MAGIC2, data + 1, size - 1);
		break;
	case 2:
		fuzz_options(data + 1, size - 1);
		break;
	default:
		fuzz_kernel(data + 1, size - 1);
	}
	return 0;
}
