// SPDX-License-Identifier: MIT OR Apache-2.0
//! Saying on standard error what takes longer than two seconds.

use std::io::Write as _;
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(10);

/// Does `work`; while that takes longer than two seconds, says so.
pub fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    during_each(
        what,
        PATIENCE,
        AGAIN,
        |line| drop(writeln!(anstream::stderr(), "{line}")),
        work,
    )
}

fn during_each<T>(
    what: &str,
    patience: Duration,
    again: Duration,
    say: impl Fn(String) + Send,
    work: impl FnOnce() -> T,
) -> T {
    let (done, waiting) = channel::<()>();
    thread::scope(|scope| {
        // Without a thread to spare, it goes unsaid.
        let _ = thread::Builder::new().spawn_scoped(scope, move || {
            let start = Instant::now();
            let mut pause = patience;
            while waiting.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                say(format!(
                    "asyncfork: {what} ({} s so far)",
                    start.elapsed().as_secs()
                ));
                pause = again;
            }
        });
        let result = work();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn only_what_takes_long_is_said() {
        let said = Mutex::new(Vec::new());
        let say = |line| said.lock().unwrap().push(line);
        let long = Duration::from_secs(60);
        assert_eq!(during_each("quick", long, long, say, || 7), 7);
        assert!(said.lock().unwrap().is_empty());

        let start = Instant::now();
        let tick = Duration::from_millis(5);
        during_each("waiting", tick, long, say, || {
            while said.lock().unwrap().is_empty() && start.elapsed() < long {
                thread::sleep(tick);
            }
        });
        assert_eq!(*said.lock().unwrap(), ["asyncfork: waiting (0 s so far)"]);
    }
}
