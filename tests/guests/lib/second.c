// SPDX-License-Identifier: MIT
/* The second vCPU. It has a stack and a table of traps of its own; every exception brings it back to where it begins. */
#include "tests/guests/lib/guest.h"

#include <xen/vcpu.h>

#define STACK_BYTES 16384u

extern const char second_entry[], second_trap[];

volatile uint64_t second_rounds, second_faults;

uint8_t second_stack[STACK_BYTES] __attribute__((aligned(4096)));
static void (*second_fn)(void);
static bool second_works, second_is_up;

void second_main(void) __attribute__((noreturn));

__asm__(".text\n.globl second_trap, second_entry\n"
	"second_trap: lock incq second_faults\n"
	"second_entry: mov $second_stack + 16384, %rsp; xor %ebp, %ebp; call second_main; ud2\n");

void second_main(void)
{
	for (;;) {
		void (*fn)(void) = __atomic_load_n(&second_fn, __ATOMIC_SEQ_CST);

		__atomic_store_n(&second_works, fn != NULL, __ATOMIC_SEQ_CST);
		if (!fn) {
			__builtin_ia32_pause();
			continue;
		}
		fn();
		__atomic_fetch_add(&second_rounds, 1, __ATOMIC_SEQ_CST);
	}
}

void second_context(struct vcpu_guest_context *c)
{
	memset(c, 0, sizeof(*c));
	c->flags = VGCF_in_kernel;
	c->user_regs.rip = VA(second_entry);
	c->user_regs.cs = FLAT_KERNEL_CS;
	c->user_regs.ss = FLAT_KERNEL_SS;
	c->user_regs.rflags = 0x202;
	c->user_regs.rsp = c->kernel_sp = VA(second_stack) + STACK_BYTES;
	c->kernel_ss = FLAT_KERNEL_SS;
	/* Nobody unmasks its events but a page that is written to at random. */
	c->event_callback_eip = VA(second_trap);
	c->ctrlreg[3] = l4_mfn() << PAGE_SHIFT;
	for (unsigned i = 0; i < ARRAY_SIZE(c->trap_ctxt); i++)
		c->trap_ctxt[i] = (struct trap_info){
			.vector = (uint8_t)i, .cs = FLAT_KERNEL_CS, .address = VA(second_trap)};
}

bool second_start(void (*fn)(void))
{
	static struct vcpu_guest_context context;
	uint64_t before = second_rounds + second_faults;
	long rc;

	if (!second_is_up) {
		second_context(&context);
		rc = hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_initialise, 1, VA(&context));
		if (rc == -ENOENT)
			return false;
		/* A test may have done it with second_context() already. */
		if ((rc && rc != -EEXIST) || hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_up, 1, 0))
			error("the second vCPU: %ld", rc);
		second_is_up = true;
	}
	__atomic_store_n(&second_fn, fn, __ATOMIC_SEQ_CST);
	while (second_rounds + second_faults == before)
		__builtin_ia32_pause();
	return true;
}

void second_stop(void)
{
	__atomic_store_n(&second_fn, NULL, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&second_works, __ATOMIC_SEQ_CST))
		__builtin_ia32_pause();
}
