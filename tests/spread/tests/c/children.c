// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Tells the numbers of its threads and of those of a child, once both have seen added
 * forks; without an argument they wait for none.
 */
#include <pthread.h>
#include <stdatomic.h>
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

static atomic_int forks;

static void count(void)
{
	forks++;
}

static void wait_for_forks(int wanted)
{
	int before = forks;

	if (!wanted)
		usleep(300000);
	while (forks < before + wanted)
		usleep(1000);
	printf("added forks: %s\n", forks > before ? "yes" : "no");
}

int main(int argc, char **argv)
{
	int wanted = argc > 1 ? 3 : 0;
	pid_t child;
	int status;

	(void)argv;
	/* What does not come about ends it. */
	alarm(60);
	pthread_atfork(NULL, count, NULL);
	wait_for_forks(wanted);
	printf("threads: %d\n", threads());
	fflush(stdout);
	child = fork();
	if (child == 0) {
		alarm(60);
		wait_for_forks(wanted);
		printf("threads of the child: %d\n", threads());
		fflush(stdout);
		_exit(0);
	}
	printf("child found: %s\n", waitpid(child, &status, 0) == child ? "yes" : "no");
	return 0;
}
