// SPDX-License-Identifier: MIT
#include "tests/guests/lib/store.h"

#include <xen/event_channel.h>
#include <xen/io/xs_wire.h>
#include <xen/sched.h>

#define PAYLOAD	  512u
#define WAIT_MS	  1000u
#define WAITS_MAX 300u
#define NS_PER_MS 1000000ull

static struct xenstore_domain_interface *ring;
static struct {
	struct xsd_sockmsg head;
	char payload[PAYLOAD];
} message;

static uint64_t now_ns(void)
{
	const volatile struct vcpu_time_info *t = &shared_info->vcpu_info[0].time;
	uint64_t ticks, now;
	uint32_t version;

	do {
		version = t->version;
		ticks = ticks_now() - t->tsc_timestamp;
		ticks = t->tsc_shift < 0 ? ticks >> -t->tsc_shift : ticks << t->tsc_shift;
		now = t->system_time +
		      (uint64_t)(((unsigned __int128)ticks * t->tsc_to_system_mul) >> 32);
	} while (version & 1 || version != t->version);
	return now;
}

void wait_for_event(uint32_t port, unsigned milliseconds)
{
	struct sched_poll poll = {.nr_ports = 1, .timeout = now_ns() + milliseconds * NS_PER_MS};

	set_xen_guest_handle(poll.ports, &port);
	hypercall2(__HYPERVISOR_sched_op, SCHEDOP_poll, VA(&poll));
	__atomic_fetch_and(&shared_info->evtchn_pending[port / 64], ~(1ull << port % 64),
			   __ATOMIC_SEQ_CST);
}

static void notify(void)
{
	struct evtchn_send op = {.port = start_info->store_evtchn};

	hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_send, VA(&op));
}

static void put(const void *from, size_t length)
{
	const char *at = from;

	while (length--) {
		uint32_t to = ring->req_prod;

		ring->req[MASK_XENSTORE_IDX(to)] = *at++;
		__atomic_store_n(&ring->req_prod, to + 1, __ATOMIC_SEQ_CST);
	}
}

static void get(void *to, size_t size, size_t length)
{
	char *at = to;
	unsigned waits = 0;

	for (size_t i = 0; i < length; i++) {
		uint32_t from = ring->rsp_cons;

		while (__atomic_load_n(&ring->rsp_prod, __ATOMIC_SEQ_CST) == from) {
			if (waits++ == WAITS_MAX)
				error("xenstore does not answer");
			wait_for_event(start_info->store_evtchn, WAIT_MS);
		}
		if (i < size)
			at[i] = ring->rsp[MASK_XENSTORE_IDX(from)];
		__atomic_store_n(&ring->rsp_cons, from + 1, __ATOMIC_SEQ_CST);
		/* It may be waiting for room. */
		if (i == length - 1)
			notify();
	}
}

/* Of bytes that fit into the ring at once; the answer is in `message`, ended. False: an error. */
static bool ask(uint32_t type, const char *path, const char *value)
{
	size_t path_bytes = strlen(path) + 1, value_bytes = value ? strlen(value) : 0;
	static uint32_t id;

	if (!ring)
		ring = page_of_mfn(start_info->store_mfn);
	if (path_bytes + value_bytes > PAYLOAD)
		error("too long for xenstore: %s", path);
	message.head = (struct xsd_sockmsg){
		.type = type, .req_id = ++id, .len = (uint32_t)(path_bytes + value_bytes)};
	put(&message.head, sizeof(message.head));
	put(path, path_bytes);
	put(value, value_bytes);
	notify();
	get(&message.head, sizeof(message.head), sizeof(message.head));
	get(message.payload, PAYLOAD - 1, message.head.len);
	message.payload[MIN(message.head.len, PAYLOAD - 1)] = '\0';
	if (message.head.req_id != id)
		error("xenstore answers %u, not %u", message.head.req_id, id);
	if (message.head.type != XS_ERROR && message.head.type != type)
		error("xenstore answers with %u: %s", message.head.type, message.payload);
	return message.head.type != XS_ERROR;
}

bool store_read(const char *path, char *value, size_t size)
{
	size_t length;

	if (!ask(XS_READ, path, NULL))
		return false;
	length = MIN(strlen(message.payload), size - 1);
	memcpy(value, message.payload, length);
	value[length] = '\0';
	return true;
}

uint64_t store_number(const char *path, uint64_t otherwise)
{
	char text[24];
	uint64_t n = 0;

	if (!store_read(path, text, sizeof(text)) || !text[0])
		return otherwise;
	for (const char *at = text; *at; at++) {
		if (*at < '0' || *at > '9')
			return otherwise;
		n = n * 10 + (uint64_t)(*at - '0');
	}
	return n;
}

void store_write(const char *path, const char *value)
{
	if (!ask(XS_WRITE, path, value))
		error("cannot write %s: %s", path, message.payload);
}

void store_remove(const char *path)
{
	ask(XS_RM, path, NULL);
}
