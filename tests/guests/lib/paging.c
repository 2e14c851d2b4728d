// SPDX-License-Identifier: MIT
#include "tests/guests/lib/guest.h"

#include <xen/sched.h>

#define POOL_PAGES 3072u
#define ENTRIES	   512u

static uint8_t pool[POOL_PAGES][PAGE_SIZE] __attribute__((aligned(4096)));
static uint8_t shared_page[PAGE_SIZE] __attribute__((aligned(4096)));
static unsigned pool_used;

uint64_t mfn_of(const void *page)
{
	return ((const uint64_t *)start_info->mfn_list)[(VA(page) - VIRT_BASE) >> PAGE_SHIFT];
}

void *page_of_mfn(uint64_t mfn)
{
	return (void *)(VIRT_BASE + (M2P[mfn] << PAGE_SHIFT));
}

uint64_t l4_mfn(void)
{
	return mfn_of((const void *)start_info->pt_base);
}

uint64_t pte(const void *page, uint64_t flags)
{
	return mfn_of(page) << PAGE_SHIFT | flags;
}

uint64_t machine_address(const void *p)
{
	return mfn_of(p) << PAGE_SHIFT | VA(p) % PAGE_SIZE;
}

unsigned pages_left(void)
{
	return POOL_PAGES - pool_used;
}

void *page_alloc(void)
{
	if (pool_used == POOL_PAGES)
		error("out of pages");
	return pool[pool_used++];
}

static unsigned index_of(uint64_t va, unsigned level)
{
	return (unsigned)(va >> (PAGE_SHIFT + 9 * (level - 1))) % ENTRIES;
}

static uint64_t *table_below(uint64_t entry)
{
	return page_of_mfn((entry & 0x000ffffffffff000ull) >> PAGE_SHIFT);
}

uint64_t *entry_at(uint64_t root_mfn, uint64_t va, unsigned level)
{
	uint64_t *table = page_of_mfn(root_mfn);

	for (unsigned at = 4; at > level; at--) {
		uint64_t e = table[index_of(va, at)];

		if (!(e & PTE_P))
			return NULL;
		table = table_below(e);
	}
	return &table[index_of(va, level)];
}

long set_entry(const uint64_t *entry, uint64_t value)
{
	struct mmu_update u = {.ptr = machine_address(entry) | MMU_NORMAL_PT_UPDATE, .val = value};

	return hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF);
}

long set_mapping(const void *va, uint64_t value)
{
	return hypercall3(__HYPERVISOR_update_va_mapping, VA(va), value, UVMF_INVLPG);
}

long mmuext(unsigned command, uint64_t arg1, uint64_t arg2)
{
	struct mmuext_op op = {.cmd = command};

	op.arg1.mfn = arg1;
	op.arg2.src_mfn = arg2;
	return hypercall4(__HYPERVISOR_mmuext_op, VA(&op), 1, 0, DOMID_SELF);
}

long protect(const void *page, bool writable)
{
	return set_mapping(page, pte(page, writable ? RW : RO));
}

void map_at(uint64_t root_mfn, uint64_t va, uint64_t value)
{
	for (unsigned level = 4; level > 1; level--) {
		uint64_t *e = entry_at(root_mfn, va, level);
		void *table;

		if (*e & PTE_P)
			continue;
		table = page_alloc();
		if (protect(table, false) || set_entry(e, pte(table, RW)))
			error("no table of level %u for %llx", level - 1, (unsigned long long)va);
	}
	if (set_entry(entry_at(root_mfn, va, 1), value))
		error("cannot map %llx at %llx", (unsigned long long)value, (unsigned long long)va);
}

void paging_init(void)
{
	shared_info = (struct shared_info *)shared_page;
	if (set_mapping(shared_page, start_info->shared_info | RW))
		guest_shutdown(SHUTDOWN_crash);
}
