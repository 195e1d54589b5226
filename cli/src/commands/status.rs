// SPDX-License-Identifier: MIT OR Apache-2.0
//! `status`: totals since the module was loaded.

use anyhow::Result;
use asyncfork_uapi::{By, Histogram, Hook, Outcome, Reason, Stats};
use serde_json::{json, Map, Value};

use crate::ctx::Ctx;
use crate::exit::Exit;
use crate::module::{self, State};
use crate::out::{self, duration, styled};

/// Prints the state and the totals.
///
/// # Errors
/// Those of writing.
pub fn run(ctx: &mut Ctx<'_>) -> Result<Exit> {
    let (state, stats) = ctx.state();
    let version = ctx.module().and_then(|module| module.version()).ok();
    let release = ctx.host.line("/sys/module/asyncfork/version");
    let kernel = ctx.kernel();
    let limit = module::parameter(&ctx.host, "max_sessions");
    let unknown = match (&stats, &state) {
        (Err(e), state) if *state != State::NotLoaded => Some(format!("{e:#}")),
        _ => None,
    };
    if ctx.out.is_json() {
        ctx.out.object(&json!({
            "state": state.label(),
            "why": why(&state),
            "kernel": kernel,
            "module": {
                "version": release,
                "abi": version.map(|v| v.abi),
                "max_helpers": version.map(|v| v.max_helpers),
                "max_sessions": limit.as_deref().and_then(|n| n.parse::<u64>().ok()),
                "policy": module::parameter(&ctx.host, "policy"),
            },
            "totals": stats.as_ref().ok().map(totals),
            "unknown": unknown,
        }))?;
    } else {
        let style = if state == State::On {
            out::GOOD
        } else {
            out::BAD
        };
        let mut label = styled(style, state.label());
        if let Some(why) = why(&state) {
            label = format!("{label}: {why}");
        }
        ctx.out.line(format!("state     {label}"))?;
        ctx.out.line(format!("kernel    {kernel}"))?;
        if state != State::NotLoaded {
            let abi = version.map_or("unknown".into(), |v| v.abi.to_string());
            let release = release.as_deref().unwrap_or("unknown");
            ctx.out.line(format!("module    {release}, ABI {abi}"))?;
        }
        if let Ok(stats) = &stats {
            text(ctx, stats, limit.as_deref().unwrap_or("?"))?;
        }
        if let Some(unknown) = &unknown {
            ctx.out.line(format!("totals    unknown: {unknown}"))?;
        }
    }
    Ok(match state {
        State::NotLoaded | State::Off | State::SwitchedOff(_) => Exit::No,
        State::On if unknown.is_some() => Exit::CannotTell,
        State::On => Exit::Done,
    })
}

fn why(state: &State) -> Option<String> {
    match state {
        State::NotLoaded => Some("modprobe asyncfork".into()),
        State::Off => Some("asyncfork on".into()),
        State::SwitchedOff(why) => Some(why.clone().unwrap_or_else(|| "see the kernel log".into())),
        State::On => None,
    }
}

fn text(ctx: &mut Ctx<'_>, stats: &Stats, limit: &str) -> Result<()> {
    let out = &mut ctx.out;
    out.line(format!(
        "sessions  {} of at most {limit}; {} aborted, {} children killed",
        stats.running, stats.aborted, stats.killed
    ))?;
    out.line(format!(
        "forks     {} asynchronous, {} stock, {} failed",
        stats.r#async, stats.stock, stats.failed
    ))?;
    for (name, histogram) in [
        ("parking", &stats.park),
        ("waits", &stats.parent_pull),
        ("copying", &stats.copy),
    ] {
        if let (Some(half), Some(most)) = (quantile(histogram, 0.5), quantile(histogram, 0.99)) {
            let what = format!(
                "{name:<9} half below {}, 99 % below {}",
                duration(half),
                duration(most)
            );
            out.line(what)?;
        }
    }
    let mut table = out::table(&["stock forks", "reason", "meaning"]);
    for &reason in Reason::ALL {
        if stats.stock_by(reason) > 0 {
            table.add_row([
                stats.stock_by(reason).to_string(),
                reason.label().into(),
                reason.explain().into(),
            ]);
        }
    }
    if table.row_iter().next().is_some() {
        out.line("")?;
        out.line(table.trim_fmt())?;
    }
    Ok(())
}

