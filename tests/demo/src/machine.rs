// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the numbers were measured on.

use std::fs;

use anyhow::{Context, Result};
use raw_cpuid::{CpuId, Hypervisor};
use serde::Serialize;

/// The machine and its kernel.
#[derive(Debug, Serialize)]
pub struct Machine {
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

impl Machine {
    /// Looks around.
    ///
    /// # Errors
    /// An unreadable `/proc`.
    pub fn detect(host: Option<String>) -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            cpu: model.map_or("unknown CPU", |(_, name)| name).into(),
            cpus: std::thread::available_parallelism()?.get(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().into(),
            execution: execution(),
            memory_bytes: meminfo("MemTotal")?,
            host,
        })
    }

    /// Processors and kernel in a few words.
    pub fn brief(&self) -> String {
        format!("{}x {}, Linux {}", self.cpus, self.cpu, self.kernel)
    }
}

fn execution() -> &'static str {
    match CpuId::new()
        .get_hypervisor_info()
        .map(|info| info.identify())
    {
        None => "bare metal",
        Some(Hypervisor::KVM) => "KVM",
        Some(Hypervisor::QEMU) => "QEMU software emulation (times are inflated, ratios count)",
        Some(_) => "a virtual machine",
    }
}

/// A line of `/proc/meminfo`, in bytes.
///
/// # Errors
/// It is not there.
pub fn meminfo(name: &str) -> Result<u64> {
    kib_line(&read("/proc/meminfo")?, name)
}

/// `name:   N kB` of a `/proc` file, in bytes.
///
/// # Errors
/// It is not there.
pub fn kib_line(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    Ok(value.with_context(|| format!("no line {name}"))? << 10)
}

/// Reads a file, naming it in the error.
///
/// # Errors
/// Those of reading.
pub fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_proc_files_are_bytes() {
        let text = "Rss:   12 kB\nAnonHugePages:    2048 kB\nRssFoo: 3 kB\nThreads:\t1\n";
        assert_eq!(kib_line(text, "AnonHugePages").unwrap(), 2 << 20);
        assert_eq!(kib_line(text, "Rss").unwrap(), 12 << 10);
        assert!(kib_line(text, "Threads").is_err());
    }
}
