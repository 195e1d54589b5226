// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeping a forked child from running, so that it has not copied anything when the
//! parent acts.
//!
//! The parent runs SCHED_FIFO on one processor and forks; the child is a normal task
//! confined to that processor by inheritance. It cannot run while anything real-time
//! runs there. It takes root.

use std::io;

use crate::sys;

/// The processor of parent and child.
pub const CPU: usize = 0;
/// The parent's real-time priority.
pub const PRIORITY: i32 = 20;

/// While this lives, and the calling thread does not sleep, children it forks do not
/// run.
pub struct Hold(());

impl Hold {
    /// Confines the calling thread to [`CPU`], real-time.
    ///
    /// # Errors
    /// The caller is not root.
    pub fn new() -> io::Result<Self> {
        sys::set_affinity(&[CPU])?;
        sys::set_fifo(PRIORITY)?;
        Ok(Self(()))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        run_anywhere().expect("back to normal scheduling");
    }
}

/// Makes the calling thread an ordinary one that may run anywhere.
///
/// # Errors
/// None in practice.
pub fn run_anywhere() -> io::Result<()> {
    sys::set_normal()?;
    sys::set_affinity(&all_cpus())
}

/// Every processor.
pub fn all_cpus() -> Vec<usize> {
    (0..sys::cpus()).collect()
}
