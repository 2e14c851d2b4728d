/* SPDX-License-Identifier: MIT */
/*
 * The end of a domain, invariant 8: every frame that it had is given back, and it is freed when nobody refers to it or to a frame of it any more.
 *
 *   dying       set under domain.lock; from here it gets no frames, ports, pins or grants, and none of its vCPUs runs
 *   stages      domain_destroy(), begun again when it is interrupted: `destroy` says where it is
 *   unreferred  a domain has one reference for as long as it owns frames (frame_release), so one of which another domain has something mapped stays until
 *               that lets go. The last reference hands it to the reaper, a timer, for it can go anywhere, whatever locks are held
 *   reaped      off the list, memory freed
 *
 * Frames go in two rounds over its list: first what they hold as page tables is given up, which lets go of what the tables map; then each loses
 * its owner's reference. Each round keeps a reference to the frame where it is, for frames that the guest itself had given
 * back leave the list at any moment.
 */
#include "vmm/domain/domain.h"

#include "vmm/cpu/desc.h"
#include "vmm/cpu/policy.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/grant_table.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/hypercall/sched_op.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/xen.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"
#include "vmm/sched/sched.h"

#define FRAMES_AT_ONCE 64u

enum stage { STOP, VCPUS, TABLES, GRANTS, FRAMES, SHARED, GONE };

/* ---- the list of frames ---- */

/* The frame behind f, which is held and let go, or the first; held. NULL: there is none. */
static struct frame *next_frame(struct domain *d, struct frame *f)
{
	struct frame *next = NULL;
	uint32_t n;

	spin_lock(&d->frames_lock);
	n = f ? f->next : d->list.first;
	while (n != FRAME_NONE && !next) {
		/* One without references is on its way off the list. */
		if (frame_get(&frame_table[n], d))
			next = &frame_table[n];
		n = frame_table[n].next;
	}
	spin_unlock(&d->frames_lock);
	if (f)
		frame_put(f);
	return next;
}

static int give_up_table(struct domain *d, struct frame *f)
{
	int rc = page_lock(d);

	if (!rc) {
		rc = frame_relinquish(f);
		page_unlock(d);
	}
	return rc;
}

static int drop(struct domain *d, struct frame *f)
{
	domain_drop_frame(d, f);
	return 0;
}

/* Do it to every frame. -ERESTART: go on with d->destroy_at. */
static int each_frame(struct domain *d, int (*fn)(struct domain *d, struct frame *f))
{
	unsigned n = 0;

	if (!d->destroy_at)
		d->destroy_at = next_frame(d, NULL);
	while (d->destroy_at) {
		int rc = fn(d, d->destroy_at);

		if (rc)
			return rc;
		d->destroy_at = next_frame(d, d->destroy_at);
		if (++n % FRAMES_AT_ONCE == 0 && hypercall_preempt_check())
			return -ERESTART;
	}
	return 0;
}

/* ---- vCPUs ---- */

/* Everything that a vCPU holds of the domain's frames. */
static int vcpu_let_go(struct vcpu *v)
{
	int rc = page_lock(v->domain);

	if (rc)
		return rc;
	for (unsigned i = 0; i < GDT_PAGES; i++)
		vcpu_put_table(&v->gdt[i]);
	desc_ldt_drop(v);
	vcpu_put_table(&v->table_user);
	if (!page_lock_again(v->domain))
		vcpu_put_table(&v->table_kernel);
	rc = mfn_eq(v->table_kernel, MFN_NONE) ? 0 : -ERESTART;
	page_unlock(v->domain);
	/* Nobody sends it events any more; whoever looks finds the page it had at first. */
	if (!rc && !mfn_eq(v->info_frame, MFN_NONE)) {
		v->info = v->info_page ? v->info_page : &v->domain->shared_info->vcpu_info[0];
		vcpu_put_table(&v->info_frame);
	}
	return rc;
}

static int vcpus_let_go(struct domain *d)
{
	for (unsigned i = 0; i < d->nr_vcpus; i++) {
		int rc = d->vcpu[i] ? vcpu_let_go(d->vcpu[i]) : 0;

		if (rc)
			return rc;
	}
	return 0;
}

static void vcpu_free(struct vcpu *v)
{
	fpu_vcpu_free(v);
	heap_free_pages(v->info_page, 0);
	v->domain->vcpu[v->id] = NULL;
	heap_zfree(v, sizeof(*v));
}

/* What takes the place of a dead domain's shared page, for the clock and debug keys, which do not ask. */
static _Alignas(PAGE_SIZE) char nobodys[PAGE_SIZE];

static void unshare(struct domain *d)
{
	mfn_t m = ptr_to_mfn(d->shared_info);
	struct shared_info *s = (struct shared_info *)(void *)nobodys;

	_Static_assert(sizeof(*s) <= sizeof(nobodys), "it is a page of its own");
	for (unsigned i = 0; i < d->nr_vcpus; i++) {
		if (d->vcpu[i] && !d->vcpu[i]->info_page)
			WRITE_ONCE(d->vcpu[i]->info, &s->vcpu_info[0]);
	}
	domain_replace_shared_info(d, s);
	domain_unshare(d, m);
	grants_unshare(d);
}

/* ---- destruction ---- */

int domain_destroy(struct domain *d)
{
	int rc = 0;

	spin_lock(&d->lock);
	if (!d->dying) {
		d->dying = true;
		d->destroy = STOP;
	}
	spin_unlock(&d->lock);
	while (!rc && d->destroy != GONE) {
		switch ((enum stage)d->destroy) {
		case STOP:
			domain_pause(d);
			shadow_disable(d);
			/* Here and not when it is freed: timers cannot be ended from a timer. */
			watchdogs_kill(d);
			for (unsigned i = 0; i < d->nr_vcpus; i++) {
				if (d->vcpu[i])
					vcpu_timers_kill(d->vcpu[i]);
			}
			events_destroy(d);
			break;
		case VCPUS:
			rc = vcpus_let_go(d);
			break;
		case TABLES:
			rc = each_frame(d, give_up_table);
			break;
		case GRANTS:
			rc = grants_release_mappings(d);
			break;
		case FRAMES:
			rc = each_frame(d, drop);
			break;
		default:
			unshare(d);
			domain_put(d); /* the creator's */
			send_global_virq(VIRQ_DOM_EXC);
		}
		if (!rc)
			d->destroy++;
	}
	return rc;
}

/* ---- reaping ---- */

static struct domain *dead;
static struct timer reaper;

static void reap(void *unused)
{
	struct domain *d = __atomic_exchange_n(&dead, NULL, __ATOMIC_SEQ_CST);

	(void)unused;
	while (d) {
		struct domain *next = d->dead_next;

		domain_unlist(d);
		for (unsigned i = 0; i < d->nr_vcpus; i++) {
			if (d->vcpu[i])
				vcpu_free(d->vcpu[i]);
		}
		events_free(d);
		grants_free(d);
		heap_zfree(d, sizeof(*d));
		send_global_virq(VIRQ_DOM_EXC);
		d = next;
	}
}

void domain_unreferred(struct domain *d)
{
	BUG_ON(!d->dying);
	d->dead_next = __atomic_load_n(&dead, __ATOMIC_SEQ_CST);
	while (!__atomic_compare_exchange_n(&dead, &d->dead_next, d, false, __ATOMIC_SEQ_CST,
					    __ATOMIC_SEQ_CST))
		;
	timer_set(&reaper, 0);
}

void domain_reaper_init(void)
{
	timer_init(&reaper, reap, NULL, 0);
}
