/* SPDX-License-Identifier: MIT */
/*
 * The Pagurus stream: structures and numbers of version 1.
 *
 * The page that defines them is stream.md; where this header and the page differ, the page is right.
 * All fields are little-endian and naturally aligned; reserved fields are zero and checked.
 */
#ifndef PAGURUS_STREAM_H
#define PAGURUS_STREAM_H

#include <stdint.h>

#define PGR_PAGE_SIZE	 4096u
#define PGR_VERSION	 1u
#define PGR_SESSION_SIZE 16u

/* Largest body of any record; a reader refuses more before it allocates anything. */
#define PGR_RECORD_MAX (2u << 20)
/* Most pages in one PAGES record. */
#define PGR_BATCH_MAX 256u
/* Most channels in one session. */
#define PGR_CHANNELS_MAX 16u
/* Most disks that a guest takes along, bytes of the path of one, and of what travels at once. */
#define PGR_DISKS_MAX	   16u
#define PGR_DISK_PATH_MAX  1023u
#define PGR_DISK_VDEV_MAX  31u
#define PGR_DISK_DATA_MAX  (1u << 20)
#define PGR_DISK_BYTES_MAX (1ull << 50)
/* Largest guest: 2^40 bytes. */
#define PGR_PFNS_MAX  (1ull << 28)
#define PGR_VCPUS_MAX 512u

/*
 * Sent in clear as the first bytes of every TCP connection, before TLS, so that a host can hand the connection to the
 * process that owns the session. Says nothing about the guest and is trusted for nothing.
 */
#define PGR_PREAMBLE_MAGIC "PGRCONN1"
struct pgr_preamble {
	uint8_t magic[8];
	uint8_t session[PGR_SESSION_SIZE];
	uint16_t channel; /* 0 .. channels-1 */
	uint16_t purpose; /* enum pgr_purpose */
	uint32_t reserved;
};
_Static_assert(sizeof(struct pgr_preamble) == 32, "wire format");

enum pgr_purpose {
	PGR_PURPOSE_NEW = 1,	/* first connection of a new session (channel 0) */
	PGR_PURPOSE_JOIN = 2,	/* a further channel of it */
	PGR_PURPOSE_RESUME = 3, /* this channel again, after its connection was lost */
	PGR_PURPOSE_QUERY = 4,	/* what became of the session? */
	PGR_PURPOSE_CHECK = 5,	/* is this host ready to take guests? no session */
	PGR_PURPOSE_DISK = 6,	/* a disk of the session's guest */
};

/* The first bytes of a stream: inside TLS on every channel and in each direction, and of every file. */
#define PGR_STREAM_MAGIC "PAGURUS\0"
struct pgr_stream_header {
	uint8_t magic[8];
	uint32_t version; /* PGR_VERSION */
	uint32_t kind;	  /* enum pgr_kind */
	uint8_t session[PGR_SESSION_SIZE];
	uint16_t channel;
	uint16_t channels;
	uint32_t crc; /* CRC-32 of the 40 bytes with this field zero */
};
_Static_assert(sizeof(struct pgr_stream_header) == 40, "wire format");

enum pgr_kind {
	PGR_KIND_MIGRATE = 1,
	PGR_KIND_IMAGE = 2,	 /* a whole guest in a file */
	PGR_KIND_CHECKPOINT = 3, /* what changed since the parent */
	PGR_KIND_REPLICATE = 4,	 /* epochs without end */
};

/* Before every body. The body is padded with zeroes to a multiple of 8. */
struct pgr_record {
	uint32_t type;	   /* enum pgr_record_type, perhaps | PGR_OPTIONAL */
	uint32_t length;   /* bytes of body without padding, <= PGR_RECORD_MAX */
	uint32_t sequence; /* 0, 1, 2 ... on this channel in this direction, also over a resume */
	uint32_t
		crc; /* CRC-32 (IEEE 802.3) of this header with crc zero, the body and its padding */
};
_Static_assert(sizeof(struct pgr_record) == 16, "wire format");

