// SPDX-License-Identifier: MIT
/*
 * Event channels by their hypercall: bindings and their errors, both ABIs with a guest that takes events as the headers say, and a guest that writes
 * what it likes into the words that it shares.
 */
#define VMM_HOSTED
#define __XEN_TOOLS__ // the interface of the headers, not the oldest
#include "vmm/domain/domain.h"

static struct vcpu *now_running;
#undef current
#define current now_running

#include "vmm/hypercall/event_channel.c" /* NOLINT(bugprone-suspicious-include) */
#include "vmm/hypercall/event_fifo.c"	 /* NOLINT(bugprone-suspicious-include) */
#include "vmm/lib/rangeset.c"		 /* NOLINT(bugprone-suspicious-include) */

#include <stdlib.h>

#include "tests/unit/unit.h"

#define FRAMES	    64u
#define VCPUS	    2u
#define CONTROL_MFN 1u
#define ARRAY_MFN   10u

struct pcpu pcpus[MAX_CPUS];
struct domain *dom0, *domain_list;
spinlock_t domain_list_lock;
struct frame *frame_table;
uint64_t frame_max;
char *direct_base;

static struct frame frames[FRAMES];
static _Alignas(4096) char ram[FRAMES * PAGE_SIZE];
static _Alignas(4096) char shared[3][PAGE_SIZE];
static struct domain domains[3];
static struct vcpu vcpus[3][VCPUS];
static unsigned held, kicks, wakes, bound_irqs;
static int refuse_irq;
static bool interrupt_soon;

/* ---- surroundings ---- */

void *heap_zalloc(size_t bytes)
{
	return calloc(1, bytes);
}

void heap_zfree(void *p, size_t bytes)
{
	(void)bytes;
	free(p);
}

int copy_from_guest(void *to, guest_va_t from, size_t bytes)
{
	if (from.v < PAGE_SIZE)
		return -EFAULT;
	memcpy(to, (const void *)from.v, bytes);
	return 0;
}

int copy_to_guest(guest_va_t to, const void *from, size_t bytes)
{
	if (to.v < PAGE_SIZE)
		return -EFAULT;
	memcpy((void *)to.v, from, bytes);
	return 0;
}

int frame_get_both(struct frame *f, const struct domain *owner, enum page_type type)
{
	CHECK_EQ(type, TYPE_WRITABLE);
	if (f->owner != owner)
		return -EPERM;
	f->ref++;
	held++;
	return 0;
}

void shadow_mark_frame(struct domain *d, mfn_t m)
{
	(void)d;
	(void)m;
}

void frame_put_both(struct frame *f)
{
	CHECK(f->ref > 0);
	f->ref--;
	held--;
}

struct domain *domain_get(domid_t id)
{
	if (id == DOMID_SELF)
		id = current->domain->id;
	return id < 3 ? &domains[id] : NULL;
}

void domain_put(struct domain *d)
{
	CHECK(d != NULL);
}

int irq_guest_bind(struct domain *d, unsigned irq)
{
	CHECK(!spin_is_locked(&d->events->lock));
	CHECK(irq < NR_IRQS);
	if (refuse_irq)
		return refuse_irq;
	bound_irqs++;
	return 0;
}

void irq_guest_unbind(struct domain *d, unsigned irq)
{
	(void)d;
	(void)irq;
	bound_irqs--;
}

void irq_set_cpu(unsigned irq, unsigned cpu)
{
	(void)irq;
	(void)cpu;
}

bool hypercall_preempt_check(void)
{
	return interrupt_soon;
}

void vcpu_unblock(struct vcpu *v)
{
	v->blocked = false;
	v->poll = false;
	wakes++;
}

void vcpu_kick(struct vcpu *v)
{
	(void)v;
	kicks++;
}

/* ---- the guest ---- */

static void begin(void)
{
	frame_table = frames;
	frame_max = FRAMES;
	direct_base = ram;
	memset(frames, 0, sizeof(frames));
	memset(ram, 0, sizeof(ram));
	memset(shared, 0, sizeof(shared));
	memset(domains, 0, sizeof(domains));
	memset(vcpus, 0, sizeof(vcpus));
	held = kicks = wakes = bound_irqs = 0;
	refuse_irq = 0;
	interrupt_soon = false;
	for (unsigned i = 0; i < 3; i++) {
		struct domain *d = &domains[i];

		d->id = (domid_t)i;
		d->privileged = i == 0;
		d->shared_info = (void *)shared[i];
		d->nr_vcpus = VCPUS;
		for (unsigned k = 0; k < VCPUS; k++) {
			vcpus[i][k] = (struct vcpu){.domain = d,
						    .id = k,
						    .processor = &pcpus[k],
						    .info = &d->shared_info->vcpu_info[k]};
			d->vcpu[k] = &vcpus[i][k];
		}
		CHECK_EQ(events_create(d), 0);
	}
	dom0 = &domains[0];
	for (unsigned i = 0; i < FRAMES; i++)
		frames[i].owner = &domains[1];
	current = &vcpus[1][0];
}

