/* SPDX-License-Identifier: GPL-2.0-only */
/* Page tables */
#ifndef _AF_TABLE_H
#define _AF_TABLE_H

#include <linux/mm.h>
#include <linux/spinlock.h>

#define AF_RESERVE	2

/**
 * struct af_reserve - tables kept for a pull without memory
 * @lock: guards @table
 * @table: NULL: used up
 */
struct af_reserve {
	/* Guards table. */
	spinlock_t lock;
	pgtable_t table[AF_RESERVE];
};

/* A PMD entry that points to a PTE table; one that maps a page is bad. */
static inline bool af_pmd_is_table(pmd_t pmd)
{
	return pmd_present(pmd) && !pmd_bad(pmd);
}

/* The entry that pmd_populate() would make. */
static inline pmd_t af_table_entry(pgtable_t table)
{
	return __pmd(((pmdval_t)page_to_pfn(table) << PAGE_SHIFT) |
		     _PAGE_TABLE);
}

pmd_t *af_pmd_slot(struct mm_struct *mm, unsigned long addr);
bool af_pmd_make(struct mm_struct *mm, unsigned long addr);
bool af_reserve_fill(struct af_reserve *r);
void af_reserve_free(struct af_reserve *r, struct mm_struct *mm);
pgtable_t af_table_get(struct af_reserve *r, struct mm_struct *mm,
		       bool outsider);

#endif /* _AF_TABLE_H */
