/* SPDX-License-Identifier: GPL-2.0-only */
/* Control groups, by their ids in the default hierarchy */
#ifndef _AF_CGROUPS_H
#define _AF_CGROUPS_H

#include <linux/cgroup.h>

struct cgroup *af_cgroup_next(struct cgroup *cgrp);
struct cgroup *af_cgroup_next_live(struct cgroup *cgrp);
u64 af_cgroup_current(void);
long af_cgroup_of_fd(int fd, u64 *id);
void af_css_put(struct cgroup_subsys_state *css);

#endif /* _AF_CGROUPS_H */
