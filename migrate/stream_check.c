// SPDX-License-Identifier: MIT
/*
 * What a record's body must be, whatever comes before or after it: one row a type, one function
 * where sizes do not say it all.
 */
#include "migrate/stream.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

/*
 * Bytes of Xen's public x86-64 structures that travel as blobs: vcpu_guest_context and
 * xen_domctl_ext_vcpucontext.
 */
#define VCPU_CONTEXT_SIZE  5168u
#define VCPU_EXTENDED_SIZE 64u
#define NAME_MAX_BYTES	   255u
/*
 * VCPU_XSAVE after the vCPU: feature mask and size, then size bytes that begin with xcr0 and
 * xcr0_accum.
 */
#define XSAVE_HEADER (sizeof(struct pgr_vcpu) + 16)
#define XSAVE_MIN    16u
#define XSAVE_AREA   576u /* legacy area and header of the architecture's XSAVE format */
#define FEATURES_KNOWN                                                                 \
	(PGR_FEATURE_LZ4 | PGR_FEATURE_ZSTD | PGR_FEATURE_DELTA | PGR_FEATURE_RESUME | \
	 PGR_FEATURE_VERIFY | PGR_FEATURE_DISKS)
#define TSC_MODE_MAX	 3u
#define CONTEXT_GDT_ENTS 4960u /* offset in vcpu_guest_context */
#define GDT_ENTS_MAX	 7168u
#define EXTENDED_MIN	 32u
/* A processor has far fewer that a guest may write; bounds the search for doubles. */
#define VCPU_MSRS_MAX 1024u

typedef int check_fn(const uint8_t *body, size_t length, struct pgr_error *err);

static int reserved_is_zero(uint64_t reserved, struct pgr_error *err)
{
	if (reserved)
		return pgr_fail(err, -EPROTO, "a reserved field is not zero");
	return 0;
}

static int in_range(const char *what, uint64_t value, uint64_t min, uint64_t max,
		    struct pgr_error *err)
{
	if (value < min || value > max)
		return pgr_fail(err, -EPROTO, "%s is %llu and not in %llu .. %llu", what,
				(unsigned long long)value, (unsigned long long)min,
				(unsigned long long)max);
	return 0;
}

/* Bytes of the UTF-8 character at p (shortest form, no surrogates), 0 when it is none. */
static unsigned utf8_length(const uint8_t *p, size_t left)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	unsigned n;
	uint32_t c;

	if (p[0] < 0x80)
		return 1;
	n = (p[0] & 0xe0) == 0xc0 ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : (p[0] & 0xf8) == 0xf0 ? 4 : 0;
	if (!n || n > left)
		return 0;
	c = p[0] & (0x7fu >> n);
	for (unsigned i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return 0;
	return n;
}

/* U+0000 to U+001F, U+007F to U+009F: the last half of them are two bytes. */
static bool is_control(const uint8_t *character)
{
	return character[0] < 0x20 || character[0] == 0x7f ||
	       (character[0] == 0xc2 && character[1] < 0xa0);
}

/*
 * A text may reach a terminal or a C string: valid UTF-8; of the control characters only line ends
 * and tabs, and those if LINES.
 */
static int check_text(const uint8_t *text, size_t length, bool lines, struct pgr_error *err)
{
	for (size_t i = 0; i < length;) {
		unsigned n = utf8_length(text + i, length - i);

		if (!n)
			return pgr_fail(err, -EPROTO, "its text is not UTF-8 at byte %zu", i);
		if (is_control(text + i) && !(lines && (text[i] == '\n' || text[i] == '\t')))
			return pgr_fail(err, -EPROTO,
					"its text has the control character U+%04X at byte %zu",
					n == 1 ? text[i] : text[i + 1], i);
		i += n;
	}
	return 0;
}

