// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * descriptors.c - close all descriptors, use their numbers for data, fork
 *
 *   descriptors DIR FIRST   close FIRST and up; DIR gets a data file for each
 *                           number, and both sides check their contents
 */
#include "check.h"

#include <fcntl.h>
#include <limits.h>

#define LAST 24

static void check_data(int first)
{
	for (int fd = first; fd <= LAST; fd++) {
		char want[32], got[64] = "";

		snprintf(want, sizeof(want), "data %d", fd);
		if (pread(fd, got, sizeof(got) - 1, 0) < 0 || strcmp(want, got))
			_exit(98);
	}
}

static int open_descriptors(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) != -1;
	return n;
}

int main(int argc, char **argv)
{
	char path[PATH_MAX];
	int first, before;

	CHECK(argc == 3);
	CHECK(is_interposed("fork"));
	first = atoi(argv[2]);
	for (int fd = first; fd < 1024; fd++)
		close(fd);
	for (int fd = first; fd <= LAST; fd++) {
		snprintf(path, sizeof(path), "%s/data%d", argv[1], fd);
		if (open(path, O_RDWR | O_CREAT | O_EXCL, 0600) != fd)
			_exit(97);
		if (dprintf(fd, "data %d", fd) <= 0)
			_exit(96);
	}
	before = open_descriptors();
	for (int round = 0; round < 3; round++) {
		pid_t pid = fork();
		int status;

		check_data(first);
		if (open_descriptors() != before)
			_exit(95);
		if (pid == 0)
			_exit(7);
		if (waitpid(pid, &status, 0) != pid || status != 7 << 8)
			_exit(94);
	}
	return 0;
}
