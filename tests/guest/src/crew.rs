// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads that work on a piece of memory each, and stand still for a fork: then the models of all of it are true.

use crate::board;
use crate::rng::Rng;
use crate::verdict::{Context, TestResult, Verdict};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Duration;

/// Where the error is from if there is no thread to be had.
pub const NO_THREAD: &str = "no thread";

/// What the threads of a process share.
pub struct Crew<'a, T> {
    plots: &'a [Mutex<T>],
    /// Most microseconds between two operations.
    rest: usize,
    stop: AtomicBool,
    /// Somebody wants all plots: a mutex alone is not fair.
    wanted: AtomicBool,
}

impl<'a, T: Send> Crew<'a, T> {
    /// A crew for these plots; its threads sleep up to `rest` microseconds between two operations.
    pub fn new(plots: &'a [Mutex<T>], rest: usize) -> Self {
        Self {
            plots,
            rest,
            stop: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
        }
    }

    /// Starts a thread for each plot. It does `work`, with a generation that counts from 1, until [`Crew::stop`] or an error,
    /// which stops the others, too.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        rng: &mut Rng,
        work: impl Fn(&mut T, &mut Rng, u32) -> TestResult + Copy + Send + 'scope,
    ) -> TestResult<Vec<ScopedJoinHandle<'scope, TestResult>>> {
        let threads = self.plots.iter().map(|plot| {
            let rng = Rng::new(rng.next(), "thread");
            let body = move || board::guarded(|| self.go_on(plot, rng, work));
            Builder::new().spawn_scoped(scope, body).at(NO_THREAD)
        });
        // Those that have been started must not go on for ever.
        threads
            .collect::<TestResult<_>>()
            .inspect_err(|_| self.stop())
    }

    fn go_on(
        &self,
        plot: &Mutex<T>,
        mut rng: Rng,
        work: impl Fn(&mut T, &mut Rng, u32) -> TestResult,
    ) -> TestResult {
        let mut gen = 1;
        while !self.stopped() {
            while self.wanted.load(Ordering::SeqCst) && !self.stopped() {
                std::thread::yield_now();
            }
            work(&mut lock(plot), &mut rng, gen).inspect_err(|_| self.stop())?;
            gen += 1;
            nap(&mut rng, self.rest);
        }
        Ok(())
    }

    /// Tells all threads to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether they have been told.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// All plots, while nobody is in the middle of an operation.
    pub fn hold(&self) -> Held<'_, T> {
        self.wanted.store(true, Ordering::SeqCst);
        Held {
            plots: self.plots.iter().map(lock).collect(),
            wanted: &self.wanted,
        }
    }
}

/// All plots of a crew. A forked child keeps them for good: it has no other threads.
pub struct Held<'a, T> {
    plots: Vec<MutexGuard<'a, T>>,
    wanted: &'a AtomicBool,
}

impl<'a, T> Deref for Held<'a, T> {
    type Target = [MutexGuard<'a, T>];

    fn deref(&self) -> &Self::Target {
        &self.plots
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.plots
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.plots.clear();
        self.wanted.store(false, Ordering::SeqCst);
    }
}

/// Waits for the threads; their first error.
pub fn join(threads: Vec<ScopedJoinHandle<'_, TestResult>>) -> TestResult {
    let ends: Vec<TestResult> = threads.into_iter().map(|t| verdict(t.join())).collect();
    ends.into_iter().collect()
}

/// The verdict of a thread that has been joined; a panic is a failure.
pub fn verdict<T>(joined: std::thread::Result<TestResult<T>>) -> TestResult<T> {
    joined.unwrap_or_else(|_| Err(Verdict::Failed("panic".into())))
}

/// Locks, whether or not another holder has panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps up to this many microseconds.
pub fn nap(rng: &mut Rng, most: usize) {
    if most > 0 {
        std::thread::sleep(Duration::from_micros(rng.below(most) as u64));
    }
}
