// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * fake_module.c - run a program that sees an asyncfork module
 *
 * Answers the device's ioctls, on any descriptor, through seccomp's user
 * notification, and writes down each of them and each fork. So the library's
 * armed path is tested without the module: what it asks, in which order, and
 * what it makes of the answers. Nothing here copies memory.
 *
 * usage: fake_module [name=value]... program [argument]...
 *   calls=FILE        where to write the calls, one a line: "TID what"
 *   preload=FILE      LD_PRELOAD of the program
 *   root=DIR          its root directory
 *   abi=N             its structs are as large as in that version: before 3 as in
 *                     2, after 3 larger than ours
 *   oldest=N          whose callers it serves; 0: before version 3 it did not say
 *   max_helpers=N outcome=N reason=N cpus=N enabled=N switched_off=N
 *   child_pid=N       the child as reported; 0: not to be seen
 *   version_errno=N arm_errno=N report_errno=N
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "asyncfork.h"
#include "check.h"

#define SESSION_ID 7

static struct settings {
	int abi, oldest, max_helpers, outcome, reason, cpus, enabled, switched_off;
	int child_pid;
	int version_errno, arm_errno, report_errno;
	const char *calls, *preload, *root;
} set = {
	.abi = ASYNCFORK_ABI_VERSION,
	.oldest = ASYNCFORK_ABI_OLDEST,
	.max_helpers = 4,
	.outcome = ASYNCFORK_OUTCOME_ASYNC,
	.cpus = 2,
	.enabled = 1,
};

static FILE *calls;
static pid_t armed[64];		/* threads, the last to be armed last */
static size_t armed_count;
static int consumed;		/* a fork used an ARM */

static void arm_thread(pid_t tid)
{
	CHECK(armed_count < sizeof(armed) / sizeof(*armed));
	armed[armed_count++] = tid;
}

/* Takes the thread's last ARM, if it has one. */
static int take_arm(pid_t tid)
{
	for (size_t i = armed_count; i > 0; i--) {
		if (armed[i - 1] != tid)
			continue;
		memmove(&armed[i - 1], &armed[i],
			(armed_count - i) * sizeof(*armed));
		armed_count--;
		return 1;
	}
	return 0;
}

#define END_OF(type, member) \
	(offsetof(struct type, member) + sizeof(((struct type *)0)->member))
/* What version 2 had of them. */
#define VERSION_2 END_OF(asyncfork_version, features)
#define REPORT_2 END_OF(asyncfork_report, pulls)
#define STATS_2 END_OF(asyncfork_stats, copy)

#define LARGEST 4096

/* The asker's struct begins with its size; @min: that in version 2. */
static int get_size(const struct seccomp_notif *req, size_t min, size_t *size)
{
	uint64_t theirs;
	struct iovec to = { &theirs, sizeof(theirs) };
	struct iovec from = { (void *)(uintptr_t)req->data.args[2],
			      sizeof(theirs) };

	if (process_vm_readv(req->pid, &to, 1, &from, 1, 0) != sizeof(theirs))
		return EFAULT;
	*size = theirs;
	return theirs < min ? EINVAL : theirs > LARGEST ? E2BIG : 0;
}

/*
 * Fills the asker's struct, as the module does in device.c: with what this version
 * knows of @data, and 0 for the rest. @data begins with its size.
 */
static int give(const struct seccomp_notif *req, const void *data, size_t size,
		size_t in_version_2)
{
	char answer[LARGEST] = { 0 };
	struct iovec from = { answer, 0 };
	struct iovec to = { (void *)(uintptr_t)req->data.args[2], 0 };
	size_t theirs, known = set.abi < 3 ? in_version_2 : size;
	uint64_t filled;
	int err = get_size(req, in_version_2, &theirs);

	if (err)
		return err;
	/* A newer one fills what the asker has. */
	filled = set.abi > 3 || theirs < known ? theirs : known;
	memcpy(answer, data, filled < known ? filled : known);
	memcpy(answer, &filled, sizeof(filled));
	from.iov_len = to.iov_len = theirs;
	return process_vm_writev(req->pid, &from, 1, &to, 1, 0) ==
		(ssize_t)theirs ? 0 : EFAULT;
}

static int answer_version(const struct seccomp_notif *req)
{
	struct asyncfork_version version = {
		.size = sizeof(version),
		.abi = set.abi,
		.max_helpers = set.max_helpers,
		.oldest = set.oldest,
	};

	fprintf(calls, "%d version\n", req->pid);
	return set.version_errno ? set.version_errno :
		give(req, &version, sizeof(version), VERSION_2);
}

static int answer_arm(const struct seccomp_notif *req)
{
	struct asyncfork_arm arm;
	struct iovec to = { &arm, sizeof(arm) };
	struct iovec from = { (void *)(uintptr_t)req->data.args[2], sizeof(arm) };

	if (process_vm_readv(req->pid, &to, 1, &from, 1, 0) != sizeof(arm))
		return EFAULT;
	if (arm.size != sizeof(arm))
		return EINVAL;
	fprintf(calls, "%d arm flags=%u helpers=%u min_rss=%llu\n", req->pid,
		arm.flags, arm.helpers, (unsigned long long)arm.min_rss);
	if (set.arm_errno)
		return set.arm_errno;
	if (arm.flags || arm.helpers > (unsigned)set.max_helpers)
		return EINVAL;
	arm_thread(req->pid);
	return 0;
}

