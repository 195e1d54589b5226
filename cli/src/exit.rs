// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exit codes, and errors that carry one.

use std::fmt;

/// What the program says to its caller by its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or everything is fine.
    Done,
    /// The answer is no.
    No,
    /// Wrong input; nothing was changed.
    Input,
    /// What the answer depends on cannot be reached or read.
    CannotTell,
    /// The action was refused or went wrong.
    Failed,
    /// `run`: an error of this program, not of the one to run.
    RunFailed,
    /// `run`: the program is there and cannot be executed.
    CannotExecute,
    /// `run`: there is no such program.
    NotFound,
}

/// All codes with their meaning, in the order of their numbers.
pub const TABLE: &[(Exit, &str)] = &[
    (Exit::Done, "done; doctor: nothing found; status: forks can be asynchronous"),
    (
        Exit::No,
        "the answer is no; doctor: something found; status: forks are stock forks; bench: not all was asynchronous",
    ),
    (
        Exit::Input,
        "wrong input (usage, unit, pid, cgroup, size, path); nothing was changed",
    ),
    (
        Exit::CannotTell,
        "cannot tell: no module, no permission, no systemd, or nothing is known",
    ),
    (Exit::Failed, "the action was refused or failed; the message says what was changed, if anything"),
    (Exit::RunFailed, "run: an error of asyncfork itself"),
    (Exit::CannotExecute, "run: CMD cannot be executed"),
    (Exit::NotFound, "run: there is no CMD; all other codes of run are CMD's"),
];

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
            Self::Input => 2,
            Self::CannotTell => 3,
            Self::Failed => 4,
            Self::RunFailed => 125,
            Self::CannotExecute => 126,
            Self::NotFound => 127,
        }
    }
}

/// The table as `--help` shows it.
pub fn help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in TABLE {
        text.push_str(&format!("  {:<4} {meaning}\n", exit.code()));
    }
    text
}

/// An error message with its exit code.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An error with this code.
pub fn with(exit: Exit, message: impl Into<String>) -> anyhow::Error {
    Failure {
        exit,
        message: message.into(),
    }
    .into()
}

/// Wrong input.
pub fn input(message: impl Into<String>) -> anyhow::Error {
    with(Exit::Input, message)
}

/// Something is out of reach.
pub fn cannot_tell(message: impl Into<String>) -> anyhow::Error {
    with(Exit::CannotTell, message)
}

/// An action failed.
pub fn failed(message: impl Into<String>) -> anyhow::Error {
    with(Exit::Failed, message)
}

/// The code of an error; one without a code is a failed action.
pub fn of(error: &anyhow::Error) -> Exit {
    error
        .downcast_ref::<Failure>()
        .map_or(Exit::Failed, |failure| failure.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_codes_ascend_and_each_has_a_meaning() {
        let codes: Vec<_> = TABLE.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 125, 126, 127]);
    }

    #[test]
    fn a_code_survives_context() {
        let error = Err::<(), _>(input("no such unit"))
            .context("enable")
            .unwrap_err();
        assert_eq!(of(&error), Exit::Input);
        assert_eq!(of(&anyhow::anyhow!("other")), Exit::Failed);
    }
}
