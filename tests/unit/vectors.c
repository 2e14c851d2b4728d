/* SPDX-License-Identifier: MIT */
/* The vectors; see vectors.h. */
#include "tests/unit/vectors.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "migrate/stream.h"
#include "tests/unit/unit.h"

static char folder[] = "/tmp/pagurus-vectors-XXXXXX";

struct vectors_memory vectors_memory;

void vectors_path(const char *vector, const char *part, char path[VECTORS_PATH])
{
	snprintf(path, VECTORS_PATH, "%s/%s.%s.stream", folder, vector, part);
}

static void remove_folder(void)
{
	char command[VECTORS_PATH];

	snprintf(command, sizeof(command), "rm -r %s", folder);
	if (system(command))
		fprintf(stderr, "%s was not removed\n", folder);
}

/* Once for all tests of the program. */
static void make_vectors(void)
{
	static bool made;
	char command[VECTORS_PATH];

	if (made)
		return;
	CHECK(mkdtemp(folder) != NULL);
	atexit(remove_folder);
	snprintf(command, sizeof(command), "/usr/bin/python3 -B protocol-spec/vectors/make.py %s",
		 folder);
	CHECK_MSG(system(command) == 0, "%s failed: run this test from the root of the tree",
		  command);
	made = true;
}

static void forget_memory(void)
{
	memset(&vectors_memory, 0, sizeof(vectors_memory));
}

/* What memory the expected decoding has; a chain's is that of its last file. */
void vector_check_memory(const struct vector *v)
{
	json_t *expected = json_object_get(v->about, "memory");
	size_t present = 0;
	const char *key;
	json_t *value;

	for (size_t i = 0; i < VECTORS_PFNS_MAX; i++)
		present += vectors_memory.present[i];
	CHECK_MSG(present == json_object_size(expected), "%s: %zu pages hold memory, not %zu",
		  v->name, present, json_object_size(expected));
	json_object_foreach(expected, key, value)
	{
		unsigned long pfn = strtoul(key, NULL, 10);
		unsigned long crc = strtoul(json_string_value(value), NULL, 16);

		CHECK_MSG(stream_crc(0, vectors_memory.page[pfn], PGR_PAGE_SIZE) == crc,
			  "%s: the contents of pfn %lu are not the expected ones", v->name, pfn);
	}
}

int vector_each_part(const struct vector *v, vector_reads_fn *reads, struct pgr_error *err)
{
	json_t *part;
	size_t i;
	int rc = 0;

	forget_memory();
	json_array_foreach(json_object_get(v->about, "parts"), i, part)
	{
		rc = reads(v->name, json_string_value(part), err);
		if (rc)
			break;
	}
	return rc;
}

bool vector_is(const struct vector *v, const char *key, const char *value)
{
	const char *have = json_string_value(json_object_get(v->about, key));

	return have && !strcmp(have, value);
}

bool vector_accepts(const struct vector *v)
{
	return json_is_true(json_object_get(v->about, "accept"));
}

void vectors_each(void (*check)(const struct vector *v))
{
	struct dirent *e;
	unsigned nr = 0;
	DIR *d;

	make_vectors();
	d = opendir(folder);
	CHECK(d != NULL);
	while ((e = readdir(d))) {
		char *dot = strstr(e->d_name, ".json");
		struct vector v;
		char path[VECTORS_PATH];

		if (!dot)
			continue;
		snprintf(v.name, sizeof(v.name), "%.*s", (int)(dot - e->d_name), e->d_name);
		snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
		/* Digests do not fit into signed integers. */
		v.about = json_load_file(path, JSON_DECODE_INT_AS_REAL, NULL);
		CHECK_MSG(v.about, "cannot read %s", path);
		check(&v);
		json_decref(v.about);
		nr++;
	}
	closedir(d);
	CHECK_MSG(nr > 100, "only %u vectors were made", nr);
}
