// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * stderr.c - fork with an odd standard error
 *
 *   stderr reused FILE   closed by the program, its number used for a file
 *   stderr closed FILE   closed before the program started, then likewise
 *   stderr broken        a pipe without a reader, before the program started
 *   stderr full          a pipe that nobody empties, likewise
 *
 * The last three start this program again with argument "go".
 */
#include "check.h"

#include <fcntl.h>
#include <signal.h>

static void become(char **argv, const char *file)
{
	char *const args[] = { argv[0], "go", (char *)file, NULL };

	execv("/proc/self/exe", args);
	_exit(96);
}

static void use_for_file(const char *path)
{
	if (open(path, O_WRONLY | O_CREAT, 0600) != 2)
		_exit(95);
}

int main(int argc, char **argv)
{
	const char *mode = argv[1], *file = argc > 2 ? argv[2] : NULL;
	int fds[2];
	pid_t pid;

	CHECK(argc >= 2);
	CHECK(is_interposed("fork"));
	alarm(60);		/* rather than wait for ever; survives exec */
	CHECK(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
	if (!strcmp(mode, "reused")) {
		close(2);
		use_for_file(file);
	} else if (!strcmp(mode, "closed")) {
		close(2);
		become(argv, file);
	} else if (!strcmp(mode, "broken")) {
		CHECK(pipe(fds) == 0);
		close(fds[0]);
		CHECK(dup2(fds[1], 2) == 2);
		become(argv, NULL);
	} else if (!strcmp(mode, "full")) {
		CHECK(pipe(fds) == 0);
		CHECK(fcntl(fds[1], F_SETFL, O_NONBLOCK) == 0);
		while (write(fds[1], "", 1) == 1)
			;
		CHECK(errno == EAGAIN);
		CHECK(fcntl(fds[1], F_SETFL, 0) == 0);
		CHECK(dup2(fds[1], 2) == 2);
		become(argv, NULL);
	} else if (file) {
		use_for_file(file);
	}
	pid = fork();
	if (pid < 0)
		_exit(97);
	if (pid == 0)
		_exit(7);
	wait_exit(pid, 7);
	return 0;
}
