/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/units.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* A unit and what it multiplies by. */
struct unit {
	const char *name;
	double factor;
};

#define KIB 1024.0

/* Read "NUMBER[UNIT]" where UNIT is one of the table's, in any case; the result must fit 63 bits. */
static int scaled(const char *text, const struct unit *table, uint64_t *out)
{
	const struct unit *u;
	char *end;
	double value;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
		return -EINVAL;
	errno = 0;
	value = strtod(text, &end);
	if (errno == ERANGE)
		return -ERANGE;
	while (*end == ' ')
		end++;
	for (u = table; u->name; u++) {
		if (strcasecmp(end, u->name))
			continue;
		value *= u->factor;
		if (!isfinite(value) || value >= 9.2e18)
			return -ERANGE;
		*out = (uint64_t)(value + 0.5);
		return 0;
	}
	return -EINVAL;
}

int units_size(const char *text, uint64_t *out)
{
	static const struct unit sizes[] = {
		{"", 1},
		{"b", 1},
		{"k", KIB},
		{"kb", KIB},
		{"kib", KIB},
		{"m", KIB * KIB},
		{"mb", KIB * KIB},
		{"mib", KIB * KIB},
		{"g", KIB * KIB * KIB},
		{"gb", KIB * KIB * KIB},
		{"gib", KIB * KIB * KIB},
		{"t", KIB * KIB * KIB * KIB},
		{"tb", KIB * KIB * KIB * KIB},
		{"tib", KIB * KIB * KIB * KIB},
		{NULL, 0},
	};

	return scaled(text, sizes, out);
}

int units_rate(const char *text, uint64_t *out)
{
	static const struct unit bits[] = {
		{"bit", 1e0 / 8},  {"kbit", 1e3 / 8},  {"mbit", 1e6 / 8},
		{"gbit", 1e9 / 8}, {"tbit", 1e12 / 8}, {NULL, 0},
	};
	char plain[64];
	size_t length = strlen(text);

	if (length >= sizeof(plain))
		return -EINVAL;
	memcpy(plain, text, length + 1);
	if (length > 2 && !strcasecmp(plain + length - 2, "/s"))
		plain[length - 2] = 0;
	if (!scaled(plain, bits, out))
		return 0;
	return units_size(plain, out);
}

int units_ms(const char *text, uint64_t *out)
{
	static const struct unit times[] = {
		{"", 1}, {"ms", 1}, {"s", 1e3}, {"m", 6e4}, {"min", 6e4}, {"h", 3.6e6}, {NULL, 0},
	};

	return scaled(text, times, out);
}

int units_count(const char *text, uint64_t *out)
{
	char *end;
	unsigned long long value;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno == ERANGE)
		return -ERANGE;
	if (*end)
		return -EINVAL;
	*out = value;
	return 0;
}

int units_host_port(const char *text, char *host, size_t size, uint16_t *port)
{
	const char *from = text, *to, *colon = NULL;
	uint64_t number;
	int rc;

	if (text[0] == '[') {
		from = text + 1;
		to = strchr(from, ']');
		if (!to || (to[1] && to[1] != ':'))
			return -EINVAL;
		if (to[1])
			colon = to + 1;
	} else {
		colon = strchr(text, ':');
		if (colon && strchr(colon + 1, ':'))
			colon = NULL; /* several: an IPv6 address without a port */
		to = colon ? colon : text + strlen(text);
	}
	if (to == from || (size_t)(to - from) >= size)
		return -EINVAL;
	if (colon) {
		rc = units_count(colon + 1, &number);
		if (rc)
			return rc;
		if (!number || number > 65535)
			return -ERANGE;
		*port = (uint16_t)number;
	}
	memcpy(host, from, (size_t)(to - from));
	host[to - from] = 0;
	return 0;
}

bool units_name_ok(const char *text)
{
	size_t i;

	if (!text[0] || text[0] == '-' || text[0] == '.')
		return false;
	for (i = 0; text[i]; i++)
		if (i >= 64 || !(isalnum((unsigned char)text[i]) || strchr("._-", text[i])))
			return false;
	return true;
}

/* Three digits that matter. */
static void show(double value, const char *unit, char out[UNITS_TEXT])
{
	int digits = value < 10 ? 2 : value < 100 ? 1 : 0;

	snprintf(out, UNITS_TEXT, "%.*f %s", digits, value, unit);
}

char *units_show_size(uint64_t bytes, char out[UNITS_TEXT])
{
	static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double value = (double)bytes;
	unsigned i = 0;

	while (value >= 1023.5 && i < 6) {
		value /= KIB;
		i++;
	}
	if (i)
		show(value, names[i], out);
	else
		snprintf(out, UNITS_TEXT, "%u B", (unsigned)bytes);
	return out;
}

char *units_show_rate(uint64_t bytes, char out[UNITS_TEXT])
{
	units_show_size(bytes, out);
	strncat(out, "/s", UNITS_TEXT - strlen(out) - 1);
	return out;
}

char *units_show_ns(uint64_t ns, char out[UNITS_TEXT])
{
	double s = (double)ns / 1e9;

	if (ns < 1000000)
		show((double)ns / 1e3, "us", out);
	else if (s < 0.9995)
		show((double)ns / 1e6, "ms", out);
	else if (s < 100)
		show(s, "s", out);
	else if (s < 7200)
		snprintf(out, UNITS_TEXT, "%u min %u s", (unsigned)s / 60, (unsigned)s % 60);
	else
		snprintf(out, UNITS_TEXT, "%.1f h", s / 3600);
	return out;
}

uint64_t units_now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

char *units_hex16(const uint8_t bytes[16], char out[UNITS_HEX16])
{
	for (unsigned i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", bytes[i]);
	return out;
}

int units_parse_hex16(const char *text, uint8_t out[16])
{
	uint8_t bytes[16];
	unsigned i, byte;

	if (strlen(text) != 32)
		return -EINVAL;
	for (i = 0; i < 16; i++) {
		if (!isxdigit((unsigned char)text[2 * i]) ||
		    !isxdigit((unsigned char)text[2 * i + 1]))
			return -EINVAL;
		sscanf(text + 2 * i, "%2x", &byte);
		bytes[i] = (uint8_t)byte;
	}
	memcpy(out, bytes, 16);
	return 0;
}

char *units_uuid(const uint8_t u[16], char out[UNITS_UUID])
{
	unsigned i, at = 0;

	for (i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			out[at++] = '-';
		snprintf(out + at, 3, "%02x", u[i]);
		at += 2;
	}
	return out;
}