/* A reader skips an unknown record with this bit and refuses one without. */
#define PGR_OPTIONAL 0x80000000u

enum pgr_record_type {
	/* opening, source to target */
	PGR_REC_HELLO = 0x01,
	PGR_REC_IDENTITY = 0x02,
	PGR_REC_CPU_POLICY = 0x03,
	PGR_REC_CONFIG = 0x04,
	PGR_REC_PARENT = 0x05,
	PGR_REC_OPEN = 0x06, /* the opening is complete: answer with PRECHECK */

	/* memory */
	PGR_REC_PAGES = 0x10,
	PGR_REC_ROUND_END = 0x11,
	PGR_REC_STOP = 0x12,
	PGR_REC_VERIFY = 0x13,
	PGR_REC_DIGEST = 0x14,

	/* state of the stopped guest; channel 0 */
	PGR_REC_PV_INFO = 0x20,
	PGR_REC_PV_P2M_FRAMES = 0x21,
	PGR_REC_PV_SHARED_INFO = 0x22,
	PGR_REC_VCPU_CONTEXT = 0x23,
	PGR_REC_VCPU_EXTENDED = 0x24,
	PGR_REC_VCPU_XSAVE = 0x25,
	PGR_REC_VCPU_MSRS = 0x26,
	PGR_REC_TSC_INFO = 0x27,
	PGR_REC_DEVICE_STATE = 0x28,
	PGR_REC_SIM_STATE = 0x2f,

	/* disks that come along */
	PGR_REC_DISK = 0x30,	    /* opening, source: there is one */
	PGR_REC_DISK_ATTACH = 0x31, /* source, first on a DISK connection: which one it is for */
	PGR_REC_DISK_DATA = 0x32,   /* both, on a DISK connection: bytes of NBD; none: the end */

	/* conversation on channel 0 */
	PGR_REC_HELLO_REPLY = 0x40,  /* target */
	PGR_REC_PRECHECK = 0x41,     /* target */
	PGR_REC_ACK = 0x42,	     /* target, on every channel */
	PGR_REC_READY = 0x43,	     /* target */
	PGR_REC_COMMIT = 0x44,	     /* source */
	PGR_REC_RUNNING = 0x45,	     /* target */
	PGR_REC_ABORT = 0x46,	     /* either */
	PGR_REC_QUERY = 0x47,	     /* source */
	PGR_REC_STATUS = 0x48,	     /* target */
	PGR_REC_RESUME = 0x49,	     /* source, on every channel, instead of HELLO */
	PGR_REC_RESUME_REPLY = 0x4a, /* target */
	PGR_REC_CHECK = 0x4b,	     /* source: instead of HELLO on a CHECK connection */
	PGR_REC_CHECK_REPLY = 0x4c,  /* target */
	PGR_REC_KEEPALIVE = 0x4d | PGR_OPTIONAL,
	PGR_REC_CONNECTED = 0x4e | PGR_OPTIONAL, /* target, after RUNNING */

	/* ends */
	PGR_REC_INDEX = 0x50 | PGR_OPTIONAL,
	PGR_REC_NOTE = 0x51 | PGR_OPTIONAL,
	PGR_REC_END = 0x5f,
};

enum pgr_guest_kind {
	PGR_GUEST_PV64 = 1, /* x86-64 paravirtualised, Xen PV ABI */
	PGR_GUEST_SIM = 2,  /* a memory region of a process; tests and benchmarks */
};

/* Features, a bit each; the target answers with the subset that holds for the session. */
#define PGR_FEATURE_LZ4	   (1u << 0)
#define PGR_FEATURE_ZSTD   (1u << 1)
#define PGR_FEATURE_DELTA  (1u << 2)
#define PGR_FEATURE_RESUME (1u << 3)
#define PGR_FEATURE_VERIFY (1u << 4)
#define PGR_FEATURE_DISKS  (1u << 5) /* the guest brings its disks along */

