// SPDX-License-Identifier: MIT
#include "options.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdlib.h>

#include "clock.h"
#include "parse.h"

#define ROWS_MAX 15

static void set(const struct option_row *row, const char *text)
{
	switch (row->kind) {
	case OPTION_FLAG:
		*(bool *)row->value = true;
		break;
	case OPTION_SMALL:
		*(unsigned int *)row->value =
			(unsigned int)need_number(row->name, text, row->min, row->max);
		break;
	case OPTION_NUMBER:
		*(uint64_t *)row->value = need_number(row->name, text, row->min, row->max);
		break;
	case OPTION_TIME:
		*(int64_t *)row->value =
			(int64_t)need_number(row->name, text, row->min, row->max) * NS_PER_MS;
		break;
	case OPTION_BYTES:
		*(uint64_t *)row->value = need_mebibytes(row->name, text, row->min, row->max);
		break;
	case OPTION_CHOICE:
		*(unsigned int *)row->value = need_choice(row->name, text, row->names);
		break;
	case OPTION_END:
		break;
	}
}

int options_read(int argc, char **argv, const struct option_row *rows, void (*usage)(void))
{
	struct option options[ROWS_MAX + 2] = {{0}};
	int nr, opt;

	for (nr = 0; rows[nr].kind != OPTION_END; nr++) {
		if (nr == ROWS_MAX)
			abort();
		options[nr].name = rows[nr].name + 2;
		options[nr].has_arg =
			rows[nr].kind == OPTION_FLAG ? no_argument : required_argument;
		options[nr].val = nr;
	}
	options[nr].name = "help";
	options[nr].val = nr;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == nr) {
			usage();
			exit(0);
		}
		if (opt < 0 || opt > nr)
			exit(EXIT_USAGE);
		set(&rows[opt], optarg);
	}
	return optind;
}
