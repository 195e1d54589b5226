// SPDX-License-Identifier: MIT OR Apache-2.0
//! The module's options at load: modprobe.d, and the kernel command line.

use std::ffi::OsStr;
use std::path::Path;

use crate::host::Host;

/// The file that `on` and `off` write.
pub const FILE: &str = "/etc/modprobe.d/asyncfork.conf";
/// Where modprobe looks, ours first.
const DIRECTORIES: &[&str] = &[
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
];

/// The options in a line `options asyncfork ...`; none for others.
fn options(line: &str) -> Option<Vec<&str>> {
    let mut words = line.split_whitespace();
    let ours = words.next() == Some("options") && words.next() == Some("asyncfork");
    ours.then(|| words.collect())
}

fn is_enabled(option: &str) -> bool {
    option == "enabled" || option.starts_with("enabled=")
}

/// `text` with `enabled=0` for the module if it is to be off, and without any `enabled`
/// if not. Other lines and other options stay, and all of it if nothing is to change.
pub fn with_switch(text: &str, on: bool) -> String {
    let set: Vec<_> = text.lines().filter_map(options).flatten().collect();
    if switches_off(&set) != on {
        return text.to_owned();
    }
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        match options(line) {
            Some(options) if options.iter().any(|option| is_enabled(option)) => {
                let others: Vec<_> = options
                    .into_iter()
                    .filter(|option| !is_enabled(option))
                    .collect();
                if !others.is_empty() {
                    lines.push(format!("options asyncfork {}", others.join(" ")));
                }
            }
            _ => lines.push(line.to_owned()),
        }
    }
    if !on {
        lines.push("options asyncfork enabled=0".into());
    }
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn switches_off(options: &[&str]) -> bool {
    let last = options.iter().rev().find(|option| is_enabled(option));
    last.is_some_and(|option| matches!(*option, "enabled=0" | "enabled=N" | "enabled=n"))
}

/// What switches the module off when it is loaded: files, or the kernel command line.
pub fn off_at_load(host: &Host) -> Vec<String> {
    let mut places = Vec::new();
    // A file hides those of its name in later directories; /lib may be /usr/lib.
    let mut seen = Vec::new();
    for directory in DIRECTORIES {
        for name in host.list(directory) {
            let path = Path::new(directory).join(&name);
            if path.extension() != Some(OsStr::new("conf")) || seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let text = host.read(&path).unwrap_or_default();
            if text.lines().filter_map(options).any(|o| switches_off(&o)) {
                places.push(path.display().to_string());
            }
        }
    }
    let line = host.line("/proc/cmdline").unwrap_or_default();
    let ours: Vec<_> = line
        .split_whitespace()
        .filter_map(|w| w.strip_prefix("asyncfork."))
        .collect();
    if switches_off(&ours) {
        places.push("the kernel command line (asyncfork.enabled)".into());
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn other_lines_and_options_stay() {
        let text = "# mine\noptions asyncfork max_sessions=9 enabled=1\nblacklist x\noptions other enabled=0\n";
        let off = with_switch(text, false);
        assert_eq!(
            off,
            "# mine\noptions asyncfork max_sessions=9\nblacklist x\noptions other enabled=0\noptions asyncfork enabled=0\n"
        );
        assert_eq!(with_switch(&off, false), off);
        let on = with_switch(&off, true);
        assert_eq!(
            on,
            "# mine\noptions asyncfork max_sessions=9\nblacklist x\noptions other enabled=0\n"
        );
        assert_eq!(with_switch(&on, true), on);
        assert_eq!(with_switch("options asyncfork enabled=0\n", true), "");
        assert_eq!(with_switch("", true), "");
        assert_eq!(with_switch("no newline", true), "no newline");
    }

    #[test]
    fn what_switches_it_off_at_load_is_found() {
        let fake = Fake::new();
        assert!(off_at_load(&fake.host).is_empty());
        fake.write("/etc/modprobe.d/a.conf", "options asyncfork enabled=0\n")
            .write("/etc/modprobe.d/b.conf", "options asyncfork enabled=1\n")
            .write("/etc/modprobe.d/c.conf~", "options asyncfork enabled=0\n")
            .write("/lib/modprobe.d/b.conf", "options asyncfork enabled=0\n")
            .write("/proc/cmdline", "quiet asyncfork.enabled=0 ro\n");
        let places = off_at_load(&fake.host);
        assert_eq!(
            places,
            [
                "/etc/modprobe.d/a.conf",
                "the kernel command line (asyncfork.enabled)"
            ]
        );
    }
}
