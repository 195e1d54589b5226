// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemons of a guest whose directories come by virtiofs.
//!
//! Each serves one directory, at a socket in the run directory. The socket listens before
//! the daemon runs, so nobody has to wait for it. The daemon ends when QEMU, its only
//! client, does, and with the guest's process group at the latest ([`super::group`]).
//!
//! They run in no sandbox, for which an ordinary user needs subordinate user numbers: the
//! guest gets at what it would get at with 9p, which QEMU serves in no sandbox either.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};

use crate::checkout::Checkout;

/// The program, in the root that has QEMU.
const VIRTIOFSD: &str = "usr/libexec/virtiofsd";
/// Where our virtme-run looks up which directory has which socket.
const SOCKETS: &str = "ASYNCFORK_VIRTIOFS";

/// A daemon that is to be started with the guest.
#[derive(Debug)]
pub(super) struct Daemon {
    /// What it serves, for people.
    pub(super) name: String,
    pub(super) command: Command,
}

/// A directory that the guest gets.
#[derive(Debug)]
struct Export {
    name: String,
    dir: PathBuf,
    writable: bool,
}

impl Export {
    fn new(name: &str, dir: &Path, writable: bool) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot find {}", dir.display()))?;
        Ok(Export {
            name: name.to_owned(),
            dir,
            writable,
        })
    }

    /// Its daemon, from the root that has QEMU and with that root's C library.
    fn daemon(&self, root: &Path, socket: UnixListener) -> Daemon {
        let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(root.join("usr/lib/x86_64-linux-gnu"))
            .arg(root.join(VIRTIOFSD))
            .arg("--shared-dir")
            .arg(&self.dir)
            .args(["--fd", "0", "--sandbox", "none", "--log-level", "error"])
            // Root, who may open a file by a handle, has no file open then that the guest
            // merely knows of: a walk through a guest root would take 90000.
            .arg("--inode-file-handles=prefer")
            .stdin(Stdio::from(OwnedFd::from(socket)));
        // Either goes through the guest's page cache. What the guest may not change, it
        // need not look at twice; as with 9p.
        if self.writable {
            command.args(["--cache", "auto"]);
        } else {
            command.args(["--cache", "always", "--readonly"]);
        }
        Daemon {
            name: self.name.clone(),
            command,
        }
    }
}

