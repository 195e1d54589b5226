// SPDX-License-Identifier: MIT OR Apache-2.0
//! The environment variables, as a pure parser.

use core::ffi::CStr;
use core::fmt;

use arrayvec::ArrayVec;
use asyncfork_uapi::DEVICE;
use log::LevelFilter;

use crate::log::{label, Text};

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

/// What a fork has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `ASYNCFORK`
    pub mode: Mode,
    /// `ASYNCFORK_MIN_RSS`: bytes resident; smaller processes use a stock fork.
    pub min_rss: u64,
    /// `ASYNCFORK_THREADS`: threads that help the child copy.
    pub helpers: u32,
    /// `ASYNCFORK_DEVICE`: absolute path.
    pub device: PathBuffer,
}

/// The settings of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings<'a> {
    /// What is needed at each fork.
    pub config: Config,
    /// `ASYNCFORK_MATCH`, see [`names`]; none: all programs.
    pub programs: &'a [u8],
    /// `ASYNCFORK_LOG`
    pub log: LevelFilter,
    /// `ASYNCFORK_LOG_FILE`: absolute path, or standard error.
    pub log_file: Option<PathBuffer>,
    /// What is wrong, at most once for each variable.
    pub problems: ArrayVec<Problem<'a>, 8>,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            config: Config {
                mode: Mode::Auto,
                min_rss: 64 << 20,
                helpers: 0,
                device: PathBuffer::new(DEVICE.to_bytes()).unwrap_or_default(),
            },
            programs: b"",
            log: LevelFilter::Warn,
            log_file: None,
            problems: ArrayVec::new(),
        }
    }
}

/// One value that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem<'a> {
    name: &'static CStr,
    value: &'a [u8],
    complaint: &'static str,
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Text(self.name.to_bytes());
        let (value, complaint) = (self.value.escape_ascii(), self.complaint);
        write!(f, "{name}=\"{value}\" {complaint}; using the default")
    }
}

impl<'a> Settings<'a> {
    /// Reads the settings from `get`, which looks a variable up. A variable
    /// that is empty counts as unset; a bad one does not void the others.
    pub fn parse(get: impl Fn(&CStr) -> Option<&'a [u8]>) -> Self {
        let mut settings = Self::default();
        let mut problems = ArrayVec::new();
        let mut set = |name, apply: &mut dyn FnMut(&'a [u8]) -> Result<(), &'static str>| {
            let value = get(name).unwrap_or(b"").trim_ascii();
            if value.is_empty() {
                return;
            }
            if let Err(complaint) = apply(value) {
                let problem = Problem {
                    name,
                    value,
                    complaint,
                };
                // One for each variable, and there are fewer than fit.
                let _ = problems.try_push(problem);
            }
        };

        let config = &mut settings.config;
        set(c"ASYNCFORK", &mut |v| store(&mut config.mode, mode(v)));
        set(c"ASYNCFORK_MIN_RSS", &mut |v| {
            store(&mut config.min_rss, size(v))
        });
        set(c"ASYNCFORK_THREADS", &mut |v| {
            store(&mut config.helpers, count(v))
        });
        set(c"ASYNCFORK_LOG", &mut |v| {
            store(&mut settings.log, level(v))
        });
        set(c"ASYNCFORK_LOG_FILE", &mut |v| {
            store(&mut settings.log_file, absolute(v).map(Some))
        });
        set(c"ASYNCFORK_DEVICE", &mut |v| {
            store(&mut config.device, absolute(v))
        });
        set(c"ASYNCFORK_MATCH", &mut |v| {
            settings.programs = v;
            Ok(())
        });
        settings.problems = problems;
        settings
    }
}

/// The names in a value of `ASYNCFORK_MATCH`.
pub fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .map(base_name)
        .filter(|name| !name.is_empty())
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

fn level(value: &[u8]) -> Result<LevelFilter, &'static str> {
    [
        LevelFilter::Off,
        LevelFilter::Error,
        LevelFilter::Warn,
        LevelFilter::Info,
        LevelFilter::Debug,
    ]
    .into_iter()
    .find(|&level| value.eq_ignore_ascii_case(label(level).as_bytes()))
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
fn digits<T: core::str::FromStr>(value: &[u8]) -> Option<T> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(value).ok()?.parse().ok()
}

/// What follows the last slash.
pub fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

/// Servers change their directory, so a relative path would wander.
fn absolute(value: &[u8]) -> Result<PathBuffer, &'static str> {
    if value.first() != Some(&b'/') {
        return Err("is not an absolute path");
    }
    PathBuffer::new(value).ok_or("is longer than a path can be")
}

/// A path, kept without the heap: the program's environment may be overwritten.
#[derive(Clone, PartialEq, Eq)]
pub struct PathBuffer {
    /// With its NUL.
    bytes: ArrayVec<u8, { libc::PATH_MAX as usize }>,
}

