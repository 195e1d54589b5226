// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VM runner: runs a command on a stock Debian kernel inside QEMU and
//! tells what the command and the kernel had to say.
//!
//! ```no_run
//! use asyncfork_vm::{checkout::Checkout, kernels, vm::{Streams, VmOptions}};
//!
//! let checkout = Checkout::open(kernels::first())?;
//! let vm = VmOptions { memory: "2G".into(), ..VmOptions::default() };
//! let report = vm.run(&checkout, &["uname".into(), "-r".into()], Streams::inherit())?;
//! std::process::exit(report.exit_code().into());
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod accel;
pub mod cargo_test;
pub mod checkout;
pub mod debug_kernel;
pub mod demo;
pub mod dmesg;
pub mod gate;
pub mod interrupt;
pub mod kernels;
pub mod kmod;
pub mod kmod_calls;
pub mod libcs;
pub mod measure;
pub mod passed;
pub mod prepare;
pub mod root;
pub mod suites;
pub mod tools;
pub mod torture;
pub mod verdict;
pub mod vm;
