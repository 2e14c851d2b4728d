/* SPDX-License-Identifier: MIT */
/* `pagurus disk mirror`: a disk that nobody writes onto another one. `pagurus disk serve --mirror` does it with one that is written. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "tools/pagurus/disk_mirror.h"
#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

static int copy(struct loop *l, struct block *mirror, bool json, struct pgr_error *err)
{
	const atomic_bool *interrupted = interrupt_catch();
	struct disk_progress progress = {.json = json};
	struct mirror_status s;

	for (mirror_status(mirror, &s); s.phase != MIRROR_EQUAL && s.phase != MIRROR_FAILED;
	     mirror_status(mirror, &s)) {
		if (atomic_load(interrupted))
			return pgr_fail(err, -ECANCELED, "stopped; the target is half done");
		disk_progress_show(&progress, s.size - s.left, s.size);
		loop_turn(l, true);
	}
	disk_progress_end(&progress);
	return mirror_finish(mirror, MIRROR_STAY, err);
}

int disk_mirror(int argc, char **argv)
{
	const char *format = NULL;
	struct paths paths;
	bool json = false, overwrite = false;
	uint64_t rate = 0;
	const struct option_spec options[] = {
		{"rate", OPTION_RATE, &rate, "RATE", "copy no faster than this a second", 0, 0},
		{"overwrite", OPTION_FLAG, &overwrite, NULL, "what the target holds may go", 0, 0},
		PATHS_OPTION_CONFIG(&paths),
		DISK_OPTION_FORMAT(&format),
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk mirror [OPTIONS] DISK TARGET",
		"Make a disk on an NBD server, or a raw file or device, the same as this disk, which nobody writes meanwhile.\nFor one that is in use: `pagurus disk serve --mirror TARGET`.",
		options, 2, 2};
	struct pgr_error err = PGR_ERROR_NONE;
	struct block *disk = NULL;
	struct loop *l = NULL;
	int count, status, ret;
	uint64_t size = 0;

	paths_init(&paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	ret = disk_open_to_read(argv[0], format, false, &l, &disk, &err);
	if (ret)
		return disk_fail(&err, json);
	size = block_info(disk)->size;
	ret = disk_mirror_over(l, &disk, argv[1], overwrite, paths.config, rate, &err);
	if (!ret)
		ret = copy(l, disk, json, &err);
	disk_done(l, disk);
	if (ret)
		return disk_fail(&err, json);
	if (json)
		disk_print_json(json_pack("{s:s,s:I}", "type", "result", "size", (json_int_t)size));
	return EXIT_OK;
}
