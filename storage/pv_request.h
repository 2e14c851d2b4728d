/* SPDX-License-Identifier: MIT */
/*
 * What a request of a guest's block front end says (xen/io/blkif.h), checked. The bytes come from the guest; what comes out of here is
 * within the disk, within its pages and within PV_SEGMENTS_MAX, whatever they are.
 */
#ifndef PAGURUS_PV_REQUEST_H
#define PAGURUS_PV_REQUEST_H

#include "storage/pv_ring.h"

#define PV_SEGMENTS_MAX 256u /* of a request; "feature-max-indirect-segments" */
#define PV_SEGMENT_WIRE 8u   /* bytes of one in a request or an indirect page */

enum pv_op { PV_READ, PV_WRITE, PV_BARRIER, PV_FLUSH, PV_DISCARD };

struct pv_limits {
	uint64_t size;	       /* of the disk, in bytes */
	unsigned sector_shift; /* of the units that requests are in */
	bool read_only, discards;
};

struct pv_segment {
	uint32_t ref;
	uint16_t offset, length; /* bytes within its page; length is not 0 */
};

struct pv_request {
	uint64_t id;
	uint8_t operation; /* as it is to be answered */
	enum pv_op op;
	uint64_t offset, length; /* bytes of the disk */
	unsigned nr_segments;	 /* 0: flush, discard, and a barrier without data */
	bool indirect; /* the segments are in the page indirect_ref: pv_request_segments() has to follow */
	uint32_t indirect_ref;
	const char *wrong; /* what is wrong, for a log */
};

/*
 * raw: PV_RING_RAW bytes. Room in segments for PV_SEGMENTS_MAX; filled in unless out->indirect. Returns 0, -EOPNOTSUPP (an operation that
 * was not offered), -EROFS, -ERANGE (beyond the end), -EINVAL; id and operation are right then, too.
 */
int pv_request_decode(const struct pv_layout *layout, const void *raw,
		      const struct pv_limits *limits, struct pv_request *out,
		      struct pv_segment *segments);

/* r->nr_segments of them, from a copy of the start of the indirect page; sets r->length. 0, -ERANGE, -EINVAL. */
int pv_request_segments(struct pv_request *r, const void *wire, const struct pv_limits *limits,
			struct pv_segment *segments);

/* The BLKIF_RSP_* for a result (0 or -errno). */
int16_t pv_request_status(int result);

#endif
