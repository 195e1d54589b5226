// SPDX-License-Identifier: MIT OR Apache-2.0
//! The records of runs, and the table made from them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::compare::{Counts, Difference};
use crate::module::Forks;

/// What came of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every case as under stock forks, and memory was parked.
    Passed,
    /// A case that ends so under async forks only, or the module complained.
    Defect,
    /// The framework could not run it.
    Broken,
    /// Nothing was parked, or nothing passes under stock forks.
    NotRun,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Defect => "DEFECT",
            Self::Broken => "BROKEN",
            Self::NotRun => "not run",
        }
    }
}

/// A line of a results file: a program, or what is left after all programs of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The order of the table.
    pub series: String,
    pub release: String,
    /// Day of the run, UTC.
    pub date: String,
    pub suite: String,
    pub program: String,
    pub outcome: Outcome,
    /// Of the first run.
    pub stock: Counts,
    pub armed: Counts,
    /// Runs of each kind.
    pub runs: usize,
    /// Of all armed runs.
    pub forks: Forks,
    /// Why some of them were stock forks all the same.
    #[serde(default)]
    pub stock_forks: String,
    pub differences: Vec<Difference>,
    pub note: String,
    pub seconds: f32,
}

/// The program of the record that says whether the kernel's memory was back to where it began, and the module could be unloaded.
pub const LEAKS: &str = "(leaks)";

/// Appends a record.
///
/// # Errors
/// The file cannot be written.
pub fn append(path: &Path, record: &Record) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut line = serde_json::to_string(record)?;
    line.push('\n');
    file.write_all(line.as_bytes())?;
    Ok(())
}

/// The last record of each program in all results files of a directory.
///
/// # Errors
/// A file that cannot be read.
pub fn read(dir: &Path) -> Result<Vec<Record>> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("no results in {}: run scripts/suites", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    let mut last: Vec<Record> = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path)?;
        for line in text.lines() {
            let record: Record = serde_json::from_str(line)
                .with_context(|| format!("{}: {line}", path.display()))?;
            let same = |r: &Record| {
                (&r.series, &r.suite, &r.program)
                    == (&record.series, &record.suite, &record.program)
            };
            match last.iter_mut().find(|r| same(r)) {
                Some(older) => *older = record,
                None => last.push(record),
            }
        }
    }
    Ok(last)
}

const HEAD: &str = "\
# Suites that nobody here wrote

Each program ran with the kernel's own forks and with every fork armed (`ASYNCFORK_MIN_RSS=0`, `park_partial=1`), in a VM with the stock
Debian kernel; each case has to end the same. Made from the results of `scripts/suites` by `asyncfork-suites table`.

Cases: passed / failed / skipped. Async: forks of the armed runs that parked memory, of all that were armed. Chunks: parked pieces of 2 MiB,
and by whom they were pulled; the rest was given back because the child had died. \"Not run\": nothing was parked, or nothing passes
with stock forks, so the run shows nothing.
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
        group.sort_by_key(|r| r.program == LEAKS);
        let newest = group.iter().max_by_key(|r| &r.date).expect("not empty");
        let is = |r: &&&Record, o: Outcome| r.program != LEAKS && r.outcome == o;
        let count = |o: Outcome| group.iter().filter(|r| is(r, o)).count();
        let sum = |f: fn(&Forks) -> u64| group.iter().map(|r| f(&r.forks)).sum::<u64>();
        let _ = write!(
            out,
            "\n## {suite} on {series}\n\n\
             {}, {}: {} passed, {} failed, {} not run; {} async forks, {} chunks parked.\n\n\
             | program | stock | armed | async | chunks | by child, parent, others | verdict |\n\
             |---|---|---|---|---|---|---|\n",
            newest.release,
            newest.date,
            count(Outcome::Passed),
            count(Outcome::Defect) + count(Outcome::Broken),
            count(Outcome::NotRun),
            sum(|f| f.r#async),
            sum(|f| f.parked),
        );
        for record in group {
            let _ = writeln!(out, "{}", row(record));
        }
    }
    out
}

