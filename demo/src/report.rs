// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results and their presentation.

use std::fmt::Write;

use asyncfork_uapi::Report;
use serde::Serialize;

use crate::load::Latency;
use crate::machine::MeasuredOn;

const SWITCH: &str = " The library is loaded for
both kinds, the module's parameter `enabled` makes the difference.";

/// All that was measured.
#[derive(Serialize)]
pub struct Results {
    /// Where.
    pub machine: MeasuredOn,
    /// The server's name and version.
    pub server: String,
    /// What was snapshotted, and under which load.
    pub setup: Setup,
    /// Latencies just before each measured snapshot.
    pub no_snapshot: Vec<Latency>,
    /// Stock fork.
    pub stock: Column,
    /// Async fork; none in a stock-only run.
    #[serde(rename = "async")]
    pub asynchronous: Option<Column>,
}

/// Dataset and load.
#[derive(Serialize)]
pub struct Setup {
    /// Number of keys.
    pub keys: u64,
    /// Bytes per value.
    pub value_size: usize,
    /// Bytes of all values.
    pub data_bytes: u64,
    /// Bytes of the server that are resident.
    pub resident_bytes: u64,
    /// Requests per second.
    pub rate: u32,
    /// Connections.
    pub clients: usize,
}

/// One way to fork.
#[derive(Serialize)]
pub struct Column {
    /// The warm-up snapshot, verified.
    pub verified: Verified,
    /// The measured snapshots.
    pub rounds: Vec<Round>,
}

/// A snapshot whose RDB was loaded and compared.
#[derive(Serialize)]
pub struct Verified {
    /// DEBUG DIGEST at the fork and of the loaded RDB: they were equal.
    pub digest: String,
    /// SETs between the fork and the end of the snapshot.
    pub writes: u64,
    /// What the module reported; none for a stock fork.
    pub session: Option<Session>,
}

/// A measured snapshot.
#[derive(Serialize)]
pub struct Round {
    /// INFO's latest_fork_usec.
    pub latest_fork_usec: u64,
    /// Milliseconds from BGSAVE sent to rdb_bgsave_in_progress 0.
    pub duration_ms: u64,
    /// Requests under way in that time.
    pub latency: Latency,
    /// Requests under way in its first second.
    pub first_second: Latency,
    /// SETs between the fork and the end.
    pub writes: u64,
    /// Milliseconds of CPU time that the child used.
    pub child_cpu_ms: u64,
    /// What the module reported; none for a stock fork.
    pub session: Option<Session>,
}

/// The module's report of an asynchronous fork.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Session {
    /// Chunks parked.
    pub parked: u64,
    /// Chunks copied during the fork.
    pub eager: u64,
    /// Chunks that took the kernel's own copy.
    pub mixed: u64,
    /// Chunks pulled by the child.
    pub by_child: u64,
    /// Chunks pulled by the server.
    pub by_parent: u64,
    /// Chunks pulled by helpers and others.
    pub by_others: u64,
    /// Microseconds of parking, inside fork().
    pub park_us: u64,
    /// Microseconds of the server's longest pull.
    pub parent_pull_max_us: u64,
    /// Microseconds from the end of the fork to the last chunk.
    pub copy_us: u64,
    /// Bytes of the side array.
    pub meta_bytes: u64,
}

impl From<Report> for Session {
    fn from(r: Report) -> Self {
        Self {
            parked: r.chunks.parked,
            eager: r.chunks.eager,
            mixed: r.chunks.mixed,
            by_child: r.chunks.by_child,
            by_parent: r.chunks.by_parent,
            by_others: r.chunks.by_helper + r.chunks.by_other,
            park_us: r.park_ns / 1000,
            parent_pull_max_us: r.parent_pull_max_ns / 1000,
            copy_us: r.copy_ns / 1000,
            meta_bytes: r.meta_bytes,
        }
    }
}

impl Results {
    /// The table and what one must know to read it.
    pub fn markdown(&self) -> String {
        let mut out = table(&self.rows());
        let setup = &self.setup;
        let rounds = self.stock.rounds.len();
        let machine = &self.machine;
        let _ = write!(
            out,
            "
Median (min..max) of {rounds} snapshots of each kind, in turn, of one server process, after
one warm-up of each kind. Latency counts from the time a request was due (open loop). \"Snapshot\" is
from BGSAVE sent to rdb_bgsave_in_progress=0, \"no snapshot\" just before.{}

* {}, {} of memory, {}{}
* {}: {} keys with {}-byte values ({}, {} resident), {} requests/s on {} connections,
  half of them SETs
",
            match self.asynchronous {
                Some(_) => SWITCH,
                None => "",
            },
            machine.brief(),
            human(machine.memory_bytes),
            machine.execution,
            match &machine.host {
                Some(host) => format!(", on {host}"),
                None => String::new(),
            },
            self.server,
            setup.keys,
            setup.value_size,
            human(setup.data_bytes),
            human(setup.resident_bytes),
            setup.rate,
            setup.clients,
        );
        for (name, column) in self.columns() {
            let Verified { digest, writes, .. } = &column.verified;
            let _ = writeln!(
                out,
                "* {name} fork, RDB verified: DEBUG DIGEST is {digest} at the fork\n  \
                 and of the loaded RDB; {writes} SETs from the fork to the end of the snapshot"
            );
        }
        out
    }

