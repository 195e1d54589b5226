// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * stdio.c - what is in a buffer at the fork is written by both sides, and
 * exit handlers run in both
 */
#include "check.h"

static void bye(void)
{
	printf("bye\n");
}

int main(void)
{
	pid_t pid;
	int status;

	CHECK(setvbuf(stdout, NULL, _IOFBF, 4096) == 0);
	CHECK(atexit(bye) == 0);
	printf("before\n");
	pid = fork();
	CHECK(pid >= 0);
	if (pid) {
		CHECK(waitpid(pid, &status, 0) == pid && status == 0);
		printf("parent\n");
	} else {
		printf("child\n");
	}
	return 0;
}
