// SPDX-License-Identifier: MIT
/*
 * console_io: the serial line as dom0's console, and a few lines a second of what other guests want to say before they have one of their own.
 */
#include "vmm/lib/xen.h"

#include "vmm/domain/domain.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/print.h"
#include "vmm/mm/access.h"
#include "vmm/platform/serial.h"
#include "vmm/platform/time.h"

/* A real line takes 90 us for each byte, during which interrupts are off. */
#define CHUNK		       128u
#define GUEST_BYTES_PER_SECOND 4096u
#define SECOND		       1000000000ull

/* All guests together: the line is one, and it is dom0's. */
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
	unsigned start = 0;

	if (!within_guests_budget(length))
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

static long console_read(unsigned count, guest_va_t buffer)
{
	char text[CHUNK];
	unsigned n = 0;
	int c;

	if (!current->domain->privileged)
		return -EPERM;
	while (n < MIN(count, CHUNK) && (c = serial_read()) >= 0)
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
