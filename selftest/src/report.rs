// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the self-test found.

use asyncfork_uapi::Hook;
use std::fmt;
use std::time::Duration;

/// What became of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It pulled, and both sides have the right bytes.
    Fired {
        /// Chunks it pulled.
        chunks: u64,
        /// Attempts it took for the parent to be faster than the child.
        attempts: u32,
    },
    /// The operation acted on a parked chunk and the hook did not pull it.
    NotFired(String),
    /// Memory or the session is wrong.
    Wrong(String),
    /// The operation never met a parked chunk. Counts as a failure.
    Inconclusive(String),
    /// An ordinary process cannot exercise it here. Does not count.
    NotExercised(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fired { chunks, attempts } => {
                write!(f, "fired (chunks: {chunks}, attempts: {attempts})")
            }
            Self::NotFired(why) => write!(f, "DID NOT FIRE: {why}"),
            Self::Wrong(why) => write!(f, "WRONG: {why}"),
            Self::Inconclusive(why) => write!(f, "INCONCLUSIVE: {why}"),
            Self::NotExercised(why) => write!(f, "not exercised: {why}"),
        }
    }
}

/// Result of a self-test. Displays as one line per hook and a last one with the verdict.
#[derive(Debug, Clone)]
pub struct Report {
    /// Every hook of the ABI and what was found.
    pub hooks: Vec<(Hook, Finding)>,
    /// The module has switched itself off, now or before: it met a state of the kernel that it does not expect.
    pub switched_off: bool,
    /// Duration of the test.
    pub elapsed: Duration,
}

impl Report {
    /// Every exercised hook fired, at least one was exercised, and the module found nothing odd.
    pub fn passed(&self) -> bool {
        let (fired, bad, _) = self.totals();
        fired > 0 && bad == 0 && !self.switched_off
    }

    /// Hooks that fired, that failed, that were not exercised.
    fn totals(&self) -> (usize, usize, usize) {
        self.hooks.iter().fold(
            (0, 0, 0),
            |(fired, bad, left), (_, finding)| match finding {
                Finding::Fired { .. } => (fired + 1, bad, left),
                Finding::NotExercised(_) => (fired, bad, left + 1),
                _ => (fired, bad + 1, left),
            },
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (hook, finding) in &self.hooks {
            writeln!(f, "{:<9}  {finding}", hook.label())?;
        }
        if self.switched_off {
            writeln!(
                f,
                "the module has switched itself off after an inconsistency; see the kernel log"
            )?;
        }
        let (fired, bad, left) = self.totals();
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        write!(
            f,
            "{verdict}: {fired} hooks fired, {bad} failed, {left} not exercised, {} ms",
            self.elapsed.as_millis()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRED: Finding = Finding::Fired {
        chunks: 1,
        attempts: 1,
    };

    fn report(findings: &[Finding]) -> Report {
        Report {
            hooks: Hook::ALL.iter().copied().zip(findings.to_vec()).collect(),
            switched_off: false,
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn unexercised_hooks_do_not_count() {
        let report = report(&[FIRED, Finding::NotExercised("no way".into())]);
        assert!(report.passed());
        let text = report.to_string();
        assert!(text.contains("not exercised: no way"), "{text}");
        assert!(
            text.ends_with("passed: 1 hooks fired, 0 failed, 1 not exercised, 0 ms"),
            "{text}"
        );
    }

    #[test]
    fn one_bad_hook_fails_it() {
        for bad in [
            Finding::NotFired(String::new()),
            Finding::Wrong(String::new()),
            Finding::Inconclusive(String::new()),
        ] {
            let report = report(&[FIRED, bad, FIRED]);
            assert!(!report.passed());
            assert!(report
                .to_string()
                .contains("FAILED: 2 hooks fired, 1 failed"));
        }
    }

    #[test]
    fn nothing_exercised_is_no_success() {
        assert!(!report(&[Finding::NotExercised("no way".into())]).passed());
    }

    #[test]
    fn a_module_that_switched_off_fails_it() {
        let mut report = report(&[FIRED]);
        report.switched_off = true;
        assert!(!report.passed());
        assert!(report.to_string().contains("switched itself off"));
    }
}
