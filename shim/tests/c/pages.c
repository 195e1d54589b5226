// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * pages.c - fork while memory changes, and look at all of it on both sides
 *
 *   pages MIB FORKS
 */
#include "check.h"

#include <stdint.h>
#include <sys/mman.h>

#define PAGE 4096
#define CHUNK (2 << 20)

static char *memory;
static size_t pages;

static uint64_t word(size_t page, size_t i, uint64_t round)
{
	return round << 48 | page << 16 | i;
}

static void fill(size_t first, size_t step, uint64_t round)
{
	for (size_t page = first; page < pages; page += step) {
		uint64_t *words = (uint64_t *)(memory + page * PAGE);

		for (size_t i = 0; i < PAGE / sizeof(*words); i++)
			words[i] = word(page, i, round);
	}
}

static void look(size_t first, size_t step, uint64_t round)
{
	for (size_t page = first; page < pages; page += step) {
		const uint64_t *words = (uint64_t *)(memory + page * PAGE);

		for (size_t i = 0; i < PAGE / sizeof(*words); i++)
			CHECK(words[i] == word(page, i, round));
	}
}

int main(int argc, char **argv)
{
	size_t size;
	int forks;

	CHECK(argc == 3);
	CHECK(is_interposed("fork"));
	size = (size_t)atoi(argv[1]) << 20;
	forks = atoi(argv[2]);
	pages = size / PAGE;
	memory = mmap(NULL, size + CHUNK, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	memory += -(uintptr_t)memory % CHUNK;
	CHECK(madvise(memory, size, MADV_NOHUGEPAGE) == 0);
	for (int n = 0; n < forks; n++) {
		uint64_t old = 3 * n + 1, ours = old + 1, theirs = old + 2;
		pid_t pid;

		fill(0, 1, old);
		pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			look(0, 1, old);
			fill(0, 1, theirs);
			look(0, 1, theirs);
			_exit(7);
		}
		fill(0, 2, ours);
		look(0, 2, ours);
		look(1, 2, old);
		wait_exit(pid, 7);
		look(0, 2, ours);
		look(1, 2, old);
	}
	printf("%d forks, all bytes right\n", forks);
	return 0;
}
