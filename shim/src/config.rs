// SPDX-License-Identifier: MIT OR Apache-2.0
//! The environment variables, as a pure parser.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

use asyncfork_uapi::DEVICE;

use crate::log::Level;

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

/// The settings of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `ASYNCFORK`
    pub mode: Mode,
    /// `ASYNCFORK_MIN_RSS`: bytes resident; smaller processes fork as ever.
    pub min_rss: u64,
    /// `ASYNCFORK_THREADS`: threads that help the child copy.
    pub helpers: u32,
    /// `ASYNCFORK_MATCH`: program names; empty: all programs.
    pub programs: Vec<Vec<u8>>,
    /// `ASYNCFORK_LOG`
    pub log: Level,
    /// `ASYNCFORK_LOG_FILE`: absolute path, or standard error.
    pub log_file: Option<CString>,
    /// `ASYNCFORK_DEVICE`: absolute path.
    pub device: CString,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            min_rss: 64 << 20,
            helpers: 0,
            programs: Vec::new(),
            log: Level::Warn,
            log_file: None,
            device: DEVICE.to_owned(),
        }
    }
}

/// One value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} {complaint}; using the default")]
pub struct Problem {
    name: &'static str,
    value: String,
    complaint: &'static str,
}

impl Config {
    /// Reads the settings from `get`, which looks a variable up. A variable
    /// that is empty counts as unset; a bad one does not void the others.
    pub fn parse(get: impl Fn(&str) -> Option<OsString>) -> (Self, Vec<Problem>) {
        let mut config = Self::default();
        let mut problems = Vec::new();
        let mut set = |name, apply: &mut dyn FnMut(&[u8]) -> Result<(), &'static str>| {
            let Some(value) = get(name).map(OsStringExt::into_vec) else {
                return;
            };
            let value = value.trim_ascii();
            if value.is_empty() {
                return;
            }
            if let Err(complaint) = apply(value) {
                problems.push(Problem {
                    name,
                    value: String::from_utf8_lossy(value).into_owned(),
                    complaint,
                });
            }
        };

        set("ASYNCFORK", &mut |v| store(&mut config.mode, mode(v)));
        set("ASYNCFORK_MIN_RSS", &mut |v| {
            store(&mut config.min_rss, size(v))
        });
        set("ASYNCFORK_THREADS", &mut |v| {
            store(&mut config.helpers, count(v))
        });
        set("ASYNCFORK_LOG", &mut |v| store(&mut config.log, level(v)));
        set("ASYNCFORK_LOG_FILE", &mut |v| {
            store(&mut config.log_file, absolute(v).map(Some))
        });
        set("ASYNCFORK_DEVICE", &mut |v| {
            store(&mut config.device, absolute(v))
        });

        set("ASYNCFORK_MATCH", &mut |v| {
            let names = v
                .split(|&b| b == b',')
                .map(<[u8]>::trim_ascii)
                .map(base_name);
            config.programs = names
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect();
            Ok(())
        });
        (config, problems)
    }
}

fn store<T>(place: &mut T, value: Result<T, &'static str>) -> Result<(), &'static str> {
    *place = value?;
    Ok(())
}

fn mode(value: &[u8]) -> Result<Mode, &'static str> {
    [Mode::Auto, Mode::Off, Mode::Require]
        .into_iter()
        .find(|mode| value.eq_ignore_ascii_case(mode.label().as_bytes()))
        .ok_or("is none of auto, off, require")
}

fn level(value: &[u8]) -> Result<Level, &'static str> {
    Level::ALL
        .into_iter()
        .find(|level| value.eq_ignore_ascii_case(level.label().as_bytes()))
        .ok_or("is none of off, error, warn, info, debug")
}

fn count(value: &[u8]) -> Result<u32, &'static str> {
    digits(value).ok_or("is not a number of threads (try 2)")
}

/// Bytes, or with a suffix K, M, G, T (powers of 1024).
fn size(value: &[u8]) -> Result<u64, &'static str> {
    const COMPLAINT: &str = "is not a size (try 64M)";
    let (number, factor) = match value.split_last() {
        Some((b'k' | b'K', number)) => (number, 1u64 << 10),
        Some((b'm' | b'M', number)) => (number, 1 << 20),
        Some((b'g' | b'G', number)) => (number, 1 << 30),
        Some((b't' | b'T', number)) => (number, 1 << 40),
        _ => (value, 1),
    };
    let number: u64 = digits(number).ok_or(COMPLAINT)?;
    number.checked_mul(factor).ok_or(COMPLAINT)
}

