// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process of its own for a measurement: the one that forks.

use std::io::{self, BufRead, BufReader, PipeWriter};

use anyhow::{ensure, Result};
use asyncfork_host::sys::{self, cvt, Exit};

/// Runs `body` in a child, where it writes lines; `line` gets each of them, here and as soon as it is written.
///
/// # Errors
/// The body failed (the child prints why), or `line` did.
pub fn in_child(
    body: impl FnOnce(&mut PipeWriter) -> Result<()>,
    mut line: impl FnMut(String) -> Result<()>,
) -> Result<()> {
    let (read, mut write) = io::pipe()?;
    // SAFETY: the child only runs the body, and ends; the C library makes malloc usable in it.
    let pid = cvt(unsafe { libc::fork() })?;
    if pid == 0 {
        drop(read);
        let result = body(&mut write);
        if let Err(e) = &result {
            eprintln!("{e:#}");
        }
        sys::exit_now(i32::from(result.is_err()));
    }
    drop(write);
    for written in BufReader::new(read).lines() {
        line(written?)?;
    }
    expect_success(pid, "the forking process")
}

/// Waits for a child, which is to end with status 0; `who` names it in the error.
///
/// # Errors
/// It ends otherwise.
pub fn expect_success(pid: i32, who: &str) -> Result<()> {
    let exit = sys::wait(pid)?;
    ensure!(exit == Exit::Code(0), "{who} ended with {exit:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_lines_of_a_child_arrive_and_so_does_its_failure() {
        let mut lines = Vec::new();
        let mut run = |fail: bool| {
            in_child(
                |out| {
                    writeln!(out, "1")?;
                    writeln!(out, "2")?;
                    ensure!(!fail, "as it is to be");
                    Ok(())
                },
                |line| {
                    lines.push(line);
                    Ok(())
                },
            )
        };
        run(false).unwrap();
        let error = run(true).unwrap_err().to_string();
        assert_eq!(error, "the forking process ended with Code(1)");
        assert_eq!(lines, ["1", "2", "1", "2"]);
    }
}
