// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scripts that are doors to a command of `asyncfork-vm`: what they hand on to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Script and subcommand.
const DOORS: [(&str, &str); 6] = [
    ("demo", "demo"),
    ("bench", "bench"),
    ("torture", "torture"),
    ("suites", "suites"),
    ("test", "test"),
    ("vm", "run"),
];

/// Those that need no `scripts/setup`, which itself uses one of them.
const PLAIN_DOORS: [&str; 4] = ["root", "kmod", "debug-kernel", "libcs"];

/// A checkout of doors, where `asyncfork-vm` says what it is called with and where, and
/// `scripts/setup` that it has run. Not made by this process: a file that it has open for writing
/// is none to execute.
fn checkout(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("asyncfork-{name}-{}", std::process::id()));
    let script = r#"
        mkdir -p "$1/bin" "$1/target/debug" "$1/elsewhere"
        cp -r "$2/scripts" "$1"
        stub() { printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod +x "$1"; }
        stub "$1/scripts/setup" 'echo "setup $*" >&2'
        stub "$1/bin/cargo" 'echo "cargo $*" >&2'
        stub "$1/target/debug/asyncfork-vm" 'pwd; for word; do echo "$word"; done'
    "#;
    let made = Command::new("sh")
        .args(["-euc", script, "sh"])
        .arg(&dir)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .status();
    assert!(made.expect("sh runs").success());
    dir.canonicalize().unwrap()
}

/// What a door says from another directory: lines of `asyncfork-vm`, and of the others.
fn open(checkout: &Path, door: &str, words: &[&str]) -> (Vec<String>, Vec<String>) {
    let path = std::env::var("PATH").unwrap();
    let out = Command::new("bash")
        .arg(checkout.join("scripts").join(door))
        .args(words)
        .current_dir(checkout.join("elsewhere"))
        .env_remove("CARGO_TARGET_DIR")
        .env("PATH", format!("{}:{path}", checkout.join("bin").display()))
        .output()
        .expect("bash runs");
    assert!(out.status.success(), "{door}: {out:?}");
    let lines = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.lines().map(str::to_owned).collect()
    };
    (lines(&out.stdout), lines(&out.stderr))
}

#[test]
fn a_door_leads_to_its_command_with_all_words_as_they_are() {
    let dir = checkout("doors");
    let words = ["--kernel", "6.12", "a  b", "$HOME", "*"];
    for (door, command) in DOORS {
        let (said, others) = open(&dir, door, &words);
        let mut want = vec![dir.display().to_string(), command.to_owned()];
        if door == "demo" {
            // A result is wanted where the user is.
            want.push("--from".into());
            want.push(dir.join("elsewhere").display().to_string());
        }
        want.extend(words.map(str::to_owned));
        assert_eq!(said, want, "{door}");
        assert!(others[0].starts_with("setup"), "{door}: {others:?}");
        assert_eq!(others[1..], ["cargo build -q -p asyncfork-vm"], "{door}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_door_to_what_boots_no_vm_installs_nothing() {
    let dir = checkout("doors-plain");
    let build = ["cargo build -q -p asyncfork-vm"];
    let words = ["--kernel", "a  b", "*"];
    for door in PLAIN_DOORS {
        let (said, others) = open(&dir, door, &words);
        let here = dir.display().to_string();
        assert_eq!(said, [&[&*here, door], &words[..]].concat(), "{door}");
        assert_eq!(others, build, "{door}");
    }
    // A module may be named as the user sees it.
    let (said, others) = open(&dir, "kmod-calls", &["x.ko"]);
    let there = dir.join("elsewhere").display().to_string();
    assert_eq!(
        (said, others),
        (
            vec![there, "kmod-calls".into(), "x.ko".into()],
            build.map(String::from).to_vec()
        )
    );
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn help_installs_nothing() {
    let dir = checkout("doors-help");
    for (door, _) in DOORS {
        for help in ["--help", "-h"] {
            let (_, others) = open(&dir, door, &[help]);
            assert_eq!(others, ["cargo build -q -p asyncfork-vm"], "{door} {help}");
        }
    }
    // That of the command in the VM is not the door's.
    let (_, others) = open(&dir, "vm", &["--", "ls", "--help"]);
    assert_eq!(others[0], "setup ");
    fs::remove_dir_all(&dir).unwrap();
}
