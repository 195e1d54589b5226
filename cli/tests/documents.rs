// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the documents for people name is there: findings, commands, options, metrics, alerts, settings, parameters, and
//! what their links lead to. `docs/reference.md` is made from the program; a unit test compares it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use asyncfork_cli::cli::Cli;
use asyncfork_cli::commands::metrics;
use asyncfork_cli::doctor::finding;
use asyncfork_cli::reference::PARAMETERS;
use asyncfork_settings::SETTINGS;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

/// Those for who runs it: what they name is compared with the program.
const GUIDES: &[&str] = &[
    "docs/operating.md",
    "docs/rollout.md",
    "docs/security.md",
    "docs/troubleshooting.md",
];
/// Prometheus' own labels.
const TARGET: &[&str] = &["instance", "job"];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(checkout().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A document, taken apart.
#[derive(Default)]
struct Document {
    name: String,
    headings: Vec<String>,
    /// Lines of blocks, and what is between backticks.
    code: Vec<String>,
    /// All the rest.
    prose: String,
}

impl Document {
    fn parse(name: &str, text: &str) -> Self {
        let mut document = Self {
            name: name.into(),
            ..Self::default()
        };
        let mut is_block = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                is_block = !is_block;
            } else if is_block {
                document.code.push(line.into());
            } else {
                if line.starts_with('#') {
                    let heading = line.trim_start_matches('#').trim();
                    document.headings.push(heading.into());
                }
                for (i, part) in line.split('`').enumerate() {
                    if i % 2 == 0 {
                        document.prose.push_str(part);
                    } else {
                        document.code.push(part.into());
                    }
                }
                document.prose.push('\n');
            }
        }
        assert!(!is_block, "{name}: a block of code has no end");
        document
    }

    /// All but results.
    fn all() -> Vec<Self> {
        let mut names = vec!["README.md", "CONTRIBUTING.md", "shim/README.md"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        for entry in fs::read_dir(checkout().join("docs")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                names.push(format!("docs/{name}"));
            }
        }
        names.sort();
        names.iter().map(|n| Self::parse(n, &read(n))).collect()
    }

    fn links(&self) -> impl Iterator<Item = &str> {
        let parts = self.prose.split("](").skip(1);
        parts.filter_map(|part| Some(part.split_once(')')?.0))
    }

    /// Links that lead nowhere.
    fn broken(&self) -> Vec<&str> {
        let path = checkout().join(&self.name);
        let is_broken = |link: &&str| {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.is_empty() {
                return !self.has_anchor(anchor);
            }
            let to = path.parent().unwrap().join(file);
            if anchor.is_empty() {
                return !to.exists();
            }
            let text = fs::read_to_string(&to);
            !text.is_ok_and(|text| Self::parse(file, &text).has_anchor(anchor))
        };
        let own = self.links().filter(|link| !link.contains("://"));
        own.filter(is_broken).collect()
    }

    fn has_anchor(&self, anchor: &str) -> bool {
        self.headings.iter().any(|heading| slug(heading) == anchor)
    }

    /// The lines of code that run the command, each as its words, and what is wrong with it.
    fn commands(&self) -> Vec<(Vec<String>, Option<String>)> {
        let lines = self.code.iter().flat_map(|code| commands_in(code));
        lines
            .map(|words| {
                let wrong = wrong_with(&words);
                (words, wrong)
            })
            .collect()
    }
}

/// The anchor of a heading, as GitHub makes it.
fn slug(heading: &str) -> String {
    let chars = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ => c.is_alphanumeric().then(|| c.to_ascii_lowercase()),
    });
    chars.collect()
}

fn commands_in(code: &str) -> Vec<Vec<String>> {
    let code = code.split(" #").next().unwrap_or_default();
    let simple = code.split([';', '|', '&']).filter_map(|part| {
        let words = shlex::split(part)?;
        let words: Vec<_> = words
            .into_iter()
            .skip_while(|word| word == "sudo")
            .take_while(|word| !word.starts_with('>'))
            .collect();
        let (program, arguments) = words.split_first()?;
        let is_ours = program == "asyncfork" || program == "target/release/asyncfork";
        (is_ours && !arguments.is_empty()).then_some(words)
    });
    simple.collect()
}

