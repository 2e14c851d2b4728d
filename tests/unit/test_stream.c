// SPDX-License-Identifier: MIT
/*
 * The codec: what is written is read; every truncation, every flipped bit, every failing call and
 * allocation is refused with a message that names the record; nothing is allocated on the word of a
 * length alone.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "migrate/stream.h"
#include "tests/unit/stream_samples.h"
#include "tests/unit/unit.h"

static const uint8_t session[PGR_SESSION_SIZE] = "0123456789abcde";

static _Alignas(8) uint8_t body[SAMPLE_MAX];

/* A stream of one header and one record of the type. */
static void one_record(struct memory_stream *m, uint32_t type)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_writer w;

	stream_writer_init(&w, memory_write, m);
	CHECK_EQ(stream_write_header(&w, PGR_KIND_MIGRATE, session, 0, 4, &err), 0);
	CHECK_EQ(stream_write_body(&w, type, body, sample_body(type, 0, body), &err), 0);
	CHECK_EQ(w.records, 1);
	CHECK_EQ(w.bytes, m->length);
	CHECK_EQ(m->length % 8, 0);
}

/* Header and one record from the beginning; the first error. */
static int read_back(struct memory_stream *m, struct stream_reader *r, struct stream_record *rec,
		     struct pgr_error *err)
{
	struct pgr_stream_header h;
	int rc;

	stream_reader_init(r, memory_read, m);
	m->at = 0;
	rc = stream_read_header(r, &h, err);
	return rc ? rc : stream_read(r, rec, err);
}

static void crcs_of_pieces_are_joined(void)
{
	static uint8_t data[3 * PGR_PAGE_SIZE];
	uint64_t seed = unit_seed();
	uint32_t whole;

	unit_fill_random(&seed, data, sizeof(data));
	whole = stream_crc(0, data, sizeof(data));
	for (unsigned i = 0; i < 500; i++) {
		size_t cut = i ? unit_below(&seed, sizeof(data) + 1) : 0;

		CHECK_EQ(stream_crc_join(stream_crc(0, data, cut),
					 stream_crc(0, data + cut, sizeof(data) - cut),
					 sizeof(data) - cut),
			 whole);
	}
	for (unsigned i = 0; i < 50; i++) {
		size_t before = unit_below(&seed, 2 * PGR_PAGE_SIZE);
		uint32_t first = stream_crc(0, data, before);

		CHECK_EQ(stream_crc_join_page(first, stream_crc(0, data + before, PGR_PAGE_SIZE)),
			 stream_crc(0, data, before + PGR_PAGE_SIZE));
	}
}

static void crc_is_the_standard_one(void)
{
	CHECK_EQ(stream_crc(0, "123456789", 9), 0xcbf43926u);
	CHECK_EQ(stream_crc(stream_crc(0, "1234", 4), "56789", 5), 0xcbf43926u);
}

static void page_digest_is_the_page_of_the_format(void)
{
	CHECK_EQ(stream_page_digest(0, 0xc71c0011u), 0xf0bf4960b4127a96u);
	CHECK_EQ(stream_page_digest(3, 0x3ad9e426u), 0x6884d9a792f44911u);
}

static void every_type_round_trips(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	size_t nr;
	const uint32_t *type = sample_types(&nr);

	for (size_t i = 0; i < nr; i++) {
		struct memory_stream m = {0};
		struct stream_reader r;
		struct stream_record rec;
		size_t length;

		one_record(&m, type[i]);
		CHECK_MSG(read_back(&m, &r, &rec, &err) == 0, "%s", err.text);
		length = sample_body(type[i], 0, body);
		CHECK_EQ(rec.type, type[i]);
		CHECK_EQ(rec.length, length);
		CHECK_EQ(rec.sequence, 0);
		CHECK_EQ(rec.offset, 40);
		CHECK_EQ((uintptr_t)rec.body % 8, 0);
		CHECK_MEM(rec.body, body, length);
		CHECK_EQ(r.offset, m.length);
		CHECK_EQ(stream_read(&r, &rec, &err), -ENODATA);
		stream_reader_free(&r);
		memory_free(&m);
	}
}

