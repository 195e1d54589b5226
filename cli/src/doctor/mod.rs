// SPDX-License-Identifier: MIT OR Apache-2.0
//! `doctor`: what keeps forks from being asynchronous, and what they will cost.

pub mod finding;
pub mod kernel;
mod machine;
mod next;
mod process;
mod signature;
mod unit;

use anyhow::Result;
use serde_json::json;

use crate::cli::DoctorArgs;
use crate::ctx::Ctx;
use crate::exit::Exit;
use crate::module::{self, Policy, State};
use crate::out::{self, bytes, duration, styled};
use crate::pause::{self, Guess, Prediction};
use crate::process::Process;
use crate::systemd::{self, Shown, Unit};
use crate::{cgroup, doctor, progress};

use finding::{Findings, Severity};

/// Whom it is about.
#[derive(Default)]
struct Target {
    process: Option<Process>,
    unit: Option<(Unit, Shown)>,
}

impl Target {
    /// The restart that a fix needs.
    fn restart(&self) -> String {
        match (&self.unit, &self.process) {
            (Some((unit, _)), _) => format!("systemctl restart {unit}"),
            (None, Some(process)) => format!("restart process {}", process.pid),
            (None, None) => "restart it".into(),
        }
    }
}

/// Looks, and prints what it found.
///
/// # Errors
/// There is no such process or unit.
pub fn run(ctx: &mut Ctx<'_>, args: &DoctorArgs) -> Result<Exit> {
    let target = target(ctx, args)?;
    let mut findings = Findings::default();
    if args.next_boot {
        next::check(ctx, &mut findings);
    } else {
        machine::check(ctx, &mut findings);
        if args.selftest {
            machine::self_test(ctx, &mut findings);
        }
    }
    machine::check_system(ctx, target.process.as_ref(), &mut findings);
    let mut served = false;
    if let Some(process) = &target.process {
        served = doctor::process::check(ctx, process, &target, &mut findings);
    }
    if let Some((unit, shown)) = &target.unit {
        unit::check(ctx, unit, shown, served, &mut findings);
    }
    findings.findings.sort_by_key(|f| f.kind.severity);
    let pause = match &target.process {
        Some(process) if !args.no_measure => {
            let what = "measuring what fork() costs here";
            Some(progress::during(what, || predict(ctx, process)))
        }
        _ => None,
    };
    say(ctx, &target, &findings, pause.as_ref())
}

/// Whether the kernel that boots next will have the module loaded and on; none: cannot
/// be told.
pub fn next_boot_is_ready(ctx: &Ctx<'_>) -> Option<bool> {
    let mut findings = Findings::default();
    next::check(ctx, &mut findings);
    // An old module is one, too.
    findings
        .findings
        .retain(|found| found.kind != &finding::MODULE_OLD);
    if findings.count() > 0 {
        return Some(false);
    }
    findings.unknown.is_empty().then_some(true)
}

fn target(ctx: &Ctx<'_>, args: &DoctorArgs) -> Result<Target> {
    if let Some(name) = &args.unit {
        let (unit, shown) = systemd::find(&ctx.host, &Unit::parse(name)?)?;
        let process = match shown.main_pid() {
            Some(pid) => Some(Process::read(&ctx.host, pid)?),
            None => None,
        };
        return Ok(Target {
            process,
            unit: Some((unit, shown)),
        });
    }
    let Some(pid) = args.pid else {
        return Ok(Target::default());
    };
    let process = Process::read(&ctx.host, pid)?;
    // A help for the fixes: what is no service, or without systemd, goes without.
    let name = process
        .cgroup
        .as_deref()
        .and_then(cgroup::unit)
        .filter(|name| name.ends_with(".service"));
    let unit = name.and_then(|name| systemd::find(&ctx.host, &Unit::parse(name).ok()?).ok());
    Ok(Target {
        process: Some(process),
        unit,
    })
}

