// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/bench`: fork() measured in a VM, stock against async.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{ensure, Context, Result};
use asyncfork_bench::Measure;

use crate::checkout::Checkout;
use crate::interrupt;
use crate::kernels::{self, Kernel};
use crate::passed::Passed;
use crate::prepare;
use crate::vm::{Streams, VmOptions};

/// Measure fork() in a VM with a stock Debian kernel, stock against async in one run
///
/// By default 1, 2, 4 and 8 GiB of touched memory, 64 GiB of page tables alone, and what the
/// loaded but idle module costs. Prints a table, and what it ran on; every single measurement goes
/// to target/bench/forks-KERNEL.jsonl. Needs 13 GiB of free memory for 8 GiB touched; --sizes 1,2
/// needs less.
///
/// --icount counts instructions instead of time (scripts/vm --icount), and also those of the
/// parent's first touch of a parked chunk. It prints minima, which repeat from run to run, on a
/// busy machine, too. In the clock of that VM an instruction takes 2 ns, but counts are no times:
/// caches, memory and other CPUs do not enter. Single measurements go to
/// target/bench/counts-KERNEL.jsonl.
#[derive(Debug, clap::Args)]
#[command(override_usage = "scripts/bench [OPTIONS]", args_override_self = true)]
#[command(after_help = "\
Exit status:
  0    measured
  2    it could not be measured
  123  the kernel complained
  124  out of time
  125  the guest did not boot or died; or something could not be built
  130  interrupted")]
pub struct BenchOptions {
    /// Kernel to boot
    #[arg(long, value_name = "KERNEL", default_value_t = kernels::first())]
    kernel: &'static Kernel,
    #[command(flatten)]
    measure: Passed<Measure>,
}

/// Seconds that the measurements may take.
const TIMEOUT: u64 = 3600;

/// Builds what is needed, boots the VM and measures. The exit status is the guest program's or
/// that of `scripts/vm`.
///
/// # Errors
/// Something cannot be built or written, or the VM not be started.
pub fn run(options: &BenchOptions) -> Result<ExitCode> {
    interrupt::catch()?;
    let checkout = Checkout::open(options.kernel)?;
    let module = prepare::module(&checkout, false)?;
    prepare::programs(&checkout.root, &["asyncfork-guest"])?;
    let emulator = match options.measure.options.icount {
        true => Some(emulator(&checkout)?),
        false => None,
    };
    let dir = checkout.root.join("target/bench");
    fs::create_dir_all(&dir)?;
    let status = prepare::boot(
        &checkout,
        &options.vm(&dir),
        &options.command(&dir, &module, emulator),
        Streams::inherit(),
    )?;
    Ok(ExitCode::from(status))
}

impl BenchOptions {
    fn vm(&self, dir: &Path) -> VmOptions {
        let usual = VmOptions::default();
        let icount = self.measure.options.icount;
        VmOptions {
            memory: "12G".into(),
            timeout: TIMEOUT,
            share: vec![dir.to_owned()],
            icount,
            cpus: if icount { 1 } else { usual.cpus },
            ..usual
        }
    }

    /// The guest's command line. Results go to a file in `dir`.
    fn command(&self, dir: &Path, module: &str, emulator: Option<String>) -> Vec<String> {
        let what = match self.measure.options.icount {
            true => "counts",
            false => "forks",
        };
        let out = dir.join(format!("{what}-{}.jsonl", self.kernel));
        let mut command = vec![
            format!("{}/asyncfork-guest", prepare::PROGRAMS),
            "bench".to_owned(),
            format!("--module={module}"),
            format!("--out={}", out.display()),
        ];
        command.extend(emulator.map(|version| format!("--emulator={version}")));
        command.extend(self.measure.words.iter().cloned());
        command
    }
}

/// The version of the VMs' QEMU: counts are those of its emulation.
fn emulator(checkout: &Checkout) -> Result<String> {
    let qemu = checkout.qemu();
    let out = Command::new(&qemu)
        .env("ASYNCFORK_QEMU_ROOT", &checkout.qemu_root)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", qemu.display()))?;
    ensure!(
        out.status.success(),
        "{} --version: {}: {}",
        qemu.display(),
        out.status,
        String::from_utf8_lossy(&out.stderr).trim()
    );
    let text = String::from_utf8(out.stdout)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: BenchOptions,
    }

    fn parse(words: &str) -> BenchOptions {
        let words = std::iter::once("bench").chain(words.split_whitespace());
        Line::parse_from(words).options
    }

    fn command(words: &str, emulator: Option<&str>) -> String {
        let emulator = emulator.map(str::to_owned);
        let command = parse(words).command(Path::new("/r/target/bench"), "t/a.ko", emulator);
        command.join(" ")
    }

    #[test]
    fn the_guest_program_gets_its_options_wherever_the_kernel_is_named() {
        let program = "target/release/asyncfork-guest bench --module=t/a.ko";
        assert_eq!(
            command("", None),
            format!("{program} --out=/r/target/bench/forks-6.1.jsonl")
        );
        assert_eq!(
            command("--sizes 1,2 --kernel 7.2 --forks=3", None),
            format!(
                "{program} --out=/r/target/bench/forks-7.2.jsonl --sizes=1 --sizes=2 --forks=3"
            )
        );
    }

    #[test]
    fn counts_have_a_file_of_their_own_and_name_the_emulator() {
        assert_eq!(
            command("--icount", Some("QEMU 10.0")),
            "target/release/asyncfork-guest bench --module=t/a.ko \
             --out=/r/target/bench/counts-6.1.jsonl --emulator=QEMU 10.0 --icount"
        );
    }

    #[test]
    fn instructions_are_counted_on_one_cpu() {
        let dir = Path::new("/r/target/bench");
        let vm = |words| parse(words).vm(dir);
        assert_eq!(
            (vm("").icount, vm("").cpus),
            (false, VmOptions::default().cpus)
        );
        assert_eq!((vm("--icount").icount, vm("--icount").cpus), (true, 1));
        assert_eq!(vm("").share, [dir]);
    }
}
