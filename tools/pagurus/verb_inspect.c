/* SPDX-License-Identifier: MIT */
/*
 * `pagurus inspect`: reads a saved file from end to end, checks everything that can be checked without a guest (sums, order, lengths, that
 * every group decompresses, the digest), and says what it is about. The first thing wrong ends it, named by record and offset.
 *
 * Memory: one record, one batch of pages, and 4 bytes and a bit for each page of the guest.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "migrate/channel.h"
#include "migrate/encode.h"
#include "migrate/stream.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

#define TYPES 128u /* record types below PGR_OPTIONAL */

struct inspection {
	bool json, list;
	struct channel *file;
	uint64_t size;
	struct stream_reader reader;
	struct stream_order order;
	struct decoder *decoder;
	uint8_t *scratch; /* PGR_BATCH_MAX pages */
	struct pgr_stream_header header;
	struct pgr_hello hello;
	char name[256];
	uint8_t uuid[16];
	uint32_t config_format, config_length;
	uint64_t stopped_ns;
	uint64_t records[TYPES];
	uint64_t pages[4]; /* by transform */
	uint64_t typed;	   /* page tables */
	uint64_t groups[3], group_in[3], group_out[3];
	uint64_t vcpus, rounds;
	uint32_t *crc; /* of each page as last seen */
	uint64_t *present;
	bool deltas; /* the digest needs contents that a look at one record cannot give */
	bool have_digest, complete;
	struct pgr_digest digest;
	uint64_t computed, computed_pages;
};

static int read_channel(void *ctx, void *data, size_t length, struct pgr_error *err)
{
	struct channel *c = ctx;

	return c->ops->read(c, data, length, err);
}

/* ---- one record ---- */

static int see_hello(struct inspection *n, const struct stream_record *rec, struct pgr_error *err)
{
	uint64_t pfns;

	memcpy(&n->hello, rec->body, sizeof(n->hello));
	pfns = n->hello.nr_pfns;
	n->crc = calloc(pfns + 1, sizeof(*n->crc));
	n->present = calloc(pfns / 64 + 1, sizeof(*n->present));
	if (!n->crc || !n->present)
		return pgr_fail(err, -ENOMEM, "no memory to keep the sums of %" PRIu64 " pages",
				pfns);
	return 0;
}

static int see_pages(struct inspection *n, const struct stream_record *rec, struct pgr_error *err)
{
	struct decoded_header h;
	const struct pgr_pages *head = (const void *)rec->body;
	const struct pgr_group *group;
	uint8_t *page[PGR_BATCH_MAX];
	uint32_t crc[PGR_BATCH_MAX];
	unsigned i;
	int rc;

	rc = decoder_parse(n->decoder, rec->body, rec->length, n->hello.nr_pfns, &h, err);
	if (rc)
		return rc;
	for (i = 0; i < h.nr; i++)
		page[i] = n->scratch + i * PGR_PAGE_SIZE;
	rc = decoder_pages(n->decoder, page, n->scratch, NULL, crc, err);
	if (rc)
		return rc;
	for (i = 0; i < h.nr; i++) {
		uint64_t word = h.pfn[i] / 64, bit = 1ull << h.pfn[i] % 64;

		n->pages[h.transform[i]]++;
		n->typed += (h.type[i] & PGR_TYPE_LEVEL_MASK) != 0;
		n->deltas |= h.transform[i] == PGR_DELTA;
		n->crc[h.pfn[i]] = crc[i];
		if (h.transform[i] == PGR_ABSENT)
			n->present[word] &= ~bit;
		else
			n->present[word] |= bit;
	}
	group = (const void *)(rec->body + sizeof(*head) + head->nr_pages * sizeof(uint64_t));
	for (i = 0; i < head->nr_groups; i++) {
		n->groups[group[i].codec]++;
		n->group_in[group[i].codec] += (uint64_t)group[i].nr_pages * PGR_PAGE_SIZE;
		n->group_out[group[i].codec] += group[i].length;
	}
	return 0;
}

static int see_identity(struct inspection *n, const struct stream_record *rec)
{
	size_t length = rec->length - sizeof(struct pgr_identity);

	memcpy(n->uuid, rec->body, sizeof(n->uuid));
	if (length >= sizeof(n->name))
		length = sizeof(n->name) - 1;
	memcpy(n->name, rec->body + sizeof(struct pgr_identity), length);
	return 0;
}

static int see_config(struct inspection *n, const struct stream_record *rec)
{
	memcpy(&n->config_format, rec->body, sizeof(n->config_format));
	n->config_length = rec->length - (uint32_t)sizeof(struct pgr_config);
	return 0;
}

