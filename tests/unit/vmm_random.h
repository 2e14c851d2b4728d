/* SPDX-License-Identifier: MIT */
/* Random operations of a guest, and of another domain and other processors in between, on the machine of vmm_frames.h. */
#ifndef TESTS_UNIT_VMM_RANDOM_H
#define TESTS_UNIT_VMM_RANDOM_H

#include "tests/unit/vmm_frames.h"

/* Entries that the random tests use: around where work is interrupted, and the hypervisor's. */
static const uint16_t few_spots[] = {0,	  1,   2,   62,	 63,  64,  65,	127, 128,
				     191, 255, 256, 271, 272, 320, 448, 511};

#define ACTIVE 44u /* frames of the guest that take part */

static uint64_t seed;

static unsigned below(unsigned n)
{
	return (unsigned)unit_below(&seed, n);
}

/* What a frame is mostly used as, so that many tables are legal. */
static unsigned favourite(unsigned n)
{
	static const uint8_t level[11] = {4, 3, 3, 2, 2, 1, 1, 1, 0, 0, 0};

	return level[n % 11];
}

static unsigned some_frame(unsigned level)
{
	for (unsigned tries = 0; tries < 20; tries++) {
		unsigned n = GUEST + below(ACTIVE);

		if (favourite(n) == level)
			return n;
	}
	return GUEST;
}

static uint64_t some_entry(unsigned level)
{
	static const uint64_t odd[] = {PTE_PSE, PTE_PWT, PTE_PCD, PTE_G, PTE_AVAIL, PTE_NX};
	uint64_t flags = P, m;

	if (below(4) == 0)
		return below(2) ? 0 : unit_random(&seed) & ~PTE_P;
	if (below(40) == 0)
		m = below(2) ? GUEST + below(ACTIVE) : OTHER - 2 + below(30);
	else if (level > 1)
		m = some_frame(level - 1);
	else
		m = below(3) ? some_frame(0) : GUEST + below(ACTIVE); /* tables, to read */
	if (level == 1 && below(40) == 0)
		m = IO_FAR + below(3);
	if (level == 1 ? favourite((unsigned)m) == 0 || below(40) == 0 : below(2))
		flags |= PTE_RW;
	if (below(3) == 0)
		flags |= PTE_A;
	if (below(30) == 0)
		flags |= odd[below(level == 1 || below(4) ? ARRAY_SIZE(odd) : 3)];
	return entry(m, flags);
}

static uint64_t entry_of_frame(unsigned n)
{
	unsigned level = favourite(n);

	return some_entry(level ? level : 1);
}

static unsigned some_spot(void)
{
	return spots[below(nr_spots)];
}

/* The model: what each frame is used as, and whether a use would be legal, found from scratch and with no state but that. */
static bool model_use(uint8_t *use, uint64_t m, unsigned type);

static bool model_entry(uint8_t *use, uint64_t e, unsigned level, const struct domain *owner,
			const struct domain *subject)
{
	uint64_t m = pte_mfn(e).v;

	if (!(e & PTE_P))
		return true;
	if (level > 1) {
		if ((e & (PTE_PSE | PTE_PWT | PTE_PCD)) || test_is_io(m) ||
		    frames[m].owner != owner || !(frames[m].ref & REF_COUNT_MASK))
			return false;
		return model_use(use, m, level - 1);
	}
	if (test_is_io(m))
		return domain_may_map_io(owner, MFN(m));
	if (frames[m].owner != subject || !(frames[m].ref & REF_COUNT_MASK) ||
	    (!owner->privileged && (e & (PTE_PAT | PTE_PWT | PTE_PCD))))
		return false;
	return !(e & PTE_RW) || model_use(use, m, TYPE_WRITABLE);
}

static bool model_use(uint8_t *use, uint64_t m, unsigned type)
{
	if (use[m])
		return use[m] == type;
	use[m] = (uint8_t)type;
	for (unsigned k = 0; is_table(type) && k < nr_spots; k++)
		if (guest_slot(type, spots[k]) &&
		    !model_entry(use, memory[m][spots[k]], type, frames[m].owner, frames[m].owner))
			return false;
	return true;
}