fn row(r: &Record) -> String {
    let counts = |c: &Counts| format!("{} / {} / {}", c.pass, c.fail, c.skip);
    let f = &r.forks;
    let mut verdict = r.outcome.word().to_owned();
    let mut remarks = Vec::new();
    if f.aborted + f.killed > 0 {
        remarks.push(format!("{} aborted, {} killed", f.aborted, f.killed));
    }
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
    if !r.note.is_empty() {
        remarks.push(r.note.clone());
    }
    if !remarks.is_empty() {
        let _ = write!(verdict, ": {}", remarks.join("; "));
    }
    if r.program == LEAKS {
        return format!("| {LEAKS} | | | | | | {verdict} |");
    }
    let stock = match r.stock_forks.as_str() {
        "" => String::new(),
        why => format!(" ({why})"),
    };
    format!(
        "| {} | {} | {} | {} of {}{stock} | {} | {}, {}, {} | {} |",
        r.program,
        counts(&r.stock),
        counts(&r.armed),
        f.r#async,
        f.r#async + f.stock,
        f.parked,
        f.by_child,
        f.by_parent,
        f.by_helper + f.by_other,
        verdict.replace('|', "\\|").replace('\n', " ")
    )
}

/// 6.2 comes before 6.12, names last.
fn series_key(series: &str) -> Vec<u32> {
    let numbers = series.split('.').map(|n| n.parse().unwrap_or(u32::MAX));
    numbers.collect()
}

/// Today's date, UTC.
pub fn today() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    date(seconds / 86400)
}

/// A day of the Unix era as YYYY-MM-DD.
fn date(mut day: u64) -> String {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(series: &str, program: &str, parked: u64) -> Record {
        Record {
            series: series.into(),
            release: format!("{series}.1"),
            date: "2026-11-21".into(),
            suite: "kselftests".into(),
            program: program.into(),
            outcome: Outcome::Passed,
            stock: Counts::default(),
            armed: Counts::default(),
            runs: 1,
            forks: Forks {
                parked,
                ..Forks::default()
            },
            differences: vec![],
            stock_forks: String::new(),
            note: String::new(),
            seconds: 1.0,
        }
    }

    #[test]
    fn the_last_run_of_a_program_counts() {
        let dir = std::env::temp_dir().join(format!("asyncfork-results-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.jsonl");
        for record in [
            record("6.12", "cow", 1),
            record("6.1", "cow", 2),
            record("6.12", "cow", 3),
        ] {
            append(&path, &record).unwrap();
        }
        let records = read(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let parked: Vec<_> = records.iter().map(|r| r.forks.parked).collect();
        assert_eq!(parked, [3, 2]);
    }

    #[test]
    fn kernels_are_in_the_order_of_their_versions() {
        let table = table(&[
            record("debug", "a", 1),
            record("7.2", "a", 1),
            record("6.12", "a", 1),
            record("6.1", "a", 1),
        ]);
        let heads: Vec<&str> = table.lines().filter(|l| l.starts_with("## ")).collect();
        let series: Vec<&str> = heads
            .iter()
            .filter_map(|h| h.split(" on ").nth(1))
            .collect();
        assert_eq!(series, ["6.1", "6.12", "7.2", "debug"]);
    }

    #[test]
    fn a_row_tells_the_difference() {
        let mut r = record("6.12", "cow", 7);
        r.outcome = Outcome::Defect;
        r.differences = vec![Difference {
            case: "a|b".into(),
            stock: vec!["pass".into()],
            armed: vec!["fail".into()],
            defect: true,
        }];
        let row = row(&r);
        assert!(
            row.ends_with("| DEFECT: a\\|b: stock pass, armed fail |"),
            "{row}"
        );
        assert_eq!(row.replace("\\|", "").matches('|').count(), 8);
    }

    #[test]
    fn days_have_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11016), "2000-02-29");
        assert_eq!(date(20778), "2026-11-21");
    }
}