fn predict(ctx: &Ctx<'_>, process: &Process) -> Prediction {
    let (state, stats) = ctx.state();
    let off = match (&state, stats) {
        (State::On, Ok(_)) => None,
        (State::On, Err(e)) => Some(format!("{e:#}")),
        _ => Some(format!("the module is {}", state.label().replace('_', " "))),
    };
    // What measures is stock by an ARM of its own, if it may make one.
    let all = matches!(module::policy(&ctx.host), Some(Policy::All { .. }));
    let stock_obstacle = (state == State::On && off.is_some() && all).then(|| {
        "the module's policy is all, and its device is out of reach: run doctor as root".to_owned()
    });
    pause::predict(
        process,
        pause::affordable_tables(&ctx.host),
        &ctx.sample,
        stock_obstacle,
        off,
    )
}

fn say(
    ctx: &mut Ctx<'_>,
    target: &Target,
    findings: &Findings,
    pause: Option<&Prediction>,
) -> Result<Exit> {
    let (verdict, exit) = match (findings.count(), findings.unknown.len()) {
        (0, 0) => ("fine", Exit::Done),
        (0, _) => ("cannot-tell", Exit::CannotTell),
        _ => ("findings", Exit::No),
    };
    if ctx.out.is_json() {
        ctx.out.object(&json!({
            "verdict": verdict,
            "kernel": ctx.kernel(),
            "pid": target.process.as_ref().map(|p| p.pid),
            "unit": target.unit.as_ref().map(|(unit, _)| unit.to_string()),
            "findings": findings.findings,
            "unknown": findings.unknown,
            "pause": pause,
        }))?;
        return Ok(exit);
    }
    for found in &findings.findings {
        let severity = found.kind.severity;
        let style = match severity {
            Severity::Error => out::BAD,
            Severity::Warning => out::WARN,
            Severity::Note => out::DIM,
        };
        ctx.out.line(format!(
            "{} {}",
            styled(style, format!("{:<8}", severity.label())),
            found.kind.id
        ))?;
        ctx.out.line(format!("  {}", found.kind.meaning))?;
        ctx.out.line(format!("  seen: {}", found.evidence))?;
        ctx.out.line(format!("  mend: {}", found.fix))?;
    }
    for unknown in &findings.unknown {
        let label = styled(out::WARN, format!("{:<8}", "unknown"));
        ctx.out.line(format!("{label} {}", unknown.what))?;
        ctx.out.line(format!("  why:  {}", unknown.why))?;
    }
    if let Some(pause) = pause {
        say_pause(ctx, pause)?;
    }
    let (count, unknown) = (findings.count(), findings.unknown.len());
    ctx.out.line(match (count, unknown) {
        (0, 0) => styled(out::GOOD, "nothing found"),
        (0, n) => format!("nothing found, but {n} could not be looked at"),
        (1, _) => styled(out::BAD, "1 finding"),
        (n, _) => styled(out::BAD, format!("{n} findings")),
    })?;
    Ok(exit)
}

fn say_pause(ctx: &mut Ctx<'_>, pause: &Prediction) -> Result<()> {
    ctx.out.line(format!(
        "pause    predicted for the next fork of process {}: {} page tables ({})",
        pause.pid,
        pause.tables,
        bytes(pause.page_table_bytes)
    ))?;
    for (name, guess) in [
        ("stock", &pause.stock),
        ("asynchronous", &pause.asynchronous),
    ] {
        ctx.out.line(format!("  {name}: {}", said(guess)))?;
    }
    ctx.out
        .line("  (measured on small processes: caches may make a large one's tables cost more)")
}

fn said(guess: &Guess) -> String {
    match (guess.ns, guess.cost, &guess.unknown) {
        (Some(ns), Some(cost), _) => format!(
            "about {} ({} a page table, measured here with {})",
            duration(ns),
            duration(cost.per_table_ns.round() as u64),
            cost.measured_tables
        ),
        (_, _, Some(why)) => format!("unknown: {why}"),
        _ => "unknown".into(),
    }
}

#[cfg(test)]
mod tests;
