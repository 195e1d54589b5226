// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library in C programs, on this machine.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Compiles a program of `tests/c`.
fn compile(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/c/{name}.c"));
    // Tests run at the same time.
    static COMPILED: AtomicUsize = AtomicUsize::new(0);
    let n = COMPILED.fetch_add(1, Ordering::Relaxed);
    let program =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{n}", std::process::id()));
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

fn run(name: &str, args: &[&str], env: &[(&str, &str)], preload: bool) -> Output {
    let program = compile(name);
    let mut command = Command::new(&program);
    command.args(args).envs(env.iter().copied());
    if preload {
        command.env("LD_PRELOAD", library());
    }
    let out = command.output().unwrap();
    std::fs::remove_file(&program).unwrap();
    out
}

fn output(name: &str, args: &[&str], env: &[(&str, &str)], preload: bool) -> String {
    let out = run(name, args, env, preload);
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
    let wanted = |forks, n| {
        format!(
            "added forks: {forks}\nthreads: {n}\nadded forks: {forks}\n\
             threads of the child: {n}\nchild found: yes\n"
        )
    };
    let forks = [("ASYNCFORK_SPREAD_FORK_MS", "5")];
    let said = output("children", &["wait"], &forks, true);
    assert_eq!(said, wanted("yes", 2));
    for bad in ["", "0", "x", "-1"] {
        let said = output("children", &[], &[("ASYNCFORK_SPREAD_FORK_MS", bad)], true);
        assert_eq!(said, wanted("no", 1), "{bad:?}");
    }
}

/// Runs canary.c with forks added. Returns the signal that ended it, none after exit status 0, and what it said.
fn canary(what: &str) -> (Option<i32>, String) {
    let forks = [("ASYNCFORK_SPREAD_FORK_MS", "20")];
    let out = run("canary", &[what], &forks, true);
    assert!(
        out.status.success() || out.status.signal().is_some(),
        "{what}: {out:?}"
    );
    (out.status.signal(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn added_children_verify_their_memory() {
    assert_eq!(canary(""), (None, String::new()));
    let lines = |lines: &[&str]| -> String {
        let lines = lines.iter().map(|l| format!("asyncfork-spread: {l}\n"));
        lines.collect()
    };
    let abort = Some(libc::SIGABRT);
    let differs = "memory differs in an added child";
    let failed = "an added child failed";
    assert_eq!(canary("child fails"), (abort, lines(&[failed])));
    assert_eq!(canary("child differs"), (abort, lines(&[differs, failed])));
    // The program did not look how its child ended; the line is there.
    let (_, said) = canary("child of a child differs");
    assert_eq!(said, lines(&[differs, failed]));
    let parent = "memory differs in the parent of an added child";
    assert_eq!(canary("parent differs"), (abort, lines(&[parent])));
}

#[test]
fn a_killed_child_is_told_of_and_does_not_end_the_program() {
    let (signal, said) = canary("child is killed");
    assert_eq!(signal, None);
    assert!(
        said.starts_with("asyncfork-spread: an added child was killed\n"),
        "{said}"
    );
}

#[test]
fn a_program_may_do_to_the_verified_memory_what_it_does_to_all() {
    for what in ["unmapped", "protected", "reaped by nobody"] {
        assert_eq!(canary(what), (None, String::new()), "{what}");
    }
}
