// SPDX-License-Identifier: GPL-2.0-only
/*
 * Control groups, by their ids in the default hierarchy: never used twice
 */
#include <linux/err.h>

#include "cgroups.h"

/**
 * af_cgroup_next - a cgroup of the calling thread
 * @cgrp: NULL, for its own; otherwise the one before
 *
 * Context: RCU, for all of a walk: no cgroup is freed under it, and it holds those
 * above.
 * Return: the cgroup above @cgrp; NULL above the root.
 */
struct cgroup *af_cgroup_next(struct cgroup *cgrp)
{
	return cgrp ? cgroup_parent(cgrp) : task_dfl_cgroup(current);
}

/**
 * af_cgroup_next_live - a cgroup that is not gone
 * @cgrp: NULL, for the first; otherwise the one before
 *
 * Context: RCU, for all of a walk. It misses none that was there when it began and
 * is when it ends.
 * Return: the next one of the default hierarchy; NULL after the last.
 */
struct cgroup *af_cgroup_next_live(struct cgroup *cgrp)
{
	struct cgroup_subsys_state *css = cgrp ? &cgrp->self : NULL;

	do
		css = css_next_descendant_pre(css, &cgrp_dfl_root.cgrp.self);
	while (css && !(READ_ONCE(css->flags) & CSS_ONLINE));
	return css ? container_of(css, struct cgroup, self) : NULL;
}

/* The cgroup of the calling thread. */
u64 af_cgroup_current(void)
{
	u64 id;

	rcu_read_lock();
	id = cgroup_id(af_cgroup_next(NULL));
	rcu_read_unlock();
	return id;
}

/**
 * af_cgroup_of_fd - whose directory is it?
 * @fd: descriptor of the caller's
 * @id: its id
 *
 * Return: 0; -EBADF: of no cgroup in the default hierarchy; -ENOENT: of one that is
 * gone; -EINVAL: of the root.
 */
long af_cgroup_of_fd(int fd, u64 *id)
{
	struct cgroup *cgrp = cgroup_get_from_fd(fd);
	bool root;

	if (IS_ERR(cgrp))
		return PTR_ERR(cgrp);
	*id = cgroup_id(cgrp);
	root = !cgroup_parent(cgrp);
	af_css_put(&cgrp->self);
	return root ? -EINVAL : 0;
}

/*
 * A function of its own: the one that calls through a pointer, percpu_ref's. The
 * kernel registered what that points to.
 */
noinline void af_css_put(struct cgroup_subsys_state *css)
{
	css_put(css);
}
