/* SPDX-License-Identifier: MIT */
/*
 * The codec: records out, records in. The format is protocol-spec/stream.md.
 *
 * A writer and a reader belong to one thread each. They know channels only through two functions, so that a test can put a
 * memory buffer there. Every length is checked before anything is allocated; a reader's memory is one buffer of
 * PGR_RECORD_MAX bytes at most, grown in steps as bytes arrive.
 */
#ifndef PAGURUS_MIGRATE_STREAM_H
#define PAGURUS_MIGRATE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"
#include "protocol-spec/stream.h"

/* As channel_ops.write / .read: all or an error. */
typedef int stream_write_fn(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err);
typedef int stream_read_fn(void *ctx, void *data, size_t length, struct pgr_error *err);

struct stream_writer {
	stream_write_fn *write;
	void *ctx;
	uint32_t sequence; /* of the next record */
	uint64_t records;
	uint64_t bytes; /* stream header included */
};

struct stream_reader {
	stream_read_fn *read;
	void *ctx;
	uint32_t sequence; /* expected next */
	uint64_t offset;   /* of the next record, for messages */
	uint64_t records;
	uint8_t *buffer;
	size_t capacity;
};

/* A record as read. body stays valid until the next stream_read() on the reader. */
struct stream_record {
	uint32_t type; /* with PGR_OPTIONAL as on the wire */
	uint32_t length;
	uint32_t sequence;
	uint64_t offset;
	const uint8_t *body; /* 8-byte aligned */
};

void stream_writer_init(struct stream_writer *w, stream_write_fn *write, void *ctx);
void stream_reader_init(struct stream_reader *r, stream_read_fn *read, void *ctx);
void stream_reader_free(struct stream_reader *r);

int stream_write_header(struct stream_writer *w, enum pgr_kind kind,
			const uint8_t session[PGR_SESSION_SIZE], unsigned channel,
			unsigned channels, struct pgr_error *err);
/* Checks magic, version (-EPROTONOSUPPORT names both versions), CRC (-EBADMSG), ranges (-EPROTO). */
int stream_read_header(struct stream_reader *r, struct pgr_stream_header *h, struct pgr_error *err);

/* One record; the body is given in up to 8 parts. -EMSGSIZE: longer than PGR_RECORD_MAX. */
int stream_write(struct stream_writer *w, uint32_t type, const struct iovec *parts, unsigned nr,
		 struct pgr_error *err);
int stream_write_body(struct stream_writer *w, uint32_t type, const void *body, size_t length,
		      struct pgr_error *err);
/*
 * Make a record of a body of length <= PGR_RECORD_MAX bytes that stands at record + sizeof(struct pgr_record) already: writes the header
 * before it and the padding behind it, and counts it as written. crc: of the body. Returns the bytes of the record.
 */
size_t stream_seal(struct stream_writer *w, uint32_t type, void *record, size_t length,
		   uint32_t crc);

/*
 * The next record, checked: length, sequence (-EPROTO), padding and CRC (-EBADMSG), known or optional (-EPROTONOSUPPORT; unknown optional ones
 * are skipped), length and reserved fields of its type (stream_check_body). Each error names the record's type, number and offset.
 * -ENODATA: the stream ended where a record could begin. Others: as the read function.
 */
int stream_read(struct stream_reader *r, struct stream_record *rec, struct pgr_error *err);

/* What is wrong with this body for this type, in itself: sizes, counts, reserved fields, ranges. 0 or -EPROTO. */
int stream_check_body(uint32_t type, const void *body, size_t length, struct pgr_error *err);

/*
 * Whether a file may come along under that path (PGR_REC_DISK): from the root on, and nothing but names, so that what it says does not depend on where
 * one stands. -EPROTO with what is wrong with it.
 */
int stream_check_disk_path(const void *path, size_t length, struct pgr_error *err);

/* "PAGES", "VCPU_CONTEXT", ...; "unknown" for others. */
const char *stream_type_name(uint32_t type);

/*
 * Which record may come when: the order of stream.md as a state machine, one for each direction and channel.
 * -EPROTO names the record and what was expected instead.
 */
enum stream_side { STREAM_FROM_SOURCE, STREAM_FROM_TARGET };
struct stream_order {
	enum stream_side side;
	enum pgr_kind kind;
	unsigned channel;
	unsigned state; /* private */
	uint32_t round;
};
void stream_order_init(struct stream_order *o, enum stream_side side, enum pgr_kind kind,
		       unsigned channel);
int stream_order_next(struct stream_order *o, const struct stream_record *rec,
		      struct pgr_error *err);

/* The CRC-32 of the format. */
uint32_t stream_crc(uint32_t crc, const void *data, size_t length);
/* The CRC of two pieces together, of the CRCs of each alone; length: of the second, below 2^32. */
uint32_t stream_crc_join(uint32_t first, uint32_t second, size_t length);
/* The same faster, for a second piece of one page. */
uint32_t stream_crc_join_page(uint32_t first, uint32_t second);
/* The mixing function of DIGEST: one page's contribution. */
uint64_t stream_page_digest(uint64_t pfn, uint32_t page_crc);

#endif
