/* SPDX-License-Identifier: MIT */
/*
 * The vectors of protocol-spec/vectors through stream_read, stream_order and the decoder, as both ends of a session use them: the good ones
 * decode to the expected memory, and those that can be refused by single records and their order are.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "migrate/encode.h"
#include "migrate/stream.h"
#include "tests/unit/unit.h"
#include "tests/unit/vectors.h"

struct bytes {
	uint8_t *data;
	size_t length, at;
};

static int read_bytes(void *ctx, void *data, size_t length, struct pgr_error *err)
{
	struct bytes *b = ctx;

	if (b->at == b->length)
		return pgr_fail(err, -ENODATA, "the end");
	if (length > b->length - b->at)
		return pgr_fail(err, -EPIPE, "the stream ends too early");
	memcpy(data, b->data + b->at, length);
	b->at += length;
	return 0;
}

static void load(struct bytes *b, const char *vector, const char *part)
{
	char path[VECTORS_PATH];
	FILE *f;

	vectors_path(vector, part, path);
	f = fopen(path, "rb");
	CHECK_MSG(f, "cannot open %s", path);
	fseek(f, 0, SEEK_END);
	*b = (struct bytes){.length = (size_t)ftell(f)};
	rewind(f);
	b->data = malloc(b->length + 1);
	CHECK_EQ(fread(b->data, 1, b->length, f), b->length);
	fclose(f);
}

struct codec {
	struct bytes in;
	struct stream_reader reader;
	struct stream_order order;
	struct decoder *decoder;
	struct pgr_stream_header header;
	enum stream_side side;
	bool verifying, over;
};

static int apply_pages(struct codec *c, const struct stream_record *rec, struct pgr_error *err)
{
	uint8_t *page[PGR_BATCH_MAX];
	struct decoded_header h;
	uint32_t crc[PGR_BATCH_MAX];
	int differs = -1;
	int rc;

	rc = decoder_parse(c->decoder, rec->body, rec->length, vectors_memory.nr_pfns, &h, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < h.nr; i++)
		page[i] = vectors_memory.page[h.pfn[i]];
	if (c->verifying) {
		rc = decoder_compare(c->decoder, page, &differs, err);
		return rc || differs < 0 ? rc : pgr_fail(err, -EBADMSG, "a page differs");
	}
	rc = decoder_pages(c->decoder, page, NULL, NULL, crc, err);
	for (unsigned i = 0; !rc && i < h.nr; i++)
		vectors_memory.present[h.pfn[i]] = h.transform[i] != PGR_ABSENT;
	return rc;
}

static int apply(struct codec *c, const struct stream_record *rec, struct pgr_error *err)
{
	switch (rec->type) {
	case PGR_REC_HELLO:
		vectors_memory.nr_pfns =
			((const struct pgr_hello *)(const void *)rec->body)->nr_pfns;
		if (vectors_memory.nr_pfns > VECTORS_PFNS_MAX)
			return pgr_fail(err, -EPROTO, "larger than this test's memory");
		return 0;
	case PGR_REC_VERIFY:
		c->verifying = true;
		return 0;
	case PGR_REC_DISK_DATA:
		c->over = !rec->length;
		return 0;
	case PGR_REC_PAGES:
		return apply_pages(c, rec, err);
	case PGR_REC_END:
	case PGR_REC_ABORT:
	case PGR_REC_QUERY:
	case PGR_REC_CHECK:
	case PGR_REC_STATUS:
	case PGR_REC_CHECK_REPLY:
		c->over = true;
		return 0;
	default:
		return 0;
	}
}

static void read_from(struct codec *c)
{
	stream_reader_free(&c->reader);
	stream_reader_init(&c->reader, read_bytes, &c->in);
}

/*
 * A connection that takes the place of a lost one. The source: header, RESUME, then the records from the one that the target named, of which
 * those that were seen before are repeated.
 */
static int reconnect(struct codec *c, uint32_t *repeated, struct pgr_error *err)
{
	struct stream_order first;
	struct stream_record rec;
	uint32_t next = c->reader.sequence;
	struct pgr_record peeked;
	int rc;

	read_from(c);
	rc = stream_read_header(&c->reader, &c->header, err);
	if (rc)
		return rc;
	if (c->side == STREAM_FROM_TARGET) {
		stream_order_init(&c->order, c->side, c->header.kind, c->header.channel);
		return 0;
	}
	stream_order_init(&first, c->side, c->header.kind, c->header.channel);
	rc = stream_read(&c->reader, &rec, err);
	if (!rc)
		rc = stream_order_next(&first, &rec, err);
	if (rc)
		return rc;
	c->reader.sequence = next;
	if (c->in.length - c->in.at >= sizeof(peeked)) {
		memcpy(&peeked, c->in.data + c->in.at, sizeof(peeked));
		if (peeked.sequence < next && peeked.type != 0x55474150) {
			*repeated = next - peeked.sequence;
			c->reader.sequence = peeked.sequence;
		}
	}
	return 0;
}

static bool at_header(const struct bytes *b)
{
	return b->length - b->at >= 8 && !memcmp(b->data + b->at, PGR_STREAM_MAGIC, 8);
}

static int read_all(struct codec *c, struct pgr_error *err)
{
	uint32_t repeated = 0;
	int rc = stream_read_header(&c->reader, &c->header, err);

	if (!rc)
		stream_order_init(&c->order, c->side, c->header.kind, c->header.channel);
	while (!rc) {
		struct stream_record rec;

		if (c->reader.records && at_header(&c->in)) {
			rc = reconnect(c, &repeated, err);
			continue;
		}
		rc = stream_read(&c->reader, &rec, err);
		if (rc)
			break;
		if (repeated) {
			repeated--;
			continue;
		}
		rc = stream_order_next(&c->order, &rec, err);
		if (!rc)
			rc = apply(c, &rec, err);
	}
	/* What a target says may stop anywhere; what a source says has an end. */
	if (rc == -ENODATA && (c->over || c->side == STREAM_FROM_TARGET))
		rc = 0;
	return rc;
}

static int codec_reads(const char *vector, const char *part, struct pgr_error *err)
{
	struct codec c = {.side = strncmp(part, "target", 6) ? STREAM_FROM_SOURCE
							     : STREAM_FROM_TARGET};
	int rc;

	load(&c.in, vector, part);
	stream_reader_init(&c.reader, read_bytes, &c.in);
	CHECK_EQ(decoder_create(&c.decoder, err), 0);
	rc = read_all(&c, err);
	decoder_free(c.decoder);
	stream_reader_free(&c.reader);
	free(c.in.data);
	return rc;
}

static void codec_check(const struct vector *v)
{
	struct pgr_error err = PGR_ERROR_NONE;
	int rc = vector_each_part(v, codec_reads, &err);

	if (vector_accepts(v)) {
		CHECK_MSG(!rc, "%s: refused: %s", v->name, err.text);
		vector_check_memory(v);
	} else if (vector_is(v, "needs", "codec")) {
		CHECK_MSG(rc, "%s: was accepted", v->name);
		CHECK_MSG(err.text[0], "%s: refused without a word", v->name);
	}
}

static void codec(void)
{
	vectors_each(codec_check);
}

UNIT_MAIN(TEST(codec))
