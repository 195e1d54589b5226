// SPDX-License-Identifier: MIT OR Apache-2.0
//! `docs/reference.md`, made from the program. A test compares the file with it;
//! `ASYNCFORK_REFERENCE=write cargo test -p asyncfork-cli reference` writes it.

use std::fmt::Write as _;

use asyncfork_settings::{Unset, SETTINGS};
use asyncfork_uapi::Reason;
use clap::{Arg, Command, CommandFactory as _};

use crate::cli::Cli;
use crate::commands::{explain, metrics};
use crate::doctor::finding;
use crate::exit;
use crate::module::State;
use crate::out::SCHEMA;

/// A parameter of the module.
#[derive(Debug)]
pub struct Parameter {
    /// Name.
    pub name: &'static str,
    /// Default.
    pub default: &'static str,
    /// Since that ABI.
    pub abi: u32,
    /// May be changed while the module is loaded.
    pub live: bool,
    /// What it is for.
    pub what: &'static str,
}

macro_rules! parameters {
    ($($name:literal $default:literal $abi:literal $live:literal $what:literal)*) => {
        /// All parameters, but those for fault injection in tests.
        pub const PARAMETERS: &[Parameter] = &[$(
            Parameter { name: $name, default: $default, abi: $abi, live: $live, what: $what },
        )*];
    };
}

parameters! {
    "enabled" "Y" 2 true "`N`: every fork is a stock fork, from now on; `asyncfork on`, `asyncfork off`"
    "state" "" 3 false "read only: `on`, `off` (`enabled` is `N`), or `switched off: ` and why"
    "policy" "enrolled" 3 true
        "whose forks may be asynchronous: `armed` (of threads that ask: the library), `enrolled` (also in enrolled cgroups), `all` (also of all large processes)"
    "policy_min_rss" "1073741824" 3 true "with `policy=all`: smaller processes use a stock fork; bytes"
    "max_sessions" "1024" 2 true "asynchronous forks at a time; further ones are stock forks"
    "max_helpers" "8" 2 true "helper threads that one fork may ask for, at most 8"
    "pull_after" "30" 2 true "seconds after which a worker pulls what the child has not; 0: never"
    "park_partial" "N" 2 true "also park chunks that a mapping covers only in part; for tests"
    "allow_untested" "N" 2 false "at load: accept a kernel that the tests have not passed on, if the self-check passes"
}

const HEAD: &str = "\
# Reference

Every command, setting, parameter, metric, finding and exit code. Made from the program, and compared with it by a test of `cli/`:
`ASYNCFORK_REFERENCE=write cargo test -p asyncfork-cli reference` writes it anew. How to run it all: [operating.md](operating.md).
";

/// The text.
pub fn markdown() -> String {
    let mut text = HEAD.to_owned();
    commands(&mut text);
    exit_codes(&mut text);
    json(&mut text);
    findings(&mut text);
    metrics(&mut text);
    settings(&mut text);
    parameters(&mut text);
    reasons(&mut text);
    text
}

fn table(text: &mut String, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(
        &header.iter().map(|&h| h.to_owned()).collect::<Vec<_>>(),
    ));
    text.push_str(&line(&vec!["---".to_owned(); header.len()]));
    for row in rows {
        let cells: Vec<_> = row
            .into_iter()
            .map(|cell| cell.replace('|', "\\|").replace('\n', " "))
            .collect();
        text.push_str(&line(&cells));
    }
}

fn commands(text: &mut String) {
    text.push_str("\n## Commands\n\nOf all commands:\n\n");
    let mut root = Cli::command();
    root.build();
    options(text, root.get_arguments());
    for command in root
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        let _ = write!(text, "\n### asyncfork {}\n\n", command.get_name());
        let about = command
            .get_long_about()
            .or(command.get_about())
            .map(ToString::to_string)
            .unwrap_or_default();
        let _ = write!(text, "{about}\n\n```text\n{}\n```\n", usage(command));
        let own: Vec<_> = command
            .get_arguments()
            .filter(|a| !a.is_global_set())
            .collect();
        if own.iter().any(|a| a.get_id() != "help") {
            text.push('\n');
            options(text, own.into_iter());
        }
    }
}

fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").to_owned()
}

