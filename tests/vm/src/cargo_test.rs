// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the totals from `cargo test`'s output.

/// The sum over all test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub passed: usize,
    pub failed: Vec<String>,
    pub ignored: usize,
}

/// Sums up the `test result:` lines and collects the names that failed.
pub fn totals(output: &str) -> Totals {
    let mut totals = Totals::default();
    for line in output.lines() {
        if let Some(result) = line.strip_prefix("test result: ") {
            totals.passed += number_before(result, " passed");
            totals.ignored += number_before(result, " ignored");
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            totals.failed.push(name.to_owned());
        }
    }
    totals
}

fn number_before(text: &str, word: &str) -> usize {
    text.split_once(word)
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_binaries_are_summed_up() {
        let output = "\
running 3 tests
test dmesg::tests::a ... ok
test dmesg::tests::b ... FAILED
test src/lib.rs - (line 6) - compile ... FAILED
test c ... ignored, needs root

failures:
    dmesg::tests::b

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.30s
";
        assert_eq!(
            totals(output),
            Totals {
                passed: 13,
                failed: vec![
                    "dmesg::tests::b".into(),
                    "src/lib.rs - (line 6) - compile".into()
                ],
                ignored: 1,
            }
        );
        assert_eq!(totals("error: could not compile\n"), Totals::default());
    }
}
