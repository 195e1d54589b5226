// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one list of settings, and what follows from it.

use core::ffi::CStr;
use core::fmt;

use arrayvec::ArrayVec;
use asyncfork_uapi::DEVICE;
use log::LevelFilter;

use crate::path::PathBuffer;
use crate::value::{self, Complaint, Mode};

/// One environment variable.
#[derive(Debug)]
pub struct Setting {
    name: &'static CStr,
    /// What holds without it.
    pub default: Unset,
    /// The values that are good, for people.
    pub accepts: &'static str,
    /// What it is for, in one line.
    pub help: &'static str,
    /// Puts a value in its place.
    apply: for<'a> fn(&mut Settings<'a>, &'a [u8]) -> Result<(), Complaint>,
}

impl Setting {
    /// The variable's name.
    pub fn name(&self) -> &'static str {
        self.name.to_str().unwrap_or_default()
    }
}

/// What an unset variable means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// The same as this value.
    Value(&'static str),
    /// What no value says; in words.
    Words(&'static str),
}

/// Makes [`Settings`], its default and [`SETTINGS`] of the list.
macro_rules! settings {
    ($($field:ident: $type:ty = $initial:expr => {
        name: $name:literal,
        default: $default:expr,
        accepts: $accepts:literal,
        help: $help:literal,
        parse: $parse:path,
    })*) => {
        /// What the variables say in one process.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Settings<'a> {
            $(#[doc = $help] pub $field: $type,)*
        }

        impl Default for Settings<'_> {
            fn default() -> Self {
                Self { $($field: $initial,)* }
            }
        }

        /// All settings, in the order in which they are documented and read.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            name: $name,
            default: $default,
            accepts: $accepts,
            help: $help,
            apply: |settings, value| {
                settings.$field = $parse(value)?;
                Ok(())
            },
        },)*];
    };
}

// The table in README.md says the same; tests/readme.rs compares.
settings! {
    mode: Mode = Mode::Auto => {
        name: c"ASYNCFORK",
        default: Unset::Value("auto"),
        accepts: "auto, off, require",
        help: "auto: arm, otherwise a stock fork; off: never arm; require: arm, otherwise fail",
        parse: value::mode,
    }
    min_rss: u64 = 64 << 20 => {
        name: c"ASYNCFORK_MIN_RSS",
        default: Unset::Value("64M"),
        accepts: "bytes, or with K, M, G, T",
        help: "bytes; processes with less resident memory use a stock fork",
        parse: value::bytes,
    }
    helpers: u32 = 0 => {
        name: c"ASYNCFORK_THREADS",
        default: Unset::Value("0"),
        accepts: "0 and up",
        help: "kernel threads that help the child copy; cut to what the module allows",
        parse: value::count,
    }
    programs: &'a [u8] = b"" => {
        name: c"ASYNCFORK_MATCH",
        default: Unset::Words("all programs"),
        accepts: "names, comma-separated",
        help: "programs to arm, by the executable's file name or the name it was started under",
        parse: value::list,
    }
    log: LevelFilter = LevelFilter::Warn => {
        name: c"ASYNCFORK_LOG",
        default: Unset::Value("warn"),
        accepts: "off, error, warn, info, debug",
        help: "what is logged; info: each asynchronous fork, debug: each fork",
        parse: value::level,
    }
    log_file: Option<PathBuffer> = None => {
        name: c"ASYNCFORK_LOG_FILE",
        default: Unset::Words("standard error"),
        accepts: "absolute path",
        help: "where log lines go; made with mode 0600, appended to",
        parse: value::some_absolute,
    }
    device: PathBuffer = PathBuffer::new(DEVICE.to_bytes()).unwrap_or_default() => {
        name: c"ASYNCFORK_DEVICE",
        default: Unset::Value("/dev/asyncfork"),
        accepts: "absolute path",
        help: "the module's device, where it has another name, as in containers",
        parse: value::absolute,
    }
}

/// What is wrong, at most once for each setting.
pub type Problems<'a> = ArrayVec<Problem<'a>, { SETTINGS.len() }>;

/// One value that cannot be used.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    setting: &'static Setting,
    value: &'a [u8],
    complaint: Complaint,
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = (self.setting.name(), self.value.escape_ascii());
        write!(f, "{name}=\"{value}\" ")?;
        match self.complaint {
            Complaint::Choice => write!(f, "is none of {}", self.setting.accepts),
            Complaint::Text(text) => f.write_str(text),
        }?;
        f.write_str("; using the default")
    }
}

