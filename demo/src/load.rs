// SPDX-License-Identifier: MIT OR Apache-2.0
//! The dataset, and a steady SET/GET load on it.
//!
//! The load is open-loop: requests fall due at fixed intervals whether or not
//! earlier ones are answered, and the latency of a request counts from the
//! time it was due. A stalled server is thus seen by every request that the
//! stall holds up (no coordinated omission).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use serde::Serialize;

use crate::resp::{self, Client, Reply};

/// Requests that one connection may have under way. At usual rates that is
/// several seconds of stall; what falls due beyond it is counted, not sent.
const MAX_INFLIGHT: usize = 1024;
/// Longest sleep of the load thread, so that it sees a change of mode.
const NAP: Duration = Duration::from_millis(20);
/// Longest wait for the replies that a window still lacks.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A small pseudo-random generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Keys and values: `keys` strings of `value_size` incompressible bytes.
#[derive(Clone)]
pub struct Dataset {
    /// Number of keys.
    pub keys: u64,
    /// Bytes per value.
    pub value_size: usize,
    pool: Arc<Vec<u8>>,
}

impl Dataset {
    /// Dataset with at least `bytes` bytes of values.
    pub fn new(bytes: u64, value_size: usize) -> Self {
        let mut random = Random(1);
        let pool = (0..(value_size + (1 << 20)) / 8).flat_map(|_| random.next().to_ne_bytes());
        Self {
            keys: bytes.div_ceil(value_size as u64).max(1),
            value_size,
            pool: Arc::new(pool.collect()),
        }
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.keys * self.value_size as u64
    }

    /// Appends a SET whose value no other `stamp` has.
    fn encode_set(&self, out: &mut Vec<u8>, key: u64, stamp: u64) {
        let start = Random(stamp).below((self.pool.len() - self.value_size) as u64) as usize;
        let mut value = self.pool[start..start + self.value_size].to_vec();
        value[..8].copy_from_slice(&stamp.to_ne_bytes());
        resp::encode(out, &[b"SET", key_name(key).as_bytes(), &value]);
    }

    /// Writes every key once. `progress` is told the keys written so far.
    ///
    /// A script does it inside the server: under emulation a socket takes
    /// minutes for a GiB.
    ///
    /// # Errors
    /// A lost connection, or a server that refuses.
    pub fn fill(&self, client: &mut Client, mut progress: impl FnMut(u64)) -> Result<()> {
        const BATCH: u64 = 2048;
        const SCRIPT: &str = "
            local pool, size = redis.call('GET', KEYS[1]), tonumber(ARGV[3])
            for key = ARGV[1], ARGV[2] - 1 do
                local from = key * 7919 % (#pool - size)
                local value = string.format('%016d', key) .. pool:sub(from + 17, from + size)
                redis.call('SET', string.format('key:%012d', key), value)
            end
            return redis.status_reply('OK')";
        let mut run = |args: &[&[u8]]| {
            let mut bytes = Vec::new();
            resp::encode(&mut bytes, args);
            client
                .exchange(&bytes, 1)?
                .remove(0)
                .text()
                .context("filling failed")
        };
        run(&[b"SET", b"pool", &self.pool])?;
        let size = self.value_size.to_string();
        for start in (0..self.keys).step_by(BATCH as usize) {
            let end = (start + BATCH).min(self.keys);
            let range = [start.to_string(), end.to_string()];
            let args = ["EVAL", SCRIPT, "1", "pool", &range[0], &range[1], &size];
            run(&args.map(str::as_bytes))?;
            progress(end);
        }
        client.run("DEL pool")?;
        Ok(())
    }
}

fn key_name(key: u64) -> String {
    format!("key:{key:012}")
}

/// Latencies of the requests of one time window, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Requests that were due or unanswered within the window.
    pub requests: usize,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// Longest.
    pub max_us: u64,
}

impl Latency {
    /// Exact percentiles (nearest rank), not from histogram buckets.
    fn of(mut micros: Vec<u64>) -> Option<Self> {
        micros.sort_unstable();
        let at = |per_mille: usize| micros[(micros.len() * per_mille).div_ceil(1000) - 1];
        Some(Self {
            max_us: *micros.last()?,
            requests: micros.len(),
            p50_us: at(500),
            p99_us: at(990),
            p999_us: at(999),
        })
    }
}

#[derive(Clone, Copy)]
struct Sample {
    due: Instant,
    done: Instant,
}

/// What the load thread has seen so far.
#[derive(Default)]
struct Log {
    samples: Vec<Sample>,
    skipped: Vec<Instant>,
    /// Everything that was due before is answered.
    answered_until: Option<Instant>,
    failure: Option<String>,
}

