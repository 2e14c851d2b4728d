// SPDX-License-Identifier: MIT
/*
 * The local APIC (Intel SDM vol. 3, chapter "APIC"; AMD64 APM vol. 2, chapter 16): by MMIO, or by MSRs when the firmware left it in x2APIC mode.
 * Interrupts go to one CPU at a time, by its APIC id. The old interrupt controllers are switched off here, too.
 */
#include "vmm/platform/irq.h"

#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/bitmap.h"
#include "vmm/lib/lock.h"
#include "vmm/lib/print.h"
#include "vmm/mm/map.h"
#include "vmm/platform/time.h"

/* Offsets of the MMIO registers; the MSR's number is 0x800 + offset / 16. */
enum apic_register {
	APIC_ID = 0x20,
	APIC_TPR = 0x80,
	APIC_EOI = 0xb0,
	APIC_SPURIOUS = 0xf0,
	APIC_ESR = 0x280,
	APIC_ICR = 0x300,
	APIC_ICR_HIGH = 0x310,
	APIC_LVT_TIMER = 0x320,
	APIC_LVT_LINT0 = 0x350,
	APIC_LVT_LINT1 = 0x360,
	APIC_LVT_ERROR = 0x370,
	APIC_TIMER_INITIAL = 0x380,
	APIC_TIMER_NOW = 0x390,
	APIC_TIMER_DIVIDE = 0x3e0,
};

#define X2APIC_MSR   0x800u
#define BASE_X2APIC  (1u << 10)
#define BASE_ON	     (1u << 11)
#define BASE_ADDRESS 0x000ffffffffff000ull

#define SPURIOUS_ON	 0x100u
#define LVT_MASKED	 0x10000u
#define LVT_TSC_DEADLINE 0x40000u
#define LVT_NMI		 0x400u
#define ICR_NMI		 0x400u
#define ICR_INIT	 0x500u
#define ICR_STARTUP	 0x600u
#define ICR_BUSY	 0x1000u
#define ICR_ASSERT	 0x4000u
#define DIVIDE_BY_1	 0xbu
#define ICR_PATIENCE	 100000u

#define PIC1	   0x20
#define PIC2	   0xa0
#define PIC_INIT   0x11 /* edge, cascaded, with ICW4 */
#define PIC_8086   0x01
#define PIC_MASKED 0xff

static volatile uint32_t *mmio; /* NULL: x2APIC */
static bool x2apic;
static uint64_t timer_ratio; /* timer ticks for a TSC cycle, 32 bits behind the point */

static uint32_t apic_read(enum apic_register r)
{
	return x2apic ? (uint32_t)rdmsr(X2APIC_MSR + r / 16) : mmio[r / 4];
}

static void apic_write(enum apic_register r, uint32_t value)
{
	if (x2apic)
		wrmsr(X2APIC_MSR + r / 16, value);
	else
		mmio[r / 4] = value;
}

uint32_t apic_id(void)
{
	return x2apic ? apic_read(APIC_ID) : apic_read(APIC_ID) >> 24;
}

void apic_eoi(void)
{
	apic_write(APIC_EOI, 0);
}

/* ---- the PICs ---- */

/* Their spurious interrupts come even when all is masked, so they get vectors of their own. */
static void switch_off_pics(void)
{
	outb(PIC1, PIC_INIT);
	outb(PIC2, PIC_INIT);
	outb(PIC1 + 1, VECTOR_LEGACY);
	outb(PIC2 + 1, VECTOR_LEGACY + 8);
	outb(PIC1 + 1, 1 << 2); /* the second one is at input 2 */
	outb(PIC2 + 1, 2);
	outb(PIC1 + 1, PIC_8086);
	outb(PIC2 + 1, PIC_8086);
	outb(PIC1 + 1, PIC_MASKED);
	outb(PIC2 + 1, PIC_MASKED);
}

/* ---- the timer ---- */

#define RATIO_RUNS     5
#define LONGEST_CYCLES (1ull << 30) /* times the ratio it fits into 64 bits */
#define RATIO_CYCLES   (1u << 24)   /* 4 to 16 ms */

static uint64_t measure_ratio(void)
{
	uint64_t start, now;
	uint32_t ticks;

	apic_write(APIC_TIMER_INITIAL, UINT32_MAX);
	start = rdtsc();
	do {
		ticks = UINT32_MAX - apic_read(APIC_TIMER_NOW);
		now = rdtsc();
	} while (now - start < RATIO_CYCLES);
	apic_write(APIC_TIMER_INITIAL, 0);
	return ((uint64_t)ticks << 32) / (now - start);
}

/* The median: an emulator may lose any amount of time between two of its readings. */
static void calibrate_timer(void)
{
	uint64_t ratio[RATIO_RUNS];

	for (unsigned n = 0; n < RATIO_RUNS; n++)
		ratio[n] = measure_ratio();
	timer_ratio = median(ratio, RATIO_RUNS);
	if (!timer_ratio)
		log_error("The local APIC's timer does not run: nothing will happen at its time");
}

void apic_timer_set(uint64_t tsc_deadline)
{
	uint64_t now, ticks = 0;

	if (cpu_features.tsc_deadline) {
		wrmsr(MSR_TSC_DEADLINE, tsc_deadline);
		return;
	}
	if (tsc_deadline) {
		now = rdtsc();
		if (tsc_deadline > now) {
			/* What is too far off for the counter comes early; who set it looks at the clock. */
			ticks = MIN(tsc_deadline - now, LONGEST_CYCLES) * timer_ratio >> 32;
			ticks = MIN(ticks, (uint64_t)UINT32_MAX);
		}
		ticks = MAX(ticks, 1ul);
	}
	apic_write(APIC_TIMER_INITIAL, (uint32_t)ticks);
}

