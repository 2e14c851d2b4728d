// SPDX-License-Identifier: MIT
/* Operations on page tables at random, legal and not, on a few pages that all vCPUs share. */
#include "tests/guests/lib/guest.h"

#define STORM_PAGES 24u
#define STORM_VA    0x50000000000ull
#define STORM_SLOTS 32u
#define IMAGE_MFN   0x200ull /* the hypervisor's */

static uint64_t *pages[STORM_PAGES];
/* Places at which checking may be interrupted, ends, and the hypervisor's slots. */
static const uint16_t spots[] = {0, 1, 5, 63, 64, 128, 255, 256, 260, 271, 272, 511};

uint64_t storm_noise(struct storm *s)
{
	/* xorshift64*: any seed but 0 */
	s->random ^= s->random >> 12;
	s->random ^= s->random << 25;
	s->random ^= s->random >> 27;
	return s->random * 0x2545f4914f6cdd1dull;
}

static uint64_t below(struct storm *s, uint64_t n)
{
	return (storm_noise(s) >> 16) % n;
}

void storm_init(void)
{
	if (pages[0])
		return;
	for (unsigned i = 0; i < STORM_PAGES; i++)
		pages[i] = page_alloc();
	map_at(l4_mfn(), STORM_VA, 0);
}

static uint64_t *some_page(struct storm *s)
{
	/* Mostly the same few, so that they meet. */
	return pages[below(s, below(s, 2) ? 6 : STORM_PAGES)];
}

static uint64_t some_entry(struct storm *s)
{
	static const uint64_t flags[] = {
		RW,	   RW,		RW,	     RO,	PTE_P, RW | PTE_PS, PTE_P | PTE_W,
		RW | 0x18, RW | PTE_NX, RW & ~PTE_A, RW | 0xf00};
	uint64_t f = flags[below(s, ARRAY_SIZE(flags))];

	switch (below(s, 8)) {
	case 0:
		return 0;
	case 1:
		return IMAGE_MFN << PAGE_SHIFT | f;
	case 2:
		return storm_noise(s) & ~PTE_P;
	default:
		return pte(some_page(s), f);
	}
}

static long update(uint64_t ptr, uint64_t value)
{
	struct mmu_update u = {.ptr = ptr, .val = value};

	return hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF);
}

static uint64_t some_place(struct storm *s)
{
	return machine_address(some_page(s) + spots[below(s, ARRAY_SIZE(spots))]);
}

static long one(struct storm *s)
{
	uint64_t *p = some_page(s), frame = mfn_of(p),
		 slot = STORM_VA + below(s, STORM_SLOTS) * PAGE_SIZE;

	switch (below(s, 16)) {
	case 0:
	case 1:
		return protect(p, below(s, 2));
	case 2:
	case 3:
	case 4:
		return mmuext(MMUEXT_PIN_L1_TABLE + (unsigned)below(s, 4), frame, 0);
	case 5:
	case 6:
		return mmuext(MMUEXT_UNPIN_TABLE, frame, 0);
	case 7:
	case 8:
	case 9:
		return update(some_place(s) + (below(s, 4) ? 0 : MMU_PT_UPDATE_PRESERVE_AD),
			      some_entry(s));
	case 10:
		return hypercall3(__HYPERVISOR_update_va_mapping, slot, some_entry(s), below(s, 3));
	case 11:
		return mmuext(MMUEXT_NEW_USER_BASEPTR, below(s, 2) ? frame : 0, 0);
	case 12:
		return mmuext(MMUEXT_COPY_PAGE, frame, mfn_of(some_page(s)));
	case 13:
		return mmuext(MMUEXT_CLEAR_PAGE, frame, 0);
	case 14:
		return hypercall2(__HYPERVISOR_set_gdt, VA(&frame), below(s, 2) * 512);
	default:
		p[spots[below(s, ARRAY_SIZE(spots))]] = some_entry(s);
		return 0;
	}
}

void storm_step(struct storm *s)
{
	for (unsigned i = 0; i < 64; i++) {
		s->made++;
		if (one(s) == 0)
			s->fine++;
	}
}

void storm_let_go(void)
{
	mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0);
	hypercall2(__HYPERVISOR_set_gdt, 0, 0);
}

void storm_end(void)
{
	storm_let_go();
	for (unsigned i = 0; i < STORM_SLOTS; i++)
		CHECK_EQ("unmap", set_mapping((void *)(STORM_VA + i * PAGE_SIZE), 0), 0);
	for (unsigned i = 0; i < STORM_PAGES; i++)
		mmuext(MMUEXT_UNPIN_TABLE, mfn_of(pages[i]), 0);
	for (unsigned i = 0; i < STORM_PAGES; i++) {
		CHECK_EQ("a page that nothing uses, writable again", protect(pages[i], true), 0);
		memset(pages[i], 0, PAGE_SIZE);
	}
}
