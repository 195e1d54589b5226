// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a test says at its end.

use std::fmt;
use std::io;

/// Why a test did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The claim in the test's name is false.
    Failed(String),
    /// The test could not be made: its set-up failed, or a call that it relies on. Counts as a failure.
    Broken(String),
    /// What the test is about did not come about, such as a child that is held back: it proved nothing. Tried again, and
    /// broken in the end.
    Unmet(String),
    /// The guest lacks what the test needs.
    Skip(String),
}

/// Result of a test or of a step of it.
pub type TestResult<T = ()> = Result<T, Verdict>;

impl Verdict {
    /// The word used in results.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Failed(_) => "failed",
            Self::Broken(_) => "broken",
            Self::Unmet(_) => "unmet",
            Self::Skip(_) => "skip",
        }
    }

    /// The reason.
    pub fn text(&self) -> &str {
        match self {
            Self::Failed(t) | Self::Broken(t) | Self::Unmet(t) | Self::Skip(t) => t,
        }
    }

    /// From what [`Verdict::word`] and [`Verdict::text`] gave.
    pub fn parse(word: &str, text: String) -> Option<Self> {
        match word {
            "failed" => Some(Self::Failed(text)),
            "broken" => Some(Self::Broken(text)),
            "unmet" => Some(Self::Unmet(text)),
            "skip" => Some(Self::Skip(text)),
            _ => None,
        }
    }

    /// The same verdict, its reason prefixed with where it came from.
    pub fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Failed(t) => Self::Failed(format!("{place}: {t}")),
            Self::Broken(t) => Self::Broken(format!("{place}: {t}")),
            Self::Unmet(t) => Self::Unmet(format!("{place}: {t}")),
            Self::Skip(t) => Self::Skip(format!("{place}: {t}")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.text())
    }
}

impl std::error::Error for Verdict {}

impl From<io::Error> for Verdict {
    fn from(e: io::Error) -> Self {
        Self::Broken(e.to_string())
    }
}

impl From<anyhow::Error> for Verdict {
    fn from(e: anyhow::Error) -> Self {
        Self::Broken(format!("{e:#}"))
    }
}

/// Says where an error happened.
pub trait Context<T> {
    /// Prefixes the reason with `place`.
    fn at(self, place: impl fmt::Display) -> TestResult<T>;
}

impl<T, E: Into<Verdict>> Context<T> for Result<T, E> {
    fn at(self, place: impl fmt::Display) -> TestResult<T> {
        self.map_err(|e| e.into().at(place))
    }
}

/// Returns `Verdict::Failed` unless the condition holds.
#[macro_export]
macro_rules! claim {
    ($cond:expr, $($why:tt)+) => {
        if !$cond {
            return Err($crate::verdict::Verdict::Failed(format!($($why)+)));
        }
    };
}

/// Returns `Verdict::Unmet` unless the condition holds.
#[macro_export]
macro_rules! require {
    ($cond:expr, $($why:tt)+) => {
        if !$cond {
            return Err($crate::verdict::Verdict::Unmet(format!($($why)+)));
        }
    };
}

/// Returns `Verdict::Skip` unless the condition holds.
#[macro_export]
macro_rules! skip_unless {
    ($cond:expr, $($why:tt)+) => {
        if !$cond {
            return Err($crate::verdict::Verdict::Skip(format!($($why)+)));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(met: bool) -> TestResult {
        require!(met, "no child");
        Ok(())
    }

    #[test]
    fn only_what_is_required_is_tried_again() {
        assert_eq!(required(true), Ok(()));
        assert_eq!(required(false), Err(Verdict::Unmet("no child".into())));
        let errno = io::Error::from_raw_os_error(libc::EIO);
        assert!(matches!(errno.into(), Verdict::Broken(_)));
    }

    #[test]
    fn verdicts_survive_being_written_and_read() {
        let text = || "why".to_string();
        for v in [
            Verdict::Failed(text()),
            Verdict::Broken(text()),
            Verdict::Unmet(text()),
            Verdict::Skip(text()),
        ] {
            assert_eq!(Verdict::parse(v.word(), text()), Some(v));
        }
        assert_eq!(Verdict::parse("ok", text()), None);
    }
}
