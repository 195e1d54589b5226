// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM or software emulation?
//!
//! `/dev/kvm` proves little: on some cloud machines it exists and a stock
//! kernel hangs before its first line. So KVM is used only after a guest has
//! booted with it; the answer is kept until the host boots or the guest's
//! kernel changes.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::checkout::Checkout;
use crate::vm::{End, Limits, Streams, VmOptions};

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AccelChoice {
    /// KVM if a probe boot succeeds, otherwise emulation
    Auto,
    /// KVM, unprobed
    Kvm,
    /// Software emulation (QEMU's TCG)
    Tcg,
}

/// What a VM runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "software emulation",
        })
    }
}

/// An accelerator and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub accel: Accel,
    pub why: String,
}

/// A KVM guest that has not said a word after this time never will.
const FIRST_LINE: Duration = Duration::from_secs(20);
/// Time for a KVM guest to boot.
const BOOT: Duration = Duration::from_secs(90);

/// Settles `choice`, with a probe boot if there is no fresh answer.
/// Errors: the probe could not be made at all, or was interrupted.
pub fn choose(checkout: &Checkout, choice: AccelChoice) -> Result<Chosen> {
    let asked_for = |accel| Chosen {
        accel,
        why: "asked for".into(),
    };
    match choice {
        AccelChoice::Kvm => return Ok(asked_for(Accel::Kvm)),
        AccelChoice::Tcg => return Ok(asked_for(Accel::Tcg)),
        AccelChoice::Auto => {}
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok(Chosen {
            accel: Accel::Tcg,
            why: format!("/dev/kvm: {error}"),
        });
    }

    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("cannot tell this boot from another")?;
    let key = format!("{} {}", checkout.release, boot_id.trim());
    let cache = checkout
        .state_dir()
        .join(format!("kvm-probe-{}", checkout.kernel));
    if let Some(known) = recall(&cache, &key) {
        return Ok(known);
    }
    eprintln!(
        "vm: /dev/kvm exists; probing it with a boot (at most {} s)",
        BOOT.as_secs()
    );
    let begin = Instant::now();
    let chosen = probe(checkout)?;
    // A quick "no" is cheap to ask for again, and may not be KVM's fault.
    if chosen.accel == Accel::Kvm || begin.elapsed() >= FIRST_LINE {
        fs::write(&cache, remember(&key, &chosen))
            .with_context(|| format!("cannot write {}", cache.display()))?;
    }
    Ok(chosen)
}

fn probe(checkout: &Checkout) -> Result<Chosen> {
    let vm = VmOptions {
        memory: "1G".into(),
        accel: AccelChoice::Kvm,
        timeout: 10,
        ..VmOptions::default()
    };
    let limits = Limits {
        first_line: FIRST_LINE,
        boot: BOOT,
    };
    let how = Chosen {
        accel: Accel::Kvm,
        why: "probe".into(),
    };
    let report = vm.boot(
        checkout,
        &how,
        &limits,
        &["true".into()],
        &mut Streams::sink(),
    )?;
    Ok(match report.end {
        End::Exited(0) => Chosen {
            accel: Accel::Kvm,
            why: "a probe guest booted with it".into(),
        },
        End::Broken(why) => Chosen {
            accel: Accel::Tcg,
            why: format!("KVM does not work here: {why}"),
        },
        end => Chosen {
            accel: Accel::Tcg,
            why: format!("KVM does not work here: `true` in a probe guest: {end}"),
        },
    })
}

/// The cached answer: key, accelerator and reason, a line each.
fn remember(key: &str, chosen: &Chosen) -> String {
    let accel = match chosen.accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg",
    };
    format!("{key}\n{accel}\n{}\n", chosen.why)
}

fn recall(cache: &Path, key: &str) -> Option<Chosen> {
    let text = fs::read_to_string(cache).ok()?;
    let mut lines = text.lines();
    if lines.next()? != key {
        return None;
    }
    let accel = match lines.next()? {
        "kvm" => Accel::Kvm,
        "tcg" => Accel::Tcg,
        _ => return None,
    };
    Some(Chosen {
        accel,
        why: lines.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_answer_counts_for_its_kernel_and_boot_only() {
        let dir = std::env::temp_dir().join(format!("asyncfork-accel-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let cache = dir.join("kvm-probe");
        let chosen = Chosen {
            accel: Accel::Tcg,
            why: "KVM does not work here: silence".into(),
        };
        assert_eq!(recall(&cache, "6.1 a"), None);
        fs::write(&cache, remember("6.1 a", &chosen)).unwrap();
        assert_eq!(recall(&cache, "6.1 a"), Some(chosen));
        assert_eq!(recall(&cache, "6.1 b"), None);
        fs::write(&cache, "6.1 a\nxen\nwhy\n").unwrap();
        assert_eq!(recall(&cache, "6.1 a"), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
