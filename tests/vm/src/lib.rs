// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VM bench: runs a command on a stock Debian kernel inside QEMU and
//! tells what the command and the kernel had to say.
//!
//! ```no_run
//! use asyncfork_vm::{bench::{Bench, Series}, vm::{Streams, VmOptions}};
//!
//! let bench = Bench::open(Series::V6_1)?;
//! let vm = VmOptions { memory: "2G".into(), ..VmOptions::default() };
//! let outcome = vm.run(&bench, &["uname".into(), "-r".into()], Streams::inherit())?;
//! std::process::exit(outcome.exit_code().into());
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod accel;
pub mod bench;
pub mod cargo_test;
pub mod dmesg;
pub mod gate;
pub mod interrupt;
pub mod verdict;
pub mod vm;
