// SPDX-License-Identifier: MIT OR Apache-2.0
//! `watch`: forks as they happen.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use asyncfork_uapi::{By, Outcome};
use serde_json::json;

use super::explain::{comm, fork_json};
use crate::cli::WatchArgs;
use crate::ctx::Ctx;
use crate::exit::Exit;
use crate::module::Fork;
use crate::out::{self, duration, styled};

/// Prints each fork that the module records, until `--count`, or until interrupted.
///
/// # Errors
/// The module is gone.
pub fn run(ctx: &mut Ctx<'_>, args: &WatchArgs) -> Result<Exit> {
    let mut ring = Ring::default();
    let mut left = args.count.unwrap_or(u64::MAX);
    // Opened anew for each look: an open device keeps the module from being unloaded.
    let first = ring.news(ctx.module()?.recent()?);
    let mut news = if args.past { first } else { News::default() };
    if !ctx.out.is_json() {
        ctx.out.line(format!(
            "{:<16} {:>8} {:>8} {:<6} {:>9} {:>9} {:>9} {:>9}  {:<8}  reason",
            "name", "pid", "child", "fork", "chunks", "parking", "waits", "copying", "by"
        ))?;
    }
    loop {
        if news.lost {
            if ctx.out.is_json() {
                ctx.out.json_line(&json!({"lost": true}))?;
            } else {
                ctx.out
                    .line("(more forks than the module's ring holds: some are missing here)")?;
            }
        }
        for fork in news.forks {
            if left == 0 {
                break;
            }
            left -= 1;
            if ctx.out.is_json() {
                ctx.out.json_line(&fork_json(&fork))?;
            } else {
                ctx.out.line(line(&fork))?;
            }
        }
        ctx.out.flush()?;
        if left == 0 {
            return Ok(Exit::Done);
        }
        sleep(Duration::from_secs_f64(args.interval));
        // Nothing may happen for days, and no write tell.
        if out::nobody_reads(io::stdout()) {
            return Ok(Exit::Done);
        }
        news = ring.news(ctx.module()?.recent()?);
    }
}

fn line(fork: &Fork) -> String {
    let report = &fork.0;
    let outcome = match report.outcome() {
        Outcome::Async => styled(out::GOOD, format!("{:<6}", "async")),
        Outcome::Stock => styled(out::WARN, format!("{:<6}", "stock")),
        other => styled(out::BAD, format!("{other:<6}")),
    };
    let (times, reason) = if fork.is_async() {
        let times = [report.park_ns, report.parent_pull_ns, report.copy_ns].map(duration);
        (times, String::new())
    } else {
        (
            ["-", "-", "-"].map(String::from),
            report.reason().label().to_owned(),
        )
    };
    let by = fork.by().map_or("-", By::label);
    format!(
        "{:<16} {:>8} {:>8} {outcome} {:>9} {:>9} {:>9} {:>9}  {by:<8}  {reason}",
        comm(report),
        report.parent_pid,
        report.child_pid,
        report.chunks.parked,
        times[0],
        times[1],
        times[2],
    )
    .trim_end()
    .to_owned()
}

/// What has come since the last look.
#[derive(Debug, Default, PartialEq)]
struct News {
    forks: Vec<Fork>,
    /// More has come than the ring holds.
    lost: bool,
}

/// Tells new forks from old ones: by number, or without numbers by where the last look
/// at the ring, which had all that it held, ends in this one.
#[derive(Debug, Default)]
struct Ring {
    seen: Vec<Fork>,
}

impl Ring {
    /// `forks` are all in the ring, oldest first.
    fn news(&mut self, forks: Vec<Fork>) -> News {
        let last = |forks: &[Fork]| forks.last().and_then(Fork::seq);
        let news = match (last(&self.seen), last(&forks)) {
            // Lower numbers than before: the module was loaded anew.
            (Some(old), Some(new)) if new >= old => {
                let new: Vec<_> = forks
                    .iter()
                    .filter(|f| f.seq() > Some(old))
                    .copied()
                    .collect();
                let lost = new.first().is_some_and(|f| f.seq() > Some(old + 1));
                News { forks: new, lost }
            }
            (Some(_), Some(_)) => News {
                forks: forks.clone(),
                lost: false,
            },
            _ => self.by_overlap(&forks),
        };
        self.seen = forks;
        news
    }

