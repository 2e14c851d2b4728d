// SPDX-License-Identifier: MIT
/*
 * suspend_guest DOMID [stand|go] - in dom0: lets the guest suspend itself, and go on at once where it was. What every move has to do at least. stand: it stands
 * still then, as while somebody saves it; go: it goes on.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxl.h>

int main(int argc, char **argv)
{
	xentoollog_logger_stdiostream *log = xtl_createlogger_stdiostream(stderr, XTL_WARN, 0);
	const char *what = argc == 3 ? argv[2] : "";
	uint32_t domid = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
	libxl_ctx *ctx = NULL;
	int ret = 1;

	if (!log || !domid || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, (xentoollog_logger *)log))
		fputs("suspend_guest: DOMID of a guest, in dom0\n", stderr);
	else if (strcmp(what, "go") != 0 && libxl_domain_suspend_only(ctx, domid, NULL))
		fputs("suspend_guest: it did not suspend itself\n", stderr);
	else if (strcmp(what, "stand") != 0 && libxl_domain_resume(ctx, domid, 1, NULL))
		fputs("suspend_guest: it does not go on\n", stderr);
	else
		ret = 0;
	libxl_ctx_free(ctx);
	xtl_logger_destroy((xentoollog_logger *)log);
	return ret;
}
