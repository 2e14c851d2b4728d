// SPDX-License-Identifier: MIT
/*
 * How fast pages become PAGES bodies and pages again, by content, on one thread, beside what this
 * processor can do at all.
 *
 *	bench_encode [--mib N] [--groups] [--levels] [--json]
 *
 * Prints GB/s (10^9 bytes of guest memory a second of processor time, so that a busy machine
 * disturbs little) of the best of several passes over N MiB (default 64); --groups adds a table of
 * LZ4's group sizes, --levels one of zstd's levels. Limits of the same run, on the same contents: copying (pages into a 1 MiB buffer),
 * CRC-32, LZ4 in 64 KiB blocks.
 */
#include <isa-l/crc.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "migrate/encode.h"
#include "migrate/stream.h"

#define PAGE   PGR_PAGE_SIZE
#define BLOCK  (64u << 10)
#define PASSES 5

enum content { ZERO, TEXT, BINARY, RANDOM, MIXED, NR_CONTENTS };
static const char *const content_names[] = {"zero", "text", "binary", "random", "mixed"};

static size_t nr_pages;
static uint8_t *memory, *there;
static uint64_t seed = 1;
static volatile uint64_t sink;

static uint64_t next_random(void)
{
	uint64_t x = seed += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
	fprintf(stderr, "bench_encode: %s\n", what);
	exit(1);
}

static void check(int rc, const struct pgr_error *err)
{
	if (rc)
		die(err->text);
}

/* ---- contents ---- */

/* Lines of words from a vocabulary of 2,000, common ones more often: like logs and sources. */
static void fill_text(uint8_t *p, size_t length)
{
	static char words[2000][12];
	size_t at = 0;

	if (!words[0][0]) {
		for (unsigned w = 0; w < 2000; w++) {
			unsigned n = 2 + (unsigned)(next_random() % 9);

			for (unsigned i = 0; i < n; i++)
				words[w][i] = "etaoinshrdlucmfwyp"[next_random() % 18];
		}
	}
	while (at < length) {
		uint64_t r = next_random();
		const char *w = words[(r % 2000) * (r >> 32 & 1023) / 1024];
		size_t n = strlen(w);

		if (n > length - at)
			n = length - at;
		/* A piece of text, not a string. */
		memcpy(p + at, w, n); /* NOLINT(bugprone-not-null-terminated-result) */
		at += n;
		if (at < length)
			p[at++] = r >> 60 ? ' ' : '\n';
	}
}

static void fill_random(uint8_t *p, size_t length)
{
	for (size_t i = 0; i < length; i += sizeof(uint64_t)) {
		uint64_t x = next_random();

		memcpy(p + i, &x, sizeof(x));
	}
}

/*
 * The files that this process has mapped as code: programs and libraries. Returns one block of all.
 */
static uint8_t *read_binaries(size_t *length)
{
	static uint8_t *data;
	static size_t have;
	char line[4096], path[4096], last[4096] = "";
	FILE *maps;

	*length = have;
	if (data)
		return data;
	maps = fopen("/proc/self/maps", "r");
	if (!maps)
		die("cannot read /proc/self/maps");
	while (fgets(line, sizeof(line), maps)) {
		char *slash = strchr(line, '/');
		FILE *f;

		if (!slash || sscanf(slash, "%4095s", path) != 1 || strcmp(path, last) == 0)
			continue;
		memcpy(last, path, sizeof(last));
		f = fopen(path, "r");
		if (!f)
			continue;
		for (;;) {
			size_t n;

			data = realloc(data, have + (1u << 20));
			if (!data)
				die("no memory");
			n = fread(data + have, 1, 1u << 20, f);
			if (!n)
				break;
			have += n;
		}
		fclose(f);
	}
	fclose(maps);
	if (have < PAGE)
		die("found no binaries");
	*length = have;
	return data;
}

static void fill_binary(uint8_t *p, size_t length)
{
	static size_t at;
	size_t have;
	const uint8_t *data = read_binaries(&have);

	while (length) {
		size_t n;

		if (have - at < PAGE)
			at = 0;
		n = length < have - at ? length : have - at;
		n = n > PAGE ? n / PAGE * PAGE : n;
		memcpy(p, data + at, n);
		p += n;
		at += n;
		length -= n;
	}
}

/* Runs of 1 to 32 pages: 40 % zero, 20 % text, 25 % binary, 15 % random. */
static void fill_mixed(uint8_t *p, size_t length)
{
	while (length) {
		size_t n = PAGE * (1 + next_random() % 32), kind = next_random() % 100;

		if (n > length)
			n = length;
		if (kind < 40)
			memset(p, 0, n);
		else if (kind < 60)
			fill_text(p, n);
		else if (kind < 85)
			fill_binary(p, n);
		else
			fill_random(p, n);
		p += n;
		length -= n;
	}
}

