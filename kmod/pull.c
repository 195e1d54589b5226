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
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/timekeeping.h>
#include <linux/wait_bit.h>
#include <asm/pgalloc.h>

#include "compat/compat.h"
#include "session.h"
#include "symbols.h"

/* About one plain chunk's copy; then the waiter sleeps. */
#define SPINS	2000

/* A BUSY chunk is a lock: lockdep checks the order that session.h draws. */
static struct lockdep_map chunk_busy __maybe_unused =
	AF_LOCKDEP_MAP_INIT("chunk_busy", &chunk_busy);

/*
 * The PMD entry for @addr. The upper tables exist: park made or saw them, and
 * they are freed only after unmap_vmas() or exit_mmap(), which pull first. NULL
 * if that invariant does not hold.
 */
static pmd_t *pmd_lookup(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return NULL;
	pud = pud_offset(p4d, addr);
	return pud_none(*pud) ? NULL : pmd_offset(pud, addr);
}

void af_reserve_fill(struct af_session *s)
{
	unsigned int i;

	for (i = 0; i < AF_RESERVE && !af_fault(); i++)
		s->reserve[i] = af_pte_alloc(current->mm, AF_GFP_PTE);
}

void af_reserve_free(struct af_session *s)
{
	unsigned int i;

	for (i = 0; i < AF_RESERVE; i++)
		if (s->reserve[i])
			af_pte_free(af_mm(s, AF_CHILD), s->reserve[i]);
}

static pgtable_t reserve_take(struct af_session *s)
{
	pgtable_t table = NULL;
	unsigned int i;

	spin_lock(&s->reserve_lock);
	for (i = 0; i < AF_RESERVE && !table && !af_fault(); i++)
		swap(table, s->reserve[i]);
	spin_unlock(&s->reserve_lock);
	return table;
}

static bool current_is(const struct af_session *s, enum af_role role)
{
	return current->mm == af_mm(s, role);
}

/* Not inlined: the one function that calls through a pointer, percpu_ref's. */
static noinline void memcg_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}

/*
 * PF_MEMALLOC says that reclaim must not be entered: we are in it, or hold what
 * it takes. It also opens the system's reserves and lifts memcg's limits, which
 * is not for us.
 */
static pgtable_t table_alloc(struct mm_struct *mm)
{
	unsigned int memalloc = current->flags & PF_MEMALLOC;
	gfp_t gfp = AF_GFP_PTE;
	pgtable_t table;

	if (memalloc)
		gfp &= ~(__GFP_DIRECT_RECLAIM | __GFP_RETRY_MAYFAIL);
	current->flags &= ~PF_MEMALLOC;
	table = af_pte_alloc(mm, gfp);
	current->flags |= memalloc;
	return table;
}

/*
 * A PTE table for the child, charged to its memcg if an outsider pulls. May
 * sleep, and reclaim if the caller may.
 */
