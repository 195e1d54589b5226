// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * child_calls.c - what the child does in fork(), after its atfork handlers
 *
 * The child's last handler forbids all system calls but fstat(), close() and
 * exit_group(), so that any other one kills it.
 *
 *   child_calls          the child must live
 *   child_calls control  the child makes one more call and must die of it
 */
#include "check.h"

#include <pthread.h>
#include <signal.h>

static void forbid(void)
{
	static const struct sock_filter code[] = {
		LOAD(nr),
		SKIP_UNLESS(SYS_close, 1),
		RETURN(SECCOMP_RET_ALLOW),
		SKIP_UNLESS(SYS_fstat, 1),
		RETURN(SECCOMP_RET_ALLOW),
		SKIP_UNLESS(SYS_exit_group, 1),
		RETURN(SECCOMP_RET_ALLOW),
		RETURN(SECCOMP_RET_KILL_PROCESS),
	};

	install_filter(code, sizeof(code) / sizeof(*code));
}

int main(int argc, char **argv)
{
	int control = argc == 2 && !strcmp(argv[1], "control");
	int status;
	pid_t pid;

	CHECK(is_interposed("fork"));
	CHECK(pthread_atfork(NULL, NULL, forbid) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		if (control)
			getuid();
		_exit(7);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (control)
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	else
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
	return 0;
}
