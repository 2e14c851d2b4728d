// SPDX-License-Identifier: MIT
/*
 * What a simulated guest's memory holds. Everything but BINARIES follows from the seed; BINARIES are the files of this machine in
 * the order of their names.
 */
#include "migrate/guest_sim_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *const content_names[] = {
	[GUEST_SIM_ZERO] = "zero",	   [GUEST_SIM_TEXT] = "text",
	[GUEST_SIM_BINARIES] = "binaries", [GUEST_SIM_RANDOM] = "random",
	[GUEST_SIM_MIXED] = "mixed",
};

const char *guest_sim_content_name(enum guest_sim_content c)
{
	return (size_t)c < sizeof(content_names) / sizeof(content_names[0]) ? content_names[c]
									    : "unknown";
}

uint64_t sim_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- text ---- */

/* A vocabulary of 64 words: like a log file or a configuration, LZ4 halves it or better. */
#define W(text)                        \
	{                              \
		sizeof(text) - 1, text \
	}
static const struct {
	size_t length;
	const char *text;
} vocabulary[64] = {
	W("the "),	   W("of "),
	W("guest "),	   W("memory "),
	W("page "),	   W("is "),
	W("to "),	   W("and "),
	W("frame "),	   W("dirty "),
	W("round "),	   W("0x"),
	W("error: "),	   W("warning: "),
	W("systemd[1]: "), W("kernel: "),
	W("started "),	   W("stopped "),
	W("device "),	   W("eth0 "),
	W("value="),	   W("name="),
	W("true\n"),	   W("false\n"),
	W("127.0.0.1 "),   W("GET /index.html "),
	W("200 "),	   W("404 "),
	W("HTTP/1.1\n"),   W("user "),
	W("root "),	   W("session "),
	W("opened "),	   W("closed "),
	W("for "),	   W("with "),
	W("from "),	   W("at "),
	W("port "),	   W("connection "),
	W("accepted "),	   W("service "),
	W("daemon "),	   W("version "),
	W("library "),	   W("config "),
	W("/usr/lib/"),	   W("/etc/"),
	W("/var/log/"),	   W(".so\n"),
	W("int "),	   W("return "),
	W("if ("),	   W(");\n"),
	W("static "),	   W("void "),
	W("struct "),	   W("const "),
	W("char "),	   W("{\n"),
	W("}\n"),	   W("\n"),
	W("\t"),	   W("; "),
};

static void fill_text(uint64_t seed, uint8_t *to, size_t length)
{
	size_t at = 0;

	while (at < length) {
		uint64_t r = sim_random(&seed);

		/* Nine words of 6 bits and, once in a while, a number that nothing predicts. */
		for (unsigned i = 0; i < 9 && at < length; i++, r >>= 6) {
			size_t n = vocabulary[r & 63].length;

			if (n > length - at)
				n = length - at;
			memcpy(to + at, vocabulary[r & 63].text, n);
			at += n;
		}
		for (unsigned i = 0; i < 4 && at < length; i++, r >>= 2)
			to[at++] = (uint8_t)('0' + (r & 3) + 3 * (seed >> (8 * i) & 1));
	}
}

void sim_content_fill(enum guest_sim_content kind, uint64_t seed, uint8_t *to, size_t length)
{
	switch (kind) {
	case GUEST_SIM_TEXT:
		fill_text(seed, to, length);
		return;
	case GUEST_SIM_RANDOM:
		for (size_t at = 0; at < length; at += sizeof(uint64_t)) {
			uint64_t r = sim_random(&seed);

			memcpy(to + at, &r, sizeof(r));
		}
		return;
	default:
		memset(to, 0, length);
	}
}

/* ---- binaries ---- */

static const char *const binary_folders[] = {"/usr/bin", "/usr/lib/x86_64-linux-gnu"};

/* All files of the folders, one after the other, again and again. */
struct binaries {
	unsigned folder;
	struct dirent **entries;
	int nr, next;
	int fd;
	bool found; /* bytes since the first folder was begun */
};

static void binaries_close_folder(struct binaries *b)
{
	for (int i = 0; i < b->nr; i++)
		free(b->entries[i]);
	free(b->entries);
	b->entries = NULL;
	b->nr = b->next = 0;
}

static void binaries_close(struct binaries *b)
{
	binaries_close_folder(b);
	if (b->fd >= 0)
		close(b->fd);
	b->fd = -1;
}

