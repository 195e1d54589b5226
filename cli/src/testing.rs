// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine of files for tests: a root directory, systemd and a module.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{symlink, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Result;
use asyncfork_uapi::{Outcome, Reason, Report, State, Stats, Version};

use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::host::{Host, Output, Tools};
use crate::module::{no_enrolment, Cgroup, Enrolment, Fork, Module, Terms, ENROLMENT_ABI};
use crate::out::Out;
use crate::process;

/// What the fake module and systemd know.
#[derive(Default)]
pub struct Inside {
    pub abi: u32,
    pub stats: Stats,
    pub forks: Vec<Fork>,
    pub enrolled: Vec<Enrolment>,
    /// What modinfo says of every module's signature; none: it is not there.
    pub signer: Option<String>,
    loaded: bool,
    unreachable: bool,
    units: BTreeMap<String, String>,
    unit_files: BTreeMap<String, String>,
    no_systemd: bool,
    blind_systemd: bool,
    calls: Vec<String>,
}

type Shared = Rc<RefCell<Inside>>;

/// The machine.
pub struct Fake {
    directory: tempfile::TempDir,
    pub host: Host,
    inside: Shared,
}

impl Fake {
    /// A Debian 12 with nothing of ours.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let inside = Shared::default();
        inside.borrow_mut().abi = 2;
        let fake = Self {
            host: host(directory.path(), &inside),
            directory,
            inside,
        };
        fake.write("/proc/sys/kernel/osrelease", "6.1.0-56-amd64\n");
        fake
    }

    pub fn write(&self, path: &str, text: &str) -> &Self {
        self.write_bytes(path, text.as_bytes())
    }

    pub fn write_bytes(&self, path: &str, bytes: &[u8]) -> &Self {
        let real = self.host.path(path);
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::write(real, bytes).unwrap();
        self
    }

    pub fn program(&self, path: &str, bytes: &[u8]) -> &Self {
        self.write_bytes(path, bytes);
        fs::set_permissions(self.host.path(path), fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    pub fn link(&self, path: &str, to: &str) -> &Self {
        let real = self.host.path(path);
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&real);
        symlink(to, real).unwrap();
        self
    }

    pub fn directory(&self, path: &str) -> &Self {
        fs::create_dir_all(self.host.path(path)).unwrap();
        self
    }

    pub fn remove(&self, path: &str) -> &Self {
        fs::remove_file(self.host.path(path)).unwrap();
        self
    }

    /// The module is loaded.
    pub fn loaded(&self) -> &Self {
        self.inside.borrow_mut().loaded = true;
        self.write("/sys/module/asyncfork/parameters/enabled", "Y\n")
            .write("/sys/module/asyncfork/parameters/max_sessions", "1024\n")
            .write("/sys/module/asyncfork/version", "0.1.0\n")
    }

    pub fn module(&self, change: impl FnOnce(&mut Inside)) -> &Self {
        change(&mut self.inside.borrow_mut());
        self
    }

    /// Its device may not be opened.
    pub fn unreachable(&self) -> &Self {
        self.module(|m| m.unreachable = true)
    }

    /// The kernel, its module and what loads it.
    pub fn bootable(&self, release: &str) -> &Self {
        self.write(&format!("/boot/vmlinuz-{release}"), "")
            .write(
                &format!("/lib/modules/{release}/updates/dkms/asyncfork.ko"),
                "ELF",
            )
            .write(&format!("/lib/modules/{release}/build/Makefile"), "")
            .write("/etc/modules-load.d/asyncfork.conf", "asyncfork\n")
    }

    /// The package asyncfork-dkms.
    pub fn packaged(&self) -> &Self {
        for path in [
            "/usr/lib/asyncfork/kernel",
            "/etc/kernel/postinst.d/asyncfork",
        ] {
            self.program(path, b"#!/bin/sh\n");
        }
        self
    }

    pub fn cgroup(&self, path: &str) -> &Self {
        self.write("/sys/fs/cgroup/cgroup.controllers", "memory\n");
        let mut inside = PathBuf::from("/sys/fs/cgroup");
        for part in path.split('/') {
            inside.push(part);
            self.write(inside.join("cgroup.procs").to_str().unwrap(), "");
        }
        self
    }

    /// redis-server with 64 GiB and the library.
    pub fn server(&self, pid: i32) -> &Self {
        let proc = format!("/proc/{pid}");
        self.write(&format!("{proc}/status"), &status("redis-server", pid))
            .write(
                &format!("{proc}/environ"),
                "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libasyncfork.so\0ASYNCFORK_LOG=info\0",
            )
            .write(
                &format!("{proc}/maps"),
                "7f00-7f01 r-xp 0 08:01 7   /usr/lib/x86_64-linux-gnu/libasyncfork.so\n",
            )
            .write(
                &format!("{proc}/cgroup"),
                "0::/system.slice/redis-server.service\n",
            )
            .link(&format!("{proc}/exe"), "../../usr/bin/redis-server")
            .link(&format!("{proc}/root"), "../..")
            .directory(&format!("{proc}/fd"))
    }

    pub fn unit(&self, name: &str, properties: &str) -> &Self {
        self.inside
            .borrow_mut()
            .units
            .insert(name.into(), properties.into());
        self
    }

    pub fn unit_file(&self, name: &str, text: &str) -> &Self {
        self.inside
            .borrow_mut()
            .unit_files
            .insert(name.into(), text.into());
        self
    }

    pub fn without_systemd(&self) -> &Self {
        self.module(|m| m.no_systemd = true)
    }

    /// systemd reads no drop-in.
    pub fn blind_systemd(&self) -> &Self {
        self.module(|m| m.blind_systemd = true)
    }

    /// How often systemctl was called for this.
    pub fn calls(&self, verb: &str) -> usize {
        self.inside
            .borrow()
            .calls
            .iter()
            .filter(|c| *c == verb)
            .count()
    }

    fn run(
        &self,
        command: &'static str,
        json: bool,
        body: impl FnOnce(&mut Ctx<'_>) -> Result<Exit>,
    ) -> (Result<Exit>, String) {
        let mut text = Vec::new();
        let inside = self.inside.clone();
        let mut ctx = Ctx {
            host: host(self.directory.path(), &self.inside),
            out: Out::new(
                Box::new(anstream::StripStream::new(&mut text as &mut Vec<u8>)),
                json,
                command,
            ),
            device: "/dev/asyncfork".into(),
            connect: Box::new(move |_, _| {
                let state = inside.borrow();
                if !state.loaded {
                    return Err(exit::cannot_tell(
                        "the module is not loaded: modprobe asyncfork",
                    ));
                }
                if state.unreachable {
                    return Err(exit::cannot_tell("/dev/asyncfork cannot be opened: EACCES"));
                }
                Ok(Box::new(Loaded(inside.clone())))
            }),
            sample: Box::new(|_| Err(exit::cannot_tell("not measured in tests"))),
        };
        let result = body(&mut ctx);
        self.host
            .reads
            .borrow_mut()
            .append(&mut ctx.host.reads.borrow_mut());
        drop(ctx);
        (result, String::from_utf8(text).unwrap())
    }

    /// Runs a command: its result, and its text without colours.
    pub fn command(
        &self,
        command: &'static str,
        body: impl FnOnce(&mut Ctx<'_>) -> Result<Exit>,
    ) -> (Result<Exit>, String) {
        self.run(command, false, body)
    }

    /// Runs a command for its JSON.
    pub fn json(
        &self,
        command: &'static str,
        body: impl FnOnce(&mut Ctx<'_>) -> Result<Exit>,
    ) -> (Result<Exit>, String) {
        self.run(command, true, body)
    }

    /// Runs a command for its JSON, and compares that with a file of tests/golden.
    /// With ASYNCFORK_GOLDEN=write in the environment, writes the file.
    pub fn golden(
        &self,
        file: &str,
        command: &'static str,
        body: impl FnOnce(&mut Ctx<'_>) -> Result<Exit>,
    ) {
        let (result, text) = self.json(command, body);
        result.unwrap();
        crate::golden::expect(&format!("{file}.json"), &text);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], crate::out::SCHEMA);
        assert_eq!(value["command"], command);
    }
}

fn host(root: &Path, inside: &Shared) -> Host {
    let tools = FakeTools {
        root: root.to_owned(),
        inside: inside.clone(),
    };
    Host::with_tools(root.to_owned(), Box::new(tools))
}

/// systemctl and modinfo, as far as they are used.
struct FakeTools {
    root: PathBuf,
    inside: Shared,
}

impl FakeTools {
    /// The drop-ins of a unit, also of its template.
    fn drop_ins(&self, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        if let Some((stem, _)) = name.split_once('@') {
            names.push(format!("{stem}@.service"));
        }
        let paths = names
            .iter()
            .map(|n| format!("/etc/systemd/system/{n}.d/asyncfork.conf"));
        paths.filter(|p| self.root.join(&p[1..]).exists()).collect()
    }
}

impl Tools for FakeTools {
    fn run(&self, program: &str, args: &[&str]) -> io::Result<Output> {
        let mut inside = self.inside.borrow_mut();
        if let ("modinfo", Some(signer)) = (program, &inside.signer) {
            return Ok(Output {
                success: true,
                stdout: format!("{signer}\n"),
                stderr: String::new(),
            });
        }
        if program != "systemctl" || inside.no_systemd {
            return Err(io::ErrorKind::NotFound.into());
        }
        inside.calls.push(args[0].to_owned());
        let name = *args.last().unwrap();
        let said = |text: String| Output {
            success: true,
            stdout: text,
            stderr: String::new(),
        };
        Ok(match args[0] {
            "show" => {
                let known = inside.units.get(name).cloned();
                let mut text = known.unwrap_or_else(|| format!("Id={name}\nLoadState=not-found\n"));
                if !inside.blind_systemd {
                    text.push_str(&format!("DropInPaths={}\n", self.drop_ins(name).join(" ")));
                }
                said(text)
            }
            "cat" => {
                let Some(text) = inside.unit_files.get(name) else {
                    return Ok(Output {
                        stderr: format!("No files found for {name}.\n"),
                        ..Output::default()
                    });
                };
                let mut text = format!("# /lib/systemd/system/{name}\n{text}\n");
                for path in self.drop_ins(name) {
                    let drop_in = fs::read_to_string(self.root.join(&path[1..])).unwrap();
                    text.push_str(&format!("# {path}\n{drop_in}\n"));
                }
                said(text)
            }
            "daemon-reload" | "try-restart" => said(String::new()),
            other => panic!("systemctl {other}"),
        })
    }
}

/// The loaded module.
struct Loaded(Shared);

impl Module for Loaded {
    fn version(&self) -> Result<Version> {
        Ok(Version {
            abi: self.0.borrow().abi,
            max_helpers: 8,
            ..Version::default()
        })
    }

    fn stats(&self) -> Result<Stats> {
        Ok(self.0.borrow().stats)
    }

    fn recent(&self) -> Result<Vec<Fork>> {
        Ok(self.0.borrow().forks.clone())
    }

    fn enroll(&self, cgroup: &File, terms: Terms) -> Result<()> {
        let mut inside = self.0.borrow_mut();
        if inside.abi < ENROLMENT_ABI {
            return no_enrolment();
        }
        let id = cgroup.metadata()?.ino();
        inside.enrolled.retain(|e| e.id != id);
        inside.enrolled.push(Enrolment {
            id,
            terms,
            async_forks: 0,
            stock_forks: 0,
        });
        Ok(())
    }

    fn unenroll(&self, cgroup: &Cgroup<'_>) -> Result<bool> {
        let mut inside = self.0.borrow_mut();
        if inside.abi < ENROLMENT_ABI {
            return no_enrolment();
        }
        let id = match cgroup {
            Cgroup::Open(file) => file.metadata()?.ino(),
            Cgroup::Id(id) => *id,
        };
        let before = inside.enrolled.len();
        inside.enrolled.retain(|e| e.id != id);
        Ok(inside.enrolled.len() < before)
    }

    fn enrolled(&self) -> Result<Vec<Enrolment>> {
        let inside = self.0.borrow();
        if inside.abi < ENROLMENT_ABI {
            return no_enrolment();
        }
        Ok(inside.enrolled.clone())
    }
}

/// 12 asynchronous forks of 1 ms each, 3 stock ones.
pub fn stats() -> Stats {
    let mut stats = Stats {
        enabled: 1,
        armed: 15,
        r#async: 12,
        stock: 3,
        park_ns: 12_000_000,
        copy_ns: 3_600_000_000,
        parent_pull_ns: 5_000_000,
        parent_pull_max_ns: 80_000,
        ..Stats::default()
    };
    stats.chunks.parked = 4000;
    stats.chunks.by_child = 3900;
    stats.chunks.by_parent = 100;
    stats.stock_by_reason[Reason::MinRss.raw() as usize] = 3;
    stats.park.bucket[19] = 12;
    stats.parent_pull.bucket[15] = 100;
    stats.copy.bucket[28] = 12;
    stats
}

/// A fork of redis-server.
pub fn fork(pid: i32, outcome: Outcome, reason: Reason) -> Fork {
    let mut report = Report {
        id: 1,
        outcome: outcome.raw(),
        reason: reason.raw(),
        state: State::Done.raw(),
        parent_pid: pid,
        child_pid: pid + 1,
        cpus: 4,
        start_ns: 1,
        park_ns: 1_200_000,
        parent_pull_ns: 900_000,
        parent_pull_max_ns: 40_000,
        copy_ns: 350_000_000,
        ..Report::default()
    };
    report.comm[..12].copy_from_slice(b"redis-server");
    report.chunks.parked = 32_768;
    report.chunks.by_child = 32_700;
    report.chunks.by_parent = 68;
    Fork(report)
}

/// `/proc/PID/status` of a process with 64 GiB.
pub fn status(name: &str, tgid: i32) -> String {
    let pte = (32_768 * process::TABLE) >> 10;
    format!(
        "Name:\t{name}\nUmask:\t0077\nState:\tS (sleeping)\nTgid:\t{tgid}\nNgid:\t0\nPid:\t{tgid}\nPPid:\t1\n\
         TracerPid:\t0\nUid:\t101\t101\t101\t101\nGid:\t102\t102\t102\t102\nFDSize:\t256\nGroups:\t102 990 \n\
         VmPeak:\t67200000 kB\nVmSize:\t67200000 kB\nVmLck:\t0 kB\nVmPin:\t0 kB\nVmHWM:\t67108864 kB\n\
         VmRSS:\t67108864 kB\nRssAnon:\t67108000 kB\nRssFile:\t864 kB\nRssShmem:\t0 kB\nVmData:\t67110000 kB\n\
         VmStk:\t132 kB\nVmExe:\t2000 kB\nVmLib:\t4000 kB\nVmPTE:\t{pte} kB\nVmSwap:\t0 kB\nHugetlbPages:\t0 kB\n\
         CoreDumping:\t0\nTHP_enabled:\t0\nThreads:\t5\nSigQ:\t0/96365\nSigPnd:\t0000000000000000\n\
         ShdPnd:\t0000000000000000\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n\
         CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n\
         CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n\
         Mems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t1\nnonvoluntary_ctxt_switches:\t1\n"
    )
}

/// ELF files with nothing in them.
pub mod elf {
    const EHDR: usize = 64;
    const PHDR: usize = 56;

    fn header(machine: u16, class: u8, segments: u16) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
        bytes.resize(16, 0);
        bytes.extend(3u16.to_le_bytes());
        bytes.extend(machine.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend((EHDR as u64).to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        for n in [EHDR as u16, PHDR as u16, segments, 0, 0, 0] {
            bytes.extend(n.to_le_bytes());
        }
        assert_eq!(bytes.len(), EHDR);
        bytes
    }

    fn segment(kind: u32, offset: usize, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(4u32.to_le_bytes());
        for n in [offset, offset, offset, size, size, 8] {
            bytes.extend((n as u64).to_le_bytes());
        }
        assert_eq!(bytes.len(), PHDR);
        bytes
    }

    /// A program with that interpreter, or a static one.
    pub fn program(interpreter: Option<&str>) -> Vec<u8> {
        let Some(path) = interpreter else {
            return header(62, 2, 0);
        };
        let mut bytes = header(62, 2, 1);
        bytes.extend(segment(3, EHDR + PHDR, path.len() + 1));
        bytes.extend(path.as_bytes());
        bytes.push(0);
        bytes
    }

    /// A 64-bit ARM program.
    pub fn foreign() -> Vec<u8> {
        header(183, 2, 0)
    }

    /// A library that asks for another one, or for none.
    pub fn library(needed: Option<&str>) -> Vec<u8> {
        let mut strings = vec![0];
        strings.extend(needed.unwrap_or_default().as_bytes());
        strings.push(0);
        let dynamic_at = EHDR + 2 * PHDR;
        let mut dynamic: Vec<(u64, u64)> = Vec::new();
        if needed.is_some() {
            dynamic.push((1, 1));
        }
        let entries = dynamic.len() + 3;
        let strings_at = dynamic_at + entries * 16;
        dynamic.push((5, strings_at as u64));
        dynamic.push((10, strings.len() as u64));
        dynamic.push((0, 0));
        let mut bytes = header(62, 2, 2);
        let size = strings_at + strings.len();
        bytes.extend(segment(1, 0, size));
        bytes.extend(segment(2, dynamic_at, entries * 16));
        for (tag, value) in dynamic {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(strings);
        bytes
    }
}
