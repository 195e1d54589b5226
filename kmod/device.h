/* SPDX-License-Identifier: GPL-2.0-only */
/* The device: arm a thread's next fork, enrol cgroups, report on forks */
#ifndef _AF_DEVICE_H
#define _AF_DEVICE_H

#include "uapi/asyncfork.h"

struct af_ask;
struct af_file;
struct af_session;

struct af_file *af_device_take(struct af_ask *ask);
void af_device_tell(struct af_file *f, struct af_session *s,
		    const struct asyncfork_report *stock);
int af_device_init(void);
void af_device_exit(void);

#endif /* _AF_DEVICE_H */
