/* SPDX-License-Identifier: MIT */
/*
 * What a test guest is made of. A guest is one file test_NAME.c with a list of parts; each part runs by itself and gets one verdict:
 *
 *   SUCCESS   it saw what it wanted
 *   SKIP      this machine cannot show it
 *   FAILURE   the hypervisor did what it must not
 *   ERROR     the test itself could not go on (an exception that nobody expected)
 *
 * and CRASH is what the runner calls a part that began and said nothing more. All of it runs on the first vCPU; a guest whose head says
 * "Processors: 2" has another one to do something at the same time (second.c). The same guests run in dom0's place (tests/guests/run) and beside a dom0
 * as any other guest (tests/lab/test_attack_guests): what only a dom0 may do is then refused, and its part wants just that.
 */
#ifndef TESTS_GUESTS_LIB_GUEST_H
#define TESTS_GUESTS_LIB_GUEST_H

#include "vmm/lib/xen.h"

#include "vmm/lib/errno.h"
#include "vmm/lib/string.h"
#include "vmm/lib/types.h"
#include "tests/guests/lib/hypercalls.h"

#define VIRT_BASE 0xffffffff80000000ull
#define VA(p)	  ((uint64_t)(uintptr_t)(p))

/* ---- parts and verdicts (main.c) ---- */

struct part {
	const char *name;
	void (*run)(void);
};
/* Each guest's list; an entry without a name ends it. */
extern const struct part parts[];

