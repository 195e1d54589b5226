/* SPDX-License-Identifier: GPL-2.0-only */
/* Counters: of a session, of all, and the ring of recent forks */
#ifndef _AF_STATS_H
#define _AF_STATS_H

#include <linux/types.h>

#include "uapi/asyncfork.h"

struct af_session;
struct pid_namespace;

void af_stats_armed(void);
void af_stats_outcome(enum asyncfork_outcome outcome,
		      enum asyncfork_reason reason);
void af_stats_killed(void);
void af_stats_merged(void);
void af_stats_begin(struct af_session *s);
void af_stats_end(struct af_session *s);
void af_stats_parent_pull(struct af_session *s, unsigned long addr,
			  enum asyncfork_hook hook, u64 ns);
void af_stats_add(struct asyncfork_stats *st, struct af_session *s);
void af_stats_fill(struct asyncfork_stats *st);
void af_stats_recent(struct asyncfork_recent *recent);
void af_session_report(struct af_session *s, struct pid_namespace *ns,
		       struct asyncfork_report *rep);

#endif /* _AF_STATS_H */
