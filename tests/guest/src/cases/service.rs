// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way people run servers: Debian's unit and systemd, with the drop-in of `packaging/`, or with the command alone.

use super::Test;
use crate::ctx::Ctx;
use crate::module;
use crate::sys;
use crate::verdict::{TestResult, Verdict};
use crate::{claim, skip_unless};
use asyncfork_uapi::{By, Outcome as Fate, Reason, Stats};
use serde_json::{json, Value};
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

pub const TESTS: &[Test] = &[
    Test::new(
        "redis_under_debians_unit_and_the_drop_in_forks_async",
        redis,
    )
    .module(),
    Test::new(
        "valkey_under_debians_unit_and_the_drop_in_forks_async",
        valkey,
    )
    .module(),
    Test::new(
        "running_redis_under_debians_unit_is_enrolled_and_goes_back_and_forth",
        redis_enrolled,
    )
    .module(),
    Test::new(
        "running_valkey_under_debians_unit_is_enrolled_and_goes_back_and_forth",
        valkey_enrolled,
    )
    .module(),
    Test::new(
        "redis_enabled_under_debians_unit_forks_async_after_each_restart",
        enabled,
    )
    .module(),
];

/// The guest's root without the overlays that virtme-ng puts over it.
const ROOT: &str = "/run/asyncfork/root";
const SYSTEMD: &str = "/usr/lib/systemd";
const DROP_IN: &str = "packaging/redis-server.service.d-asyncfork.conf";
/// Arguments: a control group, what to run.
const CONTAINER: &str = r#"
echo $$ >"$0/cgroup.procs" &&
exec unshare --pid --fork --kill-child --mount --cgroup sh -c "$1""#;

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

/// Runs `steps` beside a server under its unit; what was said.
fn under_systemd(
    ctx: &Ctx,
    server: &str,
    steps: &str,
    env: &[(&str, &Path)],
) -> TestResult<String> {
    let unit = format!("system/{server}-server.service");
    for file in ["systemd", &unit] {
        let file = Path::new(SYSTEMD).join(file);
        skip_unless!(file.exists(), "this root has no {}", file.display());
    }
    fs::write(ctx.scratch.join("steps.sh"), steps)?;
    // systemd makes groups below its own.
    let group = ctx.cgroup.child("systemd")?;
    let output = Command::new("sh")
        .args(["-c", CONTAINER])
        .arg(group.path())
        .arg(include_str!("service.sh"))
        .env("ROOT", ROOT)
        .env("SERVER", server)
        .env("OUT", &ctx.scratch)
        .envs(env.iter().copied())
        .output()?;
    // There is none if not even systemd came up.
    let said = fs::read_to_string(ctx.scratch.join("result")).unwrap_or_default();
    claim!(
        said.contains("end of steps"),
        "the steps did not end: {said}; {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

fn by_library(ctx: &Ctx, server: &str) -> TestResult<String> {
    let before = ctx.stats()?;
    let drop_in = env::current_dir()?.join(DROP_IN);
    let env = [("DROPIN", &*drop_in), ("SHIM", &*ctx.shim)];
    let said = under_systemd(ctx, server, "populate\nsnapshot\n", &env)?;
    let after = ctx.stats()?;
    expect_snapshots(&said, 1)?;
    claim!(
        after.r#async == before.r#async + 1,
        "{} async forks, want 1: {said}",
        after.r#async - before.r#async
    );
    match said.lines().find(|line| line.contains("async fork of")) {
        Some(line) => Ok(line.into()),
        None => Err(Verdict::Failed(format!(
            "the journal has no line of it: {said}"
        ))),
    }
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
fn enrolled(ctx: &Ctx, server: &str) -> TestResult<String> {
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
    let command = ctx.command()?;
    let (before, seq) = (ctx.stats()?, newest_seq()?);
    // What the ring will have, if it is not full yet.
    let count = module::recent(&module::open()?)?.len() + 3;
    let steps = format!("count={count}\n{STEPS}");
    let said = under_systemd(ctx, server, &steps, &[("COMMAND", &command)])?;
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
    let command = ctx.command()?;
    let seq = newest_seq()?;
    let said = under_systemd(ctx, "redis", STEPS, &[("COMMAND", &command)])?;
    let forks = forks_after(ctx, "redis", seq)?;
    expect_snapshots(&said, 4)?;
    claim!(forks == [ASYNC, ASYNC], "the ring has {forks:?}: {said}");
    Ok("two restarts".into())
}
