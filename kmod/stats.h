/* SPDX-License-Identifier: GPL-2.0-only */
/* Counters: of a session, of all, and the ring of recent forks */
#ifndef _AF_STATS_H
#define _AF_STATS_H

#include <linux/types.h>

#include "uapi/asyncfork.h"

#define AF_RECENT	256	/* forks in the ring */

struct af_ask;
struct af_session;
struct pid_namespace;

/**
 * struct af_view - what a caller may see of the ring
 * @all: everything, as the initial pid namespace has it
 * @level: otherwise what its pid namespace, of this level,
 * @ns: with this number,
 * @since: has seen since it was made
 */
struct af_view {
	bool all;
	unsigned int level;
	unsigned int ns;
	u64 since;
};

void af_stats_armed(void);
void af_stats_small(const struct af_ask *ask);
void af_stats_stock(enum asyncfork_reason reason, const struct af_ask *ask,
		    struct asyncfork_report *rep);
void af_stats_killed(void);
void af_stats_merged(void);
void af_stats_begin(struct af_session *s);
void af_stats_end(struct af_session *s);
void af_stats_parent_pull(struct af_session *s, unsigned long addr,
			  enum asyncfork_hook hook, u64 ns);
void af_stats_add(struct asyncfork_stats *st, struct af_session *s);
void af_stats_totals(struct asyncfork_stats *st);
void af_view_current(struct af_view *v);
bool af_stats_recent(const struct af_view *v, u64 after, u64 *seq,
		     struct asyncfork_report *rep);
void af_stats_report(struct af_session *s, struct pid_namespace *ns,
		     struct asyncfork_report *rep);

#endif /* _AF_STATS_H */
