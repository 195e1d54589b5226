// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boots a guest for one command.
//!
//! The guest's root is one that `scripts/root` has made, read-only under
//! throw-away overlays; the checkout is mounted where it is on the host,
//! read-only. Only the run directory (`target/vm/run-*`) and `--share`
//! directories are really written to: the guest's script leaves the command's
//! output there, where the host follows it, and at last the exit status. All these
//! directories come by 9p, or by virtiofs where the kernel has no 9p. The serial
//! console, which still speaks when the guest dies, is recorded beside them; what
//! QEMU and vng have to say is another file, since it is not the guest's.

mod command;
mod end;
mod group;
mod guest;
mod run_dir;
mod streams;
mod transport;
mod virtiofs;
mod virtme_run;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use asyncfork_host::size::parse_size;

use crate::accel::{self, Accel, AccelChoice, Chosen};
use crate::checkout::Checkout;
use crate::dmesg::{self, Finding};
use crate::interrupt;
use crate::kernels::{Build, Kernel};

pub use command::{host_has_la57, La57};
pub(crate) use end::last_lines;
pub use end::{BootReport, End};
pub(crate) use guest::Limits;
pub use streams::Streams;
pub use transport::TransportChoice;

use command::Boot;
use end::{checkers, last_word, parse_status, taint};
use guest::{Guest, Progress};
use run_dir::{guest_log, new_run_dir, read, CONSOLE, HOST_LOG};
use streams::Tail;

/// Exit code when the kernel complained, whatever the command returned.
pub const EXIT_COMPLAINT: u8 = 123;
/// Exit code when the command ran out of time.
pub const EXIT_TIMEOUT: u8 = 124;
/// Exit code when the guest did not boot, died, or left no result.
pub const EXIT_BROKEN: u8 = 125;

/// How often the host looks at the guest.
const POLL: Duration = Duration::from_millis(100);

/// As many virtual CPUs as give counts that repeat.
const ICOUNT_CPUS: &str = "1";
/// One thread does the work of all CPUs, and ends its run at each look at the clock.
const ICOUNT_SLOWNESS: u32 = 3;

/// The machine to boot.
#[derive(Debug, Clone, clap::Args)]
pub struct VmOptions {
    /// Guest memory; the host gives what the guest touches
    #[arg(long, value_name = "SIZE", default_value_t = VmOptions::default().memory)]
    pub memory: String,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = VmOptions::default().cpus)]
    #[arg(default_value_if("icount", "true", ICOUNT_CPUS))]
    pub cpus: u32,
    /// Memory nodes, of equal size; a kernel without CONFIG_NUMA_EMU knows no numa=fake
    #[arg(long, value_name = "N", default_value_t = VmOptions::default().nodes)]
    pub nodes: u32,
    /// 5-level page tables [default: what the emulated or host CPU has]
    #[arg(long)]
    pub la57: Option<La57>,
    /// More words for QEMU's -cpu in emulation, such as vendor=GenuineIntel
    #[arg(long, value_name = "WORDS")]
    pub cpu: Option<String>,
    /// What the guest runs on
    #[arg(long, value_enum, default_value_t = VmOptions::default().accel)]
    pub accel: AccelChoice,
    /// What the guest's directories come by
    #[arg(long, value_enum, default_value_t = VmOptions::default().transport)]
    pub transport: TransportChoice,
    /// Let the guest's clock count instructions, 2 ns each: software emulation, with one
    /// virtual CPU unless --cpus says more, which then take turns
    #[arg(long)]
    pub icount: bool,
    /// Words for the kernel command line (may be repeated)
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// Time limit of the command, from its start
    #[arg(long, value_name = "SECS", default_value_t = VmOptions::default().timeout)]
    pub timeout: u64,
    /// Directory that the guest may write to (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub share: Vec<PathBuf>,
    /// Boot the guest's systemd, with udev, on a root that can be written to, in memory
    #[arg(long)]
    pub systemd: bool,
    /// Attach an empty disk of this size (e.g. 2G) as /dev/vda
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub disk: Option<u64>,
}

impl Default for VmOptions {
    fn default() -> Self {
        VmOptions {
            memory: "8G".into(),
            cpus: 2,
            nodes: 1,
            la57: None,
            cpu: None,
            accel: AccelChoice::Auto,
            transport: TransportChoice::Auto,
            icount: false,
            append: Vec::new(),
            timeout: 1800,
            share: Vec::new(),
            systemd: false,
            disk: None,
        }
    }
}

