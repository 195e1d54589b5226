/* SPDX-License-Identifier: GPL-2.0-only */
/* The only way out of the parked state */
#ifndef _AF_PULL_H
#define _AF_PULL_H

#include <linux/mm_types.h>

#include "uapi/asyncfork.h"

struct af_session;

void af_pull_range(struct af_session *s, unsigned long start,
		   unsigned long end, enum asyncfork_hook hook, bool locked);
void af_pull_abort(struct af_session *s);
void af_sync_range(struct mm_struct *mm, unsigned long start,
		   unsigned long end, enum asyncfork_hook hook, bool locked);
void af_sync_slot(struct mm_struct *mm, const pmd_t *slot);
bool af_slot_pending(struct mm_struct *mm, const pmd_t *slot);

#endif /* _AF_PULL_H */