/* False: tables are PARTIAL, so the order decides. */
static bool model_begin(uint8_t *use)
{
	recount(true);
	for (unsigned n = 0; n < FRAMES; n++) {
		use[n] = 0;
		if (frames[n].type & TYPE_PARTIAL)
			return false;
		for (unsigned t = TYPE_L1; t <= TYPE_WRITABLE; t++)
			if (held[n].types[t])
				use[n] = (uint8_t)t;
	}
	return true;
}

/* The other CPU, at any moment inside an operation of the guest's: it flushes, walks, maps the guest's frames and lets them go. */
static inline void others_meanwhile(void)
{
	unsigned n;

	audit_safety();
	switch (below(16)) {
	case 0:
		flush_cpu(below(CPUS));
		break;
	case 1:
		fill_tlb(below(CPUS));
		break;
	case 2:
		n = GUEST + below(ACTIVE);
		if (frames[n].type & TYPE_BUSY || spin_is_locked(&other.page_lock) ||
		    spin_is_locked(&guest.shadow_lock))
			break;
		if (used_as_table(frames[OTHER].type) && !page_lock(&other)) {
			(void)pt_update(at(OTHER), 1, some_spot(),
					below(3) ? entry(n, below(2) ? RW : P) : 0, false, &guest);
			page_unlock(&other);
		}
		break;
	default:
		break;
	}
}

/* Until done, or abandoned halfway. */
#define RANDOMLY(op)                                   \
	({                                             \
		int r_;                                \
                                                       \
		do {                                   \
			r_ = page_lock(&guest);        \
			if (!r_) {                     \
				r_ = (op);             \
				page_unlock(&guest);   \
			}                              \
			if (below(4) == 0)             \
				audit();               \
		} while (r_ == -ERESTART && below(8)); \
		r_;                                    \
	})

#define AGREES(rc, legal, known)                                                              \
	do {                                                                                  \
		if ((known) && (rc) != -ERESTART && ((rc) == 0) != (legal))                   \
			unit_fail(__FILE__, __LINE__, "the model says %d, it is %d", (legal), \
				  (rc));                                                      \
	} while (0)

static unsigned outcomes[2][8];

static void random_update(bool exact)
{
	unsigned n = GUEST + below(ACTIVE), level = level_of(type_of(frames[n].type)), i;
	uint64_t word = frames[n].type, e, old;
	uint8_t use[FRAMES];
	bool legal, known;
	int rc;

	if (!used_as_table(word))
		return;
	i = some_spot();
	e = some_entry(level);
	if (below(4) == 0) /* other rights for the same */
		e = memory[n][i] ^ (below(2) ? PTE_RW : PTE_P);
	old = memory[n][i];
	if (exact && below(4) == 0)
		old ^= PTE_A;
	known = model_begin(use) && !meanwhile;
	legal = guest_slot(level, i) && model_entry(use, e, level, &guest, &guest) &&
		old == memory[n][i];
	if (!frame_get(at(n), &guest))
		return;
	held_by_test[n]++;
	if (exact)
		rc = RANDOMLY(used_as_table(frames[n].type) &&
					      level_of(type_of(frames[n].type)) == level
				      ? pt_compare_exchange(at(n), level, i, old, e)
				      : -EINVAL);
	else
		rc = RANDOMLY(used_as_table(frames[n].type) &&
					      level_of(type_of(frames[n].type)) == level
				      ? pt_update_any(at(n), level, i, e, below(2), &guest)
				      : -EINVAL);
	held_by_test[n]--;
	frame_put(at(n));
	AGREES(rc, legal, known);
	outcomes[rc == 0][level]++;
}

