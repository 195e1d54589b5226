// SPDX-License-Identifier: MIT OR Apache-2.0
//! Torture: for minutes or hours, parents of random sizes work on their memory with several threads and fork all the
//! time, while other processes kill, freeze and limit them and play with the machine and the module. Every page is
//! compared with a model, in parents, children and grandchildren. The seed decides what each process does; what they do
//! to each other depends on time as well.

mod chaos;
mod defect;
mod life;
mod ops;
mod slot;
mod tally;

use crate::board;
use crate::cgroup::Cgroup;
use crate::leak;
use crate::module::Module;
use crate::procfs::Setting;
use crate::rng::{self, Rng};
use crate::swap::Swap;
use crate::sys::{self, Exit};
use crate::verdict::{Context as _, TestResult, Verdict};
use crate::{claim, require, runner};
use anyhow::Context as _;
use asyncfork_uapi::{Hook, Stats};
use asyncfork_watch::Census;
use chaos::{Aim, Chaos, DEEDS};
use life::Life;
pub use ops::Mix;
use ops::OPS;
use slot::Slot;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tally::{add, get, Tally, Totals, BY_ENTRY, GOOD};

/// Without any progress for so long, something hangs. Far above what an emulated processor under load needs.
const STUCK: Duration = Duration::from_secs(240);
/// After so many async forks what must happen must have happened; how long they take depends on the machine.
const TELLING: u64 = 500;

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// How long, and who.
#[derive(clap::Args)]
pub struct TortureArgs {
    /// asyncfork.ko
    #[arg(long, value_name = "KO", required_unless_present = "control")]
    module: Option<PathBuf>,
    /// Stock forks without the module: shows what the kernel's own fork does under this torture
    #[arg(long)]
    control: bool,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,
    /// Replay a run, as far as a seed can [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Parents at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    parents: usize,
    /// Leave out operations and disturbances whose names contain this (may be repeated)
    #[arg(long, value_name = "WORD")]
    without: Vec<String>,
    /// Run although this does not look like a virtme-ng guest: loads a module, kills processes, risks the machine
    #[arg(long)]
    pub not_a_guest: bool,
}

/// Tortures and prints a report in Markdown. False: something was found.
///
/// # Errors
/// The guest cannot be set up.
pub fn run(args: &TortureArgs) -> anyhow::Result<bool> {
    let seed = args.seed.unwrap_or_else(rng::new_seed);
    runner::set_up_guest()?;
    let module = args.module.clone().filter(|_| !args.control);
    let module = module.map(Module::new);
    if let Some(module) = &module {
        if module.is_loaded() {
            module.unload().context("unload an older module")?;
        }
        module
            .load("park_partial=1")
            .context("cannot load the module; the kernel log says why")?;
    }
    println!(
        "torture: seed {seed}, {} minutes, {} parents, {}{}",
        args.minutes,
        args.parents,
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        if args.control {
            ", control: stock forks"
        } else {
            ""
        },
    );
    let start = Instant::now();
    // This process outlives the run: huge pages that it is given meanwhile are no leak.
    sys::allow_huge_pages(false)?;
    let tally = Tally::new()?;
    let baseline = Census::take()?;
    let mut without = Without(args.without.clone());
    let result = torture(args, seed, module.as_ref(), tally, &mut without);
    let last = statistics(module.as_ref());
    let totals = tally.totals(last.as_ref());
    let result = result
        .and_then(|()| chaos::expect_sane(last.as_ref()))
        .and_then(|()| match &module {
            Some(module) => module.unload().at("after the end"),
            None => Ok(()),
        })
        .and_then(|()| leak::expect_unchanged(&baseline))
        .and_then(|left| chaos::expect_untainted().map(|()| left));
    report(tally, &totals, start.elapsed());
    let result = result.and_then(|left| {
        println!(
            "\nLeft at the end, {left}; at the start, {}.",
            baseline.summary()
        );
        match args.control {
            true => Ok(()),
            false => expect_tried(tally, &totals, &without),
        }
    });
    match &result {
        Ok(()) => println!("\ntorture: nothing found, seed {seed}"),
        Err(v) => println!("\ntorture: FAILED, seed {seed}: {v}"),
    }
    Ok(result.is_ok())
}

/// The module's statistics; it is away at times.
fn statistics(module: Option<&Module>) -> Option<Stats> {
    module?.stats().ok()
}

