// SPDX-License-Identifier: MIT OR Apache-2.0
//! Case by case: what a program says under stock and under async forks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::env::EXIT_STATUS;
use crate::suite::{Case, Fork, Verdict};

/// How one case ended, by its name; names that a program uses twice are numbered.
pub type Verdicts = BTreeMap<String, Verdict>;

/// Makes the names unique, in order.
pub fn by_name(cases: Vec<Case>) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for case in cases {
        let mut name = case.name.clone();
        let mut n = 1;
        while verdicts.contains_key(&name) {
            n += 1;
            name = format!("{} ({n})", case.name);
        }
        verdicts.insert(name, case.verdict);
    }
    verdicts
}

/// Numbers of cases by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub pass: usize,
    pub fail: usize,
    pub skip: usize,
}

impl Counts {
    pub fn of(verdicts: &Verdicts) -> Self {
        let count = |v| verdicts.values().filter(|&&x| x == v).count();
        Self {
            pass: count(Verdict::Pass),
            fail: count(Verdict::Fail),
            skip: count(Verdict::Skip),
        }
    }
}

/// All runs of a program.
#[derive(Debug, Default)]
pub struct Runs {
    stock: Vec<Verdicts>,
    armed: Vec<Verdicts>,
}

/// A case that ends otherwise under async forks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub case: String,
    /// Its verdicts, a word a run.
    pub stock: Vec<String>,
    pub armed: Vec<String>,
    /// It never ends like that under stock forks.
    pub defect: bool,
}

impl Runs {
    pub fn add(&mut self, fork: Fork, cases: Vec<Case>) {
        match fork {
            Fork::Stock => self.stock.push(by_name(cases)),
            Fork::Armed => self.armed.push(by_name(cases)),
        }
    }

    /// The first run of a kind.
    pub fn first(&self, fork: Fork) -> Counts {
        let runs = match fork {
            Fork::Stock => &self.stock,
            Fork::Armed => &self.armed,
        };
        runs.first().map(Counts::of).unwrap_or_default()
    }

    /// How often it ran, stock or armed.
    pub fn count(&self) -> usize {
        self.stock.len().max(self.armed.len())
    }

    /// Cases that in some armed run were worse than in the best stock run: failed, skipped or not reached.
    pub fn differences(&self) -> Vec<Difference> {
        // Then a case that an armed run did not come to tells nothing.
        let ends_early = self
            .stock
            .iter()
            .any(|run| run.get(EXIT_STATUS) == Some(&Verdict::Fail));
        let all = self.stock.iter().chain(&self.armed);
        let names: BTreeSet<&String> = all.flat_map(BTreeMap::keys).collect();
        names
            .into_iter()
            .filter_map(|name| {
                let stock = ranks(&self.stock, name);
                let armed = ranks(&self.armed, name);
                // A case that only failed runs have, such as a crash, is a failure. Else absence is worse than skipping.
                let best = *stock.iter().min()?;
                let worst = *armed.iter().max()?;
                let bad = |r: Rank, others: &[Rank]| match r {
                    Rank::Fail => true,
                    Rank::Absent | Rank::Skip => others.contains(&Rank::Pass),
                    Rank::Pass => false,
                };
                let differs = worst > best && bad(worst, &stock);
                let stock_too = stock.iter().any(|&r| r >= worst);
                let not_reached = worst == Rank::Absent && ends_early;
                differs.then(|| Difference {
                    case: name.clone(),
                    stock: stock.iter().map(|r| r.word().to_owned()).collect(),
                    armed: armed.iter().map(|r| r.word().to_owned()).collect(),
                    defect: !stock_too && !not_reached,
                })
            })
            .collect()
    }
}

/// From good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Pass,
    Skip,
    Absent,
    Fail,
}

impl Rank {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Absent => "absent",
            Self::Fail => "fail",
        }
    }
}

