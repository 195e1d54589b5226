// SPDX-License-Identifier: GPL-2.0-only
/*
 * Take PTE tables out of the parent's page table during the fork
 *
 * Runs in place of copy_page_range(), under mmap_write_lock of the parent. A
 * parked chunk costs one load and two stores; neither its PTEs nor any struct
 * page is touched. What cannot be parked goes to the original function.
 */
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/rmap.h>
#include <linux/timekeeping.h>

#include "compat/compat.h"
#include "fault.h"
#include "params.h"
#include "park.h"
#include "poison.h"
#include "range.h"
#include "session.h"
#include "symbols.h"
#include "table.h"

#define VM_INELIGIBLE							\
	(VM_SHARED | VM_HUGETLB | VM_PFNMAP | VM_MIXEDMAP | VM_IO |	\
	 __VM_UFFD_FLAGS | VM_MERGEABLE | VM_WIPEONFORK | VM_DONTCOPY |	\
	 VM_GROWSDOWN | AF_VM_INELIGIBLE_COMPAT)

static bool vma_eligible(struct vm_area_struct *dst, struct vm_area_struct *src)
{
	return vma_is_anonymous(src) && src->anon_vma && dst->anon_vma &&
	       !((src->vm_flags | dst->vm_flags) & VM_INELIGIBLE);
}

/*
 * The chunks of a VMA: those it covers whole. With park_partial also its first
 * and last one if no other VMA has a part in them.
 */
static bool chunk_bounds(struct vm_area_struct *vma, unsigned long *start,
			 unsigned long *end)
{
	bool partial = READ_ONCE(af_park_partial);
	unsigned long lo = ALIGN_DOWN(vma->vm_start, PMD_SIZE);
	unsigned long hi = ALIGN(vma->vm_end, PMD_SIZE);

	if (lo != vma->vm_start &&
	    (!partial || find_vma_intersection(vma->vm_mm, lo, vma->vm_start)))
		lo += PMD_SIZE;
	if (hi != vma->vm_end &&
	    (!partial || find_vma_intersection(vma->vm_mm, vma->vm_end, hi)))
		hi -= PMD_SIZE;
	*start = lo;
	*end = hi;
	return lo < hi;
}

/* A pull allocates no upper tables: the child gets them now. */
static bool child_tables(struct mm_struct *mm, const struct af_range *r)
{
	unsigned long b;

	for (b = 0; b < r->nr_blocks; b++) {
		cond_resched();
		if (r->block[b].word &&
		    (af_fault() || !af_pmd_make(mm, af_block_start(r, b))))
			return false;
	}
	return true;
}

/* The side array of a VMA, and all that a pull of it will need. */
static struct af_range *side_array(struct af_session *s,
				   struct vm_area_struct *dst,
				   struct vm_area_struct *src,
				   unsigned long start, unsigned long end)
{
	struct af_range *r = af_range_alloc(src, start, end, &s->meta_bytes);

	lockdep_assert(s->forker == current);
	if (!r)
		return NULL;
	if (child_tables(dst->vm_mm, r) &&
	    af_ranges_add(&s->ranges, r, &s->meta_bytes))
		return r;
	af_range_free(r);
	return NULL;
}

static unsigned long park_chunks(struct mm_struct *mm, struct af_range *r)
{
	unsigned long addr, next, n = 0;
	unsigned long *word;
	pmd_t *pmd, val;

	for (addr = r->start; addr < r->end; addr = next) {
		next = af_next_pud(addr, r->end);
		word = af_range_word(r, addr);
		if (!word)
			continue;
		pmd = af_pmd_slot(mm, addr);
		for (; addr < next; addr += PMD_SIZE, pmd++, word++) {
			val = READ_ONCE(*pmd);
			if (!af_pmd_is_table(val))
				continue;
			set_pmd(pmd, __pmd(0));
			/*
			 * The slot before the word: an abort that a migration
			 * in another VMA's anon_vma tree brings about walks
			 * all words, and attaches to empty slots only.
			 */
			smp_store_release(word, pmd_val(val));
			n++;
		}
	}
	return n;
}

/*
 * Park what can be parked of @r. The order matters:
 *  - the seqcount makes a GUP-fast that pins now fall back, so that either it
 *    sees the seqcount or we see MMF_HAS_PINNED, and likewise for a memory
 *    failure, which waits until the seqcount is even;
 *  - the anon_vma root lock keeps rmap walkers out: they re-read *pmd, and a
 *    migration must find all of a VMA parked or nothing. No allocation inside.
 */
