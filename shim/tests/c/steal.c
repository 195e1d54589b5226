// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * steal.c - an atfork handler closes all descriptors in the middle of fork()
 * and opens a file that gets one of their numbers
 *
 *   steal FILE prepare|parent|child
 */
#include "check.h"

#include <fcntl.h>
#include <pthread.h>

static const char *path;
static int mine = -1;

static void steal(void)
{
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	mine = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	CHECK(mine == 3);
}

int main(int argc, char **argv)
{
	const char *when = argv[2];
	pid_t pid;

	CHECK(argc == 3);
	CHECK(is_interposed("fork"));
	path = argv[1];
	/* Descriptor 3 is the first that a library could get. */
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	CHECK(pthread_atfork(!strcmp(when, "prepare") ? steal : NULL,
			     !strcmp(when, "parent") ? steal : NULL,
			     !strcmp(when, "child") ? steal : NULL) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (mine >= 0)
		CHECK(dprintf(mine, "%s\n", pid ? "parent" : "child") > 0);
	if (pid == 0)
		_exit(7);
	wait_exit(pid, 7);
	return 0;
}
