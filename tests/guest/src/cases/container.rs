// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers in containers of crun and runc, as Podman and Docker run them: enrolled from outside, and with the library.

use super::adopt::{adopted, asyncfork, program, Server, STATIC};
use super::command;
use super::device::no_session;
use super::Test;
use crate::cgroup::Cgroup;
use crate::claim;
use crate::ctx::Ctx;
use crate::sys;
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::By;
use serde_json::{json, Value};
use std::fs;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const TESTS: &[Test] = &[
    Test::new(
        "container_with_user_namespace_and_no_device_is_enrolled_from_outside",
        |ctx| {
            let engine = Engine {
                seccomp: Seccomp::None,
                ..CRUN
            };
            enrolled(ctx, Root::Musl, engine)
        },
    )
    .module(),
    Test::new(
        "container_under_podmans_seccomp_profile_is_enrolled_from_outside",
        |ctx| enrolled(ctx, Root::Static, CRUN),
    )
    .module()
    .quick(),
    Test::new(
        "container_of_runc_that_may_make_devices_is_enrolled_from_outside",
        |ctx| enrolled(ctx, Root::Musl, RUNC),
    )
    .module(),
    Test::new(
        "container_without_room_for_page_tables_loses_a_child_only",
        no_tables,
    )
    .module(),
    Test::new(
        "redis_in_a_container_is_served_by_a_slice_after_a_restart",
        restarted,
    )
    .module(),
    Test::new(
        "redis_in_a_container_at_its_limit_loses_a_snapshot_only",
        at_limit,
    )
    .module(),
    Test::new(
        "library_in_a_container_takes_a_device_of_the_servers_ids",
        preloaded,
    )
    .module(),
];

/// Who runs containers.
#[derive(Clone, Copy)]
struct Engine {
    runtime: &'static str,
    /// In user namespaces.
    mapped: bool,
    seccomp: Seccomp,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seccomp {
    None,
    /// Podman's profile.
    Podman,
    /// The same, with what Docker's has for clone(2).
    Docker,
}

/// As Podman does it, told to map users.
const CRUN: Engine = Engine {
    runtime: "crun",
    mapped: true,
    seccomp: Seccomp::Podman,
};

/// As Docker does it.
const RUNC: Engine = Engine {
    runtime: "runc",
    mapped: false,
    seccomp: Seccomp::Docker,
};

/// A kind of container.
#[derive(Clone, Copy)]
struct Kind {
    engine: Engine,
    /// What it runs.
    args: &'static [&'static str],
    /// By [`ENTRYPOINT`].
    drops: bool,
    /// The user it begins as, with the group of that number.
    user: u32,
    /// And other groups.
    groups: &'static [u32],
    /// Bytes of memory that it may use.
    memory: Option<u64>,
    /// It gets the library, and the device as the guest has it.
    library: bool,
}

/// One that runs the program of adopt.c.
const PROGRAM: Kind = Kind {
    engine: CRUN,
    args: &["/program"],
    drops: false,
    user: 0,
    groups: &[],
    memory: None,
    library: false,
};

/// What is in a root directory.
#[derive(Clone, Copy)]
enum Root {
    /// A static program, and nothing else.
    Static,
    /// The program and musl, as in Alpine's images.
    Musl,
    /// The program and the guest's glibc.
    Glibc,
    /// The guest's Redis and glibc.
    Redis,
}

/// The profile that Podman gives to containers, of Debian's golang-github-containers-common. Docker's, from which it is
/// derived, is in no file.
const PROFILE: &str = "/usr/share/containers/seccomp.json";
/// What root in a user namespace is outside.
const ROOT_OUTSIDE: u32 = 100_000;
/// The server's user and group in a container.
const REDIS: u32 = 999;
/// A group that servers begin with and are to have lost.
const EXTRA: u32 = 4242;
/// How the official images' entrypoint goes on, and with what.
const ENTRYPOINT: [&str; 5] = [
    "/usr/bin/setpriv",
    "--reuid=redis",
    "--regid=redis",
    "--clear-groups",
    "--",
];

