// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results files: what the guest writes of each program, and the host of each boot.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::compare::{Counts, Difference};
use crate::module::Forks;

/// What came of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing yet: the last word on a program in whose run the guest died.
    Begun,
    /// Every case as under stock forks, and memory was parked.
    Passed,
    /// A case that ends so under async forks only, or the module or the kernel complained.
    Defect,
    /// The framework could not run it.
    Broken,
    /// Nothing was parked, nothing passes under stock forks, or it is not there.
    NotRun,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Passed => "passed",
            Self::Defect => "DEFECT",
            Self::Broken => "BROKEN",
            Self::NotRun => "not run",
        }
    }
}

/// A program, or what is left after all programs of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The order of the table.
    pub series: String,
    pub release: String,
    /// Which boot it was, as the host calls it.
    pub boot: String,
    /// Which module was loaded, see [`crate::module::Module::version`].
    pub module: String,
    /// Minute of the record, UTC.
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
    pub stock_forks: String,
    pub differences: Vec<Difference>,
    pub note: String,
    pub seconds: f32,
}

/// The program of the records that say whether the kernel's memory was back to where it began, and the module could be unloaded. It begins
/// before all programs, and ends after them.
pub const LEAKS: &str = "(leaks)";

/// The end of a boot, of which the guest cannot know: the host has looked at the kernel's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub series: String,
    pub suite: String,
    pub boot: String,
    /// Exit status of `scripts/vm`.
    pub status: u8,
}

/// A line of a results file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    Program(Box<Record>),
    Ended(Ended),
}

/// The results file of a suite on a kernel.
pub fn file(dir: &Path, series: &str, suite: &str) -> PathBuf {
    dir.join(format!("{series}-{suite}.jsonl"))
}

/// Appends a line.
///
/// # Errors
/// The file cannot be written.
pub fn append(path: &Path, line: &Line) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// All lines of all results files of a directory, each file's in the order written.
///
/// # Errors
/// A file that cannot be read, such as one from before lines had a `kind`.
pub fn read(dir: &Path) -> Result<Vec<Line>> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("no results in {}: run scripts/suites", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    let mut lines = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path)?;
        for (n, line) in text.lines().enumerate() {
            lines.push(serde_json::from_str(line).with_context(|| {
                let path = path.display();
                format!(
                    "{path}:{}: no result of this version: move the file away",
                    n + 1
                )
            })?);
        }
    }
    Ok(lines)
}

/// The minute, UTC.
pub fn now() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    minute(seconds)
}

/// A second of the Unix era as YYYY-MM-DD HH:MM.
fn minute(seconds: u64) -> String {
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{} {hour:02}:{minute:02}", date(seconds / 86400))
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
pub(crate) mod tests {
    use super::*;

    /// A program that passed.
    pub(crate) fn record(series: &str, program: &str) -> Record {
        Record {
            series: series.into(),
            release: format!("{series}.1"),
            boot: "1".into(),
            module: "M".into(),
            date: "2026-11-21 10:00".into(),
            suite: "kselftests".into(),
            program: program.into(),
            outcome: Outcome::Passed,
            stock: Counts::default(),
            armed: Counts::default(),
            runs: 1,
            forks: Forks::default(),
            differences: vec![],
            stock_forks: String::new(),
            note: String::new(),
            seconds: 1.0,
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let name = format!("asyncfork-results-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        let dir = scratch("lines");
        let program = Line::Program(Box::new(record("6.12", "cow")));
        let ended = Line::Ended(Ended {
            series: "6.12".into(),
            suite: "kselftests".into(),
            boot: "1".into(),
            status: 123,
        });
        let path = file(&dir, "6.12", "kselftests");
        append(&path, &program).unwrap();
        append(&path, &ended).unwrap();
        assert_eq!(read(&dir).unwrap(), [program, ended]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_line_of_an_older_version_is_refused_with_its_place() {
        let dir = scratch("older");
        let older = "{\"series\":\"6.1\",\"program\":\"cow\",\"outcome\":\"passed\"}\n";
        fs::write(dir.join("6.1-redis.jsonl"), older).unwrap();
        let error = read(&dir).unwrap_err().to_string();
        assert!(error.contains("6.1-redis.jsonl:1: "), "{error}");
        assert!(error.contains("move the file away"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn days_have_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11016), "2000-02-29");
        assert_eq!(date(20778), "2026-11-21");
        assert_eq!(minute(20778 * 86400 + 86399), "2026-11-21 23:59");
    }
}
