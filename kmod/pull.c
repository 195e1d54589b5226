// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copy a parked chunk to the child, give its table back to the parent
 *
 * Callers: the child's copy loop, helpers, and any hook that acts on a parked
 * range. The chunk word is the only lock. No mmap_lock is taken and no VMA is
 * looked up: after munmap()'s downgrade the VMA is gone from the tree already.
 * BUSY never sleeps, and preemption is off in it: who waits for it waits for one
 * copy, however little its owner is let run.
 */
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/timekeeping.h>
#include <linux/wait_bit.h>

#include "compat/compat.h"
#include "copy.h"
#include "fault.h"
#include "params.h"
#include "pull.h"
#include "range.h"
#include "session.h"
#include "stats.h"
#include "symbols.h"
#include "table.h"

/* About one plain chunk's copy; then the waiter sleeps. */
#define SPINS	2000

/* A BUSY chunk is a lock: lockdep checks the order that session.h draws. */
static struct lockdep_map chunk_busy __maybe_unused =
	AF_LOCKDEP_MAP_INIT("chunk_busy", &chunk_busy);

static bool current_is(const struct af_session *s, enum af_role role)
{
	return current->mm == af_mm(s, role);
}

static void ipi_nop(void *unused)
{
}

/*
 * No CPU may use a parked table any more, neither through a TLB entry nor in a
 * GUP-fast walk that read the PMD before it was cleared. The fork flushes the
 * TLB, but after mmap_lock of the child is dropped, and the rmap hook holds no
 * mmap_lock at all: before AF_FLUSHED we flush ourselves. A flush need not be
 * an IPI (paravirt, INVLPGB); GUP-fast needs one, it runs with IRQs off.
 *
 * @locked: the caller holds the parent's mmap_lock, or the lock of the VMA that
 * he has found a chunk of parked. dup_mmap() has both for writing until it has
 * flushed, so it has.
 *
 * No lock: several first pullers may each do it. Nobody waits for a thread
 * that is not running.
 */
static void sync_cpus(struct af_session *s, bool locked)
{
	bool flushed;

	if (test_bit(AF_SYNCED, &s->flags))
		return;
	if (locked)
		set_bit(AF_FLUSHED, &s->flags);
	flushed = test_bit(AF_FLUSHED, &s->flags);
	if (!flushed)
		af_call(flush_tlb_mm_range)(af_mm(s, AF_PARENT), 0,
					    TLB_FLUSH_ALL, 0, true);
	smp_call_function(ipi_nop, NULL, 1);
	/* Chunks parked after this one would not be covered yet. */
	if (flushed)
		set_bit(AF_SYNCED, &s->flags);
}

static void wait_done(unsigned long *word)
{
	unsigned int i;

	lock_map_acquire(&chunk_busy);
	lock_map_release(&chunk_busy);
	for (i = 0; i < SPINS; i++) {
		/* Pairs with set_done(). */
		if (smp_load_acquire(word) != AF_WORD_BUSY)
			return;
		cpu_relax();
	}
	/* Pairs with set_done(). */
	wait_var_event(word, smp_load_acquire(word) != AF_WORD_BUSY);
}

static void set_done(unsigned long *word)
{
	/* Both trees are final. Pairs with the acquires here and in range.h. */
	smp_store_release(word, AF_WORD_DONE);
	/* Store before the check for waiters; pairs with prepare_to_wait(). */
	smp_mb();
	wake_up_var(word);
}

/*
 * Somebody filled the slot past our hooks: move the entries of @table to the
 * live table. Returns false if an entry is in the way; then @table keeps what
 * could not be moved.
 */
static bool merge(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
		  pgtable_t table)
{
	pte_t *from = page_address(table);
	pte_t *to = (pte_t *)pmd_page_vaddr(*pmd);
	spinlock_t *ptl = pte_lockptr(mm, pmd);
	bool whole = true;
	unsigned int i;

	spin_lock_nested(ptl, SINGLE_DEPTH_NESTING);
	for (i = 0; i < PTRS_PER_PTE; i++, addr += PAGE_SIZE) {
		if (pte_none(from[i]))
			continue;
		if (!pte_none(to[i])) {
			whole = false;
			continue;
		}
		set_pte_at(mm, addr, &to[i],
			   ptep_get_and_clear(mm, addr, &from[i]));
	}
	spin_unlock(ptl);
	return whole;
}

static void kill_mm(struct mm_struct *mm)
{
	struct task_struct *p;

	rcu_read_lock();
	p = rcu_dereference(mm->owner);
	if (p)
		send_sig(SIGKILL, p, 1);
	rcu_read_unlock();
}

/*
 * The slot of @table was taken. What could be moved to the table there has been;
 * @whole: nothing is left in @table. Never drop a table that is not empty.
 */
