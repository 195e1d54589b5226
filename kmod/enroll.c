// SPDX-License-Identifier: GPL-2.0-only
/*
 * Forks that nobody has armed: of processes in enrolled cgroups, or by policy of
 * all large ones
 *
 * An entry is the id of a cgroup and refers to nothing: neither to the cgroup nor
 * to the module. One of a cgroup that is gone is never found again. Forks look the
 * table up under RCU, from hooks and sessions, as do ioctls; none of them is left
 * when the module goes.
 */
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "active.h"
#include "cgroups.h"
#include "compat/compat.h"
#include "enroll.h"
#include "fault.h"
#include "params.h"
#include "session.h"

/**
 * struct entry - an enrolled cgroup
 * @node: in the table
 * @cgroup: its id
 * @min_rss: smaller processes use a stock fork
 * @helpers: threads that help the child copy
 * @async: forks counted
 * @stock: forks counted
 * @live: its cgroup is there; of sweep()
 * @rcu: its end
 *
 * A fork may see the new one of @min_rss and @helpers with the old one of the other.
 */
struct entry {
	struct hlist_node node;
	u64 cgroup;
	u64 min_rss;
	unsigned int helpers;
	atomic64_t async, stock;
	bool live;
	struct rcu_head rcu;
};

#define HASH_BITS	9

static struct hlist_head table[1 << HASH_BITS];
static unsigned int entries;
static DEFINE_MUTEX(enroll_mutex);	/* guards all here, for writers */

/* Who may be served without an ARM. */
enum policy { ARMED, ENROLLED, ALL };

static const char *const policy_names[] = {
	[ARMED]		= "armed",
	[ENROLLED]	= "enrolled",
	[ALL]		= "all",
};

static enum policy policy = ENROLLED;
static enum policy in_force;		/* ARMED while not all hooks are attached */
static bool attached;

static unsigned long long policy_min_rss = SZ_1G;
module_param(policy_min_rss, ullong, 0644);
MODULE_PARM_DESC(policy_min_rss, "policy=all: smaller processes use a stock fork (bytes)");

/* After any change of what it looks at. */
static void update(void)
{
	lockdep_assert_held(&enroll_mutex);
	WRITE_ONCE(in_force, attached ? policy : ARMED);
	af_active_set_unarmed(in_force == ALL ||
			      (in_force == ENROLLED && entries));
}

/* At load before everything else, and until the module's last code is gone. */
static int policy_set(const char *val, const struct kernel_param *kp)
{
	int ret = sysfs_match_string(policy_names, val);

	if (ret < 0)
		return ret;
	mutex_lock(&enroll_mutex);
	policy = ret;
	update();
	mutex_unlock(&enroll_mutex);
	return 0;
}

static int policy_get(char *buffer, const struct kernel_param *kp)
{
	return scnprintf(buffer, PAGE_SIZE, "%s\n",
			 policy_names[READ_ONCE(policy)]);
}

static const struct kernel_param_ops policy_ops = {
	.set	= policy_set,
	.get	= policy_get,
};

module_param_cb(policy, &policy_ops, NULL, 0644);
MODULE_PARM_DESC(policy, "whose forks may be asynchronous: armed (threads that ask), enrolled (also cgroups), all (also all large processes)");

static struct hlist_head *bucket(u64 cgroup)
{
	return &table[hash_64(cgroup, HASH_BITS)];
}

/* Under RCU or enroll_mutex. */
static struct entry *find(u64 cgroup)
{
	struct entry *e;

	hlist_for_each_entry_rcu(e, bucket(cgroup), node,
				 lockdep_is_held(&enroll_mutex))
		if (e->cgroup == cgroup)
			return e;
	return NULL;
}

/* That of the nearest cgroup of the calling thread. Under RCU. */
static struct entry *find_nearest(void)
{
	struct cgroup *cgrp = NULL;
	struct entry *e = NULL;

	while (!e && (cgrp = af_cgroup_next(cgrp)))
		e = find(cgroup_id(cgrp));
	return e;
}

