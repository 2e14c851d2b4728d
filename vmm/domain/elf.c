/* SPDX-License-Identifier: MIT */
/* See elf.h. The formats: System V ABI chapters 4 and 5, xen/elfnote.h. Everything in the file is hostile. */
#include "vmm/domain/elf.h"

#include <elf.h>

#include "vmm/lib/xen.h"

#include <xen/elfnote.h>

#include "vmm/lib/errno.h"
#include "vmm/lib/string.h"

#define NOTE_NAME "Xen"

static bool inside(uint64_t offset, uint64_t length, uint64_t bytes)
{
	return offset <= bytes && length <= bytes - offset;
}

/* A note's value as a number: 4 or 8 bytes. */
static uint64_t number(const uint8_t *data, uint32_t bytes)
{
	uint64_t v = 0;

	memcpy(&v, data, MIN(bytes, sizeof(v)));
	return v;
}

static void text(char *out, size_t size, const uint8_t *data, uint32_t bytes)
{
	size_t n = MIN(bytes, size - 1);

	memcpy(out, data, n);
	out[n] = '\0';
}

static void take_note(struct elf_kernel *k, uint32_t type, const uint8_t *data, uint32_t bytes)
{
	switch (type) {
	case XEN_ELFNOTE_ENTRY:
		k->entry = number(data, bytes);
		break;
	case XEN_ELFNOTE_HYPERCALL_PAGE:
		k->hypercall_page = number(data, bytes);
		k->hypercall_page_given = true;
		break;
	case XEN_ELFNOTE_VIRT_BASE:
		k->virt_base = number(data, bytes);
		break;
	case XEN_ELFNOTE_PADDR_OFFSET:
		k->paddr_offset = number(data, bytes);
		break;
	case XEN_ELFNOTE_INIT_P2M:
		k->init_p2m = number(data, bytes);
		k->init_p2m_given = true;
		break;
	case XEN_ELFNOTE_MOD_START_PFN:
		k->mod_start_pfn = number(data, bytes) != 0;
		break;
	case XEN_ELFNOTE_GUEST_OS:
		text(k->guest_os, sizeof(k->guest_os), data, bytes);
		break;
	default:
		break;
	}
}

/* Notes of other owners are skipped; damaged ones end the list. True: some were ours. */
static bool take_notes(struct elf_kernel *k, const uint8_t *notes, uint64_t bytes)
{
	bool ours = false;

	while (bytes >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr h;
		uint64_t name, data;

		memcpy(&h, notes, sizeof(h));
		name = sizeof(h);
		data = name + ROUND_UP((uint64_t)h.n_namesz, 4);
		if (!inside(data, ROUND_UP((uint64_t)h.n_descsz, 4), bytes) || data > bytes)
			break;
		if (h.n_namesz == sizeof(NOTE_NAME) &&
		    !memcmp(notes + name, NOTE_NAME, sizeof(NOTE_NAME))) {
			take_note(k, h.n_type, notes + data, h.n_descsz);
			ours = true;
		}
		data += ROUND_UP((uint64_t)h.n_descsz, 4);
		notes += data;
		bytes -= data;
	}
	return ours;
}

static int take_segment(struct elf_kernel *k, const Elf64_Phdr *p, uint64_t bytes, const char **why)
{
	*why = "has a segment that lies outside of the file";
	if (!inside(p->p_offset, p->p_filesz, bytes))
		return -EINVAL;
	*why = "has a segment with more in the file than in memory, or beyond all addresses";
	if (p->p_filesz > p->p_memsz || p->p_paddr + p->p_memsz < p->p_paddr)
		return -EINVAL;
	*why = "has too many segments";
	if (k->nr_segments == ELF_SEGMENTS_MAX)
		return -EINVAL;
	k->segment[k->nr_segments++] = (struct elf_segment){.file_offset = p->p_offset,
							    .file_bytes = p->p_filesz,
							    .paddr = p->p_paddr,
							    .bytes = p->p_memsz};
	k->paddr_first = MIN(k->paddr_first, p->p_paddr);
	k->paddr_last = MAX(k->paddr_last, p->p_paddr + p->p_memsz);
	return 0;
}

int elf_parse(const void *file, uint64_t bytes, struct elf_kernel *k, const char **why)
{
	const uint8_t *base = file;
	Elf64_Ehdr h;
	bool notes = false;

	memset(k, 0, sizeof(*k));
	k->paddr_first = ~0ull;
	*why = "is too short for an ELF file";
	if (bytes < sizeof(h))
		return -EINVAL;
	memcpy(&h, file, sizeof(h));
	*why = "is no ELF file";
	if (memcmp(h.e_ident, ELFMAG, SELFMAG) != 0) {
		if (bytes > 0x206 && !memcmp(base + 0x202, "HdrS", 4))
			*why = "is compressed (bzImage); load the unpacked copy /boot/pagurus/vmlinux-VERSION, which update-grub makes";
		return -EINVAL;
	}
	*why = "is not for x86-64";
	if (h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_ident[EI_DATA] != ELFDATA2LSB ||
	    h.e_machine != EM_X86_64)
		return -EINVAL;
	*why = "has damaged program headers";
	if (h.e_phentsize != sizeof(Elf64_Phdr) || h.e_phnum > 128 ||
	    !inside(h.e_phoff, (uint64_t)h.e_phnum * sizeof(Elf64_Phdr), bytes))
		return -EINVAL;
	for (unsigned i = 0; i < h.e_phnum; i++) {
		Elf64_Phdr p;

		memcpy(&p, base + h.e_phoff + i * sizeof(p), sizeof(p));
		if (p.p_type == PT_LOAD && p.p_memsz && take_segment(k, &p, bytes, why))
			return -EINVAL;
		if (p.p_type == PT_NOTE && inside(p.p_offset, p.p_filesz, bytes))
			notes |= take_notes(k, base + p.p_offset, p.p_filesz);
	}
	*why = "has nothing to load";
	if (!k->nr_segments)
		return -EINVAL;
	*why = "is no paravirtualised kernel: it has no Xen notes; use one with CONFIG_XEN_PV and CONFIG_XEN_DOM0, as Debian's linux-image-amd64 is";
	if (!notes || !k->entry)
		return -EINVAL;
	*why = "is bigger than what can be";
	if (k->paddr_last - k->paddr_first > 1ull << 30)
		return -EINVAL;
	*why = NULL;
	return 0;
}
