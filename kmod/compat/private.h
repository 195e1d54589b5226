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
#include <linux/version.h>
#include <linux/wait.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
/* mm/vma.h, mm/internal.h */
struct unmap_desc {
	struct ma_state *mas;
	struct vm_area_struct *first;
	unsigned long pg_start, pg_end;
	unsigned long vma_start, vma_end;
};

struct pagetable_move_control {
	struct vm_area_struct *old, *new;
	unsigned long old_addr, old_end, new_addr;
};
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
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
