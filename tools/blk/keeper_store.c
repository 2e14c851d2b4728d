// SPDX-License-Identifier: MIT
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/blk/keeper_internal.h"

static bool write_all(struct keeper *k, xs_transaction_t t, const struct store_value *values,
		      unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		if (!xs_write(k->store, t, values[i].path, values[i].value,
			      (unsigned)strlen(values[i].value)))
			return false;
	return true;
}

bool keeper_store_write(struct keeper *k, const char *there, const struct store_value *values,
			unsigned nr)
{
	for (;;) {
		xs_transaction_t t = xs_transaction_start(k->store);
		char *node = t ? xs_read(k->store, t, there, NULL) : NULL;
		bool done = node && write_all(k, t, values, nr);
		int error = errno;

		free(node);
		if (!t)
			return false;
		if (xs_transaction_end(k->store, t, !done)) {
			errno = error;
			return done;
		}
		if (errno != EAGAIN)
			return false;
	}
}
