// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which machine this is: what to name beside a measurement.

use std::io;

use raw_cpuid::{cpuid, CpuId};

use crate::kernel;
use crate::procfs::{meminfo, read};
use crate::sys;

/// The machine and its kernel.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Processor, as the kernel names it.
    pub cpu: String,
    /// Processors online.
    pub cpus: usize,
    /// Levels of its page tables, 4 or 5.
    pub table_levels: u32,
    /// `uname -r`.
    pub release: String,
    /// `uname -v`.
    pub version: String,
    /// What runs the virtual machine; none on bare metal.
    pub hypervisor: Option<Hypervisor>,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// What runs a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hypervisor {
    /// On the real processor.
    Kvm,
    /// QEMU's emulation in software.
    Tcg,
    /// Another one, by the name that it gives itself.
    Other(String),
}

impl Machine {
    /// Looks around.
    ///
    /// # Errors
    /// An unreadable `/proc`.
    pub fn detect() -> io::Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            cpu: model.map_or("unknown CPU", |(_, name)| name.trim()).into(),
            cpus: sys::cpus(),
            table_levels: if cpuinfo.contains(" la57") { 5 } else { 4 },
            release: kernel::release()?,
            version: read("/proc/sys/kernel/version")?.trim().into(),
            hypervisor: hypervisor(),
            memory_bytes: meminfo("MemTotal")?,
        })
    }
}

/// By the signature of CPUID leaf 0x40000000.
fn hypervisor() -> Option<Hypervisor> {
    let features = CpuId::new().get_feature_info()?;
    features.has_hypervisor().then(|| {
        let leaf = cpuid!(0x4000_0000);
        Hypervisor::of([leaf.ebx, leaf.ecx, leaf.edx])
    })
}

impl Hypervisor {
    /// From the three words of its signature.
    fn of(signature: [u32; 3]) -> Self {
        let bytes = signature.map(u32::to_le_bytes).concat();
        match bytes.as_slice() {
            b"TCGTCGTCGTCG" => Self::Tcg,
            b"KVMKVMKVM\0\0\0" => Self::Kvm,
            other => Self::Other(
                String::from_utf8_lossy(other)
                    .trim_end_matches('\0')
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypervisors_are_known_by_their_signatures() {
        let of = |text: &[u8; 12]| {
            let word = |i| u32::from_le_bytes(text[i..i + 4].try_into().unwrap());
            Hypervisor::of([word(0), word(4), word(8)])
        };
        assert_eq!(of(b"TCGTCGTCGTCG"), Hypervisor::Tcg);
        assert_eq!(of(b"KVMKVMKVM\0\0\0"), Hypervisor::Kvm);
        assert_eq!(
            of(b"Microsoft Hv"),
            Hypervisor::Other("Microsoft Hv".into())
        );
        assert_eq!(
            of(b"prl hyperv\0\0"),
            Hypervisor::Other("prl hyperv".into())
        );
    }

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::detect().unwrap();
        assert!(machine.cpus > 0 && machine.memory_bytes > 1 << 20);
        assert!(!machine.release.is_empty() && !machine.version.is_empty());
    }
}
