// SPDX-License-Identifier: MIT
/* Packed clusters: raw deflate, or one zstd frame. */
#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "storage/qcow2.h"

#define WINDOW_BITS_RAW (-MAX_WBITS) /* no header; any window */

static int unpack_zlib(const void *packed, size_t length, void *out, size_t size)
{
	z_stream z = {.next_in = (void *)packed,
		      .avail_in = (uInt)length,
		      .next_out = out,
		      .avail_out = (uInt)size};
	int ret = inflateInit2(&z, WINDOW_BITS_RAW);

	if (ret != Z_OK)
		return ret == Z_MEM_ERROR ? -ENOMEM : -EIO;
	ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	/* Z_BUF_ERROR: the output is full and the mark of its end was not reached. */
	if (ret == Z_MEM_ERROR)
		return -ENOMEM;
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int unpack_zstd(const void *packed, size_t length, void *out, size_t size)
{
	ZSTD_inBuffer in = {.src = packed, .size = length};
	ZSTD_outBuffer to = {.dst = out, .size = size};
	ZSTD_DCtx *context = ZSTD_createDCtx();
	int result = 0;

	if (!context)
		return -ENOMEM;
	/* In steps: the end of the frame is not known, and each step takes or gives something. */
	while (!result && to.pos < to.size) {
		size_t in_before = in.pos, out_before = to.pos;
		size_t ret = ZSTD_decompressStream(context, &to, &in);

		if (ZSTD_isError(ret) || (in.pos == in_before && to.pos == out_before))
			result = -EIO;
	}
	ZSTD_freeDCtx(context);
	return result;
}

int qcow2_unpack(const struct qcow2_header *h, const void *packed, size_t length, void *out)
{
	if (h->compression == QCOW2_ZSTD)
		return unpack_zstd(packed, length, out, h->cluster_size);
	return unpack_zlib(packed, length, out, h->cluster_size);
}
