/* SPDX-License-Identifier: MIT */
/*
 * Domains and their vCPUs.
 *
 * A domain is found by its number under a reference count (domain_get) and freed when its last reference has gone and domain_relinquish has
 * given up all that it had. A vCPU lives as long as its domain.
 */
#pragma once

#include "vmm/lib/xen.h"
#include <xen/vcpu.h>

#include "vmm/cpu/pcpu.h"
#include "vmm/lib/bitmap.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/list.h"
#include "vmm/lib/lock.h"
#include "vmm/lib/rangeset.h"
#include "vmm/lib/types.h"
#include "vmm/mm/frame.h"
#include "vmm/sched/timer.h"

#define MAX_VCPUS	 64 /* of a domain */
#define GDT_PAGES	 14 /* a guest's; the others of the window are the hypervisor's */
#define LDT_PAGES	 16
#define NR_IRQS		 1024 /* pirqs: GSIs first */
#define NR_FEATURE_WORDS 19
/* Writes to page tables are emulated for all; but a guest that goes to another hypervisor must have asked for that. */
#define VM_ASSIST_KNOWN                                                               \
	(1ull << VMASST_TYPE_4gb_segments | 1ull << VMASST_TYPE_4gb_segments_notify | \
	 1ull << VMASST_TYPE_writable_pagetables | 1ull << VMASST_TYPE_runstate_update_flag)

struct domain;
struct evtchn_state; /* hypercall/event_channel.c */
struct grant_state;  /* hypercall/grant_table.c */
struct shadow;	     /* mm/shadow.c */
struct xsave_state;  /* cpu/fpu.c */

#define PAGES_UNFINISHED 1u
#define PAGES_LOGGED	 2u

enum run_state { VCPU_RUNNING, VCPU_RUNNABLE, VCPU_BLOCKED, VCPU_OFFLINE }; /* RUNSTATE_* */
_Static_assert(RUNSTATE_running == 0 && RUNSTATE_offline == 3, "the numbers are the ABI's");

struct trap_handler {
	uint64_t address;
	uint16_t cs;
	uint8_t flags; /* TI_GET_DPL, TI_GET_IF */
};

struct vcpu {
	/* Known to entry.S: VCPU_* in cpu/pcpu.h. */
	struct domain *domain;
	struct vcpu_info *info; /* shared: in the shared page, or where register_vcpu_info put it */
	/* What the processor walks: the tables below or their shadows. */
	mfn_t root_kernel, root_user;
	uint64_t syscall_entry, kernel_sp;
	unsigned iopl;	  /* 0..3 as asked by PHYSDEVOP_set_iopl; 1: the kernel only */
	bool kernel_mode; /* it runs on its kernel's tables */
	bool nmi_pending;
	bool areas_stale; /* runstate_area, time_area: not written, because user tables were loaded */
	bool nmi_masked;
	bool syscall_disables_events;
	struct trap_handler trap[256];
	uint64_t ctrlreg[8];	   /* 0, 2 and 4 as the guest sees them */
	uint64_t page_fault_entry; /* trap[14].address, or 0: each is looked at (mm/shadow.c) */

	mfn_t table_kernel, table_user; /* frames held as TYPE_L4; MFN_NONE: none */
	unsigned id;
	uint64_t tag; /* no other vCPU ever has the same */

	/* Registers while the vCPU does not run; while it runs they are in its CPU's guest_frame(). */
	struct cpu_user_regs regs;
	uint64_t fs_base, gs_base_kernel, gs_base_user;
	struct xsave_state *fpu;
	bool ts; /* the guest has set CR0.TS (fpu_taskswitch) */

	/* Descriptor tables: frames held as TYPE_DESC. */
	mfn_t gdt[GDT_PAGES];
	unsigned gdt_entries;
	uint64_t ldt_base;
	unsigned ldt_entries;
	mfn_t ldt[LDT_PAGES]; /* mapped so far */