impl Root {
    fn make(self, ctx: &Ctx, root: &Path) -> TestResult {
        const MUSL: &str = "/lib/ld-musl-x86_64.so.1";
        let (compiler, files): (&[&str], &[&str]) = match self {
            Self::Static => (STATIC, &[]),
            Self::Musl => (&["musl-gcc"], &[MUSL]),
            Self::Glibc => (&["gcc"], &[ENTRYPOINT[0]]),
            Self::Redis => (&[], &[ENTRYPOINT[0], "/usr/bin/redis-server"]),
        };
        for dir in ["proc", "dev", "sys", "etc", "data"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for (file, rest) in [("etc/passwd", ":/data:/bin/false"), ("etc/group", "")] {
            let line = format!("redis:x:{REDIS}:{REDIS}:{rest}\n");
            fs::write(root.join(file), line)?;
        }
        if !compiler.is_empty() {
            fs::rename(program(&ctx.scratch, compiler)?, root.join("program"))?;
        }
        for file in files {
            copy_with_libraries(file, root)?;
        }
        Ok(())
    }
}

/// Copies a file of the guest, and the libraries that it takes, to the same places below `root`.
fn copy_with_libraries(file: &str, root: &Path) -> TestResult {
    let output = Command::new("ldd").arg(file).output().at("ldd")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let libraries = said.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([file]) {
        let copy = root.join(&file[1..]);
        if copy.exists() {
            continue;
        }
        fs::create_dir_all(copy.parent().unwrap_or(root))?;
        fs::copy(file, copy).at(file)?;
    }
    Ok(())
}

/// A container, now and then running.
struct Container<'a> {
    ctx: &'a Ctx,
    kind: &'a Kind,
    bundle: PathBuf,
    /// Its cgroup's parent.
    above: Cgroup,
}

impl<'a> Container<'a> {
    /// With the root directory in there, which becomes its own.
    fn new(ctx: &'a Ctx, bundle: &Path, kind: &'a Kind) -> TestResult<Self> {
        let container = Self {
            ctx,
            kind,
            bundle: bundle.into(),
            above: ctx.cgroup.clone(),
        };
        let user = container.outside(0);
        let output = Command::new("chown")
            .args(["-R", &format!("{user}:{user}")])
            .arg(bundle.join("rootfs"))
            .output()?;
        claim!(output.status.success(), "chown: {output:?}");
        let user = Some(container.outside(REDIS));
        chown(container.data(), user, user)?;
        Ok(container)
    }

    /// With a root directory made for it.
    fn with_root(ctx: &'a Ctx, root: Root, kind: &'a Kind) -> TestResult<Self> {
        let bundle = ctx.scratch.join("bundle");
        root.make(ctx, &bundle.join("rootfs"))?;
        Self::new(ctx, &bundle, kind)
    }

    /// Below this cgroup.
    fn below(self, above: &Cgroup) -> Self {
        Self {
            above: above.clone(),
            ..self
        }
    }

    fn data(&self) -> PathBuf {
        self.bundle.join("rootfs/data")
    }

    /// A user's number outside.
    fn outside(&self, user: u32) -> u32 {
        user + if self.kind.engine.mapped {
            ROOT_OUTSIDE
        } else {
            0
        }
    }

    /// What runs it.
    fn command(&self) -> TestResult<Command> {
        let config = config(self)?.to_string();
        fs::write(self.bundle.join("config.json"), config)?;
        let mut command = Command::new(self.kind.engine.runtime);
        command
            .arg("--root")
            .arg(self.ctx.scratch.join("state"))
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg("adopted");
        Ok(command)
    }

    /// The cgroup that the runtime has made for it, and the only process in there, which is in all that this kind of
    /// container is about.
    fn inside(&self) -> TestResult<(Cgroup, i32)> {
        let group = self.above.child("container")?;
        let inside = group.processes();
        let [pid] = inside[..] else {
            return Err(Verdict::Failed(format!("the container has {inside:?}")));
        };
        let of_pid = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let map = of_pid("uid_map")?;
        let outside = self.outside(0).to_string();
        let words: Vec<_> = map.split_whitespace().collect();
        claim!(words[..2] == ["0", &outside], "its users are {map:?}");

        let status = of_pid("status")?;
        let filtered = self.kind.engine.seccomp != Seccomp::None;
        let (user, groups): (_, &[u32]) = if self.kind.drops {
            (REDIS, &[])
        } else {
            (self.kind.user, self.kind.groups)
        };
        let user = self.outside(user);
        let groups: Vec<_> = groups.iter().map(|group| self.outside(*group)).collect();
        let field = |name: &str| -> Vec<u32> {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            let words = line.unwrap_or("").split_whitespace();
            words.filter_map(|word| word.parse().ok()).collect()
        };
        claim!(
            field("Seccomp:") == [2 * u32::from(filtered)]
                && field("Uid:") == [user; 4]
                && field("Gid:") == [user; 4]
                && field("Groups:") == groups,
            "it is not as it should be: {status}"
        );
        Ok((group, pid))
    }
}

