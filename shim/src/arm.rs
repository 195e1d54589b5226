// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens before and after the real fork.
//!
//! Everything here may run in a signal handler and with any lock of the
//! program held: no allocation, no locks, no libc calls that touch errno.

use asyncfork_uapi::{Arm, Device, Error, Outcome, Reason, Report};
use libc::pid_t;

use crate::config::{Config, Mode};
use crate::log::{Level, Logger, Once};
use crate::rss;

/// The library's state in a process that may arm; made once, at load.
pub struct Shim {
    /// The settings.
    pub config: Config,
    /// Where to complain.
    pub log: Logger,
    /// Bytes.
    pub page_size: u64,
}

/// What to do about one fork.
pub enum Plan {
    /// Call the real fork.
    Stock,
    /// Call the real fork, then give this to [`Shim::after`]; in the child, drop it.
    Armed(Device),
    /// Fail, as `ASYNCFORK=require` demands.
    Refuse,
}

/// Why a process that is large enough cannot be armed.
enum Obstacle {
    Device(Error),
    /// The module would not do it; asked only for `ASYNCFORK=require`.
    Module(Reason),
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self::Device(error)
    }
}

impl Shim {
    /// Arms the calling thread if it should be.
    pub fn before(&self) -> Plan {
        let min = self.config.min_rss;
        if let Some(size) = rss::below(min, self.page_size) {
            self.log.log(
                Level::Debug,
                format_args!(
                    "stock fork: {size} bytes resident, armed from {min} (ASYNCFORK_MIN_RSS)"
                ),
            );
            return Plan::Stock;
        }
        match self.arm() {
            Ok(device) => Plan::Armed(device),
            Err(obstacle) => self.without(&obstacle),
        }
    }

    fn arm(&self) -> Result<Device, Obstacle> {
        let device = Device::open_at(&self.config.device)?;
        // Asked each time: the module may have been replaced meanwhile.
        let version = device.check_abi()?;
        if self.config.mode == Mode::Require {
            let stats = device.stats()?;
            if stats.switched_off != 0 {
                return Err(Obstacle::Module(Reason::SwitchedOff));
            }
            if stats.enabled == 0 {
                return Err(Obstacle::Module(Reason::Disabled));
            }
        }
        let (wanted, max) = (self.config.helpers, version.max_helpers);
        if wanted > max {
            self.log.once(
                Once::Helpers,
                Level::Warn,
                format_args!(
                    "ASYNCFORK_THREADS={wanted} is more than the module allows; using {max}"
                ),
            );
        }
        let min_rss = self.config.min_rss;
        device.arm(&Arm {
            flags: 0,
            helpers: wanted.min(max),
            min_rss,
        })?;
        Ok(device)
    }

    /// An obstacle before the fork.
    fn without(&self, obstacle: &Obstacle) -> Plan {
        let (plan, level, what) = match self.config.mode {
            Mode::Require => (
                Plan::Refuse,
                Level::Error,
                "fork refused (ASYNCFORK=require)",
            ),
            Mode::Auto | Mode::Off => (Plan::Stock, Level::Warn, "stock fork"),
        };
        match obstacle {
            Obstacle::Device(error) => {
                let path = Text(self.config.device.to_bytes());
                self.log.once(
                    Once::Device(*error),
                    level,
                    format_args!("{what}: {path} {error}"),
                );
            }
            Obstacle::Module(reason) => {
                let why = reason.explain();
                self.log.once(
                    Once::Stock(*reason),
                    level,
                    format_args!("{what}: {reason}: {why}"),
                );
            }
        }
        plan
    }

    /// In the parent, after the real fork returned `pid`: what became of it.
    pub fn after(&self, device: &Device, pid: pid_t) {
        match device.report() {
            Ok(report) => self.log_report(&report, pid),
            Err(error) => {
                let path = Text(self.config.device.to_bytes());
                self.log.once(
                    Once::Device(error),
                    Level::Warn,
                    format_args!("fork of {pid}, outcome unknown: {path} {error}"),
                );
            }
        }
    }

    fn log_report(&self, report: &Report, pid: pid_t) {
        if pid < 0 {
            self.log
                .log(Level::Debug, format_args!("the fork itself failed"));
            return;
        }
        // Its child exists, so all that is left for "require" is to say so.
        let level = match self.config.mode {
            Mode::Require => Level::Error,
            Mode::Auto | Mode::Off => Level::Warn,
        };
        match report.outcome() {
            Outcome::Async => {
                self.log.log(
                    Level::Info,
                    format_args!(
                        "async fork of {pid}: session {}, {} chunks parked in {} us, {} copied at once",
                        report.id,
                        report.parked,
                        report.park_ns / 1000,
                        report.eager
                    ),
                );
                if report.cpus == 1 {
                    self.log.once(
                        Once::OneCpu,
                        Level::Warn,
                        format_args!(
                            "bound to one CPU: the child copies there as well, before it can move; \
                             helper threads (ASYNCFORK_THREADS) run elsewhere"
                        ),
                    );
                }
            }
            Outcome::Stock => {
                let reason = report.reason();
                let why = reason.explain();
                let message = format_args!("stock fork of {pid}: {reason}: {why}");
                match reason {
                    // As it should be.
                    Reason::MinRss => self.log.log(Level::Debug, message),
                    Reason::Nothing => self.log.log(Level::Info, message),
                    _ => self.log.once(Once::Stock(reason), level, message),
                }
            }
            outcome => self.log.once(
                Once::Unseen,
                level,
                format_args!("stock fork of {pid}: the module did not see it (outcome {outcome})"),
            ),
        }
    }
}

/// Bytes as text, what is not UTF-8 left out.
struct Text<'a>(&'a [u8]);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .utf8_chunks()
            .try_for_each(|chunk| f.write_str(chunk.valid()))
    }
}
