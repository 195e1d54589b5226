/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the patched call at the start of a hooked function reaches
 *
 * On the stack: return address into the hooked function, above it the one
 * into its caller. Without sessions and armed threads a hook costs one compare,
 * but for the kind ALWAYS (compat/hook_list.h); that of the kind FORK has a
 * counter of its own. Argument registers are kept for the hooked function.
 */
#include <linux/linkage.h>
#include <asm/asm-offsets.h>
#include <asm/ibt.h>
#include <asm/nospec-branch.h>
#include <asm/unwind_hints.h>

.macro PUSH_ARGS
	pushq	%rdi
	pushq	%rsi
	pushq	%rdx
	pushq	%rcx
	pushq	%r8
	pushq	%r9
.endm

.macro POP_ARGS
	popq	%r9
	popq	%r8
	popq	%rcx
	popq	%rdx
	popq	%rsi
	popq	%rdi
.endm

.macro RETURN_IF_IDLE counter
	cmpl	$0, \counter(%rip)
	jne	1f
	RET
1:
.endm

/* Pre-work, then the hooked function runs. */
.macro BEFORE name counter
SYM_FUNC_START(af_tramp_\name)
	ENDBR
	RETURN_IF_IDLE \counter
	PUSH_ARGS
	call	af_hook_\name
	POP_ARGS
	RET
SYM_FUNC_END(af_tramp_\name)
.endm

/*
 * The hook decides (struct af_verdict in RAX:RDX): RDX nonzero returns RAX to
 * the caller, past the hooked function.
 */
.macro VERDICT name idle
SYM_FUNC_START(af_tramp_\name)
	ENDBR
	.if \idle
	RETURN_IF_IDLE af_active
	.endif
	PUSH_ARGS
	call	af_hook_\name
	movq	%rdx, %r11
	POP_ARGS
	testq	%r11, %r11
	jnz	2f
	RET
2:
	addq	$8, %rsp
	UNWIND_HINT_FUNC
	RET
SYM_FUNC_END(af_tramp_\name)
.endm

.macro HOOK_BEFORE name
	BEFORE \name af_active
.endm

.macro HOOK_FORK name
	BEFORE \name af_fork_active
.endm

.macro HOOK_VERDICT name
	VERDICT \name 1
.endm

.macro HOOK_ALWAYS name
	VERDICT \name 0
.endm

	.text

#define AF_HOOK(kind, fn)	HOOK_##kind fn
#include "compat/hook_list.h"
