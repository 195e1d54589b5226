// SPDX-License-Identifier: MIT OR Apache-2.0
//! The protocol has no counterexample, and without any one of its rules it has one.

use std::cell::RefCell;
use std::collections::HashSet;

use asyncfork_model::checker::STUCK;
use asyncfork_model::state::State;
use asyncfork_model::step::Step;
use asyncfork_model::Mutation::*;
use asyncfork_model::{check, Model, Mutation, Pc, Protocol, Scenario, SCENARIOS};

const MEETS: &str = "a hooked function meets a parked chunk";
const USED: &str = "session used after its last reference was put";
const TLB: &str = "a chunk is copied under a writable TLB entry";
const GUP: &str = "a chunk is copied under a GUP-fast walk";
const IMAGE: &str = "the child gets to user mode without its whole image";
const REPORT: &str = "a lost image is reported as a snapshot";
const UNFINISHED: &str = "a session has not finished";
const CHILD_FREED: &str = "a table is attached to the freed page tables of the child";
const RACE: &str = "child against parent and helper";
const UFFD: &str = "userfaultfd";
const VMA_LOCKS: &str = "faults under VMA locks";
const POISON: &str = "memory failure";
const TIMEOUT: &str = "timeout";
const HELD: &str = "child held back";
const HELD_TIMEOUT: &str = "child held back for the timeout";
const FAILING_FORK_TIMEOUT: &str = "timeout in a fork that may fail";
const FAILING_FORK: &str = "migration in a fork that may fail";
const MIXED: &str = "mixed copies fail";
const MIXED_IN_FORK: &str = "mixed copies fail in a fork";
const TWO_FORKS_NO_MEMORY: &str = "second fork, no memory";
const ONE_VMA: &str = "migration, one VMA";
const EXITS: &str = "reader of the child, exits";
const TWO_FORKS: &str = "second fork";
const NO_MEMORY_IN_FORK: &str = "migration without memory in a fork";

/// Each rule that can be dropped, a scenario that needs it, what goes wrong there.
const DROPPED: &[(Mutation, &str, &str)] = &[
    (
        ParkWordFirst,
        NO_MEMORY_IN_FORK,
        "the parent's slot is not empty",
    ),
    (ParkCountLate, RACE, "a chunk is parked that is not counted"),
    (ParkNoGuardLook, POISON, MEETS),
    (ParkGuardEarly, POISON, MEETS),
    (ParkNoLock, ONE_VMA, MEETS),
    (MigrateNoLock, ONE_VMA, MEETS),
    (DoneFirst, RACE, MEETS),
    (NoReattach, RACE, MEETS),
    (ClaimByStore, RACE, "the child's slot is not empty"),
    (NoWait, RACE, MEETS),
    (NoFlush, FAILING_FORK, TLB),
    (NoIpi, ONE_VMA, GUP),
    (SyncedEarly, FAILING_FORK, GUP),
    (FlushedEarly, FAILING_FORK, TLB),
    (FlushedUnseen, VMA_LOCKS, TLB),
    (LockedMigration, FAILING_FORK, TLB),
    (BusyPreemptible, HELD, STUCK),
    (DoomLate, MIXED, IMAGE),
    (DoomLooksFirst, MIXED_IN_FORK, REPORT),
    (ForkedLooksFirst, MIXED_IN_FORK, REPORT),
    (ForkedNoLook, MIXED_IN_FORK, REPORT),
    (ChildNoLook, TWO_FORKS_NO_MEMORY, IMAGE),
    (ExitNoAbort, MIXED, CHILD_FREED),
    (
        ExitNoPull,
        EXITS,
        "a table is attached to the freed page tables of the parent",
    ),
    (FailNoAbort, TWO_FORKS_NO_MEMORY, CHILD_FREED),
    (FailNoClose, TWO_FORKS_NO_MEMORY, UNFINISHED),
    (CloseLooksFirst, TWO_FORKS_NO_MEMORY, UNFINISHED),
    (CloseNoFinish, TWO_FORKS_NO_MEMORY, UNFINISHED),
    (FinishUnclosed, TWO_FORKS_NO_MEMORY, USED),
    (FinishNoTas, TWO_FORKS_NO_MEMORY, "a session finishes twice"),
    (CancelNoPut, TIMEOUT, "a session is never freed"),
    (CancelPutAlways, TIMEOUT, USED),
    (WorkNoHold, RACE, USED),
    (HelperNoHold, RACE, USED),
    (TimerNoHold, TIMEOUT, USED),
    (TimerTwice, FAILING_FORK_TIMEOUT, "a session is never freed"),
    (TimerOnce, HELD_TIMEOUT, STUCK),
    (TimerClosedLate, HELD_TIMEOUT, STUCK),
    (TimerAgainPuts, FAILING_FORK_TIMEOUT, USED),
    (FindNoHold, RACE, "last reference put while in the hash"),
    (FindFromZero, RACE, USED),
    (FindOldFirst, TWO_FORKS, MEETS),
    (
        ForkNoPull,
        TWO_FORKS,
        "copy_page_range() meets a parked chunk",
    ),
    (NoPteAlloc, UFFD, MEETS),
    (PoisonNoGuard, POISON, MEETS),
    (PoisonGuardLate, POISON, MEETS),
    (PoisonNoWait, POISON, MEETS),
    (PoisonParkedOnly, POISON, MEETS),
];

