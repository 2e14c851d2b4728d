// SPDX-License-Identifier: MIT
#include "storage/pv_request.h"

#include <errno.h>
#include <string.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

static uint64_t get(const void *raw, unsigned at, unsigned bytes)
{
	uint64_t value = 0;

	memcpy(&value, (const uint8_t *)raw + at, bytes); /* x86: the guest is one, too */
	return value;
}

static int wrong(struct pv_request *r, int code, const char *what)
{
	r->wrong = what;
	return code;
}

static int check_range(struct pv_request *r, const struct pv_limits *limits)
{
	if (r->offset <= limits->size && r->length <= limits->size - r->offset)
		return 0;
	return wrong(r, -ERANGE, "it is beyond the end of the disk");
}

static int set_offset(struct pv_request *r, uint64_t sector, const struct pv_limits *limits)
{
	if (sector > limits->size >> limits->sector_shift)
		return wrong(r, -ERANGE, "it is beyond the end of the disk");
	r->offset = sector << limits->sector_shift;
	return 0;
}

int pv_request_segments(struct pv_request *r, const void *wire, const struct pv_limits *limits,
			struct pv_segment *segments)
{
	unsigned in_page = PV_PAGE >> limits->sector_shift;

	r->length = 0;
	for (unsigned i = 0; i < r->nr_segments; i++) {
		unsigned at = i * PV_SEGMENT_WIRE;
		unsigned first = (unsigned)get(wire, at + 4, 1),
			 last = (unsigned)get(wire, at + 5, 1);

		if (first > last || last >= in_page)
			return wrong(r, -EINVAL, "a segment is not within its page");
		segments[i] = (struct pv_segment){
			.ref = (uint32_t)get(wire, at, 4),
			.offset = (uint16_t)(first << limits->sector_shift),
			.length = (uint16_t)((last - first + 1) << limits->sector_shift)};
		r->length += segments[i].length;
	}
	return check_range(r, limits);
}

/* Reads, writes and barriers; the segments of what is not indirect stand at `at`. */
static int decode_data(const struct pv_layout *layout, const void *raw,
		       const struct pv_limits *limits, struct pv_request *r,
		       struct pv_segment *segments)
{
	unsigned max = r->indirect ? PV_SEGMENTS_MAX : BLKIF_MAX_SEGMENTS_PER_REQUEST;
	int ret;

	if (r->op != PV_READ && limits->read_only)
		return wrong(r, -EROFS, "the disk is for reading only");
	if (r->nr_segments > max)
		return wrong(r, -EINVAL, "it has too many segments");
	if (!r->nr_segments)
		return r->op == PV_BARRIER ? 0 : wrong(r, -EINVAL, "it has no segments");
	ret = set_offset(r, get(raw, layout->sector, 8), limits);
	if (ret || r->indirect)
		return ret;
	return pv_request_segments(r, (const uint8_t *)raw + layout->segments, limits, segments);
}

static int decode_discard(const struct pv_layout *layout, const void *raw,
			  const struct pv_limits *limits, struct pv_request *r)
{
	uint64_t sectors = get(raw, layout->discard_count, 8);
	int ret;

	if (get(raw, 1, 1) & BLKIF_DISCARD_SECURE)
		return wrong(r, -EOPNOTSUPP, "a secure discard is not offered");
	if (!limits->discards)
		return wrong(r, -EOPNOTSUPP, "discard is not offered");
	if (limits->read_only)
		return wrong(r, -EROFS, "the disk is for reading only");
	ret = set_offset(r, get(raw, layout->sector, 8), limits);
	if (ret)
		return ret;
	if (sectors > limits->size >> limits->sector_shift)
		return wrong(r, -ERANGE, "it is beyond the end of the disk");
	r->length = sectors << limits->sector_shift;
	return check_range(r, limits);
}

static bool is_data(uint8_t operation, enum pv_op *op)
{
	switch (operation) {
	case BLKIF_OP_READ:
		*op = PV_READ;
		return true;
	case BLKIF_OP_WRITE:
		*op = PV_WRITE;
		return true;
	case BLKIF_OP_WRITE_BARRIER:
		*op = PV_BARRIER;
		return true;
	}
	return false;
}

int pv_request_decode(const struct pv_layout *layout, const void *raw,
		      const struct pv_limits *limits, struct pv_request *out,
		      struct pv_segment *segments)
{
	*out = (struct pv_request){.operation = (uint8_t)get(raw, 0, 1),
				   .id = get(raw, layout->id, 8)};
	if (is_data(out->operation, &out->op)) {
		out->nr_segments = (unsigned)get(raw, 1, 1);
		return decode_data(layout, raw, limits, out, segments);
	}
	switch (out->operation) {
	case BLKIF_OP_FLUSH_DISKCACHE:
		out->op = PV_FLUSH;
		if (get(raw, 1, 1))
			return wrong(out, -EINVAL, "a flush has no segments");
		return 0;
	case BLKIF_OP_DISCARD:
		out->op = PV_DISCARD;
		return decode_discard(layout, raw, limits, out);
	case BLKIF_OP_INDIRECT:
		/* The response carries the operation within: Linux's front end closes the disk over any other. */
		out->operation = (uint8_t)get(raw, 1, 1);
		out->indirect = true;
		out->nr_segments = (unsigned)get(raw, 2, 2);
		out->indirect_ref = (uint32_t)get(raw, layout->indirect_refs, 4);
		if (!is_data(out->operation, &out->op) || out->op == PV_BARRIER)
			return wrong(out, -EOPNOTSUPP, "only reads and writes can be indirect");
		return decode_data(layout, raw, limits, out, segments);
	}
	return wrong(out, -EOPNOTSUPP, "there is no such operation");
}

int16_t pv_request_status(int result)
{
	if (!result)
		return BLKIF_RSP_OKAY;
	return result == -EOPNOTSUPP ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR;
}
