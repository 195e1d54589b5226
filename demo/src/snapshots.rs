// SPDX-License-Identifier: MIT OR Apache-2.0
//! The snapshots: one of each kind to verify, then those to measure.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};
use asyncfork_host::module;
use asyncfork_uapi::Stats;

use crate::claim;
use crate::load::{Latency, Load};
use crate::module::Module;
use crate::progress::{during, say};
use crate::report::{Results, Round, Session, Verified};
use crate::resp::Client;
use crate::server::{digest, Info, Server};

/// Rest before each measured snapshot, then the time measured as "no snapshot".
const REST: Duration = Duration::from_secs(1);
const NO_SNAPSHOT: Duration = Duration::from_secs(3);

/// How a snapshot is to fork.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Stock,
    Async,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Stock => "stock fork",
            Mode::Async => "async fork",
        }
    }
}

/// What the snapshots are made with.
pub struct Snapshots<'a> {
    /// The server's binary.
    pub binary: &'a Path,
    /// Where the servers' files are.
    pub dir: &'a Path,
    /// None: stock forks only, without module and library.
    pub module: Option<&'a Module>,
    /// The server to snapshot.
    pub server: &'a Server,
    /// The load on it.
    pub load: &'a Load,
}

/// An RDB to be verified.
struct Snapshot {
    mode: Mode,
    file: String,
    digest: String,
    writes: u64,
    session: Option<Session>,
}

impl Snapshots<'_> {
    fn dump(&self) -> PathBuf {
        self.dir.join("dump.rdb")
    }

    /// One snapshot of each kind, verified. The first RDB is verified while the
    /// second is made.
    ///
    /// # Errors
    /// [`crate::Claim`] if a snapshot was made another way than its kind says,
    /// or is wrong.
    pub fn warm_up(&self) -> Result<(Verified, Option<Verified>)> {
        std::thread::scope(|scope| {
            let stock = self.snapshot_with_digest(Mode::Stock)?;
            let stock = scope.spawn(|| self.verify(stock));
            let second = match self.module {
                Some(_) => Some(self.snapshot_with_digest(Mode::Async)?),
                None => None,
            };
            self.load.hold();
            let second = second.map(|snapshot| self.verify(snapshot)).transpose()?;
            let stock = stock
                .join()
                .map_err(|_| anyhow!("the verification panicked"))??;
            self.load.resume();
            Ok((stock, second))
        })
    }

    /// A snapshot of which the dataset's digest at the fork is known.
    ///
    /// One write carries the commands, so the server executes them back to
    /// back; the pause makes sure of it: no write of another client can come
    /// between the digest and the fork. The load's requests queue up meanwhile
    /// and hit the server as soon as it has forked.
    fn snapshot_with_digest(&self, mode: Mode) -> Result<Snapshot> {
        let label = format!("{}, warm-up", mode.name());
        let mut client = self.server.client()?;
        let fork = Fork::prepare(self, mode)?;
        let commands = [
            "CLIENT PAUSE 3600000 WRITE",
            "DEBUG DIGEST",
            "BGSAVE",
            "CLIENT UNPAUSE",
        ];
        let replies = during(
            &format!("{label}: DEBUG DIGEST, then BGSAVE at once"),
            || client.run_all(&commands),
        )?;
        let digest = digest(replies[1].clone())?;
        let info = self.server.wait_bgsave(&label)?;
        let session = fork.check().context(label.clone())?;
        let writes = info.number("rdb_changes_since_last_save")?;
        claim!(
            writes > 0,
            "{label}: nothing was written during the snapshot"
        );
        let file = format!("{}.rdb", mode.name().replace(' ', "-"));
        fs::rename(self.dump(), self.dir.join(&file)).context("the RDB is missing")?;
        self.load.settle(Instant::now())?;
        say(format!(
            "{label}: saved while {writes} SETs went on{}",
            summary(session)
        ));
        Ok(Snapshot {
            mode,
            file,
            digest,
            writes,
            session,
        })
    }

    /// Loads the RDB in a second server and compares the digests.
    fn verify(&self, snapshot: Snapshot) -> Result<Verified> {
        let Snapshot {
            mode,
            file,
            digest: want,
            writes,
            session,
        } = snapshot;
        let label = format!("{}, verification", mode.name());
        say(format!("{label}: loading the RDB in a second server"));
        let name = file.replace(".rdb", "");
        let mut second = Server::start(self.binary, self.dir, &name, &file, None)?;
        second.wait_loaded(&label)?;
        fs::remove_file(self.dir.join(&file))?;
        let mut client = second.client()?;
        let reply = during(&format!("{label}: DEBUG DIGEST"), || {
            client.run("DEBUG DIGEST")
        })?;
        let got = digest(reply)?;
        claim!(
            got == want,
            "{}: the RDB is not the dataset of the moment of the fork: its digest is {got}, the \
             dataset's was {want}",
            mode.name()
        );
        second.stop()?;
        say(format!(
            "{label}: RDB and dataset at the fork are the same ({got})"
        ));
        Ok(Verified {
            digest: want,
            writes,
            session,
        })
    }

    /// The measured snapshots, kinds alternating.
    ///
    /// # Errors
    /// [`crate::Claim`] if a snapshot was made another way than its kind says.
    pub fn measure(&self, rounds: u32, results: &mut Results) -> Result<()> {
        for n in 1..=rounds {
            let (round, idle) = self.round(Mode::Stock, &format!("{n} of {rounds}"))?;
            results.stock.rounds.push(round);
            results.no_snapshot.push(idle);
            if let Some(column) = &mut results.asynchronous {
                let (round, idle) = self.round(Mode::Async, &format!("{n} of {rounds}"))?;
                column.rounds.push(round);
                results.no_snapshot.push(idle);
            }
        }
        Ok(())
    }

    fn round(&self, mode: Mode, which: &str) -> Result<(Round, Latency)> {
        let label = format!("{}, {which}", mode.name());
        if self.dump().exists() {
            fs::remove_file(self.dump())?;
        }
        let mut client = self.server.client()?;
        std::thread::sleep(REST);
        let idle = Instant::now();
        std::thread::sleep(NO_SNAPSHOT);
        let idle = self.load.window(idle, idle + NO_SNAPSHOT)?;

        let fork = Fork::prepare(self, mode)?;
        let cpu_before = children_cpu_ms(&mut client)?;
        let start = Instant::now();
        client.run("BGSAVE")?;
        let info = self.server.wait_bgsave(&label)?;
        let end = Instant::now();
        let session = fork.check().context(label.clone())?;
        let round = Round {
            latest_fork_usec: Info::get(&mut client, "stats")?.number("latest_fork_usec")?,
            duration_ms: (end - start).as_millis() as u64,
            latency: self.load.window(start, end)?,
            first_second: self
                .load
                .window(start, end.min(start + Duration::from_secs(1)))?,
            writes: info.number("rdb_changes_since_last_save")?,
            child_cpu_ms: children_cpu_ms(&mut client)? - cpu_before,
            session,
        };
        say(format!(
            "{label}: fork {} us, longest request {:.1} ms{}",
            round.latest_fork_usec,
            round.latency.max_us as f64 / 1000.0,
            summary(session)
        ));
        Ok((round, idle))
    }
}

