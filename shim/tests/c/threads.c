// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * threads.c - several threads fork at once
 *
 *   threads THREADS FORKS   each thread forks so often
 */
#include "check.h"

#include <pthread.h>

static pthread_barrier_t start;
static int forks;

static void *run(void *arg)
{
	int id = (int)(long)arg;

	pthread_barrier_wait(&start);
	for (int i = 0; i < forks; i++) {
		pid_t pid;

		errno = 1000 + id;
		pid = fork();
		CHECK(pid >= 0);
		CHECK(errno == 1000 + id);
		if (pid == 0)
			_exit(id);
		wait_exit(pid, id);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	int n;

	CHECK(argc == 3);
	CHECK(is_interposed("fork"));
	n = atoi(argv[1]);
	forks = atoi(argv[2]);
	CHECK(n > 0 && n <= 64);
	CHECK(pthread_barrier_init(&start, NULL, n) == 0);
	for (int i = 0; i < n; i++)
		CHECK(pthread_create(&threads[i], NULL, run, (void *)(long)i) == 0);
	for (int i = 0; i < n; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	return 0;
}
