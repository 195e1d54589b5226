// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::exit;

/// Asynchronous fork() for servers that snapshot: start, switch, watch, diagnose.
///
/// Commands that change something need root, and say "changed: true" or "changed: false".
#[derive(Debug, Parser)]
#[command(name = "asyncfork", version, after_help = exit::help(), max_term_width = 100)]
pub struct Cli {
    /// Print JSON, with a schema version, instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Say which files are read and which programs are run
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// The module's device
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "ASYNCFORK_DEVICE",
        default_value = "/dev/asyncfork"
    )]
    pub device: PathBuf,
    /// Look at another root directory: for tests
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/",
        hide = true
    )]
    pub sysroot: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program with the library preloaded
    ///
    /// If the library cannot be used in it, says so and runs the program all the same. The exit status is that of CMD, or
    /// 125, 126, 127, see below. Other options come before CMD.
    #[command(
        after_help = "Exit codes: 125 an error of asyncfork itself, 126 CMD cannot be executed, 127 there is no CMD, otherwise CMD's."
    )]
    Run(RunArgs),
    /// Look for what keeps forks from being asynchronous, or snapshots from succeeding
    ///
    /// Each finding has a stable id, what was seen, and a line that mends it. With a process, predicts the pause of its next
    /// fork. Reads nothing that disturbs a server: of /proc/PID only status, exe, environ, maps, cgroup, the links in fd and, of io_urings, fdinfo.
    #[command(
        after_help = "Exit codes: 0 nothing found, 1 something found, 2 wrong input, 3 cannot tell."
    )]
    Doctor(DoctorArgs),
    /// Totals since the module was loaded
    #[command(
        after_help = "Exit codes: 0 forks can be asynchronous, 1 they are stock forks, 3 cannot tell."
    )]
    Status,
    /// Forks as they happen
    Watch(WatchArgs),
    /// The last fork, in words
    Explain(ExplainArgs),
    /// Switch asynchronous forks on, from the next fork on
    On(SwitchArgs),
    /// Switch asynchronous forks off, from the next fork on
    ///
    /// At boot: asyncfork.enabled=0 on the kernel command line, or --persist.
    Off(SwitchArgs),
    /// Make a systemd service's forks asynchronous, by a drop-in
    ///
    /// Takes plain units, templates (redis-server@) and instances (redis-server@a).
    Enable(EnableArgs),
    /// Take the drop-in of `enable` away
    Disable(DisableArgs),
    /// Make the forks of a cgroup's processes asynchronous, until it is gone or the module is unloaded
    Enroll(EnrollArgs),
    /// Take a cgroup out again
    Unenroll(UnenrollArgs),
    /// The cgroups that are enrolled
    Enrolled,
    /// Print metrics in Prometheus' text format
    Metrics(MetricsArgs),
    /// Measure fork() on this host, stock and asynchronous, in a process of its own
    ///
    /// Neither loads nor unloads the module. Refuses to take more than half of the memory that is available.
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print a manual page, or write all
    Man(ManArgs),
    /// For doctor and bench: one measurement
    #[command(hide = true)]
    MeasureFork(MeasureArgs),
    /// For doctor: the self-test
    #[command(hide = true)]
    SelfTest,
}

impl Command {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Doctor(_) => "doctor",
            Self::Status => "status",
            Self::Watch(_) => "watch",
            Self::Explain(_) => "explain",
            Self::On(_) => "on",
            Self::Off(_) => "off",
            Self::Enable(_) => "enable",
            Self::Disable(_) => "disable",
            Self::Enroll(_) => "enroll",
            Self::Unenroll(_) => "unenroll",
            Self::Enrolled => "enrolled",
            Self::Metrics(_) => "metrics",
            Self::Bench(_) => "bench",
            Self::Completions(_) => "completions",
            Self::Man(_) => "man",
            Self::MeasureFork(_) => "measure-fork",
            Self::SelfTest => "self-test",
        }
    }
}

