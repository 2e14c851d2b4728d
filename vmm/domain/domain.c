/* SPDX-License-Identifier: MIT */
/* Domains: found, made, stopped, ended, and the frames that they own. */
#include "vmm/domain/domain.h"

#include <stdarg.h>

#include <xen/sched.h>

#include "vmm/cpu/policy.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/grant_table.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"
#include "vmm/platform/power.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

#define DOMID_LAST (DOMID_FIRST_RESERVED - 1u)

struct domain hypervisor_domain = {.id = DOMID_XEN};
struct domain *dom0;
struct domain *domain_list;
spinlock_t domain_list_lock = SPINLOCK_INIT;

/* ---- finding ---- */

/* Whoever has lost its last one does not come back. */
static bool take_reference(struct domain *d)
{
	uint32_t refs = READ_ONCE(d->refs);

	do {
		if (!refs)
			return false;
	} while (!__atomic_compare_exchange_n(&d->refs, &refs, refs + 1, false, __ATOMIC_SEQ_CST,
					      __ATOMIC_RELAXED));
	return true;
}

struct domain *domain_get(domid_t id)
{
	struct domain *d;

	if (id == DOMID_SELF)
		id = current->domain->id;
	spin_lock(&domain_list_lock);
	for (d = domain_list; d && d->id != id; d = d->next)
		;
	if (d && !take_reference(d))
		d = NULL;
	spin_unlock(&domain_list_lock);
	return d;
}

void domain_put(struct domain *d)
{
	if (__atomic_sub_fetch(&d->refs, 1, __ATOMIC_SEQ_CST) == 0)
		domain_unreferred(d);
}

void domain_unlist(struct domain *d)
{
	struct domain **p = &domain_list;

	spin_lock(&domain_list_lock);
	while (*p != d)
		p = &(*p)->next;
	*p = d->next;
	spin_unlock(&domain_list_lock);
}

/* ---- making ---- */

/* Into the list, and where it has no number yet with one that was not used lately. */
static int insert(struct domain *d)
{
	static domid_t last;
	bool any = d->id == DOMID_INVALID;
	struct domain **p;
	int rc = any ? -ENOMEM : -EEXIST;

	spin_lock(&domain_list_lock);
	for (unsigned tries = any ? DOMID_LAST : 1; rc && tries; tries--) {
		if (any)
			d->id = last = (domid_t)(last % DOMID_LAST + 1);
		p = &domain_list;
		while (*p && (*p)->id < d->id)
			p = &(*p)->next;
		if (*p && (*p)->id == d->id)
			continue;
		d->next = *p;
		*p = d;
		rc = 0;
	}
	spin_unlock(&domain_list_lock);
	return rc;
}

int domain_create(domid_t id, bool privileged, int grant_frames, int maptrack_frames,
		  struct domain **out)
{
	struct domain *d = heap_zalloc(sizeof(*d));
	int rc = -ENOMEM;

	if (!d)
		return rc;
	d->id = id;
	d->privileged = privileged;
	/* The creator's, which domain_destroy gives back, and that of its frames, which are never none while it has its shared page. */
	d->refs = 2;
	d->pause_count = 1;
	d->list = (struct frame_list){FRAME_NONE, FRAME_NONE};
	d->pages_max = privileged ? ~0ull >> PAGE_SHIFT : 0;
	d->tsc_khz = time_tsc_khz();
	sched_set_share(d, 256, 0);
	rc = events_create(d);
	if (rc)
		goto fail;
	rc = -ENOMEM;
	d->shared_info = heap_alloc_pages(0);
	if (!d->shared_info)
		goto fail_events;
	domain_share(d, ptr_to_mfn(d->shared_info));
	domain_update_wallclock(d);
	rc = grants_create(d, grant_frames, maptrack_frames);
	if (!rc)
		rc = insert(d);
	if (rc)
		goto fail_grants;
	*out = d;
	return 0;

fail_grants:
	/* Nobody knows it, so these are the last references to them; the domain itself is freed here. */
	__atomic_fetch_add(&d->frames, 1, __ATOMIC_SEQ_CST);
	grants_unshare(d);
	domain_unshare(d, ptr_to_mfn(d->shared_info));
	grants_free(d);
fail_events:
	events_free(d);
fail:
	heap_zfree(d, sizeof(*d));
	return rc;
}

