// SPDX-License-Identifier: MIT OR Apache-2.0
//! The drop-in: what is in it, and what it was made for.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use nix::time::{clock_gettime, ClockId};

use crate::cli::Via;
use crate::exit;
use crate::host::{why, Host};
use crate::library;
use crate::systemd::{self, Shown, Unit};

/// How every drop-in of this command begins. One that does not is somebody else's.
pub(super) const MARK: &str = "# Written by asyncfork enable; asyncfork disable removes it.";
pub(super) const VIA: &str = "# via: ";
/// Where the package puts this program.
pub(super) const PROGRAM: &str = "/usr/bin/asyncfork";
/// The group that may use the device.
pub const GROUP: &str = "asyncfork";

/// What the drop-in is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub via: BTreeSet<Via>,
    pub min_rss: Option<u64>,
    pub helpers: Option<u32>,
}

impl Plan {
    /// The options of an enrolment, with a space before each.
    fn enrolment(&self) -> String {
        let min_rss = self.min_rss.map(|size| format!(" --min-rss {size}"));
        let helpers = self.helpers.map(|n| format!(" --helpers {n}"));
        min_rss.into_iter().chain(helpers).collect()
    }
}

/// The line that enrols a service as its drop-in of ours, or its template's, does whenever it
/// starts; none: there is no such drop-in.
pub fn enrol_again(host: &Host, unit: &Unit) -> Option<String> {
    let files = systemd::files(host, unit).ok()?;
    let ours = files.iter().rfind(|(_, text)| text.starts_with(MARK))?;
    let plan = plan_of(&ours.1);
    let by_cgroup = plan.via.contains(&Via::Cgroup);
    by_cgroup.then(|| format!("asyncfork enroll --unit {unit}{}", plan.enrolment()))
}

/// What an existing drop-in of ours says; none if there is none.
pub(super) fn existing(host: &Host, unit: &Unit) -> Result<Option<String>> {
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
pub(super) fn plan_of(text: &str) -> Plan {
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

/// The drop-in.
pub(super) fn text(host: &Host, unit: &Unit, plan: &Plan) -> Result<String> {
    let ways: Vec<_> = plan.via.iter().map(|via| via.label()).collect();
    let mut lines = vec![
        MARK.to_owned(),
        format!("{VIA}{}", ways.join(",")),
        "[Service]".to_owned(),
    ];
    if plan.via.contains(&Via::Cgroup) {
        lines.push("# +: outside of the sandbox. -: never keeps the service from starting.".into());
        let program = program(host);
        let options = plan.enrolment();
        lines.push(format!("ExecStartPre=-+{program} enroll --self{options}"));
    }
    let settings = Settings::of(host, unit)?;
    if plan.via.contains(&Via::Preload) {
        lines.extend(preload(host, &settings, plan));
    } else if settings.devices() != Devices::All {
        lines
            .push("# That holds for + as well. The service itself does not see the device.".into());
        lines.push(DEVICE_ALLOW.into());
    }
    Ok(lines.join("\n") + "\n")
}

/// systemd has the kernel ask for each device that a unit's cgroup opens.
const DEVICE_ALLOW: &str = "DeviceAllow=/dev/asyncfork rw";

/// What a unit says of its service.
struct Settings(Vec<(String, String)>);

/// The devices that it may use.
#[derive(PartialEq, Eq)]
enum Devices {
    All,
    Listed,
    /// And sees a /dev of its own, without the others.
    Private,
}

impl Settings {
    /// Without what ours say; also that of the template, which one of an instance stands in for.
    fn of(host: &Host, unit: &Unit) -> Result<Self> {
        let files = systemd::files(host, unit)?;
        let others = files
            .iter()
            .map(|(_, text)| text.as_str())
            .filter(|text| !text.starts_with(MARK));
        Ok(Self(systemd::service_settings(others)))
    }

    fn last(&self, name: &str) -> &str {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    }

    fn devices(&self) -> Devices {
        if matches!(self.last("PrivateDevices"), "yes" | "true" | "1" | "on") {
            Devices::Private
        } else if matches!(self.last("DevicePolicy"), "closed" | "strict")
            || !self.last("DeviceAllow").is_empty()
        {
            Devices::Listed
        } else {
            Devices::All
        }
    }
}

/// Where this program is found by systemd.
pub(super) fn program(host: &Host) -> String {
    if host.is_executable(PROGRAM) {
        return PROGRAM.into();
    }
    let own = std::env::current_exe().ok().filter(|_| host.is_real());
    let own = own.map(|path| path.display().to_string());
    // systemd gives spaces, quotes, `%` and `$` a meaning.
    let plain = |path: &String| {
        path.chars()
            .all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c))
    };
    own.filter(plain).unwrap_or_else(|| PROGRAM.into())
}

/// What the library needs in this unit, by what the unit itself says.
fn preload(host: &Host, settings: &Settings, plan: &Plan) -> Vec<String> {
    let path = library::installed(host).map_or_else(
        || format!("{}/{}", library::DIRECTORIES[0], library::NAME),
        |path| path.display().to_string(),
    );
    let before = preloaded(&settings.0);
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
    if !settings.last("NoExecPaths").is_empty() && !path.starts_with("/usr/lib/") {
        lines.push("# The unit lets nothing be executed but what it lists.".into());
        lines.push(format!("ExecPaths={path}"));
    }
    let devices = settings.devices();
    if devices == Devices::Private {
        lines.push("# The unit hides all devices; show it the ordinary ones and ours.".into());
        lines.push("PrivateDevices=no".into());
        if settings.last("DevicePolicy") != "strict" {
            lines.push("DevicePolicy=closed".into());
        }
    }
    if devices != Devices::All {
        lines.push(DEVICE_ALLOW.into());
    }
    lines
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

/// Whether a unit was started before its drop-in was written.
pub(super) fn is_older(host: &Host, unit: &Unit, shown: &Shown) -> bool {
    started_before(host, Path::new(&unit.drop_in()), shown)
}

/// Whether a unit was started before the file was made.
pub fn started_before(host: &Host, path: &Path, shown: &Shown) -> bool {
    let started: Option<u64> = shown.get("ActiveEnterTimestampMonotonic").parse().ok();
    let age = host
        .metadata(path)
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
