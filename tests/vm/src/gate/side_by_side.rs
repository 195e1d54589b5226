// SPDX-License-Identifier: MIT OR Apache-2.0
//! Some work at a time.

use std::collections::VecDeque;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use asyncfork_host::size::parse_size;

/// Memory that the host itself needs beside the guests'.
const HOST_MEMORY: u64 = 2 << 30;

/// Two VMs if the host has memory for them and a CPU for each; a guest whose
/// memory is poisoned uses all of it.
pub(super) fn usual_jobs(memory: &str) -> Result<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let available = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix(" kB")
        })
        .and_then(|kib| kib.parse::<u64>().ok())
        .context("/proc/meminfo has no MemAvailable")?
        << 10;
    let cpus = thread::available_parallelism()?.get();
    let wanted = 2 * parse_size(memory)? + HOST_MEMORY;
    Ok(if available >= wanted && cpus >= 2 {
        2
    } else {
        1
    })
}

/// Calls `work` for every item, at most `jobs` at a time. The results come in
/// any order. After an error no further item is begun, and it is returned.
pub(super) fn side_by_side<T: Send, R: Send>(
    jobs: usize,
    items: Vec<T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let queue = Mutex::new(VecDeque::from(items));
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let Some(item) = lock().pop_front() else {
                return Ok(done);
            };
            match work(item) {
                Ok(result) => done.push(result),
                Err(error) => {
                    lock().clear();
                    return Err(error);
                }
            }
        }
    };
    let results: Result<Vec<Vec<R>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("a worker does not panic"))
            .collect()
    });
    Ok(results?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[test]
    fn work_side_by_side_leaves_nothing_out_and_stops_at_an_error() {
        let mut done = side_by_side(2, (0..20).collect(), |n| Ok(n * n)).unwrap();
        done.sort();
        assert_eq!(done, (0..20).map(|n| n * n).collect::<Vec<i32>>());

        let begun = Mutex::new(0);
        let error = side_by_side(1, (0..20).collect(), |n| {
            *begun.lock().unwrap() += 1;
            ensure!(n < 3, "{n} is too much");
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "3 is too much");
        assert_eq!(*begun.lock().unwrap(), 4);
    }
}
