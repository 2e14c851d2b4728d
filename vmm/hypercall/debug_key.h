/* SPDX-License-Identifier: MIT */
/* Keys that make the hypervisor say in its log what it is doing: `xl debug-keys`, or typed at the serial console. */
#pragma once

/* 'h' lists them; one that is none does nothing. Any context but interrupt handlers. */
void debug_key(char key);