static void fill(enum content c)
{
	size_t length = nr_pages * PAGE;

	if (c == TEXT)
		fill_text(memory, length);
	else if (c == BINARY)
		fill_binary(memory, length);
	else if (c == RANDOM)
		fill_random(memory, length);
	else if (c == MIXED)
		fill_mixed(memory, length);
	else
		memset(memory, 0, length);
}

/* ---- limits ---- */

static void pass_copy(void)
{
	static _Alignas(4096) uint8_t buffer[PGR_BATCH_MAX * PAGE];

	for (size_t i = 0; i < nr_pages; i++)
		memcpy(buffer + i % PGR_BATCH_MAX * PAGE, memory + i * PAGE, PAGE);
	sink += buffer[seed % sizeof(buffer)];
}

static void pass_crc(void)
{
	for (size_t i = 0; i < nr_pages; i++)
		sink += crc32_gzip_refl(0, memory + i * PAGE, PAGE);
}

static void pass_zero(void)
{
	for (size_t i = 0; i < nr_pages; i++)
		sink += encode_is_zero(memory + i * PAGE);
}

static void pass_lz4(void)
{
	static char out[LZ4_COMPRESSBOUND(BLOCK)];

	for (size_t at = 0; at + BLOCK <= nr_pages * PAGE; at += BLOCK)
		sink += (uint64_t)LZ4_compress_default((char *)memory + at, out, BLOCK,
						       sizeof(out));
}

/* GB/s of the best pass. */
static double rate(void (*pass)(void))
{
	double best = 0;

	for (unsigned i = 0; i < PASSES; i++) {
		double t = now();

		pass();
		t = (double)nr_pages * PAGE / (now() - t) / 1e9;
		best = t > best ? t : best;
	}
	return best;
}

/* ---- the codec ---- */

struct result {
	double encode, decode, ratio;
};

struct batch {
	uint64_t pfn[PGR_BATCH_MAX];
	uint8_t *page[PGR_BATCH_MAX], *to[PGR_BATCH_MAX], type[PGR_BATCH_MAX];
	uint32_t crc[PGR_BATCH_MAX];
	unsigned nr;
};

static void make_batch(struct batch *b, size_t from)
{
	b->nr = nr_pages - from < PGR_BATCH_MAX ? (unsigned)(nr_pages - from) : PGR_BATCH_MAX;
	for (unsigned i = 0; i < b->nr; i++) {
		b->pfn[i] = from + i;
		b->page[i] = memory + (from + i) * PAGE;
		b->to[i] = there + (from + i) * PAGE;
		b->type[i] = 0;
	}
}

/*
 * One pass; the time in the encoder and in the decoder apart.
 */
static void pass_codec(struct encoder *e, struct decoder *d, bool first, double *encoding,
		       double *decoding)
{
	static _Alignas(8) uint8_t body[PGR_RECORD_MAX];
	struct pgr_error err = PGR_ERROR_NONE;
	struct decoded_header h;
	struct encoded made;
	struct batch b;
	double t;

	*encoding = *decoding = 0;
	for (size_t from = 0; from < nr_pages; from += b.nr) {
		make_batch(&b, from);
		t = now();
		check(encoder_pages(e, 0, b.pfn, b.page, b.type, b.nr, first, b.crc, body, &made,
				    &err),
		      &err);
		*encoding += now() - t;
		t = now();
		check(decoder_parse(d, body, made.length, nr_pages, &h, &err), &err);
		check(decoder_pages(d, b.to, b.to[0], NULL, b.crc, &err), &err);
		*decoding += now() - t;
	}
}

/* Change 8 bytes of each page. */
static void touch(void)
{
	for (size_t i = 0; i < nr_pages; i++) {
		for (unsigned k = 0; k < 8; k++)
			memory[i * PAGE + next_random() % PAGE]++;
	}
}

static struct result measure(enum encode_method method, unsigned group, int level, bool delta)
{
	struct encode_options o = {.method = method,
				   .group_pages = group,
				   .level = level,
				   .cache_bytes = delta ? nr_pages * (PAGE + 64) : 0};
	struct pgr_error err = PGR_ERROR_NONE;
	struct encode_stats before, after;
	struct result r = {0};
	double bytes = (double)nr_pages * PAGE, encoding, decoding;
	struct encoder *e;
	struct decoder *d;

