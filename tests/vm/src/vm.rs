// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boots a guest for one command.
//!
//! The guest's root is one that `scripts/root` has made, read-only under
//! throw-away overlays; the checkout is mounted where it is on the host,
//! read-only. Only the run directory (`target/vm/run-*`) and `--share`
//! directories are really written to: the guest's script leaves the command's
//! output there, where the host follows it, and at last the exit status. The serial console, which
//! still speaks when the guest dies, is recorded beside them; what QEMU and vng
//! have to say is another file, since it is not the guest's.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use asyncfork_host::size::parse_size;

use crate::accel::{self, Accel, AccelChoice, Chosen};
use crate::bench::{check_path, Bench, Series};
use crate::dmesg::{self, Finding};
use crate::interrupt;

/// Exit code when the kernel complained, whatever the command returned.
pub const EXIT_COMPLAINT: u8 = 123;
/// Exit code when the command ran out of time.
pub const EXIT_TIMEOUT: u8 = 124;
/// Exit code when the guest did not boot, died, or left no result.
pub const EXIT_BROKEN: u8 = 125;

/// How often the host looks at the guest.
const POLL: Duration = Duration::from_millis(100);
/// Power-off after the command, and the guest's own time limit, may lag.
const GRACE: Duration = Duration::from_secs(60);
/// After this silence a sign of life is printed.
const SILENCE: Duration = Duration::from_secs(60);
/// Run directories that are kept; younger than [`KEEP_AGE`] they all are.
const KEEP_RUNS: usize = 20;
const KEEP_AGE: Duration = Duration::from_secs(4 * 3600);

/// With `--icount`: an instruction takes 2^1 ns of the guest's clock.
const ICOUNT_SHIFT: u32 = 1;
/// As many virtual CPUs as give counts that repeat.
const ICOUNT_CPUS: &str = "1";
/// One thread does the work of all CPUs, and ends its run at each look at the clock.
const ICOUNT_SLOWNESS: u32 = 3;

/// The guest's serial console, as QEMU writes it, in the run directory.
const CONSOLE: &str = "console.log";
/// And what the programs on the host print.
const HOST_LOG: &str = "host.log";
/// Lines of each of them that are shown of a broken guest.
const SHOWN_LINES: usize = 20;

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
    /// 5-level page tables [default: what the emulated or host CPU has]
    #[arg(long)]
    pub la57: Option<La57>,
    /// More words for QEMU's -cpu in emulation, such as vendor=GenuineIntel
    #[arg(long, value_name = "WORDS")]
    pub cpu: Option<String>,
    /// What the guest runs on
    #[arg(long, value_enum, default_value_t = VmOptions::default().accel)]
    pub accel: AccelChoice,
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
    /// Attach an empty disk of this size (e.g. 2G) as /dev/vda
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub disk: Option<u64>,
}

impl Default for VmOptions {
    fn default() -> Self {
        VmOptions {
            memory: "8G".into(),
            cpus: 2,
            la57: None,
            cpu: None,
            accel: AccelChoice::Auto,
            icount: false,
            append: Vec::new(),
            timeout: 1800,
            share: Vec::new(),
            disk: None,
        }
    }
}

/// Where the command's output goes while it runs.
pub struct Streams {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    prefix: String,
}

impl Streams {
    /// This process's own.
    pub fn inherit() -> Self {
        Streams {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            prefix: String::new(),
        }
    }

    /// This process's own, in whole lines that begin with `prefix`: for guests
    /// that run side by side.
    pub fn prefixed(prefix: &str) -> Self {
        Streams {
            out: Box::new(Lines::new(io::stdout(), prefix)),
            err: Box::new(Lines::new(io::stderr(), prefix)),
            prefix: prefix.to_owned(),
        }
    }

    /// Nowhere; the run directory has it.
    pub fn sink() -> Self {
        Streams {
            out: Box::new(io::sink()),
            err: Box::new(io::sink()),
            prefix: String::new(),
        }
    }

