/* SPDX-License-Identifier: GPL-2.0-only */
/* What goes into the child's PTE table */
#ifndef _AF_COPY_H
#define _AF_COPY_H

#include <linux/mm.h>

struct af_session;

int af_copy(struct af_session *s, pmd_t saved, pgtable_t table,
	    unsigned long addr);
void af_copy_init(void);

#endif /* _AF_COPY_H */
