// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way people run servers: Debian's units under systemd, PID 1 of the guest, with udev; by the command, or with the
//! drop-in of `packaging/`.

use super::Test;
use crate::ctx::Ctx;
use crate::module;
use crate::sys;
use crate::verdict::{TestResult, Verdict};
use crate::{claim, skip_unless};
use asyncfork_uapi::{By, Outcome as Fate, Reason, Stats};
use serde_json::{json, Value};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const TESTS: &[Test] = &[
    Test::new(
        "redis_under_debians_unit_and_the_drop_in_forks_async",
        redis,
    )
    .systemd(),
    Test::new(
        "valkey_under_debians_unit_and_the_drop_in_forks_async",
        valkey,
    )
    .systemd(),
    Test::new(
        "running_redis_under_debians_unit_is_enrolled_and_goes_back_and_forth",
        redis_enrolled,
    )
    .systemd(),
    Test::new(
        "running_valkey_under_debians_unit_is_enrolled_and_goes_back_and_forth",
        valkey_enrolled,
    )
    .systemd(),
    Test::new(
        "redis_enabled_under_debians_unit_forks_async_after_each_restart",
        enabled,
    )
    .systemd(),
    Test::new(
        "redis_under_debians_unit_gets_the_library_by_enable_and_loses_it_by_disable",
        preloaded,
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

/// A server under its unit; stopped, and what was set up for it removed, at the end.
struct Service<'a> {
    server: &'static str,
    shim: &'a Path,
    command: PathBuf,
}

impl<'a> Service<'a> {
    /// Starts it; skips the test in a root that has none.
    fn start(ctx: &'a Ctx, server: &'static str) -> TestResult<Self> {
        let unit = format!("/usr/lib/systemd/system/{server}-server.service");
        skip_unless!(Path::new(&unit).exists(), "this root has no {unit}");
        let service = Service {
            server,
            shim: ctx.library()?,
            command: ctx.command()?,
        };
        service.sh("set_up")?;
        Ok(service)
    }

    fn run(&self, steps: &str) -> TestResult<Output> {
        let output = Command::new("sh")
            .args(["-c", &format!("{}\n{steps}", include_str!("service.sh"))])
            .env("server", self.server)
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

    /// Finding `id` is there, and is not any more after its line.
    fn mends(&self, id: &str) -> TestResult {
        let found = self.findings()?;
        let Some((_, fix)) = found.iter().find(|(found, _)| found == id) else {
            return Err(Verdict::Failed(format!("no {id} in {found:?}")));
        };
        self.sh(fix)?;
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

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if let Err(v) = self.sh("tear_down") {
            eprintln!("{v}");
        }
    }
}

fn redis(ctx: &Ctx) -> TestResult<String> {
    by_library(ctx, "redis")
}

fn valkey(ctx: &Ctx) -> TestResult<String> {
    by_library(ctx, "valkey")
}

fn redis_enrolled(ctx: &Ctx) -> TestResult<String> {
    enrolled(ctx, "redis")
}

fn valkey_enrolled(ctx: &Ctx) -> TestResult<String> {
    enrolled(ctx, "valkey")
}

/// The group, and a module that is loaded after the rule that names it.
fn install_library(ctx: &Ctx, service: &Service) -> TestResult {
    service.sh("install_library")?;
    ctx.module.unload()?;
    ctx.module.load("")?;
    service.sh("udevadm settle")?;
    let group = service.sh("getent group asyncfork | cut -d: -f3")?;
    let node = fs::metadata("/dev/asyncfork")?;
    let (mode, gid) = (node.permissions().mode() & 0o7777, node.gid().to_string());
    claim!(
        (mode, &*gid) == (0o660, group.trim()),
        "udev gives the device {mode:o} and group {gid}, want 660 and {group}"
    );
    Ok(())
}

/// The server's only snapshot was asynchronous, by its library, which says so in the journal.
fn expect_by_library(
    ctx: &Ctx,
    service: &Service,
    said: &str,
    before: Stats,
) -> TestResult<String> {
    expect_snapshots(said, 1)?;
    let after = ctx.stats()?;
    claim!(
        after.r#async == before.r#async + 1,
        "{} async forks, want 1: {said}",
        after.r#async - before.r#async
    );
    let journal = service.sh("journalctl --no-pager -o cat -u $unit")?;
    match journal.lines().rfind(|line| line.contains("async fork of")) {
        Some(line) => Ok(line.into()),
        None => Err(Verdict::Failed(format!(
            "the journal has no line of it: {journal}"
        ))),
    }
}

/// So that a small server will do, and tells.
const SMALL: &str = r#"
mkdir -p "$units/$unit.service.d"
printf '[Service]\nEnvironment=ASYNCFORK_LOG=info ASYNCFORK_MIN_RSS=1M\n' >"$units/$unit.service.d/test.conf"
"#;

fn by_library(ctx: &Ctx, server: &'static str) -> TestResult<String> {
    let service = Service::start(ctx, server)?;
    install_library(ctx, &service)?;
    let before = ctx.stats()?;
    let said = service.sh(&format!(
        r#"{SMALL}
cp {DROP_IN} "$units/$unit.service.d/asyncfork.conf"
systemctl daemon-reload
systemctl restart $unit
populate
snapshot
"#
    ))?;
    expect_by_library(ctx, &service, &said, before)
}

fn expect_snapshots(said: &str, want: usize) -> TestResult {
    let snapshots = said.matches("rdb_last_bgsave_status:ok").count();
    claim!(
        snapshots == want,
        "{snapshots} snapshots, want {want}: {said}"
    );
    Ok(())
}

/// How a fork ended, why, and who had asked for it.
type Ending = (Fate, Reason, By);

const ASYNC: Ending = (Fate::Async, Reason::None, By::Enrolled);

/// What the ring has of the server's forks after `seq`, the oldest first. systemd's own, before it executes the server, are
/// stock ones for want of anything to park.
fn forks_after(ctx: &Ctx, server: &str, seq: u64) -> TestResult<Vec<Ending>> {
    // A session is there once it has ended.
    sys::poll_until(|| -> TestResult<Option<()>> {
        Ok((ctx.stats()?.running == 0).then_some(()))
    })?;
    let mut found = module::recent(&module::open()?)?;
    let server = format!("{server}-server");
    found.retain(|r| r.seq > seq && r.comm() == server.as_bytes());
    found.sort_by_key(|r| r.seq);
    let endings = found.iter().map(|r| (r.outcome(), r.reason(), r.by()));
    Ok(endings.collect())
}

fn newest_seq() -> TestResult<u64> {
    let recent = module::recent(&module::open()?)?;
    Ok(recent.iter().map(|r| r.seq).max().unwrap_or(0))
}

/// Without a drop-in, a preload or a restart.
fn enrolled(ctx: &Ctx, server: &'static str) -> TestResult<String> {
    const STEPS: &str = r#"
populate
before=$(process)
snapshot
asyncfork enroll --unit $unit --min-rss 1M
snapshot
asyncfork explain
asyncfork off
snapshot
asyncfork explain
asyncfork on
snapshot
echo "cgroup $(stat -c %i "/sys/fs/cgroup$(systemctl show -P ControlGroup $unit)")"
asyncfork unenroll --unit $unit
snapshot
timeout 30 asyncfork watch --past --json --count $count || true
asyncfork status --json | tr -d '\n'
echo
after=$(process)
echo "process $before, then $after"
[ "$before" = "$after" ]
"#;
    let service = Service::start(ctx, server)?;
    let (before, seq) = (ctx.stats()?, newest_seq()?);
    // What the ring will have, if it is not full yet.
    let count = module::recent(&module::open()?)?.len() + 3;
    let steps = format!("count={count}\n{STEPS}");
    let said = service.sh(&steps)?;
    let forks = forks_after(ctx, server, seq)?;
    let after = ctx.stats()?;
    expect_snapshots(&said, 5)?;
    // The first and the last were nobody's business: the module has nothing of them.
    claim!(
        forks == [ASYNC, (Fate::Stock, Reason::Disabled, By::Enrolled), ASYNC],
        "the ring has {forks:?}: {said}"
    );
    let counted = (after.r#async - before.r#async, after.stock - before.stock);
    claim!(counted == (2, 1), "counted {counted:?}: {said}");
    for words in ["an asynchronous fork", "enabled=0"] {
        claim!(said.contains(words), "nobody says {words:?}: {said}");
    }
    let group = said.lines().find_map(|line| line.strip_prefix("cgroup "));
    let by_others = module::recent(&module::open()?)?
        .iter()
        .filter(|r| r.seq > seq && Some(&*r.entry_id.to_string()) != group)
        .count();
    claim!(by_others == 0, "{by_others} by another entry: {said}");
    expect_told(&said, seq, &after)?;
    let process = said.lines().find(|line| line.starts_with("process "));
    Ok(process.unwrap_or_default().into())
}

/// The command has told the forks after `seq` and the totals as the module has them.
fn expect_told(said: &str, seq: u64, totals: &Stats) -> TestResult {
    let objects: Vec<Value> = said
        .lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of = |command: &'static str| objects.iter().filter(move |o| o["command"] == command);
    let watched: Vec<_> = of("watch")
        .filter(|o| o["seq"].as_u64() > Some(seq))
        .map(|o| json!([o["outcome"], o["reason"], o["by"]]))
        .collect();
    let served = json!(["async", null, "enrolled"]);
    let switched_off = json!(["stock", "disabled", "enrolled"]);
    claim!(
        watched == [served.clone(), switched_off, served],
        "watch tells {watched:?}: {said}"
    );
    let status = of("status").next().unwrap_or(&Value::Null);
    let forks = &status["totals"]["forks"];
    claim!(
        forks["async"] == totals.r#async && forks["stock"] == totals.stock,
        "status tells {forks}: {said}"
    );
    Ok(())
}

/// Each start makes a new cgroup.
fn enabled(ctx: &Ctx) -> TestResult<String> {
    const STEPS: &str = r#"
systemctl cat $unit >/run/before
asyncfork enable $unit --min-rss 1M | grep 'changed: true'
asyncfork enable $unit --min-rss 1M | grep 'changed: false'
for i in 1 2; do
	systemctl restart $unit
	populate
	snapshot
done
asyncfork enrolled
asyncfork disable $unit
systemctl cat $unit | cmp - /run/before
systemctl restart $unit
populate
snapshot
# With nobody there to enrol it, the service starts all the same.
asyncfork enable $unit --min-rss 1M
mount --bind /dev/null /dev/asyncfork
systemctl restart $unit
umount /dev/asyncfork
populate
snapshot
"#;
    let service = Service::start(ctx, "redis")?;
    let seq = newest_seq()?;
    let said = service.sh(STEPS)?;
    let forks = forks_after(ctx, "redis", seq)?;
    expect_snapshots(&said, 4)?;
    claim!(forks == [ASYNC, ASYNC], "the ring has {forks:?}: {said}");
    Ok("two restarts".into())
}

/// By the command from end to end: what it writes is enough, and it restarts the service only if it is told to.
fn preloaded(ctx: &Ctx) -> TestResult<String> {
    const ENABLE: &str = r#"
before=$(process)
asyncfork enable $unit --via preload
[ "$before" = "$(process)" ]
asyncfork enable $unit --via preload --restart | grep restarted
[ "$before" != "$(process)" ]
asyncfork enable $unit --via preload --restart | grep 'changed: false'
populate
snapshot
"#;
    const DISABLE: &str = r#"
before=$(process)
asyncfork disable $unit --restart
[ "$before" != "$(process)" ]
rm "$units/$unit.service.d/test.conf"
systemctl daemon-reload
[ -z "$(systemctl show -P DropInPaths $unit)" ]
! grep -q libasyncfork "/proc/$(systemctl show -P MainPID $unit)/maps"
populate
snapshot
"#;
    let service = Service::start(ctx, "redis")?;
    install_library(ctx, &service)?;
    let before = ctx.stats()?;
    let said = service.sh(&format!("{SMALL}{ENABLE}"))?;
    let line = expect_by_library(ctx, &service, &said, before)?;
    let before = ctx.stats()?;
    let said = service.sh(DISABLE)?;
    expect_snapshots(&said, 1)?;
    let after = ctx.stats()?;
    claim!(
        (after.r#async, after.stock) == (before.r#async, before.stock),
        "the module has forks of a disabled service: {said}"
    );
    Ok(line)
}

fn findings(ctx: &Ctx) -> TestResult<String> {
    let service = Service::start(ctx, "redis")?;
    install_library(ctx, &service)?;
    service.sh("systemctl stop $unit")?;
    service.mends("unit.not-running")?;
    service.mends("unit.not-enabled")?;
    // Somebody else's drop-in, not read yet.
    service.sh(r#"printf '[Service]\nNice=1\n' >"$units/$unit.service.d/nice.conf""#)?;
    service.mends("unit.reload")?;
    service.lacks("unit.restart")?;
    service.sh("asyncfork enable $unit --via preload")?;
    service.mends("unit.restart")?;
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
cp packaging/metrics/asyncfork-metrics.* "$units/"
systemctl daemon-reload
systemctl start asyncfork-metrics.timer
"#;
    let service = Service::start(ctx, "redis")?;
    service.sh(STEPS)?;
    let text = sys::poll_until(|| Ok::<_, Verdict>(fs::read_to_string(FILE).ok()))?;
    service.sh("systemctl stop asyncfork-metrics.timer")?;
    let Some(text) = text else {
        let journal = service.sh("journalctl --no-pager -o cat -u asyncfork-metrics")?;
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
    let said = service.sh(&format!("scripts/metrics --here {FILE}"))?;
    Ok(said.lines().last().unwrap_or_default().into())
}
