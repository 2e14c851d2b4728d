/* SPDX-License-Identifier: MIT */
/*
 * A guest for QEMU's side of the comparison: a multiboot 1 kernel that dirties pages at a rate,
 * like the workload of guest_sim with pattern uniform and 256 bytes of random data a write.
 *
 * Command line: "WORKING_SET_MIB RATE_MIB" after the name of the kernel. The working set begins at
 * 16 MiB. Sleeps (HLT) between ticks of 1 ms. 32-bit protected mode, flat segments, as the
 * multiboot specification (0.6.96, 3.2) leaves them; interrupts other than the timer's stay masked
 * at the 8259s.
 */
#include <stdint.h>

#define MAGIC	    0x1badb002u
#define FLAGS	    0u
#define FIRST	    (16u << 20)
#define WRITE_BYTES 256u
#define PAGE	    4096u
#define TICK_HZ	    1000u
#define PIT_HZ	    1193182u
#define TIMER	    32u

struct boot_info { /* the head of the multiboot information, 3.3 */
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
};

struct gate {
	uint16_t low, selector, type, high;
} __attribute__((packed));

struct table {
	uint16_t limit;
	uint32_t base;
} __attribute__((packed));

_Static_assert(sizeof(struct gate) == 8, "an interrupt gate of the processor");
_Static_assert(sizeof(struct table) == 6, "what LIDT takes");

void dirtier_main(const struct boot_info *info);
extern const char timer_entry[];

__attribute__((section(".multiboot"), used)) static const uint32_t header[3] = {MAGIC, FLAGS,
										-(MAGIC + FLAGS)};

__asm__(".globl _start\n"
	"_start: movl $stack_top, %esp\n"
	"	pushl %ebx\n"
	"	call dirtier_main\n"
	"timer_entry:\n"
	"	pushl %eax\n"
	"	movb $0x20, %al\n"
	"	outb %al, $0x20\n"
	"	popl %eax\n"
	"	iret\n"
	"	.bss\n"
	"	.balign 16\n"
	"	.skip 16384\n"
	"stack_top:\n"
	"	.text\n");

static struct gate gates[TIMER + 1];

static void out(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint32_t parse(const char **at)
{
	uint32_t n = 0;

	while (**at && (**at < '0' || **at > '9'))
		(*at)++;
	while (**at >= '0' && **at <= '9')
		n = n * 10 + (uint32_t)(*(*at)++ - '0');
	return n;
}

static uint32_t next_random(void)
{
	static uint32_t x = 2463534242u; /* xorshift32 */

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return x;
}

static void dirty_page(uint32_t pages)
{
	uint32_t at = FIRST + next_random() % pages * PAGE +
		      next_random() % (PAGE / WRITE_BYTES) * WRITE_BYTES;
	volatile uint32_t *p = (volatile uint32_t *)at;

	for (unsigned i = 0; i < WRITE_BYTES / sizeof(*p); i++)
		p[i] = next_random();
}

static void start_timer(void)
{
	struct table idt = {sizeof(gates) - 1, (uint32_t)gates};
	uint32_t entry = (uint32_t)timer_entry;
	uint16_t code;

	__asm__("movw %%cs, %0" : "=r"(code));
	gates[TIMER] = (struct gate){(uint16_t)entry, code, 0x8e00, (uint16_t)(entry >> 16)};
	__asm__ volatile("lidt %0" : : "m"(idt));
	/* The two 8259s: vectors from 32 and 40, all masked but the timer. */
	out(0x20, 0x11);
	out(0xa0, 0x11);
	out(0x21, TIMER);
	out(0xa1, TIMER + 8);
	out(0x21, 4);
	out(0xa1, 2);
	out(0x21, 1);
	out(0xa1, 1);
	out(0x21, 0xfe);
	out(0xa1, 0xff);
	/* The 8254's channel 0 as a rate generator. */
	out(0x43, 0x34);
	out(0x40, (uint8_t)(PIT_HZ / TICK_HZ));
	out(0x40, (uint8_t)((PIT_HZ / TICK_HZ) >> 8));
}

void dirtier_main(const struct boot_info *info)
{
	const char *at = (const char *)info->cmdline;
	uint32_t pages, rate, owed = 0;

	while (*at && *at != ' ')
		at++;
	pages = parse(&at) << 8;
	rate = parse(&at) << 8;
	start_timer();
	for (;;) {
		__asm__ volatile("sti; hlt; cli");
		for (owed += rate; pages && owed >= TICK_HZ; owed -= TICK_HZ)
			dirty_page(pages);
	}
}