/// What the command would say to it. Words of capitals stand for something, as do the shell's; a command is named
/// without its arguments, an option without its value.
fn wrong_with(words: &[String]) -> Option<String> {
    if let [_, name] = words {
        if Cli::command().find_subcommand(name).is_some() {
            return None;
        }
    }
    let stands_for =
        |word: &str| word.starts_with('$') || word.chars().all(|c| c.is_ascii_uppercase());
    let mut words: Vec<_> = words
        .iter()
        .map(|word| if stands_for(word) { "1" } else { word })
        .collect();
    let error = Cli::try_parse_from(&words).err()?;
    words.push("1");
    let is_named = words[words.len() - 2].starts_with("--") && Cli::try_parse_from(&words).is_ok();
    let asked = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
    (!is_named && !asked.contains(&error.kind())).then(|| error.to_string())
}

/// All words of a text that begin so.
fn words<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(move |word| word.starts_with(start))
}

/// Metrics by name, with the values of their labels: the golden file, which tests/metrics.rs compares with the program.
fn exported() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut all = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
    for kind in metrics::ALL {
        all.entry(kind.name.to_owned()).or_default();
    }
    let text = read("cli/tests/golden/metrics.prom");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = all.entry(name.to_owned()).or_default();
        for (label, _, value) in selectors(line).into_iter().flat_map(|(_, of)| of) {
            labels
                .entry(label.to_owned())
                .or_default()
                .insert(value.to_owned());
        }
    }
    all
}

/// Label, operator, value.
type Matcher<'a> = (&'a str, &'a str, &'a str);

/// The metrics with a selector: `name{label="value", ...}`.
fn selectors(text: &str) -> Vec<(&str, Vec<Matcher<'_>>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices('{') {
        let before = &text[..at];
        let start = before
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .map_or(0, |i| i + 1);
        let Some((inside, _)) = text[at + 1..].split_once('}') else {
            continue;
        };
        let matchers = inside.split(',').filter_map(|matcher| {
            let (left, value) = matcher.trim().strip_suffix('"')?.split_once('"')?;
            let name = left.trim_end_matches(['=', '!', '~']);
            Some((name, &left[name.len()..], value))
        });
        found.push((&before[start..], matchers.collect()));
    }
    found
}

/// What is named of metrics, and not exported.
fn unknown_metrics(text: &str) -> Vec<String> {
    let exported = exported();
    let tracepoints = read("kmod/trace.h");
    let is_tracepoint = |name: &&str| tracepoints.contains(&format!("({name},"));
    let mut unknown: Vec<_> = words(text, "asyncfork_")
        .filter(|name| !exported.contains_key(*name) && !is_tracepoint(name))
        .map(str::to_owned)
        .collect();
    for (name, matchers) in selectors(text) {
        let Some(labels) = exported.get(name) else {
            continue;
        };
        for (label, operator, value) in matchers {
            let values: Vec<_> = match operator {
                "=~" | "!~" => value.split('|').collect(),
                _ => vec![value],
            };
            let is_there = |value: &&str| labels.get(label).is_some_and(|of| of.contains(*value));
            if !TARGET.contains(&label) && !values.iter().all(is_there) {
                unknown.push(format!("{name}{{{label}{operator}\"{value}\"}}"));
            }
        }
    }
    unknown
}

#[test]
fn troubleshooting_has_one_entry_for_each_finding() {
    let text = read("docs/troubleshooting.md");
    let mut found = Vec::new();
    for entry in text.split("\n#### `").skip(1) {
        let (id, entry) = entry.split_once("`\n").unwrap();
        let said = entry.split("\n#").next().unwrap().trim();
        assert!(!said.is_empty(), "{id}");
        found.push(id);
    }
    let mut wanted: Vec<_> = finding::ALL.iter().map(|kind| kind.id).collect();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted, "docs/troubleshooting.md, finding.rs");
}

#[test]
fn every_command_in_the_documents_is_one() {
    let mut run = 0;
    for document in Document::all() {
        if document.name == "docs/reference.md" {
            continue;
        }
        for (words, wrong) in document.commands() {
            run += 1;
            assert_eq!(wrong, None, "{}: {}", document.name, words.join(" "));
        }
    }
    assert!(run > 50, "{run}");
}

#[test]
fn every_option_in_the_guides_is_one_of_the_command() {
    let mut root = Cli::command();
    root.build();
    let commands = root.get_subcommands().flat_map(|c| c.get_arguments());
    let known: BTreeSet<_> = commands
        .filter_map(|argument| argument.get_long())
        .collect();
    for name in GUIDES {
        for code in Document::parse(name, &read(name)).code {
            if let Some(option) = code.strip_prefix("--") {
                let option = option.split([' ', '=']).next().unwrap();
                assert!(known.contains(option), "{name}: {code}");
            }
        }
    }
}

