// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way people run servers: Debian's units under systemd, PID 1 of the guest, with udev; by the command, or with the
//! drop-in of `packaging/`.

use super::Test;
use crate::ctx::Ctx;
use crate::module;
use crate::sys;
use crate::verdict::{TestResult, Verdict};
use crate::{claim, require, skip_unless};
use asyncfork_uapi::{By, Outcome as Fate, Reason, Report};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const TESTS: &[Test] = &[
    Test::new(
        "redis_under_debians_unit_and_the_drop_in_forks_async",
        by_hand,
    )
    .systemd(),
    Test::new(
        "redis_and_its_instances_fork_async_from_enable_by_cgroup_until_disable",
        redis_by_cgroup,
    )
    .systemd(),
    Test::new(
        "valkey_forks_async_from_enable_by_cgroup_until_disable",
        valkey_by_cgroup,
    )
    .systemd(),
    Test::new(
        "redis_and_an_instance_fork_async_from_enable_by_preload_until_disable",
        redis_by_preload,
    )
    .systemd(),
    Test::new(
        "valkey_forks_async_from_enable_by_preload_until_disable",
        valkey_by_preload,
    )
    .systemd(),
    Test::new(
        "sentinel_beside_an_enabled_server_is_served_only_if_enabled_itself",
        sentinel,
    )
    .systemd(),
    Test::new(
        "metrics_are_written_by_their_timer_and_read_by_prometheus",
        metrics,
    )
    .systemd(),
    Test::new(
        "doctors_findings_about_a_unit_come_and_go_with_the_printed_line",
        findings,
    )
    .systemd(),
];

const DROP_IN: &str = "packaging/redis-server.service.d-asyncfork.conf";

/// Servers of one kind under their units; stopped, and what was set up for them removed, at the end.
struct Services<'a> {
    server: &'static str,
    units: &'static [&'static str],
    shim: &'a Path,
    command: PathBuf,
}

/// The process of a service.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    pid: i32,
    /// In clock ticks since the boot.
    started: u64,
    /// Its directory's inode number.
    cgroup: u64,
}

