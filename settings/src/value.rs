// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of values.

use log::LevelFilter;

use crate::path::PathBuffer;

/// What to do about forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Arm; if that fails, a stock fork.
    Auto,
    /// Never arm.
    Off,
    /// Arm; if that fails, so does the fork.
    Require,
}

impl Mode {
    /// As written in the environment.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Require => "require",
        }
    }
}

/// A level as written in the environment and in log lines.
pub const fn level_label(level: LevelFilter) -> &'static str {
    match level {
        LevelFilter::Off => "off",
        LevelFilter::Error => "error",
        LevelFilter::Warn => "warn",
        LevelFilter::Info => "info",
        LevelFilter::Debug | LevelFilter::Trace => "debug",
    }
}

/// Why a value cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// It is none of those that the setting accepts.
    Choice,
    /// It is what the text says.
    Text(&'static str),
}

pub(crate) fn mode(value: &[u8]) -> Result<Mode, Complaint> {
    [Mode::Auto, Mode::Off, Mode::Require]
        .into_iter()
        .find(|mode| value.eq_ignore_ascii_case(mode.label().as_bytes()))
        .ok_or(Complaint::Choice)
}

pub(crate) fn level(value: &[u8]) -> Result<LevelFilter, Complaint> {
    [
        LevelFilter::Off,
        LevelFilter::Error,
        LevelFilter::Warn,
        LevelFilter::Info,
        LevelFilter::Debug,
    ]
    .into_iter()
    .find(|&level| value.eq_ignore_ascii_case(level_label(level).as_bytes()))
    .ok_or(Complaint::Choice)
}

pub(crate) fn count(value: &[u8]) -> Result<u32, Complaint> {
    digits(value).ok_or(Complaint::Text("is not a number of threads (try 2)"))
}

pub(crate) fn bytes(value: &[u8]) -> Result<u64, Complaint> {
    size(value).ok_or(Complaint::Text("is not a size (try 64M)"))
}

/// Any value; [`names`] are in it.
pub(crate) fn list(value: &[u8]) -> Result<&[u8], Complaint> {
    Ok(value)
}

/// Servers change their directory, so a relative path would wander.
pub(crate) fn absolute(value: &[u8]) -> Result<PathBuffer, Complaint> {
    if value.first() != Some(&b'/') {
        return Err(Complaint::Text("is not an absolute path"));
    }
    PathBuffer::new(value).ok_or(Complaint::Text("is longer than a path can be"))
}

pub(crate) fn some_absolute(value: &[u8]) -> Result<Option<PathBuffer>, Complaint> {
    absolute(value).map(Some)
}

/// Bytes of a size such as `4096`, `64M` or `2g`: decimal digits, then none or one of
/// the units K, M, G, T (powers of 1024). `None` for all else, and beyond 64 bits.
pub fn size(value: &[u8]) -> Option<u64> {
    let (number, factor) = match value.split_last() {
        Some((b'k' | b'K', number)) => (number, 1u64 << 10),
        Some((b'm' | b'M', number)) => (number, 1 << 20),
        Some((b'g' | b'G', number)) => (number, 1 << 30),
        Some((b't' | b'T', number)) => (number, 1 << 40),
        _ => (value, 1),
    };
    digits::<u64>(number)?.checked_mul(factor)
}

/// Decimal digits only: no sign, no space.
fn digits<T: core::str::FromStr>(value: &[u8]) -> Option<T> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(value).ok()?.parse().ok()
}

/// The names in a value of `ASYNCFORK_MATCH`; none: all programs.
pub fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .map(base_name)
        .filter(|name| !name.is_empty())
}

/// What follows the last slash.
pub fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_counts_by_its_last_part() {
        let names: Vec<_> = names(b"/usr/bin/redis-server,valkey").collect();
        assert_eq!(names, [&b"redis-server"[..], b"valkey"]);
    }
}