static void slot_taken(struct af_session *s, enum af_role role, bool partial,
		       unsigned long addr, pgtable_t table, bool whole)
{
	struct mm_struct *mm = af_mm(s, role);

	af_stats_merged();
	if (whole) {
		/* A re-attach comes here without having synced. */
		sync_cpus(s, false);
		/* The parent never stopped counting its table. */
		if (role == AF_PARENT)
			mm_dec_nr_ptes(mm);
		af_pte_free(mm, table);
	}
	/* Beside a partial chunk a driver may have mapped pages at once. */
	if (partial && whole)
		return;
	af_switch_off("page table slot of a parked chunk was not empty", addr);
	if (whole)
		return;
	/* Memory would be lost: better no process than a wrong one. */
	if (role == AF_CHILD)
		af_session_doom(s);
	else
		kill_mm(mm);
}

/*
 * Put @table (entry @val) into its slot of the parent or the child. A slot that
 * is not empty is a missed path.
 */
static void attach(struct af_session *s, enum af_role role,
		   const struct af_range *r, unsigned long addr,
		   pgtable_t table, pmd_t val)
{
	bool partial = addr < r->vm_start || addr + PMD_SIZE > r->vm_end;
	struct mm_struct *mm = af_mm(s, role);
	pmd_t *pmd = af_pmd_slot(mm, addr);
	bool whole = false;

	/* No PMD table: as good as taken. */
	if (pmd) {
		spinlock_t *ptl = pmd_lock(mm, pmd);

		if (likely(pmd_none(*pmd))) {
			/* The parent never stopped counting its table. */
			if (role == AF_CHILD)
				mm_inc_nr_ptes(mm);
			/* The table's content before the table. */
			smp_wmb();
			set_pmd(pmd, val);
			spin_unlock(ptl);
			return;
		}
		if (af_pmd_is_table(*pmd))
			whole = merge(mm, pmd, addr, table);
		spin_unlock(ptl);
	}
	slot_taken(s, role, partial, addr, table, whole);
}

static void count_pull(struct af_session *s, enum asyncfork_hook hook)
{
	enum af_count by = AF_N_BY_OTHER;

	if (hook == ASYNCFORK_HOOK_HELPER)
		by = AF_N_BY_HELPER;
	else if (current_is(s, AF_CHILD))
		by = AF_N_BY_CHILD;
	else if (current_is(s, AF_PARENT))
		by = AF_N_BY_PARENT;
	af_count_add(s, by, 1);
	af_count_add(s, AF_N_PULLS + hook, 1);
}

/* BUSY is ours. */
static void copy_chunk(struct af_session *s, const struct af_range *r,
		       unsigned long addr, pmd_t saved, pgtable_t table)
{
	int ret = af_copy(s, saved, table, addr);

	if (ret == -EINVAL)
		af_switch_off("a parked table has an entry of an unknown kind",
			      addr);
	/* Before the chunk is DONE; the rest is re-attached later. */
	if (ret)
		af_session_doom(s);
	/* Even a partial copy: exit_mmap() of the killed child drops it. */
	attach(s, AF_CHILD, r, addr, table, af_table_entry(table));
}

/* The parent's pulls are timed; before the session may end with this one. */
static void count_time(struct af_session *s, unsigned long addr,
		       enum asyncfork_hook hook, u64 start)
{
	if (current_is(s, AF_PARENT))
		af_stats_parent_pull(s, addr, hook, ktime_get_ns() - start);
}

/**
 * struct claim - a chunk that its claimer, and nobody else, makes DONE
 * @saved: its PMD
 * @table: for the child, with @copy
 * @copy: not only to be re-attached
 */
struct claim {
	pmd_t saved;
	pgtable_t table;
	bool copy;
};

/*
 * Make the chunk BUSY, whose word is @val. Sleeps only before that. Returns true
 * with preemption off; false if somebody else has got it, or it was put back for
 * lack of memory: then it is BUSY or DONE.
 */
static bool claim(struct af_session *s, unsigned long *word,
		  unsigned long val, struct claim *c, bool locked)
{
	bool outsider = !current_is(s, AF_PARENT) && !current_is(s, AF_CHILD);

	c->saved = __pmd(val);
	c->copy = !test_bit(AF_ABORTED, &s->flags);
	if (c->copy) {
		c->table = af_table_get(&s->reserve, af_mm(s, AF_CHILD),
					outsider);
		if (!c->table) {
			if (READ_ONCE(*word) == val) {
				/* Puts this chunk back, too. */
				af_session_doom(s);
				af_pull_abort(s);
			}
			return false;
		}
		sync_cpus(s, locked);
	}

	preempt_disable();
	if (cmpxchg(word, val, AF_WORD_BUSY) == val)
		return true;
	preempt_enable();
	return false;
}

/* Copy a claimed chunk, or not, and give it back to the parent. */
static void complete_chunk(struct af_session *s, const struct af_range *r,
			   unsigned long addr, const struct claim *c,
			   enum asyncfork_hook hook)
{
	/* An abort waits for BUSY chunks, so this one may still be copied. */
	if (c->copy) {
		copy_chunk(s, r, addr, c->saved, c->table);
		count_pull(s, hook);
	} else {
		af_count_add(s, AF_N_REATTACHED, 1);
	}
	/* On error too: the parent must not need the copy. */
	attach(s, AF_PARENT, r, addr, pmd_pgtable(c->saved), c->saved);
}