/* Also through the table of names: a type without a sample would not be tested below. */
static void every_type_has_a_sample(void)
{
	size_t nr, named = 0;
	const uint32_t *type = sample_types(&nr);

	for (uint32_t t = 0; t < 0x100; t++) {
		for (unsigned bit = 0; bit < 2; bit++) {
			uint32_t full = t | (bit ? PGR_OPTIONAL : 0);

			named += strcmp(stream_type_name(full), "unknown") != 0;
		}
	}
	CHECK_EQ(named, nr + 1); /* DEVICE_STATE has no legal body in version 1 */
	CHECK_STR(stream_type_name(PGR_REC_PAGES), "PAGES");
	CHECK_STR(stream_type_name(0x777), "unknown");
	for (size_t i = 0; i < nr; i++)
		CHECK(strcmp(stream_type_name(type[i]), "unknown") != 0);
}

static void every_truncation_is_refused(void)
{
	struct pgr_error err;
	size_t nr;
	const uint32_t *type = sample_types(&nr);

	for (size_t i = 0; i < nr; i++) {
		struct memory_stream m = {0};
		char name[64];
		size_t full;

		one_record(&m, type[i]);
		full = m.length;
		snprintf(name, sizeof(name), "record 0 %s at offset 0x28",
			 stream_type_name(type[i]));
		for (m.length = 0; m.length < full; m.length++) {
			struct stream_reader r;
			struct stream_record rec;
			int rc = read_back(&m, &r, &rec, &err);

			stream_reader_free(&r);
			CHECK_EQ(rc, m.length == 0 || m.length == 40 ? -ENODATA : -EPIPE);
			if (m.length < 40)
				CHECK_HAS(err.text, "reading the stream header");
			else if (m.length < 56)
				CHECK_HAS(err.text, "record 0 at offset 0x28");
			else
				CHECK_HAS(err.text, name);
		}
		memory_free(&m);
	}
}

static void every_flipped_bit_is_refused(void)
{
	struct pgr_error err;
	size_t nr;
	const uint32_t *type = sample_types(&nr);

	for (size_t i = 0; i < nr; i++) {
		struct memory_stream m = {0};

		one_record(&m, type[i]);
		for (size_t bit = 0; bit < m.length * 8; bit++) {
			struct stream_reader r;
			struct stream_record rec;
			int rc;

			m.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
			rc = read_back(&m, &r, &rec, &err);
			stream_reader_free(&r);
			m.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
			CHECK_MSG(rc < 0, "bit %zu of %s was flipped and nobody noticed", bit,
				  stream_type_name(type[i]));
			/* in the length a flip can also look like an early end */
			CHECK(rc == -EBADMSG || rc == -EPROTO || rc == -EPROTONOSUPPORT ||
			      (rc == -EPIPE && bit / 8 >= 44 && bit / 8 < 48));
			CHECK_HAS(err.text, bit < 320 ? "stream" : "at offset 0x28");
		}
		memory_free(&m);
	}
}

static void every_shorter_or_longer_body_is_checked(void)
{
	struct pgr_error err;
	size_t nr, accepted = 0;
	const uint32_t *type = sample_types(&nr);

	for (size_t i = 0; i < nr; i++) {
		size_t length = sample_body(type[i], 0, body);
		bool text = type[i] == PGR_REC_IDENTITY || type[i] == PGR_REC_CONFIG ||
			    type[i] == PGR_REC_SIM_STATE || type[i] == PGR_REC_ABORT ||
			    type[i] == PGR_REC_CHECK_REPLY || type[i] == PGR_REC_NOTE ||
			    type[i] == PGR_REC_DISK || type[i] == PGR_REC_DISK_DATA;

		CHECK_MSG(stream_check_body(type[i], body, length, &err) == 0, "%s: %s",
			  stream_type_name(type[i]), err.text);
		for (size_t n = 0; n < length; n++) {
			/* exactly n bytes, so that ASan sees a read beyond */
			void *exact = aligned_alloc(8, (n + 7) & ~(size_t)7);
			int rc;

			CHECK(exact != NULL);
			memcpy(exact, body, n);
			rc = stream_check_body(type[i], exact, n, &err);
			free(exact);
			CHECK(rc == 0 || rc == -EPROTO);
			accepted += rc == 0;
			CHECK_MSG(rc || text, "%s of %zu bytes was accepted",
				  stream_type_name(type[i]), n);
		}
		if (!text)
			CHECK_EQ(stream_check_body(type[i], body, length + 8, &err), -EPROTO);
	}
	CHECK(accepted > 0);
	CHECK_EQ(stream_check_body(0x777, body, 0, &err), -EPROTO);
}

