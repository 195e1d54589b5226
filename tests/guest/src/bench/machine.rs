// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which machine the numbers come from.

use crate::procfs;
use crate::sys;
use serde_json::{json, Value};
use std::arch::x86_64::__cpuid;
use std::fs;

/// Names and values, in the order to print them.
pub fn describe() -> std::io::Result<Vec<(&'static str, String)>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(name)).unwrap_or("");
        line.split_once(':')
            .map_or("unknown", |(_, v)| v.trim())
            .to_string()
    };
    let levels = if cpuinfo.contains(" la57") { 5 } else { 4 };
    let read = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_string());
    Ok(vec![
        (
            "CPU",
            format!(
                "{} ({} processors, {levels}-level page tables)",
                field("model name"),
                sys::cpus()
            ),
        ),
        ("hypervisor", hypervisor()),
        (
            "kernel",
            format!(
                "{} {}",
                read("/proc/sys/kernel/osrelease")?,
                read("/proc/sys/kernel/version")?
            ),
        ),
        (
            "memory",
            format!("{} MiB", procfs::meminfo("MemTotal")? >> 10),
        ),
        (
            "transparent huge pages",
            read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or("none".into()),
        ),
    ])
}

/// The same for the raw data.
pub fn to_json(machine: &[(&'static str, String)]) -> Value {
    let mut map: serde_json::Map<String, Value> = machine
        .iter()
        .map(|(k, v)| ((*k).into(), json!(v)))
        .collect();
    map.insert("kind".into(), json!("machine"));
    Value::Object(map)
}

/// What runs below: the signature of CPUID leaf 0x40000000.
fn hypervisor() -> String {
    const HYPERVISOR_BIT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_BIT == 0 {
        return "none".into();
    }
    let leaf = __cpuid(0x4000_0000);
    let bytes: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    match bytes.as_slice() {
        b"TCGTCGTCGTCG" => {
            "QEMU software emulation (TCG): absolute times are inflated, ratios count".into()
        }
        b"KVMKVMKVM\0\0\0" => "KVM".into(),
        other => String::from_utf8_lossy(other)
            .trim_end_matches('\0')
            .to_string(),
    }
}