/* Open the next file that is an ELF one. -ENOENT: there is none in any folder. */
static int binaries_next(struct binaries *b, struct pgr_error *err)
{
	for (;;) {
		char path[512], magic[4];
		struct stat st;

		if (b->next >= b->nr) {
			binaries_close_folder(b);
			if (b->folder == sizeof(binary_folders) / sizeof(binary_folders[0])) {
				if (!b->found)
					return pgr_fail(
						err, -ENOENT,
						"guest_sim: no program is readable in %s: choose other contents",
						binary_folders[0]);
				b->folder = 0;
				b->found = false;
			}
			b->nr = scandir(binary_folders[b->folder++], &b->entries, NULL, alphasort);
			if (b->nr < 0)
				b->nr = 0;
			continue;
		}
		snprintf(path, sizeof(path), "%s/%s", binary_folders[b->folder - 1],
			 b->entries[b->next++]->d_name);
		b->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
		if (b->fd < 0)
			continue;
		if (!fstat(b->fd, &st) && S_ISREG(st.st_mode) &&
		    pread(b->fd, magic, sizeof(magic), 0) == sizeof(magic) &&
		    !memcmp(magic, "\177ELF", sizeof(magic)))
			return 0;
		close(b->fd);
		b->fd = -1;
	}
}

static int binaries_read(struct binaries *b, uint8_t *to, size_t length, struct pgr_error *err)
{
	while (length) {
		ssize_t n;
		int rc;

		if (b->fd < 0) {
			rc = binaries_next(b, err);
			if (rc)
				return rc;
		}
		n = read(b->fd, to, length);
		if (n <= 0) {
			close(b->fd);
			b->fd = -1;
			continue;
		}
		b->found = true;
		to += n;
		length -= (size_t)n;
	}
	return 0;
}

/* ---- a whole memory ---- */

static enum guest_sim_content mixed_kind(uint64_t r)
{
	unsigned percent = (unsigned)(r % 100);

	if (percent < 35)
		return GUEST_SIM_ZERO;
	if (percent < 55)
		return GUEST_SIM_TEXT;
	return percent < 85 ? GUEST_SIM_BINARIES : GUEST_SIM_RANDOM;
}

static int fill_region(enum guest_sim_content kind, uint64_t seed, struct sim_memory *m,
		       uint64_t first, uint64_t end, struct binaries *files, struct pgr_error *err)
{
	uint64_t rng = sim_mix(seed, first);
	enum guest_sim_content now = kind;
	uint64_t left = 0; /* of a run of GUEST_SIM_MIXED */
	int rc;

	for (uint64_t pfn = first; pfn < end; pfn++) {
		if (kind == GUEST_SIM_MIXED && !left--) {
			now = mixed_kind(sim_random(&rng));
			left = sim_random(&rng) % 64;
		}
		if (!sim_bit(m->present, pfn) || now == GUEST_SIM_ZERO)
			continue;
		if (now == GUEST_SIM_BINARIES) {
			rc = binaries_read(files, sim_memory_page(m, pfn), PGR_PAGE_SIZE, err);
			if (rc)
				return rc;
		} else {
			sim_content_fill(now, sim_mix(seed, pfn), sim_memory_page(m, pfn),
					 PGR_PAGE_SIZE);
		}
	}
	return 0;
}

/* Bits of an x86-64 page-table entry: present, writable, user, accessed, dirty. */
#define PTE_FLAGS 0x67ull

/* Three entries in four present, each with a pfn of the guest in the place of a frame number. */
static void fill_page_table(struct sim_memory *m, uint64_t pfn, uint64_t seed)
{
	uint64_t *entry = (uint64_t *)(void *)sim_memory_page(m, pfn);

	for (unsigned i = 0; i < PGR_PAGE_SIZE / sizeof(*entry); i++) {
		uint64_t r = sim_random(&seed);

		entry[i] = r & 3 ? (r >> 2) % m->nr_pfns << 12 | PTE_FLAGS : 0;
	}
}

/* Of 64 tables one is the pinned top, one of level 3, two of level 2, the rest of level 1. */
static uint8_t page_table_type(uint64_t index)
{
	static const uint8_t head[] = {PGR_TYPE_L4 | PGR_TYPE_PINNED, PGR_TYPE_L3, PGR_TYPE_L2,
				       PGR_TYPE_L2};

	return index % 64 < sizeof(head) ? head[index % 64] : PGR_TYPE_L1;
}

int sim_content_memory(const struct guest_sim_options *o, struct sim_memory *m,
		       struct pgr_error *err)
{
	struct binaries files = {.fd = -1};
	uint64_t shares = 0, done = 0;
	uint64_t first = 0;
	int rc = 0;

	for (unsigned i = 0; i < o->nr_regions; i++)
		shares += o->region[i].share;
	if (!o->nr_regions)
		rc = fill_region(GUEST_SIM_MIXED, o->seed, m, 0, m->nr_pfns, &files, err);
	for (unsigned i = 0; i < o->nr_regions && !rc; i++) {
		uint64_t end;

		done += o->region[i].share;
		end = m->nr_pfns * done / shares;
		rc = fill_region(o->region[i].content, o->seed, m, first, end, &files, err);
		first = end;
	}
	for (uint64_t pfn = 0, table = 0; table < o->page_table_pages && !rc; pfn++) {
		if (!sim_bit(m->present, pfn))
			continue;
		m->type[pfn] = page_table_type(table++);
		fill_page_table(m, pfn, sim_mix(~o->seed, pfn));
	}
	binaries_close(&files);
	return rc;
}
