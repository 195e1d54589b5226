// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device: arm a thread's next fork, enrol cgroups, report on forks
 *
 * ARM is one-shot: the fork takes it. A thread may be armed by several
 * descriptors, for forks that it makes inside fork() (atfork and signal
 * handlers): the newest ARM comes first. The armed thread's close takes back
 * the descriptor's own, and so does the last close.
 */
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/kref.h>
#include <linux/lockdep.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/user_namespace.h>

#include "active.h"
#include "cgroups.h"
#include "device.h"
#include "enroll.h"
#include "fault.h"
#include "params.h"
#include "session.h"
#include "stats.h"

/**
 * struct af_file - one open descriptor
 * @ref: the descriptor; a fork that has taken the ARM
 * @node: in the hash of armed threads, while it is the newest ARM of @task
 * @arms: ring of all ARMs of @task, from each to the one before it
 * @task: armed thread, referenced; NULL: not armed
 * @arm: what it asked for
 * @exec_id: its program: ARM does not outlive an exec
 * @lock: guards @session, @report and @parent_pid
 * @session: last session, pinned
 * @report: of a fork without a session
 * @parent_pid: its thread group, referenced; NULL: none
 */
struct af_file {
	struct kref ref;
	struct hlist_node node;
	struct list_head arms;
	struct task_struct *task;
	struct asyncfork_arm arm;
	u64 exec_id;
	/* Guards session, report and parent_pid. */
	spinlock_t lock;
	struct af_session *session;
	struct asyncfork_report report;
	struct pid *parent_pid;
};

/* What version 2 had of the structs that have grown since. */
#define VERSION_MIN	offsetofend(struct asyncfork_version, features)
#define REPORT_MIN	offsetofend(struct asyncfork_report, pulls)
#define STATS_MIN	offsetofend(struct asyncfork_stats, copy)
#define RECENT_MIN	offsetofend(struct asyncfork_recent, count)

static DEFINE_HASHTABLE(armed, 6);	/* the newest ARM of each thread */
static unsigned int nr_armed;		/* ARMs */
static DEFINE_SPINLOCK(armed_lock);	/* guards both, af_file.node to .exec_id */

static void file_free(struct kref *ref)
{
	struct af_file *f = container_of(ref, struct af_file, ref);

	if (f->session)
		af_session_unpin(f->session);
	put_pid(f->parent_pid);
	kfree(f);
}

/* The newest ARM of @task: no other is in the hash. */
static struct af_file *armed_find(struct task_struct *task)
{
	struct af_file *f;

	lockdep_assert_held(&armed_lock);
	hash_for_each_possible(armed, f, node, (unsigned long)task)
		if (f->task == task)
			return f;
	return NULL;
}

static void armed_add(struct af_file *f)
{
	struct af_file *before = armed_find(current);

	INIT_LIST_HEAD(&f->arms);
	if (before) {
		hash_del(&before->node);
		list_add_tail(&f->arms, &before->arms);
	}
	hash_add(armed, &f->node, (unsigned long)current);
	f->task = get_task_struct(current);
	f->exec_id = current->self_exec_id;
	WRITE_ONCE(nr_armed, nr_armed + 1);
	af_active_inc();
}

static void armed_del(struct af_file *f)
{
	struct af_file *before = list_next_entry(f, arms);

	lockdep_assert_held(&armed_lock);
	/* Only the newest is hashed, and leaves its place to the one before. */
	if (hash_hashed(&f->node)) {
		hash_del(&f->node);
		if (before != f)
			hash_add(armed, &before->node, (unsigned long)f->task);
	}
	list_del(&f->arms);
	put_task_struct(f->task);
	f->task = NULL;
	WRITE_ONCE(nr_armed, nr_armed - 1);
	af_active_dec();
}

/**
 * af_device_take - has the calling thread armed its next fork?
 * @ask: what it asked for, then
 *
 * Return: the descriptor of its newest ARM, disarmed and referenced, or NULL.
 */
struct af_file *af_device_take(struct af_ask *ask)
{
	struct af_file *f;

