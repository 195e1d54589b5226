// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * cancel.c - fork() is no cancellation point: a thread with a pending
 * cancellation gets through it and ends at the next one
 */
#include "check.h"

#include <pthread.h>

static pid_t child = -1;

static void *run(void *arg)
{
	(void)arg;
	CHECK(pthread_cancel(pthread_self()) == 0);
	child = fork();
	if (child == 0)
		_exit(7);
	pthread_testcancel();
	CHECK(!"cancelled");
	return NULL;
}

int main(void)
{
	pthread_t thread;
	void *result;

	CHECK(is_interposed("fork"));
	CHECK(pthread_create(&thread, NULL, run, NULL) == 0);
	CHECK(pthread_join(thread, &result) == 0);
	CHECK(result == PTHREAD_CANCELED);
	CHECK(child > 0);
	wait_exit(child, 7);
	return 0;
}