/// The number of a cgroup.
fn id(group: &Cgroup) -> TestResult<u64> {
    Ok(fs::metadata(group.path())?.ino())
}

fn enrolled(ctx: &Ctx, root: Root, engine: Engine) -> TestResult<String> {
    let kind = Kind { engine, ..PROGRAM };
    let container = Container::with_root(ctx, root, &kind)?;
    let mut server = Server::start(&mut container.command()?)?;
    let (group, pid) = container.inside()?;
    let device = fs::metadata("/dev/asyncfork")?.rdev();
    server.ask(
        &format!("device {device}"),
        "device: No such file or directory, made: Operation not permitted",
    )?;
    let detail = adopted(ctx, &mut server, pid, &group)?;
    server.stop()?;
    Ok(detail)
}

/// Its page tables take 12 MiB and what they map as much: room for the server, and not for the tables of a child.
fn no_tables(ctx: &Ctx) -> TestResult<String> {
    const TABLES: u64 = 3000;
    let kind = Kind {
        args: &["/program", "spread"],
        memory: Some(31 << 20),
        ..PROGRAM
    };
    let container = Container::with_root(ctx, Root::Static, &kind)?;
    let mut server = Server::start(&mut container.command()?)?;
    let (group, pid) = container.inside()?;
    asyncfork(
        ctx,
        &["enroll", "--pid", &pid.to_string(), "--min-rss", "1M"],
    )?;
    let killed = ctx.stats()?.killed;
    server.ask("fork, wait", "child killed, parent right")?;
    let ended = ctx.ended_session_of(pid)?;
    ended
        .parked(TABLES)?
        .aborted()?
        .holds("the entry asked for it", |r| r.by() == By::Enrolled)?;
    claim!(ctx.stats()?.killed == killed + 1, "no child was killed");
    // The kernel's OOM killer might have taken the server.
    let asked = group.get_key("memory.events", "oom_kill")?;
    claim!(asked == 0, "the OOM killer has killed {asked}");

    group.set("memory.max", "max")?;
    server.fork()?;
    ctx.ended_session_of(pid)?.whole(TABLES)?;
    server.stop()?;
    Ok(ended.detail())
}

/// Redis in a container.
struct Redis<'a> {
    container: &'a Container<'a>,
    process: Child,
    group: Cgroup,
    pid: i32,
}

/// How many values it has, of which size.
const VALUES: &str = "1536";
const SIZE: &str = "16384";
/// Chunks of it that are parked, at least.
const CHUNKS: u64 = 6;
/// In the directory that it has as its own. That clients may debug it, and that its child is the one to go when there is no
/// memory, are not its defaults.
const SERVER: Kind = Kind {
    args: &[
        "/usr/bin/redis-server",
        "--port",
        "0",
        "--unixsocket",
        "socket",
        "--dir",
        "/data",
        "--save",
        "",
        "--logfile",
        "log",
        "--enable-debug-command",
        "local",
        "--oom-score-adj",
        "yes",
    ],
    drops: true,
    groups: &[EXTRA],
    ..PROGRAM
};

impl<'a> Redis<'a> {
    fn start(container: &'a Container<'a>) -> TestResult<Self> {
        let mut process = container.command()?.stdin(Stdio::null()).spawn()?;
        let socket = container.data().join("socket");
        // Of an earlier one, if any.
        let _ = fs::remove_file(&socket);
        let up = sys::poll_until(|| match process.try_wait()? {
            Some(status) => Err(Verdict::Failed(format!("the container ended: {status}"))),
            None => Ok(socket.exists().then_some(())),
        })?;
        claim!(up.is_some(), "Redis does not come up");
        let (group, pid) = container.inside()?;
        let server = Self {
            container,
            process,
            group,
            pid,
        };
        server.wait_for("loading:0")?;
        Ok(server)
    }

    /// Its answer to a command.
    fn call(&self, command: &[&str]) -> TestResult<String> {
        let output = Command::new("redis-cli")
            .args(["-s", "socket"])
            .args(command)
            .current_dir(self.container.data())
            .output()
            .at("redis-cli")?;
        let said = String::from_utf8_lossy(&output.stdout);
        claim!(
            output.status.success(),
            "{command:?}: {said}; {}",
            fs::read_to_string(self.container.data().join("log"))?
        );
        Ok(said.trim_end().into())
    }