static bool ask_entry(struct af_ask *ask)
{
	struct entry *e = NULL;

	if (!READ_ONCE(entries))
		return false;
	rcu_read_lock();
	e = find_nearest();
	if (e)
		*ask = (struct af_ask) {
			.by = ASYNCFORK_BY_ENROLLED,
			.entry = e->cgroup,
			.min_rss = READ_ONCE(e->min_rss),
			/* The parameter may have been changed since. */
			.helpers = min3(READ_ONCE(e->helpers),
					READ_ONCE(af_max_helpers),
					(unsigned int)AF_MAX_HELPERS),
		};
	rcu_read_unlock();
	return e;
}

/**
 * af_enroll_ask - may a fork be asynchronous that nobody has armed?
 * @mm: current's
 * @ask: what is asked for, then
 *
 * An entry comes before the policy: it is about fewer processes.
 */
bool af_enroll_ask(struct mm_struct *mm, struct af_ask *ask)
{
	enum policy p = READ_ONCE(in_force);

	/* A kernel thread has at most borrowed an mm. */
	if (p == ARMED || current->flags & PF_KTHREAD)
		return false;
	if (ask_entry(ask))
		return true;
	if (p != ALL || af_mm_rss(mm) < READ_ONCE(policy_min_rss))
		return false;
	*ask = (struct af_ask) { .by = ASYNCFORK_BY_POLICY };
	return true;
}

/* Nobody renames in the kernel's own mount, where memfds are. */
static bool is_mark(const struct vm_area_struct *vma)
{
	static const char name[] = "memfd:" ASYNCFORK_MARK;
	const struct dentry *dentry;

	if (!vma->vm_file || vma->vm_flags & VM_SHARED ||
	    vma->vm_end - vma->vm_start != PAGE_SIZE)
		return false;
	dentry = vma->vm_file->f_path.dentry;
	return dentry->d_sb->s_magic == TMPFS_MAGIC &&
	       dentry->d_sb->s_flags & SB_KERNMOUNT &&
	       dentry->d_name.len == sizeof(name) - 1 &&
	       !memcmp(dentry->d_name.name, name, sizeof(name) - 1);
}

/**
 * af_enroll_marked - has the process said that it must be armed?
 * @mm: current's
 *
 * Context: mmap_write_lock(@mm).
 */
bool af_enroll_marked(struct mm_struct *mm)
{
	struct vm_area_struct *vma;
	struct vma_iterator vmi;

	vma_iter_init(&vmi, mm, 0);
	for_each_vma(vmi, vma) {
		if (is_mark(vma))
			return true;
		cond_resched();
	}
	return false;
}

/**
 * af_enroll_count - a fork that an entry was asked about
 * @cgroup: the entry, which may be gone
 * @async: or stock
 *
 * Context: any.
 */
void af_enroll_count(u64 cgroup, bool async)
{
	struct entry *e;

	rcu_read_lock();
	e = find(cgroup);
	if (e)
		atomic64_inc(async ? &e->async : &e->stock);
	rcu_read_unlock();
}

static void entry_del(struct entry *e)
{
	lockdep_assert_held(&enroll_mutex);
	hlist_del_rcu(&e->node);
	/* Forks may still look at it. It needs no code of the module's to go. */
	kfree_rcu(e, rcu);
	WRITE_ONCE(entries, entries - 1);
}

/*
 * Away with the entries of cgroups that are gone. The restarts of a service that
 * enrols itself must not use the table up.
 */
static void sweep(void)
{
	struct cgroup *cgrp = NULL;
	struct hlist_node *next;
	struct entry *e;
	unsigned int i;

	lockdep_assert_held(&enroll_mutex);
	for (i = 0; i < ARRAY_SIZE(table); i++)
		hlist_for_each_entry(e, &table[i], node)
			e->live = false;
	rcu_read_lock();
	while ((cgrp = af_cgroup_next_live(cgrp))) {
		e = find(cgroup_id(cgrp));
		if (e)
			e->live = true;
	}
	rcu_read_unlock();
	for (i = 0; i < ARRAY_SIZE(table); i++)
		hlist_for_each_entry_safe(e, next, &table[i], node)
			if (!e->live)
				entry_del(e);
}

static struct entry *entry_new(u64 cgroup)
{
	struct entry *e;

	lockdep_assert_held(&enroll_mutex);
	if (entries >= ASYNCFORK_MAX_ENTRIES)
		sweep();
	if (entries >= ASYNCFORK_MAX_ENTRIES)
		return ERR_PTR(-ENOSPC);
	e = af_fault() ? NULL : kzalloc(sizeof(*e), GFP_KERNEL);
	if (!e)
		return ERR_PTR(-ENOMEM);
	e->cgroup = cgroup;
	return e;
}

