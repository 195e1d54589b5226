// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process, by what /proc says without walking its memory: never smaps, numa_maps,
//! pagemap or mem, which would make the parent pull every parked chunk.

use std::path::PathBuf;

use anyhow::Result;
use procfs::process::Status;
use procfs::FromRead as _;

use crate::exit;
use crate::host::Host;
use crate::library;

/// Bytes that one page table of the lowest level takes.
pub const TABLE: u64 = 4096;

/// Files below `/proc/PID` that are read.
pub const READ: &[&str] = &[
    "status", "exe", "environ", "maps", "cgroup", "fd", "fdinfo", "root",
];

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// `/proc/PID/status`.
    pub status: Status,
    /// Its executable; none if that may not be read.
    pub exe: Option<PathBuf>,
    /// Its environment at its start; none if that may not be read, or is not there any more:
    /// see [`Process::overwritten`].
    pub environment: Option<Vec<(String, String)>>,
    /// It has put something else where its environment was, as Redis does for its title.
    pub overwritten: bool,
    /// Its mappings, which a fork copies one by one; 0 if they may not be read.
    pub mappings: usize,
    /// It has the mark that the library makes for `ASYNCFORK=off` and `require`.
    pub marked: bool,
    /// Whether the library is mapped; none if that may not be read.
    pub library: Option<Mapped>,
    /// Its cgroup in the default hierarchy.
    pub cgroup: Option<String>,
    /// Its descriptors, by number, and what they are, by the links in /proc; none if they
    /// may not be read.
    pub descriptors: Vec<(String, String)>,
}

/// Whether a process has the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapped {
    /// Yes, from this path.
    Yes(PathBuf),
    /// Yes, but that file has been replaced or removed since.
    Deleted(PathBuf),
    /// No.
    No,
}

impl Process {
    /// Looks at a process.
    ///
    /// # Errors
    /// There is none of this number, or it has no memory to copy.
    pub fn read(host: &Host, pid: i32) -> Result<Self> {
        let gone = || {
            exit::input(format!(
                "there is no process {pid}; give the pid of a running server, such as $(pidof redis-server)"
            ))
        };
        let file = host
            .open(format!("/proc/{pid}/status"))
            .map_err(|_| gone())?;
        let status = Status::from_read(file)
            .map_err(|e| exit::cannot_tell(format!("/proc/{pid}/status: {e}")))?;
        if status.vmsize.is_none() {
            return Err(exit::input(format!(
                "process {pid} ({}) is a kernel thread, or has ended: it has no memory",
                status.name
            )));
        }
        if status.tgid != pid {
            return Err(exit::input(format!(
                "{pid} is a thread of process {}; give that",
                status.tgid
            )));
        }
        let environ = host.read(format!("/proc/{pid}/environ")).ok();
        let environment = environ.as_deref().map(environment);
        let overwritten = environ.as_deref().is_some_and(|text| !text.is_empty())
            && environment.as_ref().is_some_and(Vec::is_empty);
        let maps = host.read(format!("/proc/{pid}/maps")).ok();
        let mark = format!("/memfd:{}", asyncfork_uapi::MARK.to_string_lossy());
        let marked = maps.as_deref().is_some_and(|text| text.contains(&mark));
        Ok(Self {
            pid,
            status,
            exe: host.read_link(format!("/proc/{pid}/exe")).ok(),
            environment: environment.filter(|_| !overwritten),
            overwritten,
            mappings: maps.as_ref().map_or(0, |text| text.lines().count()),
            marked,
            library: maps.map(|text| mapped(&text)),
            cgroup: crate::cgroup::of_pid(host, &pid.to_string()),
            descriptors: descriptors(host, pid),
        })
    }

    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let variables = self.environment.as_ref()?;
        let found = variables.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }

    /// Its page tables in bytes: all levels, of which the lowest is nearly all.
    pub fn page_table_bytes(&self) -> u64 {
        self.status.vmpte.unwrap_or(0) << 10
    }

    /// How many page tables a fork copies, at most.
    pub fn tables(&self) -> u64 {
        self.page_table_bytes() / TABLE
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status.vmrss.unwrap_or(0) << 10
    }

    /// How many processors it may run on.
    pub fn cpus(&self) -> Option<u32> {
        let ranges = self.status.cpus_allowed_list.as_ref()?;
        Some(ranges.iter().map(|(first, last)| last - first + 1).sum())
    }
}