static void end(void)
{
	for (unsigned i = 0; i < 3; i++)
		events_destroy(&domains[i]);
	CHECK_EQ(held, 0);
	CHECK_EQ(bound_irqs, 0);
	for (unsigned i = 0; i < 3; i++)
		events_free(&domains[i]);
	CHECK(!spin_is_locked(&binding_lock));
}

static long call(uint64_t command, void *op)
{
	return do_event_channel_op(command, (arg_t)op);
}

static long call_port(uint64_t command, uint32_t port)
{
	return call(command, &port);
}

static uint32_t alloc_for(domid_t remote)
{
	struct evtchn_alloc_unbound op = {.dom = DOMID_SELF, .remote_dom = remote};

	CHECK_EQ(call(EVTCHNOP_alloc_unbound, &op), 0);
	return op.port;
}

static uint32_t ipi(unsigned vcpu)
{
	struct evtchn_bind_ipi op = {.vcpu = vcpu};

	CHECK_EQ(call(EVTCHNOP_bind_ipi, &op), 0);
	return op.port;
}

static unsigned status_of_port(unsigned domain, uint32_t port)
{
	struct evtchn_status op = {.dom = (domid_t)domain, .port = port};
	struct vcpu *before = current;
	long rc;

	current = &vcpus[0][0];
	rc = call(EVTCHNOP_status, &op);
	current = before;
	CHECK_EQ(rc, 0);
	return op.status;
}

/* A pair between domains 1 and 2. */
static void connect_pair(uint32_t *one, uint32_t *two)
{
	struct evtchn_bind_interdomain op = {.remote_dom = 1};

	*one = op.remote_port = alloc_for(2);
	current = &vcpus[2][0];
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), 0);
	*two = op.local_port;
	current = &vcpus[1][0];
}

/* ---- bindings ---- */

static void connects_and_closes(void)
{
	struct evtchn_bind_interdomain op = {.remote_dom = 1};
	uint32_t one, two;

	begin();
	one = alloc_for(2);
	CHECK_EQ(status_of_port(1, one), EVTCHNSTAT_unbound);
	/* Nobody hears it yet, which is no error. */
	CHECK_EQ(call_port(EVTCHNOP_send, one), 0);
	/* Only domain 2 may bind to it, only to a port that there is. */
	op.remote_port = one;
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), -EINVAL);
	current = &vcpus[2][0];
	op.remote_port = one + 1;
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), -EINVAL);
	op.remote_port = UINT32_MAX;
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), -EINVAL);
	op.remote_port = one;
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), 0);
	two = op.local_port;
	CHECK_EQ(status_of_port(1, one), EVTCHNSTAT_interdomain);
	CHECK_EQ(status_of_port(2, two), EVTCHNSTAT_interdomain);
	/* What was lost before is made up for. */
	CHECK(evtchn_port_pending(&domains[2], two));
	CHECK(!evtchn_port_pending(&domains[1], one));
	CHECK_EQ(call_port(EVTCHNOP_send, two), 0);
	CHECK(evtchn_port_pending(&domains[1], one));
	/* Taken it is. */
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), -EINVAL);
	/* One end closes: the other waits for it again, with nothing left behind here. */
	CHECK_EQ(call_port(EVTCHNOP_close, two), 0);
	CHECK_EQ(status_of_port(2, two), EVTCHNSTAT_closed);
	CHECK_EQ(status_of_port(1, one), EVTCHNSTAT_unbound);
	CHECK(!bit_test(domains[2].shared_info->evtchn_pending, two));
	CHECK_EQ(call_port(EVTCHNOP_send, two), -EINVAL);
	CHECK_EQ(call_port(EVTCHNOP_close, two), -EINVAL);
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), 0);
	end();
}