impl<'a> Services<'a> {
    /// Starts them; skips the test in a root that has none.
    fn start(
        ctx: &'a Ctx,
        server: &'static str,
        units: &'static [&'static str],
    ) -> TestResult<Self> {
        let unit = format!("/usr/lib/systemd/system/{server}-server.service");
        skip_unless!(Path::new(&unit).exists(), "this root has no {unit}");
        let services = Services {
            server,
            units,
            shim: ctx.library()?,
            command: ctx.command()?,
        };
        services.sh("set_up")?;
        Ok(services)
    }

    fn run(&self, steps: &str) -> TestResult<Output> {
        let output = Command::new("sh")
            .args(["-c", &format!("{}\n{steps}", include_str!("service.sh"))])
            .env("server", self.server)
            .env("units", self.units.join(" "))
            .env("SHIM", self.shim)
            .env("COMMAND", &self.command)
            .output()?;
        Ok(output)
    }

    /// What the steps say, all of which succeed.
    fn sh(&self, steps: &str) -> TestResult<String> {
        let output = self.run(steps)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let journal = self.run("journalctl --no-pager -o cat -u $unit -n 30")?;
        Err(Verdict::Failed(format!(
            "{steps:?}: {}: {said}; {}; journal: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&journal.stdout)
        )))
    }

    /// The units' processes, which are those of the units' user.
    fn running(&self) -> TestResult<Vec<Run>> {
        let said = self.sh("running")?;
        let run = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let &[pid, user, started, cgroup] = words.as_slice() else {
                return None;
            };
            (user == self.server).then_some(Run {
                pid: pid.parse().ok()?,
                started: started.parse().ok()?,
                cgroup: cgroup.parse().ok()?,
            })
        };
        let runs: Option<Vec<_>> = said.lines().map(run).collect();
        runs.filter(|runs| runs.len() == self.units.len())
            .ok_or_else(|| Verdict::Failed(format!("not all of {:?} run: {said}", self.units)))
    }

    /// Snapshots of the `first` runs end like this; the module knows of no other.
    fn first_end(&self, ctx: &Ctx, runs: &[Run], first: usize, ending: Ending) -> TestResult {
        let wants = (0..runs.len()).map(|i| (i < first).then_some(ending));
        self.each_ends(ctx, runs, &wants.collect::<Vec<_>>())
    }

    /// Each has a snapshot; what the ring has of them and of everybody else is this.
    fn each_ends(&self, ctx: &Ctx, runs: &[Run], wants: &[Option<Ending>]) -> TestResult {
        let seq = newest_seq()?;
        let said = self.sh("snapshot")?;
        let good = said.matches("rdb_last_bgsave_status:ok").count();
        claim!(
            good == runs.len(),
            "{good} snapshots, want {}: {said}",
            runs.len()
        );
        let mut found: Vec<_> = forks_after(ctx, seq)?
            .iter()
            .map(|r| (r.parent_pid, r.entry_id, ending(r)))
            .collect();
        let mut wanted: Vec<_> = runs
            .iter()
            .zip(wants)
            .filter_map(|(run, want)| {
                let ending = (*want)?;
                let entry = if ending.2 == By::Enrolled {
                    run.cgroup
                } else {
                    0
                };
                Some((run.pid, entry, ending))
            })
            .collect();
        found.sort_by_key(|fork| fork.0);
        wanted.sort_by_key(|fork| fork.0);
        claim!(
            found == wanted,
            "the ring has {found:?}, want {wanted:?}, of {:?}",
            self.units
        );
        Ok(())
    }

    /// Snapshots of the `first` runs are asynchronous; stock while the module is off; asynchronous again.
    fn follow_the_switch(&self, ctx: &Ctx, runs: &[Run], first: usize, by: By) -> TestResult {
        self.first_end(ctx, runs, first, (Fate::Async, Reason::None, by))?;
        self.sh("asyncfork off")?;
        self.first_end(ctx, runs, first, (Fate::Stock, Reason::Disabled, by))?;
        self.sh("asyncfork on")?;
        self.first_end(ctx, runs, first, (Fate::Async, Reason::None, by))
    }

    /// What doctor finds: ids, and what mends each.
    fn findings(&self) -> TestResult<Vec<(String, String)>> {
        let output = self.run("asyncfork doctor --unit $unit --no-measure --json")?;
        let report: Value = serde_json::from_slice(&output.stdout).map_err(|e| {
            let said = String::from_utf8_lossy(&output.stderr);
            Verdict::Failed(format!("doctor says no JSON: {e}; {said}"))
        })?;
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or("").to_owned();
        let findings = report["findings"].as_array().into_iter().flatten();
        Ok(findings
            .map(|finding| (text(finding, "id"), text(finding, "fix")))
            .collect())
    }

    /// Finding `id` is there; gives its line.
    fn finds(&self, id: &str) -> TestResult<String> {
        let found = self.findings()?;
        match found.iter().find(|(found, _)| found == id) {
            Some((_, fix)) => Ok(fix.clone()),
            None => Err(Verdict::Failed(format!("no {id} in {found:?}"))),
        }
    }

    /// And is not any more after its line.
    fn mends(&self, id: &str) -> TestResult {
        let fix = self.finds(id)?;
        self.sh(&fix)?;
        self.lacks(id)
    }

    fn lacks(&self, id: &str) -> TestResult {
        let found = self.findings()?;
        claim!(
            found.iter().all(|(found, _)| found != id),
            "{id} is in {found:?}"
        );
        Ok(())
    }
}

impl Drop for Services<'_> {
    fn drop(&mut self) {
        if let Err(v) = self.sh("tear_down") {
            eprintln!("{v}");
        }
    }
}

/// How a fork ended, why, and who had asked for it.
type Ending = (Fate, Reason, By);

const BY_CGROUP: Ending = (Fate::Async, Reason::None, By::Enrolled);
const BY_LIBRARY: Ending = (Fate::Async, Reason::None, By::Arm);

fn ending(report: &Report) -> Ending {
    (report.outcome(), report.reason(), report.by())
}

/// What the ring has after `seq`, whoever forked.
fn forks_after(ctx: &Ctx, seq: u64) -> TestResult<Vec<Report>> {
    // A session is there once it has ended.
    let ended = sys::poll_until(|| -> TestResult<Option<()>> {
        Ok((ctx.stats()?.running == 0).then_some(()))
    })?;
    require!(ended.is_some(), "a session does not end");
    let mut found = module::recent(&module::open()?)?;
    found.retain(|r| r.seq > seq);
    Ok(found)
}

fn newest_seq() -> TestResult<u64> {
    let recent = module::recent(&module::open()?)?;
    Ok(recent.iter().map(|r| r.seq).max().unwrap_or(0))
}

fn reload(ctx: &Ctx, services: &Services<'_>) -> TestResult {
    ctx.module.unload()?;
    ctx.module.load("")?;
    services.sh("udevadm settle")?;
    Ok(())
}