    /// A word of the bench's own.
    fn say(&self, text: impl fmt::Display) {
        eprintln!("{}vm: {text}", self.prefix);
    }
}

/// Writes whole lines, each in one piece and with a prefix.
struct Lines<W: Write> {
    to: W,
    prefix: String,
    /// The line that has no end yet.
    line: Vec<u8>,
}

impl<W: Write> Lines<W> {
    fn new(to: W, prefix: &str) -> Self {
        Lines {
            to,
            prefix: prefix.to_owned(),
            line: prefix.as_bytes().to_vec(),
        }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.to.write_all(&self.line)?;
                self.line.truncate(self.prefix.len());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Drop for Lines<W> {
    fn drop(&mut self) {
        if self.line.len() > self.prefix.len() {
            self.line.push(b'\n');
            // Nobody is left to be told.
            let _ = self.to.write_all(&self.line);
        }
    }
}

/// How the command, or the guest, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The command ended; 128 + N after signal N, as in a shell.
    Exited(u8),
    /// The command ran out of time.
    TimedOut,
    /// The guest did not boot, died, or left no result: why.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited(status) => write!(f, "exit status {status}"),
            End::TimedOut => f.write_str("timed out"),
            End::Broken(why) => write!(f, "broken: {why}"),
        }
    }
}

/// What is known after the guest is gone.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub end: End,
    /// The kernel's complaints; empty is good.
    pub findings: Vec<Finding>,
    /// How often a guest was booted for it; more than once only if one never came up.
    pub boots: u32,
    /// Run directory: `stdout`, `stderr`, `kernel.log`, `console.log`, `host.log`,
    /// and what the command wrote to it.
    pub dir: PathBuf,
}

impl Outcome {
    /// The command's exit status, or one of the `EXIT_` codes.
    pub fn exit_code(&self) -> u8 {
        match &self.end {
            End::Broken(_) => EXIT_BROKEN,
            End::TimedOut => EXIT_TIMEOUT,
            End::Exited(_) if !self.findings.is_empty() => EXIT_COMPLAINT,
            End::Exited(status) => *status,
        }
    }

    /// Whether the guest came as far as to start the command.
    fn came_up(&self) -> bool {
        self.dir.join("started").exists()
    }

    /// The kernel's log: dmesg and what only the console has.
    pub fn kernel_log(&self) -> PathBuf {
        self.dir.join("kernel.log")
    }

    /// Says on stderr what went wrong, if anything did. The lines begin with
    /// `prefix`.
    pub fn explain(&self, prefix: &str) {
        for line in self.explanation() {
            eprintln!("{prefix}{line}");
        }
    }

    fn explanation(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.end {
            End::Broken(why) => {
                lines.push(format!("vm: BROKEN: {why}"));
                for (name, whose) in [(HOST_LOG, "host"), (CONSOLE, "")] {
                    let log = read(&self.dir, name);
                    lines.extend(
                        last_lines(&log, SHOWN_LINES)
                            .iter()
                            .map(|line| format!("    {whose}| {line}")),
                    );
                }
            }
            End::TimedOut => lines.push("vm: TIMED OUT".into()),
            End::Exited(_) => {}
        }
        lines.extend(
            self.findings
                .iter()
                .map(|finding| format!("vm: kernel complaint: {finding}")),
        );
        if self.exit_code() != 0 {
            lines.push(format!("vm: logs are in {}", self.dir.display()));
        }
        lines
    }
}

/// Time limits of a boot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Until the console says anything.
    pub first_line: Duration,
    /// Until the command starts.
    pub boot: Duration,
}

impl Limits {
    /// Ample for emulation on a busy host.
    const USUAL: Limits = Limits {
        first_line: Duration::from_secs(120),
        boot: Duration::from_secs(420),
    };

