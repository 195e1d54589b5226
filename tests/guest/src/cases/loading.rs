// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loading and unloading under use.

use super::writes::overwrite_random;
use super::Test;
use crate::board::Board;
use crate::ctx::Ctx;
use crate::hold::Plug;
use crate::mem::{Arena, Span, Want, PAGE};
use crate::module;
use crate::sys::{self, is_errno};
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::Arm;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

pub const TESTS: &[Test] = &[
    Test::new("module_in_use_cannot_be_unloaded", in_use)
        .module()
        .quick(),
    Test::new("module_loads_and_unloads_under_forks_and_faults", storm)
        .module()
        .quick(),
    Test::new("forks_after_an_unload_are_right", after_unload).module(),
    Test::new("second_load_is_refused_and_harms_nobody", double_load).module(),
    Test::new(
        "a_changed_prototype_of_any_hooked_or_called_function_refuses_the_load",
        prototypes,
    )
    .faults(),
    Test::new(
        "a_kernel_without_type_information_is_refused",
        no_type_information,
    )
    .faults(),
];

/// Demands that the module cannot be unloaded now.
fn expect_busy(ctx: &Ctx, why: &str) -> TestResult {
    let result = ctx.module.try_unload();
    claim!(
        is_errno(&result, libc::EAGAIN) || is_errno(&result, libc::EBUSY),
        "unloading with {why} gives {result:?}, want EAGAIN or EBUSY"
    );
    Ok(())
}

fn reload(ctx: &Ctx) -> TestResult {
    ctx.module.unload()?;
    ctx.module.load("").at("load again")
}

fn in_use(ctx: &Ctx) -> TestResult<String> {
    let plug = Plug::new()?;
    let mut arena = Arena::new(&mut ctx.rng(), 8)?;
    let device = module::open()?;
    expect_busy(ctx, "an open descriptor")?;
    device.arm(&Arm::default()).map_err(module::device_error)?;
    expect_busy(ctx, "an armed thread")?;
    drop(device);
    reload(ctx)?;

    // A session whose descriptor is closed.
    let board = Board::new()?;
    let hold = plug.hold()?;
    let session = ctx.fork().start_on(&board, "child", || arena.verify())?;
    session.expect_running()?;
    let child = session.pid;
    session.leave();
    hold.step_aside()?;
    expect_busy(ctx, "a running session")?;
    arena.write_range(0..700, 1);
    expect_busy(ctx, "a session half pulled")?;
    // Asking opens the device: not before.
    let running = ctx.stats()?.running;
    require!(running == 1, "{running} sessions run still");
    drop(hold);
    board.collect(&["child"])?;
    sys::wait(child)?;
    arena.verify()?;
    reload(ctx)?;

    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(4)?;
    Ok(ended.detail())
}

/// Unarmed forks, page faults and unmappings on every processor while the hooks come and go.
fn storm(ctx: &Ctx) -> TestResult<String> {
    const ROUNDS: u32 = 3;
    const WORKERS: usize = 3;
    let stop = ctx.scratch.join("stop");
    let board = Board::new()?;
    // How often each worker has done its work.
    let done = Span::reserve(PAGE)?;
    done.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)?;
    let done_by = |n: usize| done.load(8 * n);
    let all_done = || (0..WORKERS).map(done_by).collect::<Vec<u64>>();
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        workers.push(ctx.helper(&board, &format!("worker{n}"), || {
            let mut rng = crate::rng::Rng::new(ctx.seed, &format!("{}-{n}", ctx.name));
            let mut arena = Arena::new(&mut rng, 4)?;
            let scratch = Span::reserve(4 << 20)?;
            while !stop.exists() {
                let session = ctx.fork().unarmed().start(|| arena.verify())?;
                overwrite_random(&mut arena, &mut rng)?;
                scratch.map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
                for page in 0..scratch.pages() {
                    scratch.store(page * PAGE, 1);
                }
                scratch.protect(libc::PROT_READ)?;
                scratch.advise(libc::MADV_DONTNEED)?;
                Arena::adopt(&mut rng, scratch.part(0, 64 * PAGE), Want::Zero).verify()?;
                scratch.unmap()?;
                scratch.map(libc::PROT_NONE, libc::MAP_PRIVATE)?;
                let _ended = session.finish()?;
                arena.verify()?;
                done.store(8 * n, done_by(n) + 1);
            }
            Ok(())
        })?);
    }
    let mut arena = Arena::new(&mut ctx.rng(), 8)?;
    let result = (0..ROUNDS).try_for_each(|round| -> TestResult {
        // Each is in the midst of its work, once more.
        let before = all_done();
        let busy = sys::poll_until(|| -> TestResult<Option<()>> {
            let all = before.iter().zip(all_done()).all(|(was, is)| is > *was);
            Ok(all.then_some(()))
        })?;
        require!(busy.is_some(), "a worker does nothing");
        reload(ctx)?;
        let session = ctx.fork().start(|| arena.verify())?;
        arena.fill(round + 1);
        session.finish()?.whole(4)?;
        arena.verify()
    });
    std::fs::write(&stop, "")?;
    for pid in workers {
        sys::wait(pid)?;
    }
    result?;
    board.collect(&["worker0", "worker1", "worker2"])?;
    let work: u64 = all_done().iter().sum();
    Ok(format!("{ROUNDS} times, beside {work} pieces of work"))
}