/// A size such as 64M.
fn size(text: &str) -> Result<u64, String> {
    asyncfork_settings::size(text.as_bytes()).ok_or_else(|| {
        "is not a size: write bytes, or a number with K, M, G or T, such as 64M".into()
    })
}

/// A pid.
fn pid(text: &str) -> Result<i32, String> {
    text.parse()
        .ok()
        .filter(|&pid| pid > 0)
        .ok_or_else(|| "is not a pid: write a number above 0, such as $(pidof redis-server)".into())
}

/// The number of a cgroup.
fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|&id| id > 0)
        .ok_or_else(|| "is not a cgroup's number: asyncfork enrolled lists them".into())
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The library, where it is not in its usual place
    #[arg(long, value_name = "PATH")]
    pub library: Option<PathBuf>,
    /// Leave smaller processes alone: ASYNCFORK_MIN_RSS
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub min_rss: Option<u64>,
    /// Kernel threads that help the child copy: ASYNCFORK_THREADS
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// What the library logs: ASYNCFORK_LOG
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub log: Option<LogLevel>,
    /// Let forks fail that cannot be asynchronous: ASYNCFORK=require
    #[arg(long)]
    pub require: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Levels of the library's log.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogLevel {
    /// Nothing
    Off,
    /// Errors
    Error,
    /// And warnings
    Warn,
    /// And asynchronous forks
    Info,
    /// And stock forks
    Debug,
}

/// `doctor`
#[derive(Debug, Args, Default)]
pub struct DoctorArgs {
    /// Look at this process, too
    #[arg(long, value_name = "PID", value_parser = pid, conflicts_with = "unit")]
    pub pid: Option<i32>,
    /// Look at this systemd service and its main process, too
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// Look at the kernel that will boot next instead of the running one
    #[arg(long)]
    pub next_boot: bool,
    /// Try all hooks of the module, with small processes of its own; a second or two
    #[arg(long, conflicts_with = "next_boot")]
    pub selftest: bool,
    /// Do not measure what a page table costs here: no prediction then
    #[arg(long)]
    pub no_measure: bool,
}

/// `watch`
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Look so often
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub interval: f64,
    /// End after so many forks
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Begin with the forks that the module still knows
    #[arg(long)]
    pub past: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s| (0.01..=3600.0).contains(s))
        .ok_or_else(|| "is not an interval: write seconds from 0.01 to 3600".into())
}

/// `explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Of this process; without, of any
    #[arg(value_name = "PID", value_parser = pid)]
    pub pid: Option<i32>,
}

/// `on`, `off`
#[derive(Debug, Args)]
pub struct SwitchArgs {
    /// Also for the next loads of the module, in /etc/modprobe.d/asyncfork.conf
    #[arg(long)]
    pub persist: bool,
}

/// How a service gets asynchronous forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Via {
    /// Its cgroup is enrolled at each start, and now
    Cgroup,
    /// It gets the library, the group asyncfork and the device
    Preload,
}

impl Via {
    /// As on the command line.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Preload => "preload",
        }
    }
}

/// `enable`
#[derive(Debug, Args)]
pub struct EnableArgs {
    /// The service
    #[arg(value_name = "UNIT")]
    pub unit: String,
    /// How
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "cgroup",
        value_name = "WAYS"
    )]
    pub via: Vec<Via>,
    /// Leave processes alone that have less resident memory
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub min_rss: Option<u64>,
    /// Threads that help the child copy
    #[arg(long, value_name = "N")]
    pub helpers: Option<u32>,
    /// Say what would be written, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Restart the service if it runs and was started before the change
    #[arg(long)]
    pub restart: bool,
}

/// `disable`
#[derive(Debug, Args)]
pub struct DisableArgs {
    /// The service
    #[arg(value_name = "UNIT")]
    pub unit: String,
    /// Only these ways; without, all
    #[arg(long, value_delimiter = ',', value_name = "WAYS")]
    pub via: Vec<Via>,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Restart the service if it runs and was started before the change
    #[arg(long)]
    pub restart: bool,
}

