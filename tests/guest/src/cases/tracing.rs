// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other users of ftrace beside the module's hooks.

use super::common::held;
use super::writes::overwrite_random;
use super::Test;
use crate::claim;
use crate::ctx::Ctx;
use crate::hold::Hold;
use crate::mem::{Arena, Shape, Want, CHUNK_PAGES};
use crate::procfs;
use crate::rng::Rng;
use crate::sys::{self, is_errno};
use crate::verdict::{Context, TestResult, Verdict};
use asyncfork_host::kernel::kernel_since;
use asyncfork_uapi::{Hook, Reason};
use std::fs;
use std::io;

const DIR: &str = "/sys/kernel/tracing";
/// Functions that the module hooks on every kernel.
const HOOKED: [&str; 6] = [
    "handle_mm_fault",
    "copy_page_range",
    "unmap_vmas",
    "change_protection",
    "walk_page_range",
    "exit_mmap",
];

pub const TESTS: &[Test] = &[
    Test::new(
        "ftrace_cannot_be_switched_off_while_the_module_is_loaded",
        switch_off,
    )
    .module()
    .quick(),
    Test::new("function_tracer_on_hooked_functions_harms_nobody", |c| {
        traced(c, "function")
    }),
    Test::new(
        "function_graph_tracer_on_hooked_functions_harms_nobody",
        |c| traced(c, "function_graph"),
    ),
    Test::new("kprobes_on_hooked_functions_harm_nobody", kprobes),
    Test::new(
        "tracepoints_of_the_module_tell_of_begin_pulls_and_end",
        tracepoints,
    )
    .module(),
    Test::new(
        "tracepoint_of_a_fallback_names_process_and_reason",
        fallback,
    )
    .module(),
];

fn write(file: &str, text: &str) -> TestResult {
    fs::write(format!("{DIR}/{file}"), text).at(file)
}

fn append(file: &str, text: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .append(true)
        .open(format!("{DIR}/{file}"))?
        .write_all(text.as_bytes())
}

fn switch_off(ctx: &Ctx) -> TestResult<String> {
    const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";
    let result = fs::write(SWITCH, "0");
    let value = fs::read_to_string(SWITCH)?;
    if result.is_ok() {
        fs::write(SWITCH, "1")?;
    }
    // EOPNOTSUPP: refused to everybody, since Linux 7.3.
    let want = match kernel_since(7, 3)? {
        true => libc::EOPNOTSUPP,
        false => libc::EBUSY,
    };
    claim!(
        is_errno(&result, want),
        "switching ftrace off gives {result:?}, want error {want}"
    );
    claim!(value.trim() == "1", "ftrace_enabled is {value:?}");
    held(ctx, operations, Hook::Fault, false, Shape::Whole(16))
}

/// Something for most hooks.
fn operations(arena: &mut Arena, rng: &mut Rng) -> TestResult {
    arena.part(0..CHUNK_PAGES).unmap()?;
    arena.unmapped(0..CHUNK_PAGES);
    let range = arena.some_range(rng, 400);
    arena.part(range.clone()).protect(libc::PROT_READ)?;
    arena
        .part(range)
        .protect(libc::PROT_READ | libc::PROT_WRITE)?;
    let range = arena.some_range(rng, 400);
    arena.part(range.clone()).advise(libc::MADV_DONTNEED)?;
    arena.expect(range, Want::Zero);
    // Since Linux 7.3 the one walks by another function than the other.
    arena.part(2 * CHUNK_PAGES..3 * CHUNK_PAGES).resident()?;
    procfs::pagemap(0, arena.part(3 * CHUNK_PAGES..4 * CHUNK_PAGES))?;
    overwrite_random(arena, rng)
}

/// Puts the tracer back to nothing.
struct Tracer;

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = write("current_tracer", "nop");
        let _ = write("set_ftrace_filter", "");
        let _ = write("trace", "");
    }
}

