/* SPDX-License-Identifier: MIT */
/* Commands in a test's own folder: QEMU's tools above all, which say what an image holds. */
#ifndef PAGURUS_TEST_IN_FOLDER_H
#define PAGURUS_TEST_IN_FOLDER_H

#include <stdbool.h>

/* A shell's command there; its exit status, -1 when it was killed. Its output is in the folder's "log". */
int in_folder(const char *folder, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Whether qemu-img and qemu-io are installed: without them there is nothing to compare with. */
bool in_folder_has_qemu(const char *folder);

#endif
