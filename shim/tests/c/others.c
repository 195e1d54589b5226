// SPDX-License-Identifier: MIT OR Apache-2.0
/* others.c - the C library's ways to start a process that stay its own */
#include "check.h"

#include <pty.h>
#include <spawn.h>

extern char **environ;

int main(void)
{
	char *const argv[] = { "true", NULL };
	int status, master;
	pid_t pid;

	CHECK(!is_interposed("vfork"));
	CHECK(!is_interposed("daemon"));
	CHECK(!is_interposed("clone"));
	CHECK(!is_interposed("syscall"));
	unsetenv("LD_PRELOAD");
	CHECK(system("true") == 0);
	CHECK(posix_spawnp(&pid, "true", NULL, NULL, argv, environ) == 0);
	wait_exit(pid, 0);
	pid = forkpty(&master, NULL, NULL, NULL);
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(7);
	wait_exit(pid, 7);
	pid = fork();		/* the one that is ours */
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(daemon(1, 1) == 0);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	return 0;
}