    /// Everything, for programs.
    ///
    /// # Errors
    /// None in practice.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    fn columns(&self) -> Vec<(&'static str, &Column)> {
        let asynchronous = self.asynchronous.as_ref().map(|column| ("async", column));
        [("stock", &self.stock)]
            .into_iter()
            .chain(asynchronous)
            .collect()
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let columns = self.columns();
        let mut rows = vec![vec![String::new(), "no snapshot".into()]];
        rows[0].extend(columns.iter().map(|(name, _)| format!("{name} fork")));
        let mut row = |label: &str, idle: String, cell: &dyn Fn(&Column) -> String| {
            let mut cells = vec![label.to_owned(), idle];
            cells.extend(columns.iter().map(|(_, column)| cell(column)));
            rows.push(cells);
        };
        let idle = |value: fn(&Latency) -> u64| spread(self.no_snapshot.iter().map(value), millis);
        let none = String::new;

        row("latest_fork_usec", none(), &|c| {
            c.spread(|r| r.latest_fork_usec, whole)
        });
        row("longest request, first second, ms", none(), &|c| {
            c.spread(|r| r.first_second.max_us, millis)
        });
        row("p99 request, first second, ms", none(), &|c| {
            c.spread(|r| r.first_second.p99_us, millis)
        });
        row("longest request, snapshot, ms", idle(|l| l.max_us), &|c| {
            c.spread(|r| r.latency.max_us, millis)
        });
        row("p99.9 request, snapshot, ms", idle(|l| l.p999_us), &|c| {
            c.spread(|r| r.latency.p999_us, millis)
        });
        row("p99 request, snapshot, ms", idle(|l| l.p99_us), &|c| {
            c.spread(|r| r.latency.p99_us, millis)
        });
        row("median request, snapshot, ms", idle(|l| l.p50_us), &|c| {
            c.spread(|r| r.latency.p50_us, millis)
        });
        row("snapshot takes, s", none(), &|c| {
            c.spread(|r| r.duration_ms, millis)
        });
        row("CPU time of the child, s", none(), &|c| {
            c.spread(|r| r.child_cpu_ms, millis)
        });
        if self.asynchronous.is_some() {
            let no = |text: &str| text.to_owned();
            let session = |value: fn(&Session) -> u64, show: fn(u64) -> String, stock: String| {
                move |c: &Column| match c.sessions() {
                    sessions if sessions.is_empty() => stock.clone(),
                    sessions => spread(sessions.iter().map(value), show),
                }
            };
            row(
                "chunks (2 MiB) parked",
                none(),
                &session(|s| s.parked, whole, no("0")),
            );
            row(
                "- pulled by the child",
                none(),
                &session(|s| s.by_child, whole, no("")),
            );
            row(
                "- pulled by the server",
                none(),
                &session(|s| s.by_parent, whole, no("")),
            );
            row(
                "- pulled by others",
                none(),
                &session(|s| s.by_others, whole, no("")),
            );
            row(
                "longest pull of the server, ms",
                none(),
                &session(|s| s.parent_pull_max_us, millis, no("")),
            );
            row(
                "all pulled after, ms",
                none(),
                &session(|s| s.copy_us, millis, no("")),
            );
        }
        row("RDB verified", none(), &|_| "yes".into());
        rows
    }
}

impl Column {
    fn spread(&self, value: fn(&Round) -> u64, show: fn(u64) -> String) -> String {
        spread(self.rounds.iter().map(value), show)
    }

    fn sessions(&self) -> Vec<Session> {
        self.rounds.iter().filter_map(|r| r.session).collect()
    }
}

/// `median (min..max)`; just the value if there is one value only.
fn spread(values: impl Iterator<Item = u64>, show: fn(u64) -> String) -> String {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
        return String::new();
    };
    let upper = values.len() / 2;
    let lower = (values.len() - 1) / 2;
    let median = (values[lower] + values[upper]) / 2;
    if min == max {
        return show(median);
    }
    format!("{} ({}..{})", show(median), show(min), show(max))
}

fn whole(n: u64) -> String {
    n.to_string()
}

/// Thousandths with three significant digits or more.
fn millis(n: u64) -> String {
    match n {
        0..=9_999 => format!("{:.2}", n as f64 / 1000.0),
        10_000..=99_999 => format!("{:.1}", n as f64 / 1000.0),
        _ => format!("{:.0}", n as f64 / 1000.0),
    }
}

/// Bytes in MiB or GiB.
pub fn human(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1000.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}

/// A markdown table with aligned columns; the first row is its head.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(out, "| {cell:width$} ");
        }
        out.push_str("|\n");
        if i == 0 {
            for width in &widths {
                let _ = write!(out, "|{}", "-".repeat(width + 2));
            }
            out.push_str("|\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_median_and_extremes() {
        assert_eq!(spread([5].into_iter(), whole), "5");
        assert_eq!(spread([9, 1, 5].into_iter(), whole), "5 (1..9)");
        assert_eq!(spread([4, 1, 2, 9].into_iter(), whole), "3 (1..9)");
        assert_eq!(spread([7, 7].into_iter(), whole), "7");
        assert_eq!(spread([].into_iter(), whole), "");
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            [0, 7, 1234, 12_345, 123_456].map(millis),
            ["0.00", "0.01", "1.23", "12.3", "123"]
        );
        assert_eq!(human(64 << 20), "64 MiB");
        assert_eq!(human(3 << 29), "1.50 GiB");
    }

    #[test]
    fn tables_are_aligned_markdown() {
        let rows = [["", "a"], ["long", "b"]].map(|r| r.map(String::from).to_vec());
        assert_eq!(table(&rows), "|      | a |\n|------|---|\n| long | b |\n");
    }
}
