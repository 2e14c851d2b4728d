/* SPDX-License-Identifier: MIT */
/* Which volume of LVM a disk is: VG/LV, /dev/VG/LV, /dev/mapper/..., or another name of the device. Asks the kernel only. */
#ifndef PAGURUS_LVM_NAME_H
#define PAGURUS_LVM_NAME_H

#include <stdbool.h>

#include "common/error.h"

#define LVM_NAME 128u

struct lvm_name {
	char vg[LVM_NAME], lv[LVM_NAME];
};

/* LVM's rule for names of groups and volumes, that of lvm(8). */
bool lvm_name_is_valid(const char *name);

/*
 * A device of LVM's; or a name for one that is not there, as VG/LV when there is no such path and no folder VG here, or /dev/VG/LV. Whether such a volume exists
 * is another question.
 */
bool lvm_find(const char *disk, struct lvm_name *out);

/* The name of a volume out of device-mapper's name for it: "vg--a-lv" is vg-a/lv. False: it is none. */
bool lvm_name_of_map(const char *map, struct lvm_name *out);

#define LVM_DEVICE (2 * LVM_NAME + 8) /* room for the path of a volume's device */

/* disk, or /dev/VG/LV in out when disk is VG/LV and that is a device. */
const char *lvm_device(const char *disk, char out[LVM_DEVICE]);

#endif
