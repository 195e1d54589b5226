// SPDX-License-Identifier: MIT OR Apache-2.0
// A server without a C library of its host, as small as can be: has 32 MiB, and
// answers each line of its standard input. "fork": forks, and says whether both sides
// have what they should. "device NUMBER": tries to get at the device of that number.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS ((32ul << 20) / sizeof(unsigned long))

static volatile unsigned long *memory;

static unsigned long word(unsigned long round, unsigned long at)
{
	return (round << 32 | at) * 0x9e3779b97f4a7c15ul;
}

static void fill(unsigned long round)
{
	for (unsigned long at = 0; at < WORDS; at++)
		memory[at] = word(round, at);
}

static int is_filled(unsigned long round)
{
	for (unsigned long at = 0; at < WORDS; at++)
		if (memory[at] != word(round, at))
			return 0;
	return 1;
}

static void forked(unsigned long round)
{
	int status;
	pid_t pid = fork();

	if (pid < 0) {
		printf("fork: %s\n", strerror(errno));
		return;
	}
	if (!pid)
		_exit(!is_filled(round));
	fill(round + 1);
	if (waitpid(pid, &status, 0) != pid)
		printf("waitpid: %s\n", strerror(errno));
	else
		printf("child %s, parent %s\n", status ? "wrong" : "right",
		       is_filled(round + 1) ? "right" : "wrong");
}

static const char *tried(const char *path)
{
	int fd = open(path, O_RDWR);

	return fd < 0 ? strerror(errno) : "opened";
}

int main(void)
{
	char line[64];
	unsigned long round = 1;

	memory = mmap(NULL, 32ul << 20, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	madvise((void *)memory, 32ul << 20, MADV_NOHUGEPAGE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	fill(round);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "device ", 7)) {
			int made = mknod("/dev/made", S_IFCHR | 0666,
					 strtoul(line + 7, NULL, 10));

			printf("device: %s, made: %s\n", tried("/dev/asyncfork"),
			       made ? strerror(errno) : tried("/dev/made"));
		} else {
			forked(round++);
		}
	}
	return 0;
}