static int check_hello(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_hello *b = (const void *)body;
	int rc;

	(void)length;
	rc = in_range("the kind of guest", b->guest_kind, PGR_GUEST_PV64, PGR_GUEST_SIM, err);
	if (!rc)
		rc = in_range("the number of pfns", b->nr_pfns, 1, PGR_PFNS_MAX, err);
	if (!rc)
		rc = in_range("the number of populated pfns", b->populated, 0, b->nr_pfns, err);
	if (!rc)
		rc = in_range("the number of vCPUs", b->vcpus, 1, PGR_VCPUS_MAX, err);
	if (!rc)
		rc = in_range("the live flag", b->live, 0, 1, err);
	if (!rc && (b->features & ~FEATURES_KNOWN))
		rc = pgr_fail(err, -EPROTO, "the features 0x%x are unknown: use a newer pagurus",
			      b->features & ~FEATURES_KNOWN);
	return rc;
}

static int check_identity(const uint8_t *body, size_t length, struct pgr_error *err)
{
	if (memchr(body + sizeof(struct pgr_identity), '/', length - sizeof(struct pgr_identity)))
		return pgr_fail(err, -EPROTO, "the name has a '/'");
	return check_text(body + sizeof(struct pgr_identity), length - sizeof(struct pgr_identity),
			  false, err);
}

static int check_msrs(const uint8_t *array, size_t length, struct pgr_error *err)
{
	if (length % sizeof(struct pgr_msr))
		return pgr_fail(err, -EPROTO, "%zu bytes are no whole number of MSRs", length);
	for (size_t at = 0; at < length; at += sizeof(struct pgr_msr)) {
		const struct pgr_msr *m = (const void *)(array + at);
		int rc = reserved_is_zero(m->reserved, err);

		if (rc)
			return rc;
	}
	return 0;
}

static int check_cpu_policy(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_cpu_policy *b = (const void *)body;
	uint64_t leaves = (uint64_t)b->nr_leaves * sizeof(struct pgr_cpu_leaf);
	uint64_t msrs = (uint64_t)b->nr_msrs * sizeof(struct pgr_msr);

	if (sizeof(*b) + leaves + msrs != length)
		return pgr_fail(err, -EPROTO, "%u leaves and %u MSRs do not make %zu bytes",
				b->nr_leaves, b->nr_msrs, length);
	return check_msrs(body + sizeof(*b) + leaves, (size_t)msrs, err);
}

static int check_config(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_config *b = (const void *)body;
	int rc;

	rc = in_range("the format", b->format, PGR_CONFIG_LIBXL_JSON, PGR_CONFIG_SIM, err);
	if (!rc)
		rc = reserved_is_zero(b->reserved, err);
	if (!rc)
		rc = check_text(body + sizeof(*b), length - sizeof(*b), true, err);
	return rc;
}

static int check_parent(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_parent *b = (const void *)body;

	(void)length;
	return in_range("the generation", b->generation, 1, UINT64_MAX, err);
}

static bool is_part_of_path(const uint8_t *part, size_t length)
{
	return length && !(part[0] == '.' && (length == 1 || (length == 2 && part[1] == '.')));
}

int stream_check_disk_path(const void *text, size_t length, struct pgr_error *err)
{
	const uint8_t *path = text;
	size_t begin = 1;

	if (length < 2 || length > PGR_DISK_PATH_MAX || path[0] != '/')
		return pgr_fail(err, -EPROTO, "its path is not one of 2 .. %u bytes from '/' on",
				PGR_DISK_PATH_MAX);
	for (size_t i = 1; i <= length; i++) {
		if (i < length && path[i] != '/')
			continue;
		if (!is_part_of_path(path + begin, i - begin))
			return pgr_fail(err, -EPROTO, "its path has an empty part, '.' or '..'");
		begin = i + 1;
	}
	return check_text(path, length, false, err);
}

static int check_disk(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_disk *b = (const void *)body;
	const uint8_t *vdev = body + sizeof(*b);
	int rc;

	rc = in_range("the size", b->size, 512, PGR_DISK_BYTES_MAX, err);
	if (!rc && b->size % 512)
		rc = pgr_fail(err, -EPROTO, "the size is no multiple of 512");
	if (!rc)
		rc = in_range("the used size", b->used, 0, PGR_DISK_BYTES_MAX, err);
	if (!rc)
		rc = in_range("the format", b->format, PGR_DISK_RAW, PGR_DISK_QCOW2, err);
	if (!rc)
		rc = in_range("the length of its name", b->vdev_length, 1, PGR_DISK_VDEV_MAX, err);
	if (!rc && b->vdev_length > length - sizeof(*b))
		rc = pgr_fail(err, -EPROTO, "its name reaches beyond the record");
	for (unsigned i = 0; !rc && i < b->vdev_length; i++)
		if (!((vdev[i] >= 'a' && vdev[i] <= 'z') || (vdev[i] >= '0' && vdev[i] <= '9')))
			rc = pgr_fail(err, -EPROTO, "its name is not one of letters and digits");
	return rc ? rc
		  : stream_check_disk_path(vdev + b->vdev_length,
					   length - sizeof(*b) - b->vdev_length, err);
}

