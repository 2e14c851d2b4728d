/* SPDX-License-Identifier: MIT */
/* The control domain, out of the boot loader's modules: a kernel and a RAM disk. */
#pragma once

/* Boot, once, on the first CPU, with all CPUs counted. Panics with a line that says what to do when it cannot. The domain is paused. */
void dom0_build(void);