/* A field that must be refused: at `offset` of the sample, `size` bytes, this value. */
struct bad_field {
	uint32_t type;
	unsigned offset, size;
	uint64_t value;
	const char *says;
};

static const struct bad_field bad_fields[] = {
	{PGR_REC_HELLO, 0, 4, 0, "kind of guest"},
	{PGR_REC_HELLO, 0, 4, 3, "kind of guest"},
	{PGR_REC_HELLO, 4, 4, 0x40, "features 0x40"},
	{PGR_REC_HELLO, 8, 8, 0, "number of pfns"},
	{PGR_REC_HELLO, 8, 8, PGR_PFNS_MAX + 1, "number of pfns"},
	{PGR_REC_HELLO, 16, 8, 1025, "populated"},
	{PGR_REC_HELLO, 24, 4, 0, "vCPUs"},
	{PGR_REC_HELLO, 24, 4, 513, "vCPUs"},
	{PGR_REC_HELLO, 28, 4, 2, "live"},
	{PGR_REC_IDENTITY, 17, 1, 0x41, "UTF-8"},
	{PGR_REC_IDENTITY, 16, 1, '/', "'/'"},
	{PGR_REC_IDENTITY, 16, 1, '\n', "control character"},
	{PGR_REC_IDENTITY, 16, 1, 0, "control character"},
	{PGR_REC_IDENTITY, 16, 1, 0xff, "UTF-8"},
	{PGR_REC_IDENTITY, 17, 2, 0x80c0, "UTF-8"},   /* not the shortest form */
	{PGR_REC_IDENTITY, 16, 3, 0xa0a0ed, "UTF-8"}, /* a surrogate */
	{PGR_REC_IDENTITY, 16, 4, 0x808090f4, "UTF-8"},
	{PGR_REC_CPU_POLICY, 0, 4, 2, "do not make"},
	{PGR_REC_CPU_POLICY, 0, 4, 0xffffffff, "do not make"},
	{PGR_REC_CPU_POLICY, 4, 4, 0xffffffff, "do not make"},
	{PGR_REC_CPU_POLICY, 36, 4, 1, "reserved"},
	{PGR_REC_CONFIG, 0, 4, 0, "format"},
	{PGR_REC_CONFIG, 4, 4, 1, "reserved"},
	{PGR_REC_CONFIG, 9, 1, 0, "control character"},
	{PGR_REC_PARENT, 24, 8, 0, "generation"},
	{PGR_REC_DISK, 0, 8, 0, "size"},
	{PGR_REC_DISK, 0, 8, 1000, "512"},
	{PGR_REC_DISK, 0, 8, 2 * PGR_DISK_BYTES_MAX, "size"},
	{PGR_REC_DISK, 8, 8, UINT64_MAX, "used"},
	{PGR_REC_DISK, 16, 4, 3, "format"},
	{PGR_REC_DISK, 20, 4, 0, "length"},
	{PGR_REC_DISK, 20, 4, 30, "beyond"},
	{PGR_REC_DISK, 20, 4, UINT32_MAX, "length"},
	{PGR_REC_DISK, 20, 4, 3, "path"},
	{PGR_REC_DISK, 24, 1, '/', "letters"},
	{PGR_REC_DISK, 28, 1, '.', "path"},
	{PGR_REC_DISK, 29, 4, 0x2f2e2e2f, "'..'"}, /* "/../" */
	{PGR_REC_DISK, 29, 2, 0x2f2e, "'.'"},
	{PGR_REC_DISK, 33, 1, 0, "control character"},
	{PGR_REC_DISK, 36, 1, '/', "empty part"},
	{PGR_REC_DISK_ATTACH, 0, 4, PGR_DISKS_MAX, "number of the disk"},
	{PGR_REC_DISK_ATTACH, 4, 4, 1, "reserved"},
	{PGR_REC_PAGES, 0, 4, 0, "number of pages"},
	{PGR_REC_PAGES, 0, 4, 257, "number of pages"},
	{PGR_REC_PAGES, 4, 4, 4, "number of groups"},
	{PGR_REC_PAGES, 12, 4, 1, "reserved"},
	{PGR_REC_ROUND_END, 4, 4, 1, "reserved"},
	{PGR_REC_DIGEST, 8, 8, PGR_PFNS_MAX + 1, "number of pages"},
	{PGR_REC_READY, 8, 8, PGR_PFNS_MAX + 1, "number of pages"},
	{PGR_REC_PV_INFO, 0, 4, 4, "word size"},
	{PGR_REC_PV_INFO, 4, 4, 3, "levels"},
	{PGR_REC_PV_INFO, 8, 8, 0, "number of pfns"},
	{PGR_REC_PV_INFO, 16, 8, 1024, "start_info"},
	{PGR_REC_PV_P2M_FRAMES, 4, 4, 0, "frames"},
	{PGR_REC_PV_P2M_FRAMES, 4, 4, 0x20000002, "frames"},
	{PGR_REC_PV_P2M_FRAMES, 8, 8, PGR_PFNS_MAX, "frame 0"},
	{PGR_REC_VCPU_CONTEXT, 0, 4, 512, "vCPU"},
	{PGR_REC_VCPU_CONTEXT, 4, 4, 1, "reserved"},
	{PGR_REC_VCPU_CONTEXT, 8 + 4960, 4, 7169, "GDT"},
	{PGR_REC_VCPU_EXTENDED, 8, 4, 1, "vCPU of the blob"},
	{PGR_REC_VCPU_EXTENDED, 12, 4, 65, "size in the blob"},
	{PGR_REC_VCPU_EXTENDED, 12, 4, 31, "size in the blob"},
	{PGR_REC_VCPU_XSAVE, 16, 8, 591, "size field"},
	{PGR_REC_VCPU_XSAVE, 16, 8, UINT64_MAX, "size field"},
	{PGR_REC_VCPU_XSAVE, 24, 8, 2, "cannot be"},
	{PGR_REC_VCPU_XSAVE, 24, 8, 9, "contain each other"},
	{PGR_REC_VCPU_XSAVE, 32, 8, 0, "cannot be"},
	{PGR_REC_VCPU_XSAVE, 8, 8, 3, "contain each other"},
	{PGR_REC_VCPU_MSRS, 12, 4, 1, "reserved"},
	{PGR_REC_TSC_INFO, 0, 4, 4, "mode"},
	{PGR_REC_TSC_INFO, 20, 4, 1, "reserved"},
	{PGR_REC_HELLO_REPLY, 0, 4, 2, "version"},
	{PGR_REC_HELLO_REPLY, 8, 4, 0, "channels"},
	{PGR_REC_HELLO_REPLY, 8, 4, 17, "channels"},
	{PGR_REC_HELLO_REPLY, 12, 4, 0, "window"},
	{PGR_REC_PRECHECK, 0, 4, 2, "2 refusals"},
	{PGR_REC_PRECHECK, 4, 4, 1, "reserved"},
	{PGR_REC_PRECHECK, 8, 1, '\n', "empty"},
	{PGR_REC_ACK, 4, 4, 1, "reserved"},
	{PGR_REC_ABORT, 0, 4, 0, "reason"},
	{PGR_REC_ABORT, 0, 4, 8, "reason"},
	{PGR_REC_ABORT, 8, 1, 0x1b, "control character"},
	{PGR_REC_STATUS, 0, 4, 0, "state"},
	{PGR_REC_STATUS, 0, 4, 5, "state"},
	{PGR_REC_CONNECTED, 20, 4, 3, "waiting devices"},
	{PGR_REC_RESUME, 4, 4, 1, "reserved"},
	{PGR_REC_INDEX, 0, 8, 41, "offset"},
	{PGR_REC_INDEX, 0, 8, 0, "offset"},
	{PGR_REC_INDEX, 8, 8, 3, "last pfn"},
	{PGR_REC_INDEX, 16, 8, PGR_PFNS_MAX, "last pfn"},
	{PGR_REC_INDEX, 24, 4, 0, "number of pages"},
	{PGR_REC_INDEX, 28, 4, 1, "reserved"},
	{PGR_REC_END, 16, 8, 40, "INDEX"},
	{PGR_REC_END, 24, 8, 1, "INDEX"},
};

