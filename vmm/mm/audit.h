/* SPDX-License-Identifier: MIT */
/* The auditor of frames' counts. */
#pragma once

/*
 * Recount who holds every frame of every domain, compare with the frame table, and log one line for each of the first few differences and one with the
 * verdict ("audit: ..."). Changing tables waits meanwhile, all else goes on: a hypercall that takes or drops references on another CPU at that moment is a
 * difference that is none. Takes a few nanoseconds for each entry of all tables, and memory for two numbers a frame. Debug key.
 */
void audit_frames(void);
