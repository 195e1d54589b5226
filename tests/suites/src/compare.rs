// SPDX-License-Identifier: MIT OR Apache-2.0
//! Case by case: what a program says under stock and under async forks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

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
    /// It ends like that clearly more often than under stock forks.
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
        let all = self.stock.iter().chain(&self.armed);
        let names: BTreeSet<&String> = all.flat_map(BTreeMap::keys).collect();
        names
            .into_iter()
            .filter_map(|name| {
                let stock = ranks(&self.stock, name);
                let armed = ranks(&self.armed, name);
                Some(Difference {
                    defect: is_defect(&stock, &armed)?,
                    case: name.clone(),
                    stock: stock.iter().map(|r| r.word().to_owned()).collect(),
                    armed: armed.iter().map(|r| r.word().to_owned()).collect(),
                })
            })
            .collect()
    }
}

/// Whether a case that is sometimes worse in armed runs than in the best stock run is so more than twice as often as in stock runs. None: it is
/// never worse.
fn is_defect(stock: &[Rank], armed: &[Rank]) -> Option<bool> {
    let best = *stock.iter().min()?;
    // A case that only failed runs have, such as a crash, is a failure. What passes has to be reached and not skipped, too.
    let bad = [Rank::Skip, Rank::Absent, Rank::Fail]
        .into_iter()
        .filter(|&bad| bad > best && (bad == Rank::Fail || best == Rank::Pass));
    let number = |runs: &[Rank], bad| runs.iter().filter(|&&rank| rank >= bad).count();
    bad.map(|bad| (number(stock, bad), number(armed, bad)))
        .filter(|&(_, armed_bad)| armed_bad > 0)
        .map(|(stock_bad, armed_bad)| armed_bad * stock.len() > 2 * stock_bad * armed.len())
        .max()
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

    /// Whether a case is a defect that failed so many times in so many runs.
    fn fails(stock: (usize, usize), armed: (usize, usize)) -> bool {
        let ranks = |(bad, all)| [vec![Rank::Fail; bad], vec![Rank::Pass; all - bad]].concat();
        is_defect(&ranks(stock), &ranks(armed)).unwrap()
    }

    #[test]
    fn one_bad_stock_run_does_not_excuse_all_armed_ones() {
        assert!(fails((1, 5), (4, 4)));
        assert!(fails((1, 9), (3, 9)));
        assert!(!fails((1, 9), (2, 9)));
        assert!(!fails((4, 8), (8, 8)));
        assert!(fails((0, 9), (1, 9)));
    }

    #[test]
    fn each_way_to_be_bad_is_counted_by_itself() {
        use Rank::{Absent, Fail, Pass};
        // One failure is as frequent as with stock forks, but they reach the case each time.
        let stock = [Pass, Pass, Pass, Fail];
        assert_eq!(
            is_defect(&stock, &[Absent, Absent, Absent, Fail]),
            Some(true)
        );
        assert_eq!(is_defect(&stock, &[Pass, Pass, Pass, Fail]), Some(false));
    }

    #[test]
    fn a_stock_run_that_ends_early_excuses_only_what_it_lacks_itself() {
        let whole: &[_] = &[("a", Pass), ("b", Pass)];
        let after_a: &[_] = &[("a", Pass), ("exit status", Fail)];
        let before_a: &[_] = &[("exit status", Fail)];
        assert_eq!(
            defects(&runs(&[whole, after_a], &[after_a, whole])),
            [""; 0]
        );
        assert_eq!(defects(&runs(&[whole, after_a], &[before_a, whole])), ["a"]);
        let timed_out: &[_] = &[("a", Pass), ("time limit", Fail)];
        assert_eq!(
            defects(&runs(&[whole, after_a], &[timed_out, whole])),
            ["time limit"]
        );
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