	/* An ARM of this thread is one that it has counted itself. */
	if (!READ_ONCE(nr_armed))
		return NULL;
	spin_lock(&armed_lock);
	f = armed_find(current);
	if (f) {
		armed_del(f);
		/* Of a program before this one? Then so are all older ARMs. */
		if (f->exec_id == current->self_exec_id)
			kref_get(&f->ref);
		else
			f = NULL;
	}
	if (f)
		*ask = (struct af_ask) {
			.by = ASYNCFORK_BY_ARM,
			.helpers = f->arm.helpers,
			.min_rss = f->arm.min_rss,
		};
	spin_unlock(&armed_lock);
	return f;
}

/**
 * af_device_tell - report what became of a fork to who had armed it
 * @f: what af_device_take() returned; its reference is taken
 * @s: session, its pin is taken; NULL: a stock fork
 * @stock: the report, then
 *
 * Context: the forking thread.
 */
void af_device_tell(struct af_file *f, struct af_session *s,
		    const struct asyncfork_report *stock)
{
	struct pid *pid = s ? NULL : get_task_pid(current, PIDTYPE_TGID);

	spin_lock(&f->lock);
	swap(f->session, s);
	f->report = *stock;
	swap(f->parent_pid, pid);
	spin_unlock(&f->lock);
	if (s)
		af_session_unpin(s);
	put_pid(pid);
	kref_put(&f->ref, file_free);
}

static int dev_open(struct inode *inode, struct file *file)
{
	struct af_file *f = kzalloc(sizeof(*f), GFP_KERNEL_ACCOUNT);

	if (!f)
		return -ENOMEM;
	kref_init(&f->ref);
	spin_lock_init(&f->lock);
	file->private_data = f;
	return 0;
}

/*
 * Any close; a forked child that closes its copy must not disarm the parent.
 * The thread's other descriptors keep their ARMs.
 */
static int dev_flush(struct file *file, fl_owner_t id)
{
	struct af_file *f = file->private_data;

	spin_lock(&armed_lock);
	if (f->task == current)
		armed_del(f);
	spin_unlock(&armed_lock);
	return 0;
}

/* The last close. */
static int dev_release(struct inode *inode, struct file *file)
{
	struct af_file *f = file->private_data;

	spin_lock(&armed_lock);
	if (f->task)
		armed_del(f);
	spin_unlock(&armed_lock);
	kref_put(&f->ref, file_free);
	return 0;
}

/* The size that the caller's struct begins with; @min: as it was at first */
static long get_size(const void __user *arg, size_t min, size_t *size)
{
	u64 n;

	if (get_user(n, (const u64 __user *)arg))
		return -EFAULT;
	if (n < min)
		return -EINVAL;
	if (n > PAGE_SIZE)
		return -E2BIG;
	*size = n;
	return 0;
}

/* For tests: the module is to be one of version 2. */
static bool is_version_2(void)
{
	return af_fault_abi(ASYNCFORK_ABI_VERSION) == 2;
}

/* How much of a struct the module knows; @min: as in get_size() */
static size_t known(size_t size, size_t min)
{
	return is_version_2() ? min : size;
}

/* Read the caller's struct: what we do not know must be 0. */
static long get_arg(void *to, size_t size, size_t min, const void __user *arg)
{
	size_t theirs;
	long ret = get_size(arg, min, &theirs);

	return ret ?: copy_struct_from_user(to, known(size, min), arg, theirs);
}

/* Fill @theirs bytes at @to; @from begins with its size, and has @size bytes. */
static long put(void __user *to, size_t theirs, void *from, size_t size)
{
	size_t n = min(theirs, size);

	*(u64 *)from = n;
	if (copy_to_user(to, from, n) || clear_user(to + n, theirs - n))
		return -EFAULT;
	return 0;
}

/* Fill the caller's struct: what we do not know is 0, what he does not is left out. */
static long put_arg(void __user *arg, void *from, size_t size, size_t min)
{
	size_t theirs;
	long ret = get_size(arg, min, &theirs);

	return ret ?: put(arg, theirs, from, known(size, min));
}

