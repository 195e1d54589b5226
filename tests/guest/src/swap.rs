// SPDX-License-Identifier: MIT OR Apache-2.0
//! A swap device: a zram disk.

use crate::mem::PAGE;
use crate::module::modprobe;
use crate::sys::{self, cvt};
use crate::verdict::{Context, TestResult, Verdict};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};

/// A zram disk used as swap until this is dropped.
pub struct Swap {
    disk: usize,
}

impl Swap {
    const MIB: usize = 128;

    /// Makes a disk and swaps to it.
    pub fn new() -> TestResult<Self> {
        modprobe("zram", &["num_devices=1"])?;
        let disk: usize = fs::read_to_string("/sys/class/zram-control/hot_add")?
            .trim()
            .parse()
            .map_err(|e| Verdict::Broken(format!("zram disk number: {e}")))?;
        let swap = Self { disk };
        fs::write(
            format!("/sys/block/zram{disk}/disksize"),
            format!("{}M", Self::MIB),
        )
        .at("disksize")?;
        swap.format()?;
        swap.on().at("swapon")?;
        Ok(swap)
    }

    fn device(&self) -> String {
        format!("/dev/zram{}", self.disk)
    }

    /// What mkswap writes: version, last page, signature at the end of the first page.
    fn format(&self) -> TestResult {
        let mut header = vec![0; PAGE];
        let last = (Self::MIB << 20) / PAGE - 1;
        header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&(last as u32).to_ne_bytes());
        header[4086..].copy_from_slice(b"SWAPSPACE2");
        let mut disk = OpenOptions::new()
            .write(true)
            .open(self.device())
            .at(self.device())?;
        disk.write_all(&header)?;
        disk.sync_all()?;
        Ok(())
    }

    /// swapon(2), after [`Swap::off`].
    pub fn on(&self) -> io::Result<()> {
        // SAFETY: a C string that lives across the call.
        cvt(unsafe { libc::swapon(sys::cstr(self.device().as_ref()).as_ptr(), 0) }).map(drop)
    }

    /// swapoff(2): everything comes back to memory.
    pub fn off(&self) -> io::Result<()> {
        // SAFETY: a C string that lives across the call.
        cvt(unsafe { libc::swapoff(sys::cstr(self.device().as_ref()).as_ptr()) }).map(drop)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // It may be off already.
        let _ = self.off();
        let _ = fs::write("/sys/class/zram-control/hot_remove", self.disk.to_string());
    }
}
