// SPDX-License-Identifier: MIT OR Apache-2.0
/* early_lib.c - a library whose constructor forks, before ours ran */
#include "check.h"

int early_forks;

__attribute__((constructor)) static void early(void)
{
	pid_t (*const calls[])(void) = { fork, _Fork, __fork };

	CHECK(is_interposed("fork"));
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		pid_t pid = calls[i]();

		CHECK(pid >= 0);
		if (pid == 0)
			_exit(7);
		wait_exit(pid, 7);
		early_forks++;
	}
	dprintf(1, "early: %d\n", early_forks);
}
