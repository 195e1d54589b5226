// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the output of a command in a guest goes.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// Where the command's output goes while it runs.
pub struct Streams {
    pub(super) out: Box<dyn Write>,
    pub(super) err: Box<dyn Write>,
    prefix: String,
}

impl Streams {
    /// This process's own.
    pub fn inherit() -> Self {
        Streams {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            prefix: String::new(),
        }
    }

    /// This process's own, in whole lines that begin with `prefix`: for guests
    /// that run side by side.
    pub fn prefixed(prefix: &str) -> Self {
        Streams {
            out: Box::new(Lines::new(io::stdout(), prefix)),
            err: Box::new(Lines::new(io::stderr(), prefix)),
            prefix: prefix.to_owned(),
        }
    }

    /// The same, with a copy of the output, not of the errors, in a file.
    pub fn copied_to(self, file: File) -> Self {
        Streams {
            out: Box::new(Copied { to: self.out, file }),
            ..self
        }
    }

    /// Nowhere; the run directory has it.
    pub fn sink() -> Self {
        Streams {
            out: Box::new(io::sink()),
            err: Box::new(io::sink()),
            prefix: String::new(),
        }
    }

    /// A word of our own.
    pub(super) fn say(&self, text: impl fmt::Display) {
        eprintln!("{}vm: {text}", self.prefix);
    }
}

/// Writes to two places.
struct Copied<W: Write> {
    to: W,
    file: File,
}

impl<W: Write> Write for Copied<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.file.write_all(&bytes[..count])?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes whole lines, each in one piece and with a prefix.
struct Lines<W: Write> {
    to: W,
    prefix: String,
    /// The line that has no end yet.
    line: Vec<u8>,
}

impl<W: Write> Lines<W> {
    fn new(to: W, prefix: &str) -> Self {
        Lines {
            to,
            prefix: prefix.to_owned(),
            line: prefix.as_bytes().to_vec(),
        }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.to.write_all(&self.line)?;
                self.line.truncate(self.prefix.len());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Drop for Lines<W> {
    fn drop(&mut self) {
        if self.line.len() > self.prefix.len() {
            self.line.push(b'\n');
            // Nobody is left to be told.
            let _ = self.to.write_all(&self.line);
        }
    }
}

/// Copies what a growing file got since the last time.
pub(super) struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    pub(super) fn new(path: PathBuf) -> Self {
        Tail { path, file: None }
    }

    /// Whether there was anything new.
    pub(super) fn copy(&mut self, to: &mut dyn Write) -> io::Result<bool> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let copied = io::copy(file, to)?;
        if copied > 0 {
            to.flush()?;
        }
        Ok(copied > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn guests_side_by_side_write_whole_lines() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, "6.1 | ");
        for bytes in ["ok a\nok", " b\n\nthe ", "end"] {
            lines.write_all(bytes.as_bytes()).unwrap();
        }
        drop(lines);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "6.1 | ok a\n6.1 | ok b\n6.1 | \n6.1 | the end\n"
        );
    }

    #[test]
    fn a_copy_has_every_byte_that_was_written() {
        /// Takes three bytes at a time.
        struct Slow(Vec<u8>);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.write(&bytes[..bytes.len().min(3)])
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let path = std::env::temp_dir().join(format!("asyncfork-copy-{}", std::process::id()));
        let mut copied = Copied {
            to: Slow(Vec::new()),
            file: File::create(&path).unwrap(),
        };
        copied.write_all(b"one two three").unwrap();
        assert_eq!(copied.to.0, b"one two three");
        assert_eq!(fs::read(&path).unwrap(), b"one two three");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_tail_delivers_every_byte_once() {
        let dir = std::env::temp_dir().join(format!("asyncfork-tail-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("out");
        let (mut tail, mut seen) = (Tail::new(path.clone()), Vec::new());
        assert!(!tail.copy(&mut seen).unwrap());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one ").unwrap();
        assert!(tail.copy(&mut seen).unwrap());
        assert!(!tail.copy(&mut seen).unwrap());
        file.write_all(b"two").unwrap();
        assert!(tail.copy(&mut seen).unwrap());
        assert_eq!(seen, b"one two");
        fs::remove_dir_all(&dir).unwrap();
    }
}
