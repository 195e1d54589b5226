/* SPDX-License-Identifier: GPL-2.0-only */
/* Forks that nobody has armed: enrolled cgroups, and the policy */
#ifndef _AF_ENROLL_H
#define _AF_ENROLL_H

#include <linux/types.h>

struct af_ask;
struct asyncfork_entry;
struct mm_struct;

bool af_enroll_ask(struct mm_struct *mm, struct af_ask *ask);
bool af_enroll_marked(struct mm_struct *mm);
void af_enroll_count(u64 cgroup, bool async);
long af_enroll_add(u64 cgroup, u64 min_rss, unsigned int helpers);
long af_enroll_del(u64 cgroup);
unsigned int af_enroll_list(struct asyncfork_entry *to, unsigned int max,
			    bool all);
unsigned int af_enroll_number(void);
void af_enroll_start(void);
void af_enroll_stop(void);

#endif /* _AF_ENROLL_H */
