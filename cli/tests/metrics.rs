// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dashboard, alerts, their tests and the units of `packaging/metrics` against what
//! `asyncfork metrics` exports. `scripts/metrics` has Prometheus itself read them.

#[path = "../src/golden.rs"]
mod golden;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::Result;
use asyncfork_cli::cli::{Cli, Command};
use asyncfork_cli::commands::metrics;
use asyncfork_cli::ctx::Ctx;
use asyncfork_cli::exit;
use asyncfork_cli::host::{Host, Output, Tools};
use asyncfork_cli::module::{Cgroup, Enrolment, Fork, Module, Terms};
use asyncfork_cli::out::Out;
use asyncfork_uapi::{Histogram, Reason, Stats, Version};
use clap::Parser as _;
use serde_json::Value;

/// Prometheus' own labels.
const TARGET: &[&str] = &["instance", "job"];
/// Metrics of other exporters, with their labels.
const FOREIGN: &[(&str, &[&str])] = &[
    ("node_textfile_mtime_seconds", &["file"]),
    ("redis_latest_fork_seconds", &[]),
];

fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/metrics");
    fs::read_to_string(path.join(name)).unwrap()
}

/// No program is there.
struct NoTools;

impl Tools for NoTools {
    fn run(&self, _: &str, _: &[&str]) -> io::Result<Output> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// A module in which everything has happened.
struct Busy;

impl Module for Busy {
    fn version(&self) -> Result<Version> {
        Ok(Version {
            abi: 3,
            ..Version::default()
        })
    }

    fn stats(&self) -> Result<Stats> {
        let mut stats = Stats {
            enabled: 1,
            running: 2,
            r#async: 1000,
            failed: 3,
            aborted: 4,
            killed: 1,
            merged: 5,
            park_ns: 1_200_000_000,
            parent_pull_ns: 60_000_000,
            copy_ns: 350_000_000_000,
            ..Stats::default()
        };
        for (count, n) in stats.stock_by_reason.iter_mut().zip(1..) {
            *count = n;
        }
        stats.stock = Reason::ALL.iter().map(|&r| stats.stock_by(r)).sum();
        stats.chunks.parked = 30_000_000;
        stats.chunks.eager = 2000;
        stats.chunks.reattached = 300;
        stats.chunks.mixed = 40;
        stats.chunks.by_child = 29_000_000;
        stats.chunks.by_parent = 1500;
        stats.chunks.by_helper = 900_000;
        stats.chunks.by_other = 98_160;
        spread(&mut stats.park, 17, &[20, 180, 600, 190, 10]);
        spread(&mut stats.parent_pull, 12, &[100, 900, 400, 80, 15, 4, 1]);
        spread(&mut stats.copy, 26, &[50, 650, 270, 28]);
        Ok(stats)
    }

    fn recent(&self) -> Result<Vec<Fork>> {
        nobody_asks()
    }

    fn enroll(&self, _: &File, _: Terms) -> Result<()> {
        nobody_asks()
    }

    fn unenroll(&self, _: &Cgroup<'_>) -> Result<bool> {
        nobody_asks()
    }