/// Names a cgroup; nothing: the caller's.
#[derive(Debug, Default, Args)]
#[group(skip)]
pub struct Which {
    /// That of a running systemd service
    #[arg(long, value_name = "UNIT", group = "which")]
    pub unit: Option<String>,
    /// That of a process
    #[arg(long, value_name = "PID", value_parser = pid, group = "which")]
    pub pid: Option<i32>,
    /// This directory below /sys/fs/cgroup
    #[arg(long, value_name = "DIR", group = "which")]
    pub cgroup: Option<PathBuf>,
    /// The caller's: for lines such as ExecStartPre=
    #[arg(long = "self", group = "which")]
    pub own: bool,
}

/// What to enrol.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(false))]
pub struct EnrollArgs {
    #[command(flatten)]
    pub which: Which,
    /// Leave processes alone that have less resident memory
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64M")]
    pub min_rss: u64,
    /// Threads that help the child copy
    #[arg(long, value_name = "N", default_value = "0")]
    pub helpers: u32,
}

/// What to take out.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(false))]
pub struct UnenrollArgs {
    #[command(flatten)]
    pub which: Which,
    /// The one of this number, as `enrolled` lists it: also if it is gone
    #[arg(long, value_name = "NUMBER", value_parser = number, group = "which")]
    pub id: Option<u64>,
}

/// `metrics`
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Write them there in one step, mode 0644: for node_exporter's textfile collector; the name ends in .prom
    #[arg(long, value_name = "PATH")]
    pub textfile: Option<PathBuf>,
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Touched memory of the process that forks
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = size, default_value = "256M,1G")]
    pub sizes: Vec<u64>,
    /// Forks of each kind and size, after a warm-up
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub forks: u32,
}

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command to print the page of; without, the program's
    #[arg(value_name = "COMMAND", conflicts_with = "directory")]
    pub command: Option<String>,
    /// Write all pages into this directory
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// `measure-fork`
#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// Page tables of the process
    #[arg(long)]
    pub tables: usize,
    /// Forks, after a warm-up
    #[arg(long)]
    pub forks: u32,
    /// Mappings besides
    #[arg(long, default_value_t = 0)]
    pub mappings: usize,
    /// Map the zero page in each instead of filling them
    #[arg(long)]
    pub zero: bool,
    /// Arm each fork
    #[arg(long)]
    pub asynchronous: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["asyncfork"], words].concat())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_and_command_has_help() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn what_follows_a_program_is_its_own() {
        for words in [
            &["run", "redis-server", "--port", "0", "--json"][..],
            &["run", "--", "redis-server", "--port", "0", "--json"],
        ] {
            let cli = parse(words).unwrap();
            assert!(!cli.json);
            let Command::Run(args) = cli.command else {
                panic!("no run");
            };
            assert_eq!(args.command, ["redis-server", "--port", "0", "--json"]);
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for words in [
            &["doctor", "--pid", "0"][..],
            &["doctor", "--pid", "-1"],
            &["doctor", "--pid", "redis"],
            &["doctor", "--pid", "99999999999"],
            &["doctor", "--pid", "1", "--unit", "a"],
            &["enroll"],
            &["enroll", "--self", "--pid", "1"],
            &["enroll", "--self", "--min-rss", "64X"],
            &["enroll", "--self", "--helpers", "-1"],
            &["unenroll", "--id", "x"],
            &["unenroll", "--id", "0"],
            &["enable"],
            &["enable", "redis", "--via", "magic"],
            &["watch", "--interval", "0"],
            &["watch", "--interval", "NaN"],
            &["bench", "--sizes", "1X"],
            &["bench", "--forks", "0"],
            &["completions", "tcl"],
            &["run"],
            &["nothing"],
            &[],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn ways_are_a_list() {
        let Command::Enable(args) = parse(&["enable", "redis", "--via", "cgroup,preload"])
            .unwrap()
            .command
        else {
            panic!("no enable");
        };
        assert_eq!(args.via, [Via::Cgroup, Via::Preload]);
    }
}