static int check_disk_attach(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_disk_attach *b = (const void *)body;
	int rc;

	(void)length;
	rc = in_range("the number of the disk", b->disk, 0, PGR_DISKS_MAX - 1, err);
	return rc ? rc : reserved_is_zero(b->reserved, err);
}

static int check_page_word(uint64_t word, unsigned i, struct pgr_error *err)
{
	unsigned transform = PGR_PAGE_TRANSFORM(word), type = PGR_PAGE_TYPE(word);

	if (word != PGR_PAGE_WORD(PGR_PAGE_PFN(word), transform, type))
		return pgr_fail(err, -EPROTO, "page %u: a reserved bit is set in 0x%016llx", i,
				(unsigned long long)word);
	if (PGR_PAGE_PFN(word) >= PGR_PFNS_MAX)
		return pgr_fail(err, -EPROTO, "page %u: pfn 0x%llx is larger than any guest", i,
				(unsigned long long)PGR_PAGE_PFN(word));
	if (transform > PGR_ABSENT)
		return pgr_fail(err, -EPROTO, "page %u: the transform %u is unknown", i, transform);
	if ((type & PGR_TYPE_LEVEL_MASK) > PGR_TYPE_L4 || type == PGR_TYPE_PINNED)
		return pgr_fail(err, -EPROTO, "page %u: the page type %u is unknown", i, type);
	if (type && (transform == PGR_DELTA || transform == PGR_ABSENT))
		return pgr_fail(err, -EPROTO,
				"page %u: a page table (type %u) must be sent whole, not as %s", i,
				type, transform == PGR_DELTA ? "a delta" : "absent");
	return 0;
}

static int check_group(const struct pgr_group *g, unsigned i, struct pgr_error *err)
{
	if (g->codec > PGR_CODEC_ZSTD)
		return pgr_fail(err, -EPROTO, "group %u: the codec %u is unknown", i, g->codec);
	if (!g->nr_pages || g->nr_pages > PGR_BATCH_MAX)
		return pgr_fail(err, -EPROTO, "group %u: it has %u pages and not 1 .. %u", i,
				g->nr_pages, PGR_BATCH_MAX);
	if (g->reserved)
		return pgr_fail(err, -EPROTO, "group %u: a reserved field is not zero", i);
	if (!g->length || g->length > g->nr_pages * PGR_PAGE_SIZE ||
	    (g->codec == PGR_CODEC_RAW && g->length != g->nr_pages * PGR_PAGE_SIZE))
		return pgr_fail(err, -EPROTO, "group %u: %u bytes cannot be %u pages", i, g->length,
				g->nr_pages);
	return 0;
}

/* The groups' data must fill the body to its last byte. */
static int check_groups(const uint8_t *body, size_t length, size_t offset, unsigned with_data,
			struct pgr_error *err)
{
	const struct pgr_pages *b = (const void *)body;
	const struct pgr_group *g = (const void *)(body + offset);
	unsigned pages = 0;

	offset += b->nr_groups * sizeof(*g);
	for (unsigned i = 0; i < b->nr_groups; i++) {
		size_t padded = ((size_t)g[i].length + 7) & ~(size_t)7;
		int rc = check_group(&g[i], i, err);

		if (rc)
			return rc;
		if (padded > length - offset)
			return pgr_fail(err, -EPROTO,
					"group %u: its %u bytes reach beyond the record's %zu", i,
					g[i].length, length);
		for (size_t at = g[i].length; at < padded; at++) {
			if (body[offset + at])
				return pgr_fail(err, -EPROTO, "group %u: its padding is not zero",
						i);
		}
		offset += padded;
		pages += g[i].nr_pages;
	}
	if (offset != length)
		return pgr_fail(err, -EPROTO, "%zu bytes follow the last group", length - offset);
	if (pages != with_data)
		return pgr_fail(err, -EPROTO, "%u pages have data but the groups hold %u",
				with_data, pages);
	return 0;
}

