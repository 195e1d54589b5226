// SPDX-License-Identifier: MIT OR Apache-2.0
//! One libasyncfork.so for every C library: a program of an older glibc, one of musl, and an old server, where there is that
//! library, fork under LD_PRELOAD.

use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::module;
use crate::session::Ended;
use crate::sys::{self, cvt};
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_uapi::Report;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::chroot;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr;

pub const TESTS: &[Test] = &[
    Test::new(
        "library_makes_forks_asynchronous_where_musl_is_all_there_is",
        musl_alone,
    )
    .module()
    .quick(),
    Test::new(
        "library_makes_forks_of_a_musl_program_beside_glibc_asynchronous",
        musl_beside_glibc,
    )
    .module(),
    Test::new("library_makes_forks_in_debian_11_asynchronous", old_glibc).module(),
    Test::new(
        "library_makes_forks_of_a_program_from_debian_11_asynchronous",
        newer_glibc,
    )
    .module(),
    Test::new("redis_of_debian_11_forks_async", old_redis).module(),
];

/// What scripts/libcs has made; relative to the checkout.
const LIBCS: &str = "target/libcs";
const MUSL_LOADER: &str = "lib/ld-musl-x86_64.so.1";
/// Where programs in another root find the test's directory.
const SCRATCH: &str = "/mnt";
const LIBRARY: &str = "libasyncfork.so";
const LOG: &str = "log";

/// What `shim/tests/c/pages.c` is told: MiB and forks.
const PAGES: [&str; 2] = ["16", "3"];
const CHUNKS: u64 = 8;
const FORKS: usize = 3;

/// Where programs run.
struct Place<'a> {
    ctx: &'a Ctx,
    /// Their root directory, if it is not the guest's.
    root: Option<PathBuf>,
}

impl<'a> Place<'a> {
    /// Gives this process mounts of its own, and with them the test's directory and the devices to `root`.
    fn new(ctx: &'a Ctx, root: Option<PathBuf>) -> TestResult<Self> {
        fs::copy(ctx.library()?, ctx.scratch.join(LIBRARY))?;
        if let Some(root) = &root {
            // SAFETY: no memory is involved.
            cvt(unsafe { libc::unshare(libc::CLONE_NEWNS) }).at("unshare")?;
            mount(Path::new("none"), Path::new("/"), libc::MS_PRIVATE)?;
            mount(&ctx.scratch, &root.join(&SCRATCH[1..]), libc::MS_BIND)?;
            for dir in ["dev", "proc"] {
                if root.join(dir).exists() {
                    mount(&Path::new("/").join(dir), &root.join(dir), libc::MS_BIND)?;
                }
            }
        }
        Ok(Self { ctx, root })
    }

    fn guest(ctx: &'a Ctx) -> TestResult<Self> {
        Self::new(ctx, None)
    }

    fn debian11(ctx: &'a Ctx) -> TestResult<Self> {
        let root = prepared("debian11")?.canonicalize()?;
        Self::new(ctx, Some(root))
    }

    /// A root with nothing but musl and devices.
    fn musl(ctx: &'a Ctx) -> TestResult<Self> {
        let root = ctx.scratch.join("root");
        for dir in ["dev", "lib", "mnt"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let loader = prepared("debian11")?.join(MUSL_LOADER);
        fs::copy(loader, root.join(MUSL_LOADER))?;
        Self::new(ctx, Some(root))
    }

    /// A file of the test's directory, as programs see it.
    fn scratch(&self, name: &str) -> PathBuf {
        match self.root {
            None => self.ctx.scratch.join(name),
            Some(_) => Path::new(SCRATCH).join(name),
        }
    }

    /// A command there, under the library.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("LD_PRELOAD", self.scratch(LIBRARY))
            .env("ASYNCFORK_LOG", "info")
            .env("ASYNCFORK_LOG_FILE", self.scratch(LOG))
            .env("ASYNCFORK_MIN_RSS", "8M");
        if let Some(root) = self.root.clone() {
            let enter = move || {
                chroot(&root)?;
                std::env::set_current_dir("/")
            };
            // SAFETY: this process has no other threads.
            unsafe { command.pre_exec(enter) };
        }
        command
    }
}

/// One of the things in [`LIBCS`].
fn prepared(name: &str) -> TestResult<PathBuf> {
    let path = Path::new(LIBCS).join(name);
    if !path.exists() {
        let why = format!("{} is missing: scripts/libcs makes it", path.display());
        return Err(Verdict::Broken(why));
    }
    Ok(path)
}

/// mount(2) without a type, for all that is mounted below.
fn mount(source: &Path, target: &Path, flags: libc::c_ulong) -> TestResult {
    let (source, place) = (sys::cstr(source), sys::cstr(target));
    // SAFETY: both strings live across the call.
    cvt(unsafe {
        libc::mount(
            source.as_ptr(),
            place.as_ptr(),
            ptr::null(),
            flags | libc::MS_REC,
            ptr::null(),
        )
    })
    .map(drop)
    .at(format_args!("mount at {}", target.display()))
}

fn musl_alone(ctx: &Ctx) -> TestResult<String> {
    pages("musl", &Place::musl(ctx)?)
}

fn musl_beside_glibc(ctx: &Ctx) -> TestResult<String> {
    pages("musl", &Place::debian11(ctx)?)
}

fn old_glibc(ctx: &Ctx) -> TestResult<String> {
    pages("glibc", &Place::debian11(ctx)?)
}

fn newer_glibc(ctx: &Ctx) -> TestResult<String> {
    pages("glibc", &Place::guest(ctx)?)
}