fn environment(text: &str) -> Vec<(String, String)> {
    text.split('\0')
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn mapped(maps: &str) -> Mapped {
    for line in maps.lines() {
        let Some(start) = line.find('/') else {
            continue;
        };
        let path = &line[start..];
        let (path, deleted) = match path.strip_suffix(" (deleted)") {
            Some(path) => (path, true),
            None => (path, false),
        };
        if library::is_ours(path) {
            return if deleted {
                Mapped::Deleted(path.into())
            } else {
                Mapped::Yes(path.into())
            };
        }
    }
    Mapped::No
}

/// At most so many are looked at: a server may have a hundred thousand sockets.
const DESCRIPTORS: usize = 4096;

fn descriptors(host: &Host, pid: i32) -> Vec<(String, String)> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let names = host.list(&directory).into_iter().take(DESCRIPTORS);
    names
        .filter_map(|name| {
            let link = host.read_link(directory.join(&name)).ok()?;
            Some((
                name.into_string().ok()?,
                link.into_os_string().into_string().ok()?,
            ))
        })
        .filter(|(_, link)| link.starts_with('/') || link.starts_with("anon_inode:"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::testing::Fake;

    #[test]
    fn a_process_is_read() {
        let fake = Fake::new();
        fake.server(42);
        let process = Process::read(&fake.host, 42).unwrap();
        assert_eq!(process.status.name, "redis-server");
        assert_eq!(process.tables(), 32_768);
        assert_eq!(
            process.library,
            Some(Mapped::Yes(
                "/usr/lib/x86_64-linux-gnu/libasyncfork.so".into()
            ))
        );
        assert_eq!(process.variable("ASYNCFORK_LOG"), Some("info"));
        assert_eq!(process.cpus(), Some(4));
    }

    #[test]
    fn an_environment_that_is_overwritten_is_none() {
        let fake = Fake::new();
        fake.server(42);
        fake.write("/proc/42/environ", "\0\0\0\0");
        let process = Process::read(&fake.host, 42).unwrap();
        assert!(process.overwritten && process.environment.is_none());
        // One that is empty is one.
        fake.write("/proc/42/environ", "");
        let process = Process::read(&fake.host, 42).unwrap();
        assert!(!process.overwritten && process.environment.is_some());
    }

    #[test]
    fn wrong_pids_say_what_to_give() {
        let fake = Fake::new();
        fake.server(42);
        fake.write(
            "/proc/2/status",
            &crate::testing::status("kthreadd", 2).replace("VmSize", "X"),
        );
        fake.write(
            "/proc/43/status",
            &crate::testing::status("redis-server", 42),
        );
        for (pid, words) in [
            (7, "no process 7"),
            (2, "kernel thread"),
            (43, "thread of process 42"),
        ] {
            let error = Process::read(&fake.host, pid).unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_replaced_library_is_noticed() {
        let line = "7f0 r-xp 0 08:01 9    /usr/lib/libasyncfork.so";
        assert_eq!(mapped(line), Mapped::Yes("/usr/lib/libasyncfork.so".into()));
        let deleted = format!("7e0 r-xp 0 0 0 [heap]\n{line} (deleted)");
        assert_eq!(
            mapped(&deleted),
            Mapped::Deleted("/usr/lib/libasyncfork.so".into())
        );
        assert_eq!(mapped("7f0 r-xp 0 08:01 9 /usr/lib/libc.so.6"), Mapped::No);
    }
}
