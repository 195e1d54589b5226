// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a process' next fork will stop it.
//!
//! A stock fork copies each page table; an asynchronous one parks it. What either
//! costs on this host is measured on small processes of our own with as many mappings, at
//! two sizes, so that what does not depend on the size is told apart.

use anyhow::Result;
use serde::Serialize;

use crate::host::Host;
use crate::process::Process;
use crate::sample::{Samples, Sampling, CHUNK};
use crate::{cgroup, exit};

const FORKS: u32 = 7;
/// Filled page tables of a measurement: 256 MiB.
const MOST: u64 = 128;
const LEAST: u64 = 16;
/// Page tables of the zero page: 16 MiB of tables, which cost nothing else.
const ZEROS: usize = 4096;
/// Mappings of a measurement, at most: what the kernel lets a process have is 65,530.
const MAPPINGS: usize = 10_000;

/// What a fork takes here: so much, and so much for each page table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Nanoseconds that do not depend on the size, for as many mappings.
    pub fixed_ns: f64,
    /// Nanoseconds for each page table.
    pub per_table_ns: f64,
    /// Page tables of the larger measurement.
    pub measured_tables: usize,
}

impl Cost {
    /// The straight line through two measurements.
    fn through(small: (usize, u64), large: (usize, u64)) -> Result<Self> {
        let per_table = (large.1 as f64 - small.1 as f64) / (large.0 as f64 - small.0 as f64);
        if per_table <= 0.0 {
            return Err(exit::cannot_tell(
                "the machine is too busy to measure; try again",
            ));
        }
        Ok(Self {
            fixed_ns: (small.1 as f64 - per_table * small.0 as f64).max(0.0),
            per_table_ns: per_table,
            measured_tables: large.0,
        })
    }

    /// For a process with so many.
    pub fn of(&self, tables: u64) -> u64 {
        (self.fixed_ns + self.per_table_ns * tables as f64) as u64
    }
}

/// A prediction, or why there is none.
#[derive(Debug, Clone, Serialize)]
pub struct Guess {
    /// Nanoseconds that the fork takes.
    pub ns: Option<u64>,
    /// What the guess comes from.
    pub cost: Option<Cost>,
    /// Why it is unknown.
    pub unknown: Option<String>,
}

/// What the next fork of a process will take.
#[derive(Debug, Clone, Serialize)]
pub struct Prediction {
    /// The process.
    pub pid: i32,
    /// Bytes of its page tables.
    pub page_table_bytes: u64,
    /// How many a fork copies, at most.
    pub tables: u64,
    /// As a stock fork.
    pub stock: Guess,
    /// As an asynchronous one: at least, as what cannot be parked is copied.
    pub asynchronous: Guess,
}

/// Measures, and predicts.
pub fn predict(
    process: &Process,
    tables: Result<usize>,
    sample: &dyn Fn(&Sampling) -> Result<Samples>,
    stock_obstacle: Option<String>,
    async_obstacle: Option<String>,
) -> Prediction {
    let n = process.tables();
    let mappings = process.mappings.min(MAPPINGS);
    let guess = |cost: Result<Cost>| match cost {
        Ok(cost) => Guess {
            ns: Some(cost.of(n)),
            cost: Some(cost),
            unknown: None,
        },
        Err(e) => Guess {
            ns: None,
            cost: None,
            unknown: Some(format!("{e:#}")),
        },
    };
    let measure = |small: usize, large: usize, zero: bool| {
        let at = |tables| {
            let what = Sampling {
                tables,
                mappings,
                forks: FORKS,
                zero,
                asynchronous: zero,
            };
            // The least: other work on the machine only adds to it.
            Ok::<_, anyhow::Error>((tables, sample(&what)?.range().0))
        };
        Cost::through(at(small)?, at(large)?)
    };
    let stock = match stock_obstacle {
        Some(why) => Err(exit::cannot_tell(why)),
        None => tables.and_then(|tables| measure(tables / 4, tables, false)),
    };
    let asynchronous = match async_obstacle {
        Some(why) => Err(exit::cannot_tell(why)),
        None => measure(ZEROS / 8, ZEROS, true),
    };
    Prediction {
        pid: process.pid,
        page_table_bytes: process.page_table_bytes(),
        tables: n,
        stock: guess(stock),
        asynchronous: guess(asynchronous),
    }
}

