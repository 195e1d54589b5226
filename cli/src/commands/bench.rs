// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench`: fork() on this host, stock and asynchronous.
//!
//! Not the benchmark of `scripts/bench`: that one loads and unloads the module, which no
//! host with servers is to have done to it.

use anyhow::Result;
use serde_json::{json, Value};

use crate::cli::BenchArgs;
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::out::{self, bytes, duration};
use crate::pause::available_bytes;
use crate::progress;
use crate::sample::{Samples, Sampling, CHUNK};

/// Measures each size, stock and asynchronous.
///
/// # Errors
/// A size is too large for this host, or too small to measure.
pub fn run(ctx: &mut Ctx<'_>, args: &BenchArgs) -> Result<Exit> {
    let (machine, cgroup) = available_bytes(&ctx.host);
    let most = machine.min(cgroup) / 2;
    for &size in &args.sizes {
        if size < 16 * CHUNK as u64 {
            return Err(exit::input(format!(
                "--sizes {}: at least 32M, less is noise",
                bytes(size)
            )));
        }
        if size > most {
            return Err(exit::input(format!(
                "--sizes {}: more than half of the memory that is available here; at most {}",
                bytes(size),
                bytes(most)
            )));
        }
    }
    let mut rows: Vec<Value> = Vec::new();
    let mut asynchronous_ones = 0;
    let mut table = out::table(&[
        "memory",
        "stock",
        "(range)",
        "asynchronous",
        "(range)",
        "ratio",
    ]);
    let mut why = None;
    // In whole page tables.
    for size in args
        .sizes
        .iter()
        .map(|size| size / CHUNK as u64 * CHUNK as u64)
    {
        let sample = |asynchronous| {
            let kind = if asynchronous {
                "asynchronous"
            } else {
                "stock"
            };
            let what = format!("measuring {kind} forks with {}", bytes(size));
            let sampling = Sampling {
                mappings: 0,
                tables: (size / CHUNK as u64) as usize,
                forks: args.forks,
                zero: false,
                asynchronous,
            };
            progress::during(&what, || (ctx.sample)(&sampling))
        };
        let stock = sample(false)?;
        let asynchronous = sample(true);
        asynchronous_ones += usize::from(asynchronous.is_ok());
        let (cell, spread, ratio) = match &asynchronous {
            Ok(found) => {
                let ratio = stock.median() as f64 / found.median().max(1) as f64;
                (
                    duration(found.median()),
                    range(found),
                    format!("{ratio:.0}"),
                )
            }
            Err(_) => ("-".into(), String::new(), String::new()),
        };
        table.add_row([
            bytes(size),
            duration(stock.median()),
            range(&stock),
            cell,
            spread,
            ratio,
        ]);
        let error = asynchronous.as_ref().err().map(|e| format!("{e:#}"));
        rows.push(json!({
            "bytes": size, "stock_ns": stock.ns, "async_ns": asynchronous.as_ref().ok().map(|s| &s.ns), "async_error": error,
        }));
        why = why.or(error);
    }
    if ctx.out.is_json() {
        ctx.out
            .object(&json!({"kernel": ctx.kernel(), "forks": args.forks, "sizes": rows}))?;
    } else {
        ctx.out.line(format!(
            "fork() of a process with touched memory, median of {}; kernel {}",
            args.forks,
            ctx.kernel()
        ))?;
        ctx.out.line(table.trim_fmt())?;
        if let Some(why) = why {
            ctx.out.line(format!("not asynchronous: {why}"))?;
        }
    }
    Ok(if asynchronous_ones == args.sizes.len() {
        Exit::Done
    } else {
        Exit::No
    })
}

fn range(samples: &Samples) -> String {
    let (least, most) = samples.range();
    format!("({} to {})", duration(least), duration(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    fn args(sizes: &[u64]) -> BenchArgs {
        BenchArgs {
            sizes: sizes.to_vec(),
            forks: 3,
        }
    }

    fn measured(what: &Sampling) -> Result<Samples> {
        Ok(Samples {
            ns: vec![
                if what.asynchronous {
                    100_000
                } else {
                    10_000_000
                };
                what.forks as usize
            ],
            parked: 1,
        })
    }

    #[test]
    fn both_kinds_are_compared() {
        let fake = Fake::new();
        fake.write("/proc/meminfo", "MemAvailable: 8388608 kB\n");
        let (result, text) = fake.command("bench", |ctx| {
            ctx.sample = Box::new(measured);
            run(ctx, &args(&[1 << 30]))
        });
        assert_eq!(result.unwrap(), Exit::Done);
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("1 GiB") && line.ends_with("100"), "{text}");
    }

    #[test]
    fn json_is_as_documented() {
        let fake = Fake::new();
        fake.write("/proc/meminfo", "MemAvailable: 8388608 kB\n");
        fake.golden("bench", "bench", |ctx| {
            ctx.sample = Box::new(measured);
            run(ctx, &args(&[1 << 30]))
        });
    }

    #[test]
    fn without_the_module_the_stock_half_is_measured() {
        let fake = Fake::new();
        fake.write("/proc/meminfo", "MemAvailable: 8388608 kB\n");
        let (result, text) = fake.command("bench", |ctx| {
            ctx.sample = Box::new(|what| match what.asynchronous {
                true => Err(exit::cannot_tell("the module is not loaded")),
                false => measured(what),
            });
            run(ctx, &args(&[1 << 30]))
        });
        assert_eq!(result.unwrap(), Exit::No);
        assert!(
            text.ends_with("not asynchronous: the module is not loaded\n"),
            "{text}"
        );
    }

    #[test]
    fn sizes_that_harm_or_say_nothing_are_refused() {
        let fake = Fake::new();
        fake.write("/proc/meminfo", "MemAvailable: 8388608 kB\n");
        for size in [0, 1 << 20, 5 << 30, u64::MAX] {
            let error = fake
                .command("bench", |ctx| run(ctx, &args(&[size])))
                .0
                .unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input, "{size}");
        }
    }
}
