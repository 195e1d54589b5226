// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/demo`: a real server in a VM large enough, and `asyncfork-demo guest` beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use asyncfork_demo::guest;
use asyncfork_demo::machine::MeasuredOn;

use crate::checkout::Checkout;
use crate::interrupt;
use crate::kernels::{self, Kernel};
use crate::passed::Passed;
use crate::prepare;
use crate::root::has_valkey;
use crate::vm::{Streams, VmOptions};

/// Exit code if the demo could not be carried out; the guest program's, too.
pub const EXIT_BROKEN: u8 = 2;

/// Show what asyncfork does for a real server
///
/// Boots a VM with a stock Debian kernel, fills a Redis or Valkey, puts a steady load on it and
/// takes snapshots (BGSAVE), alternately with stock fork and with async fork. Verifies an RDB of
/// each kind and prints a table of both, side by side.
///
/// The Debian of 6.1 has Redis 7.0, the other one Redis 8.0 and Valkey 8.1. The VM gets five times
/// the size of the data and 1 GiB. Files for the VM (--binary, --module, --library) have to be in
/// this checkout.
#[derive(Debug, clap::Args)]
#[command(override_usage = "scripts/demo [OPTIONS]", args_override_self = true)]
#[command(after_help = "\
Exit status:
  0    every snapshot was made the way its column says, and every RDB verified holds
       exactly the dataset of the moment of the fork
  1    one of these did not hold
  2    the demo could not be carried out (setup, options, memory)
  123  the kernel complained
  124  out of time
  125  the guest did not boot or died
  130  interrupted")]
pub struct DemoOptions {
    /// Kernel to boot
    #[arg(long, value_name = "KERNEL", default_value_t = kernels::first())]
    kernel: &'static Kernel,
    /// The directory that --out is relative to
    #[arg(long, value_name = "DIR", hide = true, default_value = ".")]
    from: PathBuf,
    #[command(flatten)]
    guest: Passed<guest::Options>,
}

/// Builds what is needed, boots the VM and runs the demo in it. The exit status is the guest
/// program's or that of `scripts/vm`.
///
/// # Errors
/// Something cannot be built, the kernel's Debian lacks the server, the VM cannot be started, or
/// the result not be written.
pub fn run(options: &DemoOptions) -> Result<ExitCode> {
    interrupt::catch()?;
    let checkout = Checkout::open(options.kernel)?;
    let guest = &options.guest.options;
    check_server(&checkout.guest_root, options.kernel, guest.binary())?;
    prepare::programs(&checkout.root, &["asyncfork-demo"])?;
    prepare::library(&checkout.root)?;
    prepare::module(&checkout, false)?;
    let out = guest
        .out()
        .map(|wanted| Out::new(&checkout.root, options.from.join(wanted)))
        .transpose()?;
    let host = MeasuredOn::this(None)?.brief();
    let status = prepare::boot(
        &checkout,
        &vm(guest.size(), out.as_ref()),
        &command(&options.guest.words, &host, out.as_ref()),
        Streams::inherit(),
    )?;
    if let Some(out) = out.filter(|_| status == 0) {
        out.deliver()?;
    }
    Ok(ExitCode::from(status))
}

/// Before a boot for nothing.
fn check_server(guest_root: &Path, kernel: &Kernel, binary: &Path) -> Result<()> {
    // A binary of the user's own may be anywhere that the guest sees.
    let Some(name) = binary.strip_prefix("/usr/bin").ok() else {
        return Ok(());
    };
    ensure!(
        guest_root.join("usr/bin").join(name).exists(),
        "the Debian of kernel {kernel} has no {}: Redis comes with every kernel, Valkey with {}",
        name.display(),
        kernels::in_words(kernels::accepted().filter(|kernel| has_valkey(kernel)))
    );
    Ok(())
}

/// A VM with what the check in `guest` asks for, and for the system. `size` is bytes.
fn vm(size: u64, out: Option<&Out>) -> VmOptions {
    let gib = size.div_ceil(1 << 30);
    VmOptions {
        memory: format!("{}G", 5 * gib + 1),
        // Emulation on a busy machine needs some ten minutes for the first GiB.
        timeout: 1800 * gib,
        share: out.map(|out| out.dir.clone()).into_iter().collect(),
        ..VmOptions::default()
    }
}

