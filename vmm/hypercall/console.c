// SPDX-License-Identifier: MIT
/*
 * console_io: the serial line as dom0's console, and a few lines a second of what other guests want to say before they have one of their own.
 */
#include "vmm/lib/xen.h"

#include "vmm/domain/domain.h"
#include "vmm/hypercall/console.h"
#include "vmm/hypercall/debug_key.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/print.h"
#include "vmm/mm/access.h"
#include "vmm/platform/serial.h"
#include "vmm/platform/time.h"

/* A real line takes 90 us for each byte, during which interrupts are off. */
#define CHUNK		       128u
#define GUEST_BYTES_PER_SECOND 4096u
#define LINE_BYTES	       16u /* "(PGR) d1234: " and the line's end */
#define SECOND		       1000000000ull
/* A person types no faster; somebody who pastes fills the UART's buffer of 16 bytes in 1.4 ms, which flow control is for. */
#define INPUT_EVERY_NS 20000000ull
/* What an idle machine does: looking less often while nobody types. */
#define INPUT_REST_NS	 (5 * INPUT_EVERY_NS)
#define INPUT_REST_AFTER 50u
#define INPUT_BYTES	 512u
#define SWITCH_KEY	 0x01
#define SWITCH_COUNT	 3u

/* All guests together: the line is one, and it is dom0's. What is added to each of their lines counts as well. */
static bool within_guests_budget(unsigned bytes)
{
	static spinlock_t lock = SPINLOCK_INIT;
	static uint64_t since;
	static unsigned used;
	uint64_t now = time_now();
	bool within;

	spin_lock(&lock);
	if (now - since >= SECOND) {
		since = now;
		used = 0;
	}
	within = used + bytes <= GUEST_BYTES_PER_SECOND;
	if (within)
		used += bytes;
	spin_unlock(&lock);
	return within;
}

/* Each line says whose it is, and nothing in it drives the terminal at the other end. */
static void log_guest(const struct domain *d, char *text, unsigned length)
{
	unsigned start = 0, lines = text[length - 1] != '\n';

	for (unsigned i = 0; i < length; i++)
		lines += text[i] == '\n';
	if (!within_guests_budget(length + lines * LINE_BYTES))
		return;
	for (unsigned i = 0; i < length; i++) {
		if (text[i] == '\n') {
			log_info("d%u: %.*s", d->id, (int)(i - start), text + start);
			start = i + 1;
		} else if (text[i] < ' ' || text[i] == 0x7f) {
			text[i] = ' ';
		}
	}
	if (start < length)
		log_info("d%u: %.*s", d->id, (int)(length - start), text + start);
}

static long console_write(unsigned count, guest_va_t buffer)
{
	const struct domain *d = current->domain;

	while (count) {
		char text[CHUNK];
		unsigned n = MIN(count, CHUNK);

		if (copy_from_guest(text, buffer, n))
			return -EFAULT;
		if (d->privileged)
			log_raw(text, n);
		else
			log_guest(d, text, n);
		count -= n;
		buffer.v += n;
		if (count && hypercall_preempt_check()) {
			hypercall_set_argument(1, count);
			hypercall_set_argument(2, buffer.v);
			return -ERESTART;
		}
	}
	return 0;
}

/* ---- what is typed ---- */

static struct {
	spinlock_t lock;
	char ring[INPUT_BYTES];
	unsigned head, tail; /* head: where the next goes; equal: empty */
	unsigned switches;   /* Ctrl-A in a row */
	unsigned quiet;	     /* how often nothing was there, in a row */
	bool ours;	     /* keys are for the hypervisor */
	struct timer timer;
} input;

/* Ctrl-A three times changes who gets what is typed, as with Xen. */
static void type(char c)
{
	input.switches = c == SWITCH_KEY ? input.switches + 1 : 0;
	if (input.switches == SWITCH_COUNT) {
		input.switches = 0;
		input.ours = !input.ours;
		log_info("input goes to %s (three times Ctrl-A changes that)",
			 input.ours ? "Pagurus; h lists the keys" : "dom0");
		return;
	}
	if (input.ours) {
		debug_key(c);
		return;
	}
	spin_lock(&input.lock);
	if ((input.head + 1) % INPUT_BYTES != input.tail) {
		input.ring[input.head] = c;
		input.head = (input.head + 1) % INPUT_BYTES;
	}
	spin_unlock(&input.lock);
}

static void look_for_input(void *unused)
{
	bool some = false;
	int c;

	(void)unused;
	while ((c = serial_read()) >= 0) {
		type((char)c);
		some = true;
	}
	if (some)
		send_global_virq(VIRQ_CONSOLE);
	input.quiet = some ? 0 : MIN(input.quiet + 1, INPUT_REST_AFTER);
	timer_set(&input.timer,
		  time_now() + (input.quiet < INPUT_REST_AFTER ? INPUT_EVERY_NS : INPUT_REST_NS));
}

void console_input_start(void)
{
	if (!serial_present())
		return;
	timer_init(&input.timer, look_for_input, NULL, 0);
	timer_set(&input.timer, time_now() + INPUT_EVERY_NS);
}

static int typed(void)
{
	int c = -1;

	spin_lock(&input.lock);
	if (input.tail != input.head) {
		c = (uint8_t)input.ring[input.tail];
		input.tail = (input.tail + 1) % INPUT_BYTES;
	}
	spin_unlock(&input.lock);
	return c;
}

static long console_read(unsigned count, guest_va_t buffer)
{
	char text[CHUNK];
	unsigned n = 0;
	int c;

	if (!current->domain->privileged)
		return -EPERM;
	while (n < MIN(count, CHUNK) && (c = typed()) >= 0)
		text[n++] = (char)c;
	return copy_to_guest(buffer, text, n) ? -EFAULT : (long)n;
}

long do_console_io(arg_t command, arg_t count, arg_t buffer)
{
	switch ((uint32_t)command) {
	case CONSOLEIO_write:
		return console_write((uint32_t)count, GUEST_VA(buffer));
	case CONSOLEIO_read:
		return console_read((uint32_t)count, GUEST_VA(buffer));
	default:
		return -ENOSYS;
	}
}
