// SPDX-License-Identifier: MIT OR Apache-2.0
/* own_strlen.c - a program that others would get its strlen() of, if they asked */
#include "check.h"

static size_t count(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static size_t (*choose(void))(const char *)
{
	return count;
}

size_t strlen(const char *text) __attribute__((ifunc("choose")));

int main(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0)
		_exit(7);
	wait_exit(pid, 7);
	return 0;
}
