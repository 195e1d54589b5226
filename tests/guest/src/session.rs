// SPDX-License-Identifier: MIT OR Apache-2.0
//! An armed fork and what the module says about it.

use crate::board::Board;
use crate::cgroup;
use crate::ctx::Ctx;
use crate::hold;
use crate::module;
use crate::sys::{self, Exit};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::{Arm, Device, Hook, Outcome as Fate, Reason, Report, State};
use std::io;
use std::os::fd::OwnedFd;

/// How the next fork is made.
pub struct Fork<'a> {
    ctx: &'a Ctx,
    armed: bool,
    arm: Arm,
    into: Option<OwnedFd>,
}

impl<'a> Fork<'a> {
    /// Armed, without helpers, of any size.
    pub fn new(ctx: &'a Ctx) -> Self {
        Self {
            ctx,
            armed: !ctx.control,
            arm: Arm::default(),
            into: None,
        }
    }

    /// A stock fork.
    pub fn unarmed(mut self) -> Self {
        self.armed = false;
        self
    }

    /// With this many helper threads.
    pub fn helpers(mut self, n: u32) -> Self {
        self.arm.helpers = n;
        self
    }

    /// Stock if the process is smaller than this many bytes.
    pub fn min_rss(mut self, bytes: u64) -> Self {
        self.arm.min_rss = bytes;
        self
    }

    /// The child starts in this cgroup.
    pub fn into_cgroup(mut self, cgroup: &cgroup::Cgroup) -> TestResult<Self> {
        self.into = Some(cgroup.open()?);
        Ok(self)
    }

    /// Forks. The child runs `body`, which says whether its image is right, and ends.
    pub fn start(self, body: impl FnOnce() -> TestResult) -> TestResult<Session> {
        let board = Board::new()?;
        let mut session = self.start_on(&board, "child", body)?;
        session.board = Some(board);
        Ok(session)
    }

    /// Like [`Fork::start`], but the child posts to `board` as `who`.
    pub fn start_on(
        self,
        board: &Board,
        who: &str,
        body: impl FnOnce() -> TestResult,
    ) -> TestResult<Session> {
        let device = if self.armed { Some(self.arm()?) } else { None };
        let pid = self.fork().at("fork")?;
        if pid == 0 {
            drop(device);
            board.run(who, || {
                hold::run_anywhere()?;
                body()
            });
        }
        Ok(Session {
            device,
            pid,
            board: None,
            control: self.ctx.control,
        })
    }

    /// An armed descriptor.
    fn arm(&self) -> TestResult<Device> {
        let device = module::open()?;
        device.arm(&self.arm).map_err(module::device_error)?;
        Ok(device)
    }

    fn fork(&self) -> io::Result<i32> {
        match &self.into {
            Some(dir) => cgroup::fork_into(dir),
            // SAFETY: the child runs board.run() only and never returns; the C library makes malloc usable in it.
            None => sys::cvt(unsafe { libc::fork() }),
        }
    }
}

/// A forked child and its descriptor.
pub struct Session {
    device: Option<Device>,
    /// The child.
    pub pid: i32,
    board: Option<Board>,
    control: bool,
}

impl Session {
    /// The report as it is now; `None` for a stock fork.
    pub fn report(&self) -> TestResult<Option<Report>> {
        match &self.device {
            Some(device) => Ok(Some(device.report().map_err(module::device_error)?)),
            None => Ok(None),
        }
    }

    /// The report, to demand something of; `None` in a control run only.
    fn armed_report(&self) -> TestResult<Option<Report>> {
        match self.report()? {
            None if !self.control => Err(not_armed()),
            report => Ok(report),
        }
    }

    /// Demands that the fork was asynchronous; the child may have its whole image already.
    pub fn expect_async(&self) -> TestResult {
        if let Some(report) = self.armed_report()? {
            claim!(
                report.outcome() == Fate::Async,
                "outcome {}, reason {}: not asynchronous",
                report.outcome(),
                report.reason()
            );
        }
        Ok(())
    }

    /// Demands that memory is still parked for a child that is held back: the parent is about to meet it.
    pub fn expect_running(&self) -> TestResult {
        self.expect_async()?;
        self.expect_child_held()?;
        self.expect_state(State::Running, "nothing is parked any more")
    }

    /// Demands that the session is in this state; `else_what` says what another one means.
    pub fn expect_state(&self, state: State, else_what: &str) -> TestResult {
        if let Some(report) = self.armed_report()? {
            claim!(
                report.state() == state,
                "{else_what}: session {}",
                summary(&report)
            );
        }
        Ok(())
    }

    /// Demands that the child itself has copied nothing yet.
    pub fn expect_child_held(&self) -> TestResult {
        if let Some(report) = self.armed_report()? {
            require!(
                report.chunks.by_child == 0,
                "the child was to be held back, but has pulled {} chunks already",
                report.chunks.by_child
            );
        }
        Ok(())
    }

    /// Closes the descriptor and leaves the child to its board.
    pub fn leave(self) {}