struct pgr_hello {
	uint32_t guest_kind; /* enum pgr_guest_kind */
	uint32_t features;
	uint64_t nr_pfns;   /* pseudo-physical frames are 0 .. nr_pfns-1 */
	uint64_t populated; /* frames that hold memory now */
	uint32_t vcpus;	    /* highest vCPU id + 1 */
	uint32_t live;	    /* 1: rounds while the guest runs; 0: stop and copy */
};
_Static_assert(sizeof(struct pgr_hello) == 32, "wire format");

/* IDENTITY: uuid, then the name, UTF-8 without terminator, 1 .. 255 bytes. */
struct pgr_identity {
	uint8_t uuid[16];
	/* char name[]; */
};
_Static_assert(sizeof(struct pgr_identity) == 16, "wire format");

/* CPU_POLICY: header, leaves, MSRs. What the guest was promised of the processor. */
struct pgr_cpu_policy {
	uint32_t nr_leaves;
	uint32_t nr_msrs;
};
struct pgr_cpu_leaf {
	uint32_t leaf, subleaf; /* subleaf 0xffffffff: none */
	uint32_t eax, ebx, ecx, edx;
};
struct pgr_msr {
	uint32_t index;
	uint32_t reserved;
	uint64_t value;
};
_Static_assert(sizeof(struct pgr_cpu_policy) == 8, "wire format");
_Static_assert(sizeof(struct pgr_cpu_leaf) == 24, "wire format");
_Static_assert(sizeof(struct pgr_msr) == 16, "wire format");

/* CONFIG: format, then text (UTF-8, no terminator). */
enum pgr_config_format {
	PGR_CONFIG_LIBXL_JSON = 1, /* libxl_domain_config as libxl writes it */
	PGR_CONFIG_SIM = 2,
};
struct pgr_config {
	uint32_t format;
	uint32_t reserved;
	/* char text[]; */
};
_Static_assert(sizeof(struct pgr_config) == 8, "wire format");

/* PARENT: this stream holds only what changed since the stream with that session and digest. */
struct pgr_parent {
	uint8_t session[PGR_SESSION_SIZE];
	uint64_t digest;
	uint64_t generation; /* 1 for a child of a whole image, and so on */
};
_Static_assert(sizeof(struct pgr_parent) == 32, "wire format");

/* DISK: header, then the name in the guest, then the path of its file. */
enum pgr_disk_format {
	PGR_DISK_RAW = 1,
	PGR_DISK_QCOW2 = 2,
};
struct pgr_disk {
	uint64_t size;	 /* bytes, a multiple of 512 */
	uint64_t used;	 /* bytes of storage that it takes at the source */
	uint32_t format; /* enum pgr_disk_format */
	uint32_t vdev_length;
	/* char vdev[vdev_length]; char path[]; */
};
_Static_assert(sizeof(struct pgr_disk) == 24, "wire format");

/* DISK_ATTACH: its place among the DISK records, from 0 on. DISK_DATA: bytes. */
struct pgr_disk_attach {
	uint32_t disk;
	uint32_t reserved;
};
_Static_assert(sizeof(struct pgr_disk_attach) == 8, "wire format");

/*
 * PAGES: header; page words; groups; then the data of each group, each padded to 8.
 * The pages with data (transform DATA or DELTA), in order, are cut into the groups, in order.
 */
struct pgr_pages {
	uint32_t nr_pages;  /* 1 .. PGR_BATCH_MAX */
	uint32_t nr_groups; /* 0 .. nr_pages */
	uint32_t round;
	uint32_t reserved;
	/* uint64_t page[nr_pages]; struct pgr_group group[nr_groups]; data */
};
struct pgr_group {
	uint32_t codec;	   /* enum pgr_codec */
	uint32_t nr_pages; /* >= 1 */
	uint32_t length;   /* bytes of data, without padding */
	uint32_t reserved;
};
_Static_assert(sizeof(struct pgr_pages) == 16, "wire format");
_Static_assert(sizeof(struct pgr_group) == 16, "wire format");

