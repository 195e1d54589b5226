// SPDX-License-Identifier: MIT OR Apache-2.0
/* no_libc.c - a dynamic program without a C library, as Go makes them */
void _start(void)
{
	/* exit_group(0) */
	__asm__ volatile("syscall" : : "a"(231), "D"(0));
	__builtin_unreachable();
}
