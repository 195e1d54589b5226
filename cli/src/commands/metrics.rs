// SPDX-License-Identifier: MIT OR Apache-2.0
//! `metrics`: Prometheus' text format, for node_exporter's textfile collector.

use std::path::Path;

use anyhow::{Context as _, Result};
use asyncfork_uapi::{Histogram, Outcome, Reason, Stats};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, TextEncoder};
use serde_json::json;

use crate::cli::MetricsArgs;
use crate::ctx::Ctx;
use crate::doctor;
use crate::exit::{self, Exit};
use crate::module::{self, State};

/// A metric: name, type, labels, help.
#[derive(Debug)]
pub struct Kind {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: &'static str,
    /// Labels, comma-separated.
    pub labels: &'static str,
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($name:literal $kind:literal $labels:literal $help:literal)*) => {
        /// All metrics, in the order in which they are printed: by name.
        pub const ALL: &[Kind] = &[$(Kind { name: $name, kind: $kind, labels: $labels, help: $help },)*];
    };
}

metrics! {
    "asyncfork_build_info" "gauge" "version, abi, kernel"
        "1; the release and ABI of the module (of the command, and none, without a module), and the running kernel."
    "asyncfork_children_killed_total" "counter" ""
        "Children killed because there was no memory for their page tables: failed snapshots."
    "asyncfork_chunks_total" "counter" "how"
        "Page tables (2 MiB of memory each) by what forks did with them: parked, eager (copied at once), reattached, mixed."
    "asyncfork_copy_seconds" "histogram" ""
        "From the end of an asynchronous fork until all was copied."
    "asyncfork_forks_total" "counter" "outcome"
        "Forks that were to be asynchronous, by outcome."
    "asyncfork_next_boot_ready" "gauge" ""
        "1: the kernel that boots next has the module, and it will be loaded and on. Absent: cannot be told."
    "asyncfork_parent_stall_seconds" "histogram" ""
        "Each wait of a parent for a page table that was not copied yet."
    "asyncfork_park_seconds" "histogram" ""
        "Parking in asynchronous forks: nearly all of their pause."
    "asyncfork_pulled_chunks_total" "counter" "side"
        "Parked page tables by who copied them: child, parent, helper, other."
    "asyncfork_sessions" "gauge" ""
        "Asynchronous forks whose child is still copying."
    "asyncfork_sessions_aborted_total" "counter" ""
        "Asynchronous forks that were given up."
    "asyncfork_sessions_limit" "gauge" ""
        "The module parameter max_sessions."
    "asyncfork_state" "gauge" "state"
        "1 for the state that holds: on, off, switched_off (by the module itself), not_loaded."
    "asyncfork_stock_forks_total" "counter" "reason"
        "Forks that were to be asynchronous and were stock, by reason."
    "asyncfork_unexpected_slots_total" "counter" ""
        "Page table slots that were filled although parked, and merged."
}

/// Buckets of the module that are printed: up to 1 us together, up to 17 s each.
const BUCKETS: std::ops::RangeInclusive<usize> = 9..=33;

/// Prints the metrics, or writes them into a file.
///
/// # Errors
/// The file cannot be written.
pub fn run(ctx: &mut Ctx<'_>, args: &MetricsArgs) -> Result<Exit> {
    if let Some(path) = &args.textfile {
        check(ctx, path)?;
    }
    let text = text(ctx)?;
    let exit = match ctx.state() {
        (State::NotLoaded, _) | (_, Ok(_)) => Exit::Done,
        (_, Err(why)) => {
            log::warn!("the totals are missing: {why:#}");
            Exit::CannotTell
        }
    };
    let Some(path) = &args.textfile else {
        if ctx.out.is_json() {
            ctx.out.object(&json!({"text": text}))?;
        } else {
            ctx.out.raw(text.as_bytes())?;
        }
        return Ok(exit);
    };
    let path = std::path::absolute(path).context("--textfile")?;
    ctx.host.replace(&path, &text)?;
    if ctx.out.is_json() {
        ctx.out
            .object(&json!({"textfile": path, "bytes": text.len()}))?;
    }
    Ok(exit)
}

