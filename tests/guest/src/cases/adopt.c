// SPDX-License-Identifier: MIT OR Apache-2.0
// A server as small as can be, for any C library: has 32 MiB or, if it is called with
// "spread", a page of each of 3072 page tables. It answers each line of its standard
// input. "fork": forks, and says whether both sides have what they should; the parent
// writes meanwhile. "fork, wait": it writes after the child's end. "device NUMBER":
// tries to get at the device of that number.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *memory;
static unsigned long words, step;

static unsigned long word(unsigned long round, unsigned long n)
{
	return (round << 32 | n) * 0x9e3779b97f4a7c15ul;
}

static volatile unsigned long *at(unsigned long n)
{
	return (unsigned long *)(memory + n * step);
}

static void fill(unsigned long round)
{
	for (unsigned long n = 0; n < words; n++)
		*at(n) = word(round, n);
}

static int is_filled(unsigned long round)
{
	for (unsigned long n = 0; n < words; n++)
		if (*at(n) != word(round, n))
			return 0;
	return 1;
}

static const char *judged(int right)
{
	return right ? "right" : "wrong";
}

static void forked(unsigned long round, int waits)
{
	int status, kept = 1;
	pid_t pid = fork();

	if (pid < 0) {
		printf("fork: %s\n", strerror(errno));
		return;
	}
	if (!pid)
		_exit(!is_filled(round));
	if (!waits)
		fill(round + 1);
	if (waitpid(pid, &status, 0) != pid) {
		printf("waitpid: %s\n", strerror(errno));
		return;
	}
	if (waits) {
		kept = is_filled(round);
		fill(round + 1);
	}
	printf("child %s, parent %s\n",
	       WIFSIGNALED(status) ? "killed" : judged(!status),
	       judged(kept && is_filled(round + 1)));
}

static const char *tried(const char *path)
{
	int fd = open(path, O_RDWR);

	return fd < 0 ? strerror(errno) : "opened";
}

int main(int argc, char **argv)
{
	int spread = argc > 1 && !strcmp(argv[1], "spread");
	char line[64];
	unsigned long round = 1;

	words = spread ? 3072 : (32ul << 20) / sizeof(*at(0));
	step = spread ? 2ul << 20 : sizeof(*at(0));
	memory = mmap(NULL, words * step, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	madvise(memory, words * step, MADV_NOHUGEPAGE);
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
			forked(round++, !strcmp(line, "fork, wait\n"));
		}
	}
	return 0;
}