static unsigned int max_helpers(void)
{
	return min_t(unsigned int, READ_ONCE(af_max_helpers), AF_MAX_HELPERS);
}

static long ioctl_version(void __user *arg)
{
	struct asyncfork_version v = {
		.abi = af_fault_abi(ASYNCFORK_ABI_VERSION),
		.max_helpers = max_helpers(),
		.oldest = af_fault_oldest(ASYNCFORK_ABI_OLDEST),
	};
	size_t theirs;
	long ret = get_size(arg, VERSION_MIN, &theirs);

	if (ret)
		return ret;
	/* A caller of version 2 works with no other, and with this module. */
	if (theirs < offsetofend(typeof(v), oldest))
		v.abi = v.oldest;
	return put(arg, theirs, &v, known(sizeof(v), VERSION_MIN));
}

static long ioctl_arm(struct af_file *f, void __user *arg)
{
	struct asyncfork_arm arm;
	long ret = get_arg(&arm, sizeof(arm), offsetofend(typeof(arm), min_rss),
			   arg);

	if (ret)
		return ret;
	if (arm.flags || arm.helpers > max_helpers())
		return -EINVAL;

	spin_lock(&armed_lock);
	if (f->task) {
		ret = -EBUSY;
	} else {
		f->arm = arm;
		armed_add(f);
	}
	spin_unlock(&armed_lock);
	if (!ret)
		af_stats_armed();
	return ret;
}

static long ioctl_report(struct af_file *f, void __user *arg)
{
	struct pid_namespace *ns = task_active_pid_ns(current);
	struct asyncfork_report report;
	struct af_session *s;

	spin_lock(&f->lock);
	report = f->report;
	report.parent_pid = pid_nr_ns(f->parent_pid, ns);
	s = f->session;
	if (s)
		af_session_pin(s);
	spin_unlock(&f->lock);

	if (s) {
		af_stats_report(s, ns, &report);
		af_session_unpin(s);
	}
	return put_arg(arg, &report, sizeof(report), REPORT_MIN);
}

static long ioctl_stats(void __user *arg)
{
	struct asyncfork_stats *st = af_fault() ? NULL :
				     kzalloc(sizeof(*st), GFP_KERNEL);
	long ret;

	if (!st)
		return -ENOMEM;
	af_stats_totals(st);
	/* A session that ends right here is missing once, never twice. */
	af_session_sum(st);
	st->running = af_session_running();
	st->switched_off = !!READ_ONCE(af_off);
	st->enabled = READ_ONCE(af_enabled);
	st->enrolled = af_enroll_number();
	ret = put_arg(arg, st, sizeof(*st), STATS_MIN);
	kfree(st);
	return ret;
}

/* May the caller put entries of @size bytes into an array of his? */
static long check_entry_size(u32 size, size_t min)
{
	if (size < min)
		return -EINVAL;
	return size > PAGE_SIZE ? -E2BIG : 0;
}

static long ioctl_recent(void __user *arg)
{
	struct asyncfork_report report;
	struct asyncfork_recent recent;
	struct af_view view;
	u64 seq = U64_MAX;
	void __user *to;
	u32 n;
	long ret;

	if (is_version_2())
		recent.after_seq = 0;
	ret = get_arg(&recent, sizeof(recent), RECENT_MIN, arg);
	if (!ret)
		ret = check_entry_size(recent.entry_size, REPORT_MIN);
	if (ret)
		return ret;

	af_view_current(&view);
	to = u64_to_user_ptr(recent.entries);
	for (n = 0; n < recent.count; n++, to += recent.entry_size) {
		if (!af_stats_recent(&view, recent.after_seq, &seq, &report))
			break;
		ret = put(to, recent.entry_size, &report,
			  known(sizeof(report), REPORT_MIN));
		if (ret)
			return ret;
	}
	recent.count = n;
	return put_arg(arg, &recent, sizeof(recent), RECENT_MIN);
}

