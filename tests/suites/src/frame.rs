// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the programs of a suite stock and armed, and judges.

use std::fs::{self, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use asyncfork_host::kernel::{bad_taint, on_debug_kernel, tainted};
use asyncfork_uapi::Stats;
use asyncfork_watch::{adopt_orphans, mark_kernel_log, Census, StrayTables};

use crate::compare::{Counts, Runs};
use crate::env::{Env, Unkillable};
use crate::module::{reasons, Forks, Module};
use crate::results::{self, Line, Outcome, Record};
use crate::suite::{Case, Fork, Program, Suite};

const SCRATCH: &str = "/run/asyncfork-suites";
/// How often a program is run again, each way, if the first time does not tell.
const REPEATS: usize = 3;
/// The same, if armed runs look worse than stock ones: what fails now and then may have failed in armed runs only.
const DOUBTS: usize = 8;
/// How much slower everything is on a kernel that checks each access.
const CHECKED: u32 = 8;

/// What to run and where.
pub struct Options {
    pub series: String,
    /// What the host calls this boot.
    pub boot: String,
    pub module: PathBuf,
    pub module_parameters: Vec<String>,
    pub shim: PathBuf,
    pub spread: PathBuf,
    pub results: PathBuf,
    /// Only these programs; empty: all.
    pub programs: Vec<String>,
}

/// Numbers of programs by outcome.
#[derive(Debug, Default)]
pub struct Summary {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

/// Runs a suite.
///
/// # Errors
/// The guest or the suite cannot be set up, or results cannot be written. Bad outcomes are no error.
pub fn run(suite: &dyn Suite, options: &Options) -> Result<Summary> {
    let env = set_up(options)?;
    let mut programs = suite.programs(&env)?;
    for wanted in &options.programs {
        ensure!(
            programs.iter().any(|p| p.name == *wanted),
            "{} has no program {wanted} on this kernel; it has {}",
            suite.name(),
            names(&programs)
        );
    }
    if !options.programs.is_empty() {
        programs.retain(|p| options.programs.contains(&p.name));
    }
    if on_debug_kernel()? {
        programs.iter_mut().for_each(|p| p.limit *= CHECKED);
    }
    ensure!(
        !programs.is_empty(),
        "{} has no programs here",
        suite.name()
    );

    let mut parameters = vec!["park_partial=1".to_owned()];
    parameters.extend(options.module_parameters.iter().cloned());
    let mut frame = Frame {
        suite,
        boot: options.boot.clone(),
        file: results::file(&env.results, &env.series, suite.name()),
        log: env
            .results
            .join(format!("{}-{}.log", env.series, suite.name())),
        module: Module::load(&options.module, &parameters)?,
        baseline: Census::take().context("cannot count the kernel's memory")?,
        env,
        summary: Summary::default(),
    };
    fs::write(&frame.log, "")?;
    frame.begin(results::LEAKS)?;
    for program in &programs {
        frame.program(program)?;
    }
    frame.leaks()?;
    Ok(frame.summary)
}

fn names(programs: &[Program]) -> String {
    let names: Vec<&str> = programs.iter().map(|p| p.name.as_str()).collect();
    names.join(", ")
}

fn set_up(options: &Options) -> Result<Env> {
    // So that Env::run finds them.
    adopt_orphans().context("PR_SET_CHILD_SUBREAPER")?;
    let scratch = Path::new(SCRATCH);
    fs::create_dir_all(scratch)?;
    // Grows and shrinks with what is in it; everybody may write, as in /tmp.
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "mode=1777,size=80%", "tmpfs", SCRATCH])
        .status()?;
    ensure!(status.success(), "cannot mount a tmpfs at {SCRATCH}");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut env = Env {
        series: options.series.clone(),
        release: release.trim().to_owned(),
        scratch: scratch.to_owned(),
        results: options.results.clone(),
        shim: PathBuf::new(),
        spread: PathBuf::new(),
    };
    env.shim = env.local(&options.shim)?;
    env.spread = env.local(&options.spread)?;
    Ok(env)
}

struct Frame<'a> {
    suite: &'a dyn Suite,
    env: Env,
    boot: String,
    /// Records.
    file: PathBuf,
    /// What the programs said.
    log: PathBuf,
    module: Module,
    baseline: Census,
    summary: Summary,
}

