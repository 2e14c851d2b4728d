/* SPDX-License-Identifier: MIT */
/*
 * Pages to the body of a PAGES record and back.
 *
 * An encoder and a decoder belong to one thread and to one channel: a pfn always travels on the same channel, so each has its share
 * of the cache of sent pages (encoder), and nothing is locked. Memory: an encoder has up to 2 MiB of buffers (zstd) plus its cache; a
 * decoder has 1 MiB. Neither knows guests: they get pointers to pages.
 */
#ifndef PAGURUS_ENCODE_H
#define PAGURUS_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "protocol-spec/stream.h"

enum encode_method { ENCODE_NONE, ENCODE_LZ4, ENCODE_ZSTD };
/* "none", "lz4" or "zstd"; false: another, and *out is as it was. */
bool encode_method_parse(const char *name, enum encode_method *out);

struct encode_options {
	enum encode_method method;
	int level;	      /* LZ4: acceleration (1 = best ratio); zstd: level; 0 = default */
	unsigned group_pages; /* pages compressed together, 1 .. PGR_BATCH_MAX; 0 = default */
	size_t cache_bytes;   /* bound of the cache for DELTA; 0: no delta */
};

struct encode_stats {
	uint64_t pages, zero, delta, plain, absent;
	uint64_t bytes_in;  /* pages * 4096, without absent */
	uint64_t bytes_out; /* bodies of PAGES */
	uint64_t raw_groups, lz4_groups, zstd_groups;
	uint64_t saved_zero, saved_delta, saved_compress; /* bytes not sent thanks to each */
};

struct encoder;
int encoder_create(const struct encode_options *o, struct encoder **out, struct pgr_error *err);
void encoder_free(struct encoder *e);

/* What encoder_pages() made. */
struct encoded {
	size_t length; /* of the body, a multiple of 8 */
	uint32_t crc;  /* of the body */
};

/* Most bytes that a body for nr pages (at most PGR_BATCH_MAX) takes. */
size_t encoder_room(const struct encoder *e, unsigned nr);

/*
 * Encode nr pages (1 .. PGR_BATCH_MAX). page[i] NULL: absent. type[i]: enum pgr_page_type. Contents may change meanwhile (running
 * guest): each page is copied once and everything - zero test apart, which is safe, see encode.c - works on the copy, so what is sent, its CRC and the
 * cache agree. first_time: the caller knows that none of these was sent before in the session (no delta, no cache look-up needed).
 * crc[i] gets the CRC-32 of what was sent (of a zero page for ZERO, 0 for absent).
 * body: encoder_room() bytes, aligned to 8; after a failure their contents are undefined. Never fails for data; -ENOMEM only.
 */
int encoder_pages(struct encoder *e, uint32_t round, const uint64_t *pfn, uint8_t *const *page,
		  const uint8_t *type, unsigned nr, bool first_time, uint32_t *crc, void *body,
		  struct encoded *out, struct pgr_error *err);

/* The target may not have these (a lost connection): never delta against what was sent. */
void encoder_forget(struct encoder *e, const uint64_t *pfn, unsigned nr);
void encoder_forget_all(struct encoder *e);
void encoder_stats(const struct encoder *e, struct encode_stats *s);

struct decoder;
int decoder_create(struct decoder **out, struct pgr_error *err);
void decoder_free(struct decoder *d);

/* Parsed and checked against everything the record says about itself, before any page is touched. */
struct decoded_header {
	unsigned nr;
	uint32_t round;
	uint64_t pfn[PGR_BATCH_MAX];
	uint8_t transform[PGR_BATCH_MAX];
	uint8_t type[PGR_BATCH_MAX];
};
/* nr_pfns: size of the guest. -EPROTO with a reason: counts, lengths, duplicate pfn in the record, pfn out of range, delta of a table ... */
int decoder_parse(struct decoder *d, const void *body, size_t length, uint64_t nr_pfns,
		  struct decoded_header *h, struct pgr_error *err);

/*
 * Put the contents of the record last parsed into page[i] (absent: ignored, may be NULL). base: as in struct guest_batch, NULL if
 * not contiguous; lets a group be decompressed straight into place. page_is_zero[i] (may be NULL): the caller knows that page[i] is all zero, so ZERO need not write.
 * crc[i] as in encoder_pages. -EBADMSG: a group does not decompress to its pages; pages of the record are then undefined.
 */
int decoder_pages(struct decoder *d, uint8_t *const *page, uint8_t *base, const bool *page_is_zero,
		  uint32_t *crc, struct pgr_error *err);
/* The same, but compare with page[i] instead of writing: the index of the first page that differs in *differs, or -1. */
int decoder_compare(struct decoder *d, uint8_t *const *page, int *differs, struct pgr_error *err);

/* CRC-32 of 4096 zero bytes. */
uint32_t encode_zero_crc(void);
/* True when the 4096 bytes at page (aligned to 64) are zero. */
bool encode_is_zero(const void *page);

#endif
