// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the report names the machine that the numbers come from.

use std::fs;
use std::io;

use asyncfork_host::machine::{Hypervisor, Machine};
use serde_json::{json, Value};

/// Names and values, in the order to print them.
pub fn describe() -> io::Result<Vec<(&'static str, String)>> {
    let machine = Machine::detect()?;
    let huge_pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    Ok(vec![
        (
            "CPU",
            format!(
                "{} ({} processors, {}-level page tables)",
                machine.cpu, machine.cpus, machine.table_levels
            ),
        ),
        ("hypervisor", hypervisor(machine.hypervisor)),
        ("kernel", format!("{} {}", machine.release, machine.version)),
        ("memory", format!("{} MiB", machine.memory_bytes >> 20)),
        (
            "transparent huge pages",
            huge_pages.map_or("none".into(), |text| text.trim().into()),
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

fn hypervisor(found: Option<Hypervisor>) -> String {
    match found {
        None => "none".into(),
        Some(Hypervisor::Tcg) => {
            "QEMU software emulation (TCG): absolute times are inflated, ratios count".into()
        }
        Some(Hypervisor::Kvm) => "KVM".into(),
        Some(Hypervisor::Other(name)) => name,
    }
}
