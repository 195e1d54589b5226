// SPDX-License-Identifier: MIT OR Apache-2.0
//! Breadth-first search over every reachable state.

use std::fmt;
use std::hash::{BuildHasherDefault, Hash};

use indexmap::IndexSet;
use rustc_hash::FxHasher;

/// What the checker asks of a model.
pub trait Model {
    /// One global state.
    type State: Clone + Eq + Hash;
    /// Name of a step, for traces.
    type Step: Copy + fmt::Debug;

    /// The initial state.
    fn init(&self) -> Self::State;
    /// Calls `f` with each enabled step and the state after it, or with the rule that it breaks.
    fn steps(
        &self,
        state: &Self::State,
        f: &mut dyn FnMut(Self::Step, Result<Self::State, &'static str>),
    );
    /// `None` while somebody has still work to do; then what a final state must look like.
    fn end(&self, state: &Self::State) -> Option<Result<(), &'static str>>;
}

/// What a search without a counterexample has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visited {
    /// Distinct states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// States in which everybody is done.
    pub ends: usize,
}

/// A broken rule and a shortest way to it.
#[derive(Debug, Clone)]
pub struct Counterexample<S> {
    /// The rule.
    pub rule: &'static str,
    /// Steps from the initial state.
    pub trace: Vec<S>,
}

impl<S: fmt::Debug> fmt::Display for Counterexample<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after {} steps:", self.rule, self.trace.len())?;
        self.trace.iter().try_for_each(|s| writeln!(f, "  {s:?}"))
    }
}

/// Rule of a state without a step in which somebody is not done.
pub const STUCK: &str = "stuck: nobody can go on";
/// Rule of a state from which no end can be reached.
pub const ENDLESS: &str = "no end can be reached from here";

/// Visits every reachable state of `model`.
///
/// # Errors
/// The first counterexample; none is shorter.
pub fn check<M: Model>(model: &M) -> Result<Visited, Counterexample<M::Step>> {
    let mut seen: IndexSet<M::State, BuildHasherDefault<FxHasher>> = IndexSet::default();
    let mut came_by: Vec<Option<(usize, M::Step)>> = vec![None];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut ends: Vec<usize> = Vec::new();

    seen.insert(model.init());
    let mut i = 0;
    while let Some(state) = seen.get_index(i).cloned() {
        let mut broken = None;
        let before = edges.len();
        model.steps(&state, &mut |step, next| match next {
            Ok(next) => {
                let (to, new) = seen.insert_full(next);
                if new {
                    came_by.push(Some((i, step)));
                }
                edges.push((to as u32, i as u32));
            }
            Err(rule) => broken = broken.or(Some((rule, Some(step)))),
        });
        match model.end(&state) {
            Some(Ok(())) => ends.push(i),
            Some(Err(rule)) => broken = broken.or(Some((rule, None))),
            None if edges.len() == before => broken = broken.or(Some((STUCK, None))),
            None => {}
        }
        if let Some((rule, last)) = broken {
            return Err(counterexample(&came_by, i, rule, last));
        }
        i += 1;
    }

    let steps = edges.len();
    if let Some(at) = cut_off(seen.len(), edges, &ends) {
        return Err(counterexample(&came_by, at, ENDLESS, None));
    }
    Ok(Visited {
        states: seen.len(),
        steps,
        ends: ends.len(),
    })
}

/// The first state from which none of `ends` can be reached; `edges` are (to, from).
fn cut_off(states: usize, mut edges: Vec<(u32, u32)>, ends: &[usize]) -> Option<usize> {
    edges.sort_unstable();
    let mut reaches = vec![false; states];
    let mut todo: Vec<usize> = ends.to_vec();
    while let Some(to) = todo.pop() {
        if std::mem::replace(&mut reaches[to], true) {
            continue;
        }
        let first = edges.partition_point(|&(t, _)| (t as usize) < to);
        let into = edges[first..].iter().take_while(|e| e.0 as usize == to);
        todo.extend(into.map(|e| e.1 as usize).filter(|&f| !reaches[f]));
    }
    reaches.iter().position(|r| !r)
}

fn counterexample<S: Copy>(
    came_by: &[Option<(usize, S)>],
    mut at: usize,
    rule: &'static str,
    last: Option<S>,
) -> Counterexample<S> {
    let mut trace: Vec<S> = last.into_iter().collect();
    while let Some((from, step)) = came_by[at] {
        trace.push(step);
        at = from;
    }
    trace.reverse();
    Counterexample { rule, trace }
}
