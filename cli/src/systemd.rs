// SPDX-License-Identifier: MIT OR Apache-2.0
//! systemd, by systemctl.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use anyhow::Result;

use crate::exit;
use crate::host::{Host, Output};

/// The instance by which a template is read back.
const PROBE: &str = "asyncfork-check";

/// Name of a service: plain, template or instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit(String);

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Unit {
    /// Checks a name; `.service` may be left out.
    ///
    /// # Errors
    /// It cannot be that of a service.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            exit::input(format!(
                "{text:?} {why}: give a service, such as redis-server, redis-server@.service or redis-server@a"
            ))
        };
        if text.contains('/') {
            return Err(wrong("is a path, no unit"));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if text.is_empty()
            || text.len() > 240
            || text.starts_with(['-', '.'])
            || !text.chars().all(legal)
        {
            return Err(wrong("is no name of a unit"));
        }
        const OTHERS: &[&str] = &[
            "socket",
            "target",
            "device",
            "mount",
            "automount",
            "swap",
            "timer",
            "path",
            "slice",
            "scope",
        ];
        let name = match text.rsplit_once('.') {
            Some((_, "service")) => text.to_owned(),
            Some((_, kind)) if OTHERS.contains(&kind) => return Err(wrong("is no service")),
            _ => format!("{text}.service"),
        };
        let stem = name.strip_suffix(".service").unwrap_or(&name);
        if stem.is_empty() || stem.starts_with('@') {
            return Err(wrong("is no name of a unit"));
        }
        Ok(Self(name))
    }

    /// Whether it is a template, which is not started itself.
    pub fn is_template(&self) -> bool {
        self.0.ends_with("@.service")
    }

    /// A name that systemd can say something about: an instance, of a template.
    fn shown(&self) -> String {
        if self.is_template() {
            self.0.replace("@.service", &format!("@{PROBE}.service"))
        } else {
            self.0.clone()
        }
    }

    /// Where the drop-in is.
    pub fn drop_in(&self) -> String {
        format!("/etc/systemd/system/{}.d/asyncfork.conf", self.0)
    }
}

/// What systemd knows of a unit.
#[derive(Debug, Clone, Default)]
pub struct Shown(BTreeMap<String, String>);

/// The properties that are asked for.
const PROPERTIES: &str = "Id,LoadState,LoadError,ActiveState,MainPID,ControlGroup,NeedDaemonReload,DropInPaths,\
                          ActiveEnterTimestampMonotonic,Environment,ExecStartPre,PrivateDevices,DevicePolicy,\
                          DeviceAllow,SupplementaryGroups";

impl Shown {
    /// A property, empty if systemd has not said it.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether its processes run.
    pub fn is_active(&self) -> bool {
        matches!(
            self.get("ActiveState"),
            "active" | "reloading" | "refreshing"
        )
    }

    /// The pid of its main process.
    pub fn main_pid(&self) -> Option<i32> {
        self.get("MainPID").parse().ok().filter(|&pid| pid > 0)
    }

    /// Its cgroup as in `/proc/PID/cgroup`; none if it does not run.
    pub fn cgroup(&self) -> Option<&str> {
        Some(self.get("ControlGroup")).filter(|path| !path.is_empty())
    }

    /// Whether the drop-in at `path` is in effect.
    pub fn has_drop_in(&self, path: &str) -> bool {
        self.get("DropInPaths")
            .split_whitespace()
            .any(|p| p == path)
    }

    /// A variable that the unit sets.
    pub fn variable(&self, name: &str) -> Option<String> {
        let words = shlex::split(self.get("Environment"))?;
        let prefix = format!("{name}=");
        words
            .iter()
            .rev()
            .find_map(|word| word.strip_prefix(&prefix).map(str::to_owned))
    }
}

fn systemctl(host: &Host, args: &[&str]) -> Result<Output> {
    host.run("systemctl", args).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            exit::cannot_tell("there is no systemctl here: use --pid or --cgroup, or asyncfork run")
        } else {
            exit::cannot_tell(format!("systemctl: {e}"))
        }
    })
}

/// What systemd knows of a unit; the name may be an alias, see `Id`.
///
/// # Errors
/// There is no systemd.
pub fn show(host: &Host, unit: &Unit) -> Result<Shown> {
    let name = unit.shown();
    let output = systemctl(host, &["show", "--property", PROPERTIES, "--", &name])?;
    if !output.success {
        return Err(exit::cannot_tell(format!(
            "systemctl show {name}: {}; without systemd, use --pid, --cgroup or asyncfork run",
            one_line(&output.stderr).trim_end_matches('.')
        )));
    }
    let mut shown = BTreeMap::<String, String>::new();
    for (key, value) in output.stdout.lines().filter_map(|l| l.split_once('=')) {
        let place = shown.entry(key.to_owned()).or_default();
        if !place.is_empty() {
            place.push('\n');
        }
        place.push_str(value);
    }
    Ok(Shown(shown))
}

