/* SPDX-License-Identifier: MIT */
/*
 * See audit.h. What holds a frame: its owner, entries of tables in use (page_type.c), pins, vCPUs' tables, descriptor pages and vcpu_info, the
 * pages of FIFO event channels, pins of grants, a destruction that goes on. Whoever adds another holder adds it here.
 */
#include "vmm/mm/audit.h"

#include "vmm/domain/domain.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/grant_table.h"
#include "vmm/lib/print.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/page_type.h"

#define SAID_MOST 8u

struct count {
	uint32_t refs, types;
};

struct audit {
	struct count *of; /* each frame */
	uint64_t wrong, frames, refs;
};

static void wrong(struct audit *a, const struct frame *f, const char *what)
{
	if (a->wrong++ < SAID_MOST)
		log_error(
			"audit: frame %lx of d%d: %s; type word %lx, references %x, found %u and %u of its type",
			frame_mfn(f).v, f->owner ? f->owner->id : -1, what, f->type, f->ref,
			a->of[frame_mfn(f).v].refs, a->of[frame_mfn(f).v].types);
}

/* Somebody holds the frame; TYPE_NONE: without a type. */
static void held(struct audit *a, mfn_t m, enum page_type type)
{
	struct frame *f;

	if (mfn_eq(m, MFN_NONE))
		return;
	f = mfn_frame(m);
	a->of[m.v].refs++;
	a->refs++;
	if (type == TYPE_NONE)
		return;
	a->of[m.v].types++;
	if (type_of(f->type) != type)
		wrong(a, f, "it is used as another type");
}

static void count_table(struct audit *a, const struct frame *f)
{
	const uint64_t *table = mfn_to_ptr(frame_mfn(f));
	unsigned level = type_of(f->type) - TYPE_L1 + 1, end = PT_ENTRIES;

	if (f->type & TYPE_PARTIAL)
		end = (unsigned)((f->type & TYPE_PROGRESS_MASK) >> TYPE_PROGRESS_SHIFT);
	for (unsigned i = 0; i < end; i++) {
		mfn_t m = pte_mfn(table[i]);

		if (!(table[i] & PTE_P) || (level == 4 && i >= HV_FIRST_SLOT && i <= HV_LAST_SLOT))
			continue;
		if (level == 1 && (!mfn_valid(m) || (mfn_frame(m)->ref & REF_IO)))
			continue;
		if (!mfn_valid(m) || !mfn_frame(m)->owner ||
		    (level > 1 && mfn_frame(m)->owner != f->owner))
			wrong(a, f, "an entry has a frame that is no guest's");
		else if (level > 1)
			held(a, m, (enum page_type)(TYPE_L1 + level - 2));
		else
			held(a, m, table[i] & PTE_RW ? TYPE_WRITABLE : TYPE_NONE);
	}
}

static void count_frame(struct audit *a, const struct frame *f)
{
	bool table = type_of(f->type) >= TYPE_L1 && type_of(f->type) <= TYPE_L4;

	a->frames++;
	if (f->ref & REF_ALLOCATED)
		held(a, frame_mfn(f),
		     f->ref & REF_HYPERVISOR ? (enum page_type)type_of(f->type) : TYPE_NONE);
	if (f->type & TYPE_PARTIAL)
		held(a, frame_mfn(f), TYPE_NONE);
	if (f->type & TYPE_PINNED)
		held(a, frame_mfn(f), (enum page_type)type_of(f->type));
	if (table && (f->type & (TYPE_VALID | TYPE_PARTIAL)))
		count_table(a, f);
}

static void count_vcpu(struct audit *a, const struct vcpu *v)
{
	held(a, v->table_kernel, TYPE_L4);
	held(a, v->table_user, TYPE_L4);
	held(a, v->info_frame, TYPE_WRITABLE);
	for (unsigned i = 0; i < GDT_PAGES; i++)
		held(a, v->gdt[i], TYPE_DESC);
	for (unsigned i = 0; i < LDT_PAGES; i++)
		held(a, v->ldt[i], TYPE_DESC);
}

static void count_domain(struct audit *a, struct domain *d)
{
	uint32_t readers, writers;
	struct frame *f;
	mfn_t m;

	for (uint32_t ref = 0; grants_pins(d, ref, &m, &readers, &writers); ref++) {
		while (readers--)
			held(a, m, TYPE_NONE);
		while (writers--)
			held(a, m, TYPE_WRITABLE);
	}
	for (unsigned i = 0; i < d->nr_vcpus; i++)
		if (d->vcpu[i])
			count_vcpu(a, d->vcpu[i]);
	if (d->destroy_at)
		held(a, frame_mfn(d->destroy_at), TYPE_NONE);
	for (unsigned i = 0; events_frame(d, i, &f); i++)
		if (f)
			held(a, frame_mfn(f), TYPE_WRITABLE);
}

static void compare(struct audit *a, const struct frame *f)
{
	const struct count *c = &a->of[frame_mfn(f).v];

	if ((f->ref & REF_COUNT_MASK) != c->refs)
		wrong(a, f, "it has not as many references as holders");
	else if ((f->type & TYPE_COUNT_MASK) != c->types)
		wrong(a, f, "it has not as many typed references as users");
}

void audit_frames(void)
{
	struct audit a = {.of = heap_zalloc(frame_max * sizeof(*a.of))};

	if (!a.of) {
		log_warning("audit: there is no memory to count in");
		return;
	}
	spin_lock(&domain_list_lock);
	for (struct domain *d = domain_list; d; d = d->next)
		spin_lock(&d->page_lock);
	for (uint64_t n = 0; n < frame_max; n++)
		if (frame_table[n].owner)
			count_frame(&a, &frame_table[n]);
	for (struct domain *d = domain_list; d; d = d->next)
		count_domain(&a, d);
	for (uint64_t n = 0; n < frame_max; n++)
		if (frame_table[n].owner)
			compare(&a, &frame_table[n]);
	for (struct domain *d = domain_list; d; d = d->next)
		spin_unlock(&d->page_lock);
	spin_unlock(&domain_list_lock);
	heap_zfree(a.of, frame_max * sizeof(*a.of));
	if (a.wrong)
		log_error("audit: %lu counts are WRONG", a.wrong);
	else
		log_info("audit: %lu frames and %lu references, all counted right", a.frames,
			 a.refs);
}
