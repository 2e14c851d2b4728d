/* SPDX-License-Identifier: MIT */
/* See smp.h. Each CPU comes through head.S's trampoline to start_ap() on a stack of its own. */
#include "vmm/boot/smp.h"

#include "vmm/boot/acpi.h"
#include "vmm/boot/boot.h"
#include "vmm/cpu/desc.h"
#include "vmm/cpu/mitigation.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/cpu/setup.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/domain.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/map.h"
#include "vmm/mm/tlb.h"
#include "vmm/platform/irq.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

#define TRAMPOLINE   0x8000u /* below 1 MiB, where nothing of the firmware is: checked */
#define WAIT_STEPS   2000u
#define WAIT_STEP_US 500u

struct pcpu pcpus[MAX_CPUS];
unsigned nr_cpus = 1;

static struct domain idle_domain = {.id = DOMID_IDLE, .idle = true, .privileged = false};

extern char ap_trampoline[], ap_trampoline_end[];
extern uint64_t ap_stack, ap_l4;
static struct pcpu *starting;

void start_ap(void) __attribute__((noreturn));

void idle_init(void)
{
	struct pcpu *c = this_cpu();
	struct vcpu *v;

	if (vcpu_create(&idle_domain, c->id, &v))
		bug(__FILE__, __LINE__, "no memory for the idle vCPU");
	v->processor = c;
	v->down = false;
	v->state = VCPU_RUNNING;
	v->running = true;
	c->idle = c->vcpu = v;
}

void start_ap(void)
{
	struct pcpu *c = starting;

	stack_top()->cpu = c;
	cpu_setup();
	desc_init_cpu();
	mitigation_init_cpu();
	fpu_init_cpu();
	apic_init_cpu();
	time_init_cpu();
	idle_init();
	sched_init_cpu(c->id);
	tlb_flush_local();
	__atomic_store_n(&c->online, true, __ATOMIC_SEQ_CST);
	irq_enable();
	enter_idle();
}

static bool trampoline_free(void)
{
	for (unsigned i = 0; i < boot_info.nr_ranges; i++) {
		const struct boot_range *r = &boot_info.range[i];

		if (r->type == RANGE_RAM && r->start <= TRAMPOLINE &&
		    r->end >= TRAMPOLINE + PAGE_SIZE)
			return true;
	}
	return false;
}

static bool start_one(unsigned id, uint32_t lapic, uint32_t acpi_id)
{
	struct pcpu *c = &pcpus[id];

	if (!map_cpu(id))
		return false;
	*c = (struct pcpu){.id = id, .apic_id = lapic, .acpi_id = acpi_id};
	starting = c;
	ap_l4 = map_hv_l4().v << PAGE_SHIFT;
	ap_stack = WINDOW_BASE + (uint64_t)id * WINDOW_STRIDE + WINDOW_FRAME;
	barrier();
	apic_start_cpu(lapic, TRAMPOLINE);
	for (unsigned n = 0; n < WAIT_STEPS; n++) {
		if (__atomic_load_n(&c->online, __ATOMIC_SEQ_CST))
			return true;
		udelay(WAIT_STEP_US);
	}
	log_warning("the processor with local APIC %u does not start; going on without it", lapic);
	return false;
}

void smp_start(void)
{
	unsigned most = boot_options.maxcpus ? MIN(boot_options.maxcpus, MAX_CPUS) : MAX_CPUS;

	pcpus[0].apic_id = apic_id();
	pcpus[0].online = true;
	if (!trampoline_free()) {
		log_warning("no memory at %x to start further processors from; going on with one",
			    TRAMPOLINE);
		return;
	}
	memcpy(maddr_to_ptr(TRAMPOLINE), ap_trampoline,
	       (uint64_t)ap_trampoline_end - (uint64_t)ap_trampoline);
	for (unsigned i = 0; i < acpi.nr_cpus && nr_cpus < most; i++) {
		if (acpi.cpu[i].apic_id == pcpus[0].apic_id) {
			pcpus[0].acpi_id = acpi.cpu[i].acpi_id;
			continue;
		}
		if (acpi.cpu[i].enabled &&
		    start_one(nr_cpus, acpi.cpu[i].apic_id, acpi.cpu[i].acpi_id))
			nr_cpus++;
	}
	log_info("%u processor%s run%s", nr_cpus, nr_cpus == 1 ? "" : "s", nr_cpus == 1 ? "s" : "");
}