/// The totals as JSON.
pub fn totals(stats: &Stats) -> Value {
    let chunks = &stats.chunks;
    let nonzero = |pairs: Vec<(&str, u64)>| -> Map<String, Value> {
        let pairs = pairs.into_iter().filter(|(_, n)| *n > 0);
        pairs.map(|(name, n)| (name.to_owned(), n.into())).collect()
    };
    json!({
        "sessions": stats.running,
        "armed": stats.armed,
        "forks": {
            Outcome::Async.label(): stats.r#async,
            Outcome::Stock.label(): stats.stock,
            Outcome::Failed.label(): stats.failed,
        },
        "forks_by": By::ALL.iter().filter(|&&by| by != By::None).map(|&by| (by.label(), json!({
            "async": stats.async_how(by), "stock": stats.stock_how(by),
        }))).collect::<std::collections::BTreeMap<_, _>>(),
        "enrolled_cgroups": stats.enrolled,
        "stock_by_reason": nonzero(Reason::ALL.iter().map(|&r| (r.label(), stats.stock_by(r))).collect()),
        "sessions_aborted": stats.aborted,
        "children_killed": stats.killed,
        "unexpected_slots": stats.merged,
        "chunks": {
            "parked": chunks.parked, "eager": chunks.eager, "reattached": chunks.reattached, "mixed": chunks.mixed,
        },
        "pulled_by_side": {
            "child": chunks.by_child, "parent": chunks.by_parent, "helper": chunks.by_helper, "other": chunks.by_other,
        },
        "pulls_by_hook": nonzero(Hook::ALL.iter().map(|&h| (h.label(), stats.pulls_by(h))).collect()),
        "park_ns": {"total": stats.park_ns, "p50_below": quantile(&stats.park, 0.5), "p99_below": quantile(&stats.park, 0.99)},
        "parent_stall_ns": {
            "total": stats.parent_pull_ns, "longest": stats.parent_pull_max_ns,
            "p50_below": quantile(&stats.parent_pull, 0.5), "p99_below": quantile(&stats.parent_pull, 0.99),
        },
        "copy_ns": {"total": stats.copy_ns, "p50_below": quantile(&stats.copy, 0.5), "p99_below": quantile(&stats.copy, 0.99)},
    })
}

/// The upper bound, in nanoseconds, of the bucket in which that part of all counts is
/// reached; none if nothing was counted.
pub fn quantile(histogram: &Histogram, part: f64) -> Option<u64> {
    let wanted = (histogram.count() as f64 * part).ceil() as u64;
    let mut sum = 0;
    let bucket = histogram.bucket.iter().position(|n| {
        sum += n;
        wanted > 0 && sum >= wanted
    });
    bucket.map(|i| 2 << i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{stats, Fake};

    #[test]
    fn the_state_decides_the_exit_code() {
        let fake = Fake::new();
        let (result, text) = fake.command("status", run);
        assert_eq!(result.unwrap(), Exit::No);
        assert!(text.contains("not_loaded: modprobe asyncfork"), "{text}");
        fake.loaded();
        assert_eq!(fake.command("status", run).0.unwrap(), Exit::Done);
        fake.unreachable();
        let (result, text) = fake.command("status", run);
        assert_eq!(result.unwrap(), Exit::CannotTell);
        assert!(text.contains("totals    unknown"), "{text}");
        fake.write("/sys/module/asyncfork/parameters/enabled", "N");
        assert_eq!(fake.command("status", run).0.unwrap(), Exit::No);
    }

    #[test]
    fn totals_are_shown() {
        let fake = Fake::new();
        fake.loaded().module(|m| m.stats = stats());
        let (_, text) = fake.command("status", run);
        assert!(
            text.contains("forks     12 asynchronous, 3 stock, 0 failed"),
            "{text}"
        );
        assert!(text.contains("min_rss"), "{text}");
        assert!(text.contains("parking   half below 1049 us"), "{text}");
    }

    #[test]
    fn json_is_as_documented() {
        let fake = Fake::new();
        fake.loaded().module(|m| m.stats = stats());
        fake.golden("status", "status", run);
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut histogram = Histogram { bucket: [0; 40] };
        assert_eq!(quantile(&histogram, 0.5), None);
        histogram.bucket[0] = 99;
        histogram.bucket[10] = 1;
        assert_eq!(quantile(&histogram, 0.5), Some(2));
        assert_eq!(quantile(&histogram, 0.99), Some(2));
        assert_eq!(quantile(&histogram, 1.0), Some(2048));
    }
}