    fn by_overlap(&self, forks: &[Fork]) -> News {
        let old = self.seen.as_slice();
        for overlap in (1..=old.len().min(forks.len())).rev() {
            if old[old.len() - overlap..] == forks[..overlap] {
                return News {
                    forks: forks[overlap..].to_vec(),
                    lost: false,
                };
            }
        }
        News {
            forks: forks.to_vec(),
            lost: !old.is_empty() && !forks.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fork, Fake};
    use asyncfork_uapi::Reason;

    fn forks(pids: std::ops::Range<i32>) -> Vec<Fork> {
        pids.map(|pid| fork(pid, Outcome::Async, Reason::None))
            .collect()
    }

    fn numbered(numbers: std::ops::Range<u64>) -> Vec<Fork> {
        let with = |n| {
            let mut fork = fork(7, Outcome::Async, Reason::None);
            fork.0.seq = n;
            fork
        };
        numbers.map(with).collect()
    }

    #[test]
    fn new_forks_are_told_by_overlap() {
        let mut ring = Ring::default();
        assert_eq!(ring.news(vec![]), News::default());
        assert_eq!(ring.news(forks(1..3)).forks, forks(1..3));
        assert_eq!(ring.news(forks(1..3)), News::default());
        assert_eq!(
            ring.news(forks(2..6)),
            News {
                forks: forks(3..6),
                lost: false
            }
        );
        assert_eq!(
            ring.news(forks(9..11)),
            News {
                forks: forks(9..11),
                lost: true
            }
        );
    }

    #[test]
    fn new_forks_are_told_by_number() {
        let mut ring = Ring::default();
        ring.news(numbered(1..4));
        assert_eq!(ring.news(numbered(1..4)), News::default());
        assert_eq!(
            ring.news(numbered(2..6)),
            News {
                forks: numbered(4..6),
                lost: false
            }
        );
        assert_eq!(
            ring.news(numbered(9..11)),
            News {
                forks: numbered(9..11),
                lost: true
            }
        );
        // Loaded anew.
        assert_eq!(
            ring.news(numbered(1..3)),
            News {
                forks: numbered(1..3),
                lost: false
            }
        );
    }

    #[test]
    fn past_forks_are_shown_if_asked_for() {
        let fake = Fake::new();
        fake.loaded().module(|m| {
            m.forks = vec![
                fork(1, Outcome::Async, Reason::None),
                fork(2, Outcome::Stock, Reason::Limit),
            ];
        });
        let args = WatchArgs {
            interval: 0.01,
            count: Some(2),
            past: true,
        };
        let (result, text) = fake.command("watch", |ctx| run(ctx, &args));
        assert_eq!(result.unwrap(), Exit::Done);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[2].ends_with("limit"), "{text}");
    }

    #[test]
    fn json_is_as_documented() {
        let fake = Fake::new();
        fake.loaded().module(|m| {
            let mut fork = fork(42, Outcome::Async, Reason::None);
            fork.0.seq = 7;
            fork.0.by = By::Enrolled.raw();
            fork.0.entry_id = 4711;
            m.forks = vec![fork];
        });
        let args = WatchArgs {
            interval: 0.01,
            count: Some(1),
            past: true,
        };
        fake.golden("watch", "watch", |ctx| run(ctx, &args));
    }

    #[test]
    fn it_ends_with_the_module() {
        let fake = Fake::new();
        let args = WatchArgs {
            interval: 0.01,
            count: None,
            past: false,
        };
        assert!(fake.command("watch", |ctx| run(ctx, &args)).0.is_err());
    }
}
