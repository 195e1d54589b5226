// SPDX-License-Identifier: MIT OR Apache-2.0
//! `enable` and `disable`: a drop-in for a systemd service.

use std::collections::BTreeSet;

use anyhow::Result;
use nix::time::{clock_gettime, ClockId};
use serde_json::json;

use super::enroll::enroll_directory;
use crate::cli::{DisableArgs, EnableArgs, Via};
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::host::{why, Host};
use crate::module::{self, Cgroup, Terms, ENROLMENT_ABI};
use crate::systemd::{self, Shown, Unit};
use crate::{cgroup, library};

/// How every drop-in of this command begins. One that does not is somebody else's.
const MARK: &str = "# Written by asyncfork enable; asyncfork disable removes it.";
const VIA: &str = "# via: ";
/// Where the package puts this program.
const PROGRAM: &str = "/usr/bin/asyncfork";
/// The group that may use the device.
pub const GROUP: &str = "asyncfork";
const MIN_RSS: u64 = 64 << 20;

/// What the drop-in is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    via: BTreeSet<Via>,
    min_rss: Option<u64>,
    helpers: Option<u32>,
}

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

/// What an existing drop-in of ours says; none if there is none.
fn existing(host: &Host, unit: &Unit) -> Result<Option<String>> {
    let path = unit.drop_in();
    if !host.exists(&path) {
        return Ok(None);
    }
    let text = host
        .read(&path)
        .map_err(|e| exit::failed(format!("{path}: {}", why(&e))))?;
    if !text.starts_with(MARK) {
        return Err(exit::failed(format!(
            "{path} was written by somebody else and is left alone: move it away, then try again"
        )));
    }
    Ok(Some(text))
}

/// The plan that a drop-in of ours was written by.
fn plan_of(text: &str) -> Plan {
    let list = text
        .lines()
        .find_map(|l| l.strip_prefix(VIA))
        .unwrap_or_default();
    let start = text
        .lines()
        .find_map(|l| l.strip_prefix("ExecStartPre="))
        .unwrap_or_default();
    let words: Vec<_> = start.split_whitespace().collect();
    let option = |name: &str| {
        let at = words.iter().position(|w| *w == name)?;
        words.get(at + 1)?.parse().ok()
    };
    Plan {
        via: [Via::Cgroup, Via::Preload]
            .into_iter()
            .filter(|via| list.split(',').any(|word| word.trim() == via.label()))
            .collect(),
        min_rss: option("--min-rss").or_else(|| environment(text, "ASYNCFORK_MIN_RSS")),
        helpers: option("--helpers")
            .or_else(|| environment(text, "ASYNCFORK_THREADS"))
            .and_then(|n| u32::try_from(n).ok()),
    }
}