/// While this lives, the device has not the number that it had before.
struct Renumbered<'s, 'a>(&'s Services<'a>);

impl<'s, 'a> Renumbered<'s, 'a> {
    /// Loads the module anew, after these steps.
    fn reload(ctx: &Ctx, services: &'s Services<'a>, meanwhile: &str) -> TestResult<Self> {
        let before = fs::metadata("/dev/asyncfork")?.rdev();
        ctx.module.unload()?;
        services.sh("take_number")?;
        let renumbered = Self(services);
        services.sh(meanwhile)?;
        ctx.module.load("")?;
        services.sh("udevadm settle")?;
        require!(
            fs::metadata("/dev/asyncfork")?.rdev() != before,
            "the device has its number again"
        );
        Ok(renumbered)
    }
}

impl Drop for Renumbered<'_, '_> {
    fn drop(&mut self) {
        if let Err(v) = self.0.sh("give_number_back") {
            eprintln!("{v}");
        }
    }
}

/// The group, and a module that is loaded after the rule that names it.
fn install_library(ctx: &Ctx, services: &Services<'_>) -> TestResult {
    services.sh("install_library")?;
    reload(ctx, services)?;
    let group = services.sh("getent group asyncfork | cut -d: -f3")?;
    let node = fs::metadata("/dev/asyncfork")?;
    let (mode, gid) = (node.permissions().mode() & 0o7777, node.gid().to_string());
    claim!(
        (mode, &*gid) == (0o660, group.trim()),
        "udev gives the device {mode:o} and group {gid}, want 660 and {group}"
    );
    Ok(())
}

const REDIS: &[&str] = &["redis-server"];
const VALKEY: &[&str] = &["valkey-server"];

/// Without the command; the library tells the journal.
fn by_hand(ctx: &Ctx) -> TestResult<String> {
    let services = Services::start(ctx, "redis", REDIS)?;
    install_library(ctx, &services)?;
    services.sh(&format!(
        r#"mkdir "$etc/$unit.service.d"
cp {DROP_IN} "$etc/$unit.service.d/"
printf '[Service]\nEnvironment=ASYNCFORK_LOG=info ASYNCFORK_MIN_RSS=1M\n' >"$etc/$unit.service.d/test.conf"
systemctl daemon-reload
systemctl restart $unit
populate
"#
    ))?;
    let runs = services.running()?;
    services.first_end(ctx, &runs, 1, BY_LIBRARY)?;
    // The library looks for the device at each fork.
    reload(ctx, &services)?;
    services.finds("unit.device")?;
    services.first_end(ctx, &runs, 1, BY_LIBRARY)?;
    services.lacks("unit.device")?;
    let journal = services.sh("journalctl --no-pager -o cat -u $unit")?;
    match journal.lines().rfind(|line| line.contains("async fork of")) {
        Some(line) => Ok(line.into()),
        None => Err(Verdict::Failed(format!(
            "the journal has no line of it: {journal}"
        ))),
    }
}

/// One of two instances is enabled, and then its template.
fn redis_by_cgroup(ctx: &Ctx) -> TestResult<String> {
    const CHANGE: &str = r#"
[ "$(drop_ins | grep @)" = "$etc/redis-server@a.service.d/asyncfork.conf" ]
asyncfork disable redis-server@a
asyncfork enable redis-server@ --min-rss 1M
[ "$(drop_ins | grep @)" = "$etc/redis-server@.service.d/asyncfork.conf" ]
"#;
    const UNITS: &[&str] = &["redis-server", "redis-server@a", "redis-server@b"];
    let services = Services::start(ctx, "redis", UNITS)?;
    let runs = by_cgroup(ctx, &services, 2, CHANGE)?;
    services.sh("asyncfork disable redis-server; asyncfork disable redis-server@")?;
    services.sh(DISABLED)?;
    // Which instances run is systemd's to say: they go on until they are restarted.
    let served = Some(BY_CGROUP);
    services.each_ends(ctx, &runs, &[None, served, served])?;
    Ok("two instances".into())
}

fn valkey_by_cgroup(ctx: &Ctx) -> TestResult<String> {
    let services = Services::start(ctx, "valkey", VALKEY)?;
    let runs = by_cgroup(ctx, &services, 1, "")?;
    services.sh("asyncfork disable $unit")?;
    services.sh(DISABLED)?;
    services.each_ends(ctx, &runs, &[None])?;
    Ok("one service".into())
}

/// Units are as they were.
const DISABLED: &str = r#"systemctl cat $units | cmp - /run/before; [ -z "$(drop_ins)" ]"#;