	check(encoder_create(&o, &e, &err), &err);
	check(decoder_create(&d, &err), &err);
	pass_codec(e, d, true, &encoding, &decoding);
	for (unsigned i = 0; i < PASSES; i++) {
		encoder_stats(e, &before);
		if (delta)
			touch();
		pass_codec(e, d, !delta, &encoding, &decoding);
		encoder_stats(e, &after);
		if (bytes / encoding / 1e9 > r.encode)
			r.encode = bytes / encoding / 1e9;
		if (bytes / decoding / 1e9 > r.decode)
			r.decode = bytes / decoding / 1e9;
		r.ratio = bytes / (double)(after.bytes_out - before.bytes_out);
	}
	if (memcmp(memory, there, nr_pages * PAGE) != 0)
		die("the decoded memory differs");
	decoder_free(d);
	encoder_free(e);
	return r;
}

static void row(const char *name, const char *method, struct result r, bool json)
{
	if (json)
		printf("{\"content\": \"%s\", \"method\": \"%s\", \"encode_gbs\": %.3f, \"decode_gbs\": %.3f, \"ratio\": %.3f}\n",
		       name, method, r.encode, r.decode, r.ratio);
	else
		printf("%-8s %-12s %9.2f %9.2f %9.2f\n", name, method, r.encode, r.decode, r.ratio);
}

static void limits(const char *name, bool json)
{
	double copy = rate(pass_copy), crc = rate(pass_crc), zero = rate(pass_zero);
	double lz4 = rate(pass_lz4);

	if (json)
		printf("{\"content\": \"%s\", \"limits\": {\"copy_gbs\": %.3f, \"crc_gbs\": %.3f, \"zero_test_gbs\": %.3f, \"lz4_gbs\": %.3f}}\n",
		       name, copy, crc, zero, lz4);
	else
		printf("%-8s limits: copy %.1f, crc %.1f, zero test %.1f, LZ4 %.2f\n", name, copy,
		       crc, zero, lz4);
}

static void groups(void)
{
	static const unsigned sizes[] = {1, 4, 8, 15, 16, 32, 64, 128, 256};

	printf("\n%-8s %-12s %9s %9s %9s\n", "content", "group", "in GB/s", "out GB/s", "ratio");
	for (enum content c = TEXT; c < NR_CONTENTS; c++) {
		fill(c);
		for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			char name[32];

			snprintf(name, sizeof(name), "lz4/%u", sizes[i]);
			row(content_names[c], name, measure(ENCODE_LZ4, sizes[i], 0, false), false);
		}
	}
}

static void levels(void)
{
	printf("\n%-8s %-12s %9s %9s %9s\n", "content", "level", "in GB/s", "out GB/s", "ratio");
	for (enum content c = TEXT; c < NR_CONTENTS; c++) {
		fill(c);
		for (int level = 1; level <= 3; level++) {
			char name[32];

			snprintf(name, sizeof(name), "zstd/%d", level);
			row(content_names[c], name, measure(ENCODE_ZSTD, 0, level, false), false);
		}
	}
}

int main(int argc, char **argv)
{
	bool json = false, sweep = false, by_level = false;
	unsigned long mib = 64;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			json = true;
		else if (strcmp(argv[i], "--groups") == 0)
			sweep = true;
		else if (strcmp(argv[i], "--levels") == 0)
			by_level = true;
		else if (strcmp(argv[i], "--mib") == 0 && i + 1 < argc)
			mib = strtoul(argv[++i], NULL, 10);
		else
			die("usage: bench_encode [--mib N] [--groups] [--levels] [--json]");
	}
	if (mib < 1 || mib > 1024)
		die("--mib takes 1 .. 1024");
	nr_pages = mib << 8;
	memory = aligned_alloc(PAGE, nr_pages * PAGE);
	there = aligned_alloc(PAGE, nr_pages * PAGE);
	if (!memory || !there)
		die("no memory");
	memset(there, 0, nr_pages * PAGE);

	if (!json)
		printf("%-8s %-12s %9s %9s %9s\n", "content", "method", "in GB/s", "out GB/s",
		       "ratio");
	for (enum content c = ZERO; c < NR_CONTENTS; c++) {
		fill(c);
		limits(content_names[c], json);
		row(content_names[c], "none", measure(ENCODE_NONE, 0, 0, false), json);
		row(content_names[c], "lz4", measure(ENCODE_LZ4, 0, 0, false), json);
		row(content_names[c], "zstd", measure(ENCODE_ZSTD, 0, 0, false), json);
		if (c == TEXT || c == RANDOM)
			row(content_names[c], "lz4+delta", measure(ENCODE_LZ4, 0, 0, true), json);
	}
	if (sweep)
		groups();
	if (by_level)
		levels();
	free(memory);
	free(there);
	return 0;
}