fn environment(text: &str, name: &str) -> Option<u64> {
    let prefix = format!("Environment={name}=");
    text.lines()
        .find_map(|l| l.strip_prefix(&prefix)?.parse().ok())
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

/// The drop-in.
fn text(host: &Host, unit: &Unit, plan: &Plan) -> Result<String> {
    let ways: Vec<_> = plan.via.iter().map(|via| via.label()).collect();
    let mut lines = vec![
        MARK.to_owned(),
        format!("{VIA}{}", ways.join(",")),
        "[Service]".to_owned(),
    ];
    if plan.via.contains(&Via::Cgroup) {
        lines.push("# +: outside of the sandbox. -: never keeps the service from starting.".into());
        let mut command = format!("ExecStartPre=-+{} enroll --self", program(host));
        if let Some(size) = plan.min_rss {
            command.push_str(&format!(" --min-rss {size}"));
        }
        if let Some(n) = plan.helpers {
            command.push_str(&format!(" --helpers {n}"));
        }
        lines.push(command);
    }
    if plan.via.contains(&Via::Preload) {
        lines.extend(preload(host, unit, plan)?);
    }
    Ok(lines.join("\n") + "\n")
}

/// Where this program is found by systemd.
fn program(host: &Host) -> String {
    if host.is_executable(PROGRAM) {
        return PROGRAM.into();
    }
    let own = std::env::current_exe().ok().filter(|_| host.is_real());
    own.map_or_else(|| PROGRAM.into(), |path| path.display().to_string())
}

/// What the library needs in this unit, by what the unit itself says.
fn preload(host: &Host, unit: &Unit, plan: &Plan) -> Result<Vec<String>> {
    let own = unit.drop_in();
    let files = systemd::files(host, unit)?;
    let others = files
        .iter()
        .filter(|(path, _)| *path != own)
        .map(|(_, text)| text.as_str());
    let settings = systemd::service_settings(others);
    let last = |name: &str| {
        let found = settings.iter().rev().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    let yes = |value: &str| matches!(value, "yes" | "true" | "1" | "on");
    let path = library::installed(host).map_or_else(
        || format!("{}/{}", library::DIRECTORIES[0], library::NAME),
        |path| path.display().to_string(),
    );
    let before = preloaded(&settings);
    let mut lines = vec![format!(
        "Environment={}",
        quoted("LD_PRELOAD", &library::preload(&path, &before))
    )];
    if let Some(size) = plan.min_rss {
        lines.push(format!("Environment=ASYNCFORK_MIN_RSS={size}"));
    }
    if let Some(n) = plan.helpers {
        lines.push(format!("Environment=ASYNCFORK_THREADS={n}"));
    }
    lines.push(format!("SupplementaryGroups={GROUP}"));
    if !last("NoExecPaths").is_empty() && !path.starts_with("/usr/lib/") {
        lines.push("# The unit lets nothing be executed but what it lists.".into());
        lines.push(format!("ExecPaths={path}"));
    }
    let policy = last("DevicePolicy");
    if yes(last("PrivateDevices")) {
        lines.push("# The unit hides all devices; show it the ordinary ones and ours.".into());
        lines.push("PrivateDevices=no".into());
        if policy != "strict" {
            lines.push("DevicePolicy=closed".into());
        }
        lines.push("DeviceAllow=/dev/asyncfork rw".into());
    } else if matches!(policy, "closed" | "strict") || !last("DeviceAllow").is_empty() {
        lines.push("DeviceAllow=/dev/asyncfork rw".into());
    }
    Ok(lines)
}

/// The value of LD_PRELOAD that settings of a unit make.
fn preloaded(settings: &[(String, String)]) -> String {
    let mut value = String::new();
    for (_, assignments) in settings.iter().filter(|(key, _)| key == "Environment") {
        if assignments.is_empty() {
            value.clear();
        }
        for word in shlex::split(assignments).unwrap_or_default() {
            if let Some(paths) = word.strip_prefix("LD_PRELOAD=") {
                paths.clone_into(&mut value);
            }
        }
    }
    value
}

fn quoted(name: &str, value: &str) -> String {
    if value.contains([' ', '\t']) {
        format!("\"{name}={value}\"")
    } else {
        format!("{name}={value}")
    }
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
            if old_until_restart || restart {
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

/// Whether a unit was started before its drop-in was written.
fn is_older(host: &Host, unit: &Unit, shown: &Shown) -> bool {
    let started: Option<u64> = shown.get("ActiveEnterTimestampMonotonic").parse().ok();
    let age = host
        .metadata(unit.drop_in())
        .ok()
        .and_then(|m| m.modified().ok()?.elapsed().ok());
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .map(std::time::Duration::from);
    match (started, age, now) {
        (Some(started), Some(age), Some(now)) => now
            .checked_sub(age)
            .is_some_and(|written| u128::from(started) < written.as_micros()),
        _ => false,
    }
}

/// What `doctor` looks for: the drop-in of this command, and the ways in it.
pub fn ways(host: &Host, unit: &Unit) -> Option<BTreeSet<Via>> {
    let text = host.read(unit.drop_in()).ok()?;
    Some(if text.starts_with(MARK) {
        plan_of(&text).via
    } else {
        // Somebody's own, as docs/operating.md has it.
        let mut via = BTreeSet::new();
        if text.contains(library::NAME) {
            via.insert(Via::Preload);
        }
        if text.contains("asyncfork enroll") {
            via.insert(Via::Cgroup);
        }
        via
    })
}

/// Whether a unit's service was started before its drop-in was written.
pub fn needs_restart(host: &Host, unit: &Unit, shown: &Shown) -> bool {
    shown.is_active() && is_older(host, unit, shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    const DROP_IN: &str = "/etc/systemd/system/redis-server.service.d/asyncfork.conf";
    const DEBIAN: &str = "[Unit]\nDescription=Redis\n[Service]\nExecStart=/usr/bin/redis-server\nPrivateDevices=yes\n\
                          NoExecPaths=/\nExecPaths=/usr/bin/redis-server /usr/lib /lib\nUser=redis\n";

    fn args(unit: &str, via: &[Via]) -> EnableArgs {
        EnableArgs {
            unit: unit.into(),
            via: via.to_vec(),
            min_rss: None,
            helpers: None,
            dry_run: false,
            restart: false,
        }
    }

    fn off(unit: &str, via: &[Via]) -> DisableArgs {
        DisableArgs {
            unit: unit.into(),
            via: via.to_vec(),
            dry_run: false,
            restart: false,
        }
    }

    /// A host with Redis under systemd, and a module with enrolment.
    fn redis() -> Fake {
        let fake = Fake::new();
        fake.loaded()
            .cgroup("system.slice/redis-server.service")
            .write("/etc/group", "root:x:0:\nasyncfork:x:990:\n")
            .write("/usr/lib/x86_64-linux-gnu/libasyncfork.so", "")
            .module(|m| m.abi = 3);
        fake.unit(
            "redis-server.service",
            "Id=redis-server.service\nLoadState=loaded\nActiveState=active\nMainPID=42\n\
             ActiveEnterTimestampMonotonic=1\nControlGroup=/system.slice/redis-server.service\n",
        );
        fake.unit_file("redis-server.service", DEBIAN);
        fake
    }

    #[test]
    fn a_unit_is_enabled_by_its_cgroup_and_enrolled_at_once() {
        let fake = redis();
        let (result, text) = fake.command("enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Cgroup]))
        });
        assert_eq!(result.unwrap(), Exit::Done);
        assert!(text.starts_with("changed: true\n"), "{text}");
        assert!(text.contains("enrolled: the running service"), "{text}");
        let written = fake.host.read(DROP_IN).unwrap();
        assert!(
            written.ends_with("\nExecStartPre=-+/usr/bin/asyncfork enroll --self\n"),
            "{written}"
        );
        fake.module(|m| assert_eq!(m.enrolled.len(), 1));
        assert_eq!(fake.calls("daemon-reload"), 1);

        let (_, text) = fake.command("enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Cgroup]))
        });
        assert!(text.starts_with("changed: false\n"), "{text}");
        assert_eq!(fake.calls("daemon-reload"), 1);

        let (_, text) = fake.command("disable", |ctx| disable(ctx, &off("redis-server", &[])));
        assert!(text.starts_with("changed: true\n"), "{text}");
        assert!(!fake
            .host
            .exists("/etc/systemd/system/redis-server.service.d"));
        fake.module(|m| assert!(m.enrolled.is_empty()));
        let (result, text) = fake.command("disable", |ctx| disable(ctx, &off("redis-server", &[])));
        assert_eq!(result.unwrap(), Exit::Done);
        assert!(text.starts_with("changed: false\n"), "{text}");
    }

    #[test]
    fn the_library_gets_what_the_unit_would_keep_from_it() {
        let fake = redis();
        let mut wanted = args("redis-server", &[Via::Preload]);
        wanted.min_rss = Some(1 << 30);
        for changed in ["changed: true", "changed: false"] {
            let (_, text) = fake.command("enable", |ctx| enable(ctx, &wanted));
            assert!(text.starts_with(changed), "{text}");
            let lines = fake.host.read(DROP_IN).unwrap();
            let lines: Vec<_> = lines.lines().filter(|l| !l.starts_with('#')).collect();
            assert_eq!(
                lines,
                [
                    "[Service]",
                    "Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libasyncfork.so",
                    "Environment=ASYNCFORK_MIN_RSS=1073741824",
                    "SupplementaryGroups=asyncfork",
                    "PrivateDevices=no",
                    "DevicePolicy=closed",
                    "DeviceAllow=/dev/asyncfork rw",
                ]
            );
        }
        assert!(fake
            .command("enable", |ctx| enable(ctx, &wanted))
            .1
            .contains("systemctl restart"));
    }

    #[test]
    fn other_preloads_and_open_devices_stay() {
        let fake = redis();
        fake.unit_file(
            "redis-server.service",
            "[Service]\nEnvironment=\"LD_PRELOAD=libjemalloc.so.2\" X=1\n",
        );
        fake.command("enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Preload]))
        })
        .0
        .unwrap();
        let text = fake.host.read(DROP_IN).unwrap();
        assert!(
            text.contains(
                "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libasyncfork.so:libjemalloc.so.2\n"
            ),
            "{text}"
        );
        assert!(!text.contains("Device"), "{text}");
    }

    #[test]
    fn one_way_of_two_is_taken_away() {
        let fake = redis();
        let both = args("redis-server", &[Via::Preload, Via::Cgroup]);
        fake.command("enable", |ctx| enable(ctx, &both)).0.unwrap();
        fake.command("disable", |ctx| {
            disable(ctx, &off("redis-server", &[Via::Preload]))
        })
        .0
        .unwrap();
        let text = fake.host.read(DROP_IN).unwrap();
        assert!(
            text.contains("# via: cgroup\n") && !text.contains("LD_PRELOAD"),
            "{text}"
        );
        fake.command("disable", |ctx| {
            disable(ctx, &off("redis-server", &[Via::Cgroup]))
        })
        .0
        .unwrap();
        assert!(!fake.host.exists(DROP_IN));
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let fake = redis();
        let mut dry = args("redis-server", &[Via::Cgroup]);
        dry.dry_run = true;
        let (_, text) = fake.command("enable", |ctx| enable(ctx, &dry));
        assert!(
            text.starts_with("would change: true\n# /etc/systemd"),
            "{text}"
        );
        assert!(!fake.host.exists(DROP_IN));
        fake.module(|m| assert!(m.enrolled.is_empty()));
        assert_eq!(fake.calls("daemon-reload"), 0);
    }

    #[test]
    fn it_is_restarted_only_if_asked_and_only_if_older() {
        let fake = redis();
        let mut again = args("redis-server", &[Via::Preload]);
        fake.command("enable", |ctx| enable(ctx, &again)).0.unwrap();
        assert_eq!(fake.calls("try-restart"), 0);
        again.restart = true;
        let (_, text) = fake.command("enable", |ctx| enable(ctx, &again));
        assert!(
            text.contains("changed: false") && text.contains("restarted: redis-server.service"),
            "{text}"
        );
        fake.unit(
            "redis-server.service",
            "Id=redis-server.service\nLoadState=loaded\nActiveState=active\nActiveEnterTimestampMonotonic=18446744073709551615\n",
        );
        fake.command("enable", |ctx| enable(ctx, &again)).0.unwrap();
        assert_eq!(fake.calls("try-restart"), 1);
    }

    #[test]
    fn templates_and_instances_have_drop_ins_of_their_own() {
        let fake = redis();
        fake.unit(
            "redis-server@asyncfork-check.service",
            "Id=redis-server@asyncfork-check.service\nLoadState=loaded\n",
        );
        fake.unit(
            "redis-server@a.service",
            "Id=redis-server@a.service\nLoadState=loaded\n",
        );
        fake.unit_file("redis-server@.service", DEBIAN);
        for (name, directory) in [
            ("redis-server@", "redis-server@.service.d"),
            ("redis-server@a", "redis-server@a.service.d"),
        ] {
            let (result, text) =
                fake.command("enable", |ctx| enable(ctx, &args(name, &[Via::Cgroup])));
            result.unwrap();
            assert!(text.contains("changed: true"), "{text}");
            assert!(fake
                .host
                .exists(format!("/etc/systemd/system/{directory}/asyncfork.conf")));
        }
    }

    #[test]
    fn what_would_keep_the_service_from_starting_is_refused() {
        for (break_it, via, words) in [
            ("/etc/group", Via::Preload, "groupadd"),
            (
                "/usr/lib/x86_64-linux-gnu/libasyncfork.so",
                Via::Preload,
                "scripts/library",
            ),
        ] {
            let fake = redis();
            fake.host.remove_file(break_it).unwrap();
            let error = fake
                .command("enable", |ctx| enable(ctx, &args("redis-server", &[via])))
                .0
                .unwrap_err();
            assert_eq!(exit::of(&error), Exit::Failed);
            assert!(error.to_string().contains(words), "{error}");
            assert!(!fake.host.exists(DROP_IN));
        }
    }

    #[test]
    fn an_older_module_leaves_the_library() {
        let fake = redis();
        fake.module(|m| m.abi = 2);
        let error = fake
            .command("enable", |ctx| {
                enable(ctx, &args("redis-server", &[Via::Cgroup]))
            })
            .0
            .unwrap_err();
        assert!(error.to_string().contains("--via preload"), "{error}");
        fake.command("enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Preload]))
        })
        .0
        .unwrap();
    }

    #[test]
    fn somebody_elses_drop_in_is_left_alone() {
        let fake = redis();
        fake.write(DROP_IN, "[Service]\nNice=1\n");
        for result in [
            fake.command("enable", |ctx| {
                enable(ctx, &args("redis-server", &[Via::Cgroup]))
            })
            .0,
            fake.command("disable", |ctx| disable(ctx, &off("redis-server", &[])))
                .0,
        ] {
            assert_eq!(exit::of(&result.unwrap_err()), Exit::Failed);
        }
        assert_eq!(fake.host.read(DROP_IN).unwrap(), "[Service]\nNice=1\n");
    }

    #[test]
    fn a_drop_in_that_systemd_does_not_read_is_taken_back() {
        let fake = redis();
        fake.blind_systemd();
        let error = fake
            .command("enable", |ctx| {
                enable(ctx, &args("redis-server", &[Via::Cgroup]))
            })
            .0
            .unwrap_err();
        assert_eq!(exit::of(&error), Exit::Failed);
        assert!(!fake.host.exists(DROP_IN));
    }

    #[test]
    fn unknown_units_change_nothing() {
        let fake = redis();
        for bad in ["none", "none@", "a/b", ""] {
            let error = fake
                .command("enable", |ctx| enable(ctx, &args(bad, &[Via::Cgroup])))
                .0
                .unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input, "{bad}");
            let error = fake
                .command("disable", |ctx| disable(ctx, &off(bad, &[])))
                .0
                .unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input, "{bad}");
        }
        // One that is gone leaves its drop-in behind.
        fake.write(
            "/etc/systemd/system/gone.service.d/asyncfork.conf",
            &format!("{MARK}\n{VIA}cgroup\n"),
        );
        fake.command("disable", |ctx| disable(ctx, &off("gone", &[])))
            .0
            .unwrap();
        assert!(!fake.host.exists("/etc/systemd/system/gone.service.d"));
    }

    #[test]
    fn a_plan_survives_its_drop_in() {
        let fake = redis();
        let unit = Unit::parse("redis-server").unwrap();
        for via in [
            vec![Via::Cgroup],
            vec![Via::Preload],
            vec![Via::Cgroup, Via::Preload],
        ] {
            let plan = Plan {
                via: via.into_iter().collect(),
                min_rss: Some(5 << 20),
                helpers: Some(2),
            };
            assert_eq!(plan_of(&text(&fake.host, &unit, &plan).unwrap()), plan);
        }
    }

    #[test]
    fn json_is_as_documented() {
        let fake = redis();
        fake.golden("enable", "enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Cgroup]))
        });
        fake.golden("disable", "disable", |ctx| {
            disable(ctx, &off("redis-server", &[]))
        });
    }
}