/* A page word: pfn in bits 0-39, transform in bits 48-51, type in bits 56-59; all others zero. */
#define PGR_PAGE_PFN_MASK	 0xffffffffffull
#define PGR_PAGE_TRANSFORM_SHIFT 48
#define PGR_PAGE_TYPE_SHIFT	 56
#define PGR_PAGE_WORD(pfn, transform, type)                                    \
	((uint64_t)(pfn) | (uint64_t)(transform) << PGR_PAGE_TRANSFORM_SHIFT | \
	 (uint64_t)(type) << PGR_PAGE_TYPE_SHIFT)
#define PGR_PAGE_PFN(word)	 ((uint64_t)(word)&PGR_PAGE_PFN_MASK)
#define PGR_PAGE_TRANSFORM(word) ((unsigned)((word) >> PGR_PAGE_TRANSFORM_SHIFT) & 15u)
#define PGR_PAGE_TYPE(word)	 ((unsigned)((word) >> PGR_PAGE_TYPE_SHIFT) & 15u)

enum pgr_transform {
	PGR_DATA = 0, /* the page as it is */
	PGR_ZERO = 1, /* all bytes zero; no data */
	PGR_DELTA =
		2, /* XOR of the page with what this session last sent for the pfn; ordinary pages only */
	PGR_ABSENT = 3, /* the pfn holds no memory; no data */
};

/* The low three bits: 0 ordinary, 1..4 page table of that level; bit 3: pinned. Tables hold pfns for mfns. */
enum pgr_page_type {
	PGR_TYPE_ORDINARY = 0,
	PGR_TYPE_L1 = 1,
	PGR_TYPE_L2 = 2,
	PGR_TYPE_L3 = 3,
	PGR_TYPE_L4 = 4,
	PGR_TYPE_LEVEL_MASK = 7,
	PGR_TYPE_PINNED = 8,
};

enum pgr_codec {
	PGR_CODEC_RAW = 0,  /* length = nr_pages * 4096 */
	PGR_CODEC_LZ4 = 1,  /* one LZ4 block */
	PGR_CODEC_ZSTD = 2, /* one Zstandard frame */
};

/* ROUND_END, on every channel. */
struct pgr_round_end {
	uint32_t round;
	uint32_t reserved;
	uint64_t pages; /* in PAGES records of this round on this channel */
	uint64_t bytes; /* of records with headers and padding, in this round on this channel */
};
_Static_assert(sizeof(struct pgr_round_end) == 24, "wire format");

/* STOP, channel 0: the guest has been stopped; what follows is final. */
struct pgr_stop {
	uint64_t wallclock_ns; /* since 1970, source's clock, at the stop */
};

/* VERIFY, on every channel: the PAGES that follow must equal what the target has. Body empty. */

/* DIGEST, channel 0: sum modulo 2^64 over all pfns that hold memory of mix64(pfn << 32 | crc32(page)). */
struct pgr_digest {
	uint64_t digest;
	uint64_t pages;
};
_Static_assert(sizeof(struct pgr_digest) == 16, "wire format");

struct pgr_pv_info {
	uint32_t word_size; /* 8 */
	uint32_t levels;    /* 4 */
	uint64_t nr_pfns;
	uint64_t start_info_pfn;
};
_Static_assert(sizeof(struct pgr_pv_info) == 24, "wire format");

/* PV_P2M_FRAMES: the pfns of the guest's own P2M pages number first .. first+count-1. */
struct pgr_pv_p2m_frames {
	uint32_t first;
	uint32_t count;
	/* uint64_t pfn[count]; */
};
_Static_assert(sizeof(struct pgr_pv_p2m_frames) == 8, "wire format");

/* PV_SHARED_INFO: the page, 4096 bytes. */

/* VCPU_*: header, then the blob in Xen's public layout for x86-64; see stream.md for each. */
struct pgr_vcpu {
	uint32_t vcpu;
	uint32_t reserved;
};
_Static_assert(sizeof(struct pgr_vcpu) == 8, "wire format");

struct pgr_tsc_info {
	uint32_t mode;
	uint32_t khz;
	uint64_t nsec;
	uint32_t incarnation;
	uint32_t reserved;
};
_Static_assert(sizeof(struct pgr_tsc_info) == 24, "wire format");

