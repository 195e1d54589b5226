// SPDX-License-Identifier: GPL-2.0-only
/*
 * Side arrays: make, find, free
 */
#include <linux/bits.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "fault.h"
#include "range.h"
#include "table.h"

/* More than 128 TiB: not worth a directory of that size. */
#define MAX_BLOCKS	(BIT(47) >> PUD_SHIFT)

void af_range_free(struct af_range *r)
{
	unsigned long b;

	for (b = 0; b < r->nr_blocks; b++)
		kfree(r->block[b].word);
	kvfree(r);
}

/**
 * af_range_alloc - side array with a word for each chunk under a PMD table
 * @vma: the parent's VMA
 * @start: first address, chunk aligned
 * @end: end address, chunk aligned
 * @bytes: raised by the memory that it takes
 *
 * Context: may sleep.
 * Return: the range, or NULL: no memory.
 */
struct af_range *af_range_alloc(const struct vm_area_struct *vma,
				unsigned long start, unsigned long end,
				u64 *bytes)
{
	unsigned long nr = ((end - 1) >> PUD_SHIFT) - (start >> PUD_SHIFT) + 1;
	struct af_block *block;
	struct af_range *r;
	unsigned long b, n;

	if (nr > MAX_BLOCKS || af_fault())
		return NULL;
	r = kvzalloc(struct_size(r, block, nr), GFP_KERNEL_ACCOUNT);
	if (!r)
		return NULL;
	*bytes += struct_size(r, block, nr);
	r->start = start;
	r->end = end;
	r->vm_start = vma->vm_start;
	r->vm_end = vma->vm_end;
	r->nr_blocks = nr;

	for (b = 0; b < nr; b++) {
		cond_resched();
		block = &r->block[b];
		block->slot = af_pmd_slot(vma->vm_mm, af_block_start(r, b));
		if (!block->slot)
			continue;
		n = af_block_chunks(r, b);
		block->word = kcalloc(n, sizeof(unsigned long),
				      GFP_KERNEL_ACCOUNT);
		if (!block->word || af_fault()) {
			af_range_free(r);
			return NULL;
		}
		*bytes += n * sizeof(unsigned long);
	}
	return r;
}

/**
 * af_ranges_add - add a range behind all others
 * @ranges: where the array is; replaced when it is full
 * @r: its addresses are above those of the others
 * @bytes: raised by the memory that it takes
 *
 * Context: the forking thread, the only one that adds; may sleep.
 * Return: false: no memory.
 */
bool af_ranges_add(struct af_ranges __rcu **ranges, struct af_range *r,
		   u64 *bytes)
{
	struct af_ranges *old, *rs;
	unsigned long max;

	/* Nobody else replaces it. */
	old = rcu_dereference_protected(*ranges, true);
	rs = old;
	if (!old || old->nr == old->max) {
		max = old ? 2 * old->max : 16;
		rs = af_fault() ? NULL :
			kvzalloc(struct_size(rs, range, max),
				 GFP_KERNEL_ACCOUNT);
		if (!rs)
			return false;
		rs->max = max;
		if (old) {
			memcpy(rs->range, old->range,
			       old->nr * sizeof(old->range[0]));
			rs->nr = old->nr;
		}
		*bytes += (max - rs->nr) * sizeof(rs->range[0]);
	}
	if (rs->nr) {
		struct af_range *last = rs->range[rs->nr - 1];

		r->first = last->first + af_range_chunks(last);
	}
	rs->range[rs->nr] = r;
	/* Release: a reader that sees the number sees the range. */
	smp_store_release(&rs->nr, rs->nr + 1);
	if (rs != old) {
		rcu_assign_pointer(*ranges, rs);
		if (old)
			kvfree_rcu(old, rcu);
	}
	return true;
}

/**
 * af_ranges_free - free the ranges of a session that nobody has any more
 * @rs: may be NULL
 */
void af_ranges_free(struct af_ranges *rs)
{
	unsigned long i;

	for (i = 0; rs && i < rs->nr; i++)
		af_range_free(rs->range[i]);
	kvfree(rs);
}

/* Index of the first range that ends above @addr. */
static unsigned long first_above(const struct af_ranges *rs, unsigned long nr,
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

/**
 * af_ranges_find - the first range that ends above @addr
 * @ranges: where the array is
 * @addr: user address
 *
 * Ranges live as long as the session; the array may be replaced.
 *
 * Context: the caller holds the session.
 * Return: the range or NULL.
 */
struct af_range *af_ranges_find(struct af_ranges __rcu **ranges,
				unsigned long addr)
{
	struct af_range *r = NULL;
	struct af_ranges *rs;
	unsigned long i, nr;

	rcu_read_lock();
	rs = rcu_dereference(*ranges);
	if (rs) {
		/* Acquire; pairs with af_ranges_add(). */
		nr = smp_load_acquire(&rs->nr);
		i = first_above(rs, nr, addr);
		if (i < nr)
			r = rs->range[i];
	}
	rcu_read_unlock();
	return r;
}

/* Is a chunk of @r pending whose table belongs into @slot? Its address, then. */
static bool range_find_slot(const struct af_range *r, const pmd_t *slot,
			    unsigned long *addr)
{
	const struct af_block *b;
	unsigned long i;

	for (i = 0; i < r->nr_blocks; i++) {
		b = &r->block[i];
		/* Within one table, so that the difference is one. */
		if (!b->word || slot < b->slot ||
		    slot - b->slot >= af_block_chunks(r, i))
			continue;
		/* Otherwise the table may be another's by now. */
		if (!af_word_pending(&b->word[slot - b->slot]))
			continue;
		*addr = af_block_start(r, i) + ((slot - b->slot) << PMD_SHIFT);
		return true;
	}
	return false;
}

/**
 * af_ranges_find_slot - the chunk whose table belongs into an entry
 * @ranges: where the array is
 * @slot: entry of a PMD table
 * @addr: the chunk's address
 *
 * Context: the caller holds the session.
 * Return: whether there is one that is parked or being pulled.
 */
bool af_ranges_find_slot(struct af_ranges __rcu **ranges, const pmd_t *slot,
			 unsigned long *addr)
{
	struct af_ranges *rs;
	unsigned long i, nr;
	bool found = false;

	rcu_read_lock();
	rs = rcu_dereference(*ranges);
	/* Acquire; pairs with af_ranges_add(). */
	nr = rs ? smp_load_acquire(&rs->nr) : 0;
	for (i = 0; i < nr && !found; i++)
		found = range_find_slot(rs->range[i], slot, addr);
	rcu_read_unlock();
	return found;
}

/**
 * af_ranges_part - where the @nr-th of @n equal parts of all chunks begins
 * @rs: the ranges, one at least; nobody adds any more
 * @nr: 0 to @n - 1
 * @n: number of parts
 *
 * Return: address of a chunk.
 */
unsigned long af_ranges_part(const struct af_ranges *rs, unsigned int nr,
			     unsigned int n)
{
	const struct af_range *r = rs->range[rs->nr - 1];
	unsigned long i, target;

	target = (r->first + af_range_chunks(r)) * nr / n;
	for (i = 0; i + 1 < rs->nr && rs->range[i + 1]->first <= target; i++)
		;
	r = rs->range[i];
	return r->start + ((target - r->first) << PMD_SHIFT);
}
