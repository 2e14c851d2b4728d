// SPDX-License-Identifier: MIT
/*
 * The codec: records out, records in. See stream.h for the contract and protocol-spec/stream.md for
 * the format.
 *
 * A reader trusts nothing before the record's CRC has been checked, with one exception: the length,
 * which says how much there is to check. It is bounded by PGR_RECORD_MAX, and the buffer grows only
 * behind bytes that really arrived, so that a forged length costs nothing. All other fields are
 * judged after the CRC: damage is called damage and not a protocol error.
 */
#include "migrate/stream.h"

#include <errno.h>
#include <isa-l/crc.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define BODY_PARTS_MAX 8u
/* First step of a reader's buffer; doubled while bytes keep coming. */
#define BUFFER_STEP (64u << 10)

static const uint8_t zeroes[8];

uint32_t stream_crc(uint32_t crc, const void *data, size_t length)
{
	return crc32_gzip_refl(crc, data, length);
}

/*
 * A CRC is the remainder of a polynomial over GF(2), bit 31 being the coefficient of x^0. A piece of n
 * bytes behind another shifts that one's remainder by x^8n, and as both begin and end with all bits
 * inverted, that is all there is to joining two.
 */
#define CRC_POLYNOMIAL 0xedb88320u

static uint32_t crc_multiply(uint32_t a, uint32_t b)
{
	uint32_t product = 0;

	for (; a; a <<= 1) {
		product ^= b & -(a >> 31);
		b = b >> 1 ^ (CRC_POLYNOMIAL & -(b & 1));
	}
	return product;
}

/* x^(8 * 2^k), by squaring; page: a byte's product with x^(8 * 4096) at each of its four places. */
static struct {
	uint32_t power[32];
	uint32_t page[4][256];
} crc_shift;
static pthread_once_t crc_shift_once = PTHREAD_ONCE_INIT;

static void crc_shift_init(void)
{
	uint32_t p = 1u << 23;

	for (unsigned k = 0; k < 32; k++, p = crc_multiply(p, p))
		crc_shift.power[k] = p;
	for (unsigned place = 0; place < 4; place++)
		for (uint32_t byte = 0; byte < 256; byte++)
			crc_shift.page[place][byte] =
				crc_multiply(byte << 8 * place, crc_shift.power[12]);
}
_Static_assert(PGR_PAGE_SIZE == 1 << 12, "power[12] shifts by a page");

uint32_t stream_crc_join(uint32_t first, uint32_t second, size_t length)
{
	pthread_once(&crc_shift_once, crc_shift_init);
	for (unsigned k = 0; length >> k; k++)
		if (length >> k & 1)
			first = crc_multiply(first, crc_shift.power[k]);
	return first ^ second;
}

uint32_t stream_crc_join_page(uint32_t first, uint32_t second)
{
	pthread_once(&crc_shift_once, crc_shift_init);
	return crc_shift.page[0][first & 255] ^ crc_shift.page[1][first >> 8 & 255] ^
	       crc_shift.page[2][first >> 16 & 255] ^ crc_shift.page[3][first >> 24] ^ second;
}

