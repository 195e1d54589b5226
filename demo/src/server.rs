// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Redis or Valkey process of our own.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use rustix::io::Errno;
use rustix::process::{kill_process_group, test_kill_process_group, Pid, Signal};

use crate::claim;
use crate::progress::Pace;
use crate::resp::{Client, Reply};

/// Wait between two looks at the server.
const POLL: Duration = Duration::from_millis(250);
/// Longest wait for a socket or an exit.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server on a unix socket, persisting only on request. Killed on drop.
pub struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts `binary` in `dir` with its dataset in `rdb`; sockets and logs
    /// are called `name`. `preload` goes to LD_PRELOAD.
    ///
    /// # Errors
    /// It cannot be started or does not open its socket.
    pub fn start(
        binary: &Path,
        dir: &Path,
        name: &str,
        rdb: &str,
        preload: Option<&Path>,
    ) -> Result<Self> {
        let socket = dir.join(format!("{name}.sock"));
        let log = dir.join(format!("{name}.log"));
        let mut command = Command::new(binary);
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .args(["--rdbcompression", "no", "--enable-debug-command", "yes"])
            .args(["--dbfilename", rdb, "--daemonize", "no"])
            .arg("--dir")
            .arg(dir)
            .arg("--unixsocket")
            .arg(&socket)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?);
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut server = Self { child, socket, log };
        server.wait_socket()?;
        Ok(server)
    }

    fn wait_socket(&mut self) -> Result<()> {
        let start = Instant::now();
        while Client::connect(&self.socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended at once ({status}):\n{}", self.log_tail());
            }
            ensure!(
                start.elapsed() < TIMEOUT,
                "the server is not up:\n{}",
                self.log_tail()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A new connection.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.socket).context("connecting to the server")
    }

    /// Last lines of its log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Waits until the server has loaded its dataset.
    ///
    /// # Errors
    /// It ends, or does not answer.
    pub fn wait_loaded(&mut self, label: &str) -> Result<()> {
        let mut client = self.client()?;
        let mut pace = Pace::new();
        loop {
            let info = match Info::get(&mut client, "persistence") {
                Ok(info) => info,
                Err(e) => return Err(e.context(self.log_tail())),
            };
            if info.text("loading")? == "0" {
                return Ok(());
            }
            let percent = info.text("loading_loaded_perc").unwrap_or_default();
            pace.say(|| format!("{label}: loading, {percent} %"));
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the end of the BGSAVE that runs; INFO persistence after it.
    ///
    /// # Errors
    /// It failed, or the server does not answer.
    pub fn wait_bgsave(&self, label: &str) -> Result<Info> {
        let mut client = self.client()?;
        let mut pace = Pace::new();
        loop {
            let info = Info::get(&mut client, "persistence")?;
            if info.text("rdb_bgsave_in_progress")? == "0" {
                claim!(
                    info.text("rdb_last_bgsave_status")? == "ok",
                    "BGSAVE failed:\n{}",
                    self.log_tail()
                );
                return Ok(info);
            }
            pace.say(|| {
                let [done, total] = ["current_save_keys_processed", "current_save_keys_total"]
                    .map(|name| info.number(name).unwrap_or(0));
                format!("{label}: saving, {} %", 100 * done / total.max(1))
            });
            std::thread::sleep(POLL);
        }
    }

    /// SHUTDOWN NOSAVE, and waits for the process.
    ///
    /// # Errors
    /// It does not end, or not with status 0.
    pub fn stop(mut self) -> Result<()> {
        // It closes the connection instead of answering.
        if let Ok(reply) = self.client()?.run("SHUTDOWN NOSAVE") {
            bail!("the server answers SHUTDOWN with {reply:?}");
        }
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                claim!(
                    status.success(),
                    "the server ended with {status}:\n{}",
                    self.log_tail()
                );
                let rest = test_kill_process_group(Pid::from_child(&self.child));
                claim!(
                    rest == Err(Errno::SRCH),
                    "the server ended but left a child behind"
                );
                return Ok(());
            }
            ensure!(
                start.elapsed() < TIMEOUT,
                "the server does not end on SHUTDOWN"
            );
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // With it goes a child that still saves.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Fields of an INFO section.
pub struct Info(HashMap<String, String>);

impl Info {
    /// The server's name and version, of a `server` section. Valkey's
    /// `redis_version` is the one it is compatible with.
    ///
    /// # Errors
    /// It is no such section.
    pub fn server(&self) -> Result<String> {
        if let Ok(version) = self.text("valkey_version") {
            return Ok(format!("Valkey {version}"));
        }
        Ok(format!("Redis {}", self.text("redis_version")?))
    }

    /// Asks for a section.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn get(client: &mut Client, section: &str) -> Result<Self> {
        let text = client.run(&format!("INFO {section}"))?.text()?;
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Ok(Self(fields.map(|(k, v)| (k.into(), v.into())).collect()))
    }

    /// A field as text.
    ///
    /// # Errors
    /// There is none.
    pub fn text(&self, field: &str) -> Result<&str> {
        self.0
            .get(field)
            .map(String::as_str)
            .with_context(|| format!("INFO has no {field}"))
    }

    /// A field as a number.
    ///
    /// # Errors
    /// There is none, or it is no number.
    pub fn number(&self, field: &str) -> Result<u64> {
        self.text(field)?
            .parse()
            .with_context(|| format!("INFO's {field} is not a number"))
    }
}

/// DEBUG DIGEST: 40 hexadecimal digits over all keys and values.
///
/// # Errors
/// The server refuses, or the digest is that of an empty dataset.
pub fn digest(reply: Reply) -> Result<String> {
    let digest = reply.text()?;
    ensure!(
        digest.len() == 40 && digest.bytes().any(|b| b != b'0'),
        "DEBUG DIGEST gave {digest:?}, which is not the digest of a dataset"
    );
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valkey_is_not_taken_for_the_redis_it_stands_in_for() {
        let info = |fields: &[(&str, &str)]| {
            Info(fields.iter().map(|&(k, v)| (k.into(), v.into())).collect())
        };
        let redis = ("redis_version", "7.2.4");
        assert_eq!(info(&[redis]).server().unwrap(), "Redis 7.2.4");
        let valkey = info(&[redis, ("valkey_version", "8.1.1")]);
        assert_eq!(valkey.server().unwrap(), "Valkey 8.1.1");
        assert!(info(&[]).server().is_err());
    }
}