    fn enrolled(&self) -> Result<Vec<Enrolment>> {
        nobody_asks()
    }
}

fn nobody_asks<T>() -> Result<T> {
    Err(exit::failed("metrics need only totals"))
}

fn spread(histogram: &mut Histogram, from: usize, counts: &[u64]) {
    histogram.bucket[from..from + counts.len()].copy_from_slice(counts);
}

/// What the command prints on a machine with that module.
fn printed() -> String {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("proc/sys/kernel/osrelease", "6.12.118+deb13-amd64\n"),
        ("sys/module/asyncfork/version", "0.1.0\n"),
        ("sys/module/asyncfork/parameters/enabled", "Y\n"),
        ("sys/module/asyncfork/parameters/max_sessions", "1024\n"),
        ("boot/vmlinuz-6.12.118+deb13-amd64", ""),
        (
            "lib/modules/6.12.118+deb13-amd64/updates/dkms/asyncfork.ko",
            "ELF",
        ),
        ("etc/modules-load.d/asyncfork.conf", "asyncfork\n"),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let ctx = Ctx {
        host: Host::with_tools(root.path().into(), Box::new(NoTools)),
        out: Out::new(Box::new(io::sink()), false, "metrics"),
        device: "/dev/asyncfork".into(),
        connect: Box::new(|_, _| Ok(Box::new(Busy))),
        sample: Box::new(|_| Err(exit::cannot_tell("not measured here"))),
    };
    metrics::text(&ctx).unwrap()
}

/// Labels of a series, each with its values.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// All series of a text by name.
fn series(text: &str) -> BTreeMap<String, Labels> {
    let mut all = BTreeMap::<String, Labels>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (selector, _) = line.rsplit_once(' ').unwrap();
        let query = Query::read(selector).unwrap();
        let [one] = &query.selectors[..] else {
            panic!("{line}")
        };
        let labels = all.entry(one.metric.clone()).or_default();
        for matcher in &one.matchers {
            let values = labels.entry(matcher.label.clone()).or_default();
            values.insert(matcher.value.clone());
        }
    }
    all
}

struct Matcher {
    label: String,
    /// Whether the value is a regular expression.
    regex: bool,
    value: String,
}

struct Selector {
    metric: String,
    matchers: Vec<Matcher>,
}

/// The names in a query: enough of PromQL for that.
#[derive(Default)]
struct Query {
    selectors: Vec<Selector>,
    /// Those of `by (...)` and the like.
    grouping: Vec<String>,
}

impl Query {
    fn read(text: &str) -> Result<Self, String> {
        const GROUPING: &[&str] = &[
            "by",
            "without",
            "on",
            "ignoring",
            "group_left",
            "group_right",
        ];
        const WORDS: &[&str] = &["and", "or", "unless", "offset", "bool", "inf", "nan"];
        let mut query = Self::default();
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            if first == '[' {
                rest = after(rest, ']')?.1;
            } else if first.is_ascii_digit() {
                rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
            } else if !is_name(first) {
                if first == '{' || first == '"' {
                    return Err(format!("no name before {rest}"));
                }
                rest = &rest[first.len_utf8()..];
            } else {
                let (name, more) = word(rest);
                rest = more.trim_start();
                let called = rest.starts_with('(');
                if GROUPING.contains(&name) {
                    if called {
                        let (labels, more) = after(&rest[1..], ')')?;
                        rest = more;
                        let labels = labels.split(',').map(str::trim);
                        let labels = labels.filter(|l| !l.is_empty()).map(str::to_owned);
                        query.grouping.extend(labels);
                    }
                } else if !called && !WORDS.contains(&name) && !GROUPING.contains(&word(rest).0) {
                    let mut matchers = Vec::new();
                    if let Some(more) = rest.strip_prefix('{') {
                        (matchers, rest) = matchers_of(more)?;
                    }
                    query.selectors.push(Selector {
                        metric: name.into(),
                        matchers,
                    });
                }
            }
            rest = rest.trim_start();
        }
        Ok(query)
    }

    /// What is named that is not exported.
    fn unknown(&self, exported: &BTreeMap<String, Labels>) -> Vec<String> {
        let mut unknown = Vec::new();
        let mut any: BTreeSet<&str> = TARGET.iter().copied().collect();
        for selector in &self.selectors {
            let metric = &selector.metric;
            let own = exported.get(metric);
            let foreign = FOREIGN.iter().find(|(name, _)| name == metric);
            let labels: Vec<&str> = match (own, foreign) {
                (Some(labels), _) => labels.keys().map(String::as_str).collect(),
                (None, Some((_, labels))) => labels.to_vec(),
                (None, None) => {
                    unknown.push(metric.clone());
                    continue;
                }
            };
            any.extend(&labels);
            for Matcher {
                label,
                regex,
                value,
            } in &selector.matchers
            {
                if !labels.contains(&label.as_str()) && !TARGET.contains(&label.as_str()) {
                    unknown.push(format!("{metric}{{{label}}}"));
                }
                let Some(values) = own.and_then(|labels| labels.get(label)) else {
                    continue;
                };
                let named: Vec<_> = match regex {
                    true => value.split('|').collect(),
                    false => vec![value.as_str()],
                };
                for value in named.into_iter().filter(|value| !values.contains(*value)) {
                    unknown.push(format!("{metric}{{{label}=\"{value}\"}}"));
                }
            }
        }
        let labels = self.grouping.iter().filter(|l| !any.contains(l.as_str()));
        unknown.extend(labels.cloned());
        unknown
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// The name that a text begins with.
fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()))
}

