// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * handler.c - fork in a signal handler
 *
 *   handler plain    in the midst of ordinary code
 *   handler nested   while the same thread is inside fork()
 */
#include "check.h"

#include <pthread.h>
#include <signal.h>

static volatile sig_atomic_t forks_in_handler;

static void on_signal(int sig)
{
	int saved = errno;
	pid_t pid = _Fork();

	(void)sig;
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(7);
	wait_exit(pid, 7);
	forks_in_handler++;
	errno = saved;
}

static void interrupt(void)
{
	CHECK(raise(SIGUSR1) == 0);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	pid_t pid;

	CHECK(argc == 2);
	CHECK(is_interposed("_Fork"));
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	if (!strcmp(argv[1], "plain")) {
		for (int i = 0; i < 20; i++)
			interrupt();
		CHECK(forks_in_handler == 20);
		return 0;
	}
	CHECK(pthread_atfork(interrupt, NULL, NULL) == 0);
	errno = 4242;
	pid = fork();
	CHECK(pid >= 0);
	CHECK(errno == 4242);
	CHECK(forks_in_handler == 1);
	if (pid == 0)
		_exit(8);
	wait_exit(pid, 8);
	return 0;
}
