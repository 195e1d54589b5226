// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which results count. A verdict is worth as much as the boot that it is from: what the guest took for passed does not count if the host found
//! a complaint in the kernel's log, or if the guest did not get so far that the log was checked.

use std::collections::BTreeMap;

use crate::results::{Ended, Line, Outcome, Record, LEAKS};

/// The row of the kernel's log; only there if it has complaints.
const KERNEL_LOG: &str = "(kernel log)";
/// Exit status of `scripts/vm`: the kernel complained.
const COMPLAINT: u8 = 123;
/// The same: interrupted; and what a shell says of SIGTERM.
const INTERRUPTED: [u8; 2] = [130, 143];

/// How a boot ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All programs and the check for leaks were run, and the kernel's log was clean.
    Well,
    /// Its log was not.
    Complaint,
    /// By the operator, or it has not.
    Interrupted,
    /// It died, hung, or the framework gave up.
    Died,
}

/// A record for each row of the table.
pub fn rows(lines: Vec<Line>) -> Vec<Record> {
    let mut logs: BTreeMap<(String, String), Log> = BTreeMap::new();
    for line in lines {
        match line {
            Line::Program(record) => {
                let key = (record.series.clone(), record.suite.clone());
                logs.entry(key).or_default().add(*record);
            }
            Line::Ended(Ended {
                series,
                suite,
                boot,
                status,
            }) => {
                let log = logs.entry((series, suite)).or_default();
                log.ends.insert(boot, status);
            }
        }
    }
    logs.values().flat_map(Log::rows).collect()
}

/// The results of a suite on a kernel.
#[derive(Default)]
struct Log {
    /// The last of each program in each boot, in the order of the boots.
    records: Vec<Record>,
    /// Exit statuses by boot.
    ends: BTreeMap<String, u8>,
}

impl Log {
    fn add(&mut self, record: Record) {
        let same = |r: &&mut Record| r.boot == record.boot && r.program == record.program;
        match self.records.iter_mut().find(same) {
            Some(earlier) => *earlier = record,
            None => self.records.push(record),
        }
    }

    fn end(&self, boot: &str) -> End {
        let checked =
            |r: &Record| r.boot == boot && r.program == LEAKS && r.outcome != Outcome::Begun;
        match self.ends.get(boot) {
            None => End::Interrupted,
            Some(status) if INTERRUPTED.contains(status) => End::Interrupted,
            Some(&COMPLAINT) => End::Complaint,
            // 1: programs failed.
            Some(0 | 1) if self.records.iter().any(checked) => End::Well,
            Some(_) => End::Died,
        }
    }

    fn rows(&self) -> Vec<Record> {
        let mut programs: Vec<(&str, Vec<Record>)> = Vec::new();
        for record in &self.records {
            let name = record.program.as_str();
            let settled = settle(record, self.end(&record.boot));
            match programs.iter_mut().find(|(n, _)| *n == name) {
                Some((_, boots)) => boots.push(settled),
                None => programs.push((name, vec![settled])),
            }
        }
        let rows = programs.iter().filter_map(|(_, boots)| latest(boots));
        rows.chain(self.kernel_log()).collect()
    }

    /// A row if the kernel has complained. Each boot has a record of the leaks.
    fn kernel_log(&self) -> Option<Record> {
        let boots = self.records.iter().filter(|r| r.program == LEAKS);
        let logs: Vec<Record> = boots
            .map(|boot| Record {
                program: KERNEL_LOG.into(),
                outcome: match self.end(&boot.boot) {
                    End::Complaint => Outcome::Defect,
                    End::Well | End::Interrupted | End::Died => Outcome::Passed,
                },
                note: "the kernel complained".into(),
                ..boot.clone()
            })
            .collect();
        latest(&logs).filter(|row| row.outcome == Outcome::Defect)
    }
}

/// What a record is worth, its boot having ended so.
fn settle(record: &Record, end: End) -> Record {
    let (outcome, why) = match (record.outcome, end) {
        (Outcome::Begun, End::Interrupted) => (Outcome::NotRun, "interrupted"),
        (Outcome::Begun, _) => (Outcome::Defect, "the guest did not come to its end"),
        (Outcome::Passed, End::Complaint) => {
            (Outcome::NotRun, "the kernel complained in this boot")
        }
        (Outcome::Passed, End::Interrupted | End::Died) => {
            (Outcome::NotRun, "boot cut off: log not checked")
        }
        _ => return record.clone(),
    };
    Record {
        outcome,
        note: before(why, &record.note),
        ..record.clone()
    }
}

/// Of a program's records, one a boot: the last one, or the last defect that the same module had.
fn latest(boots: &[Record]) -> Option<Record> {
    let last = boots.last()?;
    let same = boots.iter().filter(|r| r.module == last.module);
    let defects: Vec<&Record> = same
        .clone()
        .filter(|r| r.outcome == Outcome::Defect)
        .collect();
    let Some(&defect) = defects.last() else {
        return Some(last.clone());
    };
    let how_often = format!("in {} of {} boots", defects.len(), same.count());
    Some(Record {
        note: before(&how_often, &defect.note),
        ..defect.clone()
    })
}

