/* SPDX-License-Identifier: MIT */
/*
 * Who has to leave when more connections wait than there is room for, before it is known who they are.
 *
 * Not the newcomer: whoever fills the room first would keep everybody else out. Of those who wait, the network that has the most
 * gives up the one that has waited longest. So a host that is quick at proving who it is gets in, however many others are not.
 */
#ifndef PAGURUS_CROWD_H
#define PAGURUS_CROWD_H

#include <stdbool.h>
#include <stdint.h>

/* Where a connection comes from: its address; of an IPv6 address the half that one customer has. */
#define CROWD_NETWORK 16

struct crowd_member {
	bool waits; /* false: nobody */
	uint8_t network[CROWD_NETWORK];
	uint64_t since_ms;
};

/* The network at the other end of a socket; zeroes when it is gone. */
void crowd_network(int fd, uint8_t out[CROWD_NETWORK]);

/* Index of the one of nr that leaves; nr when nobody waits. */
unsigned crowd_choose(const struct crowd_member *members, unsigned nr);

#endif