fn after(text: &str, end: char) -> Result<(&str, &str), String> {
    text.split_once(end)
        .ok_or_else(|| format!("no {end} in {text}"))
}

/// The matchers of a selector, and what comes after it.
fn matchers_of(text: &str) -> Result<(Vec<Matcher>, &str), String> {
    let mut matchers = Vec::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((matchers, rest));
        }
        let (label, more) = word(rest);
        let (operator, more) = after(more, '"')?;
        let (value, more) = after(more, '"')?;
        let regex = match operator.trim() {
            "=" | "!=" => false,
            "=~" | "!~" => true,
            _ => return Err(format!("no matcher: {rest}")),
        };
        matchers.push(Matcher {
            label: label.into(),
            regex,
            value: value.into(),
        });
        rest = more.trim_start().trim_start_matches(',').trim_start();
    }
}

/// An alert of rules.yml.
struct Alert {
    name: String,
    text: String,
}

impl Alert {
    fn all(rules: &str) -> Vec<Self> {
        let alerts = rules.split("- alert: ").skip(1);
        let alert = |text: &str| Self {
            name: text.lines().next().unwrap().into(),
            text: text.into(),
        };
        alerts.map(alert).collect()
    }

    /// What a key says, in its line or in those below it.
    fn get(&self, key: &str) -> Option<String> {
        let mut lines = self.text.lines();
        let depth = |line: &str| line.len() - line.trim_start().len();
        let (line, value) = lines.find_map(|line| {
            let value = line.trim_start().strip_prefix(key)?.strip_prefix(':')?;
            Some((line, value.trim()))
        })?;
        if !["|", ">-"].contains(&value) {
            return Some(value.into());
        }
        let below = lines.take_while(|l| depth(l) > depth(line));
        Some(below.map(str::trim).collect::<Vec<_>>().join(" "))
    }
}

/// The values of a key, wherever in a document it is.
fn all_of<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key));
            map.values().for_each(|value| all_of(value, key, found));
        }
        Value::Array(list) => list.iter().for_each(|value| all_of(value, key, found)),
        _ => {}
    }
}

/// The names between double braces: labels of a text for people.
fn templates<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let parts = text.split("{{").skip(1);
    let names = parts.filter_map(|part| part.split_once("}}")?.0.trim().strip_prefix(before));
    names.map(|name| word(name).0).collect()
}

/// Fails with all that a query, or a text beside it by its labels, names and nobody
/// exports.
fn expect_known(what: &str, expr: &str, labels: &[&str], exported: &BTreeMap<String, Labels>) {
    let mut query = Query::read(expr).unwrap_or_else(|e| panic!("{what}: {e}: {expr}"));
    assert!(!query.selectors.is_empty(), "{what}: no metric: {expr}");
    query.grouping.extend(labels.iter().map(|&l| l.into()));
    let unknown = query.unknown(exported);
    assert!(
        unknown.is_empty(),
        "{what}: not exported: {unknown:?}: {expr}"
    );
}

#[test]
fn what_is_printed_is_the_file_that_prometheus_is_tried_with() {
    golden::expect("metrics.prom", &printed());
}