/// Runs the program of that name, which verifies its memory on both sides, and demands that all its forks were asynchronous.
fn pages(name: &str, place: &Place) -> TestResult<String> {
    let ctx = place.ctx;
    let program = prepared(name)?;
    fs::copy(program, ctx.scratch.join(name))?;
    let before = ctx.stats()?;
    let process = place
        .command(place.scratch(name))
        .args(PAGES)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let parent = process.id() as i32;
    let output = process.wait_with_output()?;
    claim!(
        output.status.success() && output.stderr.is_empty(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    expect_async(ctx, parent, before.stock, CHUNKS, FORKS)?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.trim_end().into())
}

/// Demands `forks` asynchronous forks by the process `parent` and no stock one since the module had counted `stock`, from
/// the module and from the library's log.
fn expect_async(ctx: &Ctx, parent: i32, stock: u64, chunks: u64, forks: usize) -> TestResult {
    let device = module::open()?;
    let reports = || -> TestResult<Vec<Report>> {
        let recent = module::recent(&device)?.into_iter();
        Ok(recent
            .filter(|r| r.id != 0 && r.parent_pid == parent)
            .collect())
    };
    // They come in as they end.
    sys::poll_until(|| Ok::<_, Verdict>((reports()?.len() >= forks).then_some(())))?;
    let reports = reports()?;
    claim!(
        reports.len() == forks,
        "{} sessions of process {parent}, want {forks}",
        reports.len()
    );
    let log = fs::read_to_string(ctx.scratch.join(LOG))?;
    for report in reports {
        Ended::from_report(ctx, Some(report)).whole(chunks)?;
        let line = format!(
            "asyncfork[{parent}] info: async fork of {}: ",
            report.child_pid
        );
        claim!(log.contains(&line), "the log has no {line:?}: {log}");
    }
    claim!(log.lines().count() == forks, "the log has more: {log}");
    let stock = ctx.stats()?.stock - stock;
    claim!(stock == 0, "{stock} stock forks");
    Ok(())
}

/// redis-server and a connection to it.
struct Redis {
    process: Child,
    client: BufReader<UnixStream>,
}

impl Redis {
    /// Started with a snapshot, if the test's directory has one.
    fn start(place: &Place) -> TestResult<Self> {
        const SOCKET: &str = "socket";
        let socket = place.ctx.scratch.join(SOCKET);
        // Of an earlier one, if any.
        let _ = fs::remove_file(&socket);
        let mut process = place
            .command("/usr/bin/redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(place.scratch(SOCKET))
            .arg("--dir")
            .arg(place.scratch(""))
            .stdout(Stdio::null())
            .spawn()?;
        let client =
            sys::poll_until(
                || match (UnixStream::connect(&socket), process.try_wait()?) {
                    (Ok(client), _) => Ok(Some(client)),
                    (_, Some(status)) => Err(Verdict::Failed(format!("redis-server: {status}"))),
                    _ => Ok(None),
                },
            )?;
        let client =
            client.ok_or_else(|| Verdict::Broken("redis-server does not listen".into()))?;
        let mut server = Self {
            process,
            client: BufReader::new(client),
        };
        server.wait_for("persistence", "loading:0")?;
        Ok(server)
    }

    /// The answer to a command: a line, or a text.
    fn call(&mut self, command: &str) -> io::Result<String> {
        writeln!(self.client.get_mut(), "{command}\r")?;
        let mut line = String::new();
        self.client.read_line(&mut line)?;
        if let Some(size) = line.trim_end().strip_prefix('$') {
            let size: usize = size.parse().map_err(io::Error::other)?;
            let mut text = vec![0; size + 2];
            self.client.read_exact(&mut text)?;
            line = String::from_utf8_lossy(&text).into_owned();
        }
        Ok(line.trim_end().trim_start_matches('+').into())
    }

    /// Waits for a line of that section of INFO.
    fn wait_for(&mut self, section: &str, wanted: &str) -> TestResult {
        let info = format!("INFO {section}");
        let come = sys::poll_until(|| -> io::Result<_> {
            let text = self.call(&info)?;
            Ok(text.lines().any(|line| line == wanted).then_some(()))
        })?;
        come.ok_or_else(|| Verdict::Failed(format!("waited in vain for {wanted}")))
    }

    /// Ends it without another snapshot.
    fn stop(mut self) -> TestResult {
        let _ = self.call("SHUTDOWN NOSAVE");
        let status = self.process.wait()?;
        claim!(status.success(), "redis-server ended with {status}");
        Ok(())
    }
}

fn old_redis(ctx: &Ctx) -> TestResult<String> {
    // Newer ones do it themselves.
    sys::allow_huge_pages(false)?;
    let place = Place::debian11(ctx)?;
    let mut server = Redis::start(&place)?;
    server.call("DEBUG POPULATE 12000 key 1000")?;
    let digest = server.call("DEBUG DIGEST")?;
    let before = ctx.stats()?;
    let started = server.call("BGSAVE")?;
    claim!(started == "Background saving started", "BGSAVE: {started}");
    // Writes while the child copies.
    server.call("DEBUG POPULATE 1000 other 1000")?;
    server.wait_for("persistence", "rdb_bgsave_in_progress:0")?;
    server.wait_for("persistence", "rdb_last_bgsave_status:ok")?;
    expect_async(ctx, server.process.id() as i32, before.stock, 4, 1)?;
    server.stop()?;
    let mut reader = Redis::start(&place)?;
    let read = reader.call("DEBUG DIGEST")?;
    claim!(read == digest, "digest {read} of what was {digest}");
    reader.stop()?;
    Ok(format!("digest {digest}"))
}
