/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the test programs share: a failed check is exit status 99. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* Where failed checks are reported. */
#ifndef CHECK_FD
#define CHECK_FD 2
#endif

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition)) {                                            \
			dprintf(CHECK_FD,                                      \
				"%s:%d: check failed: %s (errno %d)\n",        \
				__FILE__, __LINE__, #condition, errno);        \
			_exit(99);                                             \
		}                                                              \
	} while (0)

/* Of these a C library may lack one; the library under test has both. */
pid_t _Fork(void) __attribute__((weak));
pid_t __fork(void) __attribute__((weak));

/* Waits for a child that must exit with this status. */
static inline void wait_exit(pid_t pid, int status)
{
	int got;

	CHECK(waitpid(pid, &got, 0) == pid);
	CHECK(WIFEXITED(got));
	CHECK(WEXITSTATUS(got) == status);
}

/* Are calls of this name answered by the library under test? */
static inline int is_interposed(const char *name)
{
	void *address = dlsym(RTLD_DEFAULT, name);
	Dl_info info;

	CHECK(address && dladdr(address, &info));
	return strstr(info.dli_fname, "libasyncfork.so") != NULL;
}

static inline int set_filter(const struct sock_filter *code, size_t n,
			     unsigned int flags)
{
	struct sock_fprog prog = {
		.len = (unsigned short)n,
		.filter = (struct sock_filter *)code,
	};

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog);
}

/* From here on this filter applies, too. */
static inline void install_filter(const struct sock_filter *code, size_t n)
{
	CHECK(set_filter(code, n, 0) == 0);
}

/* Likewise; who has the descriptor, or -1, is asked where the filter says so. */
static inline int install_listener(const struct sock_filter *code, size_t n)
{
	return set_filter(code, n, SECCOMP_FILTER_FLAG_NEW_LISTENER);
}

#define LOAD(field)                                                            \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
/* Low half of a system call's argument, on little-endian machines. */
#define LOAD_ARG(n)                                                            \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS,                                     \
		 offsetof(struct seccomp_data, args) + 8 * (n))
#define RETURN(verdict) BPF_STMT(BPF_RET | BPF_K, verdict)
#define SKIP_UNLESS(value, n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, n)
#define SKIP_IF_SET(bits, n) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, n, 0)

#endif
