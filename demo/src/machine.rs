// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the numbers were measured on.

use std::io;

use asyncfork_host::machine::{Hypervisor, Machine};
use serde::Serialize;

/// The machine and its kernel, as the result has them.
#[derive(Debug, Serialize)]
pub struct MeasuredOn {
    /// Processor, as the kernel names it.
    pub cpu: String,
    /// Processors online.
    pub cpus: usize,
    /// `uname -r`.
    pub kernel: String,
    /// Bare metal, or who runs the virtual machine and how.
    pub execution: &'static str,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// What a virtual machine runs on, if known.
    pub host: Option<String>,
}

impl MeasuredOn {
    /// Looks around.
    ///
    /// # Errors
    /// An unreadable `/proc`.
    pub fn this(host: Option<String>) -> io::Result<Self> {
        let machine = Machine::detect()?;
        Ok(Self {
            execution: execution(machine.hypervisor.as_ref()),
            cpu: machine.cpu,
            cpus: machine.cpus,
            kernel: machine.release,
            memory_bytes: machine.memory_bytes,
            host,
        })
    }

    /// Processors and kernel in a few words.
    pub fn brief(&self) -> String {
        format!("{}x {}, Linux {}", self.cpus, self.cpu, self.kernel)
    }
}

fn execution(hypervisor: Option<&Hypervisor>) -> &'static str {
    match hypervisor {
        None => "bare metal",
        Some(Hypervisor::Kvm) => "KVM",
        Some(Hypervisor::Tcg) => "QEMU software emulation (times are inflated, ratios count)",
        Some(Hypervisor::Other(_)) => "a virtual machine",
    }
}
