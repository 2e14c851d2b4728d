// SPDX-License-Identifier: MIT
/*
 * The handshake: options one after the other, until one chooses an export.
 *
 * With an identity, all a client may do before STARTTLS is to ask for it or to give up: what it said in the clear must not count, so bytes that came
 * along with STARTTLS end the connection. What an option carries is read whole before it is looked at (OPTION_MAX), and every length in it is held
 * against what is left. Each answer has gone before the next option is read, so a client that does not read gets no more memory than one answer's. All
 * of it has to be over after options.handshake_ms.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/nbd_internal.h"

#define OPTION_MAX (16u << 10)
#define SKIP_MAX   (1u << 20) /* of an option that is too large; beyond, the connection ends */

struct reply {
	struct nbd_out out;
	uint8_t bytes[];
};

static void reply_sent(struct nbd_out *o)
{
	free(o);
}

/* Send a copy of the pieces and wait until it has gone. */
static int send_copy(struct nbd_connection *c, const struct iovec *iov, unsigned nr)
{
	struct reply *r;
	size_t length = 0;

	for (unsigned i = 0; i < nr; i++)
		length += iov[i].iov_len;
	r = malloc(sizeof(*r) + length);
	if (!r)
		return -ENOMEM;
	r->out = (struct nbd_out){.iov = {{.iov_base = r->bytes, .iov_len = length}},
				  .sent = reply_sent};
	for (unsigned i = 0, at = 0; i < nr; i++) {
		if (iov[i].iov_len)
			memcpy(r->bytes + at, iov[i].iov_base, iov[i].iov_len);
		at += (unsigned)iov[i].iov_len;
	}
	nbd_stream_send(&c->stream, &r->out);
	return nbd_stream_drain(&c->stream);
}

int nbd_option_reply(struct nbd_connection *c, uint32_t option, uint32_t type, const void *a,
		     size_t a_length, const void *b, size_t b_length)
{
	struct nbd_option_reply head = {
		.magic = htobe64(NBD_REPLY_MAGIC),
		.option = htobe32(option),
		.type = htobe32(type),
		.length = htobe32((uint32_t)(a_length + b_length)),
	};
	const struct iovec iov[] = {
		{.iov_base = &head, .iov_len = sizeof(head)},
		{.iov_base = (void *)a, .iov_len = a_length},
		{.iov_base = (void *)b, .iov_len = b_length},
	};

	return send_copy(c, iov, 3);
}

int nbd_option_refuse(struct nbd_connection *c, uint32_t option, uint32_t type, const char *text)
{
	return nbd_option_reply(c, option, type, text, strlen(text), NULL, 0);
}

