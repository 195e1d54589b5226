// SPDX-License-Identifier: MIT OR Apache-2.0
//! What compiled code calls by itself to copy, fill and compare memory.
//!
//! The C library's own would be imports that cannot be missing, and a program
//! may have no C library at all. In glibc they are chosen at load (IFUNC), which
//! fails where that library is not relocated yet. In assembly, as a compiler
//! makes a call of memcpy() of a loop that copies. Hidden: nobody else's.

core::arch::global_asm!(
    ".macro asyncfork_mem name",
    ".hidden \\name",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    ".endm",
    // memcpy(to, from, size); memmove() of what does not overlap, or to below.
    "asyncfork_mem memmove",
    "mov rax, rdi",
    "sub rax, rsi",
    "cmp rax, rdx",
    "jb 2f",
    "asyncfork_mem memcpy",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    // To above, in part onto itself: from the end. A signal handler begins with
    // the direction flag clear.
    "2:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    // memset(to, byte, size)
    "asyncfork_mem memset",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    // memcmp(a, b, size); bcmp() is the same, of which only "equal" counts.
    "asyncfork_mem bcmp",
    "asyncfork_mem memcmp",
    "xor ecx, ecx",
    "2:",
    "xor eax, eax",
    "cmp rcx, rdx",
    "je 3f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 2b",
    "3:",
    "ret",
    // strlen(text)
    "asyncfork_mem strlen",
    "mov rax, -1",
    "2:",
    "inc rax",
    "cmp byte ptr [rdi + rax], 0",
    "jne 2b",
    "ret",
    ".purgem asyncfork_mem",
);