uint64_t stream_page_digest(uint64_t pfn, uint32_t page_crc)
{
	uint64_t x = pfn << 32 | page_crc;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static size_t padding(size_t length)
{
	return -length & 7;
}

void stream_writer_init(struct stream_writer *w, stream_write_fn *write, void *ctx)
{
	*w = (struct stream_writer){.write = write, .ctx = ctx};
}

void stream_reader_init(struct stream_reader *r, stream_read_fn *read, void *ctx)
{
	*r = (struct stream_reader){.read = read, .ctx = ctx};
}

void stream_reader_free(struct stream_reader *r)
{
	free(r->buffer);
	r->buffer = NULL;
	r->capacity = 0;
}

static uint32_t header_crc(const struct pgr_stream_header *h)
{
	struct pgr_stream_header plain = *h;

	plain.crc = 0;
	return stream_crc(0, &plain, sizeof(plain));
}

int stream_write_header(struct stream_writer *w, enum pgr_kind kind,
			const uint8_t session[PGR_SESSION_SIZE], unsigned channel,
			unsigned channels, struct pgr_error *err)
{
	struct pgr_stream_header h = {
		.version = PGR_VERSION,
		.kind = kind,
		.channel = (uint16_t)channel,
		.channels = (uint16_t)channels,
	};
	struct iovec iov = {.iov_base = &h, .iov_len = sizeof(h)};
	int rc;

	memcpy(h.magic, PGR_STREAM_MAGIC, sizeof(h.magic));
	memcpy(h.session, session, sizeof(h.session));
	h.crc = header_crc(&h);
	rc = w->write(w->ctx, &iov, 1, err);
	if (rc) {
		pgr_fail_prefix(err, "writing the stream header");
		return rc;
	}
	w->bytes += sizeof(h);
	return 0;
}

static int check_header(const struct pgr_stream_header *h, struct pgr_error *err)
{
	bool intact = h->crc == header_crc(h);

	if (memcmp(h->magic, PGR_STREAM_MAGIC, sizeof(h->magic)) != 0)
		return pgr_fail(err, -EPROTO,
				"this is not a Pagurus stream: it does not begin with \"PAGURUS\"");
	if (h->version != PGR_VERSION)
		return pgr_fail(err, -EPROTONOSUPPORT,
				"the stream has version %u and this program reads version %u%s",
				h->version, PGR_VERSION,
				!intact ? " (its checksum is wrong: perhaps it is damaged)"
				: h->version > PGR_VERSION ? ": use a newer pagurus"
							   : "");
	if (!intact)
		return pgr_fail(err, -EBADMSG,
				"the stream header is damaged: its checksum is %08x and not %08x",
				header_crc(h), h->crc);
	if (h->kind < PGR_KIND_MIGRATE || h->kind > PGR_KIND_REPLICATE)
		return pgr_fail(err, -EPROTO, "the stream header has the unknown kind %u", h->kind);
	if (h->channels < 1 || h->channels > PGR_CHANNELS_MAX || h->channel >= h->channels)
		return pgr_fail(err, -EPROTO,
				"the stream header says channel %u of %u; at most %u are possible",
				h->channel, h->channels, PGR_CHANNELS_MAX);
	if ((h->kind == PGR_KIND_IMAGE || h->kind == PGR_KIND_CHECKPOINT) && h->channels != 1)
		return pgr_fail(err, -EPROTO,
				"the stream header says %u channels, but a file has one",
				h->channels);
	return 0;
}

int stream_read_header(struct stream_reader *r, struct pgr_stream_header *h, struct pgr_error *err)
{
	int rc = r->read(r->ctx, h, sizeof(*h), err);

	if (rc) {
		pgr_fail_prefix(err, "reading the stream header");
		return rc;
	}
	rc = check_header(h, err);
	if (!rc)
		r->offset += sizeof(*h);
	return rc;
}

int stream_write(struct stream_writer *w, uint32_t type, const struct iovec *parts, unsigned nr,
		 struct pgr_error *err)
{
	struct pgr_record h = {.type = type, .sequence = w->sequence};
	struct iovec iov[BODY_PARTS_MAX + 2];
	size_t length = 0, pad;
	unsigned n = 0;
	uint32_t crc;
	int rc;

	if (nr > BODY_PARTS_MAX)
		return pgr_fail(
			err, -EINVAL,
			"a %s record in %u parts cannot be written: at most %u are possible",
			stream_type_name(type), nr, BODY_PARTS_MAX);
	for (unsigned i = 0; i < nr; i++) {
		if (parts[i].iov_len > PGR_RECORD_MAX - length)
			return pgr_fail(err, -EMSGSIZE,
					"a %s record is longer than the %u bytes that are possible",
					stream_type_name(type), PGR_RECORD_MAX);
		length += parts[i].iov_len;
	}
	h.length = (uint32_t)length;
	pad = padding(length);

	iov[n++] = (struct iovec){.iov_base = &h, .iov_len = sizeof(h)};
	crc = stream_crc(0, &h, sizeof(h));
	for (unsigned i = 0; i < nr; i++) {
		if (!parts[i].iov_len)
			continue;
		crc = stream_crc(crc, parts[i].iov_base, parts[i].iov_len);
		iov[n++] = parts[i];
	}
	if (pad) {
		crc = stream_crc(crc, zeroes, pad);
		iov[n++] = (struct iovec){.iov_base = (void *)zeroes, .iov_len = pad};
	}
	h.crc = crc;

	rc = w->write(w->ctx, iov, n, err);
	if (rc) {
		pgr_fail_prefix(err, "writing record %u %s", w->sequence, stream_type_name(type));
		return rc;
	}
	w->sequence++;
	w->records++;
	w->bytes += sizeof(h) + length + pad;
	return 0;
}

int stream_write_body(struct stream_writer *w, uint32_t type, const void *body, size_t length,
		      struct pgr_error *err)
{
	struct iovec iov = {.iov_base = (void *)body, .iov_len = length};

	return stream_write(w, type, &iov, 1, err);
}

size_t stream_seal(struct stream_writer *w, uint32_t type, void *record, size_t length,
		   uint32_t crc)
{
	struct pgr_record h = {.type = type, .length = (uint32_t)length, .sequence = w->sequence};
	size_t pad = padding(length), bytes = sizeof(h) + length + pad;

	memset((uint8_t *)record + sizeof(h) + length, 0, pad);
	h.crc = stream_crc(stream_crc_join(stream_crc(0, &h, sizeof(h)), crc, length), zeroes, pad);
	memcpy(record, &h, sizeof(h));
	w->sequence++;
	w->records++;
	w->bytes += bytes;
	return bytes;
}

static int grow(struct stream_reader *r, size_t needed, struct pgr_error *err)
{
	size_t size = r->capacity ? r->capacity * 2 : BUFFER_STEP;
	uint8_t *p;

	if (size > needed && needed > BUFFER_STEP)
		size = needed;
	p = realloc(r->buffer, size);
	if (!p)
		return pgr_fail(err, -ENOMEM, "no memory for a record of %zu bytes", needed);
	r->buffer = p;
	r->capacity = size;
	return 0;
}

/* LENGTH bytes into the buffer; the memory for them is made as they come. */
static int read_body(struct stream_reader *r, size_t length, struct pgr_error *err)
{
	size_t have = 0;

	while (have < length) {
		size_t n;
		int rc;

		if (have == r->capacity) {
			rc = grow(r, length, err);
			if (rc)
				return rc;
		}
		n = (length < r->capacity ? length : r->capacity) - have;
		rc = r->read(r->ctx, r->buffer + have, n, err);
		if (rc == -ENODATA)
			return pgr_fail(err, -EPIPE,
					"the stream ends after %zu of the body's %zu bytes", have,
					length);
		if (rc)
			return rc;
		have += n;
	}
	return 0;
}

static int check_record(const struct stream_reader *r, const struct pgr_record *h,
			struct pgr_error *err)
{
	struct pgr_record plain = *h;
	size_t padded = h->length + padding(h->length);
	uint32_t crc;

	plain.crc = 0;
	crc = stream_crc(0, &plain, sizeof(plain));
	crc = stream_crc(crc, r->buffer, padded);
	if (crc != h->crc)
		return pgr_fail(err, -EBADMSG, "damaged: its checksum is %08x and not %08x", crc,
				h->crc);
	if (padded > h->length && memcmp(r->buffer + h->length, zeroes, padded - h->length) != 0)
		return pgr_fail(err, -EBADMSG, "the padding after its %u bytes is not zero",
				h->length);
	if (h->sequence != r->sequence)
		return pgr_fail(err, -EPROTO, "it has the sequence number %u where %u is due",
				h->sequence, r->sequence);
	return 0;
}

/* One record, known or not. */
static int read_one(struct stream_reader *r, struct stream_record *rec, bool *known,
		    struct pgr_error *err)
{
	struct pgr_record h;
	size_t padded;
	int rc;

	rc = r->read(r->ctx, &h, sizeof(h), err);
	if (rc) {
		pgr_fail_prefix(err, "record %u at offset 0x%llx: reading its header", r->sequence,
				(unsigned long long)r->offset);
		return rc;
	}
	if (h.length > PGR_RECORD_MAX) {
		rc = pgr_fail(err, -EPROTO, "it says that it has %u bytes; at most %u are possible",
			      h.length, PGR_RECORD_MAX);
		goto out;
	}
	padded = h.length + padding(h.length);
	rc = read_body(r, padded, err);
	if (rc)
		goto out;
	rc = check_record(r, &h, err);
	if (rc)
		goto out;
	*known = strcmp(stream_type_name(h.type), "unknown") != 0;
	if (*known)
		rc = stream_check_body(h.type, r->buffer, h.length, err);
	else if (!(h.type & PGR_OPTIONAL))
		rc = pgr_fail(err, -EPROTONOSUPPORT,
			      "its type 0x%x is unknown and not optional: use a newer pagurus",
			      h.type);
	if (rc)
		goto out;
	*rec = (struct stream_record){
		.type = h.type,
		.length = h.length,
		.sequence = h.sequence,
		.offset = r->offset,
		.body = r->buffer,
	};
	r->sequence++;
	r->records++;
	r->offset += sizeof(h) + padded;
out:
	if (rc)
		pgr_fail_prefix(err, "record %u %s at offset 0x%llx", r->sequence,
				stream_type_name(h.type), (unsigned long long)r->offset);
	return rc;
}

int stream_read(struct stream_reader *r, struct stream_record *rec, struct pgr_error *err)
{
	bool known = false;
	int rc;

	do {
		rc = read_one(r, rec, &known, err);
	} while (!rc && !known);
	return rc;
}
