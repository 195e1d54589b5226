// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel module: what the commands ask of it, whatever its ABI.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use asyncfork_uapi::{
    Arm, By, Device, Entry, Errno, Error, Outcome, Report, Stats, Version, ABI_OLDEST, ABI_VERSION,
    MAX_ENTRIES,
};
use serde::Serialize;

use crate::exit;
use crate::host::Host;

/// The module's directory in sysfs.
pub const SYSFS: &str = "/sys/module/asyncfork";
/// The first ABI in which cgroups can be enrolled.
pub const ENROLMENT_ABI: u32 = 3;

/// One fork that the module has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork(pub Report);

impl Fork {
    /// Its number in the ring; none before ABI 3.
    pub fn seq(&self) -> Option<u64> {
        Some(self.0.seq).filter(|&seq| seq > 0)
    }

    /// Why it was to be asynchronous; none before ABI 3.
    pub fn by(&self) -> Option<By> {
        Some(self.0.by()).filter(|&by| by != By::None)
    }

    /// Whether at least one chunk was parked.
    pub fn is_async(&self) -> bool {
        self.0.outcome() == Outcome::Async
    }
}

/// What an enrolled cgroup's processes get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Terms {
    /// Bytes resident; smaller processes use a stock fork.
    pub min_rss: u64,
    /// Threads that help the child copy.
    pub helpers: u32,
}

/// One enrolled cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Enrolment {
    /// Inode number of its directory.
    pub id: u64,
    /// What its processes get.
    #[serde(flatten)]
    pub terms: Terms,
    /// Asynchronous forks in it.
    pub async_forks: u64,
    /// Stock forks in it.
    pub stock_forks: u64,
}

/// A cgroup to take out.
#[derive(Debug)]
pub enum Cgroup<'a> {
    /// Its open directory.
    Open(&'a File),
    /// The number that it has or had.
    Id(u64),
}

/// The loaded module.
pub trait Module {
    /// What it speaks.
    ///
    /// # Errors
    /// Those of the device.
    fn version(&self) -> Result<Version>;
    /// Totals since it was loaded.
    ///
    /// # Errors
    /// Those of the device.
    fn stats(&self) -> Result<Stats>;
    /// The forks in its ring, oldest first.
    ///
    /// # Errors
    /// Those of the device.
    fn recent(&self) -> Result<Vec<Fork>>;
    /// Enrols a cgroup, or changes its terms.
    ///
    /// # Errors
    /// Those of the device; the module has no enrolment.
    fn enroll(&self, cgroup: &File, terms: Terms) -> Result<()>;
    /// Takes a cgroup out; false: it was not enrolled.
    ///
    /// # Errors
    /// Those of the device; the module has no enrolment.
    fn unenroll(&self, cgroup: &Cgroup<'_>) -> Result<bool>;
    /// All that are enrolled.
    ///
    /// # Errors
    /// Those of the device; the module has no enrolment.
    fn enrolled(&self) -> Result<Vec<Enrolment>>;
}

/// Refuses a module with which this command does not work.
///
/// # Errors
/// With what to do about it.
pub fn check_abi(module: &dyn Module) -> Result<Version> {
    let version = module.version()?;
    if version.is_usable() {
        return Ok(version);
    }
    Err(exit::cannot_tell(format!(
        "{}: install the command of the module's release",
        abi_mismatch(&version)
    )))
}

/// Which ABIs do not fit.
pub fn abi_mismatch(version: &Version) -> String {
    format!(
        "the module speaks ABI {}, this command {ABI_OLDEST} to {ABI_VERSION}",
        version.abi
    )
}

/// A module without the ioctls of ABI 3.
///
/// # Errors
/// Always: says what to do.
pub fn no_enrolment<T>() -> Result<T> {
    Err(exit::failed(format!(
        "the module has no enrolment of cgroups (it comes with ABI {ENROLMENT_ABI}): install a newer module, \
         or use the library (asyncfork run, asyncfork enable --via preload)"
    )))
}

/// The module behind a device.
pub struct Live {
    device: Device,
    path: PathBuf,
}

impl Live {
    /// Opens the device. See [`check_abi`].
    ///
    /// # Errors
    /// With what to do about it.
    pub fn open(host: &Host, path: &Path) -> Result<Self> {
        let real = host.path(path);
        let c_path = CString::new(real.as_os_str().as_bytes())
            .map_err(|_| exit::input("--device: a path has no NUL byte"))?;
        let device = Device::open_at(&c_path).map_err(|e| {
            if host.exists(SYSFS) {
                exit::cannot_tell(unopened(path, &e))
            } else {
                exit::cannot_tell("the module is not loaded: modprobe asyncfork (asyncfork doctor says why if that fails)")
            }
        })?;
        Ok(Self {
            device,
            path: path.to_owned(),
        })
    }