/// CPU time of the server's children so far.
fn children_cpu_ms(client: &mut Client) -> Result<u64> {
    let info = Info::get(client, "cpu")?;
    let seconds: f64 = ["used_cpu_sys_children", "used_cpu_user_children"]
        .iter()
        .map(|field| Ok(info.text(field)?.parse::<f64>()?))
        .sum::<Result<f64>>()?;
    Ok((seconds * 1000.0) as u64)
}

fn summary(session: Option<Session>) -> String {
    session.map_or(String::new(), |s| {
        format!(
            ", {} chunks parked, pulled by child {}, server {}, others {}",
            s.parked, s.by_child, s.by_parent, s.by_others
        )
    })
}

/// A fork about to happen, and what the module must say about it.
struct Fork<'a> {
    module: Option<(&'a Module, Stats)>,
    mode: Mode,
    server: u32,
}

impl<'a> Fork<'a> {
    fn prepare(of: &Snapshots<'a>, mode: Mode) -> Result<Self> {
        let module = match of.module {
            Some(module) => {
                module.set_enabled(mode == Mode::Async)?;
                Some((module, module::stats()?))
            }
            None => None,
        };
        Ok(Self {
            module,
            mode,
            server: of.server.pid(),
        })
    }

    /// The session of an asynchronous fork.
    fn check(self) -> Result<Option<Session>> {
        match (self.module, self.mode) {
            (Some((module, before)), Mode::Async) => {
                Ok(Some(module.expect_async(&before, self.server)?.into()))
            }
            (Some((module, before)), Mode::Stock) => {
                module.expect_stock(&before)?;
                Ok(None)
            }
            (None, _) => Ok(None),
        }
    }
}
