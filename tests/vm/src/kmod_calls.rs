// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/kmod-calls`: the functions of a built module that call or jump through a pointer.
//!
//! From 6.12 on a kernel with IBT seals the functions that nobody takes the address of: an
//! indirect call to one is a fatal exception, on hardware that has IBT and nowhere else. What
//! the module calls in the kernel it calls directly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Result};

use crate::tools;

/// List the functions of a built module that call or jump through a pointer
///
/// Fails if there is one that is not known to be harmless.
#[derive(Debug, clap::Args)]
#[command(override_usage = "scripts/kmod-calls MODULE.ko")]
pub struct KmodCallsOptions {
    #[arg(value_name = "MODULE.ko")]
    module: PathBuf,
}

/// Functions whose pointers are harmless.
const ALLOWED: [fn(&str) -> bool; 2] = [
    // Tracepoint iterators, made by the kernel's macros: they call the probes that
    // registered with the tracepoint, whose addresses are taken.
    |name| name.starts_with("__traceiter_"),
    // Drops a reference on a cgroup: percpu_ref_put() calls the release function that the
    // kernel registered, whose address is taken.
    |name| name == "af_css_put",
];

/// Prints what is found. Whether all of it is harmless.
///
/// # Errors
/// There is no such file, or objdump does not work.
pub fn run(options: &KmodCallsOptions) -> Result<bool> {
    check(&options.module)
}

/// The same of the module at `path`.
///
/// # Errors
/// There is no such file, or objdump does not work.
pub fn check(path: &Path) -> Result<bool> {
    ensure!(path.exists(), "there is no {}", path.display());
    let mut objdump = Command::new("objdump");
    objdump.args(["-dr", "--no-show-raw-insn"]).arg(path);
    let mut clean = true;
    for (name, count) in callers(&tools::output(&mut objdump)?) {
        if ALLOWED.iter().any(|allowed| allowed(&name)) {
            println!("allowed: {name} ({count})");
        } else {
            eprintln!("NOT ALLOWED: {name} ({count}): calls or jumps through a pointer");
            clean = false;
        }
    }
    Ok(clean)
}

/// The functions that call or jump through a pointer, and how often.
fn callers(disassembly: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut function = "";
    let mut lines = disassembly.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = function_name(line) {
            function = name;
        }
        // A call through pv_ops, which its relocation shows, is replaced by the loader with
        // a direct call or the instructions themselves, before the module runs.
        let next = lines.peek();
        let replaced = next.is_some_and(|next| next.contains("R_X86_64_PC32\tpv_ops"));
        if calls_thunk(line) || calls_by_operand(line) && !replaced {
            *found.entry(function.to_owned()).or_insert(0) += 1;
        }
    }
    found
}

/// `f` of `0000000000000010 <f>:`.
fn function_name(line: &str) -> Option<&str> {
    let (address, name) = line.split_once(" <")?;
    let is_address = !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit());
    name.strip_suffix(">:").filter(|_| is_address)
}

/// With mitigations the pointer is in a register and a thunk in the kernel jumps there.
fn calls_thunk(line: &str) -> bool {
    line.split("__x86_indirect_").skip(1).any(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        rest[..end.unwrap_or(rest.len())].contains("thunk")
    })
}

/// Without, the instruction has an operand that begins with an asterisk.
fn calls_by_operand(line: &str) -> bool {
    line.split('\t').skip(1).any(|code| {
        let code = ["notrack ", "bnd "]
            .iter()
            .find_map(|prefix| code.strip_prefix(prefix))
            .unwrap_or(code);
        let operand = ["call", "jmp"].iter().find_map(|op| code.strip_prefix(op));
        let operand = operand.map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_lowercase()));
        operand.is_some_and(|rest| rest.starts_with(' ') && rest.trim_start().starts_with('*'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_the_loader_replaces_does_not_count() {
        let text = "\
0000000000000010 <plain>:
  14:\tcall   *0x8(%rdi)
  17:\tnotrack jmp *%rax
  19:\tcall   30 <plain+0x20>
  1e:\tbnd jmpq *(%rax)
0000000000000040 <pv>:
  44:\tcall   *0x0(%rip)        # 4a <pv+0xa>
\t\t\t46: R_X86_64_PC32\tpv_ops+0x10c
  4a:\tcall   *0x0(%rip)        # 50 <pv+0x10>
\t\t\t4c: R_X86_64_PC32\tother-0x4
0000000000000060 <thunk>:
  64:\tcall   69 <thunk+0x9>
\t\t\t65: R_X86_64_PLT32\t__x86_indirect_thunk_rax-0x4
  69:\tjmp    6e <thunk+0xe>
\t\t\t6a: R_X86_64_PLT32\t__x86_indirect_call_thunk_array-0x4
  6e:\tcall   73 <thunk+0x13>
\t\t\t6f: R_X86_64_PLT32\t__x86_return_thunk-0x4
0000000000000080 <last>:
  84:\tjmp    *%rax
";
        let found: Vec<(String, usize)> = callers(text).into_iter().collect();
        let want = [("last", 1), ("plain", 3), ("pv", 1), ("thunk", 2)];
        assert_eq!(found, want.map(|(name, n)| (name.to_owned(), n)));
    }
}
