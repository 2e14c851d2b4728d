/* SPDX-License-Identifier: MIT */
/* The contract: Xen's public headers as Debian's libxen-dev has them, which want their integer types declared first. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <xen/xen.h>
