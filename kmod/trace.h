/* SPDX-License-Identifier: GPL-2.0-only */
/* Tracepoints: begin and end of a session, pulls by the parent, stock forks */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM asyncfork

#if !defined(_AF_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _AF_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(asyncfork_begin,
	TP_PROTO(u64 id, pid_t parent),
	TP_ARGS(id, parent),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(pid_t, parent)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->parent = parent;
	),
	TP_printk("id=%llu parent=%d", __entry->id, __entry->parent)
);

TRACE_EVENT(asyncfork_end,
	TP_PROTO(u64 id, long parked, long reattached, u64 copy_ns),
	TP_ARGS(id, parked, reattached, copy_ns),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(long, parked)
		__field(long, reattached)
		__field(u64, copy_ns)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->parked = parked;
		__entry->reattached = reattached;
		__entry->copy_ns = copy_ns;
	),
	TP_printk("id=%llu parked=%ld reattached=%ld copy_ns=%llu",
		  __entry->id, __entry->parked, __entry->reattached,
		  __entry->copy_ns)
);

TRACE_EVENT(asyncfork_parent_pull,
	TP_PROTO(u64 id, unsigned long addr, unsigned int hook, u64 ns),
	TP_ARGS(id, addr, hook, ns),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(unsigned long, addr)
		__field(unsigned int, hook)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->addr = addr;
		__entry->hook = hook;
		__entry->ns = ns;
	),
	TP_printk("id=%llu addr=%lx hook=%u ns=%llu",
		  __entry->id, __entry->addr, __entry->hook, __entry->ns)
);

TRACE_EVENT(asyncfork_stock,
	TP_PROTO(pid_t pid, unsigned int reason),
	TP_ARGS(pid, reason),
	TP_STRUCT__entry(
		__field(pid_t, pid)
		__field(unsigned int, reason)
	),
	TP_fast_assign(
		__entry->pid = pid;
		__entry->reason = reason;
	),
	TP_printk("pid=%d reason=%u", __entry->pid, __entry->reason)
);

#endif /* _AF_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
