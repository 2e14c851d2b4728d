/* SPDX-License-Identifier: MIT */
/*
 * The Network Block Device protocol as it is on the wire: numbers and structures, all big-endian. The document is doc/proto.md of
 * https://github.com/NetworkBlockDevice/nbd; sections are named where a number is not obvious.
 */
#ifndef PAGURUS_NBD_PROTO_H
#define PAGURUS_NBD_PROTO_H

#include <endian.h>
#include <stdint.h>

#define NBD_PORT     10809u
#define NBD_NAME_MAX 4096u /* bytes of an export's name: the longest text of the protocol */

/* ---- handshake: fixed newstyle ---- */

#define NBD_MAGIC	 UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REPLY_MAGIC	 UINT64_C(0x0003e889045565a9)

/* Of both sides. */
#define NBD_FIXED_NEWSTYLE 1u
#define NBD_NO_ZEROES	   2u

enum nbd_opt {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
};

enum nbd_rep {
	NBD_REP_ACK = 1,
	NBD_REP_SERVER = 2,
	NBD_REP_INFO = 3,
	NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERROR(n)     (UINT32_C(1) << 31 | (n))
#define NBD_REP_ERR_UNSUP    NBD_REP_ERROR(1)
#define NBD_REP_ERR_POLICY   NBD_REP_ERROR(2)
#define NBD_REP_ERR_INVALID  NBD_REP_ERROR(3)
#define NBD_REP_ERR_TLS_REQD NBD_REP_ERROR(5)
#define NBD_REP_ERR_UNKNOWN  NBD_REP_ERROR(6)
#define NBD_REP_ERR_SIZES    NBD_REP_ERROR(8) /* NBD_REP_ERR_BLOCK_SIZE_REQD */
#define NBD_REP_ERR_TOO_BIG  NBD_REP_ERROR(9)

enum nbd_info { NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE };

struct nbd_greeting {
	uint64_t magic, option_magic;
	uint16_t flags;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_greeting) == 18, "as the document has it");

struct nbd_option {
	uint64_t magic;
	uint32_t option, length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_option) == 16, "as the document has it");

struct nbd_option_reply {
	uint64_t magic;
	uint32_t option, type, length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_option_reply) == 20, "as the document has it");

struct nbd_info_export {
	uint16_t type;
	uint64_t size;
	uint16_t flags;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_info_export) == 12, "as the document has it");

struct nbd_info_block_size {
	uint16_t type;
	uint32_t minimum, preferred, maximum;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_info_block_size) == 14, "as the document has it");

/* The answer to NBD_OPT_EXPORT_NAME; without `zeros` when both sides said NBD_NO_ZEROES. */
struct nbd_export_name_reply {
	uint64_t size;
	uint16_t flags;
	uint8_t zeros[124];
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_export_name_reply) == 134, "as the document has it");

/* ---- transmission ---- */

#define NBD_FLAG_HAS_FLAGS	   (1u << 0)
#define NBD_FLAG_READ_ONLY	   (1u << 1)
#define NBD_FLAG_SEND_FLUSH	   (1u << 2)
#define NBD_FLAG_SEND_FUA	   (1u << 3)
#define NBD_FLAG_SEND_TRIM	   (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF	   (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN	   (1u << 8)
#define NBD_FLAG_SEND_FAST_ZERO	   (1u << 11)

#define NBD_REQUEST_MAGIC    UINT32_C(0x25609513)
#define NBD_SIMPLE_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_MAGIC UINT32_C(0x668e33ef)

enum nbd_cmd {
	NBD_CMD_READ,
	NBD_CMD_WRITE,
	NBD_CMD_DISC,
	NBD_CMD_FLUSH,
	NBD_CMD_TRIM,
	NBD_CMD_CACHE,
	NBD_CMD_WRITE_ZEROES,
	NBD_CMD_BLOCK_STATUS,
	NBD_CMDS,
};

#define NBD_CMD_FLAG_FUA       1u
#define NBD_CMD_FLAG_NO_HOLE   2u
#define NBD_CMD_FLAG_DF	       4u
#define NBD_CMD_FLAG_REQ_ONE   8u
#define NBD_CMD_FLAG_FAST_ZERO 16u

struct nbd_request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_request) == 28, "as the document has it");

struct nbd_simple_reply {
	uint32_t magic, error;
	uint64_t cookie;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_simple_reply) == 16, "as the document has it");

#define NBD_CHUNK_DONE 1u

enum nbd_chunk_type {
	NBD_CHUNK_NONE = 0,
	NBD_CHUNK_DATA = 1,
	NBD_CHUNK_HOLE = 2,
	NBD_CHUNK_BLOCK_STATUS = 5,
	NBD_CHUNK_ERROR = (1 << 15) | 1,
};

struct nbd_chunk {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie;
	uint32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_chunk) == 20, "as the document has it");

/* What stands at the beginning of a chunk's content. */
struct nbd_chunk_hole {
	uint64_t offset;
	uint32_t length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_chunk_hole) == 12, "as the document has it");

struct nbd_chunk_error {
	uint32_t error;
	uint16_t text_length;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_chunk_error) == 6, "as the document has it");

struct nbd_extent {
	uint32_t length, flags;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_extent) == 8, "as the document has it");

/* base:allocation */
#define NBD_STATE_HOLE 1u
#define NBD_STATE_ZERO 2u
/* pagurus:dirty */
#define NBD_STATE_DIRTY 1u

enum nbd_error {
	NBD_EPERM = 1,
	NBD_EIO = 5,
	NBD_ENOMEM = 12,
	NBD_EINVAL = 22,
	NBD_ENOSPC = 28,
	NBD_EOVERFLOW = 75,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

#endif