fn after_unload(ctx: &Ctx) -> TestResult<String> {
    let mut rng = ctx.rng();
    let mut arena = Arena::new(&mut rng, 16)?;
    ctx.fork().start(|| arena.verify())?.finish()?.whole(8)?;
    ctx.module.unload()?;
    require!(!ctx.module.is_loaded(), "the module is still there");
    for round in 0..4 {
        let session = ctx.fork().unarmed().start(|| arena.verify())?;
        overwrite_random(&mut arena, &mut rng)?;
        let _ended = session.finish()?;
        arena.verify()?;
        arena.fill(round + 2);
    }
    ctx.module.load("").at("load again")?;
    ctx.fork().start(|| arena.verify())?.finish()?.whole(8)?;
    Ok("4 forks without the module".into())
}

fn double_load(ctx: &Ctx) -> TestResult<String> {
    let result = ctx.module.load("");
    claim!(
        is_errno(&result, libc::EEXIST),
        "a second load gives {result:?}, want EEXIST"
    );
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(4)?;
    arena.verify()?;
    match ctx.module.refcount() {
        Ok(n) if n >= 0 => Ok(ended.detail()),
        other => Err(Verdict::Failed(format!("reference count {other:?}"))),
    }
}

/// What the kernel says from now on.
struct KernelLog(File);

impl KernelLog {
    fn from_now() -> io::Result<Self> {
        let mut kmsg = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        kmsg.seek(SeekFrom::End(0))?;
        Ok(Self(kmsg))
    }

    /// The module's lines.
    fn of_module(mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        // One record a read.
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(n) => {
                    let record = String::from_utf8_lossy(&record[..n]);
                    let said = record.split_once(';').map_or("", |(_, said)| said);
                    let line = said.lines().next().unwrap_or_default();
                    if let Some(line) = line.strip_prefix("asyncfork: ") {
                        lines.push(line.to_string());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(lines),
                Err(e) => return Err(e),
            }
        }
    }
}

/// Loads the module on a kernel that `params` make look unfit. Demands that it is refused with one line, and returns that.
fn expect_unfit(ctx: &Ctx, params: &str) -> TestResult<String> {
    let log = KernelLog::from_now().at("/dev/kmsg")?;
    let result = ctx
        .module
        .load_as_it_is(&format!("allow_untested=1 {params}"));
    claim!(
        is_errno(&result, libc::ENOEXEC),
        "loading with {params} gives {result:?}, want ENOEXEC"
    );
    claim!(!ctx.module.is_loaded(), "a refused module is loaded");
    let mut lines = log.of_module().at("/dev/kmsg")?;
    match lines.pop() {
        Some(line) if lines.is_empty() => Ok(line),
        last => Err(Verdict::Failed(format!(
            "loading with {params} is refused with other than one line in the log: {lines:?}, {last:?}"
        ))),
    }
}

/// The module expects one parameter more of one function, for each that it hooks or calls.
fn prototypes(ctx: &Ctx) -> TestResult<String> {
    let names = ctx.module.get("fault_protos")?;
    let names: Vec<_> = names.split_whitespace().collect();
    claim!(
        names.len() >= 25,
        "the prototypes of {} functions are checked: {names:?}",
        names.len()
    );
    ctx.module.unload()?;
    for name in &names {
        let line = expect_unfit(ctx, &format!("fault_proto={name}"))?;
        claim!(
            line.starts_with(&format!("function {name} is ")) && line.ends_with(", -)"),
            "of another prototype of {name} the log says: {line}"
        );
    }
    load_and_fork(ctx)?;
    Ok(format!("{} functions", names.len()))
}

fn no_type_information(ctx: &Ctx) -> TestResult<String> {
    ctx.module.unload()?;
    let line = expect_unfit(ctx, "fault_count=1")?;
    claim!(
        line.contains("no type information"),
        "of a kernel without type information the log says: {line}"
    );
    load_and_fork(ctx)
}

fn load_and_fork(ctx: &Ctx) -> TestResult<String> {
    ctx.module.load("").at("load again")?;
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let ended = ctx.fork().start(|| arena.verify())?.finish()?;
    ended.whole(4)?;
    Ok(ended.detail())
}
