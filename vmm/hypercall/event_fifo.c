/* SPDX-License-Identifier: MIT */
/*
 * The FIFO ABI: a word for each port in pages of the guest, and for each vCPU 16 queues of ports, linked through these words. A queue's
 * head is in the vCPU's control block; we add at the tail, the guest takes from the head and clears LINKED.
 *
 * The words are the guest's and may say anything: what we rely on (tails, array, blocks) is ours, a link is only ever written, and changing a
 * word that the guest changes too is tried a few times. A guest that plays with its words loses events of its own.
 */
#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/event_internal.h"
#include "vmm/lib/errno.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"

#define PENDING	  (1u << EVTCHN_FIFO_PENDING)
#define MASKED	  (1u << EVTCHN_FIFO_MASKED)
#define LINKED	  (1u << EVTCHN_FIFO_LINKED)
#define BUSY	  (1u << EVTCHN_FIFO_BUSY)
#define LINK_MASK ((event_word_t)EVTCHN_FIFO_LINK_MASK)
/* A guest that keeps to the ABI changes the tail's word at most twice after it has seen BUSY: one more change of the mask, and taking it. */
#define TRIES 4

struct fifo_vcpu {
	struct evtchn_fifo_control_block *block;
	struct frame *frame;
	uint32_t tail
		[EVTCHN_FIFO_MAX_QUEUES]; /* the port last added; it may have been taken since */
};

struct fifo_state {
	spinlock_t lock; /* queues, array, blocks; a leaf */
	uint32_t pages;
	struct frame *page[FIFO_PAGES];
	struct fifo_vcpu vcpu[MAX_VCPUS];
};

static event_word_t *word_of(const struct fifo_state *f, uint32_t port)
{
	uint32_t page = port / FIFO_WORDS;

	if (page >= f->pages)
		return NULL;
	return (event_word_t *)mfn_to_ptr(frame_mfn(f->page[page])) + port % FIFO_WORDS;
}

static event_word_t word_set(event_word_t *word, event_word_t bits)
{
	return __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
}

static event_word_t word_clear(event_word_t *word, event_word_t bits)
{
	return __atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST);
}

/* Link a port behind the tail's word. False: the guest has taken the tail, so that the queue is empty. */
static bool append(event_word_t *tail, uint32_t port)
{
	event_word_t word = READ_ONCE(*tail);

	for (int i = 0; i < TRIES && word & LINKED; i++) {
		event_word_t linked = (word & ~(BUSY | LINK_MASK)) | port;

		if (__atomic_compare_exchange_n(tail, &word, linked, false, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST))
			return true;
		/* From now on the guest waits before it unmasks. */
		word = word_set(tail, BUSY) | BUSY;
	}
	if (word & BUSY)
		word_clear(tail, BUSY);
	return false;
}

/* Put a port that is not linked into its vCPU's queue. */
static void enqueue(struct domain *d, struct fifo_state *f, uint32_t port, struct evtchn *c)
{
	/* Both may change while only the sender's event lock is held: one look at each. */
	uint8_t vcpu = READ_ONCE(c->vcpu), priority = READ_ONCE(c->priority);
	struct fifo_vcpu *q = &f->vcpu[vcpu];
	uint32_t *last = &f->vcpu[c->last_vcpu].tail[c->last_queue];
	uint32_t *tail = &q->tail[priority], ready = 1u << priority;

	/* Without a control block the word keeps it; the guest looks at its words when it sets one up. */
	if (!q->block || word_set(word_of(f, port), LINKED) & LINKED)
		return;
	/* Being the tail of a queue and not linked means that the queue is empty. */
	if (*last == port)
		*last = 0;
	c->last_vcpu = vcpu;
	c->last_queue = priority;
	if (!*tail || !append(word_of(f, *tail), port)) {
		WRITE_ONCE(q->block->head[priority], port);
		if (!(__atomic_fetch_or(&q->block->ready, ready, __ATOMIC_SEQ_CST) & ready))
			vcpu_mark_events_pending(d->vcpu[vcpu]);
	}
	*tail = port;
}

void fifo_set_pending(struct domain *d, uint32_t port, struct evtchn *c)
{
	struct fifo_state *f = d->events->fifo;
	uint64_t flags = spin_lock_irq(&f->lock);
	event_word_t *word = word_of(f, port);

	if (!word)
		c->pending = true;
	else if (!(word_set(word, PENDING) & (MASKED | LINKED)))
		enqueue(d, f, port, c);
	spin_unlock_irq(&f->lock, flags);
}

void fifo_unmask(struct domain *d, uint32_t port, struct evtchn *c)
{
	struct fifo_state *f = d->events->fifo;
	uint64_t flags = spin_lock_irq(&f->lock);
	event_word_t *word = word_of(f, port);

	if (word && (word_clear(word, MASKED) & (PENDING | LINKED)) == PENDING)
		enqueue(d, f, port, c);
	spin_unlock_irq(&f->lock, flags);
}

