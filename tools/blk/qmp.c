// SPDX-License-Identifier: MIT
#include "tools/blk/qmp.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* libxl looks at the version for commands that came late; none of those is for a guest without emulated hardware. */
static const char greeting[] =
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, \"package\": \"pagurus-blk\"}, \"capabilities\": []}}\r\n";

/* ---- commands ---- */

/* What xentop takes of either list: which device has which file, and the device's figures. */
static json_t *show_disk(const struct qmp_disk *d, bool figures)
{
	if (!figures)
		return json_pack("{ss s{ss}}", "device", d->name, "inserted", "file", d->path);
	return json_pack("{ss s{sI sI sI sI}}", "device", d->name, "stats", "rd_bytes",
			 (json_int_t)d->read_bytes, "wr_bytes", (json_int_t)d->written_bytes,
			 "rd_operations", (json_int_t)d->reads, "wr_operations",
			 (json_int_t)d->writes);
}

static json_t *show_disks(const struct qmp_disks *disks, bool figures)
{
	json_t *list = json_array();
	struct qmp_disk d;

	for (unsigned i = 0; disks->get(disks->ctx, i, &d); i++)
		json_array_append_new(list, show_disk(&d, figures));
	return list;
}

static json_t *run(const struct qmp_disks *disks, const char *command, bool *quit)
{
	static const char *const plain[] = {"qmp_capabilities", "cont", "stop", "quit"};

	for (unsigned i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
		if (!strcmp(command, plain[i])) {
			*quit = !strcmp(command, "quit");
			return json_object();
		}
	if (!strcmp(command, "query-chardev"))
		return json_array();
	if (!strcmp(command, "query-block") || !strcmp(command, "query-blockstats"))
		return show_disks(disks, !strcmp(command, "query-blockstats"));
	if (!strcmp(command, "query-status"))
		return json_pack("{s:s,s:b,s:b}", "status", "running", "singlestep", 0, "running",
				 1);
	return NULL;
}

static json_t *failure(const char *class, const char *text)
{
	return json_pack("{s:{s:s,s:s}}", "error", "class", class, "desc", text);
}

char *qmp_answer(const struct qmp_disks *disks, const char *line, bool *quit)
{
	json_t *request = json_loads(line, 0, NULL);
	json_t *id = json_object_get(request, "id"), *answer, *result;
	const char *command = json_string_value(json_object_get(request, "execute"));
	char *text, *out = NULL;
	size_t length;

	*quit = false;
	result = command ? run(disks, command, quit) : NULL;
	if (result)
		answer = json_pack("{s:o}", "return", result);
	else if (command)
		answer = failure("CommandNotFound", "pagurus-blk has no such command");
	else
		answer = failure("GenericError", "this is not a command");
	if (id)
		json_object_set(answer, "id", id);
	text = json_dumps(answer, JSON_COMPACT);
	if (text) {
		length = strlen(text) + 3;
		out = malloc(length);
		if (out)
			snprintf(out, length, "%s\r\n", text);
	}
	free(text);
	json_decref(answer);
	json_decref(request);
	return out;
}

/* ---- connections ---- */

static void on_line(void *ctx, struct line_client *c, char *line)
{
	bool quit;
	char *answer = qmp_answer(ctx, line, &quit);

	if (answer)
		line_put(c, answer);
	if (!answer || quit)
		line_end(c);
	free(answer);
}

int qmp_listen(struct loop *l, const char *path, const struct qmp_disks *disks,
	       struct line_server **out, struct pgr_error *err)
{
	/* It is handed back as it came. */
	const struct line_server_options o = {.path = path,
					      .greeting = greeting,
					      .objects = true,
					      .line = on_line,
					      .ctx = (void *)disks};

	return line_server_start(l, &o, out, err);
}
