/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * signal_state.h - what a fork must leave as it was: signals, descriptors
 *
 * Works under a filter that denies one of the library's own system calls: a
 * field that cannot be read then is the same before and after.
 */
#ifndef SIGNAL_STATE_H
#define SIGNAL_STATE_H

#include "check.h"

#include <fcntl.h>
#include <signal.h>

#define SIGNAL_BIT(sig) (1ULL << ((sig) - 1))

struct state {
	/* As in /proc/PID/status, bits as of SIGNAL_BIT(). */
	unsigned long long thread_pending, process_pending;
	unsigned long long blocked, ignored, caught;
	int flags, owner;	/* of descriptor 2 */
	int descriptors;	/* how many are open */
};

static inline unsigned long long status_field(const char *status,
					      const char *name)
{
	const char *field = strstr(status, name);

	CHECK(field);
	return strtoull(field + strlen(name), NULL, 16);
}

/* The state as this thread of the process sees it; 0: the calling thread. */
static inline struct state read_state(pid_t thread)
{
	char path[64] = "/proc/thread-self/status", status[8192];
	struct state state = { 0 };
	int saved = errno;
	ssize_t size;
	int fd;

	if (thread)
		snprintf(path, sizeof(path), "/proc/self/task/%d/status", thread);
	fd = syscall(SYS_open, path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	size = pread(fd, status, sizeof(status) - 1, 0);
	CHECK(size > 0);
	CHECK(close(fd) == 0);
	status[size] = '\0';
	state.thread_pending = status_field(status, "\nSigPnd:");
	state.process_pending = status_field(status, "\nShdPnd:");
	state.blocked = status_field(status, "\nSigBlk:");
	state.ignored = status_field(status, "\nSigIgn:");
	state.caught = status_field(status, "\nSigCgt:");
	state.flags = fcntl(2, F_GETFL);
	state.owner = fcntl(2, F_GETOWN);
	for (int i = 0; i < 256; i++)
		state.descriptors += fcntl(i, F_GETFD) != -1;
	errno = saved;
	return state;
}

#define CHECK_SAME(a, b, field)                                                \
	do {                                                                   \
		if ((a)->field != (b)->field) {                                \
			dprintf(CHECK_FD, "%s was %llx, is %llx\n", #field,    \
				(unsigned long long)(a)->field,                \
				(unsigned long long)(b)->field);               \
			CHECK((a)->field == (b)->field);                       \
		}                                                              \
	} while (0)

static inline void check_same_state(const struct state *before,
				    const struct state *after)
{
	CHECK_SAME(before, after, thread_pending);
	CHECK_SAME(before, after, process_pending);
	CHECK_SAME(before, after, blocked);
	CHECK_SAME(before, after, ignored);
	CHECK_SAME(before, after, caught);
	CHECK_SAME(before, after, flags);
	CHECK_SAME(before, after, owner);
	CHECK_SAME(before, after, descriptors);
}

#endif
