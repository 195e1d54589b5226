// SPDX-License-Identifier: MIT OR Apache-2.0
/* Tells the numbers of its threads and of those of a child. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static int threads(void)
{
	char line[128];
	int n = -1;
	FILE *status = fopen("/proc/self/status", "r");

	while (fgets(line, sizeof(line), status))
		if (sscanf(line, "Threads: %d", &n) == 1)
			break;
	fclose(status);
	return n;
}

int main(void)
{
	pid_t child;
	int status;

	usleep(300000);
	printf("threads: %d\n", threads());
	fflush(stdout);
	child = fork();
	if (child == 0) {
		usleep(300000);
		printf("threads of the child: %d\n", threads());
		fflush(stdout);
		_exit(0);
	}
	printf("child found: %s\n", waitpid(child, &status, 0) == child ? "yes" : "no");
	return 0;
}
