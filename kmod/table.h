/* SPDX-License-Identifier: GPL-2.0-only */
/* PTE tables for the child */
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

bool af_reserve_fill(struct af_reserve *r);
void af_reserve_free(struct af_reserve *r, struct mm_struct *mm);
pgtable_t af_table_get(struct af_reserve *r, struct mm_struct *mm,
		       bool outsider);

#endif /* _AF_TABLE_H */
