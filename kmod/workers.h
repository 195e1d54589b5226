/* SPDX-License-Identifier: GPL-2.0-only */
/* Who pulls without being asked: the child, helpers, the timeout */
#ifndef _AF_WORKERS_H
#define _AF_WORKERS_H

struct af_session;
struct af_worker_fns;
struct task_struct;

extern const struct af_worker_fns af_worker_fns;

void af_workers_start(struct af_session *s, struct task_struct *child);

#endif /* _AF_WORKERS_H */
