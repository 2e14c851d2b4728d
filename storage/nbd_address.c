// SPDX-License-Identifier: MIT
#include "storage/nbd_address.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORT_MAX 65535u

static const struct scheme {
	const char *word;
	bool tls, local;
} schemes[] = {
	{"nbd://", false, false},
	{"nbds://", true, false},
	{"nbd+unix://", false, true},
	{"nbds+unix://", true, true},
};

static const struct scheme *scheme_of(const char *name)
{
	for (unsigned i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
		if (!strncmp(name, schemes[i].word, strlen(schemes[i].word)))
			return &schemes[i];
	return NULL;
}

/* ---- letters ---- */

static int nibble(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* What is between the two, ended; false: too long, or an escape that is none or stands for a text's end. */
static bool unescape(const char *at, const char *end, char *to, size_t room)
{
	while (at < end) {
		int high, low;

		if (room-- <= 1)
			return false;
		if (*at != '%') {
			*to++ = *at++;
			continue;
		}
		high = nibble(at[1]);
		low = high < 0 ? -1 : nibble(at[2]);
		if (low < 0 || !(high | low))
			return false;
		*to++ = (char)(high << 4 | low);
		at += 3;
	}
	*to = '\0';
	return true;
}

static bool copy(const char *at, const char *end, char *to, size_t room)
{
	size_t n = (size_t)(end - at);

	if (n >= room)
		return false;
	memcpy(to, at, n);
	to[n] = '\0';
	return true;
}

/* ---- parts ---- */

/* The value of a parameter as it stands there, until *end; NULL: there is none. */
static const char *parameter(const char *uri, const char *name, const char **end)
{
	const char *at = uri + strcspn(uri, "?#");

	while (*at && *at != '#') {
		const char *equals;
		char word[32];

		at++;
		*end = at + strcspn(at, "&;#");
		equals = memchr(at, '=', (size_t)(*end - at));
		if (equals && unescape(at, equals, word, sizeof(word)) && !strcmp(word, name))
			return equals + 1;
		at = *end;
	}
	return NULL;
}

/* ":PORT", ":" or nothing. */
static bool take_port(const char *at, const char *end, struct nbd_address *out)
{
	unsigned long port = NBD_PORT;

	if (at < end && *at != ':')
		return false;
	if (end - at > 1) {
		char digits[sizeof(out->port)];

		if (!copy(at + 1, end, digits, sizeof(digits)) ||
		    strspn(digits, "0123456789") != strlen(digits))
			return false;
		port = strtoul(digits, NULL, 10);
	}
	if (!port || port > PORT_MAX)
		return false;
	snprintf(out->port, sizeof(out->port), "%u", (unsigned)port & PORT_MAX);
	return true;
}

/* "HOST:PORT" or "[HOST]:PORT". What is in front of an '@' would be a user's name, which only keys that the address brings itself have a use for. */
static bool take_server(const char *at, const char *end, bool local, struct nbd_address *out)
{
	size_t n = (size_t)(end - at);
	const char *stop;

	if (memchr(at, '@', n))
		return false;
	if (n && *at == '[') {
		at++;
		stop = memchr(at, ']', n - 1);
		if (!stop || stop == at)
			return false;
		return copy(at, stop, out->host, sizeof(out->host)) &&
		       take_port(stop + 1, end, out);
	}
	stop = memchr(at, ':', n);
	stop = stop ? stop : end;
	return (stop > at || local) && copy(at, stop, out->host, sizeof(out->host)) &&
	       take_port(stop, end, out);
}

static bool take_path(const char *uri, struct nbd_address *out)
{
	const char *end, *at = parameter(uri, "socket", &end);

	return at && unescape(at, end, out->path, sizeof(out->path)) && out->path[0];
}

/* ---- the whole ---- */

bool nbd_address_is(const char *name)
{
	return scheme_of(name) != NULL;
}

bool nbd_address_takes_identity(const char *name)
{
	const struct scheme *s = scheme_of(name);
	const char *end;

	return s && s->tls && !parameter(name, "tls-certificates", &end) &&
	       !parameter(name, "tls-psk-file", &end);
}

int nbd_address_parse(const char *uri, struct nbd_address *out, struct pgr_error *err)
{
	const struct scheme *s = scheme_of(uri);
	const char *at = s ? uri + strlen(s->word) : "", *end = at + strcspn(at, "/?#");
	const char *name = *end == '/' ? end + 1 : end;

	memset(out, 0, sizeof(*out));
	if (s && take_server(at, end, s->local, out) &&
	    unescape(name, name + strcspn(name, "?#"), out->export, sizeof(out->export)) &&
	    (!s->local || take_path(uri, out))) {
		out->tls = s->tls;
		return 0;
	}
	return pgr_fail(
		err, -EINVAL,
		"%s: not the address of a server: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, with TLS nbds:// or nbds+unix://",
		uri);
}
