/* SPDX-License-Identifier: MIT */
#include "vmm/hypercall/debug_key.h"

#include "vmm/boot/boot.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/grant_table.h"
#include "vmm/lib/print.h"
#include "vmm/mm/audit.h"
#include "vmm/mm/heap.h"
#include "vmm/platform/power.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"
#include "vmm/sched/timer.h"

static void help(void)
{
	log_info(
		"Debug keys: a audit frames, d registers, f fail allocations, g grants, h this, m memory, q domains, r run queues, R restart at once, t time and timers");
}

/* Those of vCPUs that do not run, and of the one that asks; what another CPU's has changes under our eyes. */
static void registers(const struct domain *d)
{
	for (unsigned i = 0; i < MAX_VCPUS; i++) {
		const struct vcpu *v = d->vcpu[i];
		const struct cpu_user_regs *r;

		if (!v)
			continue;
		if (v != current && READ_ONCE(v->running)) {
			log_info("d%uv%u runs on CPU %u", d->id, i, v->processor->id);
			continue;
		}
		r = v == current ? guest_frame() : &v->regs;
		log_info("d%uv%u %s rip %lx rsp %lx flags %lx rax %lx rbx %lx rcx %lx rdx %lx",
			 d->id, i, v->kernel_mode ? "kernel" : "user", r->rip, r->rsp, r->rflags,
			 r->rax, r->rbx, r->rcx, r->rdx);
		log_info(
			"  rsi %lx rdi %lx rbp %lx r8 %lx r9 %lx r10 %lx r11 %lx r12 %lx r13 %lx r14 %lx r15 %lx",
			r->rsi, r->rdi, r->rbp, r->r8, r->r9, r->r10, r->r11, r->r12, r->r13,
			r->r14, r->r15);
	}
}

static void domain_line(const struct domain *d)
{
	static const char *const states[] = {"runs", "runnable", "blocked", "offline"};

	log_info("Domain %u: %lu of %lu pages, %u vCPUs, paused %u%s%s%s", d->id, d->pages,
		 d->pages_max, d->nr_vcpus, d->pause_count, d->shut_down ? ", shut down" : "",
		 d->crashed ? ", crashed" : "", d->dying ? ", dying" : "");
	for (unsigned i = 0; i < MAX_VCPUS; i++) {
		const struct vcpu *v = d->vcpu[i];

		if (v)
			log_info("  v%u %s on CPU %u, paused %u%s%s, upcall pending %u mask %u", i,
				 states[v->state], v->processor->id, v->pause_count,
				 v->down ? ", down" : "", v->poll ? ", polls" : "",
				 v->info->evtchn_upcall_pending, v->info->evtchn_upcall_mask);
	}
}

static void each_domain(char key)
{
	spin_lock(&domain_list_lock);
	for (struct domain *d = domain_list; d; d = d->next) {
		if (d->idle)
			continue;
		if (key == 'd')
			registers(d);
		else if (key == 'g')
			grants_dump(d);
		else
			domain_line(d);
	}
	spin_unlock(&domain_list_lock);
}

/* 12f: the twelfth allocation from now fails; 12F: and all behind it; f: none any more. */
static void fail_allocations(char key)
{
	static uint64_t nth;

	if (key >= '0' && key <= '9') {
		nth = nth * 10 + (uint64_t)(key - '0');
		return;
	}
	if (boot_options.fault_injection)
		log_info("Allocations: %lu made to fail", heap_fail(nth, key == 'F'));
	else
		log_info("Allocations are made to fail only after a boot with fault-injection");
	nth = 0;
}

void debug_key(char key)
{
	switch (key) {
	case '0' ... '9':
	case 'f':
	case 'F':
		fail_allocations(key);
		break;
	case 'a':
		audit_frames();
		break;
	case 'd':
	case 'g':
	case 'q':
		each_domain(key);
		break;
	case 'h':
		help();
		break;
	case 'm':
		log_info("Memory: %lu of %lu pages are free", heap_free_frames(),
			 heap_total_frames());
		break;
	case 'r':
		sched_dump();
		break;
	case 'R':
		log_warning("Restarting, as the key says");
		machine_restart();
	case 't':
		log_info("Time: %lu ns since boot, TSC %lu kHz, %u timers run", time_now(),
			 time_tsc_khz(), timers_running());
		break;
	default:
		break;
	}
}
