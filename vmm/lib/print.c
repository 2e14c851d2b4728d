// SPDX-License-Identifier: MIT
/*
 * Text is formatted on the caller's stack before the lock is taken, so that a fault in an argument cannot leave it held.
 *
 * The ring's positions count bytes since boot, modulo 2^32; its size divides that, and what lies between `tail` and `head` is in it.
 */
#include "vmm/lib/print.h"

#include "vmm/lib/lock.h"
#include "vmm/lib/string.h"
#include "vmm/platform/serial.h"

#define PREFIX	     "(PGR) "
#define MESSAGE_MAX  1024
#define FORCED_SPINS 1000000u

_Static_assert((LOG_RING_BYTES & (LOG_RING_BYTES - 1)) == 0, "positions wrap with the ring");

enum log_level log_console_level = LOG_INFO;

static spinlock_t console_lock = SPINLOCK_INIT;
static bool forced;
static bool mid_line; /* the console's last byte was not a newline */
static char ring[LOG_RING_BYTES];
static uint32_t ring_head, ring_tail;

/* ---- formatting ---- */

struct output {
	char *to;
	size_t size, length;
};

static void put(struct output *o, char c)
{
	if (o->length + 1 < o->size)
		o->to[o->length] = c;
	o->length++;
}

struct directive {
	bool zero, wide;
	unsigned width, precision;
};

static void put_padded(struct output *o, const struct directive *d, const char *text, size_t length,
		       const char *sign)
{
	size_t used = length + strlen(sign), fill = d->width > used ? d->width - used : 0;

	for (; fill && !d->zero; fill--)
		put(o, ' ');
	while (*sign)
		put(o, *sign++);
	for (; fill; fill--)
		put(o, '0');
	for (size_t i = 0; i < length; i++)
		put(o, text[i]);
}

static void put_number(struct output *o, const struct directive *d, uint64_t n, unsigned base,
		       const char *sign)
{
	char digits[20], *at = digits + sizeof(digits);

	do {
		*--at = "0123456789abcdef"[n % base];
		n /= base;
	} while (n);
	put_padded(o, d, at, (size_t)(digits + sizeof(digits) - at), sign);
}

static void put_signed(struct output *o, const struct directive *d, int64_t n)
{
	put_number(o, d, n < 0 ? -(uint64_t)n : (uint64_t)n, 10, n < 0 ? "-" : "");
}

static void put_text(struct output *o, const struct directive *d, const char *text)
{
	size_t length = 0;

	if (!text)
		text = "(null)";
	while (length < d->precision && text[length])
		length++;
	put_padded(o, d, text, length, "");
}

int format_string_v(char *out, size_t size, const char *format, va_list args)
{
	struct output o = {out, size, 0};

	for (const char *f = format; *f; f++) {
		struct directive d = {.precision = ~0u};

		if (*f != '%') {
			put(&o, *f);
			continue;
		}
		d.zero = *++f == '0';
		for (; *f >= '0' && *f <= '9'; f++)
			d.width = d.width * 10 + (unsigned)(*f - '0');
		if (*f == '.' && f[1] == '*') {
			d.precision = va_arg(args, unsigned);
			f += 2;
		}
		for (; *f == 'l' || *f == 'z'; f++)
			d.wide = true;
		switch (*f) {
		case 'd':
			put_signed(&o, &d, d.wide ? va_arg(args, long) : va_arg(args, int));
			break;
		case 'u':
		case 'x':
			put_number(&o, &d,
				   d.wide ? va_arg(args, unsigned long) : va_arg(args, unsigned),
				   *f == 'u' ? 10 : 16, "");
			break;
		case 's':
			put_text(&o, &d, va_arg(args, const char *));
			break;
		case '%':
			put(&o, '%');
			break;
		default:
			/* The rest cannot be trusted to match its arguments. */
			put(&o, '?');
			goto out;
		}
	}
out:
	if (size)
		out[MIN(o.length, size - 1)] = '\0';
	return (int)o.length;
}

int format_string(char *out, size_t size, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = format_string_v(out, size, format, args);
	va_end(args);
	return n;
}

/* ---- the log ---- */

void log_force(void)
{
	WRITE_ONCE(forced, true);
}

/* Whoever holds the lock when the hypervisor dies may never give it back. */
static bool lock_console(uint64_t *flags)
{
	unsigned spins = 0;

	*flags = irq_save();
	if (!READ_ONCE(forced)) {
		spin_lock(&console_lock);
		return true;
	}
	while (!spin_trylock(&console_lock))
		if (++spins == FORCED_SPINS)
			return false;
	return true;
}

static void unlock_console(bool held, uint64_t flags)
{
	if (held)
		spin_unlock(&console_lock);
	irq_restore(flags);
}

static void ring_write(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
		ring[ring_head++ % LOG_RING_BYTES] = text[i];
	if (ring_head - ring_tail > LOG_RING_BYTES)
		ring_tail = ring_head - LOG_RING_BYTES;
}

static void write_line(const char *text, size_t length, bool to_console)
{
	ring_write(PREFIX, sizeof(PREFIX) - 1);
	ring_write(text, length);
	ring_write("\n", 1);
	if (!to_console)
		return;
	if (mid_line)
		serial_write("\n", 1);
	serial_write(PREFIX, sizeof(PREFIX) - 1);
	serial_write(text, length);
	serial_write("\n", 1);
	mid_line = false;
}

static void log_print_v(enum log_level level, const char *format, va_list args)
{
	char text[MESSAGE_MAX];
	const char *line = text;
	uint64_t flags;
	bool held;

	/* Most of these a guest can cause as often as it likes, and they would push all else out of the ring. */
	if (level == LOG_DEBUG && log_console_level < LOG_DEBUG)
		return;
	format_string_v(text, sizeof(text), format, args);
	held = lock_console(&flags);
	do {
		const char *end = strchr(line, '\n');
		size_t length = end ? (size_t)(end - line) : strlen(line);

		write_line(line, length, level <= log_console_level);
		line += length + (end != NULL);
	} while (*line);
	unlock_console(held, flags);
}

void log_print(enum log_level level, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	log_print_v(level, format, args);
	va_end(args);
}

void log_raw(const char *text, size_t length)
{
	uint64_t flags;
	bool held;

	if (!length)
		return;
	held = lock_console(&flags);
	serial_write(text, length);
	mid_line = text[length - 1] != '\n';
	unlock_console(held, flags);
}

size_t log_read(uint32_t *index, char *out, size_t size)
{
	uint64_t flags;
	bool held = lock_console(&flags);
	uint32_t at = *index;
	size_t n = 0;

	if (!at || ring_head - at > ring_head - ring_tail)
		at = ring_tail;
	while (n < size && at != ring_head)
		out[n++] = ring[at++ % LOG_RING_BYTES];
	*index = at;
	unlock_console(held, flags);
	return n;
}

void log_clear(void)
{
	uint64_t flags;
	bool held = lock_console(&flags);

	ring_tail = ring_head;
	unlock_console(held, flags);
}

void log_replay(void)
{
	for (uint32_t at = ring_tail; at != ring_head; at++)
		serial_write(&ring[at % LOG_RING_BYTES], 1);
}

void give_up(const char *format, ...)
{
	va_list args;

	log_force();
	va_start(args, format);
	log_print_v(LOG_ERROR, format, args);
	va_end(args);
	panic_stop();
}

void bug(const char *file, int line, const char *what)
{
	log_force();
	log_error("hypervisor bug at %s:%d: %s", file, line, what);
	panic_stop();
}