static int acknowledge(struct nbd_connection *c, uint32_t option)
{
	return nbd_option_reply(c, option, NBD_REP_ACK, NULL, 0, NULL, 0);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

/* ---- which exports there are ---- */

static int do_list(struct nbd_connection *c, size_t length)
{
	if (length)
		return nbd_option_refuse(c, NBD_OPT_LIST, NBD_REP_ERR_INVALID,
					 "this option carries nothing");
	for (const struct nbd_exported *e = c->server->exports; e; e = e->next) {
		uint32_t n = (uint32_t)strlen(e->e.name);
		const uint32_t wire = htobe32(n);
		int ret = nbd_option_reply(c, NBD_OPT_LIST, NBD_REP_SERVER, &wire, sizeof(wire),
					   e->e.name, n);

		if (ret)
			return ret;
	}
	return acknowledge(c, NBD_OPT_LIST);
}

static int send_info(struct nbd_connection *c, uint32_t option, const void *info, size_t length,
		     const char *text)
{
	return nbd_option_reply(c, option, NBD_REP_INFO, info, length, text,
				text ? strlen(text) : 0);
}

static uint32_t preferred_size(const struct block_info *i)
{
	return i->block_size > 4096 ? i->block_size : 4096;
}

/* What INFO and GO tell of an export; the client asked for `nr` kinds of information. */
static int tell(struct nbd_connection *c, uint32_t option, const struct nbd_exported *e,
		const uint8_t *asked, unsigned nr)
{
	const struct block_info *i = block_info(e->e.disk);
	const struct nbd_info_export size = {
		.type = htobe16(NBD_INFO_EXPORT),
		.size = htobe64(i->size),
		.flags = htobe16(nbd_export_flags(e)),
	};
	/* The block layer takes any alignment; block_size is what costs no read-modify-write. */
	const struct nbd_info_block_size sizes = {
		.type = htobe16(NBD_INFO_BLOCK_SIZE),
		.minimum = htobe32(1),
		.preferred = htobe32(preferred_size(i)),
		.maximum = htobe32(NBD_LENGTH_MAX),
	};
	int ret = send_info(c, option, &size, sizeof(size), NULL);

	if (!ret)
		ret = send_info(c, option, &sizes, sizeof(sizes), NULL);
	for (unsigned k = 0; k < nr && !ret; k++) {
		uint16_t kind;

		memcpy(&kind, asked + 2 * (size_t)k, sizeof(kind));
		if (be16toh(kind) == NBD_INFO_NAME)
			ret = send_info(c, option, &kind, sizeof(kind), e->e.name);
		else if (be16toh(kind) == NBD_INFO_DESCRIPTION && e->e.description)
			ret = send_info(c, option, &kind, sizeof(kind), e->e.description);
	}
	return ret;
}

static void choose(struct nbd_connection *c, const struct nbd_exported *e)
{
	c->export = e;
	c->size = block_info(e->e.disk)->size;
	if (c->context_export != e)
		memset(c->context, 0, sizeof(c->context));
}

static int do_info(struct nbd_connection *c, uint32_t option, const uint8_t *data, size_t length)
{
	const struct nbd_exported *e;
	uint32_t name;
	uint16_t nr;
	int ret;

	if (length < 6 || (name = get32(data)) > length - 6)
		return nbd_option_refuse(c, option, NBD_REP_ERR_INVALID,
					 "the name is longer than the option");
	memcpy(&nr, data + 4 + name, sizeof(nr));
	nr = be16toh(nr);
	if (length != 6 + (size_t)name + 2 * (size_t)nr)
		return nbd_option_refuse(c, option, NBD_REP_ERR_INVALID,
					 "the list of information is not as long as the option");
	e = nbd_find_export(c->server, (const char *)data + 4, name);
	if (!e)
		return nbd_option_refuse(c, option, NBD_REP_ERR_UNKNOWN,
					 "there is no export of this name");
	ret = tell(c, option, e, data + 6 + name, nr);
	if (!ret)
		ret = acknowledge(c, option);
	if (!ret && option == NBD_OPT_GO)
		choose(c, e);
	return ret;
}

/* The old way: it has no means to say no but to end. */
static int do_export_name(struct nbd_connection *c, const uint8_t *data, size_t length)
{
	const struct nbd_exported *e = nbd_find_export(c->server, (const char *)data, length);
	struct nbd_export_name_reply reply = {.size = 0};
	struct iovec iov = {.iov_base = &reply, .iov_len = sizeof(reply)};
	int ret;

	if (!e) {
		nbd_log(c, "asked for an export that there is none of");
		return -ENOENT;
	}
	reply.size = htobe64(block_info(e->e.disk)->size);
	reply.flags = htobe16(nbd_export_flags(e));
	if (c->no_zeroes)
		iov.iov_len -= sizeof(reply.zeros);
	ret = send_copy(c, &iov, 1);
	if (!ret)
		choose(c, e);
	return ret;
}

/* ---- TLS, structured replies ---- */

static int do_starttls(struct nbd_connection *c, size_t length)
{
	struct pgr_error err = PGR_ERROR_NONE;
	int ret;

	if (!c->server->o.identity)
		return nbd_option_refuse(c, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY,
					 "this server has no TLS");
	if (length || c->stream.ssl)
		return nbd_option_refuse(c, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID,
					 length ? "this option carries nothing"
						: "this is TLS already");
	ret = acknowledge(c, NBD_OPT_STARTTLS);
	if (!ret && nbd_stream_has_more(&c->stream)) {
		nbd_log(c, "sent something along with STARTTLS, which may be somebody else's");
		return -EPROTO;
	}
	if (!ret) {
		ret = nbd_stream_tls(&c->stream, c->server->o.identity, c->peer, &err);
		if (ret)
			nbd_log(c, "%s", err.text);
	}
	return ret;
}

static int do_structured(struct nbd_connection *c, size_t length)
{
	if (length)
		return nbd_option_refuse(c, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
					 "this option carries nothing");
	c->structured = true;
	return acknowledge(c, NBD_OPT_STRUCTURED_REPLY);
}

/* ---- one option after the other ---- */

static int perform(struct nbd_connection *c, uint32_t option, const uint8_t *data, size_t length)
{
	if (c->server->o.identity && !c->stream.ssl && option != NBD_OPT_STARTTLS &&
	    option != NBD_OPT_ABORT) {
		if (option == NBD_OPT_EXPORT_NAME) {
			nbd_log(c, "does not use TLS, which this server requires");
			return -EACCES;
		}
		return nbd_option_refuse(c, option, NBD_REP_ERR_TLS_REQD,
					 "this server requires TLS");
	}
	switch (option) {
	case NBD_OPT_EXPORT_NAME:
		return do_export_name(c, data, length);
	case NBD_OPT_ABORT:
		acknowledge(c, option); /* who does not wait for it is welcome to that */
		return -ECONNABORTED;
	case NBD_OPT_LIST:
		return do_list(c, length);
	case NBD_OPT_STARTTLS:
		return do_starttls(c, length);
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		return do_info(c, option, data, length);
	case NBD_OPT_STRUCTURED_REPLY:
		return do_structured(c, length);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		return nbd_contexts(c, option, data, length);
	default:
		return nbd_option_refuse(c, option, NBD_REP_ERR_UNSUP,
					 "this server does not have this option");
	}
}

static int one_option(struct nbd_connection *c)
{
	struct nbd_option o;
	uint32_t length;
	uint8_t *data;
	int ret = nbd_stream_read(&c->stream, &o, sizeof(o));

	if (ret)
		return ret;
	length = be32toh(o.length);
	if (be64toh(o.magic) != NBD_OPTION_MAGIC || length > SKIP_MAX) {
		nbd_log(c, "sent something that is no option");
		return -EPROTO;
	}
	if (length > OPTION_MAX) {
		ret = nbd_stream_skip(&c->stream, length);
		return ret ? ret
			   : nbd_option_refuse(c, be32toh(o.option), NBD_REP_ERR_TOO_BIG,
					       "this option is too long");
	}
	data = malloc(length + 1u);
	if (!data)
		return -ENOMEM;
	ret = nbd_stream_read(&c->stream, data, length);
	if (!ret)
		ret = perform(c, be32toh(o.option), data, length);
	free(data);
	return ret;
}

static int greet(struct nbd_connection *c)
{
	const struct nbd_greeting hello = {
		.magic = htobe64(NBD_MAGIC),
		.option_magic = htobe64(NBD_OPTION_MAGIC),
		.flags = htobe16(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES),
	};
	const struct iovec iov = {.iov_base = (void *)&hello, .iov_len = sizeof(hello)};
	uint32_t flags;
	int ret = send_copy(c, &iov, 1);

	if (!ret)
		ret = nbd_stream_read(&c->stream, &flags, sizeof(flags));
	if (ret)
		return ret;
	flags = be32toh(flags);
	if (flags & ~(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES)) {
		nbd_log(c, "wants features that there are none of (%#x)", flags);
		return -EPROTO;
	}
	c->no_zeroes = flags & NBD_NO_ZEROES;
	return 0;
}

int nbd_handshake(struct nbd_connection *c)
{
	int ret;

	nbd_stream_limit(&c->stream, loop_now_ns() + c->server->o.handshake_ms * 1000000ull);
	ret = greet(c);
	while (!ret && !c->export)
		ret = one_option(c);
	if (ret == -ETIMEDOUT)
		nbd_log(c, "did not come to an end with the handshake");
	nbd_stream_limit(&c->stream, 0);
	return ret;
}