/* ---- setting up ---- */

void apic_init_cpu(void)
{
	uint64_t base = rdmsr(MSR_APIC_BASE);

	wrmsr(MSR_APIC_BASE, base | BASE_ON | (x2apic ? BASE_X2APIC : 0));
	apic_write(APIC_SPURIOUS, SPURIOUS_ON | VECTOR_SPURIOUS);
	apic_write(APIC_TPR, 0);
	apic_write(APIC_LVT_LINT0, LVT_MASKED);
	apic_write(APIC_LVT_LINT1, LVT_NMI);
	apic_write(APIC_LVT_ERROR, VECTOR_ERROR);
	apic_write(APIC_TIMER_DIVIDE, DIVIDE_BY_1);
	apic_write(APIC_TIMER_INITIAL, 0);
	apic_write(APIC_LVT_TIMER,
		   VECTOR_TIMER | (cpu_features.tsc_deadline ? LVT_TSC_DEADLINE : 0));
	apic_write(APIC_ESR, 0);
	/* The firmware, or who ran before, may have left something that was never acknowledged. */
	for (unsigned i = 0; i < 256; i++)
		apic_eoi();
	/* The MSR must not be written before the mode is seen to be set. */
	__asm__ volatile("mfence" ::: "memory");
}

void apic_init(void)
{
	uint64_t base = rdmsr(MSR_APIC_BASE);

	x2apic = base & BASE_X2APIC;
	if (!x2apic)
		mmio = map_device(base & BASE_ADDRESS, PAGE_SIZE);
	ASSERT(x2apic || mmio);
	switch_off_pics();
	apic_init_cpu();
	if (!cpu_features.tsc_deadline)
		calibrate_timer();
	log_info("Local APIC: %s, timer by %s", x2apic ? "x2APIC" : "xAPIC",
		 cpu_features.tsc_deadline ? "TSC deadline" : "countdown");
}

/* ---- messages to other CPUs ---- */

static void send(uint32_t to, uint32_t command)
{
	/* A handler may send as well, between the two halves. */
	uint64_t flags = irq_save();

	if (x2apic) {
		/* Unlike MMIO this is no barrier: what we have written must be seen before. */
		__asm__ volatile("mfence; lfence" ::: "memory");
		wrmsr(X2APIC_MSR + APIC_ICR / 16, (uint64_t)to << 32 | command);
	} else {
		for (unsigned i = 0; i < ICR_PATIENCE && apic_read(APIC_ICR) & ICR_BUSY; i++)
			__builtin_ia32_pause();
		apic_write(APIC_ICR_HIGH, to << 24);
		apic_write(APIC_ICR, command);
	}
	irq_restore(flags);
}

void apic_send(unsigned cpu, uint8_t vector)
{
	send(pcpus[cpu].apic_id, ICR_ASSERT | vector);
}

void apic_send_nmi_others(void)
{
	unsigned self = this_cpu()->id;

	/* Not by the shorthand: CPUs that were never started are none of our business. */
	for (unsigned i = 0; i < MAX_CPUS; i++)
		if (i != self && READ_ONCE(pcpus[i].online))
			send(pcpus[i].apic_id, ICR_ASSERT | ICR_NMI);
}

/* Waits as in Intel's MP specification 1.4, B.4. */
void apic_start_cpu(uint32_t id, uint32_t start_maddr)
{
	send(id, ICR_ASSERT | ICR_INIT);
	udelay(10000);
	for (unsigned i = 0; i < 2; i++) {
		send(id, ICR_ASSERT | ICR_STARTUP | start_maddr >> PAGE_SHIFT);
		udelay(200);
	}
}

/* ---- calls ---- */

static struct {
	spinlock_t lock;  /* one call at a time */
	uint64_t waiting; /* CPUs that have not run it yet */
	void (*fn)(void *arg);
	void *arg;
} call;

/* Run what others want of this CPU. Interrupts are off: a bit that is set stays so until we have run it. */
void apic_call_handler(void)
{
	uint64_t mine = 1ull << this_cpu()->id;

	if (!(__atomic_load_n(&call.waiting, __ATOMIC_ACQUIRE) & mine))
		return;
	call.fn(call.arg);
	__atomic_fetch_and(&call.waiting, ~mine, __ATOMIC_RELEASE);
}

void call_on_cpus(uint64_t cpus, void (*fn)(void *), void *arg)
{
	unsigned self = this_cpu()->id;
	uint64_t others = 0, flags;

	/* Who holds the lock may wait for us, and interrupts may be off. */
	while (!spin_trylock(&call.lock)) {
		flags = irq_save();
		apic_call_handler();
		irq_restore(flags);
		__builtin_ia32_pause();
	}
	bit_for_each(cpu, &cpus, MAX_CPUS) if (cpu != self && READ_ONCE(pcpus[cpu].online))
		others |= 1ull << cpu;
	call.fn = fn;
	call.arg = arg;
	__atomic_store_n(&call.waiting, others, __ATOMIC_RELEASE);
	bit_for_each(cpu, &others, MAX_CPUS) apic_send(cpu, VECTOR_CALL);
	if (cpus >> self & 1) {
		flags = irq_save();
		fn(arg);
		irq_restore(flags);
	}
	while (__atomic_load_n(&call.waiting, __ATOMIC_ACQUIRE))
		__builtin_ia32_pause();
	spin_unlock(&call.lock);
}

void apic_error_handler(void)
{
	static bool said;

	apic_write(APIC_ESR, 0); /* latches what has come */
	if (!said)
		log_warning("Local APIC of CPU %u: error %x", this_cpu()->id, apic_read(APIC_ESR));
	said = true;
}
