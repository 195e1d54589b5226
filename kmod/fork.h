/* SPDX-License-Identifier: GPL-2.0-only */
/* What a fork does to its session: begin, succeed, fail */
#ifndef _AF_FORK_H
#define _AF_FORK_H

struct af_session;
struct mm_struct;
struct task_struct;

void af_fork_begin(struct mm_struct *parent, struct mm_struct *child);
void af_fork_done(struct af_session *s, struct task_struct *child);
void af_fork_failed(struct af_session *s);

#endif /* _AF_FORK_H */