static enum asyncfork_reason park_range(struct af_session *s,
					struct vm_area_struct *src,
					struct af_range *r)
{
	enum asyncfork_reason reason = ASYNCFORK_REASON_NONE;
	struct mm_struct *mm = src->vm_mm;
	unsigned long n, max = af_range_chunks(r);

	raw_write_seqcount_begin(&mm->write_protect_seq);
	af_anon_vma_lock_write(src->anon_vma);
	/*
	 * The begin is a write barrier only; pairs with GUP-fast's mb and with
	 * that of af_hook_memory_failure().
	 */
	smp_mb();
	if (af_mm_pinned(mm)) {
		reason = ASYNCFORK_REASON_PINNED;
	} else if (af_poison_under_way()) {
		reason = ASYNCFORK_REASON_POISON;
	} else if (mm_has_notifiers(mm)) {
		reason = ASYNCFORK_REASON_NOTIFIER;
	} else {
		/*
		 * Never too few: at 0 a hook looks no further, and an abort
		 * may take chunks away before the last of them is counted.
		 */
		af_session_parked(s, max);
		n = park_chunks(mm, r);
		atomic_long_sub(max - n, &s->parked);
		af_count_add(s, AF_N_PARKED, n);
	}
	af_anon_vma_unlock_write(src->anon_vma);
	raw_write_seqcount_end(&mm->write_protect_seq);
	return reason;
}

/* The original, on the part [start, end) of the VMAs. */
static long copy_part(struct af_session *s, struct vm_area_struct *dst,
		      struct vm_area_struct *src, unsigned long start,
		      unsigned long end)
{
	struct vm_area_struct part_dst, part_src;
	long ret;

	memcpy(&part_dst, dst, sizeof(*dst));
	memcpy(&part_src, src, sizeof(*src));
	af_vma_narrow(&part_dst, start, end);
	af_vma_narrow(&part_src, start, end);

	af_linger();
	s->bypass = true;
	ret = af_call(copy_page_range)(&part_dst, &part_src);
	s->bypass = false;
	return ret;
}

/*
 * Everything but the parked chunks. "Parked" is the word, not the PMD: the
 * migration hook may have pulled a chunk again already. An empty PMD with an
 * empty word has nothing to copy; the locks of mmap and VMA keep it so.
 */
static long copy_rest(struct af_session *s, struct vm_area_struct *dst,
		      struct vm_area_struct *src, const struct af_range *r)
{
	unsigned long run = src->vm_start, addr, next, end;
	unsigned long *word;
	pmd_t *pmd;
	long ret;

	for (addr = r->start; addr < r->end; addr = next) {
		word = af_range_step(r, addr, &next);
		if (word && READ_ONCE(*word) == AF_WORD_NONE) {
			pmd = af_pmd_slot(src->vm_mm, addr);
			if (!pmd_none(*pmd)) {
				af_count_add(s, AF_N_EAGER, 1);
				continue;
			}
		}
		end = max(addr, src->vm_start);
		if (run < end) {
			ret = copy_part(s, dst, src, run, end);
			if (ret)
				return ret;
		}
		run = next;
	}
	if (run < src->vm_end)
		return copy_part(s, dst, src, run, src->vm_end);
	return 0;
}

static bool park_vma(struct af_session *s, struct vm_area_struct *dst,
		     struct vm_area_struct *src, long *ret)
{
	enum asyncfork_reason reason;
	unsigned long start, end;
	struct af_range *r;
	u64 began;

	if (READ_ONCE(af_off) || !vma_eligible(dst, src) ||
	    !chunk_bounds(src, &start, &end))
		return false;

	began = ktime_get_ns();
	r = side_array(s, dst, src, start, end);
	reason = r ? park_range(s, src, r) : ASYNCFORK_REASON_NO_MEMORY;
	s->park_ns += ktime_get_ns() - began;
	if (reason) {
		s->reason = reason;
		return false;
	}
	*ret = copy_rest(s, dst, src, r);
	return true;
}

/**
 * af_park - copy_page_range() of an armed fork
 * @dst: the child's VMA
 * @src: the parent's VMA
 * @ret: 0 or an errno, if all of the VMA was dealt with
 *
 * Context: the hook of copy_page_range(), mmap_write_lock of both mms.
 * Return: was it? Otherwise the original has to run.
 */
bool af_park(struct vm_area_struct *dst, struct vm_area_struct *src, long *ret)
{
	struct af_session *s;
	bool done = false;

	lockdep_assert_held_write(&src->vm_mm->mmap_lock);
	s = af_session_find(dst->vm_mm, AF_CHILD, false);
	if (!s)
		return false;
	if (s->forker == current && !s->bypass)
		done = park_vma(s, dst, src, ret);
	af_session_put(s);
	return done;
}