/// Two steps of mutations, and a return address.
const NOT_TAKEN: [Pc; 3] = [Pc::CloseLook, Pc::PoisonLate, Pc::PullNext];

/// Notes which steps are taken.
struct Recorder<'a> {
    protocol: Protocol,
    taken: &'a RefCell<HashSet<Pc>>,
}

impl Model for Recorder<'_> {
    type State = State;
    type Step = Step;

    fn init(&self) -> State {
        self.protocol.init()
    }

    fn steps(&self, state: &State, f: &mut dyn FnMut(Step, Result<State, &'static str>)) {
        let mut taken = self.taken.borrow_mut();
        self.protocol.steps(state, &mut |step, next| {
            taken.insert(step.pc);
            f(step, next);
        });
    }

    fn end(&self, state: &State) -> Option<Result<(), &'static str>> {
        self.protocol.end(state)
    }
}

fn scenario(name: &str) -> &'static Scenario {
    let found = SCENARIOS.iter().find(|s| s.name == name);
    found.unwrap_or_else(|| panic!("no scenario {name:?}"))
}

#[test]
fn every_rule_holds_in_every_reachable_state() {
    let taken = RefCell::default();
    for scenario in SCENARIOS {
        let protocol = Protocol {
            scenario,
            dropped: None,
        };
        let recorder = Recorder {
            protocol,
            taken: &taken,
        };
        match check(&recorder) {
            Ok(visited) => println!("{}: {visited:?}", scenario.name),
            Err(broken) => panic!("{}: {broken}", scenario.name),
        }
    }

    let taken = taken.into_inner();
    let idle = Pc::ALL.iter().filter(|pc| !taken.contains(pc));
    let idle: Vec<_> = idle.filter(|pc| !NOT_TAKEN.contains(pc)).collect();
    assert!(idle.is_empty(), "steps that nobody ever takes: {idle:?}");
}

#[test]
fn every_dropped_rule_has_a_counterexample() {
    for &(rule, name, expected) in DROPPED {
        let protocol = Protocol {
            scenario: scenario(name),
            dropped: Some(rule),
        };
        match check(&protocol) {
            Ok(visited) => panic!("{rule:?} is not noticed in {name:?}: {visited:?}"),
            Err(broken) => {
                assert_eq!(broken.rule, expected, "{rule:?} in {name:?}: {broken}");
                println!("{rule:?}: {}, {} steps", broken.rule, broken.trace.len());
            }
        }
    }
}

#[test]
fn no_rule_is_left_out() {
    for rule in Mutation::ALL {
        let rows = DROPPED.iter().filter(|(m, ..)| m == rule).count();
        assert_eq!(rows, 1, "{rule:?}");
    }
}
