// SPDX-License-Identifier: MIT OR Apache-2.0
//! `asyncfork`: see the library of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    asyncfork_cli::main()
}
