// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ctrl-C, SIGTERM and SIGHUP end the run in order: the waiting loops look at
//! [`requested`], return an error, and their guards kill what they started.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

/// The signal that came, or 0.
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Catches the signals from now on. Errors: the handlers cannot be set.
pub fn catch() -> Result<()> {
    let came = SIGNAL.get_or_init(Default::default);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let number = signal as usize;
        signal_hook::flag::register_usize(number as i32, Arc::clone(came), number)
            .context("cannot catch signals")?;
    }
    Ok(())
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    signal().is_some()
}

/// The error that a waiting loop returns when [`requested`] says so.
pub fn error() -> anyhow::Error {
    anyhow::anyhow!(
        "interrupted by {}",
        signal().map_or("nobody", Signal::as_str)
    )
}

fn signal() -> Option<Signal> {
    let number = SIGNAL.get()?.load(Ordering::Relaxed);
    Signal::try_from(i32::try_from(number).ok()?).ok()
}