static int see_digest(struct inspection *n, const struct stream_record *rec, struct pgr_error *err)
{
	uint64_t pfn;

	memcpy(&n->digest, rec->body, sizeof(n->digest));
	n->have_digest = true;
	for (pfn = 0; pfn < n->hello.nr_pfns; pfn++) {
		if (!(n->present[pfn / 64] >> pfn % 64 & 1))
			continue;
		n->computed += stream_page_digest(pfn, n->crc[pfn]);
		n->computed_pages++;
	}
	if (n->computed_pages != n->digest.pages)
		return pgr_fail(err, -EBADMSG,
				"the digest is over %" PRIu64 " pages, the file has %" PRIu64,
				n->digest.pages, n->computed_pages);
	if (!n->deltas && n->computed != n->digest.digest)
		return pgr_fail(err, -EBADMSG,
				"the digest says %016" PRIx64 ", the pages give %016" PRIx64,
				n->digest.digest, n->computed);
	return 0;
}

static int see(struct inspection *n, const struct stream_record *rec, struct pgr_error *err)
{
	n->records[rec->type & (TYPES - 1)]++;
	switch (rec->type) {
	case PGR_REC_HELLO:
		return see_hello(n, rec, err);
	case PGR_REC_IDENTITY:
		return see_identity(n, rec);
	case PGR_REC_CONFIG:
		return see_config(n, rec);
	case PGR_REC_PAGES:
		return see_pages(n, rec, err);
	case PGR_REC_ROUND_END:
		n->rounds++;
		return 0;
	case PGR_REC_STOP:
		memcpy(&n->stopped_ns, rec->body, sizeof(n->stopped_ns));
		return 0;
	case PGR_REC_VCPU_CONTEXT:
		n->vcpus++;
		return 0;
	case PGR_REC_DIGEST:
		return see_digest(n, rec, err);
	case PGR_REC_END:
		n->complete = true;
		return 0;
	default:
		return 0;
	}
}

/* ---- all of them ---- */

static int walk(struct inspection *n, struct pgr_error *err)
{
	struct stream_record rec;
	int rc;

	stream_reader_init(&n->reader, read_channel, n->file);
	rc = stream_read_header(&n->reader, &n->header, err);
	if (rc)
		return rc;
	if (n->header.kind != PGR_KIND_IMAGE && n->header.kind != PGR_KIND_CHECKPOINT)
		return pgr_fail(err, -EPROTO, "it is not a saved guest: stream kind %u",
				n->header.kind);
	stream_order_init(&n->order, STREAM_FROM_SOURCE, (enum pgr_kind)n->header.kind, 0);
	while (!n->complete) {
		rc = stream_read(&n->reader, &rec, err);
		if (rc == -ENODATA)
			return pgr_fail(err, rc,
					"it ends at offset 0x%" PRIx64 " after %" PRIu64
					" records, without its end: writing it was interrupted",
					n->reader.offset, n->reader.records);
		if (rc)
			return rc;
		if (n->list)
			printf("%8u  0x%010" PRIx64 "  %8u  %s\n", rec.sequence, rec.offset,
			       rec.length, stream_type_name(rec.type));
		rc = stream_order_next(&n->order, &rec, err);
		if (!rc)
			rc = see(n, &rec, err);
		if (rc)
			return pgr_fail_prefix(err, "record %u %s at offset 0x%" PRIx64,
					       rec.sequence, stream_type_name(rec.type),
					       rec.offset);
	}
	if (n->reader.offset != n->size)
		return pgr_fail(err, -EPROTO,
				"%" PRIu64 " bytes follow behind its end at offset 0x%" PRIx64,
				n->size - n->reader.offset, n->reader.offset);
	return 0;
}

static const char *kind_name(const struct inspection *n)
{
	return n->hello.guest_kind == PGR_GUEST_PV64  ? "PV, x86-64"
	       : n->hello.guest_kind == PGR_GUEST_SIM ? "simulated"
						      : "unknown";
}

static void when(const struct inspection *n, char out[64])
{
	time_t t = (time_t)(n->stopped_ns / 1000000000);
	struct tm parts;

	snprintf(out, 64, "unknown");
	if (n->stopped_ns && gmtime_r(&t, &parts))
		strftime(out, 64, "%Y-%m-%d %H:%M:%S UTC", &parts);
}

static const char *const codec_names[] = {"stored as they are", "LZ4", "Zstandard"};
static const char *const codec_keys[] = {"raw", "lz4", "zstd"};

