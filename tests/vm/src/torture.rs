// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/torture`: random work, forks and disturbances in a VM.

use std::fs::{self, File};
use std::process::{Command, ExitCode};

use anyhow::{ensure, Context, Result};

use crate::checkout::Checkout;
use crate::interrupt;
use crate::kernels::{self, Build, Kernel};
use crate::prepare;
use crate::vm::{Streams, VmOptions};

/// Torture the module in a VM with a stock Debian kernel
///
/// Parents of random sizes with several threads fork all the time and work on their memory, while
/// other processes kill, freeze and limit them, compact and swap out memory, take the module's
/// parameters and the module itself away. Every page is compared with a model. Prints the seed, a
/// word a minute, and at the end what was done; the same goes to
/// target/torture/KERNEL-TIME.md.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "scripts/torture [OPTIONS]",
    args_override_self = true
)]
#[command(after_help = "\
Exit status:
  0    nothing found
  1    a wrong byte or the like
  2    usage, or the guest could not be set up
  123  the kernel complained
  124  out of time
  125  the guest did not boot or died; or something could not be built
  130  interrupted")]
pub struct TortureOptions {
    /// Kernel to boot
    #[arg(long, value_name = "KERNEL", default_value_t = kernels::first())]
    kernel: &'static Kernel,
    /// With a module built for fault injection, of which allocations fail now and then, too
    #[arg(long)]
    faults: bool,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    memory: String,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MAX_MINUTES))]
    minutes: u64,
    /// Replay a run, as far as a seed can [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Parents at a time [default: 4]
    #[arg(long, value_name = "N")]
    parents: Option<usize>,
}

/// A year: more is a mistake.
const MAX_MINUTES: u64 = 366 * 24 * 60;
/// Seconds beside the torture itself: to set up, and to look for what is left.
const AROUND: u64 = 900;

/// Words for the kernel: two nodes let pages migrate, poison shows stray writes to freed page
/// tables.
const WORDS_STOCK: &str = "numa=fake=2 page_poison=1 slub_debug=FZP";
/// KASAN sees more than poison does.
const WORDS_DEBUG: &str = "numa=fake=2 kmemleak=on";
const WORDS_KCSAN: &str = "numa=fake=2";

/// Builds what is needed, boots the VM and tortures. The exit status is the guest program's or
/// that of `scripts/vm`.
///
/// # Errors
/// Something cannot be built or written, or the VM not be started.
pub fn run(options: &TortureOptions) -> Result<ExitCode> {
    interrupt::catch()?;
    let checkout = Checkout::open(options.kernel)?;
    let module = prepare::module(&checkout, options.faults)?;
    prepare::programs(&checkout.root, &["asyncfork-guest"])?;
    let dir = checkout.root.join("target/torture");
    fs::create_dir_all(&dir)?;
    let report = dir.join(format!("{}-{}.md", options.kernel, now()?));
    let report =
        File::create(&report).with_context(|| format!("cannot write {}", report.display()))?;
    let status = prepare::boot(
        &checkout,
        &options.vm(),
        &options.command(&module),
        Streams::inherit().copied_to(report),
    )?;
    Ok(ExitCode::from(status))
}

impl TortureOptions {
    fn vm(&self) -> VmOptions {
        let words = match self.kernel.build {
            Build::Stock => WORDS_STOCK,
            Build::Debug => WORDS_DEBUG,
            Build::Kcsan => WORDS_KCSAN,
        };
        VmOptions {
            memory: self.memory.clone(),
            timeout: self.minutes * 60 + AROUND,
            append: vec![words.to_owned()],
            ..VmOptions::default()
        }
    }

    /// The guest's command line.
    fn command(&self, module: &str) -> Vec<String> {
        let mut command = vec![
            format!("{}/asyncfork-guest", prepare::PROGRAMS),
            "torture".to_owned(),
            format!("--module={module}"),
            format!("--minutes={}", self.minutes),
        ];
        command.extend(self.seed.map(|seed| format!("--seed={seed}")));
        command.extend(self.parents.map(|parents| format!("--parents={parents}")));
        command
    }
}

/// The time, for a file's name.
fn now() -> Result<String> {
    let date = Command::new("date")
        .args(["-u", "+%Y%m%d-%H%M%S"])
        .output()
        .context("cannot run date")?;
    ensure!(date.status.success(), "date: {}", date.status);
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: TortureOptions,
    }

    fn parse(words: &str) -> Result<TortureOptions, clap::Error> {
        let words = std::iter::once("torture").chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options)
    }

    #[test]
    fn the_guest_program_gets_its_options_and_no_others() {
        let command = |words| parse(words).unwrap().command("t/a.ko").join(" ");
        let program = "target/release/asyncfork-guest torture --module=t/a.ko";
        assert_eq!(command(""), format!("{program} --minutes=10"));
        assert_eq!(
            command("--seed 7 --kernel 7.2 --faults --minutes 60 --memory 2G --parents=3"),
            format!("{program} --minutes=60 --seed=7 --parents=3")
        );
    }

    #[test]
    fn the_vm_outlives_the_torture_and_has_the_memory_asked_for() {
        let vm = parse("--minutes 60 --memory 2G").unwrap().vm();
        assert_eq!((vm.timeout, vm.memory.as_str()), (60 * 60 + 900, "2G"));
        assert_eq!(parse("").unwrap().vm().memory, "4G");
    }

    #[test]
    fn freed_memory_is_poisoned_where_no_checker_watches_it() {
        let words = |kernel: &str| parse(kernel).unwrap().vm().append.join(" ");
        for stock in ["6.1", "6.12", "7.2"] {
            let words = words(&["--kernel=", stock].concat());
            assert_eq!(words, WORDS_STOCK, "{stock}");
        }
        assert_eq!(words("--kernel debug"), "numa=fake=2 kmemleak=on");
        assert_eq!(words("--kernel kcsan"), "numa=fake=2");
    }

    #[test]
    fn usage_is_status_2_and_the_last_word_counts() {
        for bad in [
            "--minutes 0",
            "--minutes x",
            "--minutes 1e3",
            "--kernel 5.10",
            "--without x",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
        assert_eq!(parse("--minutes 1 --minutes=2").unwrap().minutes, 2);
    }

    #[test]
    fn a_report_is_named_after_its_second() {
        let now = now().unwrap();
        let form = |c: char| if c.is_ascii_digit() { '9' } else { c };
        assert_eq!(now.chars().map(form).collect::<String>(), "99999999-999999");
    }
}