/// Words in the names of operations and disturbances that are not to be.
#[derive(Default)]
pub struct Without(Vec<String>);

impl Without {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|word| name.contains(word.as_str()))
    }
}

/// What goes wrong in this kernel without the module, too, if there is swap.
fn leave_out_defects(without: &mut Without) -> TestResult {
    if defect::free_in_a_child_frees_for_the_parent()? {
        println!(
            "left out MADV_FREE: this kernel takes other processes' pages (docs/correctness.md)"
        );
        without.0.push("MADV_FREE".into());
    }
    Ok(())
}

/// Runs it all. Whoever fails first stops the others; nobody is left when it returns.
fn torture(
    args: &TortureArgs,
    seed: u64,
    module: Option<&Module>,
    tally: &'static Tally,
    without: &mut Without,
) -> TestResult {
    let swap = Swap::new()?;
    leave_out_defects(without)?;
    let _settings = settings()?;
    let top = Cgroup::top()?;
    let slots = (0..args.parents)
        .map(|n| Ok(Slot::new(&top, n)?))
        .collect::<TestResult<Vec<_>>>()?;
    asyncfork_watch::adopt_orphans()?;

    let mut crowd = Crowd {
        tally,
        slots: &slots,
        seed,
        mix: Mix::new(without),
        faults: module.map_or(Ok(false), Module::injects_faults)?,
        pids: HashMap::new(),
        lives: vec![0; slots.len()],
    };
    for aim in [Aim::Processes, Aim::Machine] {
        let mut chaos = Chaos {
            faults: crowd.faults,
            rng: Rng::new(seed, &format!("{aim:?}")),
            module,
            slots: &slots,
            swap: &swap,
            without,
            tally,
        };
        crowd.start(Who::Chaos(aim), || chaos.go_on(aim))?;
    }
    let result = crowd
        .go_on(Duration::from_secs(args.minutes * 60), module)
        .map_err(|v| tally.fail("torture", &v.to_string()));
    tally.stop();
    for slot in &slots {
        slot.relax()?;
    }
    let ended = crowd.come_to_an_end();
    for slot in &slots {
        slot.group.kill()?;
    }
    crowd.reap_all()?;
    match (tally.failure(), result) {
        (Some(why), _) => Err(Verdict::Failed(why)),
        (None, _) => ended,
    }
}

/// What of the machine's memory management is to be busy.
fn settings() -> TestResult<Vec<Setting>> {
    const THP: &str = "/sys/kernel/mm/transparent_hugepage";
    let mut settings = Vec::new();
    for (path, value) in [
        (format!("{THP}/enabled"), "always"),
        (format!("{THP}/defrag"), "always"),
        (format!("{THP}/khugepaged/scan_sleep_millisecs"), "10"),
        (format!("{THP}/khugepaged/alloc_sleep_millisecs"), "10"),
        (format!("{THP}/khugepaged/pages_to_scan"), "4096"),
        (
            CORE_PATTERN.into(),
            "|/bin/dd of=/dev/null bs=64k status=none",
        ),
    ] {
        if Path::new(&path).exists() {
            settings.push(Setting::new(&path, value)?);
        }
    }
    Ok(settings)
}

/// Who a process is; orphaned children have no name.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// The parent in this slot.
    Parent(usize),
    Chaos(Aim),
}

/// All processes of a run.
struct Crowd<'a> {
    tally: &'static Tally,
    slots: &'a [Slot],
    seed: u64,
    mix: Mix,
    /// Whether allocations of the module are made to fail.
    faults: bool,
    pids: HashMap<i32, Who>,
    /// Parents that each slot has had.
    lives: Vec<u64>,
}