static void bad_fields_are_refused(void)
{
	for (size_t i = 0; i < sizeof(bad_fields) / sizeof(bad_fields[0]); i++) {
		const struct bad_field *f = &bad_fields[i];
		size_t length = sample_body(f->type, 0, body);
		struct pgr_error err = PGR_ERROR_NONE;

		memcpy(body + f->offset, &f->value, f->size);
		CHECK_MSG(stream_check_body(f->type, body, length, &err) == -EPROTO,
			  "%s with %llu at %u was accepted", stream_type_name(f->type),
			  (unsigned long long)f->value, f->offset);
		CHECK_HAS(err.text, f->says);
	}
}

static void doubled_msr_is_refused(void)
{
	struct pgr_error err;
	size_t length = sample_body(PGR_REC_VCPU_MSRS, 0, body);

	memcpy(body + length, body + sizeof(struct pgr_vcpu), sizeof(struct pgr_msr));
	CHECK_EQ(stream_check_body(PGR_REC_VCPU_MSRS, body, length + 16, &err), -EPROTO);
	CHECK_HAS(err.text, "comes twice");
}

static void header_fields_are_checked(void)
{
	static const struct {
		unsigned offset, size;
		uint64_t value;
		int code;
		const char *says;
	} bad[] = {
		{0, 1, 'X', -EPROTO, "not a Pagurus stream"},
		{8, 4, 2, -EPROTONOSUPPORT, "version 2 and this program reads version 1"},
		{12, 4, 0, -EPROTO, "kind 0"},
		{12, 4, 5, -EPROTO, "kind 5"},
		{12, 4, PGR_KIND_IMAGE, -EPROTO, "a file has one"},
		{32, 2, 4, -EPROTO, "channel 4 of 4"},
		{34, 2, 0, -EPROTO, "of 0"},
		{34, 2, 17, -EPROTO, "of 17"},
		{20, 1, 'x', -EBADMSG, "damaged"},
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct memory_stream m = {0};
		struct pgr_error err = PGR_ERROR_NONE;
		struct stream_reader r;
		struct stream_record rec;
		uint32_t crc;

		one_record(&m, PGR_REC_OPEN);
		memcpy(m.data + bad[i].offset, &bad[i].value, bad[i].size);
		if (bad[i].code != -EBADMSG) {
			memset(m.data + 36, 0, 4);
			crc = stream_crc(0, m.data, 40);
			memcpy(m.data + 36, &crc, 4);
		}
		CHECK_EQ(read_back(&m, &r, &rec, &err), bad[i].code);
		CHECK_HAS(err.text, bad[i].says);
		stream_reader_free(&r);
		memory_free(&m);
	}
}

