// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Maps memory in all ways and tells where it is. With the word "exec" it does so
 * in a child that it forks and that starts it again. Exit status 0: all done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOT	(2UL << 20)

static char *map(void *addr, size_t len, int flags)
{
	return mmap(addr, len, PROT_READ | PROT_WRITE, flags, -1, 0);
}

static void say(const char *what, int yes)
{
	printf("%s: %s\n", what, yes ? "yes" : "no");
}

/* Neither neighbour is in a 2 MiB slot of [p, p + len). */
static int alone(const char *p, size_t len)
{
	uintptr_t lo = (uintptr_t)p & -SLOT, hi = ((uintptr_t)p + len + SLOT - 1) & -SLOT;
	unsigned long start, end;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	int others = 0;

	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start < hi && end > lo)
			others += start != (uintptr_t)p || end != (uintptr_t)p + len;
	fclose(maps);
	return !others;
}

int main(int argc, char **argv)
{
	const int private = MAP_PRIVATE | MAP_ANONYMOUS;
	char *a, *b, *c, *d, *fixed;
	int status;

	if (argc > 1) {
		if (fork() == 0) {
			execl("/proc/self/exe", argv[0], NULL);
			_exit(127);
		}
		wait(&status);
		return WEXITSTATUS(status);
	}

	a = map(NULL, 4096, private);
	b = map(NULL, 3 * SLOT + 4096, private);
	c = map(NULL, 4096, MAP_SHARED | MAP_ANONYMOUS);
	memset(a, 1, 4096);
	memset(b, 2, 3 * SLOT + 4096);
	say("one page alone", alone(a, 4096));
	say("many pages alone", alone(b, 3 * SLOT + 4096));
	say("shared memory spread", (uintptr_t)c < (uintptr_t)b + (1UL << 40));

	fixed = map(b, 4096, private | MAP_FIXED);
	say("fixed kept", fixed == b && b[0] == 0 && b[4096] == 2);
	d = (char *)0x200000000;
	say("hint kept", map(d, 4096, private) == d);

	munmap(a, 4096);
	say("address reused", map(NULL, 4096, private) == a);
	say("and then not", map(NULL, 4096, private) != a);

	errno = 0;
	say("EINVAL", map(NULL, 0, private) == MAP_FAILED && errno == EINVAL);
	errno = 0;
	say("ENOMEM", map(NULL, 1UL << 50, private) == MAP_FAILED && errno == ENOMEM);
	errno = 0;
	say("EEXIST", map(b, 4096, private | MAP_FIXED_NOREPLACE) == MAP_FAILED && errno == EEXIST);
	errno = 0;
	say("munmap EINVAL", munmap(b + 1, 4096) == -1 && errno == EINVAL);
	errno = 17;
	map(NULL, 4096, private);
	say("errno kept", errno == 17);

	/* 1 MiB is beyond malloc()'s own threshold for mappings. */
	a = malloc(1 << 20);
	say("malloc on the heap", a < (char *)sbrk(0) && a > (char *)sbrk(0) - 16 * SLOT);
	return 0;
}
