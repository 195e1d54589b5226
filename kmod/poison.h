/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory failures */
#ifndef _AF_POISON_H
#define _AF_POISON_H

#include <linux/types.h>

bool af_poison_under_way(void);

#endif /* _AF_POISON_H */
