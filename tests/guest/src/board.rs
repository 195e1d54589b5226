// SPDX-License-Identifier: MIT OR Apache-2.0
//! Verdicts of forked processes, through a pipe.

use crate::sys;
use crate::verdict::{TestResult, Verdict};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Longest line: one atomic pipe write.
const LINE: usize = 4096;

/// A pipe to which processes post one line each: who, verdict, reason.
pub struct Board {
    read: OwnedFd,
    write: OwnedFd,
}

impl Board {
    /// An empty board.
    pub fn new() -> io::Result<Self> {
        let (read, write) = sys::pipe()?;
        Ok(Self { read, write })
    }

    /// Posts `result` as `who`.
    pub fn post(&self, who: &str, result: &TestResult) {
        let (word, text) = match result {
            Ok(()) => ("ok", ""),
            Err(v) => (v.word(), v.text()),
        };
        let mut line = format!("{who}\t{word}\t{}", text.replace(['\n', '\t'], " "));
        let mut end = line.len().min(LINE - 1);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('\n');
        if let Ok(fd) = self.write.try_clone() {
            // A reader that is gone does not need the verdict.
            let _ = File::from(fd).write_all(line.as_bytes());
        }
    }

    /// Runs `body` in this process, posts its verdict as `who` and ends the process, without exit handlers.
    pub fn run(&self, who: &str, body: impl FnOnce() -> TestResult) -> ! {
        let result = guarded(body);
        self.post(who, &result);
        sys::exit_now(i32::from(result.is_err()));
    }

    /// Waits until every process that could post is gone, and demands that exactly `whos` posted, each once and "ok". Of
    /// bad verdicts a failure wins.
    pub fn collect(self, whos: &[&str]) -> TestResult {
        let Self { read, write } = self;
        drop(write);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text)?;
        let lines: Vec<(&str, &str, &str)> = text.lines().map(parse).collect();

        let mut bad = Vec::new();
        for &(who, word, reason) in lines.iter().filter(|l| l.1 != "ok") {
            let unknown = || Verdict::Broken(format!("no verdict: {word} {reason}"));
            let verdict = Verdict::parse(word, reason.into()).unwrap_or_else(unknown);
            bad.push(verdict.at(who));
        }
        let failed = bad.iter().find(|v| matches!(v, Verdict::Failed(_)));
        if let Some(worst) = failed.or(bad.first()) {
            return Err(worst.clone());
        }
        for who in whos {
            match lines.iter().filter(|l| l.0 == *who).count() {
                1 => {}
                0 => return Err(Verdict::Failed(format!("{who}: ended without a verdict"))),
                n => return Err(Verdict::Failed(format!("{who}: {n} verdicts"))),
            }
        }
        if lines.len() != whos.len() {
            return Err(Verdict::Broken(format!(
                "unexpected verdicts: {lines:?}, want {whos:?}"
            )));
        }
        Ok(())
    }
}

fn parse(line: &str) -> (&str, &str, &str) {
    let mut fields = line.splitn(3, '\t');
    let mut field = || fields.next().unwrap_or("");
    (field(), field(), field())
}

/// Runs `body`; a panic is a failure.
pub fn guarded<T>(body: impl FnOnce() -> TestResult<T>) -> TestResult<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Verdict::Failed(format!("panic: {text}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict::{Broken, Failed, Unmet};

    fn board(posts: &[(&str, TestResult)]) -> Board {
        let b = Board::new().unwrap();
        for (who, result) in posts {
            b.post(who, result);
        }
        b
    }

    #[test]
    fn silence_and_repetition_are_failures() {
        assert_eq!(board(&[("a", Ok(()))]).collect(&["a"]), Ok(()));
        assert!(matches!(board(&[]).collect(&["a"]), Err(Failed(_))));
        assert!(matches!(
            board(&[("a", Ok(())), ("a", Ok(()))]).collect(&["a"]),
            Err(Failed(_))
        ));
        assert!(matches!(
            board(&[("a", Ok(())), ("b", Ok(()))]).collect(&["a"]),
            Err(Broken(_))
        ));
    }

    #[test]
    fn a_bad_verdict_wins_over_a_missing_one() {
        let b = board(&[("b", Err(Failed("x\ny".into())))]);
        assert_eq!(b.collect(&["a", "b"]), Err(Failed("b: x y".into())));
    }

    #[test]
    fn a_failure_wins_over_what_is_tried_again() {
        let posts = [
            ("a", Err(Unmet("early".into()))),
            ("b", Err(Failed("wrong".into()))),
        ];
        assert_eq!(
            board(&posts).collect(&["a", "b"]),
            Err(Failed("b: wrong".into()))
        );
    }

    #[test]
    fn long_reasons_are_cut_to_one_write() {
        let b = board(&[("a", Err(Failed("é".repeat(9000))))]);
        assert!(matches!(b.collect(&["a"]), Err(Failed(t)) if t.len() <= LINE));
    }

    #[test]
    fn a_panic_is_a_failure() {
        let result: TestResult = guarded(|| panic!("so {}", 1));
        assert_eq!(result, Err(Failed("panic: so 1".into())));
    }
}
