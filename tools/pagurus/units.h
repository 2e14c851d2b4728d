/* SPDX-License-Identifier: MIT */
/*
 * Numbers as people write and read them: sizes, rates, times, ports.
 *
 * The parse functions accept the whole text or nothing: -EINVAL (not a number of this kind), -ERANGE (too large). They never
 * touch *out on failure. No function here keeps state; any thread may call.
 */
#ifndef PAGURUS_UNITS_H
#define PAGURUS_UNITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "4096", "100K", "100M", "1.5G", "1T" with an optional "B" or "iB": powers of 1024. In bytes. */
int units_size(const char *text, uint64_t *out);

/*
 * Bytes a second. "100M", "100MB", "100MiB/s": bytes, powers of 1024. "1Gbit", "100Mbit/s": bits, powers of 1000, as
 * network cards are sold. "0": no limit.
 */
int units_rate(const char *text, uint64_t *out);

/* Milliseconds: "300", "300ms", "2s", "1.5s", "2m", "1h". */
int units_ms(const char *text, uint64_t *out);

/* A whole decimal number. */
int units_count(const char *text, uint64_t *out);

/* "NAME", "NAME:PORT", "ADDR4:PORT", "[ADDR6]:PORT", "ADDR6". *port stays as it is when the text has none. */
int units_host_port(const char *text, char *host, size_t size, uint16_t *port);

/* A name that is safe in a file name and on a command line: letters, digits, '.', '_', '-', not first '-' or '.', at most 64. */
bool units_name_ok(const char *text);

#define UNITS_TEXT 32
/* "1.50 GiB", "12.3 MiB", "512 B". Returns out. */
char *units_show_size(uint64_t bytes, char out[UNITS_TEXT]);
/* "12.3 MiB/s" */
char *units_show_rate(uint64_t bytes, char out[UNITS_TEXT]);
/* "38 ms", "1.25 s", "3 min 20 s" */
char *units_show_ns(uint64_t ns, char out[UNITS_TEXT]);

/* Of CLOCK_MONOTONIC. */
uint64_t units_now_ms(void);

/* 16 bytes as 32 hexadecimal digits, and back (-EINVAL). */
#define UNITS_HEX16 33
char *units_hex16(const uint8_t bytes[16], char out[UNITS_HEX16]);
int units_parse_hex16(const char *text, uint8_t out[16]);
/* 8-4-4-4-12 */
#define UNITS_UUID 37
char *units_uuid(const uint8_t uuid[16], char out[UNITS_UUID]);

#endif