/// As [`show`], of a unit that has to exist; gives its own name for an alias.
///
/// # Errors
/// There is no such unit, or it is masked.
pub fn find(host: &Host, unit: &Unit) -> Result<(Unit, Shown)> {
    let shown = show(host, unit)?;
    match shown.get("LoadState") {
        "loaded" => {}
        "masked" => {
            return Err(exit::input(format!(
                "{unit} is masked: systemctl unmask {unit}"
            )))
        }
        "not-found" | "" => {
            return Err(exit::input(format!(
                "there is no unit {unit}; systemctl list-unit-files '*.service' lists all"
            )))
        }
        other => {
            return Err(exit::input(format!(
                "systemd cannot load {unit} ({other}): systemctl status {unit}"
            )))
        }
    }
    let id = shown.get("Id");
    let real = if unit.is_template() || id.is_empty() {
        unit.clone()
    } else {
        Unit::parse(id)?
    };
    Ok((real, shown))
}

/// The unit's files, drop-ins included: path and text of each.
///
/// # Errors
/// systemd cannot say.
pub fn files(host: &Host, unit: &Unit) -> Result<Vec<(String, String)>> {
    let output = systemctl(host, &["cat", "--", &unit.0])?;
    if !output.success {
        return Err(exit::input(format!(
            "systemctl cat {unit}: {}",
            one_line(&output.stderr)
        )));
    }
    let mut files: Vec<(String, String)> = Vec::new();
    for line in output.stdout.lines() {
        match line.strip_prefix("# /") {
            // A comment of the same form is in the files of nobody we know.
            Some(path) if path.ends_with(".service") || path.ends_with(".conf") => {
                files.push((format!("/{path}"), String::new()));
            }
            _ => {
                if let Some((_, text)) = files.last_mut() {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
    }
    Ok(files)
}

/// Makes systemd read its files again.
///
/// # Errors
/// It refuses.
pub fn daemon_reload(host: &Host) -> Result<()> {
    expect(
        systemctl(host, &["daemon-reload"])?,
        "systemctl daemon-reload",
    )
}

/// Restarts a unit if it runs.
///
/// # Errors
/// It does not start again.
pub fn try_restart(host: &Host, unit: &Unit) -> Result<()> {
    let output = systemctl(host, &["try-restart", "--", &unit.0])?;
    expect(output, &format!("systemctl try-restart {unit}"))
}

fn expect(output: Output, what: &str) -> Result<()> {
    if output.success {
        Ok(())
    } else {
        Err(exit::failed(format!(
            "{what}: {}",
            one_line(&output.stderr)
        )))
    }
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// The settings of a unit's `[Service]` sections, in order.
pub fn service_settings<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    for text in texts {
        let joined = text.replace("\\\n", " ");
        let mut section = "";
        for line in joined.lines().map(str::trim) {
            if line.starts_with(['#', ';']) || line.is_empty() {
                continue;
            }
            if line.starts_with('[') {
                section = line;
            } else if let ("[Service]", Some((key, value))) = (section, line.split_once('=')) {
                settings.push((key.trim().to_owned(), value.trim().to_owned()));
            }
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::testing::Fake;

    #[test]
    fn names_of_services() {
        let name = |text: &str| Unit::parse(text).unwrap().to_string();
        assert_eq!(name("redis-server"), "redis-server.service");
        assert_eq!(name("redis-server.service"), "redis-server.service");
        assert_eq!(name("redis-server@a"), "redis-server@a.service");
        assert_eq!(
            name("redis-server@6379.conf"),
            "redis-server@6379.conf.service"
        );
        assert_eq!(name(r"a@b\x2dc"), r"a@b\x2dc.service");
        assert!(Unit::parse("redis-server@").unwrap().is_template());
        assert_eq!(
            Unit::parse("redis-server@").unwrap().drop_in(),
            "/etc/systemd/system/redis-server@.service.d/asyncfork.conf"
        );
        let long = "x".repeat(300);
        for bad in [
            "",
            ".service",
            "@.service",
            "-x",
            "a b",
            "../x",
            "/etc/x.service",
            "a.timer",
            "a.slice",
            "ü",
            "a\n",
            &long,
        ] {
            assert_eq!(
                exit::of(&Unit::parse(bad).unwrap_err()),
                Exit::Input,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn an_alias_gives_the_units_own_name() {
        let fake = Fake::new();
        fake.unit(
            "redis.service",
            "Id=redis-server.service\nLoadState=loaded\n",
        );
        let (unit, _) = find(&fake.host, &Unit::parse("redis").unwrap()).unwrap();
        assert_eq!(unit.to_string(), "redis-server.service");
    }

    #[test]
    fn units_that_cannot_be_used_say_what_to_do() {
        let fake = Fake::new();
        fake.unit("m.service", "LoadState=masked\n")
            .unit("b.service", "LoadState=bad-setting\n");
        for (name, words) in [
            ("m", "unmask"),
            ("b", "systemctl status b"),
            ("n", "no unit n.service"),
        ] {
            let error = find(&fake.host, &Unit::parse(name).unwrap()).unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn without_systemd_it_is_said() {
        let fake = Fake::new();
        fake.without_systemd();
        let error = show(&fake.host, &Unit::parse("a").unwrap()).unwrap_err();
        assert_eq!(exit::of(&error), Exit::CannotTell);
    }

    #[test]
    fn settings_are_read_as_systemd_does() {
        let text = "[Unit]\nDescription=x\n[Service]\n# no\nA=1\nEnvironment=X=1 \\\n Y=2\n[Install]\nB=3\n";
        assert_eq!(
            service_settings([text].into_iter()),
            [
                ("A".into(), "1".into()),
                ("Environment".into(), "X=1   Y=2".into())
            ]
        );
    }
}