fn check(ctx: &Ctx<'_>, path: &Path) -> Result<()> {
    let wrong = |why: &str| exit::input(format!("--textfile {}: {why}", path.display()));
    if path.extension().is_none_or(|e| e != "prom") {
        return Err(wrong("node_exporter reads only names that end in .prom"));
    }
    let path = std::path::absolute(path).context("--textfile")?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !ctx.host.metadata(directory).is_ok_and(|m| m.is_dir()) {
        return Err(wrong("there is no such directory; make it, or see --collector.textfile.directory of node_exporter"));
    }
    if ctx.host.metadata(&path).is_ok_and(|m| !m.is_file()) {
        return Err(wrong("it is there and is no file"));
    }
    Ok(())
}

/// The metrics.
///
/// # Errors
/// None in practice.
pub fn text(ctx: &Ctx<'_>) -> Result<String> {
    let (state, stats) = ctx.state();
    let mut families = Families::default();
    let abi = ctx
        .module()
        .and_then(|m| m.version())
        .map_or("none".into(), |v| v.abi.to_string());
    let version = ctx.host.line("/sys/module/asyncfork/version");
    let version = version.unwrap_or_else(|| env!("CARGO_PKG_VERSION").into());
    let kernel = ctx.kernel();
    families.gauge(
        "asyncfork_build_info",
        &[("version", &version), ("abi", &abi), ("kernel", &kernel)],
        1.0,
    );
    for label in State::LABELS {
        let holds = *label == state.label();
        families.gauge(
            "asyncfork_state",
            &[("state", label)],
            f64::from(u8::from(holds)),
        );
    }
    if let Some(limit) = module::parameter(&ctx.host, "max_sessions").and_then(|n| n.parse().ok()) {
        families.gauge("asyncfork_sessions_limit", &[], limit);
    }
    if let Some(ready) = doctor::next_boot_is_ready(ctx) {
        families.gauge("asyncfork_next_boot_ready", &[], f64::from(u8::from(ready)));
    }
    if let Ok(stats) = &stats {
        families.totals(stats);
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&families.sorted(), &mut text)?;
    Ok(String::from_utf8(text)?)
}

