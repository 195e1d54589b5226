// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line that boots a guest.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use asyncfork_host::size::parse_size;

use super::run_dir::CONSOLE;
use super::transport::Transport;
use super::{virtiofs, virtme_run, VmOptions};
use crate::accel::Accel;
use crate::checkout::{check_path, Checkout};

/// With `--icount`: an instruction takes 2^1 ns of the guest's clock.
const ICOUNT_SHIFT: u32 = 1;

/// Where the guest finds the directories that it may write to, before its
/// script puts them where they belong.
const GUEST_MOUNTS: &str = "/run/asyncfork";
/// Directories of the guest in which new ones can be made, as mount points.
const GUEST_WRITABLE: &[&str] = &["/home", "/opt", "/run", "/srv", "/tmp", "/var"];

/// Whether the guest has 5-level page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum La57 {
    On,
    Off,
}

impl fmt::Display for La57 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            La57::On => "on",
            La57::Off => "off",
        })
    }
}

/// What boots a guest: vng, and what has to run beside it.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) vng: Command,
    pub(super) daemons: Vec<virtiofs::Daemon>,
}

impl VmOptions {
    /// The command that boots the guest.
    pub(super) fn command(
        &self,
        checkout: &Checkout,
        accel: Accel,
        transport: Transport,
        dir: &Path,
    ) -> Result<Boot> {
        let mut vng = Command::new(checkout.venv_bin().join("vng"));
        // vng finds virtme-run by PATH; modprobe is not in every user's.
        let path = std::env::var("PATH").unwrap_or_default();
        vng.env(
            "PATH",
            format!(
                "{}:{}:{path}:/usr/sbin:/sbin",
                virtme_run::bin(dir).display(),
                checkout.venv_bin().display()
            ),
        );
        vng.current_dir(&checkout.root)
            .arg("--run")
            .arg(checkout.vmlinuz())
            .arg("--root")
            .arg(&checkout.guest_root)
            .arg("--qemu")
            .arg(checkout.qemu())
            .env("ASYNCFORK_QEMU_ROOT", &checkout.qemu_root)
            // Killed, it leaves files.
            .env("TMPDIR", dir)
            .args(["--name", "asyncfork"])
            .args(["--memory", &self.memory])
            .args(["--cpus", &self.cpus.to_string()])
            // The boot console goes to vng's stderr, among all that others write there;
            // so send it to a file of its own. QEMU refuses this if vng, another version,
            // gives the console another name.
            .arg("--verbose")
            .arg(format!(
                "--qemu-opts=-set chardev.console.path={}",
                dir.join(CONSOLE).display()
            ));
        if accel == Accel::Tcg {
            vng.arg("--disable-kvm");
        }
        for memory in self.node_memory()? {
            vng.args(["--numa", &memory]);
        }
        for words in kernel_words(accel, self.icount).iter().chain(&self.append) {
            vng.args(["--append", words]);
        }
        let root = checkout.root.display();
        vng.arg(format!("--rwdir={GUEST_MOUNTS}/run={}", dir.display()));
        // A clock that leaps over idle time, also over waiting for the host, is none to go by:
        // the host's time limit counts then.
        let limit = self
            .timeout
            .saturating_mul(if self.icount { 1000 } else { 1 });
        let mounts = match self.systemd {
            true => "systemd".to_owned(),
            false => transport.to_string(),
        };
        let mut script = format!("sh {GUEST_MOUNTS}/run/guest.sh {mounts} {limit} {root}");
        let shares = self.shares(checkout)?;
        for (n, share) in shares.iter().enumerate() {
            let share = share.display();
            vng.arg(format!("--rwdir={GUEST_MOUNTS}/share{n}={share}"));
            script += &format!(" {share}");
        }
        let mut tools = None;
        if self.systemd {
            let numbers = (0..shares.len()).map(|n| n.to_string());
            let numbers: Vec<String> = numbers.collect();
            let init = virtme_run::install_init(
                dir,
                &[
                    ("transport", &transport.to_string()),
                    ("checkout", &root.to_string()),
                    ("shares", &numbers.join(" ")),
                    ("command", &script),
                ],
            )?;
            vng.env(virtme_run::TOOLS, &init);
            tools = Some(init);
        }
        let daemons = match transport {
            Transport::NineP => {
                nine_p(&mut vng, checkout);
                Vec::new()
            }
            Transport::Virtiofs => {
                vng.arg(format!("--rodir={root}={root}"))
                    // Which it would take with KVM: a machine without PCI.
                    .arg("--disable-microvm");
                virtiofs::prepare(&mut vng, checkout, tools, dir, &shares)?
            }
        };
        for opts in self.qemu_opts(accel, dir)? {
            vng.arg(format!("--qemu-opts={opts}"));
        }
        vng.arg("--exec").arg(script);
        Ok(Boot { vng, daemons })
    }

