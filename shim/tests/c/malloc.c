// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * malloc.c - nothing is allocated or freed between the call of fork() and its
 * return, on either side
 *
 *   malloc FORKS
 */
#include "check.h"

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *old);

static volatile int forbidden;
static volatile long calls;

static void see(void)
{
	calls++;
	if (forbidden) {
		static const char text[] = "malloc or free within fork\n";

		(void)!write(2, text, sizeof(text) - 1);
		_exit(98);
	}
}

void *malloc(size_t size)
{
	see();
	return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
	see();
	return __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
	see();
	return __libc_realloc(old, size);
}

int posix_memalign(void **place, size_t align, size_t size)
{
	see();
	*place = __libc_memalign(align, size);
	return *place ? 0 : ENOMEM;
}

void *aligned_alloc(size_t align, size_t size)
{
	see();
	return __libc_memalign(align, size);
}

void free(void *old)
{
	see();
	__libc_free(old);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	CHECK(is_interposed("fork"));
	/* Calls of other libraries arrive here. */
	free(strdup("text"));
	CHECK(calls == 2);
	for (int i = atoi(argv[1]); i > 0; i--) {
		pid_t pid;

		forbidden = 1;
		pid = fork();
		forbidden = 0;
		CHECK(pid >= 0);
		if (pid == 0)
			_exit(7);
		wait_exit(pid, 7);
	}
	return 0;
}