impl Frame<'_> {
    fn program(&mut self, program: &Program) -> Result<()> {
        let start = Instant::now();
        let mut tried = Tried::default();
        if let Some(why) = program.missing {
            return self.record(&program.name, Outcome::NotRun, why.into(), &tried, start);
        }
        self.begin(&program.name)?;
        mark_kernel_log(&program.name)?;
        let (outcome, note) = match self.try_out(program, &mut tried) {
            Err(error) if tried.complaints.is_empty() => (Outcome::Broken, format!("{error:#}")),
            _ => tried.judge(),
        };
        let notes = [note.as_str(), program.note.as_str()];
        let notes: Vec<&str> = notes.into_iter().filter(|n| !n.is_empty()).collect();
        self.record(&program.name, outcome, notes.join("; "), &tried, start)
    }

    /// One run each way, and more as long as they tell too little.
    fn try_out(&mut self, program: &Program, tried: &mut Tried) -> Result<()> {
        let before = self.module.quiet_stats()?;
        while tried.is_open() {
            self.run_stock(program, tried)?;
            self.run_armed(program, &before, tried)?;
        }
        Ok(())
    }

    fn run_stock(&mut self, program: &Program, tried: &mut Tried) -> Result<()> {
        let tables = StrayTables::count()?;
        tried.runs.add(Fork::Stock, self.run(program, Fork::Stock)?);
        Ok(self.baseline.forgive(tables)?)
    }

    fn run_armed(&self, program: &Program, before: &Stats, tried: &mut Tried) -> Result<()> {
        let taint = tainted()?;
        let ran = self.run(program, Fork::Armed);
        let stats = self.module.quiet_stats();
        tried.complaints.extend(bad_taint(tainted()? & !taint));
        match stats {
            Err(error) => tried.complaints.push(format!("{error:#}")),
            Ok(after) => {
                tried.forks = Forks::between(before, &after);
                tried.stock_forks = reasons(before, &after);
                if after.switched_off != 0 {
                    let why = "the module found an inconsistency and switched itself off";
                    tried.complaints.push(why.into());
                    self.module.reload()?;
                }
            }
        }
        tried.add_armed(ran)
    }

    fn run(&self, program: &Program, fork: Fork) -> Result<Vec<Case>> {
        // Line by line, hundreds of cases would take minutes over 9p on a debug kernel.
        let log = OpenOptions::new().append(true).open(&self.log)?;
        let mut log = BufWriter::new(log);
        writeln!(log, "==== {} {fork:?}", program.name)?;
        let cases = self.suite.run_one(&self.env, program, fork);
        let output = fs::read(self.env.scratch.join("output")).unwrap_or_default();
        log.write_all(&output)?;
        let cases = cases.with_context(|| format!("{fork:?}"))?;
        for case in &cases {
            writeln!(log, "---- {}: {}", case.verdict.word(), case.name)?;
        }
        log.flush()?;
        Ok(cases)
    }

    /// After all programs: is the kernel as it was, can the module go?
    fn leaks(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut problems = Vec::new();
        if let Err(error) = self.suite.clean_up(&self.env) {
            problems.push(format!("{error:#}"));
        }
        if let Err(error) = self.module.unload() {
            problems.push(format!("{error:#}"));
        }
        let (now, growth) = self.baseline.settle()?;
        problems.extend(growth);
        let (outcome, note) = if problems.is_empty() {
            let mut text = now.summary();
            let forgiven = self.baseline.forgiven();
            if forgiven > 0 {
                text += &format!("; runs with stock forks left page tables of {forgiven} KiB");
            }
            (Outcome::Passed, text)
        } else {
            (Outcome::Defect, problems.join("; "))
        };
        self.record(results::LEAKS, outcome, note, &Tried::default(), start)
    }

    /// Files that a program begins: should the guest die of it, there is no other record.
    fn begin(&self, program: &str) -> Result<()> {
        self.file(&self.describe(program, Outcome::Begun, String::new(), &Tried::default()))
    }

    fn file(&self, record: &Record) -> Result<()> {
        results::append(&self.file, &Line::Program(Box::new(record.clone())))
    }

    fn describe(&self, program: &str, outcome: Outcome, note: String, tried: &Tried) -> Record {
        Record {
            series: self.env.series.clone(),
            release: self.env.release.clone(),
            boot: self.boot.clone(),
            module: self.module.version().to_owned(),
            date: results::now(),
            suite: self.suite.name().to_owned(),
            program: program.to_owned(),
            outcome,
            stock: tried.runs.first(Fork::Stock),
            armed: tried.runs.first(Fork::Armed),
            runs: tried.runs.count(),
            forks: tried.forks,
            stock_forks: tried.stock_forks.clone(),
            differences: tried.runs.differences(),
            note,
            seconds: 0.0,
        }
    }

    /// Files and prints a result.
    fn record(
        &mut self,
        program: &str,
        outcome: Outcome,
        note: String,
        tried: &Tried,
        start: Instant,
    ) -> Result<()> {
        let mut record = self.describe(program, outcome, note, tried);
        record.seconds = start.elapsed().as_secs_f32();
        let counts = |c: &Counts| format!("{}/{}/{}", c.pass, c.fail, c.skip);
        println!(
            "{} {}: stock {}, armed {}, {} runs, {} async forks, {} chunks parked, {:.0} s{}{}",
            record.outcome.word(),
            record.program,
            counts(&record.stock),
            counts(&record.armed),
            record.runs,
            record.forks.r#async,
            record.forks.parked,
            record.seconds,
            if record.note.is_empty() { "" } else { ": " },
            record.note
        );
        for d in &record.differences {
            let what = if d.defect { "DEFECT" } else { "flaky" };
            println!(
                "  {what}: {}: stock {}, armed {}",
                d.case,
                d.stock.join(" "),
                d.armed.join(" ")
            );
        }
        std::io::stdout().flush()?;
        match record.outcome {
            Outcome::Passed => self.summary.passed += 1,
            Outcome::NotRun | Outcome::Begun => self.summary.skipped += 1,
            Outcome::Defect | Outcome::Broken => self.summary.failed += 1,
        }
        self.file(&record)
    }
}