static int answer_report(const struct seccomp_notif *req)
{
	struct asyncfork_report report = {
		.size = sizeof(report),
		.id = SESSION_ID,
		.outcome = consumed ? set.outcome : ASYNCFORK_OUTCOME_NONE,
		.reason = set.reason,
		.chunks = { .parked = 512, .eager = 3 },
		.park_ns = 170000,
		.cpus = set.cpus,
		.child_pid = set.child_pid,
	};

	fprintf(calls, "%d report\n", req->pid);
	return set.report_errno ? set.report_errno :
		give(req, &report, sizeof(report), REPORT_2);
}

static int answer_stats(const struct seccomp_notif *req)
{
	struct asyncfork_stats stats = {
		.size = sizeof(stats),
		.enabled = set.enabled,
		.switched_off = set.switched_off,
	};

	fprintf(calls, "%d stats\n", req->pid);
	return give(req, &stats, sizeof(stats), STATS_2);
}

static void see_fork(const struct seccomp_notif *req)
{
	int is_armed = take_arm(req->pid);

	fprintf(calls, "%d %s\n", req->pid, is_armed ? "fork armed" : "fork");
	consumed |= is_armed;
}

static void answer(int listener)
{
	struct seccomp_notif req = { 0 };
	struct seccomp_notif_resp resp = { 0 };
	int err = 0;

	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &req) != 0) {
		CHECK(errno == ENOENT || errno == EINTR);	/* asker died */
		return;
	}
	resp.id = req.id;
	if (req.data.nr == SYS_clone || req.data.nr == SYS_fork) {
		see_fork(&req);
		resp.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	} else {
		switch ((unsigned)req.data.args[1]) {
		case ASYNCFORK_IOC_VERSION:
			err = answer_version(&req);
			break;
		case ASYNCFORK_IOC_ARM:
			err = answer_arm(&req);
			break;
		case ASYNCFORK_IOC_REPORT:
			err = answer_report(&req);
			break;
		case ASYNCFORK_IOC_STATS:
			err = answer_stats(&req);
			break;
		default:
			err = ENOTTY;
		}
		resp.error = -err;
	}
	fflush(calls);
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &resp) != 0)
		CHECK(errno == ENOENT);
}

/* Until every process under the filter is gone. */
static void serve(int listener)
{
	for (;;) {
		struct pollfd p = { .fd = listener, .events = POLLIN };

		CHECK(poll(&p, 1, -1) == 1);
		if (p.revents & POLLIN)
			answer(listener);
		else if (p.revents & POLLHUP)
			return;
	}
}

static int listen_here(void)
{
	static const struct sock_filter code[] = {
		LOAD(nr),
		SKIP_UNLESS(SYS_fork, 1),	/* musl's */
		RETURN(SECCOMP_RET_USER_NOTIF),
		SKIP_UNLESS(SYS_clone, 3),
		LOAD_ARG(0),
		SKIP_IF_SET(CLONE_VM, 5),
		RETURN(SECCOMP_RET_USER_NOTIF),
		SKIP_UNLESS(SYS_ioctl, 3),
		LOAD_ARG(1),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ASYNCFORK_IOC_MAGIC << 8, 1, 0),
		RETURN(SECCOMP_RET_ALLOW),
		RETURN(SECCOMP_RET_USER_NOTIF),
	};

	return install_listener(code, sizeof(code) / sizeof(*code));
}

static void send_fd(int socket, int fd)
{
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .header = {
		.cmsg_len = CMSG_LEN(sizeof(int)),
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
	} };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	CHECK(sendmsg(socket, &msg, 0) == 1);
}

static int receive_fd(int socket)
{
	char byte;
	struct iovec iov = { &byte, 1 };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	CHECK(recvmsg(socket, &msg, MSG_CMSG_CLOEXEC) == 1);
	CHECK(control.header.cmsg_type == SCM_RIGHTS);
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	return fd;
}

static void read_setting(char *argument)
{
	const struct { const char *name; int *value; } numbers[] = {
		{ "abi", &set.abi },
		{ "oldest", &set.oldest },
		{ "max_helpers", &set.max_helpers },
		{ "outcome", &set.outcome },
		{ "reason", &set.reason },
		{ "cpus", &set.cpus },
		{ "child_pid", &set.child_pid },
		{ "enabled", &set.enabled },
		{ "switched_off", &set.switched_off },
		{ "version_errno", &set.version_errno },
		{ "arm_errno", &set.arm_errno },
		{ "report_errno", &set.report_errno },
	};
	char *value = strchr(argument, '=');

	*value++ = '\0';
	if (!strcmp(argument, "calls")) {
		set.calls = value;
		return;
	}
	if (!strcmp(argument, "preload")) {
		set.preload = value;
		return;
	}
	if (!strcmp(argument, "root")) {
		set.root = value;
		return;
	}
	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		if (!strcmp(argument, numbers[i].name)) {
			*numbers[i].value = atoi(value);
			return;
		}
	}
	dprintf(2, "no such setting: %s\n", argument);
	_exit(99);
}

int main(int argc, char **argv)
{
	int pair[2], status, listener;
	pid_t pid;

	for (argv++; *argv && strchr(*argv, '='); argv++)
		read_setting(*argv);
	CHECK(argc > 1 && *argv && set.calls);
	calls = fopen(set.calls, "we");
	CHECK(calls);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		listener = listen_here();
		CHECK(listener >= 0);
		send_fd(pair[1], listener);
		close(listener);
		if (set.preload)
			CHECK(setenv("LD_PRELOAD", set.preload, 1) == 0);
		if (set.root)
			CHECK(chroot(set.root) == 0 && chdir("/") == 0);
		execvp(*argv, argv);
		CHECK(!"execvp");
	}
	close(pair[1]);
	listener = receive_fd(pair[0]);
	serve(listener);
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
