/* SPDX-License-Identifier: MIT */
/* A PV kernel's ELF file: where its parts go and what its notes say. Pure: bytes in, descriptions out. */
#pragma once

#include "vmm/lib/types.h"

#define ELF_SEGMENTS_MAX 16

struct elf_segment {
	uint64_t file_offset, file_bytes; /* inside of the file */
	uint64_t paddr, bytes; /* as the headers say; bytes >= file_bytes, the rest is zero */
};

struct elf_kernel {
	unsigned nr_segments;
	struct elf_segment segment[ELF_SEGMENTS_MAX];
	uint64_t paddr_first, paddr_last; /* of all segments; last is behind */
	/* from the notes; *_given: there was one */
	uint64_t virt_base, paddr_offset, entry, hypercall_page, init_p2m;
	bool hypercall_page_given, init_p2m_given, mod_start_pfn;
	char guest_os[32];
};

/* 0; -EINVAL with *why (a phrase for "the kernel ..."): not an ELF file for x86-64, damaged, no PV kernel. */
int elf_parse(const void *file, uint64_t bytes, struct elf_kernel *k, const char **why);