    /// Arms the calling thread's next fork: asynchronous whatever its size, or stock
    /// whatever enrolment and policy say.
    ///
    /// # Errors
    /// Those of the device.
    pub fn arm(&self, asynchronous: bool) -> Result<()> {
        self.said(self.device.arm(&Arm {
            min_rss: if asynchronous { 0 } else { u64::MAX },
            ..Arm::default()
        }))
    }

    /// The last fork that was armed.
    ///
    /// # Errors
    /// Those of the device.
    pub fn report(&self) -> Result<Report> {
        self.said(self.device.report())
    }

    fn said<T>(&self, result: Result<T, Error>) -> Result<T> {
        result.map_err(|e| exit::cannot_tell(format!("{} {e}", self.path.display())))
    }

    /// As [`Live::said`], of the calls for enrolment.
    fn done<T>(&self, result: Result<T, Error>) -> Result<T> {
        match result {
            Err(Error::Ioctl(_, Errno::NOTTY)) => no_enrolment(),
            other => other.map_err(|e| exit::failed(format!("{} {e}", self.path.display()))),
        }
    }
}

/// Why the device of a loaded module cannot be opened, for the one who runs this: the
/// error's own words are for a service.
fn unopened(path: &Path, error: &Error) -> String {
    let path = path.display();
    match error {
        Error::Open(Errno::ACCESS | Errno::PERM) => {
            format!("{path}: permission denied; run it as root, or in group asyncfork")
        }
        Error::Open(Errno::NOENT) => {
            format!(
                "there is no {path}, and the module is loaded; asyncfork doctor says what to do"
            )
        }
        error => format!("{path} {error}; the module's device is /dev/asyncfork"),
    }
}

/// As many as the module keeps, or more.
const RING: usize = 256;

impl Module for Live {
    fn version(&self) -> Result<Version> {
        self.said(self.device.version())
    }

    fn stats(&self) -> Result<Stats> {
        self.said(self.device.stats())
    }

    fn recent(&self) -> Result<Vec<Fork>> {
        let mut entries = vec![Report::default(); RING];
        let count = self.said(self.device.recent(&mut entries))?;
        entries.truncate(count);
        Ok(entries.into_iter().rev().map(Fork).collect())
    }

    fn enroll(&self, cgroup: &File, terms: Terms) -> Result<()> {
        self.done(
            self.device
                .enroll(cgroup.as_fd(), terms.min_rss, terms.helpers),
        )
    }

    fn unenroll(&self, cgroup: &Cgroup<'_>) -> Result<bool> {
        let result = match cgroup {
            Cgroup::Open(file) => self.device.unenroll(file.as_fd()),
            Cgroup::Id(id) => self.device.unenroll_id(*id),
        };
        match result {
            Err(Error::Ioctl(_, Errno::NOENT)) => Ok(false),
            other => self.done(other).map(|()| true),
        }
    }

