// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * end_thread.c - an atfork handler that ends the thread which forks
 *
 * The C library unwinds that thread's stack, on which fork() is.
 */
#include "check.h"

#include <pthread.h>

static int cleaned;

static void end_thread(void)
{
	pthread_exit(&cleaned);
}

static void clean(void *flag)
{
	*(int *)flag = 1;
}

static void *forker(void *unused)
{
	(void)unused;
	pthread_cleanup_push(clean, &cleaned);
	fork();
	pthread_cleanup_pop(0);
	return NULL;
}

int main(void)
{
	pthread_t thread;
	void *result;

	CHECK(is_interposed("fork"));
	CHECK(pthread_atfork(end_thread, NULL, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, forker, NULL) == 0);
	CHECK(pthread_join(thread, &result) == 0);
	CHECK(result == &cleaned && cleaned);
	return 0;
}
