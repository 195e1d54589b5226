// SPDX-License-Identifier: MIT OR Apache-2.0
//! `asyncfork-selftest`: do the hooks of the module fire on this kernel?

use clap::Parser;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

/// Shows on the running kernel that the hooks of the asyncfork module fire.
///
/// Forks small helper processes with parked memory and exercises each hook once, but for those of page migration and core
/// dumps. Takes about a second and 16 MiB, and needs nothing but access to the device. Prints a line for each hook and one
/// with the verdict.
#[derive(Parser)]
#[command(
    name = "asyncfork-selftest",
    version,
    after_help = "Exit codes: 0 all exercised hooks fired; 1 a hook did not fire, or memory was wrong; 2 cannot run."
)]
struct Cli {
    /// The module's device
    #[arg(long, value_name = "PATH", env = "ASYNCFORK_DEVICE", default_value_os_t = default_device())]
    device: std::path::PathBuf,
}

fn default_device() -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(asyncfork_uapi::DEVICE.to_bytes()).into()
}

fn main() -> ExitCode {
    let path = Cli::parse().device.into_os_string().into_vec();
    let Ok(path) = CString::new(path) else {
        eprintln!("asyncfork-selftest: the device's path contains a NUL byte");
        return asyncfork_selftest::CANNOT_RUN.into();
    };
    let result = asyncfork_selftest::run(&path);
    match &result {
        // A reader that has gone away changes nothing about the verdict.
        Ok(report) => drop(writeln!(io::stdout(), "{report}")),
        Err(e) => eprintln!("asyncfork-selftest: cannot run: {e}"),
    }
    asyncfork_selftest::exit_code(&result).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