/// Decimal digits only: no sign, no space.
fn digits<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// What follows the last slash.
pub fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

/// Servers change their directory, so a relative path would wander.
fn absolute(value: &[u8]) -> Result<CString, &'static str> {
    if value.first() != Some(&b'/') {
        return Err("is not an absolute path");
    }
    CString::new(value).map_err(|_| "contains a NUL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> (Config, Vec<String>) {
        let (config, problems) = Config::parse(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value))
        });
        (config, problems.iter().map(Problem::to_string).collect())
    }

    fn min_rss(value: &str) -> Option<u64> {
        let (config, problems) = parse(&[("ASYNCFORK_MIN_RSS", value)]);
        problems.is_empty().then_some(config.min_rss)
    }

    #[test]
    fn nothing_set_is_the_default() {
        let (config, problems) = parse(&[]);
        assert_eq!(config, Config::default());
        assert_eq!(config.min_rss, 64 * 1024 * 1024);
        assert_eq!(config.device.as_c_str(), c"/dev/asyncfork");
        assert!(problems.is_empty());
    }

    #[test]
    fn every_variable_is_read() {
        let (config, problems) = parse(&[
            ("ASYNCFORK", "require"),
            ("ASYNCFORK_MIN_RSS", "1G"),
            ("ASYNCFORK_THREADS", "3"),
            ("ASYNCFORK_MATCH", "redis-server, valkey-server,"),
            ("ASYNCFORK_LOG", "DEBUG"),
            ("ASYNCFORK_LOG_FILE", "/var/log/asyncfork.log"),
            ("ASYNCFORK_DEVICE", "/run/asyncfork"),
        ]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            config,
            Config {
                mode: Mode::Require,
                min_rss: 1 << 30,
                helpers: 3,
                programs: vec![b"redis-server".to_vec(), b"valkey-server".to_vec()],
                log: Level::Debug,
                log_file: Some(c"/var/log/asyncfork.log".to_owned()),
                device: c"/run/asyncfork".to_owned(),
            }
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(min_rss("0"), Some(0));
        assert_eq!(min_rss("4096"), Some(4096));
        assert_eq!(min_rss("64k"), Some(64 << 10));
        assert_eq!(min_rss(" 64M "), Some(64 << 20));
        assert_eq!(min_rss("2T"), Some(2 << 40));
        assert_eq!(min_rss("18446744073709551615"), Some(u64::MAX));
        for bad in [
            "64X",
            "M",
            "-1",
            "+1",
            "1.5G",
            "0x10",
            "64 M",
            "64MM",
            "99999999999T",
        ] {
            assert_eq!(min_rss(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bad_value_is_named_and_the_default_used() {
        let (config, problems) = parse(&[("ASYNCFORK_MIN_RSS", "64X")]);
        assert_eq!(config, Config::default());
        assert_eq!(
            problems,
            [r#"ASYNCFORK_MIN_RSS="64X" is not a size (try 64M); using the default"#]
        );
    }

    #[test]
    fn one_bad_value_does_not_void_the_others() {
        let (config, problems) = parse(&[
            ("ASYNCFORK", "on"),
            ("ASYNCFORK_MIN_RSS", "1M"),
            ("ASYNCFORK_THREADS", "many"),
            ("ASYNCFORK_LOG", "verbose"),
            ("ASYNCFORK_LOG_FILE", "asyncfork.log"),
            ("ASYNCFORK_DEVICE", "asyncfork"),
        ]);
        assert_eq!(
            config,
            Config {
                min_rss: 1 << 20,
                ..Config::default()
            }
        );
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn empty_counts_as_unset() {
        let (config, problems) = parse(&[("ASYNCFORK", ""), ("ASYNCFORK_MATCH", " , ")]);
        assert_eq!(config, Config::default());
        assert!(problems.is_empty());
    }

    #[test]
    fn a_path_counts_by_its_last_part() {
        let (config, problems) = parse(&[("ASYNCFORK_MATCH", "/usr/bin/redis-server,valkey")]);
        assert_eq!(
            config.programs,
            [b"redis-server".to_vec(), b"valkey".to_vec()]
        );
        assert!(problems.is_empty());
    }

    #[test]
    fn a_value_cannot_start_a_log_line_of_its_own() {
        let (_, problems) = parse(&[("ASYNCFORK_LOG", "x\nasyncfork[1] error: y")]);
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].contains('\n'), "{problems:?}");
    }
}
