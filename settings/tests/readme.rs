// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of settings in README.md is the table of this crate.

use std::fs;
use std::path::Path;

use asyncfork_settings::{Setting, Unset, SETTINGS};

/// What README.md says ahead of the table.
const TITLE: &str = "Settings of the library";

/// Name and default of each row of the table in `text`.
fn rows(text: &str) -> Vec<(String, String)> {
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let mut cell = || cells.next().unwrap_or_default().to_owned();
        (cell(), cell())
    };
    let mut table = text
        .lines()
        .skip_while(|line| !line.starts_with(TITLE))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .map(row);
    assert_eq!(table.next(), Some(("name".into(), "default".into())));
    table.skip(1).collect()
}

/// A row as it should be.
fn wanted(setting: &Setting) -> (String, String) {
    let default = match setting.default {
        Unset::Value(value) => format!("`{value}`"),
        Unset::Words(words) => words.to_owned(),
    };
    (format!("`{}`", setting.name()), default)
}

#[test]
fn the_readme_lists_the_settings_and_their_defaults() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let rows = rows(&fs::read_to_string(readme).unwrap());
    let wanted: Vec<_> = SETTINGS.iter().map(wanted).collect();
    assert_eq!(rows, wanted, "README.md, settings/src/table.rs");
}
