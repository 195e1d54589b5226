// SPDX-License-Identifier: MIT OR Apache-2.0
/* alive.c - the least that a large program does: needs nothing but a C library */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	size_t n = 80 << 20;
	char *p = malloc(n);
	int status;
	pid_t pid;

	memset(p, 1, n);
	pid = fork();
	if (pid < 0) {
		perror("fork");
		return 2;
	}
	if (pid == 0)
		_exit(0);
	waitpid(pid, &status, 0);
	return write(1, "alive\n", 6) != 6;
}
