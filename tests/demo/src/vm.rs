// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's part: a VM large enough, and `guest` in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use signal_hook::consts::SIGINT;

use crate::guest;
use crate::machine::Machine;

/// Command line of `vm`.
#[derive(clap::Args)]
pub struct Options {
    /// The repository
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Kernel series to boot
    #[arg(long, value_name = "SERIES", default_value = "6.1")]
    pub kernel: String,
    /// Options of `guest`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub guest: Vec<String>,
}

/// Boots the VM and runs `guest` in it; the exit status is `guest`'s, or that of
/// scripts/vm if the VM or its kernel failed.
///
/// # Errors
/// The kernel's guest root lacks the server, scripts/vm cannot be run, or the
/// result not be written.
pub fn run(options: &Options, guest: &guest::Options) -> Result<ExitCode> {
    check_server(&guest_root(options)?, &options.kernel, guest.binary())?;
    let mut vm = Command::new(options.root.join("scripts/vm"));
    vm.arg(format!("--kernel={}", options.kernel));
    let gib = guest.size().div_ceil(1 << 30);
    vm.arg(format!("--memory={}G", memory_gib(gib)));
    // Emulation on a busy machine needs some ten minutes for the first GiB.
    vm.arg(format!("--timeout={}", 1800 * gib));
    let mut args = options.guest.clone();
    args.push(format!("--host={}", Machine::detect(None)?.brief()));
    let out = guest
        .out()
        .map(|wanted| Out::new(&options.root, wanted))
        .transpose()?;
    if let Some(out) = &out {
        vm.arg("--share").arg(&out.dir);
        args.push(format!("--out={}", out.inside().display()));
    }
    vm.args(["--", "target/release/asyncfork-demo", "guest"])
        .args(args);
    // Ctrl-C ends scripts/vm, which cleans up and then ends this.
    signal_hook::flag::register(SIGINT, Arc::default())?;
    let status = vm.status().with_context(|| format!("running {vm:?}"))?;
    if let Some(out) = out.filter(|_| status.success()) {
        out.deliver()?;
    }
    // None: killed by a signal.
    let code = status.code().unwrap_or(130);
    Ok(ExitCode::from(u8::try_from(code)?))
}

/// The directory that the guest has as its root.
fn guest_root(options: &Options) -> Result<PathBuf> {
    let script = options.root.join("scripts/root");
    let output = Command::new(&script)
        .arg(&options.kernel)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    ensure!(
        output.status.success(),
        "there is no guest root for kernel {}",
        options.kernel
    );
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// Before a boot for nothing.
fn check_server(guest_root: &Path, kernel: &str, binary: &Path) -> Result<()> {
    // A binary of the user's own may be anywhere that the guest sees.
    let Some(name) = binary.strip_prefix("/usr/bin").ok() else {
        return Ok(());
    };
    ensure!(
        guest_root.join("usr/bin").join(name).exists(),
        "the Debian of kernel {kernel} has no {}: Redis comes with every kernel, Valkey with 6.12 \
         and 7.2",
        name.display()
    );
    Ok(())
}

/// What the check in `guest` asks for, and the system.
fn memory_gib(data_gib: u64) -> u64 {
    5 * data_gib + 1
}

/// The result's way out: the guest may write to shared directories only.
struct Out {
    dir: PathBuf,
    wanted: PathBuf,
}

impl Out {
    fn new(root: &Path, wanted: &Path) -> Result<Self> {
        let dir = root.join(format!("target/demo/{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self {
            dir,
            wanted: wanted.to_owned(),
        })
    }

    /// The extension decides on the format.
    fn inside(&self) -> PathBuf {
        let file = self.dir.join("result");
        match self.wanted.extension() {
            Some(extension) => file.with_extension(extension),
            None => file,
        }
    }

    fn deliver(&self) -> Result<()> {
        fs::copy(self.inside(), &self.wanted)
            .with_context(|| format!("writing {}", self.wanted.display()))?;
        Ok(())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // At worst a stale file below target/.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_the_kernels_debian_lacks_is_refused() {
        let root = std::env::temp_dir().join(format!("asyncfork-demo-{}", std::process::id()));
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/redis-server"), "").unwrap();
        let check = |binary| check_server(&root, "6.1", Path::new(binary));
        assert!(check("/usr/bin/redis-server").is_ok());
        assert!(check("target/my-server").is_ok());
        let error = check("/usr/bin/valkey-server").unwrap_err().to_string();
        assert!(error.contains("6.1 has no valkey-server"), "{error}");
        fs::remove_dir_all(&root).unwrap();
    }
}
