// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/libcs`: a program for other C libraries than the guests have.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::geteuid;

use crate::checkout::repository_root;
use crate::root::Root;
use crate::tools;

/// Compile a program that the VM tests run under the library with other C libraries
///
/// In Debian 11 (scripts/root debian11):
///   target/libcs/glibc     for glibc 2.31
///   target/libcs/musl      for musl
///   target/libcs/debian11  a link to that Debian, which has both
#[derive(Debug, clap::Args)]
#[command(override_usage = "scripts/libcs", verbatim_doc_comment)]
pub struct LibcsOptions {}

/// Where they go, relative to the repository root.
const OUT: &str = "target/libcs";
/// The compiler finds the checkout at its own path.
const COMPILE: &str = r#"
    mount --bind "$PWD" "$0$PWD"
    exec scripts/in-root "$0" sh -euc 'cd "$0" && exec "$@"' "$PWD" "$@"
"#;
const COMPILERS: [(&str, &[&str]); 2] = [
    ("glibc", &["gcc"]),
    // It comes without the kernel's headers.
    (
        "musl",
        &[
            "musl-gcc",
            "-idirafter",
            "/usr/include",
            "-idirafter",
            "/usr/include/x86_64-linux-gnu",
        ],
    ),
];

/// Compiles them.
///
/// # Errors
/// Debian 11 cannot be had, or the program not be compiled.
pub fn run() -> Result<()> {
    let checkout = repository_root()?;
    let root = Root::debian11(&checkout)?;
    root.ensure(false)?;
    let out = checkout.join(OUT);
    fs::create_dir_all(&out)?;
    for (name, compiler) in COMPILERS {
        compile(&checkout, &root.dir, name, compiler)?;
    }
    let name = root.dir.file_name().context("a root has a name")?;
    link(&Path::new("../roots").join(name), &out.join("debian11"))
}

fn compile(checkout: &Path, root: &Path, name: &str, compiler: &[&str]) -> Result<()> {
    let new = format!("{OUT}/{name}.new");
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    unshare
        .current_dir(checkout)
        .env("PWD", checkout)
        .args(["sh", "-euc", COMPILE])
        .arg(root)
        .args(compiler)
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o", &new])
        .args(["shim/tests/c/pages.c", "-ldl"]);
    tools::run(&mut unshare).with_context(|| format!("compiling for {name}"))?;
    fs::rename(checkout.join(&new), checkout.join(OUT).join(name))?;
    Ok(())
}

/// Makes a link, whatever was there before.
fn link(target: &Path, path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    symlink(target, path).with_context(|| format!("cannot make {}", path.display()))
}