static void connects_to_itself(void)
{
	struct evtchn_bind_interdomain op = {.remote_dom = DOMID_SELF};

	begin();
	op.remote_port = alloc_for(DOMID_SELF);
	CHECK_EQ(call(EVTCHNOP_bind_interdomain, &op), 0);
	CHECK_EQ(call_port(EVTCHNOP_send, op.local_port), 0);
	CHECK(evtchn_port_pending(&domains[1], op.remote_port));
	CHECK_EQ(call_port(EVTCHNOP_close, op.remote_port), 0);
	CHECK_EQ(status_of_port(1, op.local_port), EVTCHNSTAT_unbound);
	end();
}

/* A peer that dies leaves an unbound port, not a pointer to itself. */
static void survives_the_peer(void)
{
	uint32_t one, two;

	begin();
	connect_pair(&one, &two);
	events_destroy(&domains[2]);
	CHECK_EQ(status_of_port(1, one), EVTCHNSTAT_unbound);
	CHECK_EQ(call_port(EVTCHNOP_send, one), 0);
	CHECK_EQ(evtchn_alloc_unbound_port(&domains[2], 1), -ENOSPC);
	end();
}

static void binds_virtual_interrupts(void)
{
	struct evtchn_bind_virq timer = {.virq = VIRQ_TIMER, .vcpu = 1}, global;
	struct evtchn_bind_vcpu move = {.vcpu = 0};

	begin();
	CHECK_EQ(call(EVTCHNOP_bind_virq, &timer), 0);
	CHECK_EQ(call(EVTCHNOP_bind_virq, &timer), -EEXIST);
	send_vcpu_virq(&vcpus[1][0], VIRQ_TIMER);
	CHECK(!evtchn_port_pending(&domains[1], timer.port));
	send_vcpu_virq(&vcpus[1][1], VIRQ_TIMER);
	CHECK(evtchn_port_pending(&domains[1], timer.port));
	CHECK(vcpus[1][1].info->evtchn_upcall_pending);
	CHECK(!vcpus[1][0].info->evtchn_upcall_pending);
	move.port = timer.port;
	CHECK_EQ(call(EVTCHNOP_bind_vcpu, &move), -EINVAL);
	CHECK_EQ(call_port(EVTCHNOP_send, timer.port), -EINVAL);
	/* A global one: at vCPU 0, may be moved, goes to dom0. */
	current = &vcpus[0][0];
	global = (struct evtchn_bind_virq){.virq = VIRQ_DOM_EXC, .vcpu = 1};
	CHECK_EQ(call(EVTCHNOP_bind_virq, &global), -EINVAL);
	global.vcpu = 0;
	CHECK_EQ(call(EVTCHNOP_bind_virq, &global), 0);
	move = (struct evtchn_bind_vcpu){.port = global.port, .vcpu = 1};
	CHECK_EQ(call(EVTCHNOP_bind_vcpu, &move), 0);
	move.vcpu = VCPUS;
	CHECK_EQ(call(EVTCHNOP_bind_vcpu, &move), -ENOENT);
	send_global_virq(VIRQ_DOM_EXC);
	CHECK(vcpus[0][1].info->evtchn_upcall_pending);
	/* Closed it is nobody's, and can be bound anew, moved or not. */
	CHECK_EQ(call_port(EVTCHNOP_close, global.port), 0);
	send_global_virq(VIRQ_DOM_EXC);
	CHECK(!bit_test(domains[0].shared_info->evtchn_pending, global.port));
	CHECK_EQ(call(EVTCHNOP_bind_virq, &global), 0);
	global.virq = NR_VIRQS;
	CHECK_EQ(call(EVTCHNOP_bind_virq, &global), -EINVAL);
	end();
}

static void binds_physical_interrupts(void)
{
	struct evtchn_bind_pirq op = {.pirq = 9};

	begin();
	CHECK_EQ(call(EVTCHNOP_bind_pirq, &op), -EPERM);
	CHECK_EQ(rangeset_add(&domains[1].irqs, 0, NR_IRQS + 100), 0);
	op.pirq = NR_IRQS;
	CHECK_EQ(call(EVTCHNOP_bind_pirq, &op), -EINVAL);
	op.pirq = 9;
	refuse_irq = -EBUSY;
	CHECK_EQ(call(EVTCHNOP_bind_pirq, &op), -EBUSY);
	CHECK(!send_pirq(&domains[1], 9));
	refuse_irq = 0;
	CHECK_EQ(call(EVTCHNOP_bind_pirq, &op), 0);
	CHECK_EQ(bound_irqs, 1);
	CHECK_EQ(call(EVTCHNOP_bind_pirq, &op), -EEXIST);
	CHECK(send_pirq(&domains[1], 9));
	CHECK(evtchn_port_pending(&domains[1], op.port));
	CHECK(!send_pirq(&domains[1], NR_IRQS));
	CHECK_EQ(call_port(EVTCHNOP_close, op.port), 0);
	CHECK_EQ(bound_irqs, 0);
	CHECK(!send_pirq(&domains[1], 9));
	end();
}

