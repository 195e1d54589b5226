/* SPDX-License-Identifier: GPL-2.0-only */
/* Counters: of a session, of all, and the ring of recent forks */
#ifndef _AF_STATS_H
#define _AF_STATS_H

#include <linux/types.h>

#include "uapi/asyncfork.h"

#define AF_RECENT	32	/* forks in the ring */

struct af_session;
struct pid_namespace;

u64 af_current_cgroup(void);
void af_stats_armed(void);
void af_stats_stock(enum asyncfork_reason reason, struct asyncfork_report *rep);
void af_stats_killed(void);
void af_stats_merged(void);
void af_stats_begin(struct af_session *s);
void af_stats_end(struct af_session *s);
void af_stats_parent_pull(struct af_session *s, unsigned long addr,
			  enum asyncfork_hook hook, u64 ns);
void af_stats_add(struct asyncfork_stats *st, struct af_session *s);
void af_stats_totals(struct asyncfork_stats *st);
unsigned int af_stats_recent(struct asyncfork_report *entries,
			     unsigned int max);
void af_stats_report(struct af_session *s, struct pid_namespace *ns,
		     struct asyncfork_report *rep);

#endif /* _AF_STATS_H */