    fn enrolled(&self) -> Result<Vec<Enrolment>> {
        let mut entries = vec![Entry::default(); MAX_ENTRIES];
        let count = self.done(self.device.enrolled(&mut entries))?;
        let mut enrolled: Vec<_> = entries[..count]
            .iter()
            .map(|entry| Enrolment {
                id: entry.cgroup_id,
                terms: Terms {
                    min_rss: entry.min_rss,
                    helpers: entry.helpers,
                },
                async_forks: entry.r#async,
                stock_forks: entry.stock,
            })
            .collect();
        enrolled.sort_by_key(|e| e.id);
        Ok(enrolled)
    }
}

/// Whether forks can be asynchronous now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No module.
    NotLoaded,
    /// They can.
    On,
    /// The parameter `enabled` is N.
    Off,
    /// The module has switched itself off; why, if it says so.
    SwitchedOff(Option<String>),
}

impl State {
    /// All labels, for metrics.
    pub const LABELS: &'static [&'static str] = &["on", "off", "switched_off", "not_loaded"];

    /// Short name for JSON and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotLoaded => "not_loaded",
            Self::On => "on",
            Self::Off => "off",
            Self::SwitchedOff(_) => "switched_off",
        }
    }

    /// Looks it up: in sysfs, and for older modules in `stats`, if the device answered.
    pub fn of(host: &Host, stats: Option<&Stats>) -> Self {
        if !is_loaded(host) {
            return Self::NotLoaded;
        }
        let said = parameter(host, "state").unwrap_or_default();
        if let Some(why) = said.strip_prefix("switched off") {
            let why = why.trim_start_matches(':').trim();
            return Self::SwitchedOff((!why.is_empty()).then(|| why.to_owned()));
        }
        if stats.is_some_and(|s| s.switched_off != 0) {
            return Self::SwitchedOff(None);
        }
        match parameter(host, "enabled").as_deref() {
            Some("N" | "0") => Self::Off,
            _ => Self::On,
        }
    }
}

/// Whether the module is loaded and ready.
pub fn is_loaded(host: &Host) -> bool {
    host.exists(Path::new(SYSFS).join("parameters/enabled"))
}

/// Where a parameter is.
pub fn parameter_path(name: &str) -> PathBuf {
    Path::new(SYSFS).join("parameters").join(name)
}

/// A parameter's value; `None`: no module, or it has no such parameter.
pub fn parameter(host: &Host, name: &str) -> Option<String> {
    host.line(parameter_path(name))
}

/// Whose forks the module looks at besides those of threads that ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Nobody's: enrolment is without effect.
    Armed,
    /// Those in enrolled cgroups.
    Enrolled,
    /// Also those of all processes with so many bytes resident.
    All {
        /// The parameter `policy_min_rss`.
        min_rss: u64,
    },
}

/// The module's policy; `None`: no module, or one before ABI 3.
pub fn policy(host: &Host) -> Option<Policy> {
    match parameter(host, "policy")?.as_str() {
        "armed" => Some(Policy::Armed),
        "enrolled" => Some(Policy::Enrolled),
        "all" => Some(Policy::All {
            min_rss: parameter(host, "policy_min_rss")?.parse().ok()?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn the_state_is_read_from_whatever_the_module_has() {
        let fake = Fake::new();
        assert_eq!(State::of(&fake.host, None), State::NotLoaded);
        fake.loaded();
        assert_eq!(State::of(&fake.host, None), State::On);
        let stats = Stats {
            switched_off: 1,
            ..Stats::default()
        };
        assert_eq!(
            State::of(&fake.host, Some(&stats)),
            State::SwitchedOff(None)
        );
        fake.write("/sys/module/asyncfork/parameters/enabled", "N\n");
        assert_eq!(State::of(&fake.host, None), State::Off);
        fake.write(
            "/sys/module/asyncfork/parameters/state",
            "switched off: a slot has changed\n",
        );
        let why = State::SwitchedOff(Some("a slot has changed".into()));
        assert_eq!(State::of(&fake.host, None), why);
        assert!(State::LABELS.contains(&why.label()));
    }

    #[test]
    fn a_missing_module_says_what_to_do() {
        let fake = Fake::new();
        let Err(error) = Live::open(&fake.host, Path::new("/dev/asyncfork")) else {
            panic!("opened");
        };
        assert!(error.to_string().contains("modprobe asyncfork"), "{error}");
        assert_eq!(exit::of(&error), exit::Exit::CannotTell);
    }
}
