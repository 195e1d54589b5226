// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads and stores that may fault: the only sound way to see what the hardware allows.

use super::Span;
use crate::sys::cvt;
use std::io;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the probes are written for x86-64");

std::arch::global_asm!(
    ".pushsection .text",
    ".globl asyncfork_probe_load",
    "asyncfork_probe_load:",
    "mov rax, [rdi]",
    "mov eax, 1",
    "ret",
    ".globl asyncfork_probe_store",
    "asyncfork_probe_store:",
    "mov [rdi], rsi",
    "mov eax, 1",
    "ret",
    ".globl asyncfork_probe_fault",
    "asyncfork_probe_fault:",
    "xor eax, eax",
    "ret",
    ".popsection",
);

extern "C" {
    fn asyncfork_probe_load(addr: usize) -> u64;
    fn asyncfork_probe_store(addr: usize, value: u64) -> u64;
    fn asyncfork_probe_fault();
}

/// Installs the handler that lets a probe fail; any other fault still kills the process.
pub fn install() -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction.
    let mut act: libc::sigaction = unsafe { std::mem::zeroed() };
    act.sa_sigaction = on_fault as *const () as usize;
    act.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
    for sig in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the handler is async-signal-safe.
        cvt(unsafe { libc::sigaction(sig, &act, std::ptr::null_mut()) })?;
    }
    Ok(())
}

extern "C" fn on_fault(sig: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let at = *rip as usize;
    if at == asyncfork_probe_load as *const () as usize
        || at == asyncfork_probe_store as *const () as usize
    {
        *rip = asyncfork_probe_fault as *const () as usize as i64;
    } else {
        // SAFETY: the default action; returning repeats the fault, which then kills the process.
        unsafe { libc::signal(sig, libc::SIG_DFL) };
    }
}

/// Whether the first word of `span` can be read by the processor.
pub fn readable(span: Span) -> bool {
    // SAFETY: the access touches no Rust object, and a fault is caught by on_fault().
    unsafe { asyncfork_probe_load(span.addr()) == 1 }
}

/// Writes the first word of `span` and says whether the processor allowed it.
pub fn store(span: Span, value: u64) -> bool {
    // SAFETY: as in readable().
    unsafe { asyncfork_probe_store(span.addr(), value) == 1 }
}
