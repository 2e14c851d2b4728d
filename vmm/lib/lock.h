/* SPDX-License-Identifier: MIT */
/*
 * Spin locks and the order in which they are taken.
 *
 * Order, outermost first. Who holds one may take only those below it:
 *
 *   domain_list  the list of domains
 *   domain       a domain's life-cycle
 *   page         a domain's page tables (two domains': lower domid first)
 *   binding      an event channel's ends; global, interrupts on
 *   event        a domain's event channels (two domains': lower domid first)
 *   fifo         a domain's event queues
 *   irq          a pirq's binding
 *   sched        a CPU's run queue (two CPUs': lower number first)
 *   timer        a CPU's timers
 *   frames       a domain's list of frames
 *   shadow       a domain's shadow tables and logs
 *   heap         the frame allocator
 *   console      the log
 *
 * Locks that an interrupt handler takes (event, irq, sched, timer, console) are taken with interrupts off everywhere: the _irq functions.
 */
#pragma once

#include "vmm/lib/types.h"

typedef struct {
	uint16_t ticket;
	uint16_t serving;
} spinlock_t;

#define SPINLOCK_INIT \
	{             \
		0, 0  \
	}

static inline void spin_lock(spinlock_t *l)
{
	uint16_t mine = __atomic_fetch_add(&l->ticket, 1, __ATOMIC_RELAXED);

	while (__atomic_load_n(&l->serving, __ATOMIC_ACQUIRE) != mine)
		__builtin_ia32_pause();
}

static inline bool spin_trylock(spinlock_t *l)
{
	uint16_t serving = __atomic_load_n(&l->serving, __ATOMIC_RELAXED);
	uint16_t expected = serving;

	return __atomic_compare_exchange_n(&l->ticket, &expected, (uint16_t)(serving + 1), false,
					   __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static inline void spin_unlock(spinlock_t *l)
{
	__atomic_store_n(&l->serving, (uint16_t)(l->serving + 1), __ATOMIC_RELEASE);
}

/* The caller holds it: somebody else waits for it. */
static inline bool spin_is_contended(const spinlock_t *l)
{
	return (uint16_t)(__atomic_load_n(&l->ticket, __ATOMIC_RELAXED) -
			  __atomic_load_n(&l->serving, __ATOMIC_RELAXED)) > 1;
}

static inline bool spin_is_locked(const spinlock_t *l)
{
	return __atomic_load_n(&l->serving, __ATOMIC_RELAXED) !=
	       __atomic_load_n(&l->ticket, __ATOMIC_RELAXED);
}

#ifdef VMM_HOSTED
/* Host-compiled tests have no interrupts to switch off. */
static inline uint64_t irq_save(void)
{
	return 0;
}
static inline void irq_restore(uint64_t flags)
{
	(void)flags;
}
#else
#define RFLAGS_IF_BIT 0x200ul

static inline uint64_t irq_save(void)
{
	uint64_t flags;

	__asm__ volatile("pushfq; popq %0; cli" : "=r"(flags)::"memory");
	return flags;
}

static inline void irq_restore(uint64_t flags)
{
	if (flags & RFLAGS_IF_BIT)
		__asm__ volatile("sti" ::: "memory");
}
#endif

static inline uint64_t spin_lock_irq(spinlock_t *l)
{
	uint64_t flags = irq_save();

	spin_lock(l);
	return flags;
}

static inline void spin_unlock_irq(spinlock_t *l, uint64_t flags)
{
	spin_unlock(l);
	irq_restore(flags);
}
