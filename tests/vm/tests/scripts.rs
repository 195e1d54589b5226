// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the scripts and the packaging promise, without a VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn dkms_knows_the_module_by_its_version() {
    let main = fs::read_to_string(repository().join("kmod/main.c")).unwrap();
    let version = main
        .lines()
        .find_map(|l| l.strip_prefix("MODULE_VERSION(\"")?.strip_suffix("\");"))
        .unwrap();
    let conf = fs::read_to_string(repository().join("packaging/dkms.conf")).unwrap();
    assert!(
        conf.contains(&format!("PACKAGE_VERSION=\"{version}\"\n")),
        "{conf}"
    );
}

#[test]
fn a_root_that_is_only_asked_for_is_not_made() {
    let dir = std::env::temp_dir().join(format!("asyncfork-root-{}", std::process::id()));
    fs::create_dir_all(dir.join("scripts")).unwrap();
    fs::copy(repository().join("scripts/root"), dir.join("scripts/root")).unwrap();
    for name in ["debian11", "6.12"] {
        let out = Command::new(env!("CARGO_BIN_EXE_asyncfork-vm"))
            .args(["root", "--made", name])
            .current_dir(&dir)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        let hint = format!("is missing: scripts/root {name} makes it");
        assert!(!out.status.success() && said.contains(&hint), "{out:?}");
    }
    assert!(!dir.join("target").exists());
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_vms_emulator_makes_nothing() {
    // The root of the Debian with QEMU, as if it were QEMU; and no scripts/root at all.
    let dir = std::env::temp_dir().join(format!("asyncfork-qemu-{}", std::process::id()));
    fs::create_dir_all(dir.join("lib64")).unwrap();
    let script = dir.join("qemu");
    fs::copy(repository().join("scripts/qemu"), &script).unwrap();
    let run = |root: Option<&Path>| {
        let mut qemu = Command::new("bash");
        qemu.arg(&script)
            .arg("-version")
            .env_remove("ASYNCFORK_QEMU_ROOT");
        if let Some(root) = root {
            qemu.env("ASYNCFORK_QEMU_ROOT", root);
        }
        let out = qemu.output().expect("bash runs");
        (out.status.success(), format!("{out:?}"))
    };
    let loader = dir.join("lib64/ld-linux-x86-64.so.2");
    std::os::unix::fs::symlink("/bin/echo", loader).unwrap();
    let (worked, out) = run(Some(&dir));
    assert!(
        worked && out.contains("/usr/bin/qemu-system-x86_64 -L"),
        "{out}"
    );
    let (worked, out) = run(None);
    assert!(!worked && out.contains("ASYNCFORK_QEMU_ROOT"), "{out}");
    fs::remove_dir_all(&dir).unwrap();
}

/// Runs the scan over an object file made of `source`.
fn scan(name: &str, source: &str, flags: &[&str]) -> Output {
    let dir = std::env::temp_dir().join(format!("asyncfork-calls-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("x.c"), source).unwrap();
    let gcc = Command::new("gcc")
        .args(["-O2", "-c", "x.c", "-o", "x.o"])
        .args(flags)
        .current_dir(&dir)
        .status()
        .expect("gcc runs");
    assert!(gcc.success());
    let object = dir.join("x.o");
    let out = Command::new(env!("CARGO_BIN_EXE_asyncfork-vm"))
        .arg("kmod-calls")
        .arg(&object)
        .output()
        .unwrap();
    fs::remove_dir_all(&dir).unwrap();
    out
}

#[test]
fn calls_through_pointers_are_found() {
    const CALL: &str = "void f(void (*p)(void)) { p(); __asm__(\"\"); }";
    const JUMP: &str = "void f(void (*p)(void)) { p(); }";
    const FIELD: &str =
        "struct s { long a; void (*p)(void); }; int f(struct s *s) { s->p(); return 1; }";
    for (name, source, flags) in [
        ("call", CALL, &[][..]),
        ("jump", JUMP, &[]),
        ("field", FIELD, &[]),
        (
            "thunk",
            CALL,
            &[
                "-mindirect-branch=thunk-extern",
                "-mindirect-branch-register",
            ],
        ),
    ] {
        let out = scan(name, source, flags);
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{name}: {out:?}");
        assert!(err.contains("NOT ALLOWED: f "), "{name}: {err}");
    }
}

#[test]
fn direct_calls_are_fine() {
    let out = scan("direct", "void g(void); void f(void) { g(); g(); }", &[]);
    assert!(out.status.success(), "{out:?}");
}
