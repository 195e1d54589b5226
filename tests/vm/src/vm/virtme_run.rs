// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our virtme-run, a few lines around virtme-ng's own, which vng starts in its place.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const PROGRAM: &str = include_str!("virtme-run.py");

/// What comes first in PATH for vng, if the run directory is `dir`.
pub(super) fn bin(dir: &Path) -> PathBuf {
    dir.join("bin")
}

/// Writes the program.
pub(super) fn install(dir: &Path) -> Result<()> {
    let program = bin(dir).join("virtme-run");
    fs::create_dir(bin(dir))
        .and_then(|()| fs::write(&program, PROGRAM))
        .and_then(|()| fs::set_permissions(&program, Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::scratch;
    use std::process::Command;

    /// In the place of virtme-ng's: says where it finds daemons.
    const RUN: &str = "\
KERNEL_CMDLINE_MAX = 896
class VirtioFS:
    def start(self, path, verbose=True, cache='always', posix_acl=False, readonly=False):
        raise Exception('a daemon of its own')
def main():
    from virtme import architectures
    print(architectures.Arch.numa_support(), KERNEL_CMDLINE_MAX)
    for path in ('/', '/usr', '/'):
        fs = VirtioFS()
        print(fs.start(path, False, 'auto', readonly=True), fs.sock)
";
    const ARCHITECTURES: &str = "class Arch:\n    pass\n";

    #[test]
    fn virtme_ng_gets_our_sockets() {
        let dir = scratch("virtme-run");
        fs::create_dir_all(dir.join("virtme/commands")).unwrap();
        fs::write(dir.join("virtme/commands/run.py"), RUN).unwrap();
        fs::write(dir.join("virtme/architectures.py"), ARCHITECTURES).unwrap();
        install(&dir).unwrap();
        let run = |sockets: &str| {
            // Itself it might be busy still, in a child that another test is about to start.
            let mut run = Command::new("python3");
            run.arg(bin(&dir).join("virtme-run"))
                .env("PYTHONPATH", &dir);
            run.env("ASYNCFORK_VIRTIOFS", sockets).output().unwrap()
        };
        let out = run("/=a\n/usr=b\n/=c");
        assert_eq!(
            String::from_utf8_lossy(&out.stdout),
            "False 2000\nTrue a\nTrue b\nTrue c\n",
            "{out:?}"
        );
        // A directory without a daemon is none that virtme-ng may start one for.
        assert!(!run("/=a").status.success());
        fs::remove_dir_all(dir).unwrap();
    }
}