fn traced(ctx: &Ctx, tracer: &str) -> TestResult<String> {
    let available = fs::read_to_string(format!("{DIR}/available_tracers")).at("tracefs")?;
    if !available.split_whitespace().any(|t| t == tracer) {
        return Err(Verdict::Skip(format!("no {tracer} tracer in this kernel")));
    }
    let _off = Tracer;
    write("set_ftrace_filter", &HOOKED.join("\n"))?;
    write("current_tracer", tracer)?;
    let detail = held(ctx, operations, Hook::Fault, false, Shape::Whole(16))?;
    let trace = fs::read_to_string(format!("{DIR}/trace"))?;
    for function in HOOKED {
        claim!(
            trace.contains(function),
            "the tracer has not seen {function}"
        );
    }
    Ok(detail)
}

fn kprobes(ctx: &Ctx) -> TestResult<String> {
    struct Probes;
    impl Drop for Probes {
        fn drop(&mut self) {
            let _ = write("events/asyncfork_test/enable", "0");
            for function in HOOKED {
                let _ = append("kprobe_events", &format!("-:asyncfork_test/{function}\n"));
            }
            let _ = write("trace", "");
        }
    }
    let _off = Probes;
    for function in HOOKED {
        append(
            "kprobe_events",
            &format!("p:asyncfork_test/{function} {function}\n"),
        )
        .at(function)?;
    }
    write("events/asyncfork_test/enable", "1")?;
    let detail = held(ctx, operations, Hook::Fault, false, Shape::Whole(16))?;
    let trace = fs::read_to_string(format!("{DIR}/trace"))?;
    for function in HOOKED {
        claim!(
            trace.contains(&format!("{function}: (")),
            "the probe has not seen {function}"
        );
    }
    Ok(detail)
}

fn tracepoints(ctx: &Ctx) -> TestResult<String> {
    write("trace", "")?;
    write("events/asyncfork/enable", "1")?;
    let mut arena = Arena::new(&mut ctx.rng(), 16)?;
    let hold = Hold::new()?;
    let session = ctx.fork().start(|| arena.verify())?;
    session.expect_running()?;
    arena.fill(1);
    session.expect_child_held()?;
    drop(hold);
    let ended = session.finish()?;
    write("events/asyncfork/enable", "0")?;
    let trace = fs::read_to_string(format!("{DIR}/trace"))?;
    write("trace", "")?;
    arena.verify()?;
    ended.whole(8)?.pulled(Hook::Fault, 8)?;
    let count = |name: &str| trace.lines().filter(|l| l.contains(name)).count() as u64;
    claim!(
        count("asyncfork_begin") == 1 && count("asyncfork_end") == 1,
        "begin and end are not there once: {trace}"
    );
    let pulls = count("asyncfork_parent_pull");
    let by_parent = ended.report().map_or(0, |r| r.chunks.by_parent);
    claim!(
        pulls >= by_parent,
        "{pulls} pulls traced, {by_parent} counted"
    );
    Ok(format!("{pulls} pulls traced"))
}

fn fallback(ctx: &Ctx) -> TestResult<String> {
    write("trace", "")?;
    write("events/asyncfork/asyncfork_stock/enable", "1")?;
    // With a session that parks nothing, and without one.
    let nothing = ctx.fork().start(|| Ok(()))?;
    nothing.finish()?.stock(Reason::Nothing)?;
    let arena = Arena::new(&mut ctx.rng(), 8)?;
    let small = ctx.fork().min_rss(1 << 40).start(|| arena.verify())?;
    small.finish()?.stock(Reason::MinRss)?;
    write("events/asyncfork/asyncfork_stock/enable", "0")?;
    let trace = fs::read_to_string(format!("{DIR}/trace"))?;
    write("trace", "")?;
    let told: Vec<&str> = trace
        .lines()
        .filter_map(|l| l.split_once("asyncfork_stock: ").map(|(_, told)| told))
        .collect();
    let want = [Reason::Nothing, Reason::MinRss]
        .map(|reason| format!("pid={} reason={}", sys::pid(), reason.raw()));
    claim!(told == want, "traced: {told:?}, want {want:?}");
    Ok(told.join(", "))
}