/* Put a right CRC into the record at offset 40. */
static void seal(struct memory_stream *m)
{
	uint32_t crc = 0;

	memcpy(m->data + 52, &crc, 4);
	crc = stream_crc(0, m->data + 40, m->length - 40);
	memcpy(m->data + 52, &crc, 4);
}

static int read_sealed(struct memory_stream *m, struct pgr_error *err)
{
	struct stream_reader r;
	struct stream_record rec;
	int rc;

	seal(m);
	rc = read_back(m, &r, &rec, err);
	stream_reader_free(&r);
	memory_free(m);
	return rc;
}

static void forged_records_are_refused(void)
{
	struct memory_stream m = {0};
	struct pgr_error err = PGR_ERROR_NONE;

	one_record(&m, PGR_REC_STOP);
	m.data[48] = 1; /* sequence */
	CHECK_EQ(read_sealed(&m, &err), -EPROTO);
	CHECK_HAS(err.text, "record 0 STOP at offset 0x28: it has the sequence number 1 where 0");

	one_record(&m, PGR_REC_STOP);
	m.data[40] = 0x7e; /* type */
	CHECK_EQ(read_sealed(&m, &err), -EPROTONOSUPPORT);
	CHECK_HAS(err.text, "0x7e is unknown and not optional");

	one_record(&m, PGR_REC_NOTE);
	m.data[m.length - 1] = 1; /* the sample's 16 bytes need no padding: this is text */
	CHECK_EQ(read_sealed(&m, &err), -EPROTO);
	one_record(&m, PGR_REC_SIM_STATE);
	m.data[m.length - 1] = 1;
	CHECK_EQ(read_sealed(&m, &err), -EBADMSG);
	CHECK_HAS(err.text, "padding");
}