impl<'a> Settings<'a> {
    /// Reads the settings from `get`, which looks a variable up. A variable
    /// that is empty counts as unset; a bad one does not void the others.
    pub fn parse(get: impl Fn(&CStr) -> Option<&'a [u8]>) -> (Self, Problems<'a>) {
        let mut settings = Self::default();
        let mut problems = ArrayVec::new();
        for setting in SETTINGS {
            let value = get(setting.name).unwrap_or(b"").trim_ascii();
            if value.is_empty() {
                continue;
            }
            if let Err(complaint) = (setting.apply)(&mut settings, value) {
                // One for each setting: they fit.
                let _ = problems.try_push(Problem {
                    setting,
                    value,
                    complaint,
                });
            }
        }
        (settings, problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::names;

    fn parse<'a>(variables: &[(&str, &'a str)]) -> (Settings<'a>, Vec<String>) {
        let (settings, problems) = Settings::parse(|name| {
            let found = variables
                .iter()
                .find(|(n, _)| n.as_bytes() == name.to_bytes());
            found.map(|(_, value)| value.as_bytes())
        });
        (settings, problems.iter().map(Problem::to_string).collect())
    }

    fn path(path: &str) -> PathBuffer {
        PathBuffer::new(path.as_bytes()).unwrap()
    }

    fn min_rss(value: &str) -> Option<u64> {
        let (settings, problems) = parse(&[("ASYNCFORK_MIN_RSS", value)]);
        problems.is_empty().then_some(settings.min_rss)
    }

    #[test]
    fn nothing_set_is_the_default() {
        let (settings, problems) = parse(&[]);
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.min_rss, 64 * 1024 * 1024);
        assert_eq!(settings.device, path("/dev/asyncfork"));
        assert!(problems.is_empty());
    }

    #[test]
    fn the_default_is_as_the_table_has_it() {
        // Of values that are not, so that a default that sets nothing is noticed.
        let other = [
            ("ASYNCFORK", "off"),
            ("ASYNCFORK_MIN_RSS", "1"),
            ("ASYNCFORK_THREADS", "1"),
            ("ASYNCFORK_LOG", "debug"),
            ("ASYNCFORK_DEVICE", "/other"),
        ];
        let (mut settings, _) = parse(&other);
        assert_ne!(settings, Settings::default());
        for setting in SETTINGS {
            let set = other.iter().any(|(name, _)| *name == setting.name());
            match setting.default {
                Unset::Value(value) => {
                    assert!(set, "{}", setting.name());
                    (setting.apply)(&mut settings, value.as_bytes()).unwrap();
                }
                Unset::Words(_) => assert!(!set, "{}", setting.name()),
            }
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn every_choice_of_the_table_is_accepted() {
        let choices = SETTINGS.iter().filter(|setting| {
            let refused = (setting.apply)(&mut Settings::default(), b"no such choice");
            refused == Err(Complaint::Choice)
        });
        let mut names = Vec::new();
        for setting in choices {
            names.push(setting.name());
            for choice in setting.accepts.split(", ") {
                let applied = (setting.apply)(&mut Settings::default(), choice.as_bytes());
                assert_eq!(applied, Ok(()), "{} {choice}", setting.name());
            }
        }
        assert_eq!(names, ["ASYNCFORK", "ASYNCFORK_LOG"]);
    }

    #[test]
    fn every_variable_is_read() {
        let variables = [
            ("ASYNCFORK", "require"),
            ("ASYNCFORK_MIN_RSS", "1G"),
            ("ASYNCFORK_THREADS", "3"),
            ("ASYNCFORK_MATCH", "redis-server, valkey-server,"),
            ("ASYNCFORK_LOG", "DEBUG"),
            ("ASYNCFORK_LOG_FILE", "/var/log/asyncfork.log"),
            ("ASYNCFORK_DEVICE", "/run/asyncfork"),
        ];
        let (settings, problems) = parse(&variables);
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            settings,
            Settings {
                mode: Mode::Require,
                min_rss: 1 << 30,
                helpers: 3,
                programs: b"redis-server, valkey-server,",
                log: LevelFilter::Debug,
                log_file: Some(path("/var/log/asyncfork.log")),
                device: path("/run/asyncfork"),
            }
        );
        let programs: Vec<_> = names(settings.programs).collect();
        assert_eq!(programs, [&b"redis-server"[..], b"valkey-server"]);
        let names: Vec<_> = SETTINGS.iter().map(Setting::name).collect();
        assert_eq!(names, variables.map(|(name, _)| name));
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
        let want = Settings {
            min_rss: 1 << 20,
            ..Settings::default()
        };
        assert_eq!(settings, want);
        let device =
            format!(r#"ASYNCFORK_DEVICE="{long}" is longer than a path can be; using the default"#);
        assert_eq!(
            problems,
            [
                r#"ASYNCFORK="on" is none of auto, off, require; using the default"#,
                r#"ASYNCFORK_THREADS="many" is not a number of threads (try 2); using the default"#,
                r#"ASYNCFORK_LOG="verbose" is none of off, error, warn, info, debug; using the default"#,
                r#"ASYNCFORK_LOG_FILE="asyncfork.log" is not an absolute path; using the default"#,
                &device,
            ]
        );
    }

    #[test]
    fn empty_counts_as_unset() {
        let (settings, problems) = parse(&[("ASYNCFORK", ""), ("ASYNCFORK_MATCH", " ")]);
        assert_eq!(settings, Settings::default());
        assert_eq!(names(b" , ").count(), 0);
        assert!(problems.is_empty());
    }

    #[test]
    fn a_value_cannot_start_a_log_line_of_its_own() {
        let (_, problems) = parse(&[("ASYNCFORK_LOG", "x\nasyncfork[1] error: y")]);
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].contains('\n'), "{problems:?}");
    }
}
