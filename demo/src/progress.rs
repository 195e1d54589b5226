// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress lines, each with the seconds since the first one.

use std::sync::mpsc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Interval of progress lines within a long step.
const INTERVAL: Duration = Duration::from_secs(5);

static START: OnceLock<Instant> = OnceLock::new();

/// Prints one line.
pub fn say(text: impl AsRef<str>) {
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    println!("[{seconds:6.1} s] {}", text.as_ref());
}

/// Says something every few seconds only.
pub struct Pace(Instant);

impl Pace {
    /// Says nothing at first.
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// Calls `text` and says it if it is time.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if self.0.elapsed() >= INTERVAL {
            self.0 = Instant::now();
            say(text());
        }
    }
}

/// Runs `step`, which has no progress of its own to show, and says every few
/// seconds that it still runs.
pub fn during<T>(label: &str, step: impl FnOnce() -> T) -> T {
    say(label);
    let (done, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while waiting.recv_timeout(INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                say(format!("{label} ..."));
            }
        });
        // Ends the thread, also when `step` panics.
        let _done = done;
        step()
    })
}