#[test]
fn every_metric_has_a_type_a_help_and_a_line_in_the_reference() {
    let text = printed();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let reference = fs::read_to_string(reference).unwrap();
    for kind in metrics::ALL {
        let name = kind.name;
        for line in [
            format!("# HELP {name} {}", kind.help),
            format!("# TYPE {name} {}", kind.kind),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
        assert!(!kind.help.is_empty(), "{name}");
        assert!(
            reference.contains(&format!("| `{name}` | {} |", kind.kind)),
            "{name}"
        );
    }
    for name in series(&text).keys() {
        let of = |end: &str| name.strip_suffix(end);
        let histogram = of("_bucket").or(of("_sum")).or(of("_count"));
        let listed = metrics::ALL.iter().any(|k| match k.kind {
            "histogram" => Some(k.name) == histogram,
            _ => k.name == name,
        });
        assert!(listed, "{name}");
    }
}

#[test]
fn every_query_of_the_dashboard_names_what_is_exported() {
    let exported = series(&printed());
    let dashboard: Value = serde_json::from_str(&packaged("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert_eq!(panels.len(), 6);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            let expr = target["expr"].as_str().unwrap();
            expect_known(title, expr, &templates(legend, ""), &exported);
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            let query = variable["query"]["query"].as_str().unwrap();
            let inside = query.strip_prefix("label_values(").unwrap();
            let (metric, label) = inside.strip_suffix(')').unwrap().split_once(", ").unwrap();
            expect_known("variable", metric, &[label], &exported);
        }
    }
}

#[test]
fn the_dashboard_takes_any_data_source_and_its_texts_are_whole() {
    let dashboard: Value = serde_json::from_str(&packaged("dashboard.json")).unwrap();
    // The last of the classic model: Grafana 12 writes it, 13 imports it.
    assert_eq!(dashboard["schemaVersion"], 42);
    assert!(dashboard["id"].is_null());
    let variables = &dashboard["templating"]["list"];
    assert_eq!(variables[0]["type"], "datasource");
    let mut sources = Vec::new();
    all_of(&dashboard["panels"], "datasource", &mut sources);
    all_of(variables, "datasource", &mut sources);
    for source in sources {
        assert_eq!(source["uid"], "${datasource}");
    }
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()));
        assert!(panel["description"].as_str().unwrap().ends_with('.'));
        // Panels of one id each, and queries of one letter each.
        let targets = panel["targets"].as_array().unwrap();
        let letters: BTreeSet<_> = targets.iter().map(|t| t["refId"].as_str()).collect();
        assert_eq!(letters.len(), targets.len(), "{}", panel["title"]);
    }
}

#[test]
fn every_alert_names_what_is_exported_and_says_what_to_do() {
    let exported = series(&printed());
    let rules = packaged("rules.yml");
    let alerts = Alert::all(&rules);
    assert_eq!(
        alerts.len(),
        rules
            .lines()
            .filter(|l| l.trim_start().starts_with("expr:"))
            .count()
    );
    for alert in &alerts {
        let name = &alert.name;
        let get = |key| {
            alert
                .get(key)
                .unwrap_or_else(|| panic!("{name} has no {key}"))
        };
        let labels = templates(&alert.text, "$labels.");
        expect_known(name, &get("expr"), &labels, &exported);
        assert!(!get("for").is_empty(), "{name}");
        assert!(
            ["critical", "warning"].contains(&get("severity").as_str()),
            "{name}"
        );
        assert!(get("summary").contains("$labels.instance"), "{name}");
        assert!(get("description").contains("asyncfork doctor"), "{name}");
    }
}