fn ranks(runs: &[Verdicts], name: &str) -> Vec<Rank> {
    runs.iter()
        .map(|run| match run.get(name) {
            Some(Verdict::Pass) => Rank::Pass,
            Some(Verdict::Skip) => Rank::Skip,
            Some(Verdict::Fail) => Rank::Fail,
            None => Rank::Absent,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Fail, Pass, Skip};

    fn runs(stock: &[&[(&str, Verdict)]], armed: &[&[(&str, Verdict)]]) -> Runs {
        let mut runs = Runs::default();
        let cases = |run: &[(&str, Verdict)]| run.iter().map(|&(n, v)| Case::new(n, v)).collect();
        stock.iter().for_each(|r| runs.add(Fork::Stock, cases(r)));
        armed.iter().for_each(|r| runs.add(Fork::Armed, cases(r)));
        runs
    }

    fn defects(runs: &Runs) -> Vec<String> {
        let differences = runs.differences().into_iter().filter(|d| d.defect);
        differences.map(|d| d.case).collect()
    }

    #[test]
    fn what_fails_stock_too_is_no_difference() {
        let runs = runs(
            &[&[("a", Pass), ("b", Fail), ("c", Skip)]],
            &[&[("a", Pass), ("b", Fail), ("c", Skip)]],
        );
        assert_eq!(runs.differences(), []);
        assert_eq!(
            runs.first(Fork::Armed),
            Counts {
                pass: 1,
                fail: 1,
                skip: 1
            }
        );
    }

    #[test]
    fn a_case_that_fails_only_armed_is_a_defect() {
        assert_eq!(defects(&runs(&[&[("a", Pass)]], &[&[("a", Fail)]])), ["a"]);
        assert_eq!(defects(&runs(&[&[("a", Skip)]], &[&[("a", Fail)]])), ["a"]);
        assert_eq!(
            defects(&runs(&[&[]], &[&[("exit status", Fail)]])),
            ["exit status"]
        );
    }

    #[test]
    fn a_case_that_is_skipped_or_missing_only_armed_is_a_defect() {
        assert_eq!(defects(&runs(&[&[("a", Pass)]], &[&[("a", Skip)]])), ["a"]);
        assert_eq!(defects(&runs(&[&[("a", Pass)]], &[&[]])), ["a"]);
        // Not so what stock forks do not pass either, or what only armed runs have.
        assert_eq!(defects(&runs(&[&[("a", Fail)]], &[&[]])), [""; 0]);
        assert_eq!(defects(&runs(&[&[("a", Skip)]], &[&[]])), [""; 0]);
        assert_eq!(defects(&runs(&[&[]], &[&[("a", Pass)]])), [""; 0]);
    }

    #[test]
    fn a_case_that_fails_stock_sometimes_is_flaky() {
        let runs = runs(
            &[&[("a", Pass)], &[("a", Fail)]],
            &[&[("a", Fail)], &[("a", Pass)]],
        );
        let found = runs.differences();
        assert_eq!(found.len(), 1);
        assert!(!found[0].defect);
        assert_eq!(found[0].stock, ["pass", "fail"]);
    }

    #[test]
    fn a_case_that_was_not_reached_tells_nothing_if_stock_runs_end_early_too() {
        let early: &[_] = &[(EXIT_STATUS, Fail)];
        let whole: &[_] = &[("a", Pass)];
        assert_eq!(
            defects(&runs(&[whole, whole], &[early])),
            ["a", EXIT_STATUS]
        );
        assert_eq!(defects(&runs(&[whole, early], &[early])), [""; 0]);
        // It still counts if it fails.
        assert_eq!(defects(&runs(&[whole, early], &[&[("a", Fail)]])), ["a"]);
    }

    #[test]
    fn equal_names_are_numbered() {
        let cases = vec![
            Case::new("a", Pass),
            Case::new("a", Fail),
            Case::new("a", Skip),
        ];
        let verdicts = by_name(cases);
        assert_eq!(verdicts["a"], Pass);
        assert_eq!(verdicts["a (2)"], Fail);
        assert_eq!(verdicts["a (3)"], Skip);
    }
}
