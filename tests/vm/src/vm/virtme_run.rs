// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our virtme-run, a few lines around virtme-ng's own, which vng starts in its place.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where that finds another init than virtme-ng's.
pub(super) const TOOLS: &str = "ASYNCFORK_TOOLS";

const INIT: &str = include_str!("init.sh");
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

/// Writes the init that becomes systemd, with `settings` before it. The directory that is
/// for virtme-ng's tools.
pub(super) fn install_init(dir: &Path, settings: &[(&str, &str)]) -> Result<PathBuf> {
    let tools = dir.join("tools");
    let init = tools.join("bin/virtme-ng-init");
    let mut text = "#!/bin/sh\n".to_owned();
    for (name, value) in settings {
        text += &format!("{name}='{value}'\n");
    }
    fs::create_dir_all(tools.join("bin"))
        .and_then(|()| fs::write(&init, text + INIT))
        .and_then(|()| fs::set_permissions(&init, Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", init.display()))?;
    Ok(tools)
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
    from virtme import architectures, resources
    print(resources.find_guest_tools())
    print(architectures.Arch.numa_support(), KERNEL_CMDLINE_MAX)
    for path in ('/', '/usr', '/'):
        fs = VirtioFS()
        print(fs.start(path, False, 'auto', readonly=True), fs.sock)
";
    const RESOURCES: &str = "def find_guest_tools():\n    return '/tools'\n";
    const ARCHITECTURES: &str = "class Arch:\n    pass\n";

    #[test]
    fn virtme_ng_gets_our_sockets_and_tools() {
        let dir = scratch("virtme-run");
        fs::create_dir_all(dir.join("virtme/commands")).unwrap();
        fs::write(dir.join("virtme/commands/run.py"), RUN).unwrap();
        fs::write(dir.join("virtme/architectures.py"), ARCHITECTURES).unwrap();
        fs::write(dir.join("virtme/resources.py"), RESOURCES).unwrap();
        install(&dir).unwrap();
        let run = |sockets: &str, tools: &str| {
            // Itself it might be busy still, in a child that another test is about to start.
            let mut run = Command::new("python3");
            run.arg(bin(&dir).join("virtme-run"))
                .env("PYTHONPATH", &dir);
            run.env("ASYNCFORK_VIRTIOFS", sockets).env(TOOLS, tools);
            run.output().unwrap()
        };
        let out = run("/=a\n/usr=b\n/=c", "");
        assert_eq!(
            String::from_utf8_lossy(&out.stdout),
            "/tools\nFalse 2000\nTrue a\nTrue b\nTrue c\n",
            "{out:?}"
        );
        // A directory without a daemon is none that virtme-ng may start one for.
        assert!(!run("/=a", "").status.success());
        let out = run("/=a\n/usr=b\n/=c", "/ours");
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(said.starts_with("/ours\n"), "{out:?}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_init_has_its_settings_before_it() {
        let dir = scratch("virtme-init");
        let tools = install_init(&dir, &[("shares", "0 1"), ("transport", "9p")]).unwrap();
        let text = fs::read_to_string(tools.join("bin/virtme-ng-init")).unwrap();
        assert!(text.starts_with("#!/bin/sh\nshares='0 1'\ntransport='9p'\n# PID 1"));
        fs::remove_dir_all(dir).unwrap();
    }
}
