/* SPDX-License-Identifier: GPL-2.0-only */
/* Tasks inside a hook */
#ifndef _AF_BUSY_H
#define _AF_BUSY_H

#include <linux/types.h>

void af_hook_enter(void);
void af_hook_leave(void);
bool af_hooks_busy(void);

#endif /* _AF_BUSY_H */
