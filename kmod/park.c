// SPDX-License-Identifier: GPL-2.0-only
/*
 * Take PTE tables out of the parent's page table during the fork
 *
 * Runs in place of copy_page_range(), under mmap_write_lock of the parent. A
 * parked chunk costs one load and two stores; neither its PTEs nor any struct
 * page is touched. What cannot be parked goes to the original function.
 */
#include <linux/bits.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/rmap.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>

#include "compat/compat.h"
#include "session.h"
#include "symbols.h"

#define VM_INELIGIBLE							\
	(VM_SHARED | VM_HUGETLB | VM_PFNMAP | VM_MIXEDMAP | VM_IO |	\
	 VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR | VM_MERGEABLE |	\
	 VM_WIPEONFORK | VM_DONTCOPY | VM_GROWSDOWN |			\
	 AF_VM_INELIGIBLE_COMPAT)

#define MAX_BLOCKS	(BIT(47) >> PUD_SHIFT)

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

/*
 * The PMD table for @addr, NULL where there is none. It never goes away, and what
 * the VMA has in it is stable: mmap_lock is held, and from 6.4 on the VMA's lock.
 * But that of a VMA that fork has not come to is not, so a fault there may bring
 * a table where there was none for the VMA before.
 */
static pmd_t *pmd_table(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	pud = pud_offset(p4d, addr);
	if (pud_none(*pud) || pud_bad(*pud))
		return NULL;
	return pmd_offset(pud, addr);
}

/* A pull allocates no upper tables: the child gets them now. */
static bool child_tables(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd) && static_call(af_p4d_alloc)(mm, pgd, addr))
		return false;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d) && static_call(af_pud_alloc)(mm, p4d, addr))
		return false;
	pud = pud_offset(p4d, addr);
	return !pud_none(*pud) || !static_call(af_pmd_alloc)(mm, pud, addr);
}

static void range_free(struct af_range *r)
{
	unsigned long b;

	for (b = 0; b < r->nr_blocks; b++)
		kfree(r->block[b].word);
	kvfree(r);
}

void af_ranges_free(struct af_session *s)
{
	/* Last reference: nobody adds, nobody looks. */
	struct af_ranges *rs = rcu_dereference_protected(s->ranges, true);
	unsigned long i;

	for (i = 0; rs && i < rs->nr; i++)
		range_free(rs->range[i]);
	kvfree(rs);
}

/* Side array with a word for each chunk under an existing PMD table. */
static struct af_range *range_alloc(struct af_session *s,
				    struct vm_area_struct *dst,
				    struct vm_area_struct *src,
				    unsigned long start, unsigned long end)
{
	unsigned long nr = ((end - 1) >> PUD_SHIFT) - (start >> PUD_SHIFT) + 1;
	unsigned long addr, next, n;
	struct af_block *block;
	struct af_range *r;

	/* More than 128 TiB: not worth a directory of that size. */
	if (nr > MAX_BLOCKS || af_fault())
		return NULL;
	r = kvzalloc(struct_size(r, block, nr), GFP_KERNEL_ACCOUNT);
	if (!r)
		return NULL;
	s->meta_bytes += struct_size(r, block, nr);
	r->start = start;
	r->end = end;
	r->vm_start = src->vm_start;
	r->vm_end = src->vm_end;
	r->nr_blocks = nr;

	for (addr = start; addr < end; addr = next) {
		next = af_next_pud(addr, end);
		cond_resched();
		block = &r->block[(addr >> PUD_SHIFT) - (start >> PUD_SHIFT)];
		block->slot = pmd_table(src->vm_mm, addr);
		if (!block->slot)
			continue;
		n = (next - addr) >> PMD_SHIFT;
		block->word = kcalloc(n, sizeof(unsigned long),
				      GFP_KERNEL_ACCOUNT);
		if (!block->word || af_fault() ||
		    !child_tables(dst->vm_mm, addr))
			goto free;
		s->meta_bytes += n * sizeof(unsigned long);
	}
	return r;

free:
	range_free(r);
	return NULL;
}

/* Only the forking thread adds; others read under RCU. */
static bool range_add(struct af_session *s, struct af_range *r)
{
	struct af_ranges *old, *rs;
	unsigned long max;

	old = rcu_dereference_protected(s->ranges, s->forker == current);
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
		s->meta_bytes += (max - rs->nr) * sizeof(rs->range[0]);
	}
	if (rs->nr) {
		struct af_range *last = rs->range[rs->nr - 1];

		r->first = last->first + ((last->end - last->start) >> PMD_SHIFT);
	}
	rs->range[rs->nr] = r;
	/* Release: a reader that sees the number sees the range. */
	smp_store_release(&rs->nr, rs->nr + 1);
	if (rs != old) {
		rcu_assign_pointer(s->ranges, rs);
		if (old)
			kvfree_rcu(old, rcu);
	}
	return true;
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
		pmd = pmd_table(mm, addr);
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
	unsigned long n, max = (r->end - r->start) >> PMD_SHIFT;

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
	unsigned long pgoff = (start - src->vm_start) >> PAGE_SHIFT;
	struct vm_area_struct part_dst, part_src;
	long ret;

	memcpy(&part_dst, dst, sizeof(*dst));
	memcpy(&part_src, src, sizeof(*src));
	part_dst.vm_start = start;
	part_src.vm_start = start;
	part_dst.vm_end = end;
	part_src.vm_end = end;
	part_dst.vm_pgoff += pgoff;
	part_src.vm_pgoff += pgoff;

	s->bypass = true;
	ret = static_call(af_copy_page_range)(&part_dst, &part_src);
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
		word = af_range_word(r, addr);
		next = word ? addr + PMD_SIZE : af_next_pud(addr, r->end);
		if (!word || !(addr & ~PUD_MASK))
			cond_resched();
		if (word && READ_ONCE(*word) == AF_WORD_NONE) {
			pmd = pmd_table(src->vm_mm, addr);
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

static struct af_verdict park_vma(struct af_session *s,
				  struct vm_area_struct *dst,
				  struct vm_area_struct *src)
{
	struct af_verdict original = { .skip = 0 };
	struct af_verdict done = { .skip = 1 };
	enum asyncfork_reason reason;
	unsigned long start, end;
	struct af_range *r;
	u64 began;

	if (READ_ONCE(af_off) || !vma_eligible(dst, src) ||
	    !chunk_bounds(src, &start, &end))
		return original;

	began = ktime_get_ns();
	r = range_alloc(s, dst, src, start, end);
	if (r && !range_add(s, r)) {
		range_free(r);
		r = NULL;
	}
	reason = r ? park_range(s, src, r) : ASYNCFORK_REASON_NO_MEMORY;
	s->park_ns += ktime_get_ns() - began;
	if (reason) {
		s->reason = reason;
		return original;
	}
	done.ret = copy_rest(s, dst, src, r);
	return done;
}

/**
 * af_park - copy_page_range() of an armed fork
 * @dst: the child's VMA
 * @src: the parent's VMA
 *
 * Context: the hook of copy_page_range(), mmap_write_lock of both mms.
 * Return: skip and the errno if all of the VMA was dealt with, else no skip.
 */
struct af_verdict af_park(struct vm_area_struct *dst,
			  struct vm_area_struct *src)
{
	struct af_verdict v = { .skip = 0 };
	struct af_session *s;

	lockdep_assert_held_write(&src->vm_mm->mmap_lock);
	s = af_session_find(dst->vm_mm, AF_CHILD, false);
	if (!s)
		return v;
	if (s->forker == current && !s->bypass)
		v = park_vma(s, dst, src);
	af_session_put(s);
	return v;
}