impl VmOptions {
    /// Boots a guest, runs `command` in it as root in the repository root, and
    /// waits until both have ended. `streams` gets the output live.
    ///
    /// Errors: the guest could not be started at all, or Ctrl-C. A guest that
    /// started and then failed is an [`BootReport`].
    pub fn run(
        &self,
        checkout: &Checkout,
        command: &[String],
        mut streams: Streams,
    ) -> Result<BootReport> {
        let how = accel::choose(checkout, self.accel_choice()?)?;
        let limits = Limits::USUAL.times(self.slowness(checkout.kernel));
        once_more(how.accel, |first| {
            if let Some(first) = first {
                let logs = first.dir.display();
                streams.say(format_args!(
                    "{}; logs are in {logs}; booting once more",
                    first.end
                ));
            }
            self.boot(checkout, &how, &limits, command, &mut streams)
        })
    }

    /// What to run on; counting instructions takes emulation.
    fn accel_choice(&self) -> Result<AccelChoice> {
        ensure!(
            !(self.icount && self.accel == AccelChoice::Kvm),
            "--icount counts the instructions of an emulation: it does not go with --accel kvm"
        );
        Ok(if self.icount {
            AccelChoice::Tcg
        } else {
            self.accel
        })
    }

    /// How many times as long as usual a boot may take.
    fn slowness(&self, kernel: &Kernel) -> u32 {
        kernel.slowness() * if self.icount { ICOUNT_SLOWNESS } else { 1 }
    }

    pub(crate) fn boot(
        &self,
        checkout: &Checkout,
        how: &Chosen,
        limits: &Limits,
        command: &[String],
        streams: &mut Streams,
    ) -> Result<BootReport> {
        let transport = transport::choose(checkout, self.transport)?;
        let dir = new_run_dir(&checkout.state_dir())?;
        fs::write(dir.join("guest.sh"), include_str!("guest.sh"))?;
        fs::write(dir.join("command"), shell_line(command) + "\n")?;
        virtme_run::install(&dir)?;
        if let Some(size) = self.disk {
            File::create(dir.join("disk"))?.set_len(size)?;
        }
        streams.say(format_args!(
            "booting {}: {} CPUs, {}, {transport}, {} ({})",
            checkout.release, self.cpus, self.memory, how.accel, how.why
        ));
        let boot = self.command(checkout, how.accel, transport, &dir)?;
        let end = self.supervise(boot, limits, &dir, streams);
        // A disk image may be large, and nobody looks at it again.
        let _ = fs::remove_file(dir.join("disk"));
        virtiofs::clean(&dir);
        let end = end?;

        let log = guest_log(&dir);
        fs::write(dir.join("kernel.log"), &log)?;
        let mut findings = dmesg::scan(&log);
        if matches!(end, End::Exited(_)) {
            let file = |name: &str| fs::read_to_string(dir.join(name)).ok();
            let asked = self.append.iter().any(|w| w.contains("kmemleak=on"));
            let mut state = checkers(file, checkout.kernel.build == Build::Debug, asked);
            // The flags survive a log that has wrapped.
            if findings.is_empty() {
                state.extend(taint(file));
            }
            findings.extend(state.into_iter().map(|line| Finding {
                line,
                test: None,
                times: 1,
            }));
        }
        Ok(BootReport {
            end,
            findings,
            boots: 1,
            dir,
        })
    }

