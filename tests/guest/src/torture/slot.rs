// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control groups of a parent and its children.

use crate::cgroup::Cgroup;
use crate::rng::Rng;
use std::io;

/// A parent's place. Another parent follows when it has ended; children may outlive their parent.
#[derive(Clone)]
pub struct Slot {
    /// All of them: the limits of memory and processes.
    pub group: Cgroup,
    /// The parent, and children that were left where they were born.
    pub main: Cgroup,
    /// Children that are frozen and throttled at times.
    pub kids: Cgroup,
}

impl Slot {
    /// Makes the groups.
    pub fn new(top: &Cgroup, number: usize) -> io::Result<Self> {
        let group = top.child(&format!("slot{number}"))?;
        group.delegate()?;
        Ok(Self {
            main: group.child("main")?,
            kids: group.child("kids")?,
            group,
        })
    }

    /// Limits that make some parents, but not all, run short of memory.
    pub fn limit(&self, rng: &mut Rng) -> io::Result<()> {
        let limit = match rng.below(3) {
            0 => format!("{}M", 24 + rng.below(100)),
            _ => "max".into(),
        };
        self.group.set("memory.max", limit)
    }

    /// Whether those who are here now may run short of memory.
    pub fn is_limited(&self) -> io::Result<bool> {
        Ok(self.group.get("memory.max")? != "max")
    }

    /// No limits, nobody frozen: what is here can end.
    pub fn relax(&self) -> io::Result<()> {
        self.group.set("memory.max", "max")?;
        self.group.set("pids.max", "max")?;
        self.kids.set("cpu.max", "max")?;
        self.kids.set("cgroup.freeze", 0)
    }
}