    /// The memory of each node, if there are several.
    fn node_memory(&self) -> Result<Vec<String>> {
        let nodes = u64::from(self.nodes);
        if nodes == 1 {
            return Ok(Vec::new());
        }
        let memory = parse_size(&self.memory)?;
        ensure!(
            nodes > 0 && memory % (nodes << 20) == 0,
            "--memory {} is not {nodes} nodes of so many megabytes",
            self.memory
        );
        let each = format!("{}M", (memory / nodes) >> 20);
        Ok(vec![each; self.nodes as usize])
    }

    /// The directories that the guest may write to.
    fn shares(&self, checkout: &Checkout) -> Result<Vec<PathBuf>> {
        let shares = self.share.iter().map(|share| {
            let share = share
                .canonicalize()
                .with_context(|| format!("--share {}", share.display()))?;
            check_path(&share)?;
            check_share(&share, &checkout.root)?;
            Ok(share)
        });
        shares.collect()
    }

    /// What vng has no option for. QEMU takes the last `-cpu` and merges
    /// `-machine`s.
    fn qemu_opts(&self, accel: Accel, dir: &Path) -> Result<Vec<String>> {
        let mut opts = Vec::new();
        if accel == Accel::Kvm {
            // vng's kvm:tcg would fall back to emulation in silence.
            opts.push("-machine accel=kvm".into());
        }
        let la57 = self.la57.map_or(String::new(), |on| format!(",la57={on}"));
        match accel {
            Accel::Kvm if self.la57 == Some(La57::On) && !host_has_la57()? => {
                bail!("this host's CPU has no la57, which KVM needs; use --accel tcg")
            }
            Accel::Kvm if la57.is_empty() => {}
            Accel::Kvm => opts.push(format!("-cpu host{la57}")),
            // Emulated string instructions are several times slower than the loops
            // that the kernel and the C library use where ERMS is missing. FSRM implies
            // ERMS: 6.1's memmove() counts on that.
            Accel::Tcg => {
                let cpu = self.cpu.as_ref().map_or(String::new(), |w| format!(",{w}"));
                opts.push(format!("-cpu max,-erms,-fsrm{la57}{cpu}"));
            }
        }
        if self.icount {
            // One thread for all virtual CPUs is the rule with it. Without sleep=off the clock
            // would go at the host's pace while the guest is idle.
            opts.push(format!("-icount shift={ICOUNT_SHIFT},sleep=off"));
        }
        if self.disk.is_some() {
            opts.push(format!(
                "-drive if=virtio,format=raw,cache=unsafe,file={}/disk",
                dir.display()
            ));
        }
        Ok(opts)
    }
}

/// What 9p takes besides vng's own mounts, which go without the page cache. From 6.12 on
/// that marks every process that reads a file as one with pinned pages, whose forks are
/// stock forks. The guest's script mounts these with the cache.
fn nine_p(vng: &mut Command, checkout: &Checkout) {
    // Without this it picks virtiofs if it finds the daemon.
    vng.arg("--force-9p");
    for (tag, path) in [
        ("asyncfork.root", &checkout.guest_root),
        ("asyncfork.checkout", &checkout.root),
    ] {
        vng.arg(format!(
            "--qemu-opts=-virtfs local,path={},mount_tag={tag},security_model=none,\
             readonly=on,multidevs=remap",
            path.display()
        ));
    }
}

/// Refuses a directory that the guest has no place for.
fn check_share(share: &Path, root: &Path) -> Result<()> {
    ensure!(
        share.starts_with(root) || GUEST_WRITABLE.iter().any(|dir| share.starts_with(dir)),
        "--share {}: the guest can have directories below {} and {} only",
        share.display(),
        root.display(),
        GUEST_WRITABLE.join(", ")
    );
    Ok(())
}

