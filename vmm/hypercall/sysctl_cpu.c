/* SPDX-License-Identifier: MIT */
#include "vmm/hypercall/sysctl_cpu.h"

#include "vmm/cpu/policy.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/platform/time.h"

/* What the tools' own tables of leaves have room for (libxenguest refuses more). */
#define BASIC_LAST    0xdu
#define EXTENDED_LAST 0x80000021u
#define CACHE_LEAVES  6u
#define FEATURE_LEAF  2u /* the last of leaf 7 */
#define TOPOLOGY_LAST 1u
#define XSTATE_LAST   62u
#define LEAVES_MAX    128u

/* ---- topology: bits of the APIC number ---- */

struct topology {
	unsigned core_shift, socket_shift;
};

static struct topology topology(void)
{
	struct topology t = {0, 0};
	struct cpuid r;

	if (cpuid(0, 0).a >= 0xb) {
		r = cpuid(0xb, 0);
		if (r.b) {
			t.core_shift = r.a & 31;
			t.socket_shift = MAX(cpuid(0xb, 1).a & 31, t.core_shift);
			return t;
		}
	}
	r = cpuid(1, 0);
	if (r.d >> 28 & 1) {
		/* The number of logical processors in a package, rounded up to a power of two. */
		while (1u << t.socket_shift < (r.b >> 16 & 0xff))
			t.socket_shift++;
	}
	return t;
}

/* The CPUs that have these bits as the first one has, itself included. */
static unsigned sharing(unsigned shift)
{
	unsigned n = 1;

	for (unsigned cpu = 1; cpu < nr_cpus; cpu++)
		n += pcpus[cpu].apic_id >> shift == pcpus[0].apic_id >> shift;
	return n;
}

long cpu_topology(struct xen_sysctl_cputopoinfo *op)
{
	struct topology t = topology();

	for (unsigned cpu = 0; op->cputopo.p && cpu < MIN(op->num_cpus, nr_cpus); cpu++) {
		uint32_t apic = pcpus[cpu].apic_id;
		struct xen_sysctl_cputopo out = {
			.core = apic >> t.core_shift &
				((1u << (t.socket_shift - t.core_shift)) - 1),
			.socket = apic >> t.socket_shift,
		};

		if (to_guest(op->cputopo, cpu, &out))
			return -EFAULT;
	}
	op->num_cpus = nr_cpus;
	return 0;
}

/* ---- features ---- */

enum source { PROCESSOR, GUEST };

/* Which of the two an index of the interface asks for. */
static int source_of(uint32_t index, const bool *is_guest, size_t nr)
{
	if (index >= nr)
		return -EINVAL;
	return is_guest[index] ? GUEST : PROCESSOR;
}

static struct cpuid leaf_of(enum source from, uint32_t leaf, uint32_t subleaf)
{
	uint32_t range = leaf & 0xffff0000;
	uint32_t last = from == GUEST ? policy_cpuid(current, range, 0).a : cpuid(range, 0).a;

	/* A processor answers with another leaf than the one that it does not have. */
	if (leaf > last || last >> 16 != range >> 16)
		return (struct cpuid){0, 0, 0, 0};
	return from == GUEST ? policy_cpuid(current, leaf, subleaf) : cpuid(leaf, subleaf);
}

/* The words of a feature set (xen/arch-x86/cpufeatureset.h): 'a' .. 'd' of a leaf, 0: an MSR, which is not told. */
static const struct {
	uint32_t leaf, subleaf;
	char reg;
} feature_word[] = {
	{1, 0, 'd'},
	{1, 0, 'c'},
	{0x80000001, 0, 'd'},
	{0x80000001, 0, 'c'},
	{0xd, 1, 'a'},
	{7, 0, 'b'},
	{7, 0, 'c'},
	{0x80000007, 0, 'd'},
	{0x80000008, 0, 'b'},
	{7, 0, 'd'},
	{7, 1, 'a'},
	{0x80000021, 0, 'a'},
	{7, 1, 'b'},
	{7, 2, 'd'},
	{7, 1, 'c'},
	{7, 1, 'd'},
	{0, 0, 0},
	{0, 0, 0},
	{0x80000021, 0, 'c'},
};

static uint32_t features(enum source from, unsigned word)
{
	struct cpuid r = leaf_of(from, feature_word[word].leaf, feature_word[word].subleaf);

	switch (feature_word[word].reg) {
	case 'a':
		return r.a;
	case 'b':
		return r.b;
	case 'c':
		return r.c;
	case 'd':
		return r.d;
	default:
		return 0;
	}
}