/// Enables the `first` units as they run, without a restart; all are in the end, by `change`.
fn by_cgroup(
    ctx: &Ctx,
    services: &Services<'_>,
    first: usize,
    change: &str,
) -> TestResult<Vec<Run>> {
    let runs = services.running()?;
    let exposure =
        services.sh("populate >/dev/null; systemctl cat $units >/run/before; exposure")?;
    for unit in &services.units[..first] {
        services.sh(&format!("asyncfork enable {unit} --min-rss 1M"))?;
    }
    services.sh("asyncfork enable $unit --min-rss 1M | grep 'changed: false'")?;
    services.follow_the_switch(ctx, &runs, first, By::Enrolled)?;

    // Entries end with the module; nobody makes them again but the next start, or this.
    reload(ctx, services)?;
    services.first_end(ctx, &runs, 0, BY_CGROUP)?;
    services.mends("process.not-served")?;
    services.first_end(ctx, &runs, 1, BY_CGROUP)?;

    services.sh(change)?;
    // With nobody there to enrol it, a service starts all the same.
    let _renumbered = Renumbered::reload(ctx, services, "systemctl restart $unit")?;
    services.sh("systemctl restart $units")?;
    let runs = services.running()?;
    services.first_end(ctx, &runs, runs.len(), BY_CGROUP)?;
    let enabled = services.sh("exposure")?;
    claim!(
        enabled == exposure,
        "enabled, the service is exposed {enabled}, before {exposure}"
    );
    Ok(runs)
}

fn redis_by_preload(ctx: &Ctx) -> TestResult<String> {
    by_preload(ctx, "redis", &["redis-server", "redis-server@a"])
}

fn valkey_by_preload(ctx: &Ctx) -> TestResult<String> {
    by_preload(ctx, "valkey", VALKEY)
}

/// What the command writes is enough, and it restarts the services only if it is told to.
fn by_preload(
    ctx: &Ctx,
    server: &'static str,
    units: &'static [&'static str],
) -> TestResult<String> {
    let services = Services::start(ctx, server, units)?;
    install_library(ctx, &services)?;
    let old = services.running()?;
    let exposure = services.sh("systemctl cat $units >/run/before; exposure")?;
    services.sh("asyncfork enable $unit --via preload --min-rss 1M")?;
    let same = services.running()?;
    claim!(same == old, "enabled with a restart: {old:?}, {same:?}");
    services.sh("each enable --via preload --min-rss 1M --restart")?;
    let runs = services.running()?;
    let restarted = runs.iter().zip(&old).all(|(run, old)| run.pid != old.pid);
    claim!(restarted, "not restarted: {old:?}, {runs:?}");
    services.sh("asyncfork enable $unit --via preload --min-rss 1M --restart; populate")?;
    services.follow_the_switch(ctx, &runs, runs.len(), By::Arm)?;

    // The unit's filter of devices knows the device's number, not its name.
    let _renumbered = Renumbered::reload(ctx, &services, "")?;
    services.first_end(ctx, &runs, 0, BY_LIBRARY)?;
    services.finds("unit.device")?;
    services.sh("systemctl restart $units")?;
    services.lacks("unit.device")?;
    let runs = services.running()?;
    services.first_end(ctx, &runs, runs.len(), BY_LIBRARY)?;
    let enabled = services.sh("exposure")?;

    services.sh("each disable --restart")?;
    services.sh(DISABLED)?;
    let runs = services.running()?;
    for run in &runs {
        let maps = fs::read_to_string(format!("/proc/{}/maps", run.pid))?;
        claim!(
            !maps.contains("libasyncfork"),
            "the library is there: {maps}"
        );
    }
    services.first_end(ctx, &runs, 0, BY_LIBRARY)?;
    Ok(format!(
        "exposed {}, then {}",
        exposure.trim(),
        enabled.trim()
    ))
}