    /// Waits for the child's verdict, which must be good, and for the end of the session.
    pub fn finish(mut self) -> TestResult<Ended> {
        if let Some(board) = self.board.take() {
            board.collect(&["child"]).map_err(|v| self.blame(v))?;
        }
        let exit = sys::wait(self.pid).at("wait for the child")?;
        claim!(exit == Exit::Code(0), "the child ended with {exit:?}");
        self.ended()
    }

    /// Waits for a child that is to be killed by `SIGKILL`; a verdict from before is fine if it is good.
    pub fn finish_killed(mut self) -> TestResult<Ended> {
        if let Some(board) = self.board.take() {
            match board.collect(&["child"]) {
                Ok(()) => {}
                Err(Verdict::Failed(t)) if t.ends_with("without a verdict") => {}
                Err(v) => return Err(self.blame(v)),
            }
        }
        let exit = sys::wait(self.pid).at("wait for the child")?;
        let killed = matches!(
            exit,
            Exit::Signal {
                signal: libc::SIGKILL,
                ..
            }
        );
        claim!(
            killed || exit == Exit::Code(0),
            "the child ended with {exit:?}, not by SIGKILL"
        );
        self.ended().map(|e| Ended { killed, ..e })
    }

    /// Waits for the end of the session; the child is reaped already.
    fn ended(&self) -> TestResult<Ended> {
        let report = match &self.device {
            None => None,
            Some(_) => {
                let report = sys::poll_until(|| -> TestResult<Option<Report>> {
                    Ok(self.report()?.filter(|r| r.state() != State::Running))
                })?;
                let Some(report) = report else {
                    return Err(Verdict::Failed(format!(
                        "the session never ends: {:?}",
                        self.report()?
                    )));
                };
                Some(report)
            }
        };
        Ok(Ended {
            report,
            control: self.control,
            killed: false,
        })
    }

    /// Adds the report to a verdict.
    fn blame(&self, v: Verdict) -> Verdict {
        match self.report() {
            Ok(Some(r)) => v.at(format!("session {}", summary(&r))),
            _ => v,
        }
    }
}

/// A session that is over.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Ended {
    report: Option<Report>,
    control: bool,
    killed: bool,
}

impl Ended {
    /// From a report got by other means; `None` only where nothing was armed.
    pub fn from_report(ctx: &Ctx, report: Option<Report>) -> Self {
        Self {
            report,
            control: ctx.control,
            killed: false,
        }
    }

    /// Whether the child was killed, for [`Session::finish_killed`].
    pub fn was_killed(&self) -> bool {
        self.killed
    }

    /// The report, if the fork was armed.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    fn check(&self, what: impl FnOnce(&Report) -> Result<(), String>) -> TestResult<&Self> {
        match &self.report {
            Some(r) => {
                what(r).map_err(|e| Verdict::Failed(format!("{e}; session {}", summary(r))))?
            }
            None if self.control => {}
            None => return Err(not_armed()),
        }
        Ok(self)
    }

    /// The fork was asynchronous, at least `chunks` were parked, and every one of them is accounted for.
    pub fn parked(&self, chunks: u64) -> TestResult<&Self> {
        self.check(|r| {
            if r.outcome() != Fate::Async {
                return Err(format!(
                    "outcome {}, reason {}: not asynchronous",
                    r.outcome(),
                    r.reason()
                ));
            }
            if r.chunks.parked < chunks {
                return Err(format!(
                    "{} chunks parked, want at least {chunks}",
                    r.chunks.parked
                ));
            }
            balanced(r)
        })
    }

    /// The child got its whole image.
    pub fn done(&self) -> TestResult<&Self> {
        self.check(|r| match (r.state(), r.chunks.reattached) {
            (State::Done, 0) => Ok(()),
            _ => Err(format!(
                "state {}, {} chunks given back uncopied",
                r.state(),
                r.chunks.reattached
            )),
        })
    }

    /// The session was aborted.
    pub fn aborted(&self) -> TestResult<&Self> {
        self.check(|r| match r.state() {
            State::Aborted => Ok(()),
            other => Err(format!("state {other}, want aborted")),
        })
    }

    /// `hook` asked for at least `n` pulls.
    pub fn pulled(&self, hook: Hook, n: u64) -> TestResult<&Self> {
        self.check(|r| match r.pulls_by(hook) {
            got if got >= n => Ok(()),
            got => Err(format!("{got} pulls by {hook}, want at least {n}")),
        })
    }

    /// The usual end: parked at least `chunks`, complete.
    pub fn whole(&self, chunks: u64) -> TestResult<&Self> {
        self.parked(chunks)?.done()
    }

    /// The fork was stock, for `reason`.
    pub fn stock(&self, reason: Reason) -> TestResult<&Self> {
        self.check(|r| {
            if r.outcome() == Fate::Stock && r.reason() == reason {
                Ok(())
            } else {
                Err(format!(
                    "outcome {}, reason {}; want stock, {reason}",
                    r.outcome(),
                    r.reason()
                ))
            }
        })
    }

    /// A claim about the report; holds where nothing was armed.
    pub fn holds(&self, what: &str, claim: impl FnOnce(&Report) -> bool) -> TestResult<&Self> {
        self.check(|r| {
            if claim(r) {
                Ok(())
            } else {
                Err(format!("not true: {what}"))
            }
        })
    }

    /// One line for the results.
    pub fn detail(&self) -> String {
        self.report
            .as_ref()
            .map_or_else(|| "stock fork".into(), summary)
    }
}