void fifo_clear_pending(struct domain *d, uint32_t port, struct evtchn *c)
{
	struct fifo_state *f = d->events->fifo;
	uint64_t flags = spin_lock_irq(&f->lock);
	event_word_t *word = word_of(f, port);

	c->pending = false;
	if (word)
		word_clear(word, PENDING);
	spin_unlock_irq(&f->lock, flags);
}

bool fifo_is_pending(struct domain *d, uint32_t port, const struct evtchn *c)
{
	struct fifo_state *f = d->events->fifo;
	uint64_t flags = spin_lock_irq(&f->lock);
	event_word_t *word = word_of(f, port);
	bool pending = c->pending || (word && READ_ONCE(*word) & PENDING);

	spin_unlock_irq(&f->lock, flags);
	return pending;
}

/* ---- setting up; the binding lock is held ---- */

/* From two-level to FIFO: what is pending there is pending here as soon as it has a word. */
static void take_over(struct domain *d, struct fifo_state *f)
{
	struct evtchn_state *s = d->events;
	uint64_t flags = spin_lock_irq(&s->lock);

	for (uint32_t port = 1; port < EVTCHN_2L_NR_CHANNELS; port++) {
		struct evtchn *c = evtchn_of(d, port);

		if (c && c->state != EVTCHNSTAT_closed)
			c->pending = bit_test(d->shared_info->evtchn_pending, port);
	}
	__atomic_store_n(&s->fifo, f, __ATOMIC_RELEASE);
	spin_unlock_irq(&s->lock, flags);
}

long fifo_init_control(struct domain *d, struct evtchn_init_control *op)
{
	struct fifo_state *f = d->events->fifo, *made = NULL;
	struct fifo_vcpu *q;
	struct frame *frame;
	uint64_t flags;
	long rc;

	if (!domain_vcpu(d, op->vcpu))
		return -ENOENT;
	if (op->offset % 8 || op->offset > PAGE_SIZE - sizeof(*q->block))
		return -EINVAL;
	if (f && f->vcpu[op->vcpu].block)
		return -EINVAL;
	rc = mfn_get_both(MFN(op->control_gfn), d, TYPE_WRITABLE);
	if (rc)
		return rc;
	frame = mfn_frame(MFN(op->control_gfn));
	if (!f)
		f = made = heap_zalloc(sizeof(*f));
	if (!f) {
		frame_put_both(frame);
		return -ENOMEM;
	}
	q = &f->vcpu[op->vcpu];
	flags = spin_lock_irq(&f->lock);
	q->frame = frame;
	q->block = (void *)((char *)mfn_to_ptr(frame_mfn(frame)) + op->offset);
	spin_unlock_irq(&f->lock, flags);
	shadow_mark(d, frame_mfn(frame));
	if (made)
		take_over(d, made);
	op->link_bits = EVTCHN_FIFO_LINK_BITS;
	return 0;
}

long fifo_expand_array(struct domain *d, uint64_t gfn)
{
	struct evtchn_state *s = d->events;
	struct fifo_state *f = s->fifo;
	struct frame *frame;
	uint32_t first;
	uint64_t flags;
	long rc;

	if (!f)
		return -EOPNOTSUPP;
	if (f->pages == FIFO_PAGES || f->pages * FIFO_WORDS >= s->limit)
		return -ENOSPC;
	rc = mfn_get_both(MFN(gfn), d, TYPE_WRITABLE);
	if (rc)
		return rc;
	frame = mfn_frame(MFN(gfn));
	first = f->pages * FIFO_WORDS;
	flags = spin_lock_irq(&s->lock);
	spin_lock(&f->lock);
	f->page[f->pages++] = frame;
	spin_unlock(&f->lock);
	shadow_mark(d, MFN(gfn));
	for (uint32_t port = first; port < first + FIFO_WORDS; port++) {
		struct evtchn *c = evtchn_of(d, port);

		if (c && c->pending) {
			c->pending = false;
			fifo_set_pending(d, port, c);
		}
	}
	spin_unlock_irq(&s->lock, flags);
	return 0;
}

void fifo_destroy(struct domain *d)
{
	struct evtchn_state *s = d->events;
	uint64_t flags = spin_lock_irq(&s->lock);
	struct fifo_state *f = s->fifo;

	s->fifo = NULL;
	spin_unlock_irq(&s->lock, flags);
	if (!f)
		return;
	for (uint32_t i = 0; i < f->pages; i++)
		frame_put_both(f->page[i]);
	for (unsigned i = 0; i < MAX_VCPUS; i++) {
		if (f->vcpu[i].frame)
			frame_put_both(f->vcpu[i].frame);
	}
	heap_zfree(f, sizeof(*f));
}

bool events_frame(struct domain *d, unsigned i, struct frame **f)
{
	const struct fifo_state *s = d->events->fifo;

	if (!s || i >= s->pages + MAX_VCPUS)
		return false;
	*f = i < s->pages ? s->page[i] : s->vcpu[i - s->pages].frame;
	return true;
}
