/* SPDX-License-Identifier: MIT */
/* What grant_table.c is to the life of a domain. */
#pragma once

#include "vmm/domain/domain.h"

/* Frames of the table, and of handles of what it maps of others, that a domain may have at most when nobody says otherwise. */
#define GRANT_FRAMES_DEFAULT	64
#define MAPTRACK_FRAMES_DEFAULT 1024

/* A table of one frame. 0, -EINVAL (a limit), -ENOMEM. */
int grants_create(struct domain *d, int max_frames, int max_maptrack_frames);
/* The domain is dying and its page tables are gone: give back what it has mapped of others. 0 or -ERESTART. */
int grants_release_mappings(struct domain *d);
/* Nobody finds the frames of its own table any more; those that another domain still has mapped are freed when it lets go. */
void grants_unshare(struct domain *d);
/* The last: no mapping of any of its grants is left. */
void grants_free(struct domain *d);
/* Frame i of the table, which grows to it: for those who may map it. 0, -EINVAL (beyond the most), -ENOMEM, -ESRCH (dying). */
int grants_frame(struct domain *d, uint64_t i, xen_pfn_t *mfn);
uint32_t grants_max_frames(const struct domain *d);
/* The auditor's: who has the frame of an entry in use. False: there is no entry of that number, nor any further. */
bool grants_pins(const struct domain *d, uint32_t ref, mfn_t *m, uint32_t *readers,
		 uint32_t *writers);
/* Debug key. */
void grants_dump(struct domain *d);