/// How many page tables a measurement may fill: no more than a sixteenth of what is
/// available, or an eighth of what our cgroup may still take.
///
/// # Errors
/// Too few to measure anything.
pub fn affordable_tables(host: &Host) -> Result<usize> {
    let available = available_bytes(host);
    let tables = MOST
        .min(available.0 / 16 / CHUNK as u64)
        .min(available.1 / 8 / CHUNK as u64);
    if tables < LEAST {
        return Err(exit::cannot_tell(
            "not enough free memory to measure without harm",
        ));
    }
    Ok(tables as usize)
}

/// Bytes that are available, in the machine and in the caller's cgroup.
pub fn available_bytes(host: &Host) -> (u64, u64) {
    let available = meminfo(host, "MemAvailable").unwrap_or(0);
    let limit = cgroup::own(host).ok().and_then(|directory| {
        let max = cgroup::number(host, &directory, "memory.max")?;
        let now = cgroup::number(host, &directory, "memory.current")?;
        Some(max.saturating_sub(now))
    });
    (available, limit.unwrap_or(u64::MAX))
}

/// A line of `/proc/meminfo`, in bytes.
pub fn meminfo(host: &Host, name: &str) -> Option<u64> {
    let text = host.read("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    /// A machine on which a table costs 10 us to copy and 10 ns to park.
    fn machine(what: &Sampling) -> Result<Samples> {
        let each = if what.asynchronous { 10 } else { 10_000 };
        Ok(Samples {
            ns: vec![100_000 + each * what.tables as u64; what.forks as usize],
            parked: 0,
        })
    }

    #[test]
    fn the_pause_is_predicted_from_page_tables() {
        let fake = Fake::new();
        fake.server(42);
        let process = Process::read(&fake.host, 42).unwrap();
        let said = predict(&process, Ok(64), &machine, None, None);
        assert_eq!(said.tables, 32_768);
        assert_eq!(said.stock.ns, Some(100_000 + 32_768 * 10_000));
        assert_eq!(said.asynchronous.ns, Some(100_000 + 32_768 * 10));
        assert_eq!(said.stock.cost.unwrap().measured_tables, 64);
    }

    #[test]
    fn what_cannot_be_measured_is_unknown() {
        let fake = Fake::new();
        fake.server(42);
        let process = Process::read(&fake.host, 42).unwrap();
        let noise = |what: &Sampling| {
            Ok(Samples {
                ns: vec![1_000_000 / what.tables as u64],
                parked: 0,
            })
        };
        let said = predict(&process, Ok(64), &noise, None, Some("no module".into()));
        assert_eq!(said.stock.ns, None);
        assert!(said.stock.unknown.unwrap().contains("too busy"));
        assert_eq!(said.asynchronous.unknown.as_deref(), Some("no module"));
    }

    #[test]
    fn a_measurement_is_small_against_the_memory_that_is_free() {
        let fake = Fake::new();
        fake.cgroup("a.slice");
        fake.write(
            "/proc/meminfo",
            "MemTotal: 9 kB\nMemAvailable:   67108864 kB\n",
        );
        assert_eq!(affordable_tables(&fake.host).unwrap(), 128);
        fake.write("/proc/meminfo", "MemAvailable:   2097152 kB\n");
        assert_eq!(affordable_tables(&fake.host).unwrap(), 64);
        fake.write("/proc/self/cgroup", "0::/a.slice\n")
            .write("/sys/fs/cgroup/a.slice/memory.max", "536870912\n")
            .write("/sys/fs/cgroup/a.slice/memory.current", "0\n");
        assert_eq!(affordable_tables(&fake.host).unwrap(), 32);
        fake.write("/proc/meminfo", "");
        assert!(affordable_tables(&fake.host).is_err());
    }
}