static void has_a_limit_and_reuses(void)
{
	struct evtchn_bind_ipi op = {.vcpu = 0};
	unsigned n = 0;

	begin();
	while (call(EVTCHNOP_bind_ipi, &op) == 0)
		n++;
	CHECK_EQ(n, PORTS_GUEST - 1);
	CHECK_EQ(call(EVTCHNOP_bind_ipi, &op), -ENOSPC);
	CHECK_EQ(call_port(EVTCHNOP_close, 7), 0);
	CHECK_EQ(ipi(0), 7);
	/* A reset is begun again until nothing is left. */
	{
		struct evtchn_reset reset = {.dom = DOMID_SELF};

		interrupt_soon = true;
		CHECK_EQ(call(EVTCHNOP_reset, &reset), -ERESTART);
		CHECK_EQ(status_of_port(1, 1), EVTCHNSTAT_closed);
		CHECK_EQ(status_of_port(1, 2), EVTCHNSTAT_ipi);
		interrupt_soon = false;
		CHECK_EQ(call(EVTCHNOP_reset, &reset), 0);
		CHECK_EQ(status_of_port(1, PORTS_GUEST - 1), EVTCHNSTAT_closed);
	}
	CHECK_EQ(ipi(0), 1);
	end();
}

static void refuses_nonsense(void)
{
	struct evtchn_alloc_unbound other = {.dom = 2, .remote_dom = 1};
	struct evtchn_status status = {.dom = 2, .port = 1};

	begin();
	CHECK_EQ(call(99, &other), -ENOSYS);
	CHECK_EQ(do_event_channel_op(EVTCHNOP_send, 0), -EFAULT);
	CHECK_EQ(call(EVTCHNOP_alloc_unbound, &other), -EPERM);
	CHECK_EQ(call(EVTCHNOP_status, &status), -EPERM);
	CHECK_EQ(call_port(EVTCHNOP_close, 0), -EINVAL);
	CHECK_EQ(call_port(EVTCHNOP_unmask, PORTS_MAX), -EINVAL);
	CHECK_EQ(call_port(EVTCHNOP_send, UINT32_MAX), -EINVAL);
	current = &vcpus[0][0];
	other.dom = 77;
	CHECK_EQ(call(EVTCHNOP_alloc_unbound, &other), -ESRCH);
	other.dom = 2;
	CHECK_EQ(call(EVTCHNOP_alloc_unbound, &other), 0);
	end();
}

/* ---- two-level ---- */

static void two_levels(void)
{
	struct shared_info *s;
	struct vcpu_info *i;
	uint32_t port;

	begin();
	s = domains[1].shared_info;
	i = vcpus[1][1].info;
	for (unsigned n = 0; n < 70; n++)
		port = ipi(1);
	CHECK_EQ(port, 70);
	/* Masked: pending, and nothing else. */
	s->evtchn_mask[1] = 1ul << (70 - 64);
	CHECK_EQ(call_port(EVTCHNOP_send, port), 0);
	CHECK_EQ(s->evtchn_pending[1], 1ul << (70 - 64));
	CHECK_EQ(i->evtchn_pending_sel, 0);
	CHECK_EQ(i->evtchn_upcall_pending, 0);
	CHECK_EQ(call_port(EVTCHNOP_unmask, port), 0);
	CHECK_EQ(s->evtchn_mask[1], 0);
	CHECK_EQ(i->evtchn_pending_sel, 2);
	CHECK_EQ(i->evtchn_upcall_pending, 1);
	CHECK_EQ(kicks, 1);
	/* Once is enough. */
	CHECK_EQ(call_port(EVTCHNOP_send, port), 0);
	CHECK_EQ(call_port(EVTCHNOP_send, 1), 0);
	CHECK_EQ(kicks, 1);
	CHECK_EQ(i->evtchn_pending_sel, 3);
	/* One that waits is woken. */
	i->evtchn_upcall_pending = 0;
	i->evtchn_pending_sel = 0;
	s->evtchn_pending[1] = 0;
	vcpus[1][1].blocked = true;
	CHECK_EQ(call_port(EVTCHNOP_send, port), 0);
	CHECK_EQ(wakes, 1);
	end();
}

