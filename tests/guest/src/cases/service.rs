// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way people run servers: Debian's unit, systemd, and the drop-in of `packaging/`.

use super::Test;
use crate::ctx::Ctx;
use crate::verdict::{TestResult, Verdict};
use crate::{claim, skip_unless};
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
    snapshot(ctx, "redis")
}

fn valkey(ctx: &Ctx) -> TestResult<String> {
    snapshot(ctx, "valkey")
}

fn snapshot(ctx: &Ctx, server: &str) -> TestResult<String> {
    let unit = format!("system/{server}-server.service");
    for file in ["systemd", &unit] {
        let file = Path::new(SYSTEMD).join(file);
        skip_unless!(file.exists(), "this root has no {}", file.display());
    }
    let before = ctx.stats()?;
    // systemd makes groups below its own.
    let group = ctx.cgroup.child("systemd")?;
    let output = Command::new("sh")
        .args(["-c", CONTAINER])
        .arg(group.path())
        .arg(include_str!("service.sh"))
        .env("ROOT", ROOT)
        .env("DROPIN", env::current_dir()?.join(DROP_IN))
        .env("SHIM", &ctx.shim)
        .env("SERVER", server)
        .env("OUT", &ctx.scratch)
        .output()?;
    let after = ctx.stats()?;
    // There is none if not even systemd came up.
    let said = fs::read_to_string(ctx.scratch.join("result")).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&output.stderr);
    claim!(
        said.contains("rdb_last_bgsave_status:ok"),
        "no snapshot: {said}; {stderr}"
    );
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