	/* Entry points. */
	uint64_t callback, failsafe, syscall32_entry, sysenter_entry;
	bool syscall32_disables_events, sysenter_disables_events;
	bool failsafe_disables_events;
	uint16_t kernel_ss;
	uint64_t debugreg[8];
	guest_va_t iobmp;
	unsigned iobmp_ports;

	/* Shared with the guest. */
	void *info_page; /* of those that the shared page has no room for, until they have registered one */
	mfn_t info_frame; /* held writable; MFN_NONE: the shared page */
	guest_va_t runstate_area;
	guest_va_t time_area;	    /* secondary vcpu_time_info; 0: none */
	struct vcpu_time_info time; /* what was last written */

	/* Scheduling; owned by sched/, under the run queue's lock. */
	struct pcpu *processor;
	struct list queue;
	enum run_state state;
	uint64_t state_since, state_time[4]; /* ns */
	unsigned pause_count;		     /* does not run while it is not 0; atomic */
	bool down;			     /* not brought up (VCPUOP_up), or taken down */
	bool initialised, initialising;
	bool blocked; /* waits for an event */
	bool poll;    /* waits in SCHEDOP_poll */
	uint32_t poll_port;
	uint64_t affinity; /* CPUs that it may run on */
	int64_t credit;
	int64_t turn;  /* time that it has run by its weight: whose is least is next in its class */
	unsigned part; /* of its domain's weight, in 1/16; 0: not known yet */
	bool running;  /* some CPU has it loaded */
	bool boosted;  /* woken by an event: goes before others that have credit */
	bool parked;   /* has used what its domain's cap allows */
	bool active;   /* has run since the last accounting */
	uint64_t affinity_saved; /* while SCHEDOP_pin_override is in force; 0: it is not */

	struct timer timer;    /* singleshot */
	struct timer periodic; /* set_periodic_timer */
	struct timer poll_timer;
	uint64_t period;
	uint16_t virq_port[NR_VIRQS];
};

struct domain {
	domid_t id;
	uint32_t refs;
	uint8_t uuid[16];
	bool privileged; /* dom0 */
	bool idle;	 /* the domain of the idle vCPUs */
	bool dying, shut_down, crashed;
	uint8_t shutdown_code;
	uint8_t destroy; /* how far its destruction is (destroy.c) */
	struct frame *destroy_at;
	struct domain *dead_next;
	unsigned pause_count; /* by the toolstack; atomic */

	spinlock_t lock;
	spinlock_t page_lock;	     /* types of its tables */
	spinlock_t frames_lock;	     /* its list of frames and their counts; a leaf */
	struct frame *unfinished[8]; /* tables given up in part (page_type.h); under page_lock */
	uint8_t page_work;	     /* PAGES_*: what to do besides; under page_lock */
	spinlock_t shadow_lock;	     /* a leaf */
	struct shadow *shadow;	     /* NULL: off; under both locks */
	uint64_t shadow_wish;	     /* pages for its tables; 0: nobody has said */

	struct domain *next; /* list of all, by id */

	/* Memory, under frames_lock. */
	struct frame_list list; /* its frames, first those with REF_FOREIGN */
	uint64_t pages, pages_max;
	uint64_t
		frames; /* that name it as their owner, shared ones of the hypervisor's included; atomic */
	uint64_t vm_assist; /* of VM_ASSIST_KNOWN */
	struct shared_info *shared_info;
	uint64_t dirty_cpus; /* CPUs that may have TLB entries of it */

	struct vcpu *vcpu[MAX_VCPUS];
	unsigned nr_vcpus, max_vcpus;
	uint32_t feature_hidden
		[NR_FEATURE_WORDS]; /* bits that its CPU policy has not (cpu/policy.h) */

	struct evtchn_state *events;
	struct grant_state *grants;
	struct rangeset io_ports, io_frames, irqs; /* what it may use */
	unsigned weight, cap;
	int64_t time_offset; /* seconds */
	uint64_t tsc_khz;
	struct timer watchdog[2]; /* SCHEDOP_watchdog, hypercall/sched_op.h */
};

