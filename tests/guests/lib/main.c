// SPDX-License-Identifier: MIT
/* The guest's life: begin, run the parts, say their verdicts, shut down. */
#include "tests/guests/lib/guest.h"

#include <xen/event_channel.h>
#include <xen/sched.h>

/* It includes a header that asks for GNU's language, though nothing in it needs more than C11. */
#pragma push_macro("__STRICT_ANSI__")
#undef __STRICT_ANSI__
#include <xen/sysctl.h>
#pragma pop_macro("__STRICT_ANSI__")

#include "tests/guests/lib/internal.h"
#include "vmm/lib/print.h"

#define LINE_MAX  400
#define NS_PER_MS 1000000ull
#define BYTES_PER_MS \
	2u /* all guests beside dom0 together have 4 KiB a second of the hypervisor's console */
#define LINE_BYTES 16u	/* what each line of theirs is counted for besides */
#define PIECE	   120u /* and pieces of 128 bytes, each a line of the log */

const struct start_info *start_info;
struct shared_info *shared_info;

static uint64_t part_place;
static const char *verdict;
static char reason[LINE_MAX];

void guest_main(const struct start_info *info) __attribute__((noreturn));

bool privileged(void)
{
	return start_info->flags & SIF_PRIVILEGED;
}

domid_t own_domid(void)
{
	struct evtchn_alloc_unbound own = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
	struct evtchn_status status = {.dom = DOMID_SELF};
	struct evtchn_close c;

	hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, VA(&own));
	status.port = c.port = own.port;
	if (hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_status, VA(&status)) ||
	    hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_close, VA(&c)))
		error("it cannot know its number");
	return status.u.unbound.dom;
}

static void write_line(const char *text)
{
	size_t left = strlen(text);

	while (left) {
		size_t n = privileged() ? left : MIN(left, PIECE);

		hypercall3(__HYPERVISOR_console_io, CONSOLEIO_write, n, VA(text));
		if (!privileged())
			pass_time((n + LINE_BYTES) / BYTES_PER_MS);
		text += n;
		left -= n;
	}
}

void say(const char *format, ...)
{
	char text[LINE_MAX];
	va_list args;

	va_start(args, format);
	format_string_v(text, sizeof(text) - 1, format, args);
	va_end(args);
	memcpy(text + strlen(text), "\n", 2);
	write_line(text);
}

#define DEFINE_VERDICT(name, word)                                     \
	void name(const char *format, ...)                             \
	{                                                              \
		va_list args;                                          \
                                                                       \
		va_start(args, format);                                \
		format_string_v(reason, sizeof(reason), format, args); \
		va_end(args);                                          \
		verdict = word;                                        \
		land(part_place, 1);                                   \
	}
DEFINE_VERDICT(failure, "FAILURE")
DEFINE_VERDICT(skip, "SKIP")
DEFINE_VERDICT(error, "ERROR")

uint64_t option(const char *name, uint64_t otherwise)
{
	const char *at = (const char *)start_info->cmd_line;
	size_t length = strlen(name);
	uint64_t n = 0;

	while (at && (strncmp(at, name, length) != 0 || at[length] != '=')) {
		at = strchr(at, ' ');
		at = at ? at + 1 : NULL;
	}
	if (!at)
		return otherwise;
	for (at += length + 1; *at >= '0' && *at <= '9'; at++)
		n = n * 10 + (uint64_t)(*at - '0');
	return n;
}

uint64_t ticks_now(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

uint64_t ticks_of(uint64_t milliseconds)
{
	const struct vcpu_time_info *t = &shared_info->vcpu_info[0].time;
	uint64_t ticks = (NS_PER_MS << 32) / t->tsc_to_system_mul * milliseconds;

	return t->tsc_shift < 0 ? ticks << -t->tsc_shift : ticks >> t->tsc_shift;
}

void pass_time(uint64_t milliseconds)
{
	static uint64_t ticks_per_ms;
	uint64_t began = ticks_now();

	if (!ticks_per_ms)
		ticks_per_ms = ticks_of(1);
	while (ticks_now() - began < ticks_per_ms * milliseconds)
		__builtin_ia32_pause();
}

void guest_shutdown(unsigned why)
{
	struct sched_shutdown op = {.reason = why};

	hypercall2(__HYPERVISOR_sched_op, SCHEDOP_shutdown, VA(&op));
	for (;;)
		;
}

static void run(uint64_t which)
{
	parts[which].run();
}

/* The hypervisor recounts what holds each frame; tests/guests/run reads what it says. */
static void audit(void)
{
	struct xen_sysctl op = {.cmd = XEN_SYSCTL_debug_keys,
				.interface_version = XEN_SYSCTL_INTERFACE_VERSION};
	char key = 'a';

	op.u.debug_keys.keys.p = &key;
	op.u.debug_keys.nr_keys = 1;
	if (hypercall1(__HYPERVISOR_sysctl, VA(&op)))
		say("there is no audit");
}

const bool __attribute__((weak)) uses_store;

/* The ports that others are given at birth are mostly not used here, and tests want the first ones free. */
static void close_ports(void)
{
	const uint32_t ports[] = {start_info->store_evtchn, start_info->console.domU.evtchn};

	for (unsigned i = uses_store ? 1 : 0; i < ARRAY_SIZE(ports); i++) {
		struct evtchn_close c = {.port = ports[i]};

		hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_close, VA(&c));
	}
}

void guest_main(const struct start_info *info)
{
	start_info = info;
	paging_init();
	traps_init();
	if (!privileged())
		close_ports();
	for (unsigned i = 0; parts[i].name; i++) {
		say("part %s", parts[i].name);
		verdict = "SUCCESS";
		reason[0] = '\0';
		guarded(run, i, &part_place);
		say("verdict %s %s%s%s", verdict, parts[i].name, reason[0] ? ": " : "", reason);
	}
	if (privileged())
		audit();
	say("all parts done");
	/* QEMU, told not to, ends. */
	guest_shutdown(privileged() ? SHUTDOWN_reboot : SHUTDOWN_poweroff);
}