#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn totals(&mut self, stats: &Stats) {
        let chunks = &stats.chunks;
        self.gauge("asyncfork_sessions", &[], stats.running as f64);
        for (outcome, n) in [
            (Outcome::Async, stats.r#async),
            (Outcome::Stock, stats.stock),
            (Outcome::Failed, stats.failed),
        ] {
            self.counter("asyncfork_forks_total", &[("outcome", outcome.label())], n);
        }
        for &reason in Reason::ALL {
            self.counter(
                "asyncfork_stock_forks_total",
                &[("reason", reason.label())],
                stats.stock_by(reason),
            );
        }
        self.counter("asyncfork_sessions_aborted_total", &[], stats.aborted);
        self.counter("asyncfork_children_killed_total", &[], stats.killed);
        self.counter("asyncfork_unexpected_slots_total", &[], stats.merged);
        for (how, n) in [
            ("parked", chunks.parked),
            ("eager", chunks.eager),
            ("reattached", chunks.reattached),
            ("mixed", chunks.mixed),
        ] {
            self.counter("asyncfork_chunks_total", &[("how", how)], n);
        }
        for (side, n) in [
            ("child", chunks.by_child),
            ("parent", chunks.by_parent),
            ("helper", chunks.by_helper),
            ("other", chunks.by_other),
        ] {
            self.counter("asyncfork_pulled_chunks_total", &[("side", side)], n);
        }
        self.histogram("asyncfork_park_seconds", &stats.park, stats.park_ns);
        self.histogram(
            "asyncfork_parent_stall_seconds",
            &stats.parent_pull,
            stats.parent_pull_ns,
        );
        self.histogram("asyncfork_copy_seconds", &stats.copy, stats.copy_ns);
    }

    fn add(&mut self, name: &str, kind: MetricType, labels: &[(&str, &str)], mut metric: Metric) {
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        metric.set_label(labels.iter().map(pair).collect());
        if let Some(family) = self.0.iter_mut().find(|family| family.name() == name) {
            family.mut_metric().push(metric);
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        let help = ALL.iter().find(|k| k.name == name).map_or("", |k| k.help);
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.mut_metric().push(metric);
        self.0.push(family);
    }

    fn gauge(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        self.add(name, MetricType::GAUGE, labels, Metric::from_gauge(gauge));
    }

    fn counter(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(value as f64);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        self.add(name, MetricType::COUNTER, labels, metric);
    }

    fn histogram(&mut self, name: &str, counts: &Histogram, sum_ns: u64) {
        let mut sum = 0;
        let mut buckets = Vec::new();
        for (i, n) in counts.bucket.iter().enumerate() {
            sum += n;
            if BUCKETS.contains(&i) {
                let mut bucket = proto::Bucket::default();
                bucket.set_cumulative_count(sum);
                bucket.set_upper_bound((2u64 << i) as f64 / 1e9);
                buckets.push(bucket);
            }
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(sum);
        histogram.set_sample_sum(sum_ns as f64 / 1e9);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.add(name, MetricType::HISTOGRAM, &[], metric);
    }

    fn sorted(mut self) -> Vec<MetricFamily> {
        self.0.sort_by(|a, b| a.name().cmp(b.name()));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{stats, Fake};
    use std::os::unix::fs::MetadataExt as _;

    fn printed(fake: &Fake) -> String {
        let (result, text) =
            fake.command("metrics", |ctx| run(ctx, &MetricsArgs { textfile: None }));
        assert_eq!(result.unwrap(), Exit::Done);
        text
    }

    #[test]
    fn each_metric_is_listed_and_each_listed_one_is_printed() {
        let fake = Fake::new();
        fake.loaded()
            .bootable("6.1.0-56-amd64")
            .module(|m| m.stats = stats());
        let text = printed(&fake);
        let types: Vec<_> = text
            .lines()
            .filter_map(|l| l.strip_prefix("# TYPE "))
            .collect();
        let listed: Vec<_> = ALL
            .iter()
            .map(|k| format!("{} {}", k.name, k.kind))
            .collect();
        assert_eq!(types, listed);
        for kind in ALL {
            for label in kind.labels.split(", ").filter(|l| !l.is_empty()) {
                let line = text
                    .lines()
                    .find(|l| l.starts_with(&format!("{}{{", kind.name)))
                    .unwrap();
                assert!(line.contains(&format!("{label}=\"")), "{line}");
            }
        }
    }

    #[test]
    fn figures_are_in_base_units() {
        let fake = Fake::new();
        fake.loaded().module(|m| m.stats = stats());
        let text = printed(&fake);
        for line in [
            "asyncfork_build_info{version=\"0.1.0\",abi=\"2\",kernel=\"6.1.0-56-amd64\"} 1",
            "asyncfork_state{state=\"on\"} 1",
            "asyncfork_state{state=\"not_loaded\"} 0",
            "asyncfork_forks_total{outcome=\"async\"} 12",
            "asyncfork_stock_forks_total{reason=\"min_rss\"} 3",
            "asyncfork_sessions_limit 1024",
            "asyncfork_park_seconds_bucket{le=\"0.001048576\"} 12",
            "asyncfork_park_seconds_bucket{le=\"0.000524288\"} 0",
            "asyncfork_park_seconds_bucket{le=\"+Inf\"} 12",
            "asyncfork_park_seconds_count 12",
            "asyncfork_park_seconds_sum 0.012",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("pid"));
    }

    #[test]
    fn without_a_module_the_state_is_still_told() {
        let fake = Fake::new();
        let text = printed(&fake);
        assert!(
            text.contains("asyncfork_state{state=\"not_loaded\"} 1"),
            "{text}"
        );
        assert!(text.contains("abi=\"none\""), "{text}");
        assert!(!text.contains("asyncfork_forks_total"), "{text}");
    }

    #[test]
    fn a_text_file_is_replaced_in_one_step() {
        let fake = Fake::new();
        fake.loaded().directory("/var/lib/node");
        let path = Path::new("/var/lib/node/asyncfork.prom");
        let args = MetricsArgs {
            textfile: Some(path.into()),
        };
        let (result, text) = fake.command("metrics", |ctx| run(ctx, &args));
        assert_eq!(result.unwrap(), Exit::Done);
        assert_eq!(text, "");
        assert!(fake.host.read(path).unwrap().contains("asyncfork_state"));
        assert_eq!(fake.host.metadata(path).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fake.host.list("/var/lib/node"), ["asyncfork.prom"]);
    }

    #[test]
    fn wrong_paths_are_refused() {
        let fake = Fake::new();
        fake.directory("/var/lib/node/dir.prom");
        for bad in [
            "/var/lib/node/asyncfork.txt",
            "/none/asyncfork.prom",
            "/var/lib/node/dir.prom",
            "",
        ] {
            let args = MetricsArgs {
                textfile: Some(bad.into()),
            };
            let error = fake
                .command("metrics", |ctx| run(ctx, &args))
                .0
                .unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input, "{bad}");
        }
    }
}