static int check_pages(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_pages *b = (const void *)body;
	const uint64_t *word = (const void *)(body + sizeof(*b));
	size_t words, groups;
	unsigned with_data = 0;
	int rc;

	rc = in_range("the number of pages", b->nr_pages, 1, PGR_BATCH_MAX, err);
	if (!rc)
		rc = in_range("the number of groups", b->nr_groups, 0, b->nr_pages, err);
	if (!rc)
		rc = reserved_is_zero(b->reserved, err);
	if (rc)
		return rc;
	words = b->nr_pages * sizeof(uint64_t);
	groups = b->nr_groups * sizeof(struct pgr_group);
	if (sizeof(*b) + words + groups > length)
		return pgr_fail(err, -EPROTO, "%u pages and %u groups do not fit into %zu bytes",
				b->nr_pages, b->nr_groups, length);
	for (unsigned i = 0; i < b->nr_pages; i++) {
		unsigned transform = PGR_PAGE_TRANSFORM(word[i]);

		rc = check_page_word(word[i], i, err);
		if (rc)
			return rc;
		with_data += transform == PGR_DATA || transform == PGR_DELTA;
	}
	return check_groups(body, length, sizeof(*b) + words, with_data, err);
}

static int check_round_end(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_round_end *b = (const void *)body;

	(void)length;
	return reserved_is_zero(b->reserved, err);
}

static int check_digest(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_digest *b = (const void *)body;

	(void)length;
	return in_range("the number of pages", b->pages, 0, PGR_PFNS_MAX, err);
}

static int check_pv_info(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_pv_info *b = (const void *)body;
	int rc;

	(void)length;
	rc = in_range("the word size", b->word_size, 8, 8, err);
	if (!rc)
		rc = in_range("the number of page-table levels", b->levels, 4, 4, err);
	if (!rc)
		rc = in_range("the number of pfns", b->nr_pfns, 1, PGR_PFNS_MAX, err);
	if (!rc)
		rc = in_range("the pfn of start_info", b->start_info_pfn, 0, b->nr_pfns - 1, err);
	return rc;
}

static int check_pv_p2m_frames(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_pv_p2m_frames *b = (const void *)body;
	const uint64_t *pfn = (const void *)(body + sizeof(*b));

	if (!b->count || sizeof(*b) + (uint64_t)b->count * sizeof(*pfn) != length)
		return pgr_fail(err, -EPROTO, "%u frames do not make %zu bytes", b->count, length);
	for (uint32_t i = 0; i < b->count; i++) {
		if (pfn[i] >= PGR_PFNS_MAX)
			return pgr_fail(err, -EPROTO,
					"frame %u: pfn 0x%llx is larger than any guest", i,
					(unsigned long long)pfn[i]);
	}
	return 0;
}

static int check_vcpu(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_vcpu *b = (const void *)body;
	int rc;

	(void)length;
	rc = in_range("the vCPU", b->vcpu, 0, PGR_VCPUS_MAX - 1, err);
	if (!rc)
		rc = reserved_is_zero(b->reserved, err);
	return rc;
}

static int check_vcpu_context(const uint8_t *body, size_t length, struct pgr_error *err)
{
	uint32_t gdt_ents;
	int rc = check_vcpu(body, length, err);

	memcpy(&gdt_ents, body + sizeof(struct pgr_vcpu) + CONTEXT_GDT_ENTS, sizeof(gdt_ents));
	if (!rc)
		rc = in_range("the number of GDT entries", gdt_ents, 0, GDT_ENTS_MAX, err);
	return rc;
}

