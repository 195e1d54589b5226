// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an attempt proves.

use crate::memory::CHUNKS;
use crate::probe::{Evidence, Said};
use asyncfork_uapi::{Hook, Outcome, Reason, Report, State};

/// What one attempt says about its hook.
#[derive(Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It pulled so many chunks, and both sides are right.
    Fired(u64),
    /// The chunk is still parked although the operation is over, or something else pulled it.
    NotFired(String),
    /// Memory or the session is wrong.
    Wrong(String),
    /// The operation is not available here.
    NotExercised(String),
    /// Others pulled first: proves nothing.
    TooLate,
    /// The fork was a stock fork.
    Stock(Reason),
    /// A process does not end.
    Stuck,
}

/// Chunks pulled by others than the parent.
fn rivals(report: &Report) -> u64 {
    report.chunks.by_child + report.chunks.by_helper + report.chunks.by_other
}

/// Judges an attempt. Memory first: wrong bytes are wrong whoever pulled.
pub fn judge(hook: Hook, evidence: &Evidence) -> Judgement {
    let Evidence {
        before,
        after,
        last,
        said,
        stuck,
    } = evidence;
    if *stuck {
        return Judgement::Stuck;
    }
    if let Some(why) = said.iter().find_map(|(_, said)| match said {
        Said::Lacking(why) => Some(why),
        _ => None,
    }) {
        return Judgement::NotExercised(why.clone());
    }
    let none = Report::default();
    let (before, after) = match hook {
        // The child copies at any time, an exiting parent cannot ask.
        Hook::Child => (&none, last),
        Hook::Exit => (before, last),
        _ => (before, after),
    };
    let pulled = after.pulls_by(hook) - before.pulls_by(hook);
    for (who, said) in said {
        let why = match said {
            Said::Right => continue,
            Said::Silent => format!("the {who} died"),
            Said::Wrong(why) => format!("{who}: {why}"),
            Said::Lacking(_) => unreachable!("returned above"),
        };
        let missing = last.outcome() == Outcome::Async && pulled == 0 && rivals(after) == 0;
        let hint = if missing {
            "; the hook did not fire"
        } else {
            ""
        };
        return Judgement::Wrong(format!("{why}{hint}"));
    }
    match (last.outcome(), last.reason()) {
        (Outcome::Async, _) => {}
        (Outcome::Stock, Reason::Nothing) => {
            return Judgement::NotFired("copy_page_range: the fork parked nothing".into())
        }
        (Outcome::Stock, reason) => return Judgement::Stock(reason),
        (outcome, _) => {
            return Judgement::NotFired(format!(
                "uprobe_dup_mmap: the armed fork's outcome is {outcome}"
            ))
        }
    }
    if last.chunks.parked < CHUNKS as u64 {
        return Judgement::NotFired(format!(
            "copy_page_range: the fork parked {} chunks of {CHUNKS}",
            last.chunks.parked
        ));
    }
    if last.state() == State::Aborted || last.chunks.reattached > 0 {
        return Judgement::Wrong("the session was aborted; see the kernel log".into());
    }

    if pulled > 0 {
        return Judgement::Fired(pulled);
    }
    match hook {
        Hook::Child => Judgement::NotFired("the child did not copy".into()),
        // A helper may be late; and whatever an exit leaves parked the child pulls.
        Hook::Helper | Hook::Exit => Judgement::TooLate,
        _ if rivals(after) > 0 => Judgement::TooLate,
        _ if after.chunks.by_parent > before.chunks.by_parent => Judgement::NotFired(format!(
            "the parent pulled through another hook ({})",
            others(before, after)
        )),
        _ => Judgement::NotFired("the chunk was still parked after the operation".into()),
    }
}