fn options<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let shown = arguments
        .filter(|a| !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version"));
    let rows = shown.map(|argument| {
        let values = argument.get_value_names().unwrap_or_default();
        let takes = argument.get_action().takes_values();
        let value = if takes {
            values
                .iter()
                .map(|v| v.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        } else {
            String::new()
        };
        let long = argument.get_long().map(|long| format!("--{long}"));
        let short = argument.get_short().map(|short| format!("-{short}"));
        let flags: Vec<_> = short.into_iter().chain(long).collect();
        let mut name = flags.join(", ");
        if !value.is_empty() {
            if !name.is_empty() {
                name.push(' ');
            }
            name.push_str(&value);
        }
        let mut what = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let possible = argument.get_possible_values();
        if takes && !possible.is_empty() {
            let names: Vec<_> = possible
                .iter()
                .filter(|p| !p.is_hide_set())
                .map(|p| format!("`{}`", p.get_name()))
                .collect();
            let _ = write!(what, ": {}", names.join(", "));
        }
        if let Some(variable) = argument.get_env() {
            let _ = write!(what, "; also by `{}`", variable.to_string_lossy());
        }
        let defaults = argument.get_default_values().iter().filter(|_| takes);
        let defaults: Vec<_> = defaults.map(|v| v.to_string_lossy().into_owned()).collect();
        let default = if defaults.is_empty() {
            String::new()
        } else {
            format!("`{}`", defaults.join(","))
        };
        vec![format!("`{name}`"), default, what]
    });
    table(text, &["option", "default", "what"], rows);
}

fn exit_codes(text: &mut String) {
    text.push_str("\n## Exit codes\n\n");
    let rows = exit::TABLE
        .iter()
        .map(|(exit, meaning)| vec![exit.code().to_string(), (*meaning).to_owned()]);
    table(text, &["code", "meaning"], rows);
    text.push_str(
        "\nA reader of the output that goes away early (`asyncfork watch | head`) is no error. Errors are one line on standard error, which says what to do.\n",
    );
}

fn json(text: &mut String) {
    let _ = write!(
        text,
        "\n## JSON\n\n`--json` prints one object, `watch --json` one a line. `schema` is {SCHEMA}, and changes if a field goes or means something else; new fields may come. \
         `command` is the command. An error is an object with `error.message` and `error.exit` on standard output, besides the line on standard error. \
         Times are nanoseconds (`_ns`), sizes bytes. Examples: [cli/tests/golden](../cli/tests/golden).\n"
    );
}

fn findings(text: &mut String) {
    text.push_str(
        "\n## Findings\n\nOf `asyncfork doctor`. The ids stay. `error` and `warning` make exit code 1, `note` does not. \
         What could not be looked at is listed as unknown, and makes exit code 3 if nothing was found.\n\n",
    );
    let rows = finding::ALL.iter().map(|kind| {
        vec![
            format!("`{}`", kind.id),
            kind.severity.label().to_owned(),
            kind.meaning.to_owned(),
        ]
    });
    table(text, &["id", "severity", "meaning"], rows);
}

fn metrics(text: &mut String) {
    text.push_str(
        "\n## Metrics\n\nOf `asyncfork metrics`. Counters begin at 0 when the module is loaded; without a module there are only state, build info and next boot.\n\n",
    );
    let rows = metrics::ALL.iter().map(|kind| {
        vec![
            format!("`{}`", kind.name),
            kind.kind.to_owned(),
            kind.labels.to_owned(),
            kind.help.to_owned(),
        ]
    });
    table(text, &["name", "type", "labels", "what"], rows);
    let _ = write!(
        text,
        "\nStates: {}.\n",
        State::LABELS
            .iter()
            .map(|l| format!("`{l}`"))
            .collect::<Vec<_>>()
            .join(", ")
    );
}

fn settings(text: &mut String) {
    text.push_str("\n## Settings of the library\n\nIn the environment of the program, read once when it starts. All are optional; a bad value is reported once and ignored.\n\n");
    let rows = SETTINGS.iter().map(|setting| {
        let default = match setting.default {
            Unset::Value(value) => format!("`{value}`"),
            Unset::Words(words) => words.to_owned(),
        };
        vec![
            format!("`{}`", setting.name()),
            default,
            setting.accepts.to_owned(),
            setting.help.to_owned(),
        ]
    });
    table(text, &["name", "default", "accepts", "what"], rows);
}

fn parameters(text: &mut String) {
    text.push_str("\n## Parameters of the module\n\nUnder `/sys/module/asyncfork/parameters`, at load as `modprobe asyncfork NAME=VALUE`, or on the kernel command line as `asyncfork.NAME=VALUE`.\n\n");
    let rows = PARAMETERS.iter().map(|p| {
        let default = if p.default.is_empty() {
            String::new()
        } else {
            format!("`{}`", p.default)
        };
        let changed = if p.live { "at any time" } else { "no" };
        vec![
            format!("`{}`", p.name),
            default,
            changed.to_owned(),
            p.abi.to_string(),
            p.what.to_owned(),
        ]
    });
    table(
        text,
        &["name", "default", "may be changed", "since ABI", "what"],
        rows,
    );
}

fn reasons(text: &mut String) {
    text.push_str("\n## Reasons for stock forks\n\nIn the library's log, `asyncfork explain`, `asyncfork status` and the metrics.\n\n");
    let rows = Reason::ALL.iter().map(|&reason| {
        vec![
            format!("`{}`", reason.label()),
            reason.explain().to_owned(),
            explain::advice(reason).to_owned(),
        ]
    });
    table(text, &["reason", "meaning", "what to do"], rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn checkout(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
    }

    #[test]
    fn the_reference_is_what_the_program_is() {
        let path = checkout("docs/reference.md");
        let text = markdown();
        if std::env::var_os("ASYNCFORK_REFERENCE").is_some_and(|v| v == "write") {
            fs::write(&path, &text).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        for (number, (found, wanted)) in found.lines().zip(text.lines()).enumerate() {
            assert_eq!(
                found,
                wanted,
                "docs/reference.md:{}; ASYNCFORK_REFERENCE=write writes it",
                number + 1
            );
        }
        assert_eq!(
            found.len(),
            text.len(),
            "docs/reference.md; ASYNCFORK_REFERENCE=write writes it"
        );
    }

    #[test]
    fn it_has_all_of_everything() {
        let text = markdown();
        let row = |name: &str| assert!(text.contains(&format!("| `{name}` |")), "{name}");
        finding::ALL.iter().for_each(|kind| row(kind.id));
        metrics::ALL.iter().for_each(|kind| row(kind.name));
        SETTINGS.iter().for_each(|setting| row(setting.name()));
        PARAMETERS.iter().for_each(|parameter| row(parameter.name));
        for command in Cli::command()
            .get_subcommands()
            .filter(|c| !c.is_hide_set())
        {
            assert!(text.contains(&format!("\n### asyncfork {}\n", command.get_name())));
        }
        for (exit, _) in exit::TABLE {
            assert!(text.contains(&format!("| {} |", exit.code())));
        }
        assert!(!text.contains("measure-fork") && !text.contains("--sysroot"));
    }

    /// Name of each parameter in the module's sources, and whether it can be written.
    fn in_the_module() -> Vec<(String, bool)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(checkout("kmod")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "c") {
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            for line in text.lines().filter(|l| l.starts_with("module_param")) {
                let inside = line.split(['(', ')']).nth(1).unwrap();
                let words: Vec<_> = inside.split(',').map(str::trim).collect();
                found.push((words[0].to_owned(), *words.last().unwrap() == "0644"));
            }
        }
        found.retain(|(name, _)| !name.starts_with("fault_"));
        found.sort();
        found
    }

    #[test]
    fn the_parameters_are_the_modules() {
        let mut listed: Vec<_> = PARAMETERS
            .iter()
            .map(|p| (p.name.to_owned(), p.live))
            .collect();
        listed.sort();
        assert_eq!(listed, in_the_module(), "cli/src/reference.rs, kmod/*.c");
    }

    #[test]
    fn the_metrics_are_those_that_dashboards_and_alerts_use() {
        // The list of the specification.
        let wanted = "asyncfork_build_info asyncfork_state asyncfork_forks_total asyncfork_stock_forks_total asyncfork_sessions \
                      asyncfork_sessions_limit asyncfork_sessions_aborted_total asyncfork_children_killed_total asyncfork_chunks_total \
                      asyncfork_pulled_chunks_total asyncfork_unexpected_slots_total asyncfork_park_seconds \
                      asyncfork_parent_stall_seconds asyncfork_copy_seconds asyncfork_next_boot_ready";
        let mut wanted: Vec<_> = wanted.split_whitespace().collect();
        wanted.sort_unstable();
        let listed: Vec<_> = metrics::ALL.iter().map(|k| k.name).collect();
        assert_eq!(listed, wanted);
    }
}