/**
 * af_enroll_add - a new entry, or new values of one
 * @cgroup: id of the cgroup
 * @min_rss: smaller processes use a stock fork
 * @helpers: threads that help the child copy
 *
 * Context: an ioctl: its descriptor holds the module.
 * Return: 0, -ENOSPC or -ENOMEM.
 */
long af_enroll_add(u64 cgroup, u64 min_rss, unsigned int helpers)
{
	struct entry *old, *e;
	long ret = 0;

	mutex_lock(&enroll_mutex);
	old = find(cgroup);
	e = old ?: entry_new(cgroup);
	if (IS_ERR(e)) {
		ret = PTR_ERR(e);
		goto update;
	}
	WRITE_ONCE(e->min_rss, min_rss);
	WRITE_ONCE(e->helpers, helpers);
	if (!old) {
		/* With its values; pairs with the look-ups. */
		hlist_add_head_rcu(&e->node, bucket(cgroup));
		WRITE_ONCE(entries, entries + 1);
	}
update:
	update();
	mutex_unlock(&enroll_mutex);
	return ret;
}

/**
 * af_enroll_del - take an entry away
 * @cgroup: id of the cgroup
 *
 * Forks that have looked it up already go on.
 *
 * Return: 0, or -ENOENT if there is none.
 */
long af_enroll_del(u64 cgroup)
{
	struct entry *e;

	mutex_lock(&enroll_mutex);
	e = find(cgroup);
	if (e) {
		entry_del(e);
		update();
	}
	mutex_unlock(&enroll_mutex);
	return e ? 0 : -ENOENT;
}

static void entry_tell(const struct entry *e, struct asyncfork_entry *to)
{
	to->cgroup_id = e->cgroup;
	to->min_rss = READ_ONCE(e->min_rss);
	to->helpers = READ_ONCE(e->helpers);
	to->async = atomic64_read(&e->async);
	to->stock = atomic64_read(&e->stock);
}

static unsigned int list_all(struct asyncfork_entry *to, unsigned int max)
{
	unsigned int i, n = 0;
	struct entry *e;

	for (i = 0; i < ARRAY_SIZE(table); i++)
		hlist_for_each_entry_rcu(e, &table[i], node)
			if (n < max)
				entry_tell(e, &to[n++]);
	return n;
}

static unsigned int list_own(struct asyncfork_entry *to, unsigned int max)
{
	struct cgroup *cgrp = NULL;
	unsigned int n = 0;
	struct entry *e;

	while (n < max && (cgrp = af_cgroup_next(cgrp))) {
		e = find(cgroup_id(cgrp));
		if (e)
			entry_tell(e, &to[n++]);
	}
	return n;
}

/**
 * af_enroll_list - the entries
 * @to: filled in; zeroed
 * @max: how many there is room for
 * @all: not only those of the calling thread's cgroups
 *
 * Return: how many were filled in.
 */
unsigned int af_enroll_list(struct asyncfork_entry *to, unsigned int max,
			    bool all)
{
	unsigned int n;

	rcu_read_lock();
	n = all ? list_all(to, max) : list_own(to, max);
	rcu_read_unlock();
	return n;
}

unsigned int af_enroll_number(void)
{
	return READ_ONCE(entries);
}

/**
 * af_enroll_start - from now on forks may be served that nobody has armed
 *
 * Not before all hooks are attached and nothing can fail any more: a session
 * holds the module, but does not keep a load from being given up.
 */
void af_enroll_start(void)
{
	mutex_lock(&enroll_mutex);
	attached = true;
	update();
	mutex_unlock(&enroll_mutex);
}

/*
 * The module goes: no session is left, and none can begin (af_session_create()).
 * No ioctl is either; the parameters are still there.
 */
void af_enroll_stop(void)
{
	struct hlist_node *next;
	struct entry *e;
	unsigned int i;

	mutex_lock(&enroll_mutex);
	attached = false;
	for (i = 0; i < ARRAY_SIZE(table); i++)
		hlist_for_each_entry_safe(e, next, &table[i], node)
			entry_del(e);
	update();
	mutex_unlock(&enroll_mutex);
}