    /// Starts the guest and follows it to its end.
    fn supervise(
        &self,
        boot: Boot,
        limits: &Limits,
        dir: &Path,
        streams: &mut Streams,
    ) -> Result<End> {
        let mut guest = Guest::start(boot, dir)?;
        let mut progress = Progress::new(Duration::from_secs(self.timeout));
        let mut out = Tail::new(dir.join("stdout"));
        let mut err = Tail::new(dir.join("stderr"));

        let gave_up = loop {
            // In this order: who has ended has written all he ever will.
            let exited = guest.exited()?;
            if out.copy(&mut streams.out)? | err.copy(&mut streams.err)? {
                progress.heard = Instant::now();
            }
            progress.look(dir, |text| streams.say(text));
            if interrupt::requested() {
                return Err(interrupt::error());
            }
            if exited || progress.is_complete() {
                break None;
            }
            if let Some(end) = progress.overdue(limits, guest.spoke()) {
                break Some(end);
            }
            if let Some(end) = guest.lost()? {
                break Some(end);
            }
            thread::sleep(POLL);
        };
        guest.stop()?;
        out.copy(&mut streams.out)?;
        err.copy(&mut streams.err)?;

        let end = match fs::read_to_string(dir.join("status")) {
            Ok(status) => parse_status(&status)
                .with_context(|| format!("cannot make sense of the guest's status {status:?}"))?,
            Err(_) => gave_up.unwrap_or_else(|| {
                let what = match progress.started {
                    Some(_) => "the guest died while the command ran",
                    None => "the guest did not boot",
                };
                let (console, host) = (read(dir, CONSOLE), read(dir, HOST_LOG));
                End::Broken(format!("{what}: {}", last_word(&console, &host)))
            }),
        };
        if let (Some(want), Some(_)) = (self.la57, progress.started) {
            let got = fs::read_to_string(dir.join("la57")).unwrap_or_default();
            let got = got.trim();
            if got != want.to_string() {
                return Ok(End::Broken(format!(
                    "la57 is {got} in the guest, not {want}"
                )));
            }
        }
        Ok(end)
    }
}

/// Boots, and once more if the guest did not come up: an emulated CPU may hang for
/// good while a stock kernel boots. Nothing of ours has run in such a guest.
fn once_more(
    accel: Accel,
    mut boot: impl FnMut(Option<&BootReport>) -> Result<BootReport>,
) -> Result<BootReport> {
    let first = boot(None)?;
    if accel == Accel::Kvm || first.came_up() {
        return Ok(first);
    }
    Ok(BootReport {
        boots: 2,
        ..boot(Some(&first))?
    })
}

/// A line that makes a POSIX shell run exactly this command.
fn shell_line(command: &[String]) -> String {
    let quoted: Vec<String> = command
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::vm::end::tests::report;
    use std::process::Command;

    #[test]
    fn a_shell_sees_the_words_as_they_are() {
        let words = ["a b", "$HOME", "it's", "", "\\n;*"].map(str::to_owned);
        let line = shell_line(&[&["printf".to_owned(), "%s\\n".to_owned()], &words[..]].concat());
        let out = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            words.map(|w| w + "\n").concat()
        );
    }

    /// An empty directory.
    pub(crate) fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("asyncfork-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn an_emulated_guest_that_does_not_come_up_is_booted_once_more() {
        let dir = scratch("once-more");
        let boots = |accel, up_at| {
            let (mut count, _) = (0, fs::remove_file(dir.join("started")));
            let report = once_more(accel, |_| {
                count += 1;
                if count >= up_at {
                    fs::write(dir.join("started"), "").unwrap();
                }
                Ok(BootReport {
                    dir: dir.clone(),
                    ..report(End::Broken("dead".into()), 0)
                })
            });
            assert_eq!(report.unwrap().boots, count);
            count
        };
        assert_eq!(boots(Accel::Tcg, 1), 1, "it died while the command ran");
        assert_eq!(boots(Accel::Tcg, 2), 2);
        assert_eq!(boots(Accel::Tcg, 3), 2);
        assert_eq!(boots(Accel::Kvm, 2), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        vm: VmOptions,
    }

    pub(crate) fn parsed(words: &str) -> VmOptions {
        let words = std::iter::once("vm").chain(words.split_whitespace());
        <Line as clap::Parser>::parse_from(words).vm
    }

    #[test]
    fn instructions_are_counted_by_one_emulated_cpu_unless_more_are_asked_for() {
        assert_eq!((parsed("").cpus, parsed("").icount), (2, false));
        assert_eq!(parsed("--icount").cpus, 1);
        assert_eq!(parsed("--icount --cpus 4").cpus, 4);
        for words in ["--icount", "--icount --accel tcg", "--icount --accel auto"] {
            assert_eq!(
                parsed(words).accel_choice().unwrap(),
                AccelChoice::Tcg,
                "{words}"
            );
        }
        assert!(parsed("--icount --accel kvm").accel_choice().is_err());
        assert_eq!(
            parsed("--accel kvm").accel_choice().unwrap(),
            AccelChoice::Kvm
        );
    }
}