/* A poll ends by the port that it waits for, masked or not, and by no other. */
static void ends_polls(void)
{
	struct vcpu *v;
	uint32_t mine, other;

	begin();
	v = &vcpus[1][1];
	mine = ipi(0);
	other = ipi(0);
	domains[1].shared_info->evtchn_mask[0] = ~0ul;
	v->blocked = v->poll = true;
	v->poll_port = mine;
	events_set_polling(v, true);
	CHECK_EQ(call_port(EVTCHNOP_send, other), 0);
	CHECK_EQ(wakes, 0);
	CHECK_EQ(call_port(EVTCHNOP_send, mine), 0);
	CHECK_EQ(wakes, 1);
	/* It polls no longer. */
	CHECK_EQ(call_port(EVTCHNOP_send, mine), 0);
	CHECK_EQ(wakes, 1);
	v->blocked = v->poll = true;
	v->poll_port = 0;
	CHECK_EQ(call_port(EVTCHNOP_send, other), 0);
	CHECK_EQ(wakes, 2);
	end();
}

/* ---- FIFO ---- */

static event_word_t *word(uint32_t port)
{
	return (event_word_t *)(ram + (ARRAY_MFN + port / FIFO_WORDS) * PAGE_SIZE) +
	       port % FIFO_WORDS;
}

static struct evtchn_fifo_control_block *block(unsigned vcpu)
{
	return (void *)(ram + (CONTROL_MFN + vcpu) * PAGE_SIZE);
}

static long init_control(unsigned vcpu, uint64_t mfn, uint32_t offset)
{
	struct evtchn_init_control op = {.control_gfn = mfn, .offset = offset, .vcpu = vcpu};
	long rc = call(EVTCHNOP_init_control, &op);

	CHECK_EQ(op.link_bits, rc ? 0 : EVTCHN_FIFO_LINK_BITS);
	return rc;
}

static long expand(uint64_t mfn)
{
	struct evtchn_expand_array op = {.array_gfn = mfn};

	return call(EVTCHNOP_expand_array, &op);
}

static void begin_fifo(void)
{
	begin();
	for (unsigned k = 0; k < VCPUS; k++)
		CHECK_EQ(init_control(k, CONTROL_MFN + k, 0), 0);
	CHECK_EQ(expand(ARRAY_MFN), 0);
}

/* Where the guest is in its queues: 0 is "look at the control block". */
static uint32_t heads[VCPUS][EVTCHN_FIFO_MAX_QUEUES];

/* Take the next event of a vCPU as the ABI says. 0: there is none. */
static uint32_t take(unsigned vcpu)
{
	struct evtchn_fifo_control_block *b = block(vcpu);

	for (unsigned q = 0; q < EVTCHN_FIFO_MAX_QUEUES; q++) {
		uint32_t port = heads[vcpu][q];
		event_word_t w;

		if (!port) {
			if (!(b->ready & 1u << q))
				continue;
			b->ready &= ~(1u << q);
			port = b->head[q];
		}
		w = *word(port);
		CHECK(w & 1u << EVTCHN_FIFO_LINKED);
		*word(port) = w & ~((1u << EVTCHN_FIFO_LINKED) | EVTCHN_FIFO_LINK_MASK);
		heads[vcpu][q] = w & EVTCHN_FIFO_LINK_MASK;
		if ((w & 1u << EVTCHN_FIFO_MASKED) || !(w & 1u << EVTCHN_FIFO_PENDING)) {
			q--;
			continue;
		}
		*word(port) &= ~(1u << EVTCHN_FIFO_PENDING);
		return port;
	}
	return 0;
}

static void fifo_setup_is_checked(void)
{
	begin();
	CHECK_EQ(expand(ARRAY_MFN), -EOPNOTSUPP);
	CHECK_EQ(init_control(VCPUS, CONTROL_MFN, 0), -ENOENT);
	CHECK_EQ(init_control(0, FRAMES, 0), -EINVAL);
	CHECK_EQ(init_control(0, CONTROL_MFN, 4), -EINVAL);
	CHECK_EQ(init_control(0, CONTROL_MFN, PAGE_SIZE - 64), -EINVAL);
	frames[CONTROL_MFN].owner = &domains[2];
	CHECK_EQ(init_control(0, CONTROL_MFN, 0), -EPERM);
	frames[CONTROL_MFN].owner = &domains[1];
	CHECK_EQ(held, 0);
	CHECK(!domains[1].events->fifo);
	CHECK_EQ(init_control(0, CONTROL_MFN, PAGE_SIZE - 72), 0);
	CHECK_EQ(init_control(0, CONTROL_MFN, 0), -EINVAL);
	CHECK_EQ(expand(FRAMES + 5), -EINVAL);
	CHECK_EQ(expand(ARRAY_MFN), 0);
	/* As many pages as the domain has ports for. */
	CHECK_EQ(expand(ARRAY_MFN + 1), -ENOSPC);
	CHECK_EQ(held, 2);
	end();
}