    fn expect(&self, command: &[&str], answer: &str) -> TestResult {
        let said = self.call(command)?;
        claim!(said == answer, "{command:?}: {said}, want {answer}");
        Ok(())
    }

    /// Waits for a line of INFO.
    fn wait_for(&self, wanted: &str) -> TestResult {
        let come = sys::poll_until(|| -> TestResult<_> {
            let info = self.call(&["INFO", "persistence"])?;
            Ok(info.lines().any(|line| line == wanted).then_some(()))
        })?;
        come.ok_or_else(|| Verdict::Failed(format!("waited in vain for {wanted}")))
    }

    fn digest(&self) -> TestResult<String> {
        self.call(&["DEBUG", "DIGEST"])
    }

    fn populate(&self) -> TestResult {
        self.expect(&["DEBUG", "POPULATE", VALUES, "key", SIZE], "OK")
    }

    /// Writes this letter into each byte of each value, where it is.
    fn overwrite(&self, letter: &str) -> TestResult {
        const SCRIPT: &str = "local value = string.rep(ARGV[1], ARGV[3]) \
            for i = 0, ARGV[2] - 1 do redis.call('setrange', 'key:' .. i, 0, value) end";
        self.expect(&["EVAL", SCRIPT, "0", letter, VALUES, SIZE], "")
    }

    fn start_snapshot(&self) -> TestResult {
        self.expect(&["BGSAVE"], "Background saving started")
    }

    fn wait_for_snapshot(&self, status: &str) -> TestResult {
        self.wait_for("rdb_bgsave_in_progress:0")?;
        self.wait_for(&format!("rdb_last_bgsave_status:{status}"))
    }

    /// Takes a snapshot, by the entry of this cgroup, while all is overwritten, and goes back to it; a digest of it.
    fn snapshot(&self, entry: &Cgroup) -> TestResult<String> {
        let (by, of) = (id(entry)?, id(&self.group)?);
        let digest = self.digest()?;
        self.start_snapshot()?;
        self.overwrite("s")?;
        self.wait_for_snapshot("ok")?;
        let ended = self.container.ctx.ended_session_of(self.pid)?;
        ended.whole(CHUNKS)?.holds("that entry asked for it", |r| {
            (r.by(), r.entry_id, r.cgroup_id) == (By::Enrolled, by, of)
        })?;
        self.expect(&["DEBUG", "RELOAD", "NOSAVE"], "OK")?;
        claim!(self.digest()? == digest, "the snapshot is wrong");
        Ok(digest)
    }

    /// Ends it without another snapshot.
    fn stop(mut self) -> TestResult {
        let _ = self.call(&["SHUTDOWN", "NOSAVE"]);
        let status = self.process.wait()?;
        claim!(status.success(), "the container ended with {status}");
        Ok(())
    }
}

/// A restart makes a new cgroup, which the entry of the old one is not for; that of a parent is.
fn restarted(ctx: &Ctx) -> TestResult<String> {
    let slice = ctx.cgroup.child("slice")?;
    let kind = Kind {
        engine: RUNC,
        ..SERVER
    };
    let container = Container::with_root(ctx, Root::Redis, &kind)?.below(&slice);
    let server = Redis::start(&container)?;
    server.populate()?;
    let number = server.pid.to_string();
    asyncfork(ctx, &["enroll", "--pid", &number, "--min-rss", "16M"])?;
    let digest = server.snapshot(&server.group)?;
    let first = id(&server.group)?;
    server.stop()?;

    let server = Redis::start(&container)?;
    claim!(id(&server.group)? != first, "the cgroup is still there");
    no_session(ctx, || {
        server.start_snapshot()?;
        server.wait_for_snapshot("ok")
    })?;
    let path = slice.path().display().to_string();
    asyncfork(ctx, &["enroll", "--cgroup", &path, "--min-rss", "16M"])?;
    let again = server.snapshot(&slice)?;
    claim!(again == digest, "it has read something else");
    server.stop()?;
    Ok(format!("digest {digest}"))
}