static void show_words(const struct inspection *n)
{
	char a[UNITS_TEXT], b[UNITS_TEXT], hex[UNITS_HEX16], uuid[UNITS_UUID], time_text[64];
	unsigned i;

	when(n, time_text);
	printf("Guest       %s (%s), uuid %s\n", n->name, kind_name(n), units_uuid(n->uuid, uuid));
	printf("Saved       %s, session %s, stream version %u\n", time_text,
	       units_hex16(n->header.session, hex), n->header.version);
	printf("Memory      %s in %" PRIu64 " pages, of them %" PRIu64 " in the file\n",
	       units_show_size(n->hello.nr_pfns * PGR_PAGE_SIZE, a), n->hello.nr_pfns,
	       n->computed_pages);
	printf("vCPUs       %u\n", n->hello.vcpus);
	printf("File        %s, %" PRIu64 " records, %" PRIu64 " rounds\n",
	       units_show_size(n->size, a), n->reader.records, n->rounds);
	printf("Pages       %" PRIu64 " with data, %" PRIu64 " zero, %" PRIu64
	       " as differences, %" PRIu64 " that hold no memory; %" PRIu64 " page tables\n",
	       n->pages[PGR_DATA], n->pages[PGR_ZERO], n->pages[PGR_DELTA], n->pages[PGR_ABSENT],
	       n->typed);
	for (i = 0; i < 3; i++)
		if (n->groups[i])
			printf("            %s: %s in %s\n", codec_names[i],
			       units_show_size(n->group_in[i], a),
			       units_show_size(n->group_out[i], b));
	printf("            zero pages save %s\n",
	       units_show_size(n->pages[PGR_ZERO] * PGR_PAGE_SIZE, a));
	printf("Digest      %016" PRIx64 "%s\n", n->digest.digest,
	       n->deltas ? " (not recomputed: the file has differences)" : ", recomputed: right");
	puts("Every record's checksum, order and length is right.");
}

static void show_json(const struct inspection *n, int rc, const struct pgr_error *err)
{
	char hex[UNITS_HEX16], uuid[UNITS_UUID], digest[UNITS_TEXT];
	json_t *records = json_object(), *groups = json_object(), *all;
	unsigned i;

	for (i = 0; i < TYPES; i++)
		if (n->records[i])
			json_object_set_new(records,
					    stream_type_name(strcmp(stream_type_name(i), "unknown")
								     ? i
								     : i | PGR_OPTIONAL),
					    json_integer((json_int_t)n->records[i]));
	for (i = 0; i < 3; i++)
		json_object_set_new(groups, codec_keys[i],
				    json_pack("{sI sI sI}", "groups", (json_int_t)n->groups[i],
					      "bytes_in", (json_int_t)n->group_in[i], "bytes_out",
					      (json_int_t)n->group_out[i]));
	snprintf(digest, sizeof(digest), "%016" PRIx64, n->digest.digest);
	all = json_pack("{sb ss so ss ss sI sI si sI sI so so s{sI sI sI sI} sI ss sb sI}", "ok",
			rc == 0, "error", rc ? err->text : "", "guest", message_string(n->name),
			"uuid", units_uuid(n->uuid, uuid), "session",
			units_hex16(n->header.session, hex), "nr_pfns",
			(json_int_t)n->hello.nr_pfns, "pages_in_file",
			(json_int_t)n->computed_pages, "vcpus", (int)n->hello.vcpus, "size",
			(json_int_t)n->size, "rounds", (json_int_t)n->rounds, "records", records,
			"groups", groups, "pages", "data", (json_int_t)n->pages[PGR_DATA], "zero",
			(json_int_t)n->pages[PGR_ZERO], "delta", (json_int_t)n->pages[PGR_DELTA],
			"absent", (json_int_t)n->pages[PGR_ABSENT], "page_tables",
			(json_int_t)n->typed, "digest", digest, "digest_recomputed",
			rc == 0 && !n->deltas, "stopped_ns", (json_int_t)n->stopped_ns);
	json_object_set_new(all, "kind", json_string(kind_name(n)));
	json_dumpf(all, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(all);
}

static int inspect(struct inspection *n, const char *path, struct pgr_error *err)
{
	int rc = channel_file_open(path, &n->file, err);

	if (!rc)
		rc = channel_file_seek(n->file, 0, &n->size, err);
	if (!rc)
		rc = decoder_create(&n->decoder, err);
	n->scratch = aligned_alloc(PGR_PAGE_SIZE, PGR_BATCH_MAX * PGR_PAGE_SIZE);
	if (!rc && !n->scratch)
		rc = pgr_fail(err, -ENOMEM, "no memory for a batch of pages");
	if (!rc) {
		memset(n->scratch, 0, PGR_BATCH_MAX * PGR_PAGE_SIZE);
		rc = walk(n, err);
		if (rc)
			pgr_fail_prefix(err, "%s", path);
	}
	stream_reader_free(&n->reader);
	if (n->decoder)
		decoder_free(n->decoder);
	if (n->file)
		n->file->ops->close(n->file);
	free(n->scratch);
	return rc;
}

int verb_inspect(int argc, char **argv)
{
	static struct inspection n;
	const struct option_spec options[] = {
		{"records", OPTION_FLAG, &n.list, NULL, "list every record first", 0, 0},
		{"json", OPTION_FLAG, &n.json, NULL, "one JSON object", 0, 0},
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {"pagurus inspect [OPTIONS] FILE",
				    "Explain a saved guest and check all of the file.", options, 1,
				    1};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, rc;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (n.list && n.json)
		return options_complain(&usage, "--records and --json do not go together");
	rc = inspect(&n, argv[0], &err);
	if (n.json)
		show_json(&n, rc, &err);
	else if (!rc)
		show_words(&n);
	if (rc && !n.json)
		fprintf(stderr, "pagurus: %s\n", err.text);
	free(n.crc);
	free(n.present);
	return rc ? EXIT_FAILED : EXIT_OK;
}
