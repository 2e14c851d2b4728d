/* SPDX-License-Identifier: MIT */
#include "vmm/hypercall/sysctl_cpu.h"

#include <xen/arch-x86/cpufeatureset.h>

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

	r = cpuid_leaf(0xb, 0);
	if (r.b) {
		t.core_shift = r.a & 31;
		t.socket_shift = MAX(cpuid(0xb, 1).a & 31, t.core_shift);
		return t;
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

/* Whose view an index of the interface asks for: a guest's, or NULL, the processor's. Negative: there is no such. */
static int view_of(uint32_t index, const bool *is_guest, size_t nr, const struct domain **d)
{
	if (index >= nr)
		return -EINVAL;
	*d = is_guest[index] ? current->domain : NULL;
	return 0;
}

/* d NULL: the processor's. */
static struct cpuid leaf_of(const struct domain *d, uint32_t leaf, uint32_t subleaf)
{
	return d ? policy_cpuid(d, leaf, subleaf) : cpuid_leaf(leaf, subleaf);
}

static uint32_t features(const struct domain *d, unsigned word)
{
	const struct feature_word *w = &feature_words[word];
	struct cpuid r = leaf_of(d, w->leaf, w->subleaf);

	return w->reg ? *cpuid_register(&r, w->reg) : 0;
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
		op->hw_cap[i] = features(NULL, i);
}

long cpu_featureset(struct xen_sysctl_cpu_featureset *op)
{
	/* raw, host, pv; hvm is none; pv_max; hvm_max is none */
	static const bool is_guest[] = {false, false, true, false, true, false};
	unsigned nr = NR_FEATURE_WORDS;
	bool too_small = op->features.p && op->nr_features < nr;
	const struct domain *d;
	int rc = view_of(op->index, is_guest, ARRAY_SIZE(is_guest), &d);

	if (rc)
		return rc;
	if (op->index == XEN_SYSCTL_cpu_featureset_hvm ||
	    op->index == XEN_SYSCTL_cpu_featureset_hvm_max)
		return -EOPNOTSUPP;
	for (unsigned i = 0; op->features.p && i < MIN(nr, op->nr_features); i++) {
		uint32_t word = features(d, i);

		if (to_guest(op->features, i, &word))
			return -EFAULT;
	}
	op->nr_features = nr;
	return too_small ? -ENOBUFS : 0;
}

/* ---- policy: all leaves ---- */

struct leaves {
	const struct domain *d;
	guest_va_t to;
	uint32_t nr, most;
	long rc;
};

static struct cpuid add_leaf(struct leaves *l, uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r = leaf_of(l->d, leaf, subleaf == XEN_CPUID_NO_SUBLEAF ? 0 : subleaf);
	xen_cpuid_leaf_t out = {leaf, subleaf, r.a, r.b, r.c, r.d};

	if (l->nr >= l->most)
		l->rc = -ENOBUFS;
	else if (copy_to_guest(GUEST_VA(l->to.v + l->nr * sizeof(out)), &out, sizeof(out)))
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
		return;
	case 7:
		last = MIN(leaf_of(l->d, leaf, 0).a, FEATURE_LEAF);
		break;
	case 0xb:
		last = TOPOLOGY_LAST;
		break;
	case 0xd:
		last = XSTATE_LAST;
		break;
	default:
		add_leaf(l, leaf, XEN_CPUID_NO_SUBLEAF);
		return;
	}
	for (uint32_t i = 0; i <= last; i++)
		add_leaf(l, leaf, i);
}

/* All leaves and MSRs of a view, or with no place for them, how many there may be. Both structures of the ABI have the same four fields. */
#define SERIALISE(view, op)                                                                   \
	serialise((view), GUEST_VA((op)->leaves.p), &(op)->nr_leaves, GUEST_VA((op)->msrs.p), \
		  &(op)->nr_msrs)

