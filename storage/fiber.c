// SPDX-License-Identifier: MIT
/*
 * Fibers for x86-64.
 *
 * A switch keeps what the System V ABI says a called function keeps: rbx, rbp, r12 to r15, the stack pointer, and the control words of
 * SSE and x87. A fiber is resumed by the loop only, as a task, so stacks never nest: loop → fiber → loop.
 */
#include "storage/fiber.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif

#ifdef FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define GUARD 4096u

struct fiber {
	struct loop *loop;
	struct loop_task resume;
	uint8_t *memory; /* guard, then stack */
	void *stack_pointer;
	void (*run)(void *ctx);
	void *ctx;
	struct wait *waits;
	bool over;
	struct fiber *next; /* among the free ones */
#ifdef FIBER_ASAN
	void *shadow;
#endif
};

struct fiber_pool {
	struct fiber *free;
	unsigned nr_free;
};

static _Thread_local struct fiber *current;
static _Thread_local void *loop_stack_pointer;
#ifdef FIBER_ASAN
static _Thread_local void *loop_shadow;
static _Thread_local const void *loop_bottom;
static _Thread_local size_t loop_size;
#endif

/* Put the present stack pointer into *from and go on where `to` was left. */
void fiber_switch(void **from, void *to);
__asm__(".text\n"
	".globl fiber_switch\n"
	".hidden fiber_switch\n"
	".type fiber_switch, @function\n"
	"fiber_switch:\n"
	"	push %rbp\n"
	"	push %rbx\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	sub $8, %rsp\n"
	"	stmxcsr (%rsp)\n"
	"	fnstcw 4(%rsp)\n"
	"	mov %rsp, (%rdi)\n"
	"	mov %rsi, %rsp\n"
	"	ldmxcsr (%rsp)\n"
	"	fldcw 4(%rsp)\n"
	"	add $8, %rsp\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbx\n"
	"	pop %rbp\n"
	"	ret\n"
	".size fiber_switch, . - fiber_switch\n");

/* What fiber_switch() takes off a stack, lowest address first. */
struct fiber_frame {
	uint32_t mxcsr;
	uint16_t fpu_control, unused;
	uint64_t r15, r14, r13, r12, rbx, rbp;
	void (*address)(void);
	uint64_t no_caller;
};
_Static_assert(sizeof(struct fiber_frame) == 72, "as fiber_switch() has it");

static void to_loop(struct fiber *f)
{
	current = NULL;
#ifdef FIBER_ASAN
	__sanitizer_start_switch_fiber(f->over ? NULL : &f->shadow, loop_bottom, loop_size);
#endif
	fiber_switch(&f->stack_pointer, loop_stack_pointer);
#ifdef FIBER_ASAN
	__sanitizer_finish_switch_fiber(f->shadow, &loop_bottom, &loop_size);
#endif
}

static void to_fiber(struct fiber *f)
{
	current = f;
#ifdef FIBER_ASAN
	__sanitizer_start_switch_fiber(&loop_shadow, f->memory + GUARD, FIBER_STACK);
#endif
	fiber_switch(&loop_stack_pointer, f->stack_pointer);
#ifdef FIBER_ASAN
	__sanitizer_finish_switch_fiber(loop_shadow, NULL, NULL);
#endif
}

static void fiber_entry(void)
{
	struct fiber *f = current;

#ifdef FIBER_ASAN
	__sanitizer_finish_switch_fiber(NULL, &loop_bottom, &loop_size);
#endif
	f->run(f->ctx);
	f->over = true;
	to_loop(f);
	abort(); /* nobody resumes a fiber that is over */
}

static void prepare_stack(struct fiber *f)
{
	/* At fiber_entry() the stack is as after a call: 8 below a multiple of 16. */
	uint8_t *top = f->memory + GUARD + FIBER_STACK - 16;
	struct fiber_frame *frame = (void *)(top - sizeof(struct fiber_frame));

#ifdef FIBER_ASAN
	/* The fiber that had it before ended in the middle of its frames. */
	__asan_unpoison_memory_region(f->memory + GUARD, FIBER_STACK);
#endif
	memset(frame, 0, sizeof(*frame));
	__asm__ volatile("stmxcsr %0" : "=m"(frame->mxcsr));
	__asm__ volatile("fnstcw %0" : "=m"(frame->fpu_control));
	frame->address = fiber_entry;
	f->stack_pointer = frame;
	_Static_assert(
		(FIBER_STACK - 16 - sizeof(*frame) + offsetof(struct fiber_frame, no_caller)) %
				16 ==
			8,
		"as the ABI wants it");
}

static void pool_free(void *object)
{
	struct fiber_pool *pool = object;

	while (pool->free) {
		struct fiber *f = pool->free;

		pool->free = f->next;
		munmap(f->memory, GUARD + FIBER_STACK);
		free(f);
	}
	free(pool);
}

static struct fiber_pool *pool_of(struct loop *l)
{
	struct fiber_pool *pool = loop_attached(l, LOOP_FIBERS);

	if (!pool) {
		pool = calloc(1, sizeof(*pool));
		if (pool)
			loop_attach(l, LOOP_FIBERS, pool, pool_free);
	}
	return pool;
}

