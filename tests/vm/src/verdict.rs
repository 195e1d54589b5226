// SPDX-License-Identifier: MIT OR Apache-2.0
//! Verdicts of single tests, and their sum.

use std::fmt;

/// What a test says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Failed,
    /// Could not run here; the detail says why.
    Skip,
    /// The set-up failed: counts as failed.
    Broken,
}

/// A line of the guest's `results.txt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestResult {
    pub verdict: Verdict,
    pub name: String,
    pub detail: String,
}

/// Reads `results.txt`: verdict, name and detail, parted by tabs, a line per
/// test. Whatever is not so, or comes twice, becomes a broken entry: a result
/// that cannot be read must not pass. A last line without its end is no result:
/// the guest died over it.
pub fn parse_results(text: &str) -> Vec<TestResult> {
    let mut results: Vec<TestResult> = Vec::new();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in complete.lines() {
        let mut fields = line.splitn(3, '\t');
        let verdict = match fields.next() {
            Some("ok") => Some(Verdict::Ok),
            Some("FAILED" | "failed") => Some(Verdict::Failed),
            Some("skip") => Some(Verdict::Skip),
            Some("broken") => Some(Verdict::Broken),
            _ => None,
        };
        let name = fields.next().filter(|name| !name.is_empty());
        results.push(match (verdict, name) {
            (Some(_), Some(name)) if results.iter().any(|r| r.name == name) => TestResult {
                verdict: Verdict::Broken,
                name: name.to_owned(),
                detail: "a second verdict for the same test".into(),
            },
            (Some(verdict), Some(name)) => TestResult {
                verdict,
                name: name.to_owned(),
                detail: fields.next().unwrap_or_default().to_owned(),
            },
            _ => TestResult {
                verdict: Verdict::Broken,
                name: "results.txt".into(),
                detail: format!("not a verdict: {line:?}"),
            },
        });
    }
    results
}

/// A failed or broken entry of the summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub name: String,
    pub why: String,
    /// Command line that runs just this again.
    pub rerun: String,
}

/// The sum of all stages.
#[derive(Debug, Default)]
pub struct Summary {
    pub passed: usize,
    pub skipped: usize,
    pub failures: Vec<Failure>,
}

impl Summary {
    pub fn fail(
        &mut self,
        name: impl Into<String>,
        why: impl Into<String>,
        rerun: impl Into<String>,
    ) {
        self.failures.push(Failure {
            name: name.into(),
            why: why.into(),
            rerun: rerun.into(),
        });
    }

    /// Nothing failed, and something passed: silence is failure.
    pub fn is_success(&self) -> bool {
        self.failures.is_empty() && self.passed > 0
    }
}

impl fmt::Display for Summary {
    /// Every failure again, then the line with the numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Failure { name, why, rerun } in &self.failures {
            writeln!(f, "FAILED {name}")?;
            for line in why.lines() {
                writeln!(f, "  {line}")?;
            }
            writeln!(f, "  rerun: {rerun}")?;
        }
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failures.len(),
            self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_with_their_details() {
        let results = parse_results(
            "ok\tmunmap\t12 chunks\nFAILED\tmremap\tpage 3\tgot 5a\nskip\tthp\tno THP\nbroken\tswap\t\n",
        );
        let expect = |verdict, name: &str, detail: &str| TestResult {
            verdict,
            name: name.into(),
            detail: detail.into(),
        };
        assert_eq!(
            results,
            [
                expect(Verdict::Ok, "munmap", "12 chunks"),
                expect(Verdict::Failed, "mremap", "page 3\tgot 5a"),
                expect(Verdict::Skip, "thp", "no THP"),
                expect(Verdict::Broken, "swap", ""),
            ]
        );
    }

    #[test]
    fn what_is_no_verdict_is_broken() {
        for bad in ["ok", "ok\t", "okay\tmunmap", "munmap ok", " "] {
            let results = parse_results(&format!("{bad}\n"));
            assert_eq!(results.len(), 1, "{bad:?}");
            assert_eq!(results[0].verdict, Verdict::Broken, "{bad:?}");
        }
    }

    #[test]
    fn an_unfinished_line_is_no_result() {
        let results = parse_results("ok\ta\t\nok\tb");
        assert_eq!(results.len(), 1);
        assert_eq!(results[0].name, "a");
        assert_eq!(parse_results("ok\ta"), []);
    }

    #[test]
    fn a_second_verdict_is_broken() {
        let verdicts: Vec<_> = parse_results("ok\ta\t\nok\tb\t\nok\ta\t\n")
            .iter()
            .map(|r| r.verdict)
            .collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Ok, Verdict::Broken]);
    }

    #[test]
    fn the_summary_lists_failures_and_ends_with_the_numbers() {
        let mut summary = Summary {
            passed: 3,
            skipped: 1,
            ..Summary::default()
        };
        assert!(summary.is_success());
        summary.fail("vm/munmap", "page 3\ngot 5a", "scripts/test munmap");
        assert!(!summary.is_success());
        assert_eq!(
            summary.to_string(),
            "FAILED vm/munmap\n  page 3\n  got 5a\n  rerun: scripts/test munmap\n\
             3 passed, 1 failed, 1 skipped"
        );
    }

    #[test]
    fn nothing_at_all_is_no_success() {
        assert!(!Summary::default().is_success());
    }
}
