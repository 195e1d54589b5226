/* SPDX-License-Identifier: GPL-2.0-only */
/* Module parameters, and the switch that the module throws itself */
#ifndef _AF_PARAMS_H
#define _AF_PARAMS_H

#include <linux/types.h>

#define AF_MAX_HELPERS	8

extern bool af_enabled;
extern bool af_park_partial;
extern unsigned int af_max_sessions;
extern unsigned int af_max_helpers;
extern unsigned int af_pull_after;
extern bool af_allow_untested;
extern const char *af_off;	/* why, if the module has switched itself off */

void af_switch_off(const char *why, unsigned long addr);

#endif /* _AF_PARAMS_H */