/// Room for the server, but not for copies of all that it writes to while a child saves.
fn at_limit(ctx: &Ctx) -> TestResult<String> {
    let kind = Kind {
        memory: Some(50 << 20),
        ..SERVER
    };
    let container = Container::with_root(ctx, Root::Redis, &kind)?;
    let server = Redis::start(&container)?;
    let number = server.pid.to_string();
    asyncfork(ctx, &["enroll", "--pid", &number, "--min-rss", "16M"])?;
    // The child's memory comes back a moment after the OOM killer has done with it, which would go on with the server.
    fs::write(format!("/proc/{number}/oom_score_adj"), "-1000")?;
    server.populate()?;
    server.overwrite("b")?;
    let digest = server.digest()?;
    server.overwrite("a")?;

    // The child is there until the server has needed all the memory.
    let slow = ["CONFIG", "SET", "rdb-key-save-delay", "10000000"];
    server.expect(&slow, "OK")?;
    server.start_snapshot()?;
    let saves = sys::poll_until(|| -> TestResult<_> {
        let saving = |pid: &i32| {
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
            *pid != server.pid && score.is_ok_and(|score| score.trim() == "800")
        };
        Ok(server.group.processes().iter().any(saving).then_some(()))
    })?;
    claim!(saves.is_some(), "no child is first to go");
    server.overwrite("b")?;
    server.wait_for_snapshot("err")?;
    let killed = server.group.get_key("memory.events", "oom_kill")?;
    claim!(killed == 1, "the OOM killer has killed {killed}");
    let ended = ctx.ended_session_of(server.pid)?;
    ended.parked(CHUNKS)?;
    claim!(server.digest()? == digest, "the server has lost something");
    claim!(
        server.group.processes() == [server.pid],
        "it is not the same server"
    );

    server.group.set("memory.max", "max")?;
    server.expect(&["CONFIG", "SET", "rdb-key-save-delay", "0"], "OK")?;
    server.snapshot(&server.group)?;
    server.stop()?;
    Ok(ended.detail())
}

/// Whose the device is.
struct Owner {
    user: u32,
    group: u32,
    mode: u32,
}

/// The device as it is after its load.
const ROOTS: Owner = Owner {
    user: 0,
    group: 0,
    mode: 0o600,
};

impl Owner {
    fn apply(&self) -> TestResult {
        let device = "/dev/asyncfork";
        chown(device, Some(self.user), Some(self.group))?;
        fs::set_permissions(device, fs::Permissions::from_mode(self.mode))?;
        Ok(())
    }
}

/// Gives the device back.
struct GivesBack;

impl Drop for GivesBack {
    fn drop(&mut self) {
        if let Err(v) = ROOTS.apply() {
            eprintln!("{v}");
        }
    }
}

/// What may open the device, and what not.
fn preloaded(ctx: &Ctx) -> TestResult<String> {
    const DROPS: Kind = Kind {
        drops: true,
        groups: &[EXTRA],
        library: true,
        engine: RUNC,
        ..PROGRAM
    };
    const BY_GROUP: Owner = Owner {
        user: 0,
        group: EXTRA,
        mode: 0o660,
    };
    let rows = [
        ("a group that the entrypoint drops", BY_GROUP, DROPS, false),
        (
            "a group without such an entrypoint",
            BY_GROUP,
            Kind {
                drops: false,
                user: REDIS,
                ..DROPS
            },
            true,
        ),
        (
            "the server's user",
            Owner {
                user: REDIS,
                ..BY_GROUP
            },
            DROPS,
            true,
        ),
        (
            "what the server's user is outside of its namespace",
            Owner {
                user: ROOT_OUTSIDE + REDIS,
                ..BY_GROUP
            },
            Kind {
                engine: CRUN,
                ..DROPS
            },
            true,
        ),
    ];
    let bundle = ctx.scratch.join("bundle");
    Root::Glibc.make(ctx, &bundle.join("rootfs"))?;
    let _back = GivesBack;
    for (what, owner, kind, opens) in &rows {
        owner.apply()?;
        let container = Container::new(ctx, &bundle, kind)?;
        served(&container, *opens).map_err(|v| v.at(what))?;
    }
    Ok(format!("{} containers", rows.len()))
}

fn served(container: &Container, opens: bool) -> TestResult {
    let ctx = container.ctx;
    let mut server = Server::start(&mut container.command()?)?;
    let (_, pid) = container.inside()?;
    if opens {
        server.fork()?;
        let ended = ctx.ended_session_of(pid)?;
        ended
            .whole(12)?
            .holds("the library asked for it", |r| r.by() == By::Arm)?;
    } else {
        no_session(ctx, || server.fork())?;
        let number = pid.to_string();
        let words = ["doctor", "--pid", &number, "--no-measure"];
        let said = command::asyncfork(ctx, &words)?.exits(1)?.out;
        claim!(said.contains("device.denied"), "doctor says {said}");
    }
    server.stop()
}

