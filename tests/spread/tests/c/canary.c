// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Does something, named by its argument, to the memory that added children verify,
 * or to these children. Exit status 0: it was let go on.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CANARY	((volatile uint64_t *)0x500000000000)
#define WORDS	2048
#define BYTES	(WORDS * 8)

static const char *what;
static atomic_int forks;

static void in_parent(void)
{
	forks++;
}

/* In added children only. */
static void in_child(void)
{
	if (!strcmp(what, "child differs"))
		CANARY[WORDS - 1] ^= 1;
	else if (!strcmp(what, "child is killed"))
		raise(SIGKILL);
	else if (!strcmp(what, "child fails"))
		_exit(3);
}

static int mapped(void)
{
	unsigned long start, end;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	int found = 0;

	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2)
			found += start == (uintptr_t)CANARY && end == start + BYTES;
	fclose(maps);
	return found;
}

int main(int argc, char **argv)
{
	pid_t child;
	int status, before;

	/* What does not come about ends it. */
	alarm(60);
	what = argc > 1 ? argv[1] : "";
	pthread_atfork(NULL, in_parent, in_child);
	if (!strcmp(what, "child of a child differs")) {
		what = "";
		child = fork();
		if (child != 0) {
			waitpid(child, &status, 0);
			return WIFEXITED(status);
		}
		what = "child differs";
	}
	if (!mapped())
		return 10;
	while (CANARY[WORDS - 1] == 0)
		usleep(1000);
	if (!strcmp(what, "parent differs"))
		madvise((void *)CANARY, BYTES, MADV_DONTNEED);
	else if (!strcmp(what, "unmapped"))
		munmap((void *)CANARY, BYTES);
	else if (!strcmp(what, "protected"))
		mprotect((void *)CANARY, BYTES, PROT_NONE);
	else if (!strcmp(what, "reaped by nobody"))
		signal(SIGCHLD, SIG_IGN);
	/* An added child or its parent ends it, or all children but the last have been judged. */
	before = forks;
	while (strstr(what, "differs") || strstr(what, "fails") || forks < before + 5)
		usleep(1000);
	return 0;
}
