// SPDX-License-Identifier: MIT OR Apache-2.0
//! `enable` and `disable`: a drop-in for a systemd service.

mod drop_in;

use anyhow::Result;
use serde_json::json;

use super::enroll::enroll_directory;
use crate::cli::{DisableArgs, EnableArgs, Via};
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::host::Host;
use crate::module::{self, Cgroup, Terms, ENROLMENT_ABI};
use crate::systemd::{self, Shown, Unit};
use crate::{cgroup, library};

pub use drop_in::{enrol_again, needs_restart, started_before, ways, GROUP};
use drop_in::{existing, is_older, plan_of, program, text, Plan, PROGRAM};

/// What enrolment takes without --min-rss.
const MIN_RSS: u64 = 64 << 20;

/// Writes the drop-in.
///
/// # Errors
/// There is no such unit; something is missing without which it would not start.
pub fn enable(ctx: &mut Ctx<'_>, args: &EnableArgs) -> Result<Exit> {
    let name = Unit::parse(&args.unit)?;
    let (unit, shown) = systemd::find(&ctx.host, &name)?;
    let plan = Plan {
        via: args.via.iter().copied().collect(),
        min_rss: args.min_rss,
        helpers: args.helpers,
    };
    let notes = check(ctx, &plan)?;
    let old = existing(&ctx.host, &unit)?;
    let text = text(&ctx.host, &unit, &plan)?;
    let written = old.as_deref() != Some(text.as_str());
    if args.dry_run {
        return say_dry(ctx, &unit, written, Some(&text));
    }
    if written {
        ctx.host.replace(unit.drop_in(), &text)?;
    }
    if written || shown.get("NeedDaemonReload") == "yes" {
        if let Err(e) = reload_and_check(&ctx.host, &unit, true) {
            if written {
                restore(&ctx.host, &unit, old.as_deref());
            }
            return Err(e);
        }
    }
    let mut done = Done {
        changed: written,
        notes,
        ..Done::default()
    };
    if plan.via.contains(&Via::Cgroup) {
        done.enrol_now(ctx, &shown, &plan);
    } else if old.is_some_and(|text| plan_of(&text).via.contains(&Via::Cgroup)) {
        done.take_out_now(ctx, &shown);
    }
    done.finish(
        ctx,
        &unit,
        &shown,
        args.restart,
        plan.via.contains(&Via::Preload),
    )
}

/// Removes the drop-in, or some of its ways.
///
/// # Errors
/// The drop-in is not ours, or cannot be removed.
pub fn disable(ctx: &mut Ctx<'_>, args: &DisableArgs) -> Result<Exit> {
    let name = Unit::parse(&args.unit)?;
    let shown = systemd::show(&ctx.host, &name)?;
    // The drop-in of a unit that is gone is to go as well.
    let unit = match systemd::find(&ctx.host, &name) {
        Ok((unit, _)) => unit,
        Err(_) if ctx.host.exists(name.drop_in()) => name,
        Err(e) => return Err(e),
    };
    let old = existing(&ctx.host, &unit)?;
    let before = old.as_deref().map(plan_of);
    let after = before.clone().map(|mut plan| {
        plan.via
            .retain(|via| !args.via.is_empty() && !args.via.contains(via));
        plan
    });
    let text = match &after {
        Some(plan) if !plan.via.is_empty() => Some(text(&ctx.host, &unit, plan)?),
        _ => None,
    };
    let written = old != text;
    if args.dry_run {
        return say_dry(ctx, &unit, written, text.as_deref());
    }
    if written {
        match &text {
            Some(text) => ctx.host.replace(unit.drop_in(), text)?,
            None => ctx.host.remove(unit.drop_in())?,
        }
        reload_and_check(&ctx.host, &unit, text.is_some())?;
    }
    let goes = |via| {
        let had = |plan: &Option<Plan>| plan.as_ref().is_some_and(|p| p.via.contains(&via));
        had(&before) && !had(&after)
    };
    let mut done = Done {
        changed: written,
        ..Done::default()
    };
    if goes(Via::Cgroup) {
        done.take_out_now(ctx, &shown);
    }
    done.finish(ctx, &unit, &shown, args.restart, goes(Via::Preload))
}

/// What has to be there before the drop-in is written; what may follow.
fn check(ctx: &Ctx<'_>, plan: &Plan) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if !module::is_loaded(&ctx.host) {
        notes.push(
            "the module is not loaded: modprobe asyncfork; until then forks are stock forks"
                .to_owned(),
        );
    }
    if plan.via.contains(&Via::Cgroup) {
        cgroup::mount(&ctx.host)?;
        let program = program(&ctx.host);
        if program != PROGRAM {
            notes.push(format!(
                "the drop-in runs {program} at each start of the service: keep it there"
            ));
        }
        if let Ok(version) = ctx.module().and_then(|m| m.version()) {
            if version.abi < ENROLMENT_ABI {
                return Err(exit::failed(format!(
                    "the module (ABI {}) has no enrolment of cgroups: install a newer one, or use --via preload",
                    version.abi
                )));
            }
            if plan.helpers.is_some_and(|n| n > version.max_helpers) {
                return Err(exit::input(format!(
                    "--helpers: the module allows {}",
                    version.max_helpers
                )));
            }
        }
    }
    if plan.via.contains(&Via::Preload) {
        if library::installed(&ctx.host).is_none() {
            return Err(exit::failed(format!(
                "there is no {} in {}: install the package, or build it by scripts/library",
                library::NAME,
                library::places()
            )));
        }
        if group(&ctx.host, GROUP).is_none() {
            return Err(exit::failed(format!(
                "there is no group {GROUP}, and a service that is to be in it would not start: groupadd --system {GROUP}"
            )));
        }
    }
    Ok(notes)
}

