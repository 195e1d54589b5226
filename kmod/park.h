/* SPDX-License-Identifier: GPL-2.0-only */
/* Take PTE tables out of the parent's page table during the fork */
#ifndef _AF_PARK_H
#define _AF_PARK_H

#include <linux/mm_types.h>

bool af_park(struct vm_area_struct *dst, struct vm_area_struct *src, long *ret);

#endif /* _AF_PARK_H */