/// Hooks that pulled between two reports.
fn others(before: &Report, after: &Report) -> String {
    let names: Vec<&str> = Hook::ALL
        .iter()
        .filter(|h| after.pulls_by(**h) > before.pulls_by(**h))
        .map(|h| h.label())
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use asyncfork_uapi::Chunks;

    /// A session of which `pulls` were counted between the two reports, `by_child` of the rest as well.
    fn evidence(pulls: &[(Hook, u64)], by_child: u64) -> Evidence {
        let before = Report {
            id: 1,
            outcome: Outcome::Async.raw(),
            state: State::Running.raw(),
            chunks: Chunks {
                parked: CHUNKS as u64,
                ..Chunks::default()
            },
            ..Report::default()
        };
        let mut after = before;
        for &(hook, n) in pulls {
            after.pulls[hook.raw() as usize] += n;
            after.chunks.by_parent += n;
        }
        after.chunks.by_child = by_child;
        after.pulls[Hook::Child.raw() as usize] += by_child;
        let last = Report {
            state: State::Done.raw(),
            ..after
        };
        Evidence {
            before,
            after,
            last,
            said: vec![("parent", Said::Right), ("child", Said::Right)],
            stuck: false,
        }
    }

    #[test]
    fn a_pull_by_the_hook_is_a_pull_whoever_else_pulled() {
        let found = judge(Hook::Zap, &evidence(&[(Hook::Zap, 1)], 0));
        assert_eq!(found, Judgement::Fired(1));
        let found = judge(Hook::Zap, &evidence(&[(Hook::Zap, 1)], 2));
        assert_eq!(found, Judgement::Fired(1));
    }

    #[test]
    fn a_chunk_left_parked_is_a_missing_hook() {
        assert!(matches!(
            judge(Hook::Zap, &evidence(&[], 0)),
            Judgement::NotFired(_)
        ));
    }

    #[test]
    fn a_pull_through_another_hook_is_a_missing_hook() {
        let Judgement::NotFired(why) = judge(Hook::Walk, &evidence(&[(Hook::Fault, 1)], 0)) else {
            panic!("not found missing");
        };
        assert!(why.contains("fault"), "{why}");
    }

    #[test]
    fn a_faster_child_proves_nothing() {
        let found = judge(Hook::Zap, &evidence(&[], 1));
        assert_eq!(found, Judgement::TooLate);
        let found = judge(Hook::Exit, &evidence(&[], 3));
        assert_eq!(found, Judgement::TooLate);
    }

    #[test]
    fn pulls_before_the_operation_do_not_count() {
        let mut e = evidence(&[(Hook::Fault, 1)], 0);
        e.before.pulls = e.after.pulls;
        e.before.chunks.by_parent = e.after.chunks.by_parent;
        assert!(matches!(judge(Hook::Fault, &e), Judgement::NotFired(_)));
    }

    #[test]
    fn wrong_bytes_outweigh_a_pull() {
        for said in [Said::Wrong("byte 0".into()), Said::Silent] {
            let mut e = evidence(&[(Hook::Zap, 1)], 0);
            e.said[1].1 = said;
            assert!(matches!(judge(Hook::Zap, &e), Judgement::Wrong(_)));
        }
    }

    #[test]
    fn wrong_bytes_come_with_the_missing_hook() {
        for (pulls, hint) in [(&[][..], true), (&[(Hook::Zap, 1)][..], false)] {
            let mut e = evidence(pulls, 0);
            e.said[0].1 = Said::Wrong("byte 0".into());
            let Judgement::Wrong(why) = judge(Hook::Zap, &e) else {
                panic!("not found wrong");
            };
            assert_eq!(why.ends_with("the hook did not fire"), hint, "{why}");
        }
    }

    #[test]
    fn an_aborted_session_is_wrong() {
        let mut e = evidence(&[(Hook::Zap, 1)], 0);
        e.last.state = State::Aborted.raw();
        assert!(matches!(judge(Hook::Zap, &e), Judgement::Wrong(_)));
    }

    #[test]
    fn stock_forks_prove_nothing_and_dead_fork_hooks_are_missing() {
        let mut e = evidence(&[], 0);
        e.last.outcome = Outcome::Stock.raw();
        e.last.reason = Reason::Disabled.raw();
        assert_eq!(judge(Hook::Zap, &e), Judgement::Stock(Reason::Disabled));
        e.last.reason = Reason::Nothing.raw();
        assert!(matches!(judge(Hook::Zap, &e), Judgement::NotFired(_)));
        e.last.outcome = Outcome::None.raw();
        assert!(matches!(judge(Hook::Zap, &e), Judgement::NotFired(_)));
        e.last.outcome = Outcome::Async.raw();
        e.last.chunks.parked = CHUNKS as u64 - 1;
        assert!(matches!(judge(Hook::Zap, &e), Judgement::NotFired(_)));
    }
}