/* DOMID_XEN: owns the frames of the hypervisor's that whoever has the right to may map. On no list, has nothing else, never ends. */
extern struct domain hypervisor_domain;
extern struct domain *dom0;
extern struct domain *domain_list;
extern spinlock_t domain_list_lock;

/* A reference to the domain of that number; DOMID_SELF: the caller's. NULL: there is none. */
struct domain *domain_get(domid_t id);
void domain_put(struct domain *d);
/* The one that an operation of self's is about, with a reference: itself, or with the right to it any. 0, -EPERM, -ESRCH. */
static inline int domain_subject(const struct domain *self, domid_t id, struct domain **d)
{
	if (id != DOMID_SELF && id != self->id && !self->privileged)
		return -EPERM;
	*d = domain_get(id);
	return *d ? 0 : -ESRCH;
}
/* A new one, paused, without vCPUs or memory, with the default grant limits where they are negative. DOMID_INVALID: of any free number. -EEXIST, -EINVAL, -ENOMEM. */
int domain_create(domid_t id, bool privileged, int grant_frames, int maptrack_frames,
		  struct domain **out);
/* Ends another domain than the caller's. 0: all that was its is given back or will be when others let go; -ERESTART: call again. */
int domain_destroy(struct domain *d);
/* Between domain.c and destroy.c: the last reference went, from wherever; off the list. */
void domain_unreferred(struct domain *d);
void domain_unlist(struct domain *d);
void domain_reaper_init(void);
int vcpu_create(struct domain *d, unsigned id, struct vcpu **out);
/*
 * All of a vCPU's registers and tables, as VCPUOP_initialise and the toolstack have them, in place of what it had. It does not run, and nobody else does the
 * same. 0 or negative: it has what it had, GDT and debug registers aside.
 */
int vcpu_set_context(struct vcpu *v, const struct vcpu_guest_context *c);
void vcpu_get_context(struct vcpu *v, struct vcpu_guest_context *c);
/* Give up a table or another frame that a vCPU holds with its type; MFN_NONE then. The page lock is held when it is a table. */
void vcpu_put_table(mfn_t *m);

/* NULL: the domain has no such vCPU. */
static inline struct vcpu *domain_vcpu(const struct domain *d, uint64_t id)
{
	return id < MAX_VCPUS ? d->vcpu[array_nospec(id, MAX_VCPUS)] : NULL;
}

/* Parts of it (hypercall/descriptor.c): 0 or negative, nothing changed then. */
int vcpu_set_gdt(struct vcpu *v, const uint64_t *frames, unsigned entries);
int vcpu_set_debugreg(struct vcpu *v, unsigned reg, uint64_t value);

void domain_pause(struct domain *d);
void domain_unpause(struct domain *d);
/* The guest ends itself or is ended: vCPUs stop, the toolstack is told; dom0: the machine goes down. */
void domain_shutdown(struct domain *d, uint8_t reason);
/* The guest's fault and it cannot go on; the current vCPU's domain. Prints why, with the registers. */
void domain_crash(struct domain *d, const char *why, ...) __attribute__((format(printf, 2, 3)));

/* A frame of the hypervisor's becomes visible to the domain, which may map it (shared info, grant tables). */
void domain_share(struct domain *d, mfn_t m);

/* It is the hypervisor's alone again, and freed when those who have it mapped let go. */
void domain_unshare(struct domain *d, mfn_t m);

/* Give the domain's frame to it: owner, list of pages, count. The frame has one reference, the owner's. */
void domain_add_frame(struct domain *d, struct frame *f);
void domain_remove_frame(struct domain *d, struct frame *f);
/* The domain gives a frame back: it is freed when nobody refers to it any more. False: not its own, or given back already. */
bool domain_drop_frame(struct domain *d, struct frame *f);
/* The same when nobody else refers to it, so that it is gone at once. */
bool domain_drop_unused(struct domain *d, struct frame *f);
