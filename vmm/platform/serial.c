// SPDX-License-Identifier: MIT
/* Registers are those of the 16550 (National Semiconductor's data sheet). The speed is that of its usual 1.8432 MHz crystal. */
#include "vmm/platform/serial.h"

#include "vmm/cpu/regs.h"
#include "vmm/lib/number.h"
#include "vmm/lib/print.h"

enum { DATA = 0, IRQ_ENABLE = 1, FIFO = 2, LINE = 3, MODEM = 4, LINE_STATUS = 5, SCRATCH = 7 };
#define LINE_DIVISOR	0x80
#define STATUS_RECEIVED 0x01
#define STATUS_EMPTY	0x20
#define FIFO_ON		0x07 /* and emptied */
#define FIFO_BYTES	16
#define MODEM_DTR_RTS	0x03
#define BASE_BAUD	115200u
#define PATIENCE	1000000u
#define DEAD_LINE_BYTES 4096

static uint16_t base;
static unsigned space; /* free places in the transmitter, as far as we know */

/* The number at *s, with *s behind it. 0: there is none. */
static unsigned number(const char **s)
{
	uint64_t n;

	return parse_number(*s, s, &n) ? (unsigned)n : 0;
}

/* Behind the next comma, or at the end. */
static const char *next_field(const char *s)
{
	while (*s && *s != ',')
		s++;
	return *s ? s + 1 : s;
}

static void set_line(unsigned divisor, const char *format)
{
	uint8_t line = 0x03; /* 8 bits, no parity, 1 stop bit */

	if (format[0] >= '5' && format[0] <= '8') {
		line = (uint8_t)(format[0] - '5');
		if (format[1] == 'o')
			line |= 0x08;
		else if (format[1] == 'e')
			line |= 0x18;
		if (format[1] && format[2] == '2')
			line |= 0x04;
	}
	if (divisor) {
		outb(base + LINE, LINE_DIVISOR | line);
		outb(base + DATA, (uint8_t)divisor);
		outb(base + IRQ_ENABLE, (uint8_t)(divisor >> 8));
	}
	outb(base + LINE, line);
}

void serial_init(unsigned port_number, const char *setting)
{
	unsigned baud = number(&setting), port;
	const char *format = next_field(setting), *place = next_field(format);

	port = number(&place);
	base = (uint16_t)(port ? port : port_number == 2 ? 0x2f8 : 0x3f8);
	outb(base + SCRATCH, 0x5a);
	if (inb(base + SCRATCH) != 0x5a) {
		log_warning("serial: there is no UART at port %x", base);
		base = 0;
		return;
	}
	outb(base + IRQ_ENABLE, 0);
	/* "auto": as the firmware left it. */
	set_line(baud ? MAX(BASE_BAUD / baud, 1u) : 0, format);
	outb(base + IRQ_ENABLE, 0);
	outb(base + FIFO, FIFO_ON);
	outb(base + MODEM, MODEM_DTR_RTS);
	space = 0;
}

bool serial_present(void)
{
	return base;
}

uint16_t serial_base(void)
{
	return base;
}

static void put(char c)
{
	for (unsigned i = 0; !space && i < PATIENCE; i++)
		if (inb(base + LINE_STATUS) & STATUS_EMPTY)
			space = FIFO_BYTES;
	/* A line that is dead (flow control by the other end) must not hold up the machine again and again. */
	if (!space)
		space = DEAD_LINE_BYTES;
	outb(base + DATA, (uint8_t)c);
	space--;
}

void serial_write(const char *text, size_t length)
{
	if (!base)
		return;
	for (size_t i = 0; i < length; i++) {
		if (text[i] == '\n')
			put('\r');
		put(text[i]);
	}
}

int serial_read(void)
{
	if (!base || !(inb(base + LINE_STATUS) & STATUS_RECEIVED))
		return -1;
	return inb(base + DATA);
}
