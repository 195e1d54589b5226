/* SPDX-License-Identifier: GPL-2.0-only */
/* Failures on purpose and slow tasks, for tests: nothing unless built with AF_FAULTS=1 */
#ifndef _AF_FAULT_H
#define _AF_FAULT_H

#include <linux/types.h>

#ifdef AF_FAULTS
bool af_fault(void);
unsigned int af_fault_abi(unsigned int own);
unsigned int af_fault_oldest(unsigned int own);
bool af_fault_hook(int hook);
void af_linger_in(const char *place);

#define af_linger()	af_linger_in(__func__)
#else
static inline bool af_fault(void)
{
	return false;
}

static inline unsigned int af_fault_abi(unsigned int own)
{
	return own;
}

static inline unsigned int af_fault_oldest(unsigned int own)
{
	return own;
}

static inline bool af_fault_hook(int hook)
{
	return false;
}

static inline void af_linger(void)
{
}
#endif

#endif /* _AF_FAULT_H */