static void fifo_keeps_order_and_priority(void)
{
	struct evtchn_set_priority urgent = {.priority = EVTCHN_FIFO_PRIORITY_MAX};
	uint32_t a, b, c;

	begin_fifo();
	memset(heads, 0, sizeof(heads));
	a = ipi(0);
	b = ipi(0);
	c = ipi(0);
	urgent.port = c;
	CHECK_EQ(call(EVTCHNOP_set_priority, &urgent), 0);
	/* Masked: pending, and nothing else. */
	*word(b) = 1u << EVTCHN_FIFO_MASKED;
	CHECK_EQ(call_port(EVTCHNOP_send, b), 0);
	CHECK_EQ(*word(b), 1u << EVTCHN_FIFO_MASKED | 1u << EVTCHN_FIFO_PENDING);
	CHECK_EQ(block(0)->ready, 0);
	CHECK_EQ(vcpus[1][0].info->evtchn_upcall_pending, 0);
	*word(b) = 0;
	CHECK_EQ(call_port(EVTCHNOP_send, b), 0);
	CHECK_EQ(block(0)->head[EVTCHN_FIFO_PRIORITY_DEFAULT], b);
	CHECK_EQ(block(0)->ready, 1u << EVTCHN_FIFO_PRIORITY_DEFAULT);
	CHECK_EQ(vcpus[1][0].info->evtchn_upcall_pending, 1);
	CHECK_EQ(call_port(EVTCHNOP_send, a), 0);
	CHECK_EQ(*word(b) & EVTCHN_FIFO_LINK_MASK, a);
	CHECK_EQ(call_port(EVTCHNOP_send, b), 0);
	CHECK_EQ(call_port(EVTCHNOP_send, c), 0);
	CHECK_EQ(take(0), c);
	CHECK_EQ(take(0), b);
	/* The last one again, before and after the guest has taken it. */
	CHECK_EQ(call_port(EVTCHNOP_send, a), 0);
	CHECK_EQ(take(0), a);
	CHECK_EQ(take(0), 0);
	CHECK_EQ(call_port(EVTCHNOP_send, a), 0);
	CHECK_EQ(take(0), a);
	CHECK_EQ(take(0), 0);
	urgent.priority = EVTCHN_FIFO_PRIORITY_MIN + 1;
	CHECK_EQ(call(EVTCHNOP_set_priority, &urgent), -EINVAL);
	end();
}

static void fifo_takes_over_what_is_pending(void)
{
	uint32_t a, b;

	begin();
	memset(heads, 0, sizeof(heads));
	a = ipi(0);
	b = ipi(0);
	CHECK_EQ(call_port(EVTCHNOP_send, a), 0);
	CHECK_EQ(init_control(0, CONTROL_MFN, 0), 0);
	CHECK(evtchn_port_pending(&domains[1], a));
	/* No words yet: it is kept. */
	CHECK_EQ(call_port(EVTCHNOP_send, b), 0);
	CHECK(evtchn_port_pending(&domains[1], b));
	CHECK_EQ(expand(ARRAY_MFN), 0);
	CHECK_EQ(take(0), a);
	CHECK_EQ(take(0), b);
	CHECK_EQ(take(0), 0);
	end();
}

static int send_port(struct domain *d, uint32_t port)
{
	uint64_t flags = spin_lock_irq(&d->events->lock);
	struct evtchn *c = evtchn_of(d, port);
	int rc = c && c->state != EVTCHNSTAT_closed ? 0 : -EINVAL;

	if (!rc)
		set_pending(d, port, c);
	spin_unlock_irq(&d->events->lock, flags);
	return rc;
}