/// Sentinel forks for each of its scripts, so there are forks to be seen.
fn sentinel(ctx: &Ctx) -> TestResult<String> {
    // It may execute nothing but itself; what becomes of that is of no interest.
    const START: &str = r#"
printf '%s\n' 'port 0' 'unixsocket /run/sentinel/socket' 'dir /var/lib/redis' 'loglevel debug' \
	'logfile /var/log/redis/sentinel.log' 'sentinel monitor m 127.0.0.1 1 1' \
	'sentinel notification-script m /usr/bin/redis-sentinel' >/etc/redis/sentinel.conf
chown redis:redis /etc/redis/sentinel.conf
systemctl cat redis-sentinel >/run/before
"#;
    const FORK: &str = r#"
: >/var/log/redis/sentinel.log
redis-cli -s /run/sentinel/socket sentinel set m quorum 2 >/dev/null
until grep -q '+script-child' /var/log/redis/sentinel.log; do sleep 0.2; done
systemctl show -P MainPID redis-sentinel
"#;
    let services = Services::start(ctx, "redis", REDIS)?;
    install_library(ctx, &services)?;
    services.sh(&format!(
        "{START}
asyncfork enable redis-server --via cgroup,preload --min-rss 1M --restart
systemctl start redis-sentinel
populate
"
    ))?;
    let forks = || -> TestResult<Vec<Ending>> {
        let seq = newest_seq()?;
        let pid: i32 = services
            .sh(FORK)?
            .trim()
            .parse()
            .map_err(anyhow::Error::from)?;
        let found = forks_after(ctx, seq)?;
        let own = found.iter().filter(|r| r.parent_pid == pid);
        Ok(own.map(ending).collect())
    };
    let beside = forks()?;
    claim!(beside.is_empty(), "sentinel's forks: {beside:?}");
    services.sh(r#"systemctl cat redis-sentinel | cmp - /run/before
! grep libasyncfork "/proc/$(systemctl show -P MainPID redis-sentinel)/maps""#)?;
    let runs = services.running()?;
    // Both ways: the library is asked first.
    services.first_end(ctx, &runs, 1, BY_LIBRARY)?;

    services.sh("asyncfork enable redis-sentinel --min-rss 1M")?;
    let enabled = forks()?;
    claim!(
        enabled.contains(&BY_CGROUP),
        "forks of an enabled sentinel: {enabled:?}"
    );
    services
        .sh("asyncfork disable redis-sentinel; systemctl cat redis-sentinel | cmp - /run/before")?;
    Ok(format!("forks of it once enabled: {}", enabled.len()))
}

fn findings(ctx: &Ctx) -> TestResult<String> {
    let services = Services::start(ctx, "redis", REDIS)?;
    services.sh("install_library")?;
    services.sh("systemctl stop $unit")?;
    services.mends("unit.not-running")?;
    services.mends("unit.not-enabled")?;
    // Somebody else's drop-in, not read yet.
    services.sh(r#"printf '[Service]\nNice=1\n' >"$etc/$unit.service.d/nice.conf""#)?;
    services.mends("unit.reload")?;
    services.lacks("unit.restart")?;
    services.sh("asyncfork enable $unit --via preload")?;
    services.mends("unit.restart")?;
    Ok("unit.not-running, not-enabled, reload, restart".into())
}

/// The totals that the module has are in node_exporter's file; the programs that read it take it, where there are any.
fn metrics(ctx: &Ctx) -> TestResult<String> {
    const FILE: &str = "/var/lib/prometheus/node-exporter/asyncfork.prom";
    const STEPS: &str = r#"
asyncfork enroll --unit $unit --min-rss 1M
populate
snapshot
mkdir -p /var/lib/prometheus/node-exporter
rm -f /var/lib/prometheus/node-exporter/asyncfork.prom
cp packaging/metrics/asyncfork-metrics.* "$etc/"
systemctl daemon-reload
systemctl start asyncfork-metrics.timer
"#;
    let services = Services::start(ctx, "redis", REDIS)?;
    services.sh(STEPS)?;
    let text = sys::poll_until(|| Ok::<_, Verdict>(fs::read_to_string(FILE).ok()))?;
    services.sh("systemctl stop asyncfork-metrics.timer; asyncfork unenroll --unit $unit | grep 'changed: true'")?;
    let Some(text) = text else {
        let journal = services.sh("journalctl --no-pager -o cat -u asyncfork-metrics")?;
        return Err(Verdict::Failed(format!("no {FILE}: {journal}")));
    };
    let stats = ctx.stats()?;
    claim!(stats.r#async > 0, "no asynchronous fork");
    for (name, value) in [
        ("asyncfork_forks_total{outcome=\"async\"}", stats.r#async),
        ("asyncfork_sessions", stats.running),
        ("asyncfork_state{state=\"on\"}", 1),
    ] {
        let line = format!("{name} {value}");
        claim!(text.lines().any(|l| l == line), "no {line:?} in {text}");
    }
    if !Path::new("/usr/bin/promtool").exists() {
        return Ok("no Prometheus here".into());
    }
    let said = services.sh(&format!("scripts/metrics --here {FILE}"))?;
    Ok(said.lines().last().unwrap_or_default().into())
}
