// SPDX-License-Identifier: MIT
/*
 * The x87, SSE and AVX registers of vCPUs: saved when a vCPU leaves a processor and loaded, all of them, when another comes, so that none of
 * one guest's values is ever in reach of another (eager switching).
 *
 * The processor's XCR0 is the guest's while it runs, and everything that we save while we do: a guest that switches a component off finds it
 * as it was when it switches it on again. Guests normally switch on all there is, and then XCR0 is never written.
 *
 * CR0.TS would make the instructions here fault: it is cleared, and the caller sets it again where vcpu.ts says so.
 */
#include "vmm/lib/xen.h"
#include <xen/arch-x86/cpufeatureset.h>

#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/policy.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/heap.h"

#define FCW_INIT	   0x37f
#define MXCSR_INIT	   0x1f80
#define MXCSR_MASK_DEFAULT 0xffbfu /* where the processor gives 0 */

/* FXSAVE in 64-bit mode with REX.W, the first 512 bytes of XSAVE (SDM vol. 1, 10.5.1). */
struct fxsave {
	uint16_t fcw, fsw;
	uint8_t ftw, reserved;
	uint16_t fop;
	uint64_t fip, fdp;
	uint32_t mxcsr, mxcsr_mask;
	uint8_t st[128];
	uint8_t xmm[256];
	uint8_t unused[96];
};
_Static_assert(sizeof(struct fxsave) == 512, "the processor's layout");

struct xsave_area {
	struct fxsave legacy;
	uint64_t present, compacted, reserved[6]; /* XSTATE_BV, XCOMP_BV */
};
_Static_assert(sizeof(struct xsave_area) == 576, "the processor's layout");

/* The components beyond the area follow it. */
struct xsave_state {
	uint64_t xcr0;
	_Alignas(64) struct xsave_area area;
};

static uint32_t mxcsr_mask = MXCSR_MASK_DEFAULT;
static uint64_t loaded_xcr0[MAX_CPUS];
/* AMD before Zen 2: FXRSTOR and XRSTOR leave the last instruction's and operand's addresses alone when no exception waits. */
static bool leaves_pointers;

