// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library in C programs, on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles a program of `tests/c`.
fn compile(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/c/{name}.c"));
    let program =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let status = Command::new("cc")
        .args(["-Wall", "-Werror", "-O1", "-o"])
        .args([&program, &source])
        .status()
        .expect("cc is installed");
    assert!(status.success(), "{}", source.display());
    program
}

/// The library that cargo built beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap();
    let library = deps.join("libasyncfork_spread.so");
    assert!(library.exists(), "{} is missing", library.display());
    library
}

fn output(name: &str, args: &[&str], env: &[(&str, &str)], preload: bool) -> String {
    let program = compile(name);
    let mut command = Command::new(&program);
    command.args(args).envs(env.iter().copied());
    if preload {
        command.env("LD_PRELOAD", library());
    }
    let out = command.output().unwrap();
    std::fs::remove_file(&program).unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

const ALL_YES: [&str; 13] = [
    "one page alone: yes",
    "many pages alone: yes",
    "shared memory spread: no",
    "fixed kept: yes",
    "hint kept: yes",
    "address reused: yes",
    "and then not: yes",
    "EINVAL: yes",
    "ENOMEM: yes",
    "EEXIST: yes",
    "munmap EINVAL: yes",
    "errno kept: yes",
    "malloc on the heap: yes",
];

#[test]
fn private_memory_is_spread_and_nothing_else() {
    let said = output("spread", &[], &[], true);
    assert_eq!(said.lines().collect::<Vec<_>>(), ALL_YES);
    // Without it the first claims are false: the program can tell.
    let said = output("spread", &[], &[], false);
    assert!(said.contains("one page alone: no"), "{said}");
    assert!(said.contains("malloc on the heap: no"), "{said}");
}

#[test]
fn a_program_that_is_started_by_a_child_has_it_too() {
    let said = output("spread", &["exec"], &[], true);
    assert_eq!(said.lines().collect::<Vec<_>>(), ALL_YES);
}

#[test]
fn forks_are_added_in_the_program_and_its_children() {
    let wanted = |n| format!("threads: {n}\nthreads of the child: {n}\nchild found: yes\n");
    let said = output("children", &[], &[("ASYNCFORK_SPREAD_FORK_MS", "5")], true);
    assert_eq!(said, wanted(2));
    for bad in ["", "0", "x", "-1"] {
        let said = output("children", &[], &[("ASYNCFORK_SPREAD_FORK_MS", bad)], true);
        assert_eq!(said, wanted(1), "{bad:?}");
    }
}