extern const struct start_info *start_info;
extern struct shared_info *shared_info;
bool privileged(void); /* in dom0's place */
/* A guest that defines it as true keeps the port of xenstore (store.h). */
extern const bool uses_store;
domid_t own_domid(void);

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* These end the part. */
void failure(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void error(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void guest_shutdown(unsigned reason) __attribute__((noreturn));
/* The number behind `name=` on the command line, or the default. */
uint64_t option(const char *name, uint64_t otherwise);

#define CHECK(condition, ...)                 \
	do {                                  \
		if (!(condition))             \
			failure(__VA_ARGS__); \
	} while (0)
/* A value that has to be another's. */
#define CHECK_EQ(what, got, want)                                                                 \
	do {                                                                                      \
		long long got_ = (long long)(got), want_ = (long long)(want);                     \
		CHECK(got_ == want_, "%s: %llx (%lld), not %llx (%lld)", what, got_, got_, want_, \
		      want_);                                                                     \
	} while (0)

/* ---- exceptions (traps.c) ---- */

/* As entry.S pushes them. */
struct regs {
	union {
		struct {
			uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8;
			uint64_t rax, rcx, rdx, rsi, rdi;
		};
		uint64_t general[15];
	};
	uint64_t vector, error, rip, cs, rflags, rsp, ss;
};
_Static_assert(sizeof(struct regs) == 176, "entry.S");

#define VECTOR_SYSCALL	 256 /* user mode did SYSCALL */
#define VECTOR_SYSCALL32 257
#define VECTOR_EVENT	 258
#define NR_ENTRIES	 259
#define NO_VECTOR	 (~0ull) /* nothing happened */

/* Call fn(arg); false: an exception ended it, which is in `caught`, cr2 in `caught_cr2`. */
bool no_fault(void (*fn)(uint64_t arg), uint64_t arg);
extern struct regs caught;
extern uint64_t caught_cr2;

/* The event upcalls so far, and what the last one interrupted. Pending bits are cleared, no port is looked at. */
extern volatile uint64_t upcalls, upcall_rip;
/* Events let through or held back; what is pending is delivered at once. */
void events_allow(bool allow);

/* All 256 entries of the trap table; the flags of each are the caller's. */
void install_traps(unsigned flags_of_vector(unsigned vector));
/* The same, with entries that expect no error code for the vectors that have one when they are exceptions. */
void install_plain_traps(unsigned flags_of_vector(unsigned vector));
/* As at the start: all may raise 3 and 4, nothing else by INT. */
void install_usual_traps(void);
uint64_t trap_entry(unsigned vector);

/* An instruction with a name of its own, to say where an exception has to happen. */
#define AT(label, text) ".globl " #label "\n" #label ": " text "\n"
/* Defines void name(uint64_t arg): arg is in rdi. */
#define KERNEL_CODE(name, text)                                                             \
	extern void name(uint64_t arg);                                                     \
	__asm__(".pushsection .text." #name ", \"ax\"\n.globl " #name "\n" #name ":\n" text \
		"\nret\n.popsection\n")
typedef const char code_label[];
#define LABEL(name) extern code_label name

/* ---- user mode (user.c) ---- */

#define USER_BASE  0x400000ull
#define USER_DATA  0x600000ull /* a page, writable */
#define USER_STACK 0x602000ull /* its end; one page */

/* Code that has to work at any address; it runs where USER_CODE_AT(name) says. */
#define USER_CODE(name, text) \
	LABEL(name);          \
	__asm__(".pushsection .user, \"ax\"\n.globl " #name "\n" #name ":\n" text "\n.popsection\n")
#define USER_CODE_AT(name) (USER_BASE + (VA(name) - VA(user_start)))
LABEL(user_start);
LABEL(user_end);

/* Make user mode's tables; once, before anything else below. */
void user_init(void);
extern uint64_t user_l4_mfn;
/* Registers to enter a user program with: everything 0 but those that are needed; events are let through. */
struct regs user_regs(uint64_t rip);
/* Enter user mode with these registers; they are what they were when it came back, and vector says how. iret_flags: VGCF_*. */
void run_user(struct regs *r, uint64_t iret_flags);
extern bool mask_on_entry;	    /* whether events were masked when it had come back */
extern uint64_t kernel_entry_stack; /* where entries from user mode push their frame */

/* ---- page tables (paging.c) ---- */

#define PTE_P  0x1ull
#define PTE_W  0x2ull
#define PTE_U  0x4ull
#define PTE_A  0x20ull
#define PTE_D  0x40ull
#define PTE_PS 0x80ull
#define PTE_NX (1ull << 63)
#define RW     (PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)
#define RO     (PTE_P | PTE_U | PTE_A | PTE_D)

#define M2P ((const uint64_t *)0xffff800000000000ull)

void paging_init(void);
/* A page of zeroes that is mapped writable and belongs to nobody else. */
void *page_alloc(void);
unsigned pages_left(void);
uint64_t mfn_of(const void *page); /* of a page of the kernel's own mapping */
void *page_of_mfn(uint64_t mfn);
uint64_t l4_mfn(void);
uint64_t pte(const void *page, uint64_t flags);
/* The entry for va of the level in the tables below that L4; NULL: there is no such table. Readable, not writable. */
uint64_t *entry_at(uint64_t root_mfn, uint64_t va, unsigned level);
uint64_t machine_address(const void *p);
/* The hypercalls for one entry, one mapping, one operation. */
long set_entry(const uint64_t *entry, uint64_t value);
long set_mapping(const void *va, uint64_t value);
long mmuext(unsigned command, uint64_t arg1, uint64_t arg2);
/* The page's own mapping becomes read-only or writable: a table or descriptors must not be writable anywhere. */
long protect(const void *page, bool writable);
/* Map at va below the L4 with what tables it needs; each step checked. */
void map_at(uint64_t root_mfn, uint64_t va, uint64_t value);

/* ---- the second vCPU (second.c) ---- */

/* What it begins with: the kernel's tables, a loop that calls what second_start() says. */
void second_context(struct vcpu_guest_context *c);
/*
 * Let it call fn() again and again; an exception ends the call and counts as a fault. Returns after the first. False: there is no second vCPU. fn works with
 * what is its own, and says nothing.
 */
bool second_start(void (*fn)(void));
/* It is not in fn() any more when this returns. */
void second_stop(void);
extern volatile uint64_t second_rounds, second_faults;

/* ---- time (main.c) ---- */

uint64_t ticks_now(void);
/* Taken from the shared page: before anything else happens to that. */
uint64_t ticks_of(uint64_t milliseconds);
void pass_time(uint64_t milliseconds);

/* ---- random operations on page tables (storm.c) ---- */

/* One for each vCPU; random: any seed but 0. */
struct storm {
	uint64_t random, made, fine;
};
void storm_init(void);
uint64_t storm_noise(struct storm *s);
/* Some operations; a fault of the guest's own may end it early. */
void storm_step(struct storm *s);
/* What the vCPU that calls holds; then, on the first one, with the others stopped: all pages must come back. */
void storm_let_go(void);
void storm_end(void);

#endif