    fn times(self, n: u32) -> Limits {
        Limits {
            first_line: self.first_line * n,
            boot: self.boot * n,
        }
    }
}

impl VmOptions {
    /// Boots a guest, runs `command` in it as root in the repository root, and
    /// waits until both have ended. `streams` gets the output live.
    ///
    /// Errors: the guest could not be started at all, or Ctrl-C. A guest that
    /// started and then failed is an [`Outcome`].
    pub fn run(&self, bench: &Bench, command: &[String], mut streams: Streams) -> Result<Outcome> {
        let how = accel::choose(bench, self.accel_choice()?)?;
        let limits = Limits::USUAL.times(self.slowness(bench.series));
        once_more(how.accel, |first| {
            if let Some(first) = first {
                let logs = first.dir.display();
                streams.say(format_args!(
                    "{}; logs are in {logs}; booting once more",
                    first.end
                ));
            }
            self.boot(bench, &how, &limits, command, &mut streams)
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
    fn slowness(&self, series: Series) -> u32 {
        series.slowness() * if self.icount { ICOUNT_SLOWNESS } else { 1 }
    }

    pub(crate) fn boot(
        &self,
        bench: &Bench,
        how: &Chosen,
        limits: &Limits,
        command: &[String],
        streams: &mut Streams,
    ) -> Result<Outcome> {
        let dir = new_run_dir(&bench.state_dir())?;
        fs::write(dir.join("guest.sh"), include_str!("guest.sh"))?;
        fs::write(dir.join("command"), shell_line(command) + "\n")?;
        if let Some(size) = self.disk {
            File::create(dir.join("disk"))?.set_len(size)?;
        }
        streams.say(format_args!(
            "booting {}: {} CPUs, {}, {} ({})",
            bench.release, self.cpus, self.memory, how.accel, how.why
        ));
        let end = self.supervise(bench, how.accel, limits, &dir, streams);
        // A disk image may be large, and nobody looks at it again.
        let _ = fs::remove_file(dir.join("disk"));
        let end = end?;

        let log = guest_log(&dir);
        fs::write(dir.join("kernel.log"), &log)?;
        let mut findings = dmesg::scan(&log);
        if matches!(end, End::Exited(_)) {
            let file = |name: &str| fs::read_to_string(dir.join(name)).ok();
            let asked = self.append.iter().any(|w| w.contains("kmemleak=on"));
            let mut state = checkers(file, bench.series == Series::Debug, asked);
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
        Ok(Outcome {
            end,
            findings,
            boots: 1,
            dir,
        })
    }

    /// Starts the guest and follows it to its end.
    fn supervise(
        &self,
        bench: &Bench,
        accel: Accel,
        limits: &Limits,
        dir: &Path,
        streams: &mut Streams,
    ) -> Result<End> {
        let mut guest = Guest::start(self.vng(bench, accel, dir)?, dir)?;
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

    /// The command that boots the guest.
    fn vng(&self, bench: &Bench, accel: Accel, dir: &Path) -> Result<Command> {
        let mut vng = Command::new(bench.venv_bin().join("vng"));
        // vng finds virtme-run by PATH; modprobe is not in every user's.
        let path = std::env::var("PATH").unwrap_or_default();
        vng.env(
            "PATH",
            format!("{}:{path}:/usr/sbin:/sbin", bench.venv_bin().display()),
        );
        vng.current_dir(&bench.root)
            .arg("--run")
            .arg(bench.vmlinuz())
            .arg("--root")
            .arg(&bench.guest_root)
            .arg("--qemu")
            .arg(bench.qemu())
            .env("ASYNCFORK_QEMU_ROOT", &bench.qemu_root)
            // Without this it may pick virtiofs, whose daemon outlives us.
            .arg("--force-9p")
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
        for words in kernel_words(accel, self.icount).iter().chain(&self.append) {
            vng.args(["--append", words]);
        }
        let root = bench.root.display();
        vng.arg(format!("--rwdir={GUEST_MOUNTS}/run={}", dir.display()));
        // A clock that leaps over idle time, also over waiting for the host, is none to go by:
        // the host's time limit counts then.
        let limit = self
            .timeout
            .saturating_mul(if self.icount { 1000 } else { 1 });
        let mut script = format!("sh {GUEST_MOUNTS}/run/guest.sh {limit} {root}");
        for (n, share) in self.share.iter().enumerate() {
            let share = share
                .canonicalize()
                .with_context(|| format!("--share {}", share.display()))?;
            check_path(&share)?;
            check_share(&share, &bench.root)?;
            let share = share.display();
            vng.arg(format!("--rwdir={GUEST_MOUNTS}/share{n}={share}"));
            script += &format!(" {share}");
        }
        // vng's own mounts go without the page cache. From 6.12 on that marks
        // every process that reads a file as one with pinned pages, whose forks
        // are stock forks. The guest's script mounts these with the cache.
        for (tag, path) in [
            ("asyncfork.root", &bench.guest_root),
            ("asyncfork.checkout", &bench.root),
        ] {
            vng.arg(format!(
                "--qemu-opts=-virtfs local,path={},mount_tag={tag},security_model=none,\
                 readonly=on,multidevs=remap",
                path.display()
            ));
        }
        for opts in self.qemu_opts(accel, dir)? {
            vng.arg(format!("--qemu-opts={opts}"));
        }
        vng.arg("--exec").arg(script);
        Ok(vng)
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

/// Boots, and once more if the guest did not come up: an emulated CPU may hang for
/// good while a stock kernel boots. Nothing of ours has run in such a guest.
fn once_more(
    accel: Accel,
    mut boot: impl FnMut(Option<&Outcome>) -> Result<Outcome>,
) -> Result<Outcome> {
    let first = boot(None)?;
    if accel == Accel::Kvm || first.came_up() {
        return Ok(first);
    }
    Ok(Outcome {
        boots: 2,
        ..boot(Some(&first))?
    })
}

/// What the guest's taint flags say against a run; missing flags prove nothing.
fn taint(file: impl Fn(&str) -> Option<String>) -> Option<String> {
    match file("tainted").and_then(|flags| flags.trim().parse().ok()) {
        Some(flags) => asyncfork_host::kernel::bad_taint(flags),
        None => Some("the guest has left no taint flags".to_owned()),
    }
}

/// What the checkers of a debug kernel say against a run, or that they have said nothing though they should.
fn checkers(file: impl Fn(&str) -> Option<String>, lockdep: bool, kmemleak: bool) -> Vec<String> {
    let mut found = Vec::new();
    match file("lockdep") {
        Some(stats) => found.extend(dmesg::lockdep_off(&stats)),
        None if lockdep => found.push("the guest has left no word of lockdep".to_owned()),
        None => {}
    }
    match file("kmemleak") {
        Some(report) => found.extend(dmesg::leaks(&report)),
        None if kmemleak => found.push("the guest has left no word of kmemleak".to_owned()),
        None => {}
    }
    found
}

/// Whether KVM could give a guest 5-level page tables.
pub fn host_has_la57() -> Result<bool> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    Ok(info.split_whitespace().any(|word| word == "la57"))
}

/// How far a guest has come, by the files that its script leaves.
struct Progress {
    timeout: Duration,
    begin: Instant,
    /// The command runs.
    started: Option<Instant>,
    /// The command has ended and its result is in.
    finished: Option<Instant>,
    /// Last output, of the command or ours.
    heard: Instant,
}

impl Progress {
    fn new(timeout: Duration) -> Self {
        Progress {
            timeout,
            begin: Instant::now(),
            started: None,
            finished: None,
            heard: Instant::now(),
        }
    }

    /// Looks for the guest's files, and says what there is to say.
    fn look(&mut self, dir: &Path, say: impl Fn(&str)) {
        let seconds = self.begin.elapsed().as_secs();
        if self.started.is_none() && dir.join("started").exists() {
            self.started = Some(Instant::now());
            say(&format!("up after {seconds} s"));
        }
        if self.finished.is_none() && dir.join("status").exists() {
            self.finished = Some(Instant::now());
        }
        if self.heard.elapsed() > SILENCE {
            self.heard = Instant::now();
            let what = self.started.map_or("booting", |_| "running");
            say(&format!("still {what} after {seconds} s"));
        }
    }

    /// The result is in; only the power-off hangs.
    fn is_complete(&self) -> bool {
        self.finished.is_some_and(|since| since.elapsed() > GRACE)
    }

    /// Why the guest need not be waited for any longer, if so.
    fn overdue(&self, limits: &Limits, spoke: bool) -> Option<End> {
        let elapsed = self.begin.elapsed();
        match (self.started, self.finished) {
            (_, Some(_)) => None,
            (Some(since), None) => {
                (since.elapsed() > self.timeout + GRACE).then_some(End::TimedOut)
            }
            (None, None) if elapsed > limits.boot => Some(End::Broken(format!(
                "not up after {} s",
                limits.boot.as_secs()
            ))),
            (None, None) if !spoke && elapsed > limits.first_line => Some(End::Broken(format!(
                "not a word on the console in {} s",
                limits.first_line.as_secs()
            ))),
            (None, None) => None,
        }
    }
}

/// A running vng with QEMU below it, in a process group of their own; killed
/// when dropped.
struct Guest {
    child: Child,
    /// The leader, and with it the group's number, is gone.
    reaped: bool,
    /// Where the guest's console is recorded.
    console: PathBuf,
    spoke: bool,
    recorder: Option<JoinHandle<io::Result<u64>>>,
}

impl Guest {
    /// What vng and its children print goes to [`HOST_LOG`] in `dir`. By a pipe: QEMU
    /// opens its output again, and would begin a file anew.
    fn start(mut vng: Command, dir: &Path) -> Result<Self> {
        let mut log = File::create(dir.join(HOST_LOG))?;
        let (mut output, theirs) = io::pipe()?;
        let child = vng
            .stdin(Stdio::null())
            .stdout(theirs.try_clone()?)
            .stderr(theirs)
            .process_group(0)
            .spawn()
            .context("cannot start vng: run scripts/setup")?;
        // It holds a writing end, with which the pipe would never come to its end.
        drop(vng);
        Ok(Guest {
            child,
            reaped: false,
            console: dir.join(CONSOLE),
            spoke: false,
            recorder: Some(thread::spawn(move || io::copy(&mut output, &mut log))),
        })
    }

    /// Whether vng has ended. It stays a zombie, so that its group's number
    /// stays ours until [`Guest::kill`].
    fn exited(&self) -> Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(self.pid()), flags).context("cannot wait for vng")?;
        Ok(status != WaitStatus::StillAlive)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Whether the guest's kernel has said anything.
    fn spoke(&mut self) -> bool {
        self.spoke = self.spoke
            || fs::read(&self.console).is_ok_and(|c| kernel_speaks(&String::from_utf8_lossy(&c)));
        self.spoke
    }

    /// Ends whatever is left and completes the record of what it printed.
    fn stop(&mut self) -> Result<()> {
        self.kill()?;
        if let Some(recorder) = self.recorder.take() {
            recorder
                .join()
                .expect("the recorder does not panic")
                .context("cannot record what vng prints")?;
        }
        Ok(())
    }

    fn kill(&mut self) -> io::Result<()> {
        if !self.reaped {
            // Not softly: QEMU may outlive a vng that was asked to end.
            let _ = killpg(self.pid(), Signal::SIGKILL);
            self.child.wait()?;
            self.reaped = true;
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Copies what a growing file got since the last time.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Tail { path, file: None }
    }

    /// Whether there was anything new.
    fn copy(&mut self, to: &mut dyn Write) -> io::Result<bool> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let copied = io::copy(file, to)?;
        if copied > 0 {
            to.flush()?;
        }
        Ok(copied > 0)
    }
}

/// A new directory below `state`; the oldest ones go.
fn new_run_dir(state: &Path) -> Result<PathBuf> {
    fs::create_dir_all(state).with_context(|| format!("cannot create {}", state.display()))?;
    let mut old: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("run-") {
            old.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    old.sort();
    for (when, path) in old.iter().rev().skip(KEEP_RUNS) {
        if when.elapsed().is_ok_and(|age| age > KEEP_AGE) {
            // Another run may be at it, too.
            let _ = fs::remove_dir_all(path);
        }
    }

    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs();
    for n in 0.. {
        let dir = state.join(format!("run-{seconds}-{n}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => {
                result.with_context(|| format!("cannot create {}", dir.display()))?;
                return Ok(dir);
            }
        }
    }
    unreachable!("the loop ends with a name nobody has taken")
}

/// A line that makes a POSIX shell run exactly this command.
fn shell_line(command: &[String]) -> String {
    let quoted: Vec<String> = command
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    quoted.join(" ")
}

/// Time stamps begin the kernel's lines; the BIOS has none.
fn kernel_speaks(console: &str) -> bool {
    console.lines().any(dmesg::is_stamped)
}

/// The guest's last word, `exited STATUS` or `timeout STATUS`.
fn parse_status(text: &str) -> Option<End> {
    match text.trim().split_once(' ')? {
        ("exited", status) => status.parse().ok().map(End::Exited),
        ("timeout", _) => Some(End::TimedOut),
        _ => None,
    }
}

/// A file of the run directory, or nothing.
fn read(dir: &Path, name: &str) -> String {
    String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap_or_default()).into_owned()
}

/// All that the guest's kernel has said, and nobody else.
fn guest_log(dir: &Path) -> String {
    dmesg::merge(&read(dir, "dmesg"), &read(dir, CONSOLE))
}

/// What tells best why the guest is gone: a panic's reason, or the last line; that of
/// QEMU or vng if there never was a guest.
fn last_word<'a>(console: &'a str, host: &'a str) -> &'a str {
    let lines = |log: &'a str| log.lines().map(str::trim).filter(|l| !l.is_empty());
    lines(console)
        .find(|line| dmesg::is_stamped(line) && line.contains("Kernel panic"))
        .or_else(|| lines(console).next_back())
        .or_else(|| lines(host).next_back())
        .unwrap_or("the console is empty")
}

/// The end of a log.
pub(crate) fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(end: End, complaints: usize) -> Outcome {
        let findings = dmesg::scan(&"[ 1.0] WARNING: x\n".repeat(complaints));
        Outcome {
            end,
            findings,
            boots: 1,
            dir: PathBuf::new(),
        }
    }

    #[test]
    fn the_exit_code_tells_the_worst() {
        assert_eq!(outcome(End::Exited(0), 0).exit_code(), 0);
        assert_eq!(outcome(End::Exited(7), 0).exit_code(), 7);
        assert_eq!(outcome(End::Exited(0), 1).exit_code(), EXIT_COMPLAINT);
        assert_eq!(outcome(End::Exited(7), 1).exit_code(), EXIT_COMPLAINT);
        assert_eq!(outcome(End::TimedOut, 1).exit_code(), EXIT_TIMEOUT);
        assert_eq!(outcome(End::Broken("x".into()), 1).exit_code(), EXIT_BROKEN);
    }

    #[test]
    fn what_the_guest_does_not_say_is_against_it() {
        let files = |name: &str| match name {
            "tainted" => Some("12288\n".to_owned()),
            "lockdep" => Some(" debug_locks:  1\n".to_owned()),
            "kmemleak" => Some(String::new()),
            _ => None,
        };
        assert_eq!(taint(files), None);
        assert_eq!(checkers(files, true, true), [""; 0]);
        let nothing = |_: &str| None;
        assert!(taint(nothing).is_some());
        assert_eq!(checkers(nothing, false, false), [""; 0]);
        assert_eq!(checkers(nothing, true, true).len(), 2);
        assert!(taint(|_| Some("512".to_owned())).is_some());
    }

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

    #[test]
    fn guests_side_by_side_write_whole_lines() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, "6.1 | ");
        for bytes in ["ok a\nok", " b\n\nthe ", "end"] {
            lines.write_all(bytes.as_bytes()).unwrap();
        }
        drop(lines);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "6.1 | ok a\n6.1 | ok b\n6.1 | \n6.1 | the end\n"
        );
    }

    #[test]
    fn a_share_needs_a_place_in_the_guest() {
        let root = Path::new("/checkout/asyncfork");
        for good in [
            "/checkout/asyncfork",
            "/checkout/asyncfork/target/bench",
            "/tmp/out",
        ] {
            assert!(check_share(Path::new(good), root).is_ok(), "{good}");
        }
        for bad in ["/checkout", "/checkout/asyncfork2", "/data", "/tmpfs"] {
            assert!(check_share(Path::new(bad), root).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_status_is_read_or_refused() {
        assert_eq!(parse_status("exited 7\n"), Some(End::Exited(7)));
        assert_eq!(parse_status("timeout 124\n"), Some(End::TimedOut));
        for bad in ["", "exited", "exited x", "exited 256", "gone 0"] {
            assert_eq!(parse_status(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_the_kernel_counts_as_speaking() {
        for bios in [
            "\x1bc\x1b[?7l\x1b[2JSeaBIOS (version 1.16)\r\n",
            "[    a table of the BIOS's\r\n",
            "",
        ] {
            assert!(!kernel_speaks(bios), "{bios}");
        }
        assert!(kernel_speaks("ok\r\n[    0.000000] Linux version 6.1"));
        assert!(kernel_speaks("[  123.000000] late\r\n"));
    }

    #[test]
    fn a_panic_explains_a_death_best() {
        let panic =
            "[ 1.0] Kernel panic - not syncing: x\r\n[ 1.1]  </TASK>\r\n[ 1.2] Kernel Offset\r\n";
        let host = "qemu: one\nqemu: two, no Kernel panic\n\n";
        assert_eq!(
            last_word(panic, host),
            "[ 1.0] Kernel panic - not syncing: x"
        );
        assert_eq!(last_word("[ 1.0] a\r\n[ 1.1] b\r\n", host), "[ 1.1] b");
        let word = "no Kernel panic yet\r\n[ 1.1] b\r\n";
        assert_eq!(last_word(word, host), "[ 1.1] b");
        assert_eq!(last_word("\r\n", host), "qemu: two, no Kernel panic");
        assert_eq!(last_word("", ""), "the console is empty");
    }

    /// An empty directory.
    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("asyncfork-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Runs a shell script in the place of vng, to its end.
    fn guest(dir: &Path, script: &str) -> Guest {
        let mut vng = Command::new("sh");
        vng.args(["-c", script]).current_dir(dir);
        let guest = Guest::start(vng, dir).unwrap();
        while !guest.exited().unwrap() {
            thread::sleep(Duration::from_millis(1));
        }
        guest
    }

    #[test]
    fn an_emulated_guest_that_does_not_come_up_is_booted_once_more() {
        let dir = scratch("once-more");
        let boots = |accel, up_at| {
            let (mut count, _) = (0, fs::remove_file(dir.join("started")));
            let outcome = once_more(accel, |_| {
                count += 1;
                if count >= up_at {
                    fs::write(dir.join("started"), "").unwrap();
                }
                Ok(Outcome {
                    dir: dir.clone(),
                    ..outcome(End::Broken("dead".into()), 0)
                })
            });
            assert_eq!(outcome.unwrap().boots, count);
            count
        };
        assert_eq!(boots(Accel::Tcg, 1), 1, "it died while the command ran");
        assert_eq!(boots(Accel::Tcg, 2), 2);
        assert_eq!(boots(Accel::Tcg, 3), 2);
        assert_eq!(boots(Accel::Kvm, 2), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_the_host_prints_is_not_the_guests() {
        const COMPLAINT: &str = "[    1.000000] WARNING: no mount point";
        let dir = scratch("host");
        let mut guest = guest(
            &dir,
            &format!("echo SeaBIOS >{CONSOLE}; echo '{COMPLAINT}' >&2; echo vng"),
        );
        assert!(!guest.spoke());
        guest.stop().unwrap();
        assert_eq!(dmesg::scan(&guest_log(&dir)), []);
        assert_eq!(read(&dir, HOST_LOG), format!("{COMPLAINT}\nvng\n"));

        // The same line of the guest is one, and the host's does not hide it.
        fs::write(dir.join(CONSOLE), format!("{COMPLAINT}\r\n")).unwrap();
        assert!(guest.spoke());
        assert_eq!(dmesg::scan(&guest_log(&dir)).len(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_broken_guest_is_explained_by_both_logs() {
        let dir = scratch("explain");
        fs::write(dir.join(HOST_LOG), "qemu: no memory\n").unwrap();
        fs::write(dir.join(CONSOLE), "Booting\r\n").unwrap();
        let mut outcome = outcome(End::Broken("why".into()), 0);
        outcome.dir.clone_from(&dir);
        assert_eq!(
            outcome.explanation(),
            [
                "vm: BROKEN: why".to_owned(),
                "    host| qemu: no memory".to_owned(),
                "    | Booting".to_owned(),
                format!("vm: logs are in {}", dir.display()),
            ]
        );
        outcome.end = End::Exited(0);
        assert_eq!(outcome.explanation(), [""; 0]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_console_has_a_file_and_qemu_a_root_of_its_own() {
        let bench = Bench {
            root: "/repo".into(),
            series: Series::V6_1,
            release: "6.1.0-1-amd64".into(),
            guest_root: "/repo/target/roots/debian12".into(),
            qemu_root: "/repo/target/roots/debian13".into(),
        };
        let vng = VmOptions::default()
            .vng(&bench, Accel::Tcg, Path::new("/repo/target/vm/run-1-0"))
            .unwrap();
        let path = "--qemu-opts=-set chardev.console.path=/repo/target/vm/run-1-0/console.log";
        assert!(vng.get_args().any(|arg| arg == path), "{vng:?}");
        let root = bench.qemu_root.as_os_str();
        assert!(
            vng.get_envs()
                .any(|env| env == ("ASYNCFORK_QEMU_ROOT".as_ref(), Some(root))),
            "{vng:?}"
        );
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        vm: VmOptions,
    }

    fn parsed(words: &str) -> VmOptions {
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

    #[test]
    fn a_tail_delivers_every_byte_once() {
        let dir = std::env::temp_dir().join(format!("asyncfork-tail-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("out");
        let (mut tail, mut seen) = (Tail::new(path.clone()), Vec::new());
        assert!(!tail.copy(&mut seen).unwrap());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one ").unwrap();
        assert!(tail.copy(&mut seen).unwrap());
        assert!(!tail.copy(&mut seen).unwrap());
        file.write_all(b"two").unwrap();
        assert!(tail.copy(&mut seen).unwrap());
        assert_eq!(seen, b"one two");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn run_directories_are_never_shared() {
        let state = std::env::temp_dir().join(format!("asyncfork-runs-{}", std::process::id()));
        let first = new_run_dir(&state).unwrap();
        let second = new_run_dir(&state).unwrap();
        assert_ne!(first, second);
        assert!(first.is_dir() && second.is_dir());
        fs::remove_dir_all(&state).unwrap();
    }
}
