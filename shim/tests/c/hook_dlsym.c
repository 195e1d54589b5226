// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * hook_dlsym.c - a library with a dlsym() of its own, which hands calls on
 *
 * What is "next" to the C library's is then next to this one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

void *dlsym(void *handle, const char *name)
{
	void *(*real)(void *, const char *) =
		(void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym",
						       "GLIBC_2.2.5");
	/* Not a tail call: its caller has to be this library. */
	void *volatile found = real(handle, name);

	return found;
}
