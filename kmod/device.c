// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device: arm a thread's next fork, report on it
 *
 * ARM is one-shot: the fork takes it. A thread may be armed by several
 * descriptors, for forks that it makes inside fork() (atfork and signal
 * handlers): the newest ARM comes first. The armed thread's close takes back
 * the descriptor's own, and so does the last close.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/kref.h>
#include <linux/lockdep.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat/compat.h"
#include "session.h"

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
	u32 exec_id;
	/* Guards session, report and parent_pid. */
	spinlock_t lock;
	struct af_session *session;
	struct asyncfork_report report;
	struct pid *parent_pid;
};

static DEFINE_HASHTABLE(armed, 6);	/* the newest ARM of each thread */
static DEFINE_SPINLOCK(armed_lock);	/* guards armed, af_file.node to .exec_id */

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
	af_active_dec();
}

/* The descriptor of current's newest ARM, taken from it; referenced. */
static struct af_file *armed_take(struct asyncfork_arm *arm)
{
	struct af_file *f;

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
		*arm = f->arm;
	spin_unlock(&armed_lock);
	return f;
}

/* Threads of current that have this mm, if nobody else has: its users. */
static bool only_threads(struct mm_struct *mm)
{
	/* One's own stays. */
	struct sighand_struct *sighand =
		rcu_dereference_protected(current->sighand, true);
	struct task_struct *t;
	int users, own = 0;

	/*
	 * Users first, then the threads that are among them. One that ends
	 * meanwhile gives up its mm before it gives up its use of it, and a new
	 * one is listed under siglock: there are never too many threads.
	 */
	spin_lock_irq(&sighand->siglock);
	users = atomic_read(&mm->mm_users);
	/* Not nr_threads: a leader that has ended has no mm, but counts. */
	for_each_thread(current, t)
		own += READ_ONCE(t->mm) == mm;
	spin_unlock_irq(&sighand->siglock);
	return users <= own;
}

/*
 * Is the mm shared with another process (CLONE_VM without CLONE_THREAD)? Then
 * it could fork while this one is being dumped. Its users are often threads and
 * nothing else; somebody may also look at it through /proc.
 */
static bool mm_is_shared(struct mm_struct *mm)
{
	struct task_struct *p, *t;
	bool shared = false;

	if (only_threads(mm))
		return false;
	rcu_read_lock();
	for_each_process_thread(p, t)
		shared |= READ_ONCE(t->mm) == mm &&
			  !same_thread_group(t, current);
	rcu_read_unlock();
	return shared;
}

static enum asyncfork_reason stock_reason(struct mm_struct *mm,
					  const struct asyncfork_arm *arm)
{
	if (!READ_ONCE(af_enabled))
		return ASYNCFORK_REASON_DISABLED;
	if (READ_ONCE(af_off))
		return ASYNCFORK_REASON_SWITCHED_OFF;
	if ((u64)get_mm_rss(mm) << PAGE_SHIFT < arm->min_rss)
		return ASYNCFORK_REASON_MIN_RSS;
	if (af_mm_pinned(mm))
		return ASYNCFORK_REASON_PINNED;
	if (mm_has_notifiers(mm))
		return ASYNCFORK_REASON_NOTIFIER;
	if (mm_is_shared(mm))
		return ASYNCFORK_REASON_SHARED;
	if (af_mm_uffd_moves(mm))
		return ASYNCFORK_REASON_UFFD;
	return ASYNCFORK_REASON_NONE;
}

static struct af_session *begin(struct mm_struct *parent,
				struct mm_struct *child,
				const struct asyncfork_arm *arm,
				enum asyncfork_reason *reason)
{
	struct af_session *s;

	*reason = stock_reason(parent, arm);
	if (*reason)
		return NULL;

	s = af_session_create(parent, child, arm->helpers);
	if (IS_ERR(s)) {
		*reason = PTR_ERR(s) == -EMFILE ? ASYNCFORK_REASON_LIMIT :
						  ASYNCFORK_REASON_NO_MEMORY;
		return NULL;
	}
	return s;
}

/**
 * af_device_fork - start a session if the calling thread is armed
 * @parent: mm being forked
 * @child: mm being made
 *
 * Context: the hook of uprobe_dup_mmap(), mmap_write_lock(@parent).
 */
void af_device_fork(struct mm_struct *parent, struct mm_struct *child)
{
	struct asyncfork_report report = {};
	struct af_session *s, *old;
	struct pid *pid = NULL;
	enum asyncfork_reason reason;
	struct asyncfork_arm arm;
	struct af_file *f;

	f = armed_take(&arm);
	if (!f)
		return;

	s = begin(parent, child, &arm, &reason);
	if (!s) {
		report.outcome = ASYNCFORK_OUTCOME_STOCK;
		report.reason = reason;
		pid = get_task_pid(current, PIDTYPE_TGID);
		get_task_comm(report.comm, current);
		af_stats_outcome(ASYNCFORK_OUTCOME_STOCK, reason);
	}

	/* The pin goes to the descriptor. */
	spin_lock(&f->lock);
	old = f->session;
	f->session = s;
	f->report = report;
	swap(f->parent_pid, pid);
	spin_unlock(&f->lock);
	if (old)
		af_session_unpin(old);
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

static long ioctl_version(void __user *arg)
{
	struct asyncfork_version v = {
		.abi = ASYNCFORK_ABI_VERSION,
		.max_helpers = min_t(unsigned int, READ_ONCE(af_max_helpers),
				     AF_MAX_HELPERS),
	};

	return copy_to_user(arg, &v, sizeof(v)) ? -EFAULT : 0;
}

static long ioctl_arm(struct af_file *f, void __user *arg)
{
	struct asyncfork_arm arm;
	long ret = 0;

	if (copy_from_user(&arm, arg, sizeof(arm)))
		return -EFAULT;
	if (arm.flags || arm.helpers > AF_MAX_HELPERS ||
	    arm.helpers > READ_ONCE(af_max_helpers))
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
		af_session_report(s, ns, &report);
		af_session_unpin(s);
	}
	return copy_to_user(arg, &report, sizeof(report)) ? -EFAULT : 0;
}

static long ioctl_stats(void __user *arg)
{
	struct asyncfork_stats st = {};

	af_stats_fill(&st);
	return copy_to_user(arg, &st, sizeof(st)) ? -EFAULT : 0;
}

static long ioctl_recent(void __user *arg)
{
	struct asyncfork_recent *recent = kzalloc(sizeof(*recent), GFP_KERNEL);
	long ret;

	if (!recent)
		return -ENOMEM;
	af_stats_recent(recent);
	ret = copy_to_user(arg, recent, sizeof(*recent)) ? -EFAULT : 0;
	kfree(recent);
	return ret;
}

static long dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct af_file *f = file->private_data;
	void __user *p = (void __user *)arg;

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
