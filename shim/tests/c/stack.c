// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * stack.c - fork in a signal handler that has little stack
 *
 *   stack BYTES   so many more than the kernel needs for itself
 */
#include "check.h"

#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

static volatile pid_t child;

static void on_signal(int sig)
{
	(void)sig;
	child = _Fork();
	if (child == 0)
		_exit(7);
}

int main(int argc, char **argv)
{
	struct sigaction action = {
		.sa_handler = on_signal,
		.sa_flags = SA_ONSTACK,
	};
	size_t size, page = getpagesize();
	stack_t stack = { 0 };
	char *memory;

	CHECK(argc == 2);
	CHECK(is_interposed("_Fork"));
	size = getauxval(AT_MINSIGSTKSZ) + atoi(argv[1]);
	/* Right above a page that is out of bounds. */
	memory = mmap(NULL, page + size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	CHECK(mprotect(memory, page, PROT_NONE) == 0);
	stack.ss_sp = memory + page;
	stack.ss_size = size;
	CHECK(sigaltstack(&stack, NULL) == 0);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	for (int i = 0; i < 2; i++) {
		CHECK(raise(SIGUSR1) == 0);
		CHECK(child > 0);
		wait_exit(child, 7);
	}
	return 0;
}
