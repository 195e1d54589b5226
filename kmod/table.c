// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page tables: the way to a PMD entry, and PTE tables for the child, from the
 * system or from the session's reserve
 */
#include <linux/memcontrol.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>

#include "cgroups.h"
#include "compat/compat.h"
#include "fault.h"
#include "symbols.h"
#include "table.h"

/**
 * af_pmd_slot - the PMD entry for @addr
 * @mm: parent or child
 * @addr: user address
 *
 * The upper tables stay: park made or saw them, and they are freed only after
 * unmap_vmas() or exit_mmap(), which pull first. What a VMA that is being forked
 * has in its PMD table is stable: mmap_lock is held, and from 6.4 on the VMA's
 * lock. VMAs that the fork has not reached are not locked yet: a fault in one may
 * add a PMD table that it shares with this VMA.
 *
 * Return: the entry, NULL where there is no PMD table.
 */
pmd_t *af_pmd_slot(struct mm_struct *mm, unsigned long addr)
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

/**
 * af_pmd_make - see to it that there is a PMD table for @addr
 * @mm: the child
 * @addr: user address
 *
 * Context: the forking thread; may sleep.
 * Return: false: no memory.
 */
bool af_pmd_make(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd) && af_call(__p4d_alloc)(mm, pgd, addr))
		return false;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d) && af_call(__pud_alloc)(mm, p4d, addr))
		return false;
	pud = pud_offset(p4d, addr);
	return !pud_none(*pud) || !af_call(__pmd_alloc)(mm, pud, addr);
}

/**
 * af_reserve_fill - prepare for pulls without memory
 * @r: reserve, zeroed
 *
 * Context: the forking thread; may sleep.
 * Return: false: not even the first one.
 */
bool af_reserve_fill(struct af_reserve *r)
{
	unsigned int i;

	spin_lock_init(&r->lock);
	for (i = 0; i < AF_RESERVE && !af_fault(); i++)
		r->table[i] = af_pte_alloc(current->mm, AF_GFP_PTE);
	return r->table[0];
}

/**
 * af_reserve_free - give back what was not used
 * @r: reserve
 * @mm: the child
 */
void af_reserve_free(struct af_reserve *r, struct mm_struct *mm)
{
	unsigned int i;

	for (i = 0; i < AF_RESERVE; i++)
		if (r->table[i])
			af_pte_free(mm, r->table[i]);
}

static pgtable_t reserve_take(struct af_reserve *r)
{
	pgtable_t table = NULL;
	unsigned int i;

	spin_lock(&r->lock);
	for (i = 0; i < AF_RESERVE && !table && !af_fault(); i++)
		swap(table, r->table[i]);
	spin_unlock(&r->lock);
	return table;
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

/**
 * af_table_get - a PTE table for the child
 * @r: the session's reserve
 * @mm: the child
 * @outsider: the caller is neither parent nor child: charge the child's memcg
 *
 * Context: may sleep, and reclaim if the caller may.
 * Return: the table, or NULL: no memory, and nothing left in the reserve.
 */
pgtable_t af_table_get(struct af_reserve *r, struct mm_struct *mm,
		       bool outsider)
{
	struct mem_cgroup *memcg = NULL, *old;
	pgtable_t table = NULL;

	if (outsider) {
		memcg = get_mem_cgroup_from_mm(mm);
		old = set_active_memcg(memcg);
	}
	if (!af_fault())
		table = table_alloc(mm);
	if (memcg) {
		set_active_memcg(old);
		af_css_put(&memcg->css);
	}
	return table ?: reserve_take(r);
}
