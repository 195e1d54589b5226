// SPDX-License-Identifier: MIT OR Apache-2.0
//! Standard output: text, in colour on a terminal only, or JSON.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;

use anstyle::{AnsiColor, Color, Style};
use anyhow::Result;
use comfy_table::{presets, ContentArrangement, Table};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use serde::Serialize;
use serde_json::{json, Value};

/// Version of what `--json` prints. A new field does not change it; a field that goes,
/// or means something else, does.
pub const SCHEMA: u32 = 1;

/// Good news.
pub const GOOD: Style = color(AnsiColor::Green);
/// Bad news.
pub const BAD: Style = color(AnsiColor::Red).bold();
/// In between.
pub const WARN: Style = color(AnsiColor::Yellow);
/// Beside the point.
pub const DIM: Style = Style::new().dimmed();

const fn color(color: AnsiColor) -> Style {
    Style::new().fg_color(Some(Color::Ansi(color)))
}

/// `text` in that style.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Where results go.
pub struct Out<'a> {
    to: Box<dyn Write + 'a>,
    json: bool,
    command: &'static str,
}

impl<'a> Out<'a> {
    /// Results of `command`; `to` takes text with colours as it is to appear.
    pub fn new(to: Box<dyn Write + 'a>, json: bool, command: &'static str) -> Self {
        Self { to, json, command }
    }

    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a line of text, in either mode.
    ///
    /// # Errors
    /// Those of writing.
    pub fn line(&mut self, text: impl Display) -> Result<()> {
        writeln!(self.to, "{text}")?;
        Ok(())
    }

    /// Prints text as it is, in either mode.
    ///
    /// # Errors
    /// Those of writing.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes)?;
        Ok(())
    }

    /// Prints an object as one of JSON, with schema and command.
    ///
    /// # Errors
    /// Those of writing.
    pub fn object(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.enveloped(value)?)?;
        self.line(text)
    }

    /// The same in one line, for streams.
    ///
    /// # Errors
    /// Those of writing.
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(&self.enveloped(value)?)?;
        self.line(text)?;
        self.flush()
    }

    fn enveloped(&self, value: &impl Serialize) -> Result<Value> {
        let mut object = json!({"schema": SCHEMA, "command": self.command});
        if let (Value::Object(to), Value::Object(from)) =
            (&mut object, serde_json::to_value(value)?)
        {
            to.extend(from);
        }
        Ok(object)
    }

    /// Lets everything out.
    ///
    /// # Errors
    /// Those of writing.
    pub fn flush(&mut self) -> Result<()> {
        self.to.flush()?;
        Ok(())
    }
}

/// A table without borders.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Text of others' making, fit for one line of a terminal.
pub fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(plain).collect()
}

/// Whether an error only says that the reader of our output has gone.
pub fn reader_is_gone(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Whether what is written there would reach nobody: the other end of the pipe is closed, the
/// terminal gone.
pub fn nobody_reads(output: impl AsFd) -> bool {
    let mut fds = [PollFd::new(output.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// Nanoseconds as people read them: three digits and a unit.
pub fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..=9_999 => return format!("{ns} ns"),
        10_000..=9_999_999 => (ns as f64 / 1e3, "us"),
        10_000_000..=9_999_999_999 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = usize::from(value < 100.0);
    format!("{value:.digits$} {unit}")
}

/// Bytes as people read them.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.iter().find(|(_, shift)| bytes >> shift > 0);
    unit.map_or(format!("{bytes} B"), |(unit, shift)| {
        let value = bytes as f64 / (1u64 << shift) as f64;
        format!("{value:.1} {unit}").replace(".0 ", " ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_whose_reader_is_gone_has_nobody_who_reads() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert!(!nobody_reads(&writer));
        drop(reader);
        assert!(nobody_reads(&writer));
    }

    #[test]
    fn quantities_have_units() {
        assert_eq!(duration(950), "950 ns");
        assert_eq!(duration(12_345), "12.3 us");
        assert_eq!(duration(335_000_000), "335 ms");
        assert_eq!(duration(12_000_000_000), "12.0 s");
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(17), "17 B");
    }

    #[test]
    fn nothing_speaks_to_the_terminal_but_we() {
        assert_eq!(plain("a\x1b[31mb\nc\u{9b}d\u{e4}"), "a?[31mb?c?d\u{e4}");
    }

    #[test]
    fn json_carries_schema_and_command() {
        let mut text = Vec::new();
        let mut out = Out::new(Box::new(&mut text), true, "status");
        out.json_line(&json!({"state": "on"})).unwrap();
        drop(out);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"command\":\"status\",\"schema\":1,\"state\":\"on\"}\n"
        );
    }
}
