/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Structs that the kernel keeps to itself, up to the last member that is used;
 * expected.c has those members checked.
 */
#ifndef _AF_PRIVATE_H
#define _AF_PRIVATE_H

#include <linux/atomic.h>
#include <linux/mm_types.h>
#include <linux/refcount.h>
#include <linux/seqlock.h>
#include <linux/userfaultfd_k.h>
#include <linux/wait.h>

#include "compat/features.h"

#if AF_HAS_UNMAP_DESC
/* mm/vma.h */
struct unmap_desc {
	struct ma_state *mas;
	struct vm_area_struct *first;
	unsigned long pg_start, pg_end;
	unsigned long vma_start, vma_end;
};
#endif

#if AF_HAS_MOVE_CONTROL
/* mm/internal.h */
struct pagetable_move_control {
	struct vm_area_struct *old, *new;
	unsigned long old_addr, old_end, new_addr;
};
#endif

#if !AF_HAS_UFFD_CTX
/* fs/userfaultfd.c; we read ->mm only. */
struct userfaultfd_ctx {
	wait_queue_head_t wqh[4];
	seqcount_spinlock_t refile_seq;
	refcount_t refcount;
	unsigned int flags;
	unsigned int features;
	bool released;
	atomic_t mmap_changing;
	struct mm_struct *mm;
};
#endif

#endif /* _AF_PRIVATE_H */