int vcpu_create(struct domain *d, unsigned id, struct vcpu **out)
{
	static uint64_t last_tag;
	struct vcpu *v;
	int rc;

	if (id >= MAX_VCPUS || d->vcpu[id])
		return -EINVAL;
	v = heap_zalloc(sizeof(*v));
	if (!v)
		return -ENOMEM;
	v->domain = d;
	v->id = id;
	v->tag = __atomic_add_fetch(&last_tag, 1, __ATOMIC_RELAXED);
	v->table_kernel = v->table_user = v->info_frame = MFN_NONE;
	v->root_kernel = v->root_user = MFN_NONE;
	for (unsigned i = 0; i < GDT_PAGES; i++)
		v->gdt[i] = MFN_NONE;
	for (unsigned i = 0; i < LDT_PAGES; i++)
		v->ldt[i] = MFN_NONE;
	v->debugreg[6] = 0xffff0ff0;
	v->debugreg[7] = 0x400;
	v->ctrlreg[0] = 0x80050033; /* PE MP ET NE WP AM PG */
	v->down = true;
	if (!d->idle) {
		rc = fpu_vcpu_init(v);
		/* Those beyond the shared page's have theirs once they have registered one. */
		if (!rc && id >= XEN_LEGACY_MAX_VCPUS) {
			v->info_page = heap_alloc_pages(0);
			rc = v->info_page ? 0 : -ENOMEM;
		}
		if (rc) {
			fpu_vcpu_free(v);
			heap_zfree(v, sizeof(*v));
			return rc;
		}
		v->info = v->info_page ? v->info_page : &d->shared_info->vcpu_info[id];
		v->info->evtchn_upcall_mask = 1;
		sched_vcpu_init(v);
	}
	d->vcpu[id] = v;
	if (id >= d->nr_vcpus)
		d->nr_vcpus = id + 1;
	*out = v;
	return 0;
}

/* ---- stopping and ending ---- */

static void each_vcpu(struct domain *d, void (*fn)(struct vcpu *v))
{
	for (unsigned i = 0; i < d->nr_vcpus; i++)
		if (d->vcpu[i])
			fn(d->vcpu[i]);
}

static void sleep_unless_current(struct vcpu *v)
{
	if (v == current)
		vcpu_sleep(v);
	else
		vcpu_sleep_sync(v);
}

void domain_pause(struct domain *d)
{
	__atomic_fetch_add(&d->pause_count, 1, __ATOMIC_SEQ_CST);
	each_vcpu(d, sleep_unless_current);
}

void domain_unpause(struct domain *d)
{
	if (__atomic_sub_fetch(&d->pause_count, 1, __ATOMIC_SEQ_CST) == 0)
		each_vcpu(d, vcpu_wake);
}

static const char *reason_name(uint8_t reason)
{
	static const char *const name[] = {"poweroff", "reboot",   "suspend",
					   "crash",    "watchdog", "soft reset"};

	return reason < ARRAY_SIZE(name) ? name[reason] : "unknown";
}

void domain_shutdown(struct domain *d, uint8_t reason)
{
	if (d->privileged) {
		log_info("dom0 has shut down for %s", reason_name(reason));
		if (reason == SHUTDOWN_poweroff)
			machine_halt();
		if (reason == SHUTDOWN_crash)
			machine_restart_after_error();
		machine_restart();
	}
	spin_lock(&d->lock);
	if (!d->shut_down) {
		d->shut_down = true;
		d->shutdown_code = reason;
	}
	spin_unlock(&d->lock);
	each_vcpu(d, vcpu_sleep);
	send_global_virq(VIRQ_DOM_EXC);
}