static struct fiber *fiber_new(struct loop *l, struct fiber_pool *pool)
{
	struct fiber *f = pool->free;

	if (f) {
		pool->free = f->next;
		pool->nr_free--;
		return f;
	}
	f = calloc(1, sizeof(*f));
	if (!f)
		return NULL;
	f->loop = l;
	f->memory = mmap(NULL, GUARD + FIBER_STACK, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
	if (f->memory == MAP_FAILED) {
		free(f);
		return NULL;
	}
	if (mprotect(f->memory, GUARD, PROT_NONE)) {
		munmap(f->memory, GUARD + FIBER_STACK);
		free(f);
		return NULL;
	}
	return f;
}

static void fiber_go(struct fiber *f)
{
	struct fiber_pool *pool = loop_attached(f->loop, LOOP_FIBERS);

	to_fiber(f);
	if (!f->over)
		return;
	if (pool->nr_free < FIBER_KEEP) {
		f->next = pool->free;
		pool->free = f;
		pool->nr_free++;
		return;
	}
	munmap(f->memory, GUARD + FIBER_STACK);
	free(f);
}

static void fiber_resume(struct loop_task *t)
{
	fiber_go((struct fiber *)((char *)t - offsetof(struct fiber, resume)));
}

/* Begun by a fiber, a new one cannot run on top of it: it runs as soon as the loop does. */
int fiber_start(struct loop *l, void (*run)(void *ctx), void *ctx)
{
	struct fiber_pool *pool = pool_of(l);
	struct fiber *f = pool ? fiber_new(l, pool) : NULL;

	if (!f)
		return -ENOMEM;
	f->run = run;
	f->ctx = ctx;
	f->over = false;
	f->resume = (struct loop_task){.run = fiber_resume};
	prepare_stack(f);
	if (current)
		loop_defer(l, &f->resume);
	else
		fiber_go(f);
	return 0;
}

bool fiber_inside(void)
{
	return current != NULL;
}

void wait_begin(struct wait *w, struct loop *l)
{
	*w = (struct wait){.loop = l, .fiber = current};
}

void wait_end(struct wait *w)
{
	w->over = true;
	if (w->fiber && w->fiber->waits == w)
		loop_defer(w->loop, &w->fiber->resume);
}

void wait_for(struct wait *w)
{
	if (w->fiber) {
		struct fiber *f = w->fiber;

		while (!w->over) {
			f->waits = w;
			to_loop(f);
			f->waits = NULL;
		}
		return;
	}
	if (!w->over && loop_inside(w->loop)) {
		fputs("pagurus: a callback of an event loop tried to wait\n", stderr);
		abort();
	}
	while (!w->over)
		loop_turn(w->loop, true);
}

void wait_queue_enter(struct wait_queue *q, struct waiter *w, struct loop *l)
{
	w->next = NULL;
	wait_begin(&w->wait, l);
	if (q->last)
		q->last->next = w;
	else
		q->first = w;
	q->last = w;
}

void wait_queue_leave(struct wait_queue *q, struct waiter *w)
{
	struct waiter **at = &q->first, *before = NULL;

	if (w->wait.over)
		return;
	while (*at != w) {
		before = *at;
		at = &before->next;
	}
	*at = w->next;
	if (!w->next)
		q->last = before;
}

void wait_queue_join(struct wait_queue *q, struct loop *l)
{
	struct waiter me;

	wait_queue_enter(q, &me, l);
	wait_for(&me.wait);
}

bool wait_queue_wake(struct wait_queue *q)
{
	struct waiter *w = q->first;

	if (!w)
		return false;
	q->first = w->next;
	if (!q->first)
		q->last = NULL;
	wait_end(&w->wait);
	return true;
}

void wait_queue_wake_all(struct wait_queue *q)
{
	while (wait_queue_wake(q))
		;
}

/* Handed over, not released, when somebody waits: nobody can come in between. */
void fiber_lock(struct fiber_lock *k, struct loop *l)
{
	if (k->held)
		wait_queue_join(&k->queue, l);
	k->held = true;
}

void fiber_unlock(struct fiber_lock *k)
{
	if (!wait_queue_wake(&k->queue))
		k->held = false;
}

struct yielding {
	struct loop_task task;
	struct wait wait;
};

static void yielded(struct loop_task *t)
{
	wait_end(&((struct yielding *)t)->wait);
}

void fiber_yield(struct loop *l)
{
	struct yielding y = {.task = {.run = yielded}};

	wait_begin(&y.wait, l);
	loop_defer(l, &y.task);
	wait_for(&y.wait);
}

struct nap {
	struct loop_timer timer;
	struct wait wait;
};

static void nap_over(struct loop_timer *t)
{
	wait_end(&((struct nap *)t)->wait);
}

void fiber_sleep_until(struct loop *l, uint64_t at_ns)
{
	struct nap n = {.timer = {.fire = nap_over}};

	wait_begin(&n.wait, l);
	loop_arm(l, &n.timer, at_ns);
	wait_for(&n.wait);
}