/* DEVICE_STATE: header, then the device's own bytes. */
struct pgr_device_state {
	uint32_t kind; /* to be defined; none in version 1 */
	uint32_t index;
};
_Static_assert(sizeof(struct pgr_device_state) == 8, "wire format");

struct pgr_hello_reply {
	uint32_t version;
	uint32_t features;
	uint32_t channels; /* accepted, 1 .. what the source offered */
	uint32_t window;   /* PAGES records that may be unacknowledged on a channel, >= 1 */
};
_Static_assert(sizeof(struct pgr_hello_reply) == 16, "wire format");

/* PRECHECK: number of refusals, then that many lines of text ended by '\n'. Zero: go ahead. */
struct pgr_precheck {
	uint32_t refusals;
	uint32_t reserved;
};

/* ACK, on every channel: every record with a lower sequence has taken effect. */
struct pgr_ack {
	uint32_t sequence;
	uint32_t reserved;
};

/* READY: what the target has. RUNNING, COMMIT, QUERY: empty bodies. */

/* ABORT: reason, then text. */
struct pgr_abort {
	uint32_t reason; /* enum pgr_abort_reason */
	uint32_t reserved;
	/* char text[]; */
};
enum pgr_abort_reason {
	PGR_ABORT_CANCELLED = 1,
	PGR_ABORT_REFUSED = 2,	 /* policy or precheck */
	PGR_ABORT_CORRUPT = 3,	 /* checksum, sequence, digest or verify */
	PGR_ABORT_PROTOCOL = 4,	 /* a record that has no place here */
	PGR_ABORT_RESOURCES = 5, /* memory, disk */
	PGR_ABORT_GUEST = 6,	 /* the guest or hypervisor failed */
	PGR_ABORT_INTERNAL = 7,
};

/* STATUS: what became of the session at the target. */
struct pgr_status {
	uint32_t state; /* enum pgr_session_state */
	uint32_t reserved;
};
enum pgr_session_state {
	PGR_STATE_NOT_STARTED = 1, /* the guest does not run here and never will in this session */
	PGR_STATE_RECEIVING = 2,
	PGR_STATE_READY = 3,
	PGR_STATE_RUNNING = 4, /* the guest was started here */
};

/* RESUME: per channel. RESUME_REPLY: the sequence number of the first record that did not take effect. */
struct pgr_resume {
	uint32_t
		next_sequence; /* that the sender will use next (RESUME) or expects (RESUME_REPLY) */
	uint32_t reserved;
};
_Static_assert(sizeof(struct pgr_resume) == 8, "wire format");

/* CHECK: empty. CHECK_REPLY: JSON text describing the host: version, hypervisor, free memory, processor. */

/* CONNECTED: when the guest, which runs at the target, had its devices there; times count from its start. */
struct pgr_connected {
	uint64_t
		devices_ns; /* until all were connected; some are waiting: until the target stopped looking */
	uint64_t announced_ns; /* until the first frame out of a network interface; 0: none came */
	uint32_t devices;      /* disks and network interfaces; 0: none, or not known */
	uint32_t waiting;      /* of them not connected */
};
_Static_assert(sizeof(struct pgr_connected) == 24, "wire format");

/* INDEX: one entry per PAGES record of the file. */
struct pgr_index_entry {
	uint64_t offset; /* of the record header in the file */
	uint64_t first_pfn;
	uint64_t last_pfn;
	uint32_t nr_pages;
	uint32_t reserved;
};
_Static_assert(sizeof(struct pgr_index_entry) == 32, "wire format");

/* END: the last record of a channel or file; 48 bytes with its header, so a file's end can be found by seeking. */
struct pgr_end {
	uint64_t records;      /* before this one */
	uint64_t bytes;	       /* before this one, stream header included */
	uint64_t index_offset; /* of the first INDEX record, or 0 */
	uint64_t index_records;
};
_Static_assert(sizeof(struct pgr_end) == 32, "wire format");

#endif
