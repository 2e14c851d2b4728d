/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/crowd.h"

#include <string.h>

#include "tools/pagurus/connect.h"

void crowd_network(int fd, uint8_t out[CROWD_NETWORK])
{
	union connect_address a;

	memset(out, 0, CROWD_NETWORK);
	if (connect_address(fd, &a))
		return;
	if (a.any.sa_family == AF_INET)
		memcpy(out, &a.v4.sin_addr, sizeof(a.v4.sin_addr));
	else if (IN6_IS_ADDR_V4MAPPED(&a.v6.sin6_addr))
		memcpy(out, a.v6.sin6_addr.s6_addr + 12, 4);
	else
		memcpy(out, &a.v6.sin6_addr, 8);
}

static unsigned number_from(const struct crowd_member *members, unsigned nr, const uint8_t *network)
{
	unsigned n = 0;

	for (unsigned i = 0; i < nr; i++)
		n += members[i].waits && !memcmp(members[i].network, network, CROWD_NETWORK);
	return n;
}

unsigned crowd_choose(const struct crowd_member *members, unsigned nr)
{
	unsigned chosen = nr, most = 0;

	for (unsigned i = 0; i < nr; i++) {
		unsigned n;

		if (!members[i].waits)
			continue;
		n = number_from(members, nr, members[i].network);
		if (n < most || (n == most && members[i].since_ms >= members[chosen].since_ms))
			continue;
		most = n;
		chosen = i;
	}
	return chosen;
}