impl PathBuffer {
    /// `None` if it is too long or contains a NUL.
    pub fn new(path: &[u8]) -> Option<Self> {
        let mut bytes = ArrayVec::new();
        bytes.try_extend_from_slice(path).ok()?;
        bytes.try_push(0).ok()?;
        CStr::from_bytes_with_nul(&bytes).ok()?;
        Some(Self { bytes })
    }

    /// As the system calls want it.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.bytes).unwrap_or_default()
    }
}

impl Default for PathBuffer {
    fn default() -> Self {
        let mut bytes = ArrayVec::new();
        let _ = bytes.try_push(0);
        Self { bytes }
    }
}

impl fmt::Display for PathBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Text(self.as_c_str().to_bytes()).fmt(f)
    }
}

impl fmt::Debug for PathBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_c_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<'a>(variables: &[(&str, &'a str)]) -> (Settings<'a>, Vec<String>) {
        let mut settings = Settings::parse(|name| {
            let found = variables
                .iter()
                .find(|(n, _)| n.as_bytes() == name.to_bytes());
            found.map(|(_, value)| value.as_bytes())
        });
        let problems = settings.problems.drain(..).map(|p| p.to_string()).collect();
        (settings, problems)
    }

    fn path(path: &str) -> PathBuffer {
        PathBuffer::new(path.as_bytes()).unwrap()
    }

    fn min_rss(value: &str) -> Option<u64> {
        let (settings, problems) = parse(&[("ASYNCFORK_MIN_RSS", value)]);
        problems.is_empty().then_some(settings.config.min_rss)
    }

    #[test]
    fn nothing_set_is_the_default() {
        let (settings, problems) = parse(&[]);
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.config.min_rss, 64 * 1024 * 1024);
        assert_eq!(settings.config.device, path("/dev/asyncfork"));
        assert!(problems.is_empty());
    }

    #[test]
    fn every_variable_is_read() {
        let (settings, problems) = parse(&[
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
            settings,
            Settings {
                config: Config {
                    mode: Mode::Require,
                    min_rss: 1 << 30,
                    helpers: 3,
                    device: path("/run/asyncfork"),
                },
                programs: b"redis-server, valkey-server,",
                log: LevelFilter::Debug,
                log_file: Some(path("/var/log/asyncfork.log")),
                problems: ArrayVec::new(),
            }
        );
        let programs: Vec<_> = names(settings.programs).collect();
        assert_eq!(programs, [&b"redis-server"[..], b"valkey-server"]);
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
        let (settings, problems) = parse(&[("ASYNCFORK_MIN_RSS", "64X")]);
        assert_eq!(settings, Settings::default());
        assert_eq!(
            problems,
            [r#"ASYNCFORK_MIN_RSS="64X" is not a size (try 64M); using the default"#]
        );
    }

    #[test]
    fn one_bad_value_does_not_void_the_others() {
        let long = "/".repeat(4096);
        let (settings, problems) = parse(&[
            ("ASYNCFORK", "on"),
            ("ASYNCFORK_MIN_RSS", "1M"),
            ("ASYNCFORK_THREADS", "many"),
            ("ASYNCFORK_LOG", "verbose"),
            ("ASYNCFORK_LOG_FILE", "asyncfork.log"),
            ("ASYNCFORK_DEVICE", &long),
        ]);
        let mut want = Settings::default();
        want.config.min_rss = 1 << 20;
        assert_eq!(settings, want);
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn empty_counts_as_unset() {
        let (settings, problems) = parse(&[("ASYNCFORK", ""), ("ASYNCFORK_MATCH", " ")]);
        assert_eq!(settings, Settings::default());
        assert_eq!(names(b" , ").count(), 0);
        assert!(problems.is_empty());
    }

    #[test]
    fn a_path_counts_by_its_last_part() {
        let names: Vec<_> = names(b"/usr/bin/redis-server,valkey").collect();
        assert_eq!(names, [&b"redis-server"[..], b"valkey"]);
    }

    #[test]
    fn a_path_is_kept_whole_or_not_at_all() {
        let longest = "/".repeat(4095);
        assert_eq!(path(&longest).as_c_str().to_bytes(), longest.as_bytes());
        assert_eq!(PathBuffer::new(&[b'/'; 4096]), None);
        assert_eq!(PathBuffer::new(b"/a\0b"), None);
        assert_eq!(PathBuffer::default().as_c_str(), c"");
    }

    #[test]
    fn a_value_cannot_start_a_log_line_of_its_own() {
        let (_, problems) = parse(&[("ASYNCFORK_LOG", "x\nasyncfork[1] error: y")]);
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].contains('\n'), "{problems:?}");
    }
}