static pgtable_t table_get(struct af_session *s)
{
	struct mem_cgroup *memcg = NULL, *old;
	pgtable_t table = NULL;

	if (!current_is(s, AF_PARENT) && !current_is(s, AF_CHILD)) {
		memcg = get_mem_cgroup_from_mm(af_mm(s, AF_CHILD));
		old = set_active_memcg(memcg);
	}
	if (!af_fault())
		table = table_alloc(af_mm(s, AF_CHILD));
	if (memcg) {
		set_active_memcg(old);
		memcg_put(memcg);
	}
	return table ?: reserve_take(s);
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
		static_call(af_flush_tlb_mm_range)(af_mm(s, AF_PARENT), 0,
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
	/* Both trees are final. Pairs with the acquires of this file. */
	smp_store_release(word, AF_WORD_DONE);
	/* Store before the look for waiters; pairs with prepare_to_wait(). */
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
 * Put @table (entry @val) into the empty slot of the parent or the child.
 * A slot that is not empty is a missed path: merge, never drop the table.
 */
static void attach(struct af_session *s, enum af_role role,
		   const struct af_range *r, unsigned long addr,
		   pgtable_t table, pmd_t val)
{
	bool partial = addr < r->vm_start || addr + PMD_SIZE > r->vm_end;
	struct mm_struct *mm = af_mm(s, role);
	/* The parent never stopped counting its table. */
	bool counted = role == AF_PARENT;
	pmd_t *pmd = pmd_lookup(mm, addr);
	bool free = false;

	if (pmd) {
		spinlock_t *ptl = pmd_lock(mm, pmd);

		if (likely(pmd_none(*pmd))) {
			if (!counted)
				mm_inc_nr_ptes(mm);
			/* The table's content before the table. */
			smp_wmb();
			set_pmd(pmd, val);
			spin_unlock(ptl);
			return;
		}
		if (af_pmd_is_table(*pmd))
			free = merge(mm, pmd, addr, table);
		spin_unlock(ptl);
	}

	af_stats_merged();
	if (free) {
		/* A re-attach comes here without having synced. */
		sync_cpus(s, false);
		if (counted)
			mm_dec_nr_ptes(mm);
		af_pte_free(mm, table);
	}
	/* Beside a partial chunk a driver may have mapped pages at once. */
	if (partial && free)
		return;
	af_switch_off("page table slot of a parked chunk was not empty", addr);
	if (free)
		return;
	/* Memory would be lost: better no process than a wrong one. */
	if (role == AF_CHILD)
		af_session_doom(s);
	else
		kill_mm(mm);
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

/*
 * Make the chunk at @addr DONE, whoever does it. Sleeps only before it has
 * claimed the chunk, or waiting for somebody's copy. @locked: see sync_cpus().
 */
static void pull_chunk(struct af_session *s, const struct af_range *r,
		       unsigned long *word, unsigned long addr,
		       enum asyncfork_hook hook, bool locked)
{
	u64 start = ktime_get_ns();
	pgtable_t table = NULL;
	unsigned long val;
	bool copy;
	pmd_t saved;

	for (;;) {
		/* Pairs with set_done(). */
		val = smp_load_acquire(word);
		if (val == AF_WORD_NONE || val == AF_WORD_DONE)
			goto out;
		if (val == AF_WORD_BUSY) {
			wait_done(word);
			count_time(s, addr, hook, start);
			goto out;
		}

		copy = !test_bit(AF_ABORTED, &s->flags);
		if (copy && !table) {
			table = table_get(s);
			if (!table && READ_ONCE(*word) == val) {
				/* Puts this chunk back, too. */
				af_session_doom(s);
				af_session_abort(s);
			}
			if (!table)
				continue;
		}
		if (copy)
			sync_cpus(s, locked);

		preempt_disable();
		if (cmpxchg(word, val, AF_WORD_BUSY) == val)
			break;
		preempt_enable();
	}

	lock_map_acquire(&chunk_busy);
	/* An abort waits for BUSY chunks, so this one may still be copied. */
	saved = __pmd(val);
	if (copy) {
		copy_chunk(s, r, addr, saved, table);
		table = NULL;
		count_pull(s, hook);
	} else {
		af_count_add(s, AF_N_REATTACHED, 1);
	}
	/* On error too: the parent must not need the copy. */
	attach(s, AF_PARENT, r, addr, pmd_pgtable(saved), saved);
	lock_map_release(&chunk_busy);
	set_done(word);
	preempt_enable();
	count_time(s, addr, hook, start);
	af_session_chunk_done(s);
out:
	if (table)
		af_pte_free(af_mm(s, AF_CHILD), table);
}

/* Index of the first range that ends above @addr. */
static unsigned long first_range(const struct af_ranges *rs, unsigned long nr,
				 unsigned long addr)
{
	unsigned long lo = 0, hi = nr, mid;

	while (lo < hi) {
		mid = lo + (hi - lo) / 2;
		if (rs->range[mid]->end > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

/* Ranges live as long as the session; the array may be replaced. */
static struct af_range *range_at(struct af_session *s, unsigned long addr)
{
	struct af_range *r = NULL;
	struct af_ranges *rs;
	unsigned long i, nr;

	rcu_read_lock();
	rs = rcu_dereference(s->ranges);
	if (rs) {
		/* Acquire; pairs with range_add(). */
		nr = smp_load_acquire(&rs->nr);
		i = first_range(rs, nr, addr);
		if (i < nr)
			r = rs->range[i];
	}
	rcu_read_unlock();
	return r;
}

/* Parked now or being pulled? */
static bool word_pending(unsigned long *word)
{
	/* Pairs with set_done(). */
	unsigned long val = smp_load_acquire(word);

	return val != AF_WORD_NONE && val != AF_WORD_DONE;
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
	unsigned long addr = start, stop;
	unsigned long *word;
	struct af_range *r;

	while (addr < end && atomic_long_read(&s->parked)) {
		r = range_at(s, addr);
		if (!r || r->start >= end)
			break;
		addr = max(addr & PMD_MASK, r->start);
		stop = min(end, r->end);
		while (addr < stop) {
			/* A dying child needs no image. */
			if (child && fatal_signal_pending(current) &&
			    !test_bit(AF_ABORTED, &s->flags)) {
				af_session_abort(s);
				return;
			}
			word = af_range_word(r, addr);
			if (!word || !(addr & ~PUD_MASK))
				cond_resched();
			if (!word) {
				/* The next range may have a block for the rest. */
				addr = af_next_pud(addr, stop);
				continue;
			}
			if (word_pending(word)) {
				pull_chunk(s, r, word, addr, hook, locked);
				cond_resched();
			}
			addr += PMD_SIZE;
		}
	}
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

	for (role = AF_PARENT; role <= AF_CHILD; role++) {
		s = af_session_find(mm, role, true);
		if (!s)
			continue;
		af_pull_range(s, start, end, hook, locked && role == AF_PARENT);
		af_session_put(s);
	}
}

/* Is a chunk of @r pending whose table belongs into @slot? Its address, then. */
static bool range_slot(const struct af_range *r, const pmd_t *slot,
		       unsigned long *addr)
{
	const struct af_block *b;
	unsigned long i, start;

	for (i = 0; i < r->nr_blocks; i++) {
		b = &r->block[i];
		start = af_block_start(r, i);
		/* Within one table, so that the difference is one. */
		if (!b->word || slot < b->slot ||
		    slot - b->slot >= (af_next_pud(start, r->end) - start) >>
				      PMD_SHIFT)
			continue;
		/* Else the table may be another's by now. */
		if (!word_pending(&b->word[slot - b->slot]))
			continue;
		*addr = start + ((slot - b->slot) << PMD_SHIFT);
		return true;
	}
	return false;
}

static bool session_slot(struct af_session *s, const pmd_t *slot,
			 unsigned long *addr)
{
	struct af_ranges *rs;
	unsigned long i, nr;
	bool found = false;

	rcu_read_lock();
	rs = rcu_dereference(s->ranges);
	/* Acquire; pairs with range_add(). */
	nr = rs ? smp_load_acquire(&rs->nr) : 0;
	for (i = 0; i < nr && !found; i++)
		found = range_slot(rs->range[i], slot, addr);
	rcu_read_unlock();
	return found;
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
	pending = session_slot(s, slot, &addr);
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
	if (session_slot(s, slot, &addr))
		af_pull_range(s, addr, addr + 1, ASYNCFORK_HOOK_PTE_ALLOC,
			      true);
	af_session_put(s);
}

/* The child's task work: before user mode, or in do_exit() after exit_mm(). */
void af_pull_child(struct af_session *s)
{
	if (current->flags & PF_EXITING) {
		af_session_abort(s);
		return;
	}
	af_pull_range(s, 0, ULONG_MAX, ASYNCFORK_HOOK_CHILD, false);
	/* After the last chunk; pairs with set_done(), see af_session_doom(). */
	smp_rmb();
	if (test_bit(AF_ABORTED, &s->flags))
		send_sig(SIGKILL, current, 1);
}

/* Helper @nr of n starts (nr + 1) / (n + 1) of the way; chunks met are DONE. */
void af_pull_helper(struct af_session *s, unsigned int nr)
{
	/* The fork is over: nobody replaces s->ranges. */
	struct af_ranges *rs = rcu_dereference_protected(s->ranges, true);
	struct af_range *last = rs->range[rs->nr - 1], *r;
	unsigned long i, target;

	target = (last->first + ((last->end - last->start) >> PMD_SHIFT)) *
		 (nr + 1) / (s->helpers + 1);
	for (i = 0; i + 1 < rs->nr && rs->range[i + 1]->first <= target; i++)
		;
	r = rs->range[i];
	af_pull_range(s, r->start + ((target - r->first) << PMD_SHIFT),
		      ULONG_MAX, ASYNCFORK_HOOK_HELPER, false);
}
