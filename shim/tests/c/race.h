/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * race.h - let something happen right before the library's next write
 *
 * Another process is asked for each write, by seccomp's user notification.
 */
#ifndef RACE_H
#define RACE_H

#include "check.h"
#include "outputs.h"

/* In the other process, while this one waits. */
typedef void happen_fn(pid_t pid, char *what);

/* Holds each write up; at the first it happens. */
static inline void hold_up(int listener, pid_t pid, char *what,
			   happen_fn *happen)
{
	struct pollfd p = { .fd = listener, .events = POLLIN };

	for (;;) {
		struct seccomp_notif req = { 0 };
		struct seccomp_notif_resp resp = {
			.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE,
		};

		CHECK(poll(&p, 1, -1) == 1);
		if (!(p.revents & POLLIN))
			_exit(0);
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &req) != 0) {
			CHECK(errno == ENOENT || errno == EINTR);
			continue;
		}
		if (what)
			happen(pid, what);
		what = NULL;
		resp.id = req.id;
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &resp) != 0)
			CHECK(errno == ENOENT);
	}
}

/* Writes, but for those to the test's own descriptors, ask the listener. */
static inline int listen_to_writes(void)
{
	static const struct sock_filter code[] = {
		LOAD(nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 6, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_writev, 5, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwritev, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwritev2, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendto, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendmsg, 1, 0),
		RETURN(SECCOMP_RET_ALLOW),
		LOAD_ARG(0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FAR, 0, 1),
		RETURN(SECCOMP_RET_ALLOW),
		RETURN(SECCOMP_RET_USER_NOTIF),
	};

	return install_listener(code, sizeof(code) / sizeof(*code));
}

/* From here on. */
static inline void race(char *what, happen_fn *happen)
{
	int pair[2], listener, pidfd;
	pid_t parent = getpid(), pid;
	char byte;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	place(pair[0], FAR + 1);
	place(pair[1], FAR + 2);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(read(FAR + 1, &listener, sizeof(listener)) ==
		      sizeof(listener));
		pidfd = syscall(SYS_pidfd_open, parent, 0);
		CHECK(pidfd >= 0);
		listener = syscall(SYS_pidfd_getfd, pidfd, listener, 0);
		CHECK(listener >= 0);
		CHECK(close(FAR + 2) == 0);
		CHECK(write(FAR + 1, "", 1) == 1);
		hold_up(listener, parent, what, happen);
	}
	close(FAR);		/* the other process has it */
	CHECK(close(FAR + 1) == 0);
	listener = listen_to_writes();
	CHECK(listener >= 0);
	CHECK(write(FAR + 2, &listener, sizeof(listener)) == sizeof(listener));
	CHECK(read(FAR + 2, &byte, 1) == 1);
	CHECK(close(FAR + 2) == 0);
	CHECK(close(listener) == 0);
}

#endif