/// Makes the sockets, tells `vng` of them, and returns the daemons, which are yet to be
/// started. They serve what `vng` is to give to the guest: its root, virtme-ng's
/// tools or those in their place, the checkout, the run directory `dir` and `shares`.
pub(super) fn prepare(
    vng: &mut Command,
    checkout: &Checkout,
    tools: Option<PathBuf>,
    dir: &Path,
    shares: &[PathBuf],
) -> Result<Vec<Daemon>> {
    ensure!(
        checkout.qemu_root.join(VIRTIOFSD).exists(),
        "{} has no {VIRTIOFSD}: delete that directory and try again",
        checkout.qemu_root.display()
    );
    let tools = tools.map_or_else(|| guest_tools(checkout), Ok)?;
    let mut exports = vec![
        Export::new("root", &checkout.guest_root, false)?,
        Export::new("tools", &tools, false)?,
        Export::new("checkout", &checkout.root, false)?,
        Export::new("run", dir, true)?,
    ];
    for (n, share) in shares.iter().enumerate() {
        exports.push(Export::new(&format!("share{n}"), share, true)?);
    }

    let place = sockets(dir);
    fs::create_dir(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let mut daemons = Vec::new();
    let mut known = Vec::new();
    for export in &exports {
        daemons.push(export.daemon(&checkout.qemu_root, listen(&place, &export.name)?));
        let socket = place.join(&export.name);
        // Seen from the checkout, where QEMU runs: such a path's length is limited.
        let socket = socket.strip_prefix(&checkout.root).unwrap_or(&socket);
        known.push(format!("{}={}", export.dir.display(), socket.display()));
    }
    vng.env(SOCKETS, known.join("\n"));
    Ok(daemons)
}

/// Removes the sockets.
pub(super) fn clean(dir: &Path) {
    // The run directory goes some day, too; and with 9p there are none.
    let _ = fs::remove_dir_all(sockets(dir));
}

fn sockets(dir: &Path) -> PathBuf {
    dir.join("sockets")
}

/// A socket in `dir`, however long the path of that is.
fn listen(dir: &Path, name: &str) -> Result<UnixListener> {
    let here = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", here.as_raw_fd()))
        .with_context(|| format!("cannot make the socket {name} in {}", dir.display()))
}

/// What virtme-ng runs in every guest.
fn guest_tools(checkout: &Checkout) -> Result<PathBuf> {
    let lib = checkout.root.join("target/venv/lib");
    fs::read_dir(&lib)
        .into_iter()
        .flatten()
        .flatten()
        .map(|python| python.path().join("site-packages/virtme/guest"))
        .find(|tools| tools.is_dir())
        .with_context(|| format!("no virtme-ng in {}: run scripts/setup", lib.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Accel;
    use crate::kernels;
    use crate::vm::tests::scratch;
    use crate::vm::transport::Transport;
    use crate::vm::VmOptions;
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixStream;

    /// A checkout with a share, a run directory, and roots, of which one has the daemon.
    fn checkout(dir: &Path) -> Checkout {
        for dir in ["guest", "qemu/usr/libexec", "run", "share"]
            .into_iter()
            .chain(["target/venv/lib/python3.11/site-packages/virtme/guest"])
            .map(|name| dir.join(name))
        {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(dir.join("qemu").join(VIRTIOFSD), "").unwrap();
        Checkout {
            root: dir.to_owned(),
            kernel: kernels::first(),
            release: "6.1.0-1-cloud-amd64".into(),
            guest_root: dir.join("guest"),
            qemu_root: dir.join("qemu"),
        }
    }

    fn env(command: &Command, name: &str) -> String {
        let value = command.get_envs().find(|(key, _)| *key == name);
        let (_, value) = value.expect("it is set");
        value.unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn what_the_guest_may_not_change_is_read_only() {
        let dir = scratch("virtiofs");
        let (checkout, run) = (checkout(&dir), dir.join("run"));
        let mut vng = Command::new("vng");
        let daemons = prepare(&mut vng, &checkout, None, &run, &[dir.join("share")]).unwrap();
        let served: BTreeMap<&str, (String, bool, bool)> = daemons
            .iter()
            .map(|Daemon { name, command }| {
                let words: Vec<_> = command.get_args().map(|w| w.to_str().unwrap()).collect();
                let after = |option| words.iter().skip_while(move |w| **w != option).nth(1);
                let cached = after("--cache") == Some(&"always");
                let dir = after("--shared-dir").unwrap().to_string();
                (&**name, (dir, cached, words.contains(&"--readonly")))
            })
            .collect();
        let wanted = [
            ("checkout", "", true),
            ("root", "/guest", true),
            ("run", "/run", false),
            ("share0", "/share", false),
            (
                "tools",
                "/target/venv/lib/python3.11/site-packages/virtme/guest",
                true,
            ),
        ];
        let wanted = wanted.map(|(name, place, fixed)| {
            let place = format!("{}{place}", dir.display());
            (name, (place, fixed, fixed))
        });
        assert_eq!(served, BTreeMap::from(wanted));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn sockets_listen_before_the_daemons_run_and_go_after_the_guest() {
        // Longer than the path of a socket may be.
        let dir = scratch("virtiofs-sockets").join("long".repeat(30));
        let (checkout, run) = (checkout(&dir), dir.join("run"));
        let mut vng = Command::new("vng");
        let daemons = prepare(&mut vng, &checkout, None, &run, &[]).unwrap();
        let sockets = env(&vng, SOCKETS);
        assert_eq!(sockets.lines().count(), 4, "{sockets}");
        let here = File::open(&dir).unwrap();
        let connects = || {
            sockets.lines().all(|line| {
                let (_, socket) = line.split_once('=').unwrap();
                assert!(socket.len() < 100, "{socket}");
                // As seen from the checkout.
                UnixStream::connect(format!("/proc/self/fd/{}/{socket}", here.as_raw_fd())).is_ok()
            })
        };
        assert!(connects());
        // Who connects when there is no daemon any more is told so.
        drop(daemons);
        assert!(!connects());
        clean(&run);
        assert!(fs::read_dir(&run).unwrap().next().is_none());
        fs::remove_dir_all(dir.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_root_without_the_daemon_is_to_be_made_anew() {
        let dir = scratch("virtiofs-none");
        let checkout = checkout(&dir);
        fs::remove_file(dir.join("qemu").join(VIRTIOFSD)).unwrap();
        let error = prepare(
            &mut Command::new("vng"),
            &checkout,
            None,
            &dir.join("run"),
            &[],
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("delete that directory"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn vng_gets_the_checkout_and_a_machine_with_pci() {
        let dir = scratch("virtiofs-vng");
        let checkout = checkout(&dir);
        let boot = VmOptions::default()
            .command(&checkout, Accel::Tcg, Transport::Virtiofs, &dir.join("run"))
            .unwrap();
        assert_eq!(boot.daemons.len(), 4);
        let words: Vec<_> = boot.vng.get_args().collect();
        let checkout = format!("--rodir={0}={0}", dir.display());
        for word in ["--disable-microvm", &checkout] {
            assert!(words.contains(&word.as_ref()), "{words:?}");
        }
        assert!(!words.contains(&"--force-9p".as_ref()), "{words:?}");
        fs::remove_dir_all(dir).unwrap();
    }
}
