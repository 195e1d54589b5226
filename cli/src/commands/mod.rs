// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands, one a file.

pub mod bench;
pub mod enable;
pub mod enroll;
pub mod explain;
pub mod hidden;
pub mod metrics;
pub mod pages;
pub mod run;
pub mod status;
pub mod switch;
pub mod watch;

use anyhow::Result;

use crate::cli::Command;
use crate::ctx::Ctx;
use crate::doctor;
use crate::exit::Exit;

/// Does what the command line says.
///
/// # Errors
/// With what to do about it, and an exit code.
pub fn dispatch(ctx: &mut Ctx<'_>, command: Command) -> Result<Exit> {
    match command {
        Command::Run(args) => run::run(ctx, &args),
        Command::Doctor(args) => doctor::run(ctx, &args),
        Command::Status => status::run(ctx),
        Command::Watch(args) => watch::run(ctx, &args),
        Command::Explain(args) => explain::run(ctx, &args),
        Command::On(args) => switch::run(ctx, true, &args),
        Command::Off(args) => switch::run(ctx, false, &args),
        Command::Enable(args) => enable::enable(ctx, &args),
        Command::Disable(args) => enable::disable(ctx, &args),
        Command::Enroll(args) => enroll::enroll(ctx, &args),
        Command::Unenroll(args) => enroll::unenroll(ctx, &args),
        Command::Enrolled => enroll::enrolled(ctx),
        Command::Metrics(args) => metrics::run(ctx, &args),
        Command::Bench(args) => bench::run(ctx, &args),
        Command::Completions(args) => pages::completions(ctx, &args),
        Command::Man(args) => pages::man(ctx, &args),
        Command::MeasureFork(args) => hidden::measure_fork(ctx, &args),
        Command::SelfTest => hidden::self_test(ctx),
    }
}