static int check_vcpu_extended(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_vcpu *b = (const void *)body;
	const struct {
		uint32_t vcpu, size;
	} *blob = (const void *)(b + 1);
	int rc = check_vcpu(body, length, err);

	if (!rc)
		rc = in_range("the vCPU of the blob", blob->vcpu, b->vcpu, b->vcpu, err);
	if (!rc)
		rc = in_range("the size in the blob", blob->size, EXTENDED_MIN, VCPU_EXTENDED_SIZE,
			      err);
	return rc;
}

static int check_vcpu_xsave(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct {
		uint64_t mask, size, xcr0, accum;
	} *b = (const void *)(body + sizeof(struct pgr_vcpu));
	int rc = check_vcpu(body, length, err);

	if (rc)
		return rc;
	if (b->size != length - XSAVE_HEADER)
		return pgr_fail(err, -EPROTO, "its size field says %llu, but %zu bytes follow",
				(unsigned long long)b->size, length - XSAVE_HEADER);
	if (b->accum ? !(b->xcr0 & 1) || b->size < XSAVE_MIN + XSAVE_AREA : b->xcr0 != 0)
		return pgr_fail(err, -EPROTO,
				"xcr0 0x%llx with xcr0_accum 0x%llx and %llu bytes cannot be",
				(unsigned long long)b->xcr0, (unsigned long long)b->accum,
				(unsigned long long)b->size);
	if ((b->xcr0 & ~b->accum) || (b->accum & ~b->mask))
		return pgr_fail(
			err, -EPROTO,
			"xcr0 0x%llx, xcr0_accum 0x%llx, mask 0x%llx do not contain each other",
			(unsigned long long)b->xcr0, (unsigned long long)b->accum,
			(unsigned long long)b->mask);
	return 0;
}

static int check_vcpu_msrs(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_msr *m = (const void *)(body + sizeof(struct pgr_vcpu));
	size_t nr = (length - sizeof(struct pgr_vcpu)) / sizeof(*m);
	int rc = check_vcpu(body, length, err);

	if (!rc)
		rc = check_msrs((const uint8_t *)m, length - sizeof(struct pgr_vcpu), err);
	if (!rc)
		rc = in_range("the number of MSRs", nr, 1, VCPU_MSRS_MAX, err);
	for (size_t i = 0; !rc && i < nr; i++) {
		for (size_t k = 0; k < i; k++) {
			if (m[k].index == m[i].index)
				return pgr_fail(err, -EPROTO, "MSR 0x%x comes twice", m[i].index);
		}
	}
	return rc;
}

static int check_tsc_info(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_tsc_info *b = (const void *)body;
	int rc;

	(void)length;
	rc = in_range("the mode", b->mode, 0, TSC_MODE_MAX, err);
	if (!rc)
		rc = reserved_is_zero(b->reserved, err);
	return rc;
}

static int check_device_state(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_device_state *b = (const void *)body;

	(void)length;
	return pgr_fail(err, -EPROTO, "the kind of device %u is unknown: use a newer pagurus",
			b->kind);
}

static int check_hello_reply(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_hello_reply *b = (const void *)body;
	int rc;

	(void)length;
	rc = in_range("the version", b->version, PGR_VERSION, PGR_VERSION, err);
	if (!rc)
		rc = in_range("the number of channels", b->channels, 1, PGR_CHANNELS_MAX, err);
	if (!rc)
		rc = in_range("the window", b->window, 1, UINT32_MAX, err);
	return rc;
}

static int check_precheck(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_precheck *b = (const void *)body;
	uint64_t lines = 0;
	int rc;

	rc = reserved_is_zero(b->reserved, err);
	if (!rc)
		rc = check_text(body + sizeof(*b), length - sizeof(*b), true, err);
	if (rc)
		return rc;
	for (size_t i = sizeof(*b); i < length; i++) {
		bool ends = body[i] == '\n';

		if (ends && (i == sizeof(*b) || body[i - 1] == '\n'))
			return pgr_fail(err, -EPROTO, "line %llu of its text is empty",
					(unsigned long long)lines + 1);
		lines += ends;
	}
	if (lines != b->refusals || (length > sizeof(*b) && body[length - 1] != '\n'))
		return pgr_fail(err, -EPROTO,
				"it announces %u refusals; its text has %llu whole lines",
				b->refusals, (unsigned long long)lines);
	return 0;
}

