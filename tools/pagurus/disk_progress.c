// SPDX-License-Identifier: MIT
#include "tools/pagurus/disk_progress.h"

#include <stdio.h>
#include <unistd.h>

#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verb_disk.h"

#define FIRST_MS 2000u
#define EACH_MS	 1000u

void disk_progress_show(struct disk_progress *p, uint64_t done, uint64_t size)
{
	uint64_t now = units_now_ms();

	if (now < p->next_ms)
		return;
	p->next_ms = now + EACH_MS;
	if (p->json) {
		disk_print_json(json_pack("{s:s,s:I,s:I}", "type", "progress", "done",
					  (json_int_t)done, "size", (json_int_t)size));
		fflush(stdout);
	} else if (isatty(STDERR_FILENO)) {
		fprintf(stderr, "\r%3u %%", (unsigned)(size ? done * 100 / size : 100));
		p->shown = true;
	}
}

void disk_progress_end(struct disk_progress *p)
{
	if (p->shown)
		fputs("\r      \r", stderr);
}

struct watched {
	struct disk_copy copy;
	struct disk_progress progress;
};

static void report(struct disk_copy *c)
{
	disk_progress_show(&((struct watched *)c)->progress, c->done, c->size);
}

int disk_copy_watched(struct disk_copy *c, bool json, struct pgr_error *err)
{
	struct watched w = {.copy = *c,
			    .progress = {.json = json, .next_ms = units_now_ms() + FIRST_MS}};
	int ret;

	w.copy.stop = interrupt_catch();
	w.copy.progress = report;
	ret = disk_copy(&w.copy, err);
	disk_progress_end(&w.progress);
	c->size = w.copy.size;
	c->done = w.copy.done;
	c->copied = w.copy.copied;
	return ret;
}