/// All runs of a program.
#[derive(Default)]
struct Tried {
    runs: Runs,
    /// Of all armed runs.
    forks: Forks,
    /// Why some of them were stock forks all the same.
    stock_forks: String,
    /// What was wrong with the kernel or the module after an armed run.
    complaints: Vec<String>,
}

impl Tried {
    /// Whether another run each way could tell more. With nothing parked it could, too: a program may be over before the added thread has forked.
    fn is_open(&self) -> bool {
        let reruns = match self.runs.count() {
            _ if !self.complaints.is_empty() => return false,
            0 => return true,
            runs => runs - 1,
        };
        let tells_little = self.forks.parked == 0 || !self.runs.differences().is_empty();
        reruns < REPEATS && tells_little || reruns < DOUBTS && self.has_defect()
    }

    /// The cases of an armed run; or what cannot be killed after it, which is a defect.
    fn add_armed(&mut self, ran: Result<Vec<Case>>) -> Result<()> {
        match ran {
            Ok(cases) => self.runs.add(Fork::Armed, cases),
            Err(error) if error.is::<Unkillable>() => self.complaints.push(format!("{error:#}")),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn has_defect(&self) -> bool {
        self.runs.differences().iter().any(|d| d.defect)
    }

    fn judge(&self) -> (Outcome, String) {
        let mut complaints = self.complaints.clone();
        let Forks { merged, killed, .. } = self.forks;
        if merged > 0 {
            complaints.push(format!(
                "{merged} slots of parked chunks were filled past the hooks"
            ));
        }
        if killed > 0 {
            complaints.push(format!(
                "{killed} children were killed, as their memory could not be copied"
            ));
        }
        if !complaints.is_empty() || self.has_defect() {
            return (Outcome::Defect, complaints.join("; "));
        }
        if self.forks.parked == 0 {
            let why = match self.stock_forks.as_str() {
                "" => "no armed fork",
                _ => "nothing parked",
            };
            return (Outcome::NotRun, why.into());
        }
        if self.runs.first(Fork::Stock).pass == 0 {
            return (Outcome::NotRun, "nothing passes with stock forks".into());
        }
        (Outcome::Passed, String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::{Case, Verdict};

    #[test]
    fn without_a_parked_chunk_nothing_has_been_shown() {
        let mut tried = Tried::default();
        let pass = || vec![Case::new("a", Verdict::Pass)];
        tried.runs.add(Fork::Stock, pass());
        tried.runs.add(Fork::Armed, pass());
        assert_eq!(tried.judge(), (Outcome::NotRun, "no armed fork".into()));
        tried.stock_forks = "3 pinned".into();
        assert_eq!(tried.judge(), (Outcome::NotRun, "nothing parked".into()));
        tried.forks.parked = 1;
        assert_eq!(tried.judge().0, Outcome::Passed);
        // A failure counts, parked or not.
        tried.forks.parked = 0;
        tried
            .runs
            .add(Fork::Armed, vec![Case::new("a", Verdict::Fail)]);
        assert_eq!(tried.judge().0, Outcome::Defect);
    }

    /// Runs that differ until one more round of each would be that many.
    fn rounds(stock: Verdict, armed: Verdict, parked: u64) -> usize {
        let mut tried = Tried::default();
        tried.forks.parked = parked;
        while tried.is_open() {
            tried.runs.add(Fork::Stock, vec![Case::new("a", stock)]);
            tried.runs.add(Fork::Armed, vec![Case::new("a", armed)]);
        }
        tried.runs.count()
    }

    #[test]
    fn what_tells_too_little_is_run_again_but_not_for_ever() {
        use Verdict::{Fail, Pass};
        assert_eq!(rounds(Pass, Pass, 1), 1);
        assert_eq!(rounds(Pass, Pass, 0), 1 + REPEATS);
        assert_eq!(rounds(Pass, Fail, 1), 1 + DOUBTS);
        assert_eq!(rounds(Pass, Fail, 0), 1 + DOUBTS);
    }

    #[test]
    fn one_bad_stock_run_does_not_end_the_reruns_early() {
        use Verdict::{Fail, Pass};
        let mut tried = Tried::default();
        tried.forks.parked = 1;
        for (stock, armed) in [(Pass, Fail), (Fail, Pass), (Pass, Pass)] {
            tried.runs.add(Fork::Stock, vec![Case::new("a", stock)]);
            tried.runs.add(Fork::Armed, vec![Case::new("a", armed)]);
            assert!(!tried.has_defect() || tried.runs.count() == 1);
            assert!(tried.is_open());
        }
    }

    #[test]
    fn what_the_module_or_the_kernel_complains_about_is_a_defect() {
        let passed = || {
            let mut tried = Tried::default();
            let pass = || vec![Case::new("a", Verdict::Pass)];
            tried.runs.add(Fork::Stock, pass());
            tried.runs.add(Fork::Armed, pass());
            tried.forks.parked = 1;
            tried
        };
        assert_eq!(passed().judge().0, Outcome::Passed);
        let mut merged = passed();
        merged.forks.merged = 2;
        let note = "2 slots of parked chunks were filled past the hooks".to_owned();
        assert_eq!(merged.judge(), (Outcome::Defect, note));
        let mut killed = passed();
        killed.forks.killed = 1;
        assert_eq!(killed.judge().0, Outcome::Defect);
        let mut tainted = passed();
        tainted.complaints.extend(bad_taint(1 << 9));
        assert_eq!(tainted.judge().0, Outcome::Defect);
        assert!(!tainted.is_open());
    }

    #[test]
    fn processes_that_cannot_be_killed_after_an_armed_run_are_a_defect() {
        let mut tried = Tried::default();
        let unkillable: Result<Vec<Case>> = Err(Unkillable(vec![7]).into());
        tried.add_armed(unkillable.context("Armed")).unwrap();
        let note = "Armed: processes that cannot be killed: [7]".to_owned();
        assert_eq!(tried.judge(), (Outcome::Defect, note));
        let other = Err(anyhow::anyhow!("cannot start"));
        assert!(Tried::default().add_armed(other).is_err());
    }

    #[test]
    fn a_program_that_never_passes_shows_nothing() {
        let mut tried = Tried::default();
        for fork in [Fork::Stock, Fork::Armed] {
            tried.runs.add(fork, vec![Case::new("a", Verdict::Skip)]);
        }
        tried.forks.parked = 1;
        assert_eq!(tried.judge().0, Outcome::NotRun);
    }
}
