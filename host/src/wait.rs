// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for what comes about by itself.

use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `done` every millisecond until it gives a value or a minute is over.
///
/// # Errors
/// Those of `done`, at once.
pub fn poll_until<T, E>(mut done: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    let start = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(Some(value));
        }
        if start.elapsed() >= PATIENCE {
            return Ok(None);
        }
        sleep(Duration::from_millis(1));
    }
}