static void set_xcr0(uint64_t value)
{
	uint64_t *loaded = &loaded_xcr0[this_cpu()->id];

	if (*loaded == value)
		return;
	__asm__ volatile("xsetbv" ::"c"(0), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
	*loaded = value;
}

static void clear_ts(void)
{
	__asm__ volatile("clts" ::: "memory");
}

static size_t state_bytes(void)
{
	size_t beyond =
		cpu_features.xsave ? cpu_features.xsave_bytes - sizeof(struct xsave_area) : 0;

	return sizeof(struct xsave_state) + beyond;
}

void fpu_init(void)
{
	static _Alignas(16) struct fxsave probe;
	bool restores = cpuid_leaf(0x80000008, 0).b >> (XEN_X86_FEATURE_RSTR_FP_ERR_PTRS % 32) & 1;

	leaves_pointers = cpu_features.amd && !restores;
	fpu_init_cpu();
	__asm__ volatile("fxsave64 %0" : "=m"(probe));
	if (probe.mxcsr_mask)
		mxcsr_mask = probe.mxcsr_mask;
}

void fpu_init_cpu(void)
{
	uint32_t mxcsr = MXCSR_INIT;

	write_cr0((read_cr0() & ~(CR0_EM | CR0_TS)) | CR0_MP | CR0_NE);
	if (cpu_features.xsave)
		set_xcr0(cpu_features.xcr0);
	__asm__ volatile("fninit; ldmxcsr %0" ::"m"(mxcsr));
}

static void make_initial(struct xsave_state *s)
{
	memset(s, 0, state_bytes());
	/* area.present stays 0: every component in its initial state. The two fields are for FXRSTOR, and MXCSR for XRSTOR as well. */
	s->area.legacy.fcw = FCW_INIT;
	s->area.legacy.mxcsr = MXCSR_INIT;
	/* A kernel that uses no XSAVE has programs that do, since CR4.OSXSAVE is on: what they save must include the registers that every program uses. */
	s->xcr0 = XCR0_X87 | XCR0_SSE;
}

int fpu_vcpu_init(struct vcpu *v)
{
	v->fpu = heap_zalloc(state_bytes());
	if (!v->fpu)
		return -ENOMEM;
	make_initial(v->fpu);
	return 0;
}

void fpu_vcpu_free(struct vcpu *v)
{
	if (v->fpu)
		heap_zfree(v->fpu, state_bytes());
	v->fpu = NULL;
}

void fpu_save(struct vcpu *v)
{
	struct xsave_area *area = &v->fpu->area;
	uint32_t low = (uint32_t)cpu_features.xcr0, high = (uint32_t)(cpu_features.xcr0 >> 32);

	clear_ts();
	if (!cpu_features.xsave) {
		__asm__ volatile("fxsave64 (%0)" ::"r"(area) : "memory");
		return;
	}
	set_xcr0(cpu_features.xcr0);
	if (cpu_features.xsaveopt)
		__asm__ volatile("xsaveopt64 (%0)" ::"r"(area), "a"(low), "d"(high) : "memory");
	else
		__asm__ volatile("xsave64 (%0)" ::"r"(area), "a"(low), "d"(high) : "memory");
}

/* An operation of our own replaces the other vCPU's addresses. */
static void forget_pointers(void)
{
	static const uint32_t zero;

	__asm__ volatile("fnclex; ffree %%st(7); fildl %0" ::"m"(zero));
}

void fpu_restore(struct vcpu *v)
{
	struct xsave_area *area = &v->fpu->area;
	uint32_t low = (uint32_t)cpu_features.xcr0, high = (uint32_t)(cpu_features.xcr0 >> 32);

	clear_ts();
	if (leaves_pointers)
		forget_pointers();
	if (!cpu_features.xsave) {
		__asm__ volatile("fxrstor64 (%0)" ::"r"(area) : "memory");
		return;
	}
	set_xcr0(cpu_features.xcr0);
	__asm__ volatile("xrstor64 (%0)" ::"r"(area), "a"(low), "d"(high) : "memory");
	set_xcr0(v->fpu->xcr0);
}

static bool xcr0_valid(uint64_t value)
{
	uint64_t wide = value & XCR0_AVX512;

	if (!(value & XCR0_X87) || value & ~cpu_features.xcr0)
		return false;
	if (value & XCR0_AVX && !(value & XCR0_SSE))
		return false;
	return !wide || (wide == XCR0_AVX512 && value & XCR0_AVX);
}

int fpu_xsetbv(struct vcpu *v, uint32_t index, uint64_t value)
{
	if (!cpu_features.xsave || index || !xcr0_valid(value))
		return -EPERM;
	v->fpu->xcr0 = value;
	if (v == current)
		set_xcr0(value);
	return 0;
}

/* What XSAVE has left out because it was in its initial state is not in the area. */
void fpu_get_legacy(const struct vcpu *v, void *out512)
{
	const struct xsave_area *area = &v->fpu->area;
	struct fxsave *out = out512;

	memcpy(out, &area->legacy, sizeof(*out));
	if (!cpu_features.xsave)
		return;
	if (!(area->present & XCR0_X87)) {
		memset(out, 0, offsetof(struct fxsave, mxcsr));
		memset(out->st, 0, sizeof(out->st));
		out->fcw = FCW_INIT;
	}
	if (!(area->present & XCR0_SSE))
		memset(out->xmm, 0, sizeof(out->xmm));
}

/* A reserved bit of MXCSR would fault when it is loaded. */
void fpu_set_legacy(struct vcpu *v, const void *in512)
{
	struct xsave_area *area = &v->fpu->area;

	memcpy(&area->legacy, in512, sizeof(area->legacy));
	area->legacy.mxcsr &= mxcsr_mask;
	if (cpu_features.xsave)
		area->present |= XCR0_X87 | XCR0_SSE;
}

/* ---- all of it, for who saves and restores a guest ---- */

/* What comes before the area. */
struct extended_head {
	uint64_t xcr0, xcr0_ever;
};

uint64_t fpu_extended_bytes(void)
{
	return cpu_features.xsave ? sizeof(struct extended_head) + cpu_features.xsave_bytes : 0;
}

int fpu_get_extended(const struct vcpu *v, guest_va_t to)
{
	struct extended_head head = {v->fpu->xcr0, cpu_features.xcr0};

	if (copy_to_guest(to, &head, sizeof(head)))
		return -EFAULT;
	return copy_to_guest(GUEST_VA(to.v + sizeof(head)), &v->fpu->area,
			     cpu_features.xsave_bytes);
}

/* XRSTOR faults at an area that says anything else. */
static bool loadable(const struct extended_head *head, const struct xsave_area *area)
{
	uint64_t rest = area->compacted;

	for (unsigned i = 0; i < ARRAY_SIZE(area->reserved); i++)
		rest |= area->reserved[i];
	return !rest && xcr0_valid(head->xcr0) && xcr0_valid(head->xcr0_ever) &&
	       !(head->xcr0 & ~head->xcr0_ever) && !(area->present & ~head->xcr0_ever);
}

int fpu_set_extended(struct vcpu *v, guest_va_t from, uint64_t bytes)
{
	struct extended_head head;
	struct xsave_area *area = &v->fpu->area;
	int rc = -EINVAL;

	if (bytes < sizeof(head) + sizeof(*area) || bytes > fpu_extended_bytes())
		return rc;
	if (copy_from_guest(&head, from, sizeof(head)))
		return -EFAULT;
	make_initial(v->fpu);
	/* Where it stays, so that what is checked is what is loaded. */
	if (copy_from_guest(area, GUEST_VA(from.v + sizeof(head)), bytes - sizeof(head)))
		rc = -EFAULT;
	else if (loadable(&head, area))
		rc = 0;
	if (rc) {
		make_initial(v->fpu);
		return rc;
	}
	area->legacy.mxcsr &= mxcsr_mask;
	v->fpu->xcr0 = head.xcr0;
	return 0;
}