void domain_crash(struct domain *d, const char *why, ...)
{
	char text[200];
	va_list args;

	va_start(args, why);
	format_string_v(text, sizeof(text), why, args);
	va_end(args);
	log_error("d%uv%u crashes: %s", d->id, current->id, text);
	dump_registers(guest_frame());
	d->crashed = true;
	domain_shutdown(d, SHUTDOWN_crash);
}

/* ---- frames ---- */

void domain_add_frame(struct domain *d, struct frame *f)
{
	f->type = 0;
	f->owner = d;
	__atomic_fetch_add(&d->frames, 1, __ATOMIC_SEQ_CST);
	spin_lock(&d->frames_lock);
	frame_append(&d->list, f);
	d->pages++;
	spin_unlock(&d->frames_lock);
	/* From here on others may take references. */
	__atomic_store_n(&f->ref, REF_ALLOCATED | 1, __ATOMIC_SEQ_CST);
}

void domain_remove_frame(struct domain *d, struct frame *f)
{
	spin_lock(&d->frames_lock);
	frame_take(&d->list, f);
	d->pages--;
	spin_unlock(&d->frames_lock);
}

void domain_share(struct domain *d, mfn_t m)
{
	struct frame *f = mfn_frame(m);

	f->owner = d;
	f->type = (uint64_t)TYPE_WRITABLE << TYPE_SHIFT | 1; /* never a table */
	__atomic_fetch_add(&d->frames, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&f->ref, REF_ALLOCATED | REF_HYPERVISOR | 1, __ATOMIC_SEQ_CST);
}

void domain_unshare(struct domain *d, mfn_t m)
{
	struct frame *f = mfn_frame(m);

	BUG_ON(f->owner != d || !(f->ref & REF_ALLOCATED));
	frame_put_type(f);
	__atomic_fetch_and(&f->ref, ~REF_ALLOCATED, __ATOMIC_SEQ_CST);
	frame_put(f);
}

void frame_release(struct frame *f)
{
	struct domain *d = f->owner;
	uint32_t flags = f->ref;

	/* The owner's reference went first (domain_drop_frame), so nobody finds it any more. */
	BUG_ON(f->type & (TYPE_COUNT_MASK | TYPE_PARTIAL));
	m2p_set(frame_mfn(f), M2P_INVALID);
	if (!(flags & REF_HYPERVISOR))
		domain_remove_frame(d, f);
	f->ref = 0;
	heap_free(frame_mfn(f), 0);
	if (__atomic_sub_fetch(&d->frames, 1, __ATOMIC_SEQ_CST) == 0)
		domain_put(d);
}

bool domain_drop_frame(struct domain *d, struct frame *f)
{
	uint32_t ref;

	if (!frame_get(f, d))
		return false;
	/* Shared with it only. */
	if (READ_ONCE(f->ref) & REF_HYPERVISOR) {
		frame_put(f);
		return false;
	}
	ref = __atomic_fetch_and(&f->ref, ~REF_ALLOCATED, __ATOMIC_SEQ_CST);
	if (ref & REF_ALLOCATED)
		frame_put(f);
	frame_put(f);
	return ref & REF_ALLOCATED;
}

bool domain_drop_unused(struct domain *d, struct frame *f)
{
	uint32_t alone = REF_ALLOCATED | 2;

	if (!frame_get(f, d))
		return false;
	/* Both at once: with one left for a moment, another vCPU could take a reference of its own and keep the frame beyond the domain's limit. */
	if (!__atomic_compare_exchange_n(&f->ref, &alone, 0, false, __ATOMIC_SEQ_CST,
					 __ATOMIC_RELAXED)) {
		frame_put(f);
		return false;
	}
	frame_release(f);
	return true;
}

bool domain_may_map_io(const struct domain *d, mfn_t m)
{
	return m.v < 1ull << (cpu_features.phys_bits - PAGE_SHIFT) &&
	       rangeset_contains(&d->io_frames, m.v, m.v);
}