void physinfo_cpus(struct xen_sysctl_physinfo *op)
{
	struct topology t = topology();

	op->nr_cpus = nr_cpus;
	op->max_cpu_id = nr_cpus - 1;
	op->threads_per_core = sharing(t.core_shift);
	op->cores_per_socket = MAX(sharing(t.socket_shift) / op->threads_per_core, 1u);
	op->cpu_khz = (uint32_t)time_tsc_khz();
	for (unsigned i = 0; i < ARRAY_SIZE(op->hw_cap); i++)
		op->hw_cap[i] = features(PROCESSOR, i);
}

long cpu_featureset(struct xen_sysctl_cpu_featureset *op)
{
	/* raw, host, pv; hvm is none; pv_max; hvm_max is none */
	static const bool is_guest[] = {false, false, true, false, true, false};
	unsigned nr = ARRAY_SIZE(feature_word);
	bool too_small = op->features.p && op->nr_features < nr;
	int from = source_of(op->index, is_guest, ARRAY_SIZE(is_guest));

	if (from < 0)
		return from;
	if (op->index == XEN_SYSCTL_cpu_featureset_hvm ||
	    op->index == XEN_SYSCTL_cpu_featureset_hvm_max)
		return -EOPNOTSUPP;
	for (unsigned i = 0; op->features.p && i < MIN(nr, op->nr_features); i++) {
		uint32_t word = features((enum source)from, i);

		if (to_guest(op->features, i, &word))
			return -EFAULT;
	}
	op->nr_features = nr;
	return too_small ? -ENOBUFS : 0;
}

/* ---- policy: all leaves ---- */

struct leaves {
	enum source from;
	struct xen_sysctl_cpu_policy *op;
	uint32_t nr;
	long rc;
};

static struct cpuid add_leaf(struct leaves *l, uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r = leaf_of(l->from, leaf, subleaf == XEN_CPUID_NO_SUBLEAF ? 0 : subleaf);
	xen_cpuid_leaf_t out = {leaf, subleaf, r.a, r.b, r.c, r.d};

	if (l->nr >= l->op->nr_leaves)
		l->rc = -ENOBUFS;
	else if (to_guest(l->op->leaves, l->nr, &out))
		l->rc = -EFAULT;
	else
		l->nr++;
	return r;
}

static void add_subleaves(struct leaves *l, uint32_t leaf)
{
	uint32_t last;

	switch (leaf) {
	case 4:
		/* Until there is no further cache. */
		for (uint32_t i = 0; i < CACHE_LEAVES && add_leaf(l, leaf, i).a & 31; i++)
			;
		break;
	case 7:
		last = MIN(add_leaf(l, leaf, 0).a, FEATURE_LEAF);
		for (uint32_t i = 1; i <= last; i++)
			add_leaf(l, leaf, i);
		break;
	case 0xb:
		for (uint32_t i = 0; i <= TOPOLOGY_LAST; i++)
			add_leaf(l, leaf, i);
		break;
	case 0xd:
		for (uint32_t i = 0; i <= XSTATE_LAST; i++)
			add_leaf(l, leaf, i);
		break;
	default:
		add_leaf(l, leaf, XEN_CPUID_NO_SUBLEAF);
	}
}

long cpu_policy(struct xen_sysctl_cpu_policy *op)
{
	/* raw, host, pv_max; hvm_max is none; pv_default; hvm_default is none */
	static const bool is_guest[] = {false, false, true, false, true, false};
	static const uint32_t msrs[] = {0xce, MSR_ARCH_CAPS};
	int from = source_of(op->index, is_guest, ARRAY_SIZE(is_guest));
	struct leaves l = {.op = op};

	if (from < 0 || op->_rsvd)
		return -EINVAL;
	if (op->index == XEN_SYSCTL_cpu_policy_hvm_max ||
	    op->index == XEN_SYSCTL_cpu_policy_hvm_default)
		return -EOPNOTSUPP;
	l.from = (enum source)from;
	if (op->leaves.p) {
		uint32_t basic = leaf_of(l.from, 0, 0).a,
			 extended = leaf_of(l.from, 0x80000000, 0).a;

		for (uint32_t i = 0; i <= MIN(basic, BASIC_LAST) && !l.rc; i++)
			add_subleaves(&l, i);
		for (uint32_t i = 0x80000000; i <= MIN(extended, EXTENDED_LAST) && !l.rc; i++)
			add_leaf(&l, i, XEN_CPUID_NO_SUBLEAF);
		if (l.rc)
			return l.rc;
	}
	op->nr_leaves = op->leaves.p ? l.nr : LEAVES_MAX;
	/* Their bits mean features that PV guests do not get. */
	for (uint32_t i = 0; op->msrs.p && i < ARRAY_SIZE(msrs); i++) {
		xen_msr_entry_t out = {.idx = msrs[i]};

		if (i >= op->nr_msrs)
			return -ENOBUFS;
		if (to_guest(op->msrs, i, &out))
			return -EFAULT;
	}
	op->nr_msrs = ARRAY_SIZE(msrs);
	return 0;
}
