/* SPDX-License-Identifier: GPL-2.0-only */
/* Attach the hooks to the kernel, and take them away */
#ifndef _AF_ATTACH_H
#define _AF_ATTACH_H

int af_hooks_attach(void);
void af_hooks_detach(void);

#endif /* _AF_ATTACH_H */