impl Log {
    /// Latencies of the requests under way at any time in `from..=to`.
    fn window(&self, from: Instant, to: Instant) -> Result<Latency> {
        let skipped = self
            .skipped
            .iter()
            .filter(|due| (from..=to).contains(due))
            .count();
        if skipped > 0 {
            bail!(
                "{skipped} requests could not be sent in time, the server does not sustain the \
                 load: lower --rate or raise --clients"
            );
        }
        let hit = self
            .samples
            .iter()
            .filter(|s| s.due <= to && s.done >= from);
        let micros = hit.map(|s| (s.done - s.due).as_micros() as u64).collect();
        Latency::of(micros).ok_or_else(|| anyhow!("no request fell into the window: raise --rate"))
    }
}

const RUN: u8 = 0;
const HOLD: u8 = 1;
const STOP: u8 = 2;

struct Shared {
    mode: AtomicU8,
    log: Mutex<Log>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running load: every second request a SET, every second a GET, keys drawn
/// evenly from the whole dataset.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Connects `clients` connections and starts sending `rate` requests a
    /// second over all of them.
    ///
    /// # Errors
    /// A connection that fails.
    pub fn start(socket: &Path, data: &Dataset, rate: u32, clients: usize) -> Result<Self> {
        let connections: Vec<Connection> = (0..clients)
            .map(|_| Connection::open(socket))
            .collect::<Result<_>>()?;
        let shared = Arc::new(Shared {
            mode: AtomicU8::new(RUN),
            log: Mutex::default(),
        });
        let mut generator = Generator {
            interval: Duration::from_secs(1) / rate,
            data: data.clone(),
            connections,
            sent: 0,
            random: Random(2),
        };
        let thread = std::thread::Builder::new().name("load".into()).spawn({
            let shared = shared.clone();
            move || {
                if let Err(e) = generator.run(&shared) {
                    shared.log().failure = Some(format!("{e:#}"));
                }
            }
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Stops sending; what is under way is still answered.
    pub fn hold(&self) {
        self.shared.mode.store(HOLD, Ordering::Relaxed);
    }

    /// Sends again.
    pub fn resume(&self) {
        self.shared.mode.store(RUN, Ordering::Relaxed);
    }

    /// Latencies of the requests under way at any time in `from..=to`, once all
    /// of them are answered.
    ///
    /// # Errors
    /// A failed load thread, replies that do not come, requests that could not
    /// be sent, or no request at all.
    pub fn window(&self, from: Instant, to: Instant) -> Result<Latency> {
        self.settle(to)?;
        self.shared.log().window(from, to)
    }

    /// Waits until every request that was due up to `to` is answered.
    ///
    /// # Errors
    /// A failed load thread, or replies that do not come.
    pub fn settle(&self, to: Instant) -> Result<()> {
        let start = Instant::now();
        loop {
            let log = self.shared.log();
            if let Some(failure) = &log.failure {
                bail!("the load generator failed: {failure}");
            }
            if log.answered_until > Some(to) {
                return Ok(());
            }
            drop(log);
            if start.elapsed() > REPLY_TIMEOUT {
                bail!("the server left requests unanswered for {REPLY_TIMEOUT:?}");
            }
            std::thread::sleep(NAP);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.mode.store(STOP, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed and left its windows unanswered.
            let _ = thread.join();
        }
    }
}

struct Generator {
    interval: Duration,
    data: Dataset,
    connections: Vec<Connection>,
    sent: u64,
    random: Random,
}

impl Generator {
    fn run(&mut self, shared: &Shared) -> Result<()> {
        let mut next_due = Instant::now();
        let mut samples = Vec::new();
        let mut skipped = Vec::new();
        loop {
            let mode = shared.mode.load(Ordering::Relaxed);
            let now = Instant::now();
            match mode {
                STOP => return Ok(()),
                HOLD => next_due = now,
                _ => {
                    while next_due <= now {
                        if !self.request(next_due) {
                            skipped.push(next_due);
                        }
                        next_due += self.interval;
                    }
                }
            }
            for connection in &mut self.connections {
                connection.send()?;
            }
            self.wait(if mode == HOLD { NAP } else { next_due - now })?;
            for connection in &mut self.connections {
                connection.receive(&mut samples)?;
            }
            let pending = self
                .connections
                .iter()
                .filter_map(|c| c.inflight.front().copied());
            let mut log = shared.log();
            log.samples.append(&mut samples);
            log.skipped.append(&mut skipped);
            log.answered_until = Some(pending.min().unwrap_or(next_due).min(next_due));
        }
    }

    /// Queues the request due at `due`; false if its connection is full.
    fn request(&mut self, due: Instant) -> bool {
        self.sent += 1;
        let count = self.connections.len() as u64;
        let connection = &mut self.connections[(self.sent % count) as usize];
        if connection.inflight.len() >= MAX_INFLIGHT {
            return false;
        }
        let key = self.random.below(self.data.keys);
        // By connection rounds, so that every connection sends both kinds.
        if (self.sent / count).is_multiple_of(2) {
            self.data
                .encode_set(&mut connection.out, key, self.data.keys + self.sent);
        } else {
            resp::encode(&mut connection.out, &[b"GET", key_name(key).as_bytes()]);
        }
        connection.inflight.push_back(due);
        true
    }

    /// Sleeps until a reply, room for a request, or `timeout`.
    fn wait(&self, timeout: Duration) -> Result<()> {
        let timeout = Timespec::try_from(timeout.min(NAP))?;
        let mut fds: Vec<PollFd> = self.connections.iter().map(Connection::poll_fd).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e).context("poll"),
        }
    }
}

struct Connection {
    stream: UnixStream,
    out: Vec<u8>,
    input: Vec<u8>,
    /// When the unanswered requests were due, oldest first.
    inflight: VecDeque<Instant>,
}

impl Connection {
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connecting to the server")?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            out: Vec::new(),
            input: Vec::new(),
            inflight: VecDeque::new(),
        })
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let mut events = PollFlags::IN;
        if !self.out.is_empty() {
            events |= PollFlags::OUT;
        }
        PollFd::new(&self.stream, events)
    }

    /// Writes as much as the socket takes.
    fn send(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < self.out.len() {
            match self.stream.write(&self.out[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("sending a request"),
            }
        }
        self.out.drain(..sent);
        Ok(())
    }

    /// Takes the replies that are there.
    fn receive(&mut self, samples: &mut Vec<Sample>) -> Result<()> {
        let mut chunk = [0; 64 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("reading a reply"),
            }
        }
        let done = Instant::now();
        let mut at = 0;
        while let Some((reply, len)) = resp::decode(&self.input[at..])? {
            at += len;
            // No key expires or is deleted: nothing but OK or a value is right.
            if !matches!(&reply, Reply::Bulk(Some(_))) && reply != Reply::Simple("OK".into()) {
                bail!("the server answered a request with {reply:?}");
            }
            let due = self
                .inflight
                .pop_front()
                .context("a reply without a request")?;
            samples.push(Sample { due, done });
        }
        self.input.drain(..at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let all = Latency::of((1..=1000).rev().collect()).unwrap();
        let want = Latency {
            requests: 1000,
            p50_us: 500,
            p99_us: 990,
            p999_us: 999,
            max_us: 1000,
        };
        assert_eq!(all, want);
        let one = Latency::of(vec![7]).unwrap();
        assert_eq!(
            one,
            Latency {
                requests: 1,
                p50_us: 7,
                p99_us: 7,
                p999_us: 7,
                max_us: 7
            }
        );
        assert_eq!(Latency::of(vec![]), None);
    }

    #[test]
    fn a_window_has_the_requests_under_way_in_it() {
        let t = Instant::now();
        let at = |ms| t + Duration::from_millis(ms);
        let sample = |due, done| Sample {
            due: at(due),
            done: at(done),
        };
        let log = Log {
            // Before, reaching in, inside, reaching out, after.
            samples: vec![
                sample(0, 9),
                sample(5, 12),
                sample(11, 15),
                sample(19, 49),
                sample(21, 22),
            ],
            ..Log::default()
        };
        let window = log.window(at(10), at(20)).unwrap();
        assert_eq!(
            (window.requests, window.p50_us, window.max_us),
            (3, 7000, 30_000)
        );
    }

    #[test]
    fn a_window_with_unsent_requests_is_an_error() {
        let t = Instant::now();
        let log = Log {
            samples: vec![Sample { due: t, done: t }],
            skipped: vec![t],
            ..Log::default()
        };
        assert!(log.window(t, t).unwrap_err().to_string().contains("--rate"));
        let later = t + Duration::from_secs(1);
        assert!(log
            .window(later, later)
            .unwrap_err()
            .to_string()
            .contains("no request"));
    }

    #[test]
    fn values_are_unique_and_of_the_size_asked_for() {
        let data = Dataset::new(1 << 20, 1000);
        assert_eq!(data.keys, 1049);
        assert!(data.bytes() >= 1 << 20);
        let value = |stamp| {
            let mut out = Vec::new();
            data.encode_set(&mut out, 3, stamp);
            out
        };
        assert_eq!(value(5).len(), value(6).len());
        assert_ne!(value(5), value(6));
        assert_eq!(value(5), value(5));
        assert!(String::from_utf8_lossy(&value(5)).contains("$1000\r\n"));
    }
}