/// What Podman would ask of the runtime, but for a network and a terminal; and Docker, which lets containers make devices.
fn config(container: &Container) -> TestResult<Value> {
    const CAPABILITIES: &[&str] = &[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ];
    let kind = container.kind;
    let below = container.above.path().strip_prefix("/sys/fs/cgroup");
    let below = below.map_err(|e| Verdict::Broken(e.to_string()))?;
    let mut namespaces = vec!["pid", "mount", "ipc", "uts", "cgroup", "network"];
    if kind.engine.mapped {
        namespaces.push("user");
    }
    let entrypoint: &[&str] = if kind.drops { &ENTRYPOINT } else { &[] };
    let args: Vec<_> = entrypoint.iter().chain(kind.args).collect();
    let namespaces: Vec<_> = namespaces.iter().map(|n| json!({"type": n})).collect();
    let mut config = json!({
        "ociVersion": "1.0.0",
        "root": {"path": "rootfs"},
        "hostname": "adopted",
        "process": {
            "user": {"uid": kind.user, "gid": kind.user, "additionalGids": kind.groups},
            "args": args,
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": Path::new("/").join(below).join("container"),
            "namespaces": namespaces,
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "access": "m"},
            ]},
        },
    });
    let linux = &mut config["linux"];
    if kind.engine.mapped {
        let ids = json!([{"containerID": 0, "hostID": ROOT_OUTSIDE, "size": 65536}]);
        linux["uidMappings"] = ids.clone();
        linux["gidMappings"] = ids;
    }
    if let Some(limit) = kind.memory {
        linux["resources"]["memory"] = json!({"limit": limit});
    }
    match kind.engine.seccomp {
        Seccomp::None => {}
        Seccomp::Podman => linux["seccomp"] = profile()?,
        Seccomp::Docker => linux["seccomp"] = with_dockers_clone(profile()?),
    }
    if kind.library {
        add_library(container, &mut config)?;
    }
    Ok(config)
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// As `--env`, `--volume` and `--device` have it: that device is made anew, with the number, the owner and the mode that the
/// host's has. In a user namespace it is a volume as well, and the host's own.
fn add_library(container: &Container, config: &mut Value) -> TestResult {
    const PLACE: &str = "/usr/lib/libasyncfork.so";
    const DEVICE: &str = "/dev/asyncfork";
    let device = fs::metadata(DEVICE)?;
    let (major, minor) = (libc::major(device.rdev()), libc::minor(device.rdev()));
    config["process"]["env"] = json!([format!("LD_PRELOAD={PLACE}"), "ASYNCFORK_MIN_RSS=1M"]);
    let library = container.ctx.library()?;
    let mounts = &mut config["mounts"];
    push(
        mounts,
        json!({"destination": PLACE, "type": "bind", "source": library, "options": ["bind", "ro"]}),
    );
    if container.kind.engine.mapped {
        push(
            mounts,
            json!({"destination": DEVICE, "type": "bind", "source": DEVICE, "options": ["bind"]}),
        );
    } else {
        config["linux"]["devices"] = json!([{
            "path": DEVICE, "type": "c", "major": major, "minor": minor,
            "fileMode": device.mode() & 0o777, "uid": device.uid(), "gid": device.gid(),
        }]);
    }
    push(
        &mut config["linux"]["resources"]["devices"],
        json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rw"}),
    );
    Ok(())
}

/// Podman's profile as the runtimes want it: the lines for this machine and for [`config`]'s capabilities.
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

/// Docker's difference for fork(): no clone3(2), and clone(2) without new namespaces.
fn with_dockers_clone(mut profile: Value) -> Value {
    const NEW_NAMESPACES: u32 = 0x7e02_0000;
    let lines = profile["syscalls"].as_array_mut().into_iter().flatten();
    for line in lines {
        if let Some(names) = line["names"].as_array_mut() {
            names.retain(|name| name != "clone" && name != "clone3");
        }
    }
    let masked = json!([{
        "index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ",
    }]);
    for line in [
        json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": masked}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
    ] {
        push(&mut profile["syscalls"], line);
    }
    profile
}