/* Sending, taking, masking, moving to other vCPUs and queues: each event that is not masked is taken as often as it can be told apart. */
static void fifo_loses_nothing(void)
{
	uint64_t state = unit_seed();
	bool pending[64] = {false}, masked[64] = {false};
	unsigned taken = 0;

	begin_fifo();
	memset(heads, 0, sizeof(heads));
	for (uint32_t port = 1; port < 64; port++)
		CHECK_EQ(alloc_for(1), port);
	for (unsigned step = 0; step < 200000; step++) {
		uint32_t port = 1 + (uint32_t)unit_below(&state, 63);
		struct evtchn_set_priority priority = {.port = port};
		struct evtchn_bind_vcpu move = {.port = port};

		switch (unit_below(&state, 10)) {
		case 0:
			*word(port) |= 1u << EVTCHN_FIFO_MASKED;
			masked[port] = true;
			break;
		case 1:
			CHECK_EQ(call_port(EVTCHNOP_unmask, port), 0);
			masked[port] = false;
			break;
		case 2:
			priority.priority = (uint32_t)unit_below(&state, 16);
			CHECK_EQ(call(EVTCHNOP_set_priority, &priority), 0);
			break;
		case 3:
			move.vcpu = (uint32_t)unit_below(&state, VCPUS);
			CHECK_EQ(call(EVTCHNOP_bind_vcpu, &move), 0);
			break;
		case 4:
		case 5:
		case 6:
			port = take((unsigned)unit_below(&state, VCPUS));
			if (port) {
				CHECK(pending[port] && !masked[port]);
				pending[port] = false;
				taken++;
			}
			break;
		default:
			CHECK_EQ(send_port(&domains[1], port), 0);
			pending[port] = true;
		}
	}
	for (unsigned k = 0; k < VCPUS; k++) {
		for (uint32_t port = take(k); port; port = take(k))
			pending[port] = false;
	}
	for (uint32_t port = 1; port < 64; port++)
		CHECK_MSG(!pending[port] || masked[port], "port %u is lost", port);
	CHECK(taken > 1000);
	end();
}

/* Whatever the guest writes, the hypervisor stays within what it holds, ends, and goes on serving others. */
static void fifo_withstands_garbage(void)
{
	uint64_t state = unit_seed();
	uint32_t one, two;

	begin_fifo();
	connect_pair(&one, &two);
	for (unsigned n = 0; n < 200; n++)
		ipi((unsigned)unit_below(&state, VCPUS));
	for (unsigned step = 0; step < 20000; step++) {
		uint32_t port = (uint32_t)unit_below(&state, 210);
		struct evtchn_set_priority priority = {
			.port = port, .priority = (uint32_t)unit_below(&state, 16)};

		if (unit_below(&state, 4) == 0)
			*word((uint32_t)unit_below(&state, FIFO_WORDS)) =
				(event_word_t)unit_random(&state);
		if (unit_below(&state, 50) == 0)
			unit_fill_random(&state, block((unsigned)unit_below(&state, VCPUS)),
					 sizeof(struct evtchn_fifo_control_block));
		call_port(unit_below(&state, 3) ? EVTCHNOP_send : EVTCHNOP_unmask, port);
		call(EVTCHNOP_set_priority, &priority);
		CHECK(!spin_is_locked(&domains[1].events->lock));
	}
	bit_test_and_clear(domains[2].shared_info->evtchn_pending, two);
	CHECK_EQ(call_port(EVTCHNOP_send, one), 0);
	CHECK(evtchn_port_pending(&domains[2], two));
	end();
}

/* A tail that is linked and changes at each look is given up, without BUSY left in it. */
static void fifo_gives_up_a_taken_tail(void)
{
	uint32_t a, b;

	begin_fifo();
	a = ipi(0);
	b = ipi(0);
	CHECK_EQ(call_port(EVTCHNOP_send, a), 0);
	*word(a) = 1u << EVTCHN_FIFO_BUSY;
	CHECK_EQ(call_port(EVTCHNOP_send, b), 0);
	CHECK_EQ(*word(a), 0);
	CHECK_EQ(block(0)->head[EVTCHN_FIFO_PRIORITY_DEFAULT], b);
	end();
}

/* Back to two-level, with all frames given back, and forth again. */
static void reset_ends_fifo(void)
{
	struct evtchn_reset reset = {.dom = DOMID_SELF};

	begin_fifo();
	ipi(0);
	CHECK_EQ(held, VCPUS + 1);
	CHECK_EQ(call(EVTCHNOP_reset, &reset), 0);
	CHECK_EQ(held, 0);
	CHECK_EQ(ipi(0), 1);
	CHECK_EQ(call_port(EVTCHNOP_send, 1), 0);
	CHECK(bit_test(domains[1].shared_info->evtchn_pending, 1));
	CHECK_EQ(init_control(0, CONTROL_MFN, 0), 0);
	end();
}