/* ACK, RESUME and RESUME_REPLY: a sequence number and a reserved field. */
static int check_sequence(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_resume *b = (const void *)body;

	(void)length;
	return reserved_is_zero(b->reserved, err);
}
_Static_assert(sizeof(struct pgr_ack) == sizeof(struct pgr_resume) &&
		       offsetof(struct pgr_ack, reserved) == offsetof(struct pgr_resume, reserved),
	       "check_sequence serves both");

static int check_abort(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_abort *b = (const void *)body;
	int rc;

	rc = in_range("the reason", b->reason, PGR_ABORT_CANCELLED, PGR_ABORT_INTERNAL, err);
	if (!rc)
		rc = reserved_is_zero(b->reserved, err);
	if (!rc)
		rc = check_text(body + sizeof(*b), length - sizeof(*b), true, err);
	return rc;
}

static int check_status(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_status *b = (const void *)body;
	int rc;

	(void)length;
	rc = in_range("the state", b->state, PGR_STATE_NOT_STARTED, PGR_STATE_RUNNING, err);
	if (!rc)
		rc = reserved_is_zero(b->reserved, err);
	return rc;
}

static int check_connected(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_connected *b = (const void *)body;

	(void)length;
	return in_range("the number of waiting devices", b->waiting, 0, b->devices, err);
}

static int check_lines(const uint8_t *body, size_t length, struct pgr_error *err)
{
	return check_text(body, length, true, err);
}

static int check_index(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_index_entry *e = (const void *)body;

	if (length % sizeof(*e))
		return pgr_fail(err, -EPROTO, "%zu bytes are no whole number of entries", length);
	for (size_t i = 0; i < length / sizeof(*e); i++) {
		int rc = reserved_is_zero(e[i].reserved, err);

		if (!rc && (e[i].offset < sizeof(struct pgr_stream_header) || e[i].offset % 8))
			rc = pgr_fail(err, -EPROTO, "no record can begin at offset 0x%llx",
				      (unsigned long long)e[i].offset);
		if (!rc)
			rc = in_range("the last pfn", e[i].last_pfn, e[i].first_pfn,
				      PGR_PFNS_MAX - 1, err);
		if (!rc)
			rc = in_range("the number of pages", e[i].nr_pages, 1, PGR_BATCH_MAX, err);
		if (rc) {
			pgr_fail_prefix(err, "entry %zu", i);
			return rc;
		}
	}
	return 0;
}

static int check_end(const uint8_t *body, size_t length, struct pgr_error *err)
{
	const struct pgr_end *b = (const void *)body;

	(void)length;
	if (!b->index_offset != !b->index_records)
		return pgr_fail(err, -EPROTO, "it names %llu INDEX records at offset 0x%llx",
				(unsigned long long)b->index_records,
				(unsigned long long)b->index_offset);
	if (b->index_offset >= b->bytes && b->index_records)
		return pgr_fail(err, -EPROTO,
				"its index at offset 0x%llx is not within the %llu bytes before it",
				(unsigned long long)b->index_offset, (unsigned long long)b->bytes);
	return 0;
}

struct body_rule {
	uint32_t type;
	uint32_t min, max; /* bytes of body */
	const char *name;
	check_fn *check; /* NULL: the size says it all */
};

#define VCPU sizeof(struct pgr_vcpu)
#define ANY  PGR_RECORD_MAX

#define FIXED(type, size, fn)                             \
	{                                                 \
		PGR_REC_##type, (size), (size), #type, fn \
	}
#define EMPTY(type) FIXED(type, 0, NULL)
#define SIZED(type, min, max, fn)                       \
	{                                               \
		PGR_REC_##type, (min), (max), #type, fn \
	}