#[test]
fn every_metric_and_alert_in_the_guides_is_there() {
    let rules = read("packaging/metrics/rules.yml");
    for name in GUIDES {
        let text = read(name);
        assert_eq!(unknown_metrics(&text), <[&str; 0]>::default(), "{name}");
        for alert in words(&text, "Asyncfork").filter(|word| *word != "Asyncfork") {
            assert!(
                rules.contains(&format!("alert: {alert}\n")),
                "{name}: {alert}"
            );
        }
    }
    // The gates of a rollout are of metrics.
    let rollout = read("docs/rollout.md");
    assert!(words(&rollout, "asyncfork_").count() > 10);
    assert!(selectors(&rollout).len() > 5);
}

#[test]
fn every_setting_and_parameter_in_the_guides_is_there() {
    for name in GUIDES {
        let text = read(name);
        for setting in words(&text, "ASYNCFORK_") {
            assert!(
                SETTINGS.iter().any(|s| s.name() == setting),
                "{name}: {setting}"
            );
        }
        let places = text.split("/sys/module/asyncfork/parameters/").skip(1);
        let options = text.split("asyncfork.").skip(1);
        let options =
            options.filter(|rest| rest.contains('=') && !rest.starts_with(['c', 'h', 'k']));
        for place in places.chain(options) {
            let parameter = words(place, "").next().unwrap();
            assert!(
                PARAMETERS.iter().any(|p| p.name == parameter),
                "{name}: {parameter}"
            );
        }
    }
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let documents = Document::all();
    let broken = documents.iter().flat_map(|document| {
        let broken = document.broken().into_iter();
        broken.map(|link| format!("{}: {link}", document.name))
    });
    assert_eq!(broken.collect::<Vec<_>>(), <[&str; 0]>::default());
}

#[test]
fn what_is_not_there_is_found() {
    let text = "\
# A `b.c-d`
`asyncfork off --persits`, `asyncfork explain PID`, `x && sudo asyncfork enrol --self`, `asyncfork enroll`
```sh
target/release/asyncfork metrics --textfile x.prom >y # asyncfork nothing
asyncfork doctor --unit
asyncfork doctor --units
```
[a](#a-bc-d) [b](#a-b) [c](documents.rs) [d](nothing.md#a) [e](https://e.org/#f) `[f](g)`
";
    let document = Document::parse("cli/tests/x.md", text);
    assert_eq!(document.headings, ["A `b.c-d`"]);
    assert_eq!(document.broken(), ["#a-b", "nothing.md#a"]);
    assert_eq!(document.links().count(), 5);
    let commands = document.commands();
    let wrong = commands
        .iter()
        .map(|(words, wrong)| (words.join(" "), wrong.is_some()));
    let wanted = [
        ("asyncfork off --persits", true),
        ("asyncfork explain PID", false),
        ("asyncfork enrol --self", true),
        ("asyncfork enroll", false),
        ("target/release/asyncfork metrics --textfile x.prom", false),
        ("asyncfork doctor --unit", false),
        ("asyncfork doctor --units", true),
    ];
    assert_eq!(
        wrong.collect::<Vec<_>>(),
        wanted.map(|(words, wrong)| (words.to_owned(), wrong))
    );
    for (text, unknown) in [
        ("asyncfork_fork_total > 0", "asyncfork_fork_total"),
        (
            "asyncfork_state{state=\"gone\"}",
            "asyncfork_state{state=\"gone\"}",
        ),
        (
            "asyncfork_stock_forks_total{reason!~\"min_rss|notifyer\"}",
            "asyncfork_stock_forks_total{reason!~\"min_rss|notifyer\"}",
        ),
        (
            "asyncfork_sessions{outcome=\"async\"}",
            "asyncfork_sessions{outcome=\"async\"}",
        ),
    ] {
        assert_eq!(unknown_metrics(text), [unknown], "{text}");
    }
    let known = "rate(asyncfork_park_seconds_bucket{instance=\"a\"}[5m]), asyncfork_park_seconds, asyncfork_begin";
    assert_eq!(unknown_metrics(known), <[&str; 0]>::default());
}