/// The guest's command line. What is said here counts, as it comes last.
fn command(given: &[String], host: &str, out: Option<&Out>) -> Vec<String> {
    let mut command = vec![
        format!("{}/asyncfork-demo", prepare::PROGRAMS),
        "guest".to_owned(),
    ];
    command.extend(given.iter().cloned());
    command.push(format!("--host={host}"));
    command.extend(out.map(|out| format!("--out={}", out.inside().display())));
    command
}

/// The result's way out: the guest may write to shared directories only.
struct Out {
    dir: PathBuf,
    wanted: PathBuf,
}

impl Out {
    fn new(root: &Path, wanted: PathBuf) -> Result<Self> {
        let dir = root.join(format!("target/demo/{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { dir, wanted })
    }

    /// The extension decides on the format.
    fn inside(&self) -> PathBuf {
        let file = self.dir.join("result");
        match self.wanted.extension() {
            Some(extension) => file.with_extension(extension),
            None => file,
        }
    }

    fn deliver(&self) -> Result<()> {
        fs::copy(self.inside(), &self.wanted)
            .with_context(|| format!("writing {}", self.wanted.display()))?;
        Ok(())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // At worst a stale file below target/.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: DemoOptions,
    }

    fn parse(words: &[&str]) -> DemoOptions {
        Line::parse_from(["demo"].iter().chain(words)).options
    }

    /// An empty directory.
    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("asyncfork-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_server_that_the_kernels_debian_lacks_is_refused() {
        let root = scratch("demo");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/redis-server"), "").unwrap();
        let check = |binary| check_server(&root, kernels::first(), Path::new(binary));
        assert!(check("/usr/bin/redis-server").is_ok());
        assert!(check("target/my-server").is_ok());
        let error = check("/usr/bin/valkey-server").unwrap_err().to_string();
        assert!(error.contains("6.1 has no valkey-server"), "{error}");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_vm_has_room_and_time_for_the_data() {
        for (size, memory, timeout) in [
            ("64M", "6G", 1800),
            ("1G", "6G", 1800),
            ("1025M", "11G", 3600),
            ("8G", "41G", 14400),
        ] {
            let size = parse(&["--size", size]).guest.options.size();
            let vm = vm(size, None);
            assert_eq!(
                (vm.memory.as_str(), vm.timeout),
                (memory, timeout),
                "{size}"
            );
            assert_eq!(vm.share, [""; 0].map(PathBuf::from));
        }
    }

    #[test]
    fn options_of_the_guest_program_go_there_and_the_kernel_stays() {
        let words = [
            "--rounds",
            "1",
            "--kernel",
            "6.12",
            "--stock-only",
            "--size=64M",
        ];
        let options = parse(&words);
        assert_eq!(options.kernel.name, "6.12");
        let command = command(&options.guest.words, "2x CPU", None);
        assert_eq!(
            command,
            [
                "target/release/asyncfork-demo",
                "guest",
                "--size=64M",
                "--rounds=1",
                "--stock-only",
                "--host=2x CPU"
            ]
        );
    }

    #[test]
    fn the_help_names_every_option_of_the_guest_program() {
        let help = Line::command().render_long_help().to_string();
        let guest = <guest::Options as clap::Args>::augment_args(clap::Command::new(""));
        for option in guest.get_arguments().filter(|a| !a.is_hide_set()) {
            let name = format!("--{}", option.get_long().unwrap());
            assert!(help.contains(&name), "{name} is missing: {help}");
        }
        assert!(
            !help.contains("--from") && !help.contains("--host"),
            "{help}"
        );
    }

    #[test]
    fn a_result_is_written_where_it_was_wanted() {
        let root = scratch("demo-out");
        let out = Out::new(&root, root.join("wanted.json")).unwrap();
        let vm = vm(1 << 30, Some(&out));
        assert_eq!(vm.share, std::slice::from_ref(&out.dir));
        assert!(out.dir.starts_with(&root));
        let last = command(&["--out=wanted.json".into()], "", Some(&out));
        let inside = last.last().unwrap().strip_prefix("--out=").unwrap();
        assert!(inside.ends_with(".json") && Path::new(inside).starts_with(&out.dir));
        fs::write(inside, "{}").unwrap();
        out.deliver().unwrap();
        assert_eq!(fs::read_to_string(root.join("wanted.json")).unwrap(), "{}");
        drop(out);
        assert_eq!(fs::read_dir(root.join("target/demo")).unwrap().count(), 0);
        fs::remove_dir_all(&root).unwrap();
    }
}