static const struct body_rule rules[] = {
	FIXED(HELLO, sizeof(struct pgr_hello), check_hello),
	SIZED(IDENTITY, sizeof(struct pgr_identity) + 1,
	      sizeof(struct pgr_identity) + NAME_MAX_BYTES, check_identity),
	SIZED(CPU_POLICY, sizeof(struct pgr_cpu_policy), ANY, check_cpu_policy),
	SIZED(CONFIG, sizeof(struct pgr_config) + 1, ANY, check_config),
	FIXED(PARENT, sizeof(struct pgr_parent), check_parent),
	EMPTY(OPEN),
	SIZED(DISK, sizeof(struct pgr_disk) + 3,
	      sizeof(struct pgr_disk) + PGR_DISK_VDEV_MAX + PGR_DISK_PATH_MAX, check_disk),
	FIXED(DISK_ATTACH, sizeof(struct pgr_disk_attach), check_disk_attach),
	SIZED(DISK_DATA, 0, PGR_DISK_DATA_MAX, NULL),
	SIZED(PAGES, sizeof(struct pgr_pages), ANY, check_pages),
	FIXED(ROUND_END, sizeof(struct pgr_round_end), check_round_end),
	FIXED(STOP, sizeof(struct pgr_stop), NULL),
	EMPTY(VERIFY),
	FIXED(DIGEST, sizeof(struct pgr_digest), check_digest),
	FIXED(PV_INFO, sizeof(struct pgr_pv_info), check_pv_info),
	SIZED(PV_P2M_FRAMES, sizeof(struct pgr_pv_p2m_frames), ANY, check_pv_p2m_frames),
	FIXED(PV_SHARED_INFO, PGR_PAGE_SIZE, NULL),
	FIXED(VCPU_CONTEXT, VCPU + VCPU_CONTEXT_SIZE, check_vcpu_context),
	FIXED(VCPU_EXTENDED, VCPU + VCPU_EXTENDED_SIZE, check_vcpu_extended),
	SIZED(VCPU_XSAVE, XSAVE_HEADER + XSAVE_MIN, ANY, check_vcpu_xsave),
	SIZED(VCPU_MSRS, VCPU, ANY, check_vcpu_msrs),
	FIXED(TSC_INFO, sizeof(struct pgr_tsc_info), check_tsc_info),
	SIZED(DEVICE_STATE, sizeof(struct pgr_device_state), ANY, check_device_state),
	SIZED(SIM_STATE, 0, ANY, NULL),
	FIXED(HELLO_REPLY, sizeof(struct pgr_hello_reply), check_hello_reply),
	SIZED(PRECHECK, sizeof(struct pgr_precheck), ANY, check_precheck),
	FIXED(ACK, sizeof(struct pgr_ack), check_sequence),
	FIXED(READY, sizeof(struct pgr_digest), check_digest),
	EMPTY(COMMIT),
	EMPTY(RUNNING),
	SIZED(ABORT, sizeof(struct pgr_abort), ANY, check_abort),
	EMPTY(QUERY),
	FIXED(STATUS, sizeof(struct pgr_status), check_status),
	FIXED(RESUME, sizeof(struct pgr_resume), check_sequence),
	FIXED(RESUME_REPLY, sizeof(struct pgr_resume), check_sequence),
	EMPTY(CHECK),
	SIZED(CHECK_REPLY, 0, ANY, check_lines),
	EMPTY(KEEPALIVE),
	FIXED(CONNECTED, sizeof(struct pgr_connected), check_connected),
	SIZED(INDEX, sizeof(struct pgr_index_entry), ANY, check_index),
	SIZED(NOTE, 0, ANY, check_lines),
	FIXED(END, sizeof(struct pgr_end), check_end),
};

static const struct body_rule *find_rule(uint32_t type)
{
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		if (rules[i].type == type)
			return &rules[i];
	}
	return NULL;
}

const char *stream_type_name(uint32_t type)
{
	const struct body_rule *rule = find_rule(type);

	return rule ? rule->name : "unknown";
}

int stream_check_body(uint32_t type, const void *body, size_t length, struct pgr_error *err)
{
	const struct body_rule *rule = find_rule(type);

	if (!rule)
		return pgr_fail(err, -EPROTO, "the record type 0x%x is unknown", type);
	if (length < rule->min || length > rule->max) {
		if (rule->min == rule->max)
			return pgr_fail(err, -EPROTO, "its body has %zu bytes and not %u", length,
					rule->min);
		return pgr_fail(err, -EPROTO, "its body has %zu bytes and not %u .. %u", length,
				rule->min, rule->max);
	}
	return rule->check ? rule->check(body, length, err) : 0;
}
