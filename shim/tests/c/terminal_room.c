// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * terminal_room.c - forks while the terminal has room for a part of a line
 *
 * A terminal that is full, of which its reader has taken a few bytes, says that
 * it is ready. Standard error has to be it from the start: executes itself.
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>

#define MASTER 100

static void open_terminal(char **argv)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY);
	int slave;

	CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	CHECK(slave >= 0 && dup2(master, MASTER) == MASTER);
	CHECK(fcntl(MASTER, F_SETFL, O_NONBLOCK) == 0 && dup2(slave, 2) == 2);
	argv[1] = "go";
	execv("/proc/self/exe", argv);
	CHECK(!"execv");
}

/* In portions of many sizes: the terminal's buffers come out uneven. */
static void fill(int round)
{
	char text[2000];

	memset(text, 'x', sizeof(text));
	text[round % 7] = '\n';
	CHECK(fcntl(2, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
	while (write(2, text, 1 + rand() % 1500) > 0)
		;
	while (write(2, text, 1) > 0)
		;
	CHECK(fcntl(2, F_SETFL, O_RDWR) == 0);
}

int main(int argc, char **argv)
{
	char text[600];

	if (argc > 1 && !strcmp(argv[1], "open"))
		open_terminal(argv);
	CHECK(is_interposed("fork"));
	for (int round = 1; round < 600; round++) {
		pid_t pid;

		fill(round);
		for (ssize_t got = 0, n; got < round; got += n) {
			n = read(MASTER, text, round - got);
			if (n <= 0)
				break;
		}
		/* Ends a fork that waits for the terminal. */
		alarm(20);
		pid = fork();
		alarm(0);
		CHECK(pid >= 0);
		if (pid == 0)
			_exit(7);
		wait_exit(pid, 7);
	}
	return 0;
}