static long ioctl_enroll(void __user *arg)
{
	struct asyncfork_enroll enroll;
	u64 cgroup;
	long ret;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	ret = get_arg(&enroll, sizeof(enroll),
		      offsetofend(typeof(enroll), reserved), arg);
	if (ret)
		return ret;
	if (enroll.flags || enroll.reserved || enroll.helpers > max_helpers())
		return -EINVAL;
	ret = af_cgroup_of_fd(enroll.cgroup_fd, &cgroup);
	return ret ?: af_enroll_add(cgroup, enroll.min_rss, enroll.helpers);
}

static long ioctl_unenroll(void __user *arg)
{
	struct asyncfork_unenroll unenroll;
	long ret;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	ret = get_arg(&unenroll, sizeof(unenroll),
		      offsetofend(typeof(unenroll), flags), arg);
	if (ret)
		return ret;
	/* One of them, no more. */
	if (unenroll.flags || !unenroll.cgroup_id == (unenroll.cgroup_fd == -1))
		return -EINVAL;
	if (!unenroll.cgroup_id)
		ret = af_cgroup_of_fd(unenroll.cgroup_fd, &unenroll.cgroup_id);
	return ret ?: af_enroll_del(unenroll.cgroup_id);
}

static long ioctl_enrolled(void __user *arg)
{
	size_t min = offsetofend(struct asyncfork_entry, stock);
	struct asyncfork_enrolled enrolled;
	struct asyncfork_entry *entries;
	unsigned int i, n;
	void __user *to;
	long ret;

	ret = get_arg(&enrolled, sizeof(enrolled),
		      offsetofend(typeof(enrolled), count), arg);
	if (!ret)
		ret = check_entry_size(enrolled.entry_size, min);
	if (ret)
		return ret;

	n = min_t(u32, enrolled.count, ASYNCFORK_MAX_ENTRIES);
	entries = af_fault() ? NULL :
		  kvcalloc(n ?: 1, sizeof(*entries), GFP_KERNEL);
	if (!entries)
		return -ENOMEM;
	n = af_enroll_list(entries, n,
			   ns_capable_noaudit(&init_user_ns, CAP_SYS_ADMIN));
	to = u64_to_user_ptr(enrolled.entries);
	for (i = 0; i < n && !ret; i++, to += enrolled.entry_size)
		ret = put(to, enrolled.entry_size, &entries[i],
			  sizeof(*entries));
	kvfree(entries);

	enrolled.count = n;
	return ret ?: put_arg(arg, &enrolled, sizeof(enrolled),
			      offsetofend(typeof(enrolled), count));
}

static long dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct af_file *f = file->private_data;
	void __user *p = (void __user *)arg;

	if (is_version_2() && _IOC_NR(cmd) >= _IOC_NR(ASYNCFORK_IOC_ENROLL))
		return -ENOTTY;
	switch (cmd) {
	case ASYNCFORK_IOC_VERSION:
		return ioctl_version(p);
	case ASYNCFORK_IOC_ARM:
		return ioctl_arm(f, p);
	case ASYNCFORK_IOC_REPORT:
		return ioctl_report(f, p);
	case ASYNCFORK_IOC_STATS:
		return ioctl_stats(p);
	case ASYNCFORK_IOC_RECENT:
		return ioctl_recent(p);
	case ASYNCFORK_IOC_ENROLL:
		return ioctl_enroll(p);
	case ASYNCFORK_IOC_UNENROLL:
		return ioctl_unenroll(p);
	case ASYNCFORK_IOC_ENROLLED:
		return ioctl_enrolled(p);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations fops = {
	.owner		= THIS_MODULE,
	.open		= dev_open,
	.flush		= dev_flush,
	.release	= dev_release,
	.unlocked_ioctl	= dev_ioctl,
	/* All structs are the same. */
	.compat_ioctl	= compat_ptr_ioctl,
	.llseek		= noop_llseek,
};

/* The group is udev's to set: see the rule in packaging. */
static struct miscdevice device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "asyncfork",
	.fops	= &fops,
	.mode	= 0660,
};

int af_device_init(void)
{
	return af_fault() ? -ENOMEM : misc_register(&device);
}

void af_device_exit(void)
{
	misc_deregister(&device);
}
