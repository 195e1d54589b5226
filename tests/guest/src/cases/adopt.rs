// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes that no library could serve, enrolled by the command from outside: static programs, containers.

use super::command;
use super::device::no_session;
use super::Test;
use crate::cgroup::Cgroup;
use crate::claim;
use crate::ctx::Ctx;
use crate::module;
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::By;
use serde_json::{json, Value};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{chown, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

pub const TESTS: &[Test] = &[
    Test::new(
        "running_static_musl_program_is_enrolled_and_forks_async",
        musl,
    )
    .module()
    .quick(),
    Test::new(
        "container_with_user_namespace_and_no_device_is_enrolled_from_outside",
        |ctx| container(ctx, false),
    )
    .module(),
    Test::new(
        "container_under_podmans_seccomp_profile_is_enrolled_from_outside",
        |ctx| container(ctx, true),
    )
    .module(),
];

/// The profile that Podman gives to containers, of Debian's golang-github-containers-common.
const PROFILE: &str = "/usr/share/containers/seccomp.json";
/// Chunks of the program that are parked, at least.
const CHUNKS: u64 = 12;
/// What root in the container is outside.
const ROOT_OUTSIDE: u32 = 100_000;

/// The program of adopt.c, linked statically with musl.
fn program(dir: &Path) -> TestResult<PathBuf> {
    let (source, program) = (dir.join("program.c"), dir.join("program"));
    fs::write(&source, include_str!("adopt.c"))?;
    let output = Command::new("musl-gcc")
        .args(["-static", "-O1", "-o"])
        .args([&program, &source])
        .output()
        .at("musl-gcc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    claim!(output.status.success(), "musl-gcc: {said}");
    Ok(program)
}

/// The program, running.
struct Server {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Server {
    fn start(command: &mut Command) -> TestResult<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let Some(said) = process.stdout.take().map(BufReader::new) else {
            return Err(Verdict::Broken("no pipe".into()));
        };
        let mut server = Self { process, said };
        server.expect("ready")?;
        Ok(server)
    }

    fn expect(&mut self, want: &str) -> TestResult {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        claim!(line.trim_end() == want, "it says {line:?}, want {want:?}");
        Ok(())
    }

    fn ask(&mut self, line: &str, answer: &str) -> TestResult {
        let Some(input) = &mut self.process.stdin else {
            return Err(Verdict::Broken("no pipe".into()));
        };
        writeln!(input, "{line}")?;
        self.expect(answer)
    }

    /// It forks, and both sides have the right memory.
    fn fork(&mut self) -> TestResult {
        self.ask("fork", "child right, parent right")
    }

    fn stop(mut self) -> TestResult {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        claim!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// Runs the command; what it printed.
fn asyncfork(ctx: &Ctx, args: &[&str]) -> TestResult<String> {
    Ok(command::asyncfork(ctx, args)?.exits(0)?.out)
}

/// Stock, asynchronous from the enrolment on, stock after it: by the module's account. `pid` is the process in `group`.
fn adopted(ctx: &Ctx, server: &mut Server, pid: i32, group: &Cgroup) -> TestResult<String> {
    let id = fs::metadata(group.path())?.ino();
    let number = pid.to_string();
    no_session(ctx, || server.fork())?;

    let said = asyncfork(ctx, &["enroll", "--pid", &number, "--min-rss", "1M"])?;
    claim!(said.contains("changed: true"), "enroll says {said:?}");
    let before = ctx.stats()?;
    for n in 1..=2 {
        server.fork()?;
        let ended = ctx.ended_session_of(pid)?;
        ended.whole(CHUNKS)?.holds("the entry asked for it", |r| {
            r.by() == By::Enrolled && r.entry_id == id && r.cgroup_id == id
        })?;
        let counted = ctx.stats()?.r#async - before.r#async;
        claim!(counted == n, "{counted} asynchronous forks, want {n}");
    }
    let ended = ctx.ended_session_of(pid)?;
    let said = asyncfork(ctx, &["explain", &number])?;
    for words in ["an asynchronous fork", &format!("number {id} is enrolled")] {
        claim!(said.contains(words), "explain says no {words:?}: {said}");
    }

    let said = asyncfork(ctx, &["unenroll", "--pid", &number])?;
    claim!(said.contains("changed: true"), "unenroll says {said:?}");
    no_session(ctx, || server.fork())?;
    let entries = module::enrolled(&module::open()?)?;
    claim!(
        entries.iter().all(|e| e.cgroup_id != id),
        "the entry is still there"
    );
    Ok(ended.detail())
}

fn musl(ctx: &Ctx) -> TestResult<String> {
    let program = program(&ctx.scratch)?;
    let group = ctx.cgroup.child("static")?;
    let mut server = Server::start(&mut Command::new(program))?;
    let pid = server.process.id() as i32;
    group.set("cgroup.procs", pid)?;
    let detail = adopted(ctx, &mut server, pid, &group)?;
    server.stop()?;
    Ok(detail)
}

fn container(ctx: &Ctx, seccomp: bool) -> TestResult<String> {
    let bundle = ctx.scratch.join("bundle");
    let root = bundle.join("rootfs");
    for dir in [&root, &root.join("proc"), &root.join("dev")] {
        fs::create_dir_all(dir)?;
        chown(dir, Some(ROOT_OUTSIDE), Some(ROOT_OUTSIDE))?;
    }
    fs::rename(program(&ctx.scratch)?, root.join("program"))?;
    let group = ctx.cgroup.child("container")?;
    let below = group.path().strip_prefix("/sys/fs/cgroup");
    let path = Path::new("/").join(below.map_err(|e| Verdict::Broken(e.to_string()))?);
    let mut config = config(&path);
    if seccomp {
        config["linux"]["seccomp"] = profile()?;
    }
    fs::write(bundle.join("config.json"), config.to_string())?;

    let mut command = Command::new("crun");
    command
        .arg("--root")
        .arg(ctx.scratch.join("state"))
        .args(["--cgroup-manager=cgroupfs", "run", "--bundle"])
        .arg(&bundle)
        .arg("adopted");
    let mut server = Server::start(&mut command)?;
    let inside = group.processes();
    let [pid] = inside[..] else {
        return Err(Verdict::Failed(format!("the container has {inside:?}")));
    };
    let of_pid = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let map = of_pid("uid_map")?;
    let words: Vec<_> = map.split_whitespace().collect();
    claim!(
        words == ["0", &ROOT_OUTSIDE.to_string(), "65536"],
        "its users are {map:?}"
    );
    let status = of_pid("status")?;
    let want = if seccomp {
        "Seccomp:\t2"
    } else {
        "Seccomp:\t0"
    };
    claim!(status.lines().any(|l| l == want), "no {want:?}: {status}");

    let device = fs::metadata("/dev/asyncfork")?.rdev();
    server.ask(
        &format!("device {device}"),
        "device: No such file or directory, made: Operation not permitted",
    )?;
    let detail = adopted(ctx, &mut server, pid, &group)?;
    server.stop()?;
    Ok(detail)
}

/// What Podman would ask of crun, but for a network and a terminal.
fn config(cgroup: &Path) -> Value {
    const CAPABILITIES: &[&str] = &[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ];
    let ids = json!([{"containerID": 0, "hostID": ROOT_OUTSIDE, "size": 65536}]);
    let namespaces = ["pid", "mount", "ipc", "uts", "cgroup", "network", "user"];
    let namespaces: Vec<_> = namespaces.iter().map(|n| json!({"type": n})).collect();
    json!({
        "ociVersion": "1.0.0",
        "root": {"path": "rootfs"},
        "hostname": "adopted",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/program"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "uidMappings": ids,
            "gidMappings": ids,
        },
    })
}

/// Podman's profile as crun wants it: the lines for this machine and for [`config`]'s capabilities.
fn profile() -> TestResult<Value> {
    let text = fs::read_to_string(PROFILE).at(PROFILE)?;
    let profile: Value =
        serde_json::from_str(&text).map_err(|e| Verdict::Broken(format!("{PROFILE}: {e}")))?;
    let has = |list: &Value, name: &str| {
        let list = list.as_array().into_iter().flatten();
        list.into_iter().any(|v| v.as_str() == Some(name))
    };
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let counts = |line: &&Value| {
        let (with, without) = (&line["includes"], &line["excludes"]);
        (is_empty(&with["arches"]) || has(&with["arches"], "amd64"))
            && (is_empty(&with["caps"]) || has(&with["caps"], "CAP_SYS_CHROOT"))
            && !has(&without["arches"], "amd64")
            && !has(&without["caps"], "CAP_SYS_CHROOT")
    };
    let lines = profile["syscalls"].as_array().into_iter().flatten();
    let syscalls: Vec<Value> = lines
        .filter(counts)
        .map(|line| {
            let mut kept = json!({"names": line["names"], "action": line["action"]});
            for key in ["args", "errnoRet"] {
                if !line[key].is_null() && line[key] != json!([]) {
                    kept[key] = line[key].clone();
                }
            }
            kept
        })
        .collect();
    claim!(syscalls.len() > 5, "{PROFILE} has {} lines", syscalls.len());
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    }))
}