static void random_pin(void)
{
	unsigned n = GUEST + below(ACTIVE), level = favourite(n);
	uint8_t use[FRAMES];
	bool legal, known;
	int rc;

	if (!level || below(10) == 0)
		level = 1 + below(4);
	if (!frame_get(at(n), &guest))
		return;
	held_by_test[n]++;
	known = model_begin(use) && !meanwhile;
	legal = model_use(use, n, level) && !(frames[n].type & TYPE_PINNED);
	rc = RANDOMLY(frame_pin(at(n), table_type(level)));
	held_by_test[n]--;
	frame_put(at(n));
	AGREES(rc, legal, known);
	outcomes[rc == 0][level]++;
}

static void random_write(void)
{
	unsigned n = GUEST + below(ACTIVE);

	if (!frames[n].owner || !frame_get(at(n), &guest))
		return;
	if (!frame_get_type(at(n), TYPE_WRITABLE)) {
		for (unsigned k = 0; k < 3; k++)
			memory[n][some_spot()] = entry_of_frame(n);
		shadow_mark(&guest, MFN(n));
		frame_put_type(at(n));
		outcomes[1][0]++;
	}
	frame_put(at(n));
}

static int get_and_unlock(unsigned n, enum page_type type)
{
	int rc = frame_get_both(at(n), &guest, type);

	page_unlock(&guest);
	return rc;
}

static void random_hold(void)
{
	unsigned n = GUEST + below(ACTIVE);
	enum page_type type = below(2) ? TYPE_WRITABLE : table_type(1 + below(4));
	int rc;

	if (below(10) == 0)
		type = TYPE_DESC;
	if (!typed_by_test[n]) {
		do {
			rc = page_lock(&guest);
			if (!rc)
				rc = get_and_unlock(n, type);
		} while (rc == -ERESTART && below(8));
		typed_by_test[n] += !rc;
		return;
	}
	if (page_lock(&guest))
		return;
	typed_by_test[n]--;
	frame_put_both(at(n));
	page_unlock(&guest);
}

static void random_unpin(void)
{
	unsigned n = GUEST + below(ACTIVE);

	if (frame_get(at(n), &guest)) {
		held_by_test[n]++;
		(void)RANDOMLY(frame_unpin(at(n)));
		held_by_test[n]--;
		frame_put(at(n));
	}
}

/* The guest gives a frame back; a free one is given out again, which no TLB knows then. */
static void random_owner(void)
{
	unsigned n = GUEST + below(ACTIVE);

	if (frames[n].owner && below(4) == 0)
		take_back(n);
	for (n = GUEST; n < GUEST + ACTIVE; n++)
		if (!frames[n].owner) {
			flush_behind(NULL, frames[n].clock);
			for (unsigned c = 0; c < CPUS; c++)
				CHECK(!cpu[c].knows[n]);
			memset(memory[n], 0, PAGE_SIZE);
			give(n, &guest);
			shadow_mark(&guest, MFN(n));
		}
}

/* The processor walks a table and marks what it used. */
static void random_marks(void)
{
	unsigned n = GUEST + below(ACTIVE), i = some_spot();

	if (!guest.shadow && used_as_table(frames[n].type) && (memory[n][i] & PTE_P) &&
	    guest_slot(level_of(type_of(frames[n].type)), i))
		memory[n][i] |= PTE_A;
	fill_tlb(below(CPUS));
	if (below(4) == 0)
		flush_cpu(below(CPUS));
}

static inline void random_begin(void)
{
	begin();
	spots = few_spots;
	nr_spots = ARRAY_SIZE(few_spots);
	for (unsigned n = GUEST; n < GUEST + ACTIVE; n++)
		for (unsigned k = 0; k < 4; k++)
			memory[n][some_spot()] = entry_of_frame(n);
	(void)LOCKED(&other, frame_pin(at(OTHER), TYPE_L1));
}

static inline void random_operation(void)
{
	switch (below(12)) {
	case 0:
		random_pin();
		break;
	case 1:
		random_unpin();
		break;
	case 2:
		random_hold();
		break;
	case 3:
		random_owner();
		break;
	case 4:
		random_marks();
		break;
	case 5:
		random_update(true);
		break;
	case 6:
	case 7:
		random_write();
		break;
	default:
		random_update(false);
	}
}

#endif
