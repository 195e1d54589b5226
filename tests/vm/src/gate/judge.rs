// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a boot says of the tests that were to run in it.

use crate::verdict::{Summary, TestResult, Verdict};
use crate::vm::{BootReport, End};

/// Adds up what the tests, the guest and its kernel say. `plan` is the tests
/// that were to run, `under_way` the one whose marker came last.
pub(super) fn judge(
    summary: &mut Summary,
    name: &str,
    rerun: &str,
    report: &BootReport,
    plan: &[String],
    results: &[TestResult],
    under_way: Option<&str>,
) {
    let mut bad = 0;
    for result in results {
        match result.verdict {
            Verdict::Ok => summary.passed += 1,
            Verdict::Skip => summary.skipped += 1,
            Verdict::Failed | Verdict::Broken => {
                bad += 1;
                let kind = if result.verdict == Verdict::Broken {
                    "broken: "
                } else {
                    ""
                };
                summary.fail(
                    format!("{name}/{}", result.name),
                    format!("{kind}{}", result.detail),
                    format!("{rerun} {}", result.name),
                );
            }
        }
    }

    let again = |test: Option<&str>| match test {
        Some(test) => format!("{rerun} {test}"),
        None => rerun.to_owned(),
    };
    let logs = format!("logs: {}", report.dir.display());
    let silent: Vec<&str> = plan
        .iter()
        .map(String::as_str)
        .filter(|name| !results.iter().any(|r| r.name == *name))
        .collect();
    let without_verdict = format!(
        "{} of {} tests gave no verdict: {}",
        silent.len(),
        plan.len(),
        silent.join(" ")
    );
    match &report.end {
        // Status 1 is how the test program says that a test failed.
        End::Exited(0) | End::Exited(1) if !silent.is_empty() => {
            summary.fail(name, format!("{without_verdict}\n{logs}"), rerun);
        }
        End::Exited(0) => {}
        End::Exited(1) if bad > 0 => {}
        end => {
            let at = under_way.map_or(String::new(), |test| format!(" during {test}"));
            summary.fail(
                name,
                format!("{end}{at}\n{without_verdict}\n{logs}"),
                again(under_way),
            );
        }
    }

    // One entry per test that the kernel complained about.
    let mut tests: Vec<Option<&str>> = Vec::new();
    for finding in &report.findings {
        if !tests.contains(&finding.test.as_deref()) {
            tests.push(finding.test.as_deref());
        }
    }
    for test in tests {
        let lines: Vec<String> = report
            .findings
            .iter()
            .filter(|f| f.test.as_deref() == test)
            .map(|f| match f.times {
                1 => f.line.clone(),
                n => format!("{} ({n} times)", f.line),
            })
            .collect();
        summary.fail(
            format!(
                "{name}/{}: kernel complaint",
                test.unwrap_or("outside any test")
            ),
            format!("{}\n{logs}", lines.join("\n")),
            again(test),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dmesg;
    use crate::verdict::parse_results;
    use std::path::PathBuf;

    fn judged(end: End, results: &str, kernel: &str) -> Summary {
        let report = BootReport {
            end,
            findings: dmesg::scan(kernel),
            boots: 1,
            dir: PathBuf::from("run-1"),
        };
        let mut summary = Summary::default();
        judge(
            &mut summary,
            "6.1 quick",
            "scripts/test --la57 on --seed 7",
            &report,
            &["a".to_owned(), "b".to_owned()],
            &parse_results(results),
            dmesg::last_test(kernel),
        );
        summary
    }

    const CLEAN: &str = "[ 1.0] asyncfork-test: a\n[ 2.0] asyncfork-test: b\n";

    #[test]
    fn good_verdicts_and_a_clean_log_pass() {
        let summary = judged(End::Exited(0), "ok\ta\t\nskip\tb\tno swap\n", CLEAN);
        assert!(summary.is_success());
        assert_eq!((summary.passed, summary.skipped), (1, 1));
    }

    #[test]
    fn a_failed_test_is_one_failure_with_its_rerun_line() {
        let summary = judged(End::Exited(1), "ok\ta\t\nFAILED\tb\tpage 3\n", CLEAN);
        assert_eq!(summary.failures.len(), 1);
        assert_eq!(summary.failures[0].name, "6.1 quick/b");
        assert_eq!(
            summary.failures[0].rerun,
            "scripts/test --la57 on --seed 7 b"
        );
    }

    #[test]
    fn a_guest_that_dies_fails_the_test_under_way() {
        let summary = judged(End::Broken("the guest died".into()), "ok\ta\t\n", CLEAN);
        assert_eq!(summary.passed, 1);
        assert_eq!(summary.failures.len(), 1);
        let why = &summary.failures[0].why;
        assert!(why.contains("during b"), "{why}");
        assert!(why.contains("1 of 2 tests gave no verdict: b"), "{why}");
        assert!(summary.failures[0].rerun.ends_with(" b"));
    }

    #[test]
    fn a_test_program_that_fails_without_a_verdict_is_a_failure() {
        let all = "ok\ta\t\nok\tb\t\n";
        assert!(judged(End::Exited(0), all, CLEAN).is_success());
        for end in [End::Exited(1), End::Exited(101), End::TimedOut] {
            assert!(!judged(end, all, CLEAN).is_success());
        }
    }

    #[test]
    fn a_test_without_a_verdict_is_a_failure() {
        let summary = judged(End::Exited(0), "ok\ta\t\n", CLEAN);
        assert_eq!(summary.failures.len(), 1);
        assert!(summary.failures[0].why.contains("no verdict: b"));
        assert_eq!(judged(End::Exited(0), "", CLEAN).failures.len(), 1);
    }

    #[test]
    fn a_kernel_complaint_fails_the_test_it_came_with() {
        let kernel = "\
[ 1.0] asyncfork-test: a
[ 1.1] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2
[ 1.2] BUG: Bad page state in process b  pfn:1
[ 1.3] BUG: Bad page state in process b  pfn:2
[ 2.0] asyncfork-test: b
";
        let summary = judged(End::Exited(0), "ok\ta\t\nok\tb\t\n", kernel);
        assert_eq!(summary.failures.len(), 1);
        let failure = &summary.failures[0];
        assert_eq!(failure.name, "6.1 quick/a: kernel complaint");
        assert!(failure.why.contains("WARNING: CPU: 0"), "{}", failure.why);
        assert!(failure.why.contains("pfn:1 (2 times)"), "{}", failure.why);
        assert!(failure.rerun.ends_with(" a"));
    }
}