/// A demand on a fork that the module has nothing to do with.
fn not_armed() -> Verdict {
    Verdict::Broken("no report: this fork was not armed".into())
}

/// Every parked chunk was pulled by somebody or given back, and the two ways to count pulls agree.
pub fn balanced(r: &Report) -> Result<(), String> {
    let pulled = r.chunks.by_child + r.chunks.by_parent + r.chunks.by_helper + r.chunks.by_other;
    let asked: u64 = r.pulls.iter().sum();
    if r.chunks.parked != pulled + r.chunks.reattached {
        return Err(format!(
            "{} parked, but {pulled} pulled and {} given back",
            r.chunks.parked, r.chunks.reattached
        ));
    }
    if asked != pulled {
        return Err(format!(
            "{pulled} pulled by somebody, but {asked} asked for"
        ));
    }
    Ok(())
}

/// The report on one line.
pub fn summary(r: &Report) -> String {
    let pulls: Vec<String> = Hook::ALL
        .iter()
        .filter(|h| r.pulls_by(**h) > 0)
        .map(|h| format!("{h} {}", r.pulls_by(*h)))
        .collect();
    format!(
        "{} {}: parked {}, eager {}, mixed {}, given back {}; pulled by child {}, parent {}, helper {}, other {} ({})",
        r.id,
        r.state(),
        r.chunks.parked,
        r.chunks.eager,
        r.chunks.mixed,
        r.chunks.reattached,
        r.chunks.by_child,
        r.chunks.by_parent,
        r.chunks.by_helper,
        r.chunks.by_other,
        pulls.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(report: Option<Report>, control: bool) -> Ended {
        Ended {
            report,
            control,
            killed: false,
        }
    }

    /// An asynchronous fork whose chunks these hooks have pulled, for the child.
    fn report(pulls: &[(Hook, u64)]) -> Report {
        let mut report = Report {
            outcome: Fate::Async.raw(),
            state: State::Done.raw(),
            ..Report::default()
        };
        for &(hook, n) in pulls {
            report.pulls[hook.raw() as usize] = n;
            report.chunks.parked += n;
            report.chunks.by_child += n;
        }
        report
    }

    #[test]
    fn a_stock_fork_meets_no_demand_on_an_asynchronous_one() {
        let stock = Report {
            outcome: Fate::Stock.raw(),
            reason: Reason::Nothing.raw(),
            ..Report::default()
        };
        let ended = ended(Some(stock), false);
        assert!(ended.whole(0).is_err());
        assert!(ended.aborted().is_err());
        assert!(ended.pulled(Hook::Fault, 1).is_err());
        assert!(ended.stock(Reason::Nothing).is_ok());
        assert!(ended.stock(Reason::Pinned).is_err());
    }

    #[test]
    fn without_a_report_nothing_is_shown_but_in_a_control_run() {
        for demand in [
            |e: &Ended| e.whole(1).map(drop),
            |e: &Ended| e.aborted().map(drop),
            |e: &Ended| e.pulled(Hook::Fault, 1).map(drop),
            |e: &Ended| e.stock(Reason::Nothing).map(drop),
            |e: &Ended| e.holds("", |_| true).map(drop),
        ] {
            assert!(matches!(
                demand(&ended(None, false)),
                Err(Verdict::Broken(_))
            ));
            assert_eq!(demand(&ended(None, true)), Ok(()));
        }
    }

    #[test]
    fn every_chunk_has_to_be_accounted_for() {
        let whole = report(&[(Hook::Child, 3), (Hook::Fault, 1)]);
        assert!(ended(Some(whole), false).whole(4).is_ok());
        assert!(ended(Some(whole), false).whole(5).is_err(), "too few");
        assert!(ended(Some(whole), false).pulled(Hook::Fault, 1).is_ok());
        assert!(ended(Some(whole), false).pulled(Hook::Fault, 2).is_err());
        let spoilt: [fn(&mut Report); 5] = [
            |r| r.chunks.parked += 1,
            |r| r.chunks.by_other += 1,
            |r| r.pulls[0] += 1,
            |r| r.chunks.reattached += 1,
            |r| r.state = State::Running.raw(),
        ];
        for (n, spoil) in spoilt.iter().enumerate() {
            let mut report = whole;
            spoil(&mut report);
            assert!(ended(Some(report), false).whole(4).is_err(), "{n}");
        }
        // Given back, and counted as that: not whole all the same.
        let mut back = whole;
        back.chunks.parked += 1;
        back.chunks.reattached += 1;
        assert!(ended(Some(back), false).parked(4).is_ok());
        assert!(ended(Some(back), false).whole(4).is_err());
    }
}