/* Make the chunk at @addr DONE, whoever does it. @locked: see sync_cpus(). */
static void pull_chunk(struct af_session *s, const struct af_range *r,
		       unsigned long *word, unsigned long addr,
		       enum asyncfork_hook hook, bool locked)
{
	u64 start = ktime_get_ns();
	struct claim c = {};
	/* Pairs with set_done(). */
	unsigned long val = smp_load_acquire(word);

	if (val > AF_WORD_DONE && claim(s, word, val, &c, locked)) {
		lock_map_acquire(&chunk_busy);
		complete_chunk(s, r, addr, &c, hook);
		lock_map_release(&chunk_busy);
		set_done(word);
		preempt_enable();
		count_time(s, addr, hook, start);
		af_session_chunk_done(s);
		return;
	}
	/* Left over from a claim that was lost. */
	if (c.table)
		af_pte_free(af_mm(s, AF_CHILD), c.table);
	/* Pairs with set_done(). */
	if (smp_load_acquire(word) == AF_WORD_BUSY) {
		wait_done(word);
		count_time(s, addr, hook, start);
	}
}

/**
 * af_pull_range - on return no chunk of [start, end) is parked
 * @s: session, referenced by the caller
 * @start: first address
 * @end: end address; ULONG_MAX for all
 * @hook: who asks
 * @locked: the parent's mmap_lock is held, or the lock of the VMA with this range
 *
 * Context: may sleep.
 */
void af_pull_range(struct af_session *s, unsigned long start,
		   unsigned long end, enum asyncfork_hook hook, bool locked)
{
	bool child = hook == ASYNCFORK_HOOK_CHILD;
	unsigned long addr = start, next, stop;
	unsigned long *word;
	struct af_range *r;

	while (addr < end && atomic_long_read(&s->parked)) {
		r = af_ranges_find(&s->ranges, addr);
		if (!r || r->start >= end)
			break;
		addr = max(addr & PMD_MASK, r->start);
		/* Behind it, the next range may have the rest of a block. */
		stop = min(end, r->end);
		for (; addr < stop; addr = next) {
			/* A dying child needs no image. */
			if (child && fatal_signal_pending(current) &&
			    !test_bit(AF_ABORTED, &s->flags)) {
				af_pull_abort(s);
				return;
			}
			word = af_range_step(r, addr, &next);
			if (word && af_word_pending(word)) {
				pull_chunk(s, r, word, addr, hook, locked);
				cond_resched();
			}
		}
	}
}

/**
 * af_pull_abort - give every parked chunk back uncopied
 * @s: session whose child is doomed, dying, or was never made
 *
 * The circle of this module: a pull that finds no memory asks for an abort, and
 * an abort is a pull of everything. It ends there, as that pull needs no memory.
 *
 * Context: may sleep. On return no chunk is parked or BUSY.
 */
void af_pull_abort(struct af_session *s)
{
	set_bit(AF_ABORTED, &s->flags);
	af_pull_range(s, 0, ULONG_MAX, ASYNCFORK_HOOK_CHILD, false);
}

/**
 * af_sync_range - pull what is parked of [start, end), from either side
 * @mm: parent or child of any number of sessions
 * @start: first address
 * @end: end address; ULONG_MAX for all
 * @hook: who asks
 * @locked: mmap_lock of @mm is held, or the lock of the VMA with this range
 *
 * Context: may sleep.
 */
void af_sync_range(struct mm_struct *mm, unsigned long start,
		   unsigned long end, enum asyncfork_hook hook, bool locked)
{
	struct af_session *s;
	enum af_role role;

	if (af_fault_hook(hook))
		return;
	for (role = AF_PARENT; role <= AF_CHILD; role++) {
		s = af_session_find(mm, role, true);
		if (!s)
			continue;
		af_pull_range(s, start, end, hook, locked && role == AF_PARENT);
		af_session_put(s);
	}
}

/**
 * af_slot_pending - does a parked table belong into this entry of a PMD table?
 * @mm: parent of any number of sessions
 * @slot: the entry
 *
 * Context: any.
 */
bool af_slot_pending(struct mm_struct *mm, const pmd_t *slot)
{
	struct af_session *s = af_session_find(mm, AF_PARENT, true);
	unsigned long addr;
	bool pending;

	if (!s)
		return false;
	pending = af_ranges_find_slot(&s->ranges, slot, &addr);
	af_session_put(s);
	return pending;
}

/**
 * af_sync_slot - pull the chunk whose table belongs into this entry
 * @mm: parent of any number of sessions
 * @slot: entry of a PMD table
 *
 * Context: mmap_lock of @mm or the VMA's lock; may sleep.
 */
void af_sync_slot(struct mm_struct *mm, const pmd_t *slot)
{
	struct af_session *s = af_session_find(mm, AF_PARENT, true);
	unsigned long addr;

	if (!s)
		return;
	if (af_ranges_find_slot(&s->ranges, slot, &addr))
		af_pull_range(s, addr, addr + 1, ASYNCFORK_HOOK_PTE_ALLOC,
			      true);
	af_session_put(s);
}
