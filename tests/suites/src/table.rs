// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::compare::{Counts, Difference};
use crate::module::Forks;
use crate::results::{Outcome, Record};

const HEAD: &str = "\
# Suites that nobody here wrote

Each program ran with the kernel's own forks and with every fork armed (`ASYNCFORK_MIN_RSS=0`, `park_partial=1`), in a VM with the stock
Debian kernel; each case has to end the same. Made from the results of `scripts/suites` by `asyncfork-suites table`.

Cases: passed / failed / skipped. Async: forks of the armed runs that parked memory, of all that were armed. Chunks: parked pieces of 2 MiB,
and by whom they were pulled; the rest was given back, because the child had died (\"aborted\") or because the fork itself had failed
(\"failed\", and \"aborted\" if it had parked by then). \"Flaky\": not more than twice as often as with stock forks. \"Not run\": nothing
was parked, or nothing passes with stock forks, so the run shows nothing; or there is no run that counts. A row is of the last boot that
ran the program, but a defect stays as long as the module is the same one, and so do leaks and complaints in the kernel's log.
Modules are called by the start of their `srcversion` (`modinfo`), in a row where it is not that of the newest boot.
";

/// The Markdown file.
pub fn table(records: &[Record]) -> String {
    let mut out = HEAD.to_owned();
    let mut groups: BTreeMap<(Vec<u32>, &str, &str), Vec<&Record>> = BTreeMap::new();
    for record in records {
        groups
            .entry((series_key(&record.series), &record.series, &record.suite))
            .or_default()
            .push(record);
    }
    for ((_, series, suite), mut group) in groups {
        group.sort_by_key(|r| !is_program(r));
        let newest = group.iter().max_by_key(|r| &r.date).expect("not empty");
        let oldest = group.iter().map(|r| &r.date).min().expect("not empty");
        let bad = |r: &Record| matches!(r.outcome, Outcome::Defect | Outcome::Broken);
        let failed = group.iter().filter(|r| bad(r)).count();
        let is = |r: &Record, o| is_program(r) && r.outcome == o;
        let count = |o| group.iter().filter(|r| is(r, o)).count();
        let sum = |f: fn(&Forks) -> u64| group.iter().map(|r| f(&r.forks)).sum::<u64>();
        let _ = write!(
            out,
            "\n## {suite} on {series}\n\n\
             {}, {oldest} to {} UTC, module {}: {} passed, {} failed, {} not run; {} async forks, {} chunks parked.\n\n\
             | program | stock | armed | async | chunks | by child, parent, others | verdict |\n\
             |---|---|---|---|---|---|---|\n",
            newest.release,
            newest.date,
            short(&newest.module),
            count(Outcome::Passed),
            failed,
            count(Outcome::NotRun),
            sum(|f| f.r#async),
            sum(|f| f.parked),
        );
        for record in &group {
            let _ = writeln!(out, "{}", row(record, &newest.module));
        }
    }
    out
}

/// Not so the kernel's memory and its log.
fn is_program(r: &Record) -> bool {
    !r.program.starts_with('(')
}

/// A `srcversion` as people call it.
fn short(module: &str) -> &str {
    module.get(..8).unwrap_or(module)
}

/// `module`: that of the newest boot.
fn row(r: &Record, module: &str) -> String {
    let counts = |c: &Counts| format!("{} / {} / {}", c.pass, c.fail, c.skip);
    let f = &r.forks;
    let mut verdict = r.outcome.word().to_owned();
    let mut remarks = Vec::new();
    if !r.note.is_empty() {
        remarks.push(r.note.clone());
    }
    let given_back = [
        (f.aborted, "aborted"),
        (f.failed, "failed"),
        (f.killed, "killed"),
    ];
    let given_back = given_back.iter().filter(|(n, _)| *n > 0);
    remarks.extend(given_back.map(|(n, what)| format!("{n} {what}")));
    let tell = |d: &Difference| {
        format!(
            "{}: stock {}, armed {}",
            d.case,
            d.stock.join(" "),
            d.armed.join(" ")
        )
    };
    remarks.extend(r.differences.iter().filter(|d| d.defect).map(tell));
    // The rest is in the results file.
    let mut flaky = r.differences.iter().filter(|d| !d.defect);
    if let Some(first) = flaky.next() {
        let more = match flaky.count() {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        remarks.push(format!("flaky: {}{more}", tell(first)));
    }
    if r.module != module {
        remarks.push(format!("module {}", short(&r.module)));
    }
    if !remarks.is_empty() {
        let _ = write!(verdict, ": {}", remarks.join("; "));
    }
    let verdict = verdict.replace('|', "\\|").replace('\n', " ");
    if !is_program(r) {
        return format!("| {} | | | | | | {verdict} |", r.program);
    }
    let stock = match r.stock_forks.as_str() {
        "" => String::new(),
        why => format!(" ({why})"),
    };
    format!(
        "| {} | {} | {} | {} of {}{stock} | {} | {}, {}, {} | {verdict} |",
        r.program,
        counts(&r.stock),
        counts(&r.armed),
        f.r#async,
        f.r#async + f.stock + f.failed,
        f.parked,
        f.by_child,
        f.by_parent,
        f.by_helper + f.by_other
    )
}

/// 6.2 comes before 6.12, names last.
fn series_key(series: &str) -> Vec<u32> {
    let numbers = series.split('.').map(|n| n.parse().unwrap_or(u32::MAX));
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::record;
    use crate::results::LEAKS;

    #[test]
    fn kernels_are_in_the_order_of_their_versions() {
        let rows = ["debug", "7.2", "6.12", "6.1"].map(|series| record(series, "a"));
        let table = table(&rows);
        let heads: Vec<&str> = table.lines().filter(|l| l.starts_with("## ")).collect();
        let series: Vec<&str> = heads
            .iter()
            .filter_map(|h| h.split(" on ").nth(1))
            .collect();
        assert_eq!(series, ["6.1", "6.12", "7.2", "debug"]);
    }

    #[test]
    fn a_row_tells_the_difference() {
        let mut r = record("6.12", "cow");
        r.outcome = Outcome::Defect;
        r.differences = vec![Difference {
            case: "a|b".into(),
            stock: vec!["pass".into()],
            armed: vec!["fail".into()],
            defect: true,
        }];
        let row = row(&r, &r.module);
        assert!(
            row.ends_with("| DEFECT: a\\|b: stock pass, armed fail |"),
            "{row}"
        );
        assert_eq!(row.replace("\\|", "").matches('|').count(), 8);
    }

    #[test]
    fn a_row_tells_what_became_of_forks_that_gave_memory_back() {
        let mut r = record("6.12", "malloc");
        r.module = "0123ABCD4567".into();
        r.note = "forks added".into();
        r.forks = Forks {
            r#async: 80,
            failed: 20,
            aborted: 21,
            ..Forks::default()
        };
        let row = row(&r, "another");
        assert!(row.contains("| 80 of 100 |"), "{row}");
        let verdict = "| passed: forks added; 21 aborted; 20 failed; module 0123ABCD |";
        assert!(row.ends_with(verdict), "{row}");
    }

    #[test]
    fn a_leak_is_a_failure_but_its_absence_is_no_passed_program() {
        let head = |outcome| {
            let mut leaks = record("6.12", LEAKS);
            leaks.outcome = outcome;
            table(&[leaks, record("6.12", "cow")])
        };
        assert!(head(Outcome::Passed).contains(": 1 passed, 0 failed, 0 not run;"));
        assert!(head(Outcome::Defect).contains(": 1 passed, 1 failed, 0 not run;"));
        let last = head(Outcome::Passed);
        assert!(last.ends_with("| (leaks) | | | | | | passed |\n"), "{last}");
    }
}