/// Kernel command line of every guest.
fn kernel_words(accel: Accel, icount: bool) -> Vec<String> {
    let mut words = vec![
        // Warnings and worse to the console, not the whole boot. (vng -v says 7.)
        "loglevel=6",
        // Nothing is lost: a long log, no rate limit on the tests' markers.
        "log_buf_len=16M",
        "printk.devkmsg=on",
        // An oops may leave locks held: end it there, the console has the
        // report. A warning may not: the other tests still give their verdicts.
        "oops=panic",
        "panic=-1",
    ];
    if accel == Accel::Tcg {
        // A host that is busy elsewhere stops the guest for seconds: no lockup, and
        // no timer interrupt that does not work.
        words.extend([
            "rcupdate.rcu_cpu_stall_timeout=150",
            "watchdog_thresh=30",
            "no_timer_check",
        ]);
    }
    if icount {
        // Every boot has the same addresses, and with them the same counts.
        words.extend(["nokaslr", "norandmaps"]);
    }
    words.into_iter().map(str::to_owned).collect()
}

/// Whether KVM could give a guest 5-level page tables.
pub fn host_has_la57() -> Result<bool> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    Ok(info.split_whitespace().any(|word| word == "la57"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::vm::tests::parsed;

    #[test]
    fn a_share_needs_a_place_in_the_guest() {
        let root = Path::new("/checkout/asyncfork");
        for good in [
            "/checkout/asyncfork",
            "/checkout/asyncfork/target/checkout",
            "/tmp/out",
        ] {
            assert!(check_share(Path::new(good), root).is_ok(), "{good}");
        }
        for bad in ["/checkout", "/checkout/asyncfork2", "/data", "/tmpfs"] {
            assert!(check_share(Path::new(bad), root).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_console_has_a_file_and_qemu_a_root_of_its_own() {
        let checkout = Checkout {
            root: "/repo".into(),
            kernel: kernels::first(),
            release: "6.1.0-1-amd64".into(),
            guest_root: "/repo/target/roots/debian12".into(),
            qemu_root: "/repo/target/roots/debian13".into(),
        };
        let dir = Path::new("/repo/target/vm/run-1-0");
        let Boot { vng, daemons } = VmOptions::default()
            .command(&checkout, Accel::Tcg, Transport::NineP, dir)
            .unwrap();
        assert!(daemons.is_empty(), "{daemons:?}");
        let path = "--qemu-opts=-set chardev.console.path=/repo/target/vm/run-1-0/console.log";
        assert!(vng.get_args().any(|arg| arg == path), "{vng:?}");
        let root = checkout.qemu_root.as_os_str();
        assert!(
            vng.get_envs()
                .any(|env| env == ("ASYNCFORK_QEMU_ROOT".as_ref(), Some(root))),
            "{vng:?}"
        );
    }

    #[test]
    fn nodes_share_the_memory() {
        let each = |words| parsed(words).node_memory().ok();
        assert_eq!(each("--memory 2G"), Some(vec![]));
        let two = vec!["1536M".to_owned(); 2];
        assert_eq!(each("--memory 3G --nodes 2"), Some(two));
        for bad in [
            "--nodes 0",
            "--memory 2G --nodes 3",
            "--memory 2048 --nodes 2",
        ] {
            assert_eq!(each(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_clock_of_instructions_has_words_of_its_own() {
        let dir = Path::new("/repo/target/vm/run-1-0");
        let icount = |words| {
            let opts = parsed(words).qemu_opts(Accel::Tcg, dir).unwrap();
            opts.into_iter().find(|opt| opt.starts_with("-icount"))
        };
        assert_eq!(icount("").as_deref(), None);
        let wanted = Some("-icount shift=1,sleep=off");
        assert_eq!(icount("--icount").as_deref(), wanted);
        let fixed = |icount| {
            let words = kernel_words(Accel::Tcg, icount);
            ["nokaslr", "norandmaps"].map(|word| words.iter().any(|w| w == word))
        };
        assert_eq!((fixed(false), fixed(true)), ([false; 2], [true; 2]));
    }
}