/// The number of a group of /etc/group: no NSS, which a static program has not.
pub fn group(host: &Host, name: &str) -> Option<u32> {
    let text = host.read("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Makes systemd read the drop-in, and asks whether it has.
fn reload_and_check(host: &Host, unit: &Unit, wanted: bool) -> Result<()> {
    systemd::daemon_reload(host)?;
    let path = unit.drop_in();
    let has = systemd::show(host, unit)?.has_drop_in(&path);
    if has == wanted {
        return Ok(());
    }
    Err(exit::failed(if wanted {
        format!("systemd does not read {path}: is another file of that name in /run/systemd? It is taken away again")
    } else {
        format!("systemd still reads {path} although it is removed: systemctl status {unit}")
    }))
}

fn restore(host: &Host, unit: &Unit, old: Option<&str>) {
    let result = match old {
        Some(text) => host.replace(unit.drop_in(), text),
        None => host.remove(unit.drop_in()),
    };
    if let Err(e) = result.and_then(|()| systemd::daemon_reload(host)) {
        log::error!("{e:#}");
    }
}

fn say_dry(ctx: &mut Ctx<'_>, unit: &Unit, written: bool, text: Option<&str>) -> Result<Exit> {
    let path = unit.drop_in();
    if ctx.out.is_json() {
        ctx.out.object(&json!({
            "changed": false, "would_change": written, "dry_run": true, "unit": unit.to_string(), "path": path, "text": text,
        }))?;
        return Ok(Exit::Done);
    }
    ctx.out.line(format!("would change: {written}"))?;
    match text {
        Some(text) if written => {
            ctx.out.line(format!("# {path}"))?;
            ctx.out.raw(text.as_bytes())?;
        }
        None if written => ctx.out.line(format!("would remove: {path}"))?,
        _ => {}
    }
    Ok(Exit::Done)
}

/// What was done, to be said at the end.
#[derive(Debug, Default)]
struct Done {
    changed: bool,
    /// The running service's cgroup is enrolled, or is not any more; none: not tried.
    enrolled_now: Option<bool>,
    notes: Vec<String>,
}

impl Done {
    /// A running server is served from its next fork on.
    fn enrol_now(&mut self, ctx: &Ctx<'_>, shown: &Shown, plan: &Plan) {
        let Some(path) = shown
            .cgroup()
            .filter(|_| shown.is_active() && module::is_loaded(&ctx.host))
        else {
            return;
        };
        let terms = Terms {
            min_rss: plan.min_rss.unwrap_or(MIN_RSS),
            helpers: plan.helpers.unwrap_or(0),
        };
        let result = cgroup::directory(&ctx.host, path).and_then(|directory| {
            enroll_directory(&ctx.host, ctx.module()?.as_ref(), &directory, terms)
        });
        match result {
            Ok(changed) => {
                self.changed |= changed;
                self.enrolled_now = Some(true);
            }
            Err(e) => self.notes.push(format!(
                "not enrolled now, only from the next start on: {e:#}"
            )),
        }
    }

    fn take_out_now(&mut self, ctx: &Ctx<'_>, shown: &Shown) {
        let Some(path) = shown.cgroup().filter(|_| module::is_loaded(&ctx.host)) else {
            return;
        };
        let result = cgroup::directory(&ctx.host, path).and_then(|directory| {
            let file = cgroup::open(&ctx.host, &directory)?;
            ctx.module()?.unenroll(&Cgroup::Open(&file))
        });
        match result {
            Ok(changed) => {
                self.changed |= changed;
                self.enrolled_now = Some(false);
            }
            Err(e) => self
                .notes
                .push(format!("still enrolled until it stops: {e:#}")),
        }
    }

    /// Restarts if asked to, and says all. `old_until_restart`: what runs goes on as it
    /// was started.
    fn finish(
        mut self,
        ctx: &mut Ctx<'_>,
        unit: &Unit,
        shown: &Shown,
        restart: bool,
        old_until_restart: bool,
    ) -> Result<Exit> {
        let stale = shown.is_active() && (self.changed || is_older(&ctx.host, unit, shown));
        let mut restarted = false;
        if unit.is_template() {
            if self.changed || old_until_restart || restart {
                self.notes.push(format!("instances that run go on as they are until they are restarted: {unit} is a template"));
            }
        } else if stale && restart {
            systemd::try_restart(&ctx.host, unit)?;
            restarted = true;
        } else if stale && old_until_restart {
            self.notes.push(format!(
                "{unit} runs as it was started: systemctl restart {unit}"
            ));
        }
        let path = unit.drop_in();
        if ctx.out.is_json() {
            ctx.out.object(&json!({
                "changed": self.changed, "unit": unit.to_string(), "path": path, "enrolled_now": self.enrolled_now,
                "restarted": restarted, "notes": self.notes,
            }))?;
            return Ok(Exit::Done);
        }
        ctx.out.line(format!("changed: {}", self.changed))?;
        let there = if ctx.host.exists(&path) {
            "drop-in"
        } else {
            "no drop-in"
        };
        ctx.out.line(format!("{there}: {path}"))?;
        match self.enrolled_now {
            Some(true) => ctx
                .out
                .line("enrolled: the running service, from its next fork on")?,
            Some(false) => ctx.out.line("not enrolled any more: the running service")?,
            None => {}
        }
        if restarted {
            ctx.out.line(format!("restarted: {unit}"))?;
        }
        for note in &self.notes {
            ctx.out.line(format!("note: {note}"))?;
        }
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests;