static long serialise(const struct domain *d, guest_va_t leaves, uint32_t *nr_leaves,
		      guest_va_t entries, uint32_t *nr_msrs)
{
	static const uint32_t msrs[] = {0xce, MSR_ARCH_CAPS};
	struct leaves l = {.d = d, .to = leaves, .most = *nr_leaves};

	if (leaves.v) {
		uint32_t basic = leaf_of(d, 0, 0).a, extended = leaf_of(d, 0x80000000, 0).a;

		for (uint32_t i = 0; i <= MIN(basic, BASIC_LAST) && !l.rc; i++)
			add_subleaves(&l, i);
		for (uint32_t i = 0x80000000; i <= MIN(extended, EXTENDED_LAST) && !l.rc; i++)
			add_leaf(&l, i, XEN_CPUID_NO_SUBLEAF);
		if (l.rc)
			return l.rc;
	}
	*nr_leaves = leaves.v ? l.nr : LEAVES_MAX;
	/* Their bits mean features that PV guests do not get. */
	for (uint32_t i = 0; entries.v && i < ARRAY_SIZE(msrs); i++) {
		xen_msr_entry_t out = {.idx = msrs[i]};

		if (i >= *nr_msrs)
			return -ENOBUFS;
		if (copy_to_guest(GUEST_VA(entries.v + i * sizeof(out)), &out, sizeof(out)))
			return -EFAULT;
	}
	*nr_msrs = ARRAY_SIZE(msrs);
	return 0;
}

long cpu_policy(struct xen_sysctl_cpu_policy *op)
{
	/* raw, host, pv_max; hvm_max is none; pv_default; hvm_default is none */
	static const bool is_guest[] = {false, false, true, false, true, false};
	const struct domain *d;
	int rc = view_of(op->index, is_guest, ARRAY_SIZE(is_guest), &d);

	if (rc || op->_rsvd)
		return -EINVAL;
	if (op->index == XEN_SYSCTL_cpu_policy_hvm_max ||
	    op->index == XEN_SYSCTL_cpu_policy_hvm_default)
		return -EOPNOTSUPP;
	return SERIALISE(d, op);
}

long cpu_policy_get(const struct domain *d, struct xen_domctl_cpu_policy *op)
{
	return SERIALISE(d, op);
}

/* What the tools copy from the processor into a PV guest's policy, for its programs see that; its kernel does not. */
static uint32_t topology_bits(const struct feature_word *f)
{
	if (f->leaf == 1 && f->reg == 'd')
		return 1u << (XEN_X86_FEATURE_HTT % 32);
	if (f->leaf == 0x80000001 && f->reg == 'c')
		return 1u << (XEN_X86_FEATURE_CMP_LEGACY % 32);
	return 0;
}

/* What a guest's programs see is the processor: a policy can hide features from its kernel, and can add none. */
long cpu_policy_set(struct domain *d, struct xen_domctl_cpu_policy *op)
{
	uint32_t hidden[NR_FEATURE_WORDS] = {0};

	op->err_leaf = op->err_subleaf = op->err_msr = ~0u;
	if (op->nr_leaves > LEAVES_MAX || op->nr_msrs > LEAVES_MAX)
		return -E2BIG;
	for (uint32_t i = 0; i < op->nr_leaves; i++) {
		xen_cpuid_leaf_t in;

		if (from_guest(&in, op->leaves, i))
			return -EFAULT;
		if (in.subleaf == XEN_CPUID_NO_SUBLEAF)
			in.subleaf = 0;
		for (unsigned w = 0; w < NR_FEATURE_WORDS; w++) {
			const struct feature_word *f = &feature_words[w];
			struct cpuid asked = {in.a, in.b, in.c, in.d};
			struct cpuid have = leaf_of(current->domain, in.leaf, in.subleaf);

			if (!f->reg || f->leaf != in.leaf || f->subleaf != in.subleaf)
				continue;
			if (*cpuid_register(&asked, f->reg) & ~*cpuid_register(&have, f->reg) &
			    ~topology_bits(f)) {
				op->err_leaf = in.leaf;
				op->err_subleaf = in.subleaf;
				return -EINVAL;
			}
			hidden[w] = ~*cpuid_register(&asked, f->reg);
		}
	}
	memcpy(d->feature_hidden, hidden, sizeof(hidden));
	return 0;
}
