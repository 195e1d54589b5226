// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens before and after the real fork.
//!
//! Everything here may run in a signal handler and with any lock of the
//! program held: no allocation, no locks, no libc calls that touch errno.

use asyncfork_settings::{Mode, PathBuffer};
use asyncfork_uapi::{Arm, Device, Error, Outcome, Reason, Report};
use libc::pid_t;
use log::{debug, info, log, Level};

use crate::log::Once;
use crate::rss;

/// The library's state in a process that may arm: those of its settings that a fork
/// has to know. Made once, at load.
pub struct Shim {
    /// [`Mode::Off`] only with `guard`.
    pub mode: Mode,
    /// The process is to have the mark, and could not get it: see [`Shim::stock`].
    pub guard: bool,
    /// Bytes resident; smaller processes use a stock fork.
    pub min_rss: u64,
    /// Threads that help the child copy.
    pub helpers: u32,
    /// Absolute path.
    pub device: PathBuffer,
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
        if self.mode == Mode::Off {
            return self.stock();
        }
        let min = self.min_rss;
        if let Some(size) = rss::below(min) {
            debug!("stock fork: {size} bytes resident, armed from {min} (ASYNCFORK_MIN_RSS)");
            return self.stock();
        }
        match self.arm() {
            Ok(device) => Plan::Armed(device),
            Err(obstacle) => self.without(&obstacle),
        }
    }

    /// A fork that is to be stock. Where the mark is missing, an enrolment of the cgroup
    /// could make it asynchronous: an ARM comes before that, and with a minimum that no
    /// process has it keeps the fork stock.
    fn stock(&self) -> Plan {
        if !self.guard {
            return Plan::Stock;
        }
        match self.arm_never() {
            Ok(device) => Plan::Armed(device),
            Err(error) => {
                let path = &self.device;
                log!(
                    self.level(Once::Unmarked),
                    "fork not kept from being asynchronous by enrolment of its cgroup \
                     (process not marked): {path} {error}"
                );
                Plan::Stock
            }
        }
    }

    fn arm_never(&self) -> Result<Device, Error> {
        let device = Device::open_at(self.device.as_c_str())?;
        device.check_abi()?;
        device.arm(&Arm {
            min_rss: u64::MAX,
            ..Arm::default()
        })?;
        Ok(device)
    }

    fn arm(&self) -> Result<Device, Obstacle> {
        let device = Device::open_at(self.device.as_c_str())?;
        // Asked each time: the module may have been replaced meanwhile.
        let version = device.check_abi()?;
        if self.mode == Mode::Require {
            let stats = device.stats()?;
            if stats.switched_off != 0 {
                return Err(Obstacle::Module(Reason::SwitchedOff));
            }
            if stats.enabled == 0 {
                return Err(Obstacle::Module(Reason::Disabled));
            }
        }
        let (wanted, max) = (self.helpers, version.max_helpers);
        if wanted > max {
            log!(
                Once::Helpers.level(Level::Warn),
                "ASYNCFORK_THREADS={wanted} is more than the module allows; using {max}"
            );
        }
        device.arm(&Arm {
            helpers: wanted.min(max),
            min_rss: self.min_rss,
            ..Arm::default()
        })?;
        Ok(device)
    }

    /// An obstacle before the fork.
    fn without(&self, obstacle: &Obstacle) -> Plan {
        let (plan, what) = match self.mode {
            Mode::Require => (Plan::Refuse, "fork refused (ASYNCFORK=require)"),
            Mode::Auto | Mode::Off => (Plan::Stock, "stock fork"),
        };
        match obstacle {
            Obstacle::Device(error) => {
                let path = &self.device;
                log!(self.level(Once::Device(*error)), "{what}: {path} {error}");
            }
            Obstacle::Module(reason) => {
                let why = reason.explain();
                log!(self.level(Once::Stock(*reason)), "{what}: {reason}: {why}");
            }
        }
        plan
    }

    /// The level of a complaint: once what matters to `ASYNCFORK=require` or not.
    fn level(&self, key: Once) -> Level {
        key.level(match self.mode {
            Mode::Require => Level::Error,
            Mode::Auto | Mode::Off => Level::Warn,
        })
    }

    /// In the parent, after the real fork returned `pid`: what became of it.
    pub fn after(&self, device: &Device, pid: pid_t) {
        match device.report() {
            Ok(report) => self.log_report(&report, pid),
            Err(error) => {
                let path = &self.device;
                log!(
                    Once::Device(error).level(Level::Warn),
                    "fork of {pid}, outcome unknown: {path} {error}"
                );
            }
        }
    }

    /// With the child there, all that is left for "require" is to say so.
    fn log_report(&self, report: &Report, pid: pid_t) {
        let child = report.child_pid;
        match report.outcome() {
            // 0: not to be seen from this pid namespace.
            Outcome::Async if child != pid && child != 0 => log!(
                self.level(Once::Taken),
                "stock fork of {pid}: an atfork handler has forked past this library, \
                 and that fork, of {child}, was asynchronous instead"
            ),
            Outcome::Async => {
                let park_us = report.park_ns / 1000;
                let (id, parked, eager) = (report.id, report.chunks.parked, report.chunks.eager);
                info!(
                    "async fork of {pid}: session {id}, {parked} chunks parked in {park_us} us, \
                     {eager} copied at once"
                );
                if report.cpus == 1 {
                    log!(
                        Once::OneCpu.level(Level::Warn),
                        "bound to one CPU: the child copies there as well, before it can move; \
                         helper threads (ASYNCFORK_THREADS) run elsewhere"
                    );
                }
            }
            Outcome::Stock => {
                let reason = report.reason();
                let level = match reason {
                    // As it should be.
                    Reason::MinRss => Level::Debug,
                    Reason::Nothing => Level::Info,
                    _ => self.level(Once::Stock(reason)),
                };
                let why = reason.explain();
                log!(level, "stock fork of {pid}: {reason}: {why}");
            }
            outcome => log!(
                self.level(Once::Unseen),
                "stock fork of {pid}: the module did not see it (outcome {outcome})"
            ),
        }
    }
}