fn before(text: &str, note: &str) -> String {
    match note {
        "" => text.to_owned(),
        _ => format!("{text}; {note}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::record;
    use Outcome::{Begun, Defect, NotRun, Passed};

    /// Lines of boots: (boot and module, outcomes of "cow", outcome of the leaks, status).
    type Boot<'a> = (&'a str, &'a [Outcome], Outcome, Option<u8>);

    fn of(boots: &[Boot]) -> Vec<Line> {
        let mut lines = Vec::new();
        for &(name, outcomes, leaks, status) in boots {
            let (boot, module) = name.split_once(' ').unwrap();
            let mut add = |program, outcome| {
                let mut r = record("6.12", program);
                (r.boot, r.module, r.outcome) = (boot.into(), module.into(), outcome);
                lines.push(Line::Program(Box::new(r)));
            };
            add(LEAKS, Begun);
            outcomes.iter().for_each(|&o| add("cow", o));
            add(LEAKS, leaks);
            lines.extend(status.map(|status| {
                Line::Ended(Ended {
                    series: "6.12".into(),
                    suite: "kselftests".into(),
                    boot: boot.into(),
                    status,
                })
            }));
        }
        lines
    }

    #[track_caller]
    fn expect(boots: &[Boot], rows: &[(&str, Outcome, &str)]) {
        let found = super::rows(of(boots));
        let found: Vec<_> = found
            .iter()
            .map(|r| (r.program.as_str(), r.outcome, r.note.as_str()))
            .collect();
        assert_eq!(found, rows);
    }

    const RUN: &[Outcome] = &[Begun, Passed];
    const FOUND: &[Outcome] = &[Begun, Defect];
    const CUT: &str = "boot cut off: log not checked";
    const DIED: &str = "in 1 of 1 boots; the guest did not come to its end";

    #[test]
    fn the_latest_boot_counts() {
        expect(
            &[
                ("1 M", &[NotRun], Passed, Some(0)),
                ("2 M", RUN, Passed, Some(0)),
            ],
            &[(LEAKS, Passed, ""), ("cow", Passed, "")],
        );
        // Status 1: another program failed.
        expect(
            &[("1 M", RUN, Passed, Some(1)), ("2 M", &[], Passed, Some(0))],
            &[(LEAKS, Passed, ""), ("cow", Passed, "")],
        );
    }

    #[test]
    fn a_program_that_the_guest_did_not_survive_is_a_defect() {
        let passed = ("1 M", RUN, Passed, Some(0));
        for status in [2, 124, 125, 137] {
            expect(
                &[passed, ("2 N", &[Begun], Begun, Some(status))],
                &[(LEAKS, Defect, DIED), ("cow", Defect, DIED)],
            );
        }
        // Not so if the operator ended it, or nobody has said how it ended.
        for status in [Some(130), Some(143), None] {
            expect(
                &[passed, ("2 M", &[Begun], Begun, status)],
                &[
                    (LEAKS, NotRun, "interrupted"),
                    ("cow", NotRun, "interrupted"),
                ],
            );
        }
    }

    #[test]
    fn what_passed_in_a_boot_that_was_cut_off_does_not_count() {
        for status in [Some(2), Some(124), Some(125), Some(130), None] {
            let found = rows(of(&[("1 M", RUN, Passed, status)]));
            let found: Vec<_> = found.iter().map(|r| (r.outcome, &*r.note)).collect();
            assert_eq!(found, [(NotRun, CUT), (NotRun, CUT)], "{status:?}");
        }
        // Nor without the check for leaks.
        expect(
            &[("1 M", RUN, Begun, Some(0))],
            &[(LEAKS, Defect, DIED), ("cow", NotRun, CUT)],
        );
        // What failed does.
        expect(
            &[("1 M", FOUND, Begun, None)],
            &[
                (LEAKS, NotRun, "interrupted"),
                ("cow", Defect, "in 1 of 1 boots"),
            ],
        );
    }

    #[test]
    fn a_complaint_of_the_kernel_is_a_row_and_nothing_passed_with_it() {
        let why = "the kernel complained in this boot";
        expect(
            &[("1 M", RUN, Passed, Some(123))],
            &[
                (LEAKS, NotRun, why),
                ("cow", NotRun, why),
                (KERNEL_LOG, Defect, "in 1 of 1 boots; the kernel complained"),
            ],
        );
        // It stays as long as the module does.
        let complaint = ("1 M", RUN, Passed, Some(123));
        expect(
            &[complaint, ("2 M", RUN, Passed, Some(0))],
            &[
                (LEAKS, Passed, ""),
                ("cow", Passed, ""),
                (KERNEL_LOG, Defect, "in 1 of 2 boots; the kernel complained"),
            ],
        );
        expect(
            &[complaint, ("2 N", RUN, Passed, Some(0))],
            &[(LEAKS, Passed, ""), ("cow", Passed, "")],
        );
    }

    #[test]
    fn a_defect_stays_as_long_as_the_module_does() {
        let found = ("1 M", FOUND, Passed, Some(1));
        let passed = ("2 M", RUN, Passed, Some(0));
        expect(
            &[
                found,
                passed,
                ("3 M", FOUND, Passed, Some(1)),
                ("4 M", RUN, Passed, Some(0)),
            ],
            &[(LEAKS, Passed, ""), ("cow", Defect, "in 2 of 4 boots")],
        );
        expect(
            &[found, ("2 N", RUN, Passed, Some(0))],
            &[(LEAKS, Passed, ""), ("cow", Passed, "")],
        );
        let leaked = ("1 M", RUN, Defect, Some(1));
        expect(
            &[leaked, passed],
            &[(LEAKS, Defect, "in 1 of 2 boots"), ("cow", Passed, "")],
        );
    }
}