/* Each way to get a port, where it needs a new bucket and there is no memory: nothing is left of it, and later it works. */
static long bind_at_edge(unsigned how, uint32_t far)
{
	struct evtchn_bind_interdomain pair = {.remote_dom = 2, .remote_port = far};
	struct evtchn_alloc_unbound unbound = {.dom = DOMID_SELF, .remote_dom = 2};
	struct evtchn_bind_pirq pirq = {.pirq = 9};
	struct evtchn_bind_virq virq = {.virq = VIRQ_DEBUG};
	struct evtchn_bind_ipi ipi = {.vcpu = 1};

	switch (how) {
	case 0:
		return call(EVTCHNOP_alloc_unbound, &unbound);
	case 1:
		return call(EVTCHNOP_bind_interdomain, &pair);
	case 2:
		return call(EVTCHNOP_bind_pirq, &pirq);
	case 3:
		return call(EVTCHNOP_bind_virq, &virq);
	default:
		return call(EVTCHNOP_bind_ipi, &ipi);
	}
}

static void memory_is_short(void)
{
	uint32_t far;

	for (unsigned how = 0; how < 5; how++) {
		begin();
		CHECK_EQ(rangeset_add(&domains[1].irqs, 9, 9), 0);
		current = &vcpus[2][0];
		far = alloc_for(1);
		current = &vcpus[1][0];
		while (ipi(0) != PORTS_PER_BUCKET - 1)
			;
		unit_fail_alloc(1);
		CHECK_EQ(bind_at_edge(how, far), -ENOMEM);
		CHECK_EQ(unit_fail_alloc(0), 1);
		CHECK_EQ(status_of_port(2, far), EVTCHNSTAT_unbound);
		CHECK(!evtchn_port_valid(&domains[1], PORTS_PER_BUCKET));
		CHECK_EQ(vcpus[1][0].virq_port[VIRQ_DEBUG], 0);
		CHECK_EQ(domains[1].events->pirq_port[9], 0);
		CHECK_EQ(bound_irqs, 0);
		CHECK(!spin_is_locked(&binding_lock));
		CHECK_EQ(bind_at_edge(how, far), 0);
		CHECK(evtchn_port_valid(&domains[1], PORTS_PER_BUCKET));
		end();
	}
	begin();
	unit_fail_alloc(1);
	CHECK_EQ(init_control(0, CONTROL_MFN, 0), -ENOMEM);
	unit_fail_alloc(0);
	CHECK_EQ(held, 0);
	CHECK_EQ(expand(ARRAY_MFN), -EOPNOTSUPP);
	CHECK_EQ(init_control(0, CONTROL_MFN, 0), 0);
	CHECK_EQ(held, 1);
	events_destroy(&domains[2]);
	events_free(&domains[2]);
	unit_fail_alloc(1);
	CHECK_EQ(events_create(&domains[2]), -ENOMEM);
	unit_fail_alloc(0);
	CHECK(!domains[2].events);
	CHECK_EQ(events_create(&domains[2]), 0);
	end();
}

/* A toolstack may give a domain ports before vCPUs, or go on when there was no memory for those: there would be nobody to tell of an event. */
static void without_vcpus(void)
{
	struct evtchn_alloc_unbound op = {.dom = 1, .remote_dom = 2};

	begin();
	current = &vcpus[0][0];
	domains[1].vcpu[0] = NULL;
	CHECK_EQ(call(EVTCHNOP_alloc_unbound, &op), -ENOENT);
	domains[1].vcpu[0] = &vcpus[1][0];
	CHECK_EQ(call(EVTCHNOP_alloc_unbound, &op), 0);
	end();
}

UNIT_MAIN(TEST(connects_and_closes), TEST(connects_to_itself), TEST(survives_the_peer),
	  TEST(binds_virtual_interrupts), TEST(binds_physical_interrupts),
	  TEST(has_a_limit_and_reuses), TEST(refuses_nonsense), TEST(two_levels), TEST(ends_polls),
	  TEST(fifo_setup_is_checked), TEST(fifo_keeps_order_and_priority),
	  TEST(fifo_takes_over_what_is_pending), TEST(fifo_loses_nothing),
	  TEST(fifo_withstands_garbage), TEST(fifo_gives_up_a_taken_tail), TEST(reset_ends_fifo),
	  TEST(memory_is_short), TEST(without_vcpus))