impl Crowd<'_> {
    /// Starts a process of the crowd; `body` ends with its verdict.
    fn start(&mut self, who: Who, body: impl FnOnce() -> TestResult) -> TestResult {
        // SAFETY: this process is single-threaded; the child ends here.
        let pid = sys::cvt(unsafe { libc::fork() }).at("fork")?;
        if pid == 0 {
            let result = board::guarded(body);
            sys::exit_now(self.tally.exit_status(&format!("{who:?}"), &result, false));
        }
        self.pids.insert(pid, who);
        Ok(())
    }

    fn has_parent(&self, slot: usize) -> bool {
        let in_slot = |who: &Who| matches!(who, Who::Parent(n) if *n == slot);
        self.pids.values().any(in_slot)
    }

    fn start_parent(&mut self, slot: usize) -> TestResult {
        let name = format!("parent {slot}-{}", self.lives[slot]);
        self.lives[slot] += 1;
        add(&self.tally.lives, 1);
        self.slots[slot].limit(&mut Rng::new(self.seed, &format!("limit of {name}")))?;
        let short = self.faults || self.slots[slot].is_limited()?;
        let life = Life {
            name,
            seed: self.seed,
            tally: self.tally,
            slot: self.slots[slot].clone(),
            mix: self.mix.clone(),
            short,
        };
        self.start(Who::Parent(slot), || life.live())
    }

    /// Keeps all slots busy until the time is over or somebody has failed.
    fn go_on(&mut self, limit: Duration, module: Option<&Module>) -> TestResult {
        let start = Instant::now();
        let mut watch = Watch::new(self.tally);
        while start.elapsed() < limit && !self.tally.stopped() {
            for slot in 0..self.slots.len() {
                if !self.has_parent(slot) {
                    self.start_parent(slot)?;
                }
            }
            while self.reap()? {}
            if watch.is_time() {
                let stats = statistics(module);
                chaos::expect_sane(stats.as_ref())?;
                chaos::expect_untainted()?;
                if let Err(v) = watch.look(self.tally, stats.as_ref(), start.elapsed()) {
                    self.describe();
                    return Err(v);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Takes note of one process that has ended; false: none has.
    fn reap(&mut self) -> TestResult<bool> {
        let Some((pid, exit)) = sys::wait_any()? else {
            return Ok(false);
        };
        let result = match self.pids.remove(&pid) {
            Some(Who::Chaos(aim)) if exit != Exit::Code(GOOD) => Err(Verdict::Broken(format!(
                "{aim:?} chaos ended with {exit:?}"
            ))),
            Some(Who::Chaos(_)) => Ok(()),
            Some(Who::Parent(slot)) => life::count_end(self.tally, exit)
                .map(drop)
                .at(format!("parent {slot}-{}", self.lives[slot] - 1)),
            None => life::count_end(self.tally, exit).map(drop).at("an orphan"),
        };
        result.map(|()| true)
    }

    /// Waits for everybody, all of whom have been told to stop.
    fn come_to_an_end(&mut self) -> TestResult {
        let start = Instant::now();
        while start.elapsed() < STUCK {
            while self.reap()? {}
            let left = self.everybody();
            if left.is_empty() {
                return Ok(());
            }
            for pid in left {
                // It may have been stopped, or be gone.
                let _ = sys::kill(pid, libc::SIGCONT);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.describe();
        Err(Verdict::Failed(format!(
            "processes do not end: {:?}",
            self.everybody()
        )))
    }

    fn everybody(&self) -> Vec<i32> {
        let in_slots = self.slots.iter().flat_map(|s| s.group.processes());
        self.pids.keys().copied().chain(in_slots).collect()
    }

    fn describe(&self) {
        self.everybody()
            .into_iter()
            .for_each(asyncfork_watch::describe);
    }

    /// After a kill: nobody is left, and nobody's end matters.
    fn reap_all(&mut self) -> TestResult {
        for &pid in self.pids.keys() {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        let gone = sys::poll_until(|| -> TestResult<Option<()>> {
            while let Some((pid, _)) = sys::wait_any()? {
                self.pids.remove(&pid);
            }
            Ok(self.everybody().is_empty().then_some(()))
        })?;
        require!(gone.is_some(), "processes cannot be killed");
        for slot in self.slots {
            slot.group.remove()?;
        }
        Ok(())
    }
}

/// Looks now and then whether the run gets on, and says how far.
struct Watch {
    next: Instant,
    next_word: Duration,
    progress: u64,
    since: Instant,
}

impl Watch {
    fn new(tally: &Tally) -> Self {
        Self {
            next: Instant::now(),
            next_word: Duration::from_secs(60),
            progress: tally.progress(),
            since: Instant::now(),
        }
    }

    fn is_time(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + Duration::from_secs(1);
        }
        due
    }

    fn look(&mut self, tally: &Tally, stats: Option<&Stats>, elapsed: Duration) -> TestResult {
        let progress = tally.progress();
        if progress != self.progress {
            (self.progress, self.since) = (progress, Instant::now());
        }
        // While the module is being unloaded its numbers are nowhere.
        if elapsed >= self.next_word
            && (stats.is_some() || get(&tally.forks) == get(&tally.unarmed))
        {
            self.next_word += Duration::from_secs(60);
            let totals = tally.totals(stats);
            println!(
                "{} min: {} forks, {} async, {} chunks parked, {} pulled by parents, {} sessions aborted, {} pages verified",
                elapsed.as_secs() / 60,
                get(&tally.forks),
                totals.get("async forks"),
                totals.get("chunks parked"),
                totals.get("pulled by the parent"),
                totals.get("sessions aborted"),
                get(&tally.pages),
            );
        }
        claim!(
            self.since.elapsed() < STUCK,
            "nobody gets on for {} s",
            STUCK.as_secs()
        );
        Ok(())
    }
}

/// What has been done.
fn report(tally: &Tally, totals: &Totals, elapsed: Duration) {
    println!(
        "\n| {} min {} s | |\n|---|---|",
        elapsed.as_secs() / 60,
        elapsed.as_secs() % 60
    );
    let row = |name: &str, n: u64| println!("| {name} | {n} |");
    row("parents", get(&tally.lives));
    row("of which ended as planned", get(&tally.full_lives));
    row("fork() calls", get(&tally.forks));
    row("of which not armed", get(&tally.unarmed));
    row("fork() calls that failed", get(&tally.failed_forks));
    for (name, n) in totals.named() {
        row(name, n);
    }
    for hook in Hook::ALL {
        row(&format!("pulls: {hook}"), totals.pulls_by(*hook));
    }
    row("children that found their image whole", get(&tally.whole));
    row("processes killed", get(&tally.killed));
    row("processes without memory to go on", get(&tally.scarce));
    row("core dumps", get(&tally.dumps));
    row("pages verified in children", get(&tally.pages));
    for (op, n) in OPS.iter().zip(&tally.ops) {
        row(&format!("operation: {}", op.0), get(n));
    }
    for (deed, n) in DEEDS.iter().zip(&tally.deeds) {
        row(&format!("disturbance: {}", deed.1), get(n));
    }
}

/// A run in which something never happened has shown less than it claims; a short one has to say what.
fn expect_tried(tally: &Tally, totals: &Totals, without: &Without) -> TestResult {
    require!(get(&tally.whole) > 0, "no child found its image whole");
    require!(totals.get("chunks parked") > 0, "nothing was parked");
    require!(
        totals.get(BY_ENTRY) > 0 || without.has("cgroup enrolled"),
        "no fork was asynchronous by an entry"
    );
    // Nobody uses userfaultfd here, children are mostly done before their parent's core dump begins (the VM tests hold
    // them back), only two nodes make sure of migrations in flight, and nobody gets past all other hooks.
    let expected = |hook: &&Hook| match **hook {
        Hook::Uffd | Hook::Dump | Hook::PteAlloc => false,
        Hook::Poison => chaos::knows_memory_failures(),
        Hook::Migration => chaos::has_two_nodes(),
        _ => true,
    };
    let hooks = Hook::ALL.iter().filter(expected);
    let hooks = hooks.map(|h| (format!("pulls: {h}"), totals.pulls_by(*h)));
    let ops = OPS.iter().zip(&tally.ops);
    let ops = ops.map(|(op, n)| (op.0.to_owned(), get(n)));
    let sure = [
        "SIGKILL",
        "children frozen",
        "module unloaded",
        "unload refused",
        "cgroup enrolled",
        "cgroups unenrolled",
    ];
    let deeds = DEEDS.iter().zip(&tally.deeds);
    let deeds = deeds.filter(|(deed, _)| sure.contains(&deed.1));
    let deeds = deeds.map(|(deed, n)| (deed.1.to_owned(), get(n)));
    let missing: Vec<String> = hooks
        .chain(ops)
        .chain(deeds)
        .filter(|(name, n)| *n == 0 && !without.has(name))
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    let forks = totals.get("async forks");
    require!(forks < TELLING, "never happened: {missing}");
    println!("\nToo few async forks, {forks}, to demand what never happened: {missing}.");
    Ok(())
}