static void unknown_optional_records_are_skipped(void)
{
	struct memory_stream m = {0};
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_writer w;
	struct stream_reader r;
	struct stream_record rec;
	struct pgr_stream_header h;

	stream_writer_init(&w, memory_write, &m);
	CHECK_EQ(stream_write_header(&w, PGR_KIND_MIGRATE, session, 2, 4, &err), 0);
	CHECK_EQ(stream_write_body(&w, 0x77 | PGR_OPTIONAL, "future", 6, &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_PAGES | PGR_OPTIONAL, NULL, 0, &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_OPEN, NULL, 0, &err), 0);
	stream_reader_init(&r, memory_read, &m);
	CHECK_EQ(stream_read_header(&r, &h, &err), 0);
	CHECK_EQ(h.channel, 2);
	CHECK_MEM(h.session, session, sizeof(session));
	CHECK_EQ(stream_read(&r, &rec, &err), 0);
	CHECK_EQ(rec.type, PGR_REC_OPEN);
	CHECK_EQ(rec.sequence, 2);
	CHECK_EQ(r.records, 3);
	stream_reader_free(&r);
	memory_free(&m);
}

static void parts_are_one_body(void)
{
	char letters[] = "abcdefgh";
	struct iovec part[8];
	struct memory_stream m = {0};
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_writer w;
	struct stream_reader r;
	struct stream_record rec;

	for (unsigned i = 0; i < 8; i++)
		part[i] = (struct iovec){.iov_base = letters, .iov_len = i};
	stream_writer_init(&w, memory_write, &m);
	CHECK_EQ(stream_write_header(&w, PGR_KIND_MIGRATE, session, 0, 1, &err), 0);
	CHECK_EQ(stream_write(&w, PGR_REC_NOTE, part, 8, &err), 0);
	CHECK_EQ(read_back(&m, &r, &rec, &err), 0);
	CHECK_EQ(rec.length, 28);
	CHECK_MEM(rec.body, "aababcabcdabcdeabcdefabcdefg", 28);
	CHECK_EQ(stream_write(&w, PGR_REC_NOTE, part, 9, &err), -EINVAL);
	stream_reader_free(&r);
	memory_free(&m);
}

static void too_long_is_refused_on_both_sides(void)
{
	uint8_t *big = calloc(1, PGR_RECORD_MAX + 1);
	struct memory_stream m = {0};
	struct pgr_error err = PGR_ERROR_NONE;
	struct iovec halves[2];
	struct stream_writer w;
	struct stream_reader r;
	struct stream_record rec;
	uint32_t length = PGR_RECORD_MAX + 1;

	CHECK(big != NULL);
	stream_writer_init(&w, memory_write, &m);
	CHECK_EQ(stream_write_body(&w, PGR_REC_SIM_STATE, big, PGR_RECORD_MAX + 1, &err),
		 -EMSGSIZE);
	halves[0] = halves[1] = (struct iovec){.iov_base = big, .iov_len = SIZE_MAX / 2 + 1};
	CHECK_EQ(stream_write(&w, PGR_REC_SIM_STATE, halves, 2, &err), -EMSGSIZE);
	CHECK_EQ(m.length, 0);
	CHECK_EQ(w.sequence, 0);
	CHECK_EQ(stream_write_header(&w, PGR_KIND_MIGRATE, session, 0, 1, &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_SIM_STATE, big, PGR_RECORD_MAX, &err), 0);
	CHECK_EQ(read_back(&m, &r, &rec, &err), 0);
	CHECK_EQ(rec.length, PGR_RECORD_MAX);
	CHECK_EQ(r.capacity, PGR_RECORD_MAX);
	stream_reader_free(&r);
	memcpy(m.data + 44, &length, 4);
	CHECK_EQ(read_back(&m, &r, &rec, &err), -EPROTO);
	CHECK_HAS(err.text, "2097153 bytes; at most 2097152");
	CHECK(r.buffer == NULL);
	stream_reader_free(&r);
	memory_free(&m);
	free(big);
}

/*
 * A header that announces 2 MiB, with nothing behind it, costs one step of the buffer and no more.
 */
static void forged_length_costs_little(void)
{
	struct memory_stream m = {0};
	struct pgr_error err;
	struct stream_reader r;
	struct stream_record rec;
	uint32_t length = PGR_RECORD_MAX;

	one_record(&m, PGR_REC_STOP);
	memcpy(m.data + 44, &length, 4);
	CHECK_EQ(read_back(&m, &r, &rec, &err), -EPIPE);
	CHECK(r.capacity <= 64u << 10);
	stream_reader_free(&r);
	memory_free(&m);
}