#[test]
fn every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() {
    let exported = series(&printed());
    let tests = packaged("rules_test.yml");
    let input = tests
        .lines()
        .filter_map(|l| l.trim_start().strip_prefix("- series: "));
    let mut series = 0;
    for line in input {
        series += 1;
        expect_known("rules_test.yml", line.trim_matches('\''), &[], &exported);
    }
    assert_eq!(series, tests.matches("values: ").count());
    for Alert { name, .. } in Alert::all(&packaged("rules.yml")) {
        let asked = format!("- expr: 'ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}'");
        let fires = |expr: &str| !expr.contains("exp_samples: []");
        // Whole tests, in which it fires at some time, or at none.
        let of_it: Vec<Vec<&str>> = tests
            .split("  - name: ")
            .map(|test| test.split(&asked).skip(1).collect())
            .filter(|checks: &Vec<_>| !checks.is_empty())
            .map(|checks| {
                checks
                    .into_iter()
                    .map(|check| check.split("- expr: ").next().unwrap())
                    .collect()
            })
            .collect();
        assert!(
            of_it.iter().any(|test| test.iter().any(|c| fires(c))),
            "{name}"
        );
        assert!(
            of_it.iter().any(|test| !test.iter().any(|c| fires(c))),
            "{name}"
        );
    }
}

#[test]
fn what_is_not_exported_is_found() {
    let exported = series(&printed());
    let unknown = |expr: &str| Query::read(expr).unwrap().unknown(&exported);
    for (expr, named) in [
        ("rate(asyncfork_fork_total[5m])", "asyncfork_fork_total"),
        ("asyncfrok_sessions", "asyncfrok_sessions"),
        ("rate(asyncfork_park_seconds[5m])", "asyncfork_park_seconds"),
        (
            "asyncfork_forks_total{reason=\"limit\"}",
            "asyncfork_forks_total{reason}",
        ),
        (
            "asyncfork_state{state=\"gone\"} == 1",
            "asyncfork_state{state=\"gone\"}",
        ),
        (
            "asyncfork_stock_forks_total{reason!~\"min_rss|notifyer\"}",
            "asyncfork_stock_forks_total{reason=\"notifyer\"}",
        ),
        ("sum by (sides) (asyncfork_pulled_chunks_total)", "sides"),
        (
            "asyncfork_sessions > on (instance, outcome) asyncfork_sessions_limit",
            "outcome",
        ),
    ] {
        assert_eq!(unknown(expr), [named], "{expr}");
    }
    for expr in [
        "histogram_quantile(0.99, sum by (instance, le) (rate(asyncfork_park_seconds_bucket{job=\"x\"}[5m]))) > 1e-3",
        "asyncfork_sessions offset 5m and on (job) asyncfork_state{state=\"on\"} == bool 1",
        "time() - node_textfile_mtime_seconds{file=~\".*\"}",
    ] {
        assert_eq!(unknown(expr), <[&str; 0]>::default(), "{expr}");
    }
    for wrong in [
        "{state=\"on\"}",
        "asyncfork_state{state",
        "asyncfork_state[5m",
    ] {
        assert!(Query::read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_service_runs_the_command_and_the_timer_the_service() {
    let service = packaged("asyncfork-metrics.service");
    let get = |key: &str| {
        let values = service.lines().filter_map(|l| l.strip_prefix(key));
        values.collect::<Vec<_>>()
    };
    let [command] = get("ExecStart=")[..] else {
        panic!("{service}")
    };
    let cli = Cli::try_parse_from(command.split(' ')).unwrap();
    let Command::Metrics(args) = cli.command else {
        panic!("{command}")
    };
    let directory = "/var/lib/prometheus/node-exporter";
    let file = format!("{directory}/asyncfork.prom");
    assert_eq!(args.textfile.as_deref(), Some(Path::new(&file)));
    assert_eq!(get("ConditionPathIsDirectory="), [directory]);
    assert_eq!(get("ReadWritePaths="), [format!("-{directory}")]);
    // They would hide what next_boot_ready is told from, or the device.
    for hides in ["ProtectKernelModules=", "ProcSubset=", "PrivateDevices="] {
        assert!(get(hides).is_empty(), "{hides}");
    }
    let timer = packaged("asyncfork-metrics.timer");
    for line in ["OnCalendar=*:*:0/15", "WantedBy=timers.target"] {
        assert!(timer.lines().any(|l| l == line), "{line}");
    }
}
