// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of the kernel's `glob_match()` that the list uses.

use anyhow::{ensure, Context, Result};

/// Whether the pattern stands for the text: `*` is anything, `[0-9]`, `[34]` and `[.+]` are
/// one of these characters, all else is itself.
pub(crate) fn matches(glob: &str, text: &str) -> bool {
    let (Some(first), next) = (glob.chars().next(), text.chars().next()) else {
        return text.is_empty();
    };
    let rest = &text[next.map_or(0, char::len_utf8)..];
    match (first, next) {
        ('*', next) => matches(&glob[1..], text) || next.is_some() && matches(glob, rest),
        (_, None) => false,
        ('[', Some(next)) => {
            let (class, glob) = glob[1..].split_once(']').unwrap_or((&glob[1..], ""));
            one_of(class).contains(&next) && matches(glob, rest)
        }
        (first, Some(next)) => first == next && matches(&glob[first.len_utf8()..], rest),
    }
}

/// The characters of a class.
fn one_of(class: &str) -> Vec<char> {
    match class.chars().collect::<Vec<_>>()[..] {
        [from, '-', to] => (from..=to).collect(),
        ref chars => chars.to_vec(),
    }
}

/// Texts that the pattern stands for: each class with its first and its last character,
/// each `*` with nothing and with digits.
#[cfg(test)]
pub(crate) fn samples(glob: &str) -> Vec<String> {
    let Some(first) = glob.chars().next() else {
        return vec![String::new()];
    };
    let (heads, rest) = match first {
        '*' => (["", "1", "17"].map(str::to_owned).to_vec(), &glob[1..]),
        '[' => {
            let (class, rest) = glob[1..].split_once(']').expect("check() was here");
            let all = one_of(class);
            let ends = [all.first(), all.last()].map(|c| c.expect("not empty").to_string());
            (ends.to_vec(), rest)
        }
        other => (vec![other.to_string()], &glob[other.len_utf8()..]),
    };
    let tails = samples(rest);
    heads
        .iter()
        .flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}")))
        .collect()
}

/// Refuses what `glob_match()` takes otherwise than [`matches`].
pub(crate) fn check(glob: &str) -> Result<()> {
    let mut rest = glob;
    while let Some((before, class)) = rest.split_once('[') {
        ensure!(!before.contains(']'), "a ] without its [");
        let (class, after) = class.split_once(']').context("a [ without its ]")?;
        let digit = |c: &char| c.is_ascii_digit();
        let good = match class.chars().collect::<Vec<_>>()[..] {
            [from, '-', to] => digit(&from) && digit(&to) && from < to,
            ref chars => !chars.is_empty() && chars.iter().all(|c| digit(c) || ".+".contains(*c)),
        };
        ensure!(
            good,
            "[{class}]: digits, dots and plus signs only, such as [0-9], [34] or [.+]"
        );
        rest = after;
    }
    ensure!(!rest.contains(']'), "a ] without its [");
    ensure!(
        !glob.contains(['?', '\\']),
        "of the wildcards only * and [] are used"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_what_the_module_takes_it_for() {
        let glob = "6.12.[0-9]*[0-9]+deb13.[34]-amd64";
        for good in ["6.12.00+deb13.3-amd64", "6.12.1-x9+deb13.4-amd64"] {
            assert!(matches(glob, good), "{good}");
        }
        for bad in [
            "6.12.1+deb13.3-amd64",
            "6.12.11+deb13.2-amd64",
            "6.12.11+deb13.34-amd64",
            "6.12.11+deb13.3-amd64 ",
            "6x12.11+deb13.3-amd64",
            "6.12.11",
            "",
        ] {
            assert!(!matches(glob, bad), "{bad}");
        }
        assert!(matches("", "") && !matches("", "6"));
    }

    #[test]
    fn samples_are_of_their_pattern_and_of_its_ends() {
        let glob = "6.12.[0-9]*[0-9]+deb13.[34]-amd64";
        let samples = samples(glob);
        assert_eq!(samples.len(), 2 * 3 * 2 * 2);
        assert!(samples.iter().all(|s| matches(glob, s)), "{samples:?}");
        for one in ["6.12.00+deb13.3-amd64", "6.12.9179+deb13.4-amd64"] {
            assert!(samples.iter().any(|s| s == one), "{one}: {samples:?}");
        }
    }

    #[test]
    fn other_patterns_are_refused() {
        assert!(check("6.12.[0-9]*[0-9]+deb1[34]-amd64").is_ok());
        for bad in [
            "6.1.[0-9",
            "6.1.0-9]",
            "6.1.[]",
            "6.1.[!0]",
            "6.1.[a-z]",
            "6.1.[9-0]",
            "6.1.?",
            "6.1.\\*",
            "6.1.[0-9-]",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