static void every_failing_call_is_passed_on(void)
{
	static const struct sample_record records[] = {
		{.type = PGR_REC_HELLO}, {.type = PGR_REC_PV_SHARED_INFO}, {.type = PGR_REC_OPEN}};
	struct pgr_error err;
	unsigned k;

	for (k = 1; k <= 4; k++) {
		struct memory_stream m = {.fail_at = k, .fail_code = -ENOSPC};

		CHECK_EQ(sample_write(&m, PGR_KIND_MIGRATE, 0, false, records, 3, &err), -ENOSPC);
		CHECK_HAS(err.text, k == 1 ? "stream header" : "writing record");
		memory_free(&m);
	}
	for (k = 1; k <= 6; k++) {
		struct memory_stream m = {0};
		struct pgr_stream_header h;
		struct stream_reader r;
		struct stream_record rec;
		int rc;

		CHECK_EQ(sample_write(&m, PGR_KIND_MIGRATE, 0, false, records, 3, &err), 0);
		m.calls = 0;
		m.fail_at = k;
		m.fail_code = -ETIMEDOUT;
		stream_reader_init(&r, memory_read, &m);
		rc = stream_read_header(&r, &h, &err);
		while (!rc)
			rc = stream_read(&r, &rec, &err);
		CHECK_EQ(rc, -ETIMEDOUT);
		CHECK_HAS(err.text, k == 1 ? "stream header" : "record");
		stream_reader_free(&r);
		memory_free(&m);
	}
}

static void every_allocation_may_fail(void)
{
	uint8_t *big = calloc(1, 1u << 20);
	struct memory_stream m = {0};
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_writer w;
	struct stream_reader r;
	struct stream_record rec;
	unsigned long k;
	int rc = -ENOMEM;

	CHECK(big != NULL);
	stream_writer_init(&w, memory_write, &m);
	CHECK_EQ(stream_write_header(&w, PGR_KIND_MIGRATE, session, 0, 1, &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_SIM_STATE, big, 1u << 20, &err), 0);
	for (k = 1; rc == -ENOMEM; k++) {
		CHECK(k < 20);
		unit_fail_alloc(k);
		rc = read_back(&m, &r, &rec, &err);
		unit_fail_alloc(0);
		stream_reader_free(&r);
		if (rc)
			CHECK_HAS(err.text, "record 0 SIM_STATE at offset 0x28: no memory");
	}
	CHECK_EQ(rc, 0);
	CHECK(k > 4); /* it grows in steps */
	memory_free(&m);
	free(big);
}

/* The shortest ones, too: nothing in front of them is looked at. */
static void paths_of_disks_are_names_from_the_root(void)
{
	static const char *const good[] = {"/a", "/a.b", "/..a", "/a/b", "/.../b"};
	static const char *const bad[] = {"",	 "/",	  "a",	    "//",     "/.",   "/..",
					  "/a/", "/a//b", "/./a",   "/../a",  "/a/.", "/a/..",
					  "a/b", "./a",	  "/a/./b", "/a/../b"};

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		struct pgr_error err = PGR_ERROR_NONE;
		char *path = strdup(good[i]);

		CHECK_MSG(path && !stream_check_disk_path(path, strlen(path), &err), "%s: %s",
			  good[i], err.text);
		free(path);
	}
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct pgr_error err = PGR_ERROR_NONE;
		char *path = strdup(bad[i]);

		CHECK_MSG(path && stream_check_disk_path(path, strlen(path), &err) == -EPROTO,
			  "'%s' was accepted", bad[i]);
		free(path);
	}
}

UNIT_MAIN(TEST(crc_is_the_standard_one), TEST(crcs_of_pieces_are_joined),
	  TEST(page_digest_is_the_page_of_the_format), TEST(every_type_round_trips),
	  TEST(every_type_has_a_sample), TEST(every_truncation_is_refused),
	  TEST(every_flipped_bit_is_refused), TEST(every_shorter_or_longer_body_is_checked),
	  TEST(bad_fields_are_refused), TEST(doubled_msr_is_refused),
	  TEST(header_fields_are_checked), TEST(forged_records_are_refused),
	  TEST(unknown_optional_records_are_skipped), TEST(parts_are_one_body),
	  TEST(too_long_is_refused_on_both_sides), TEST(forged_length_costs_little),
	  TEST(every_failing_call_is_passed_on), TEST(every_allocation_may_fail),
	  TEST(paths_of_disks_are_names_from_the_root))
