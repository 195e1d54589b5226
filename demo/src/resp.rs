// SPDX-License-Identifier: MIT OR Apache-2.0
//! As much of the Redis protocol (RESP2) as a client on a unix socket needs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{bail, Context, Result};

/// One reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+`: a status such as `OK`.
    Simple(String),
    /// `-`: an error, its code first (`ERR`, `LOADING`, ...).
    Error(String),
    /// `:`
    Int(i64),
    /// `$`: a value; `None` for a missing one.
    Bulk(Option<Vec<u8>>),
    /// `*`
    Array(Vec<Reply>),
}

impl Reply {
    /// The text of a status or a value.
    ///
    /// # Errors
    /// The server's own error, or a reply of another kind.
    pub fn text(self) -> Result<String> {
        match self {
            Reply::Simple(s) => Ok(s),
            Reply::Bulk(Some(b)) => Ok(String::from_utf8(b)?),
            Reply::Error(e) => bail!("the server says: {e}"),
            other => bail!("the server sent {other:?} where text was expected"),
        }
    }
}

/// Appends a command to `out`.
pub fn encode(out: &mut Vec<u8>, args: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// Parses one reply from the front of `buf`: it and its length in bytes, or
/// `None` while it is not complete.
///
/// # Errors
/// Bytes that are no RESP2 reply.
pub fn decode(buf: &[u8]) -> Result<Option<(Reply, usize)>> {
    let Some(eol) = buf.windows(2).position(|w| w == b"\r\n") else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&buf[1..eol.max(1)]).context("a reply line is not text")?;
    let body = eol + 2;
    let reply = match buf[0] {
        b'+' => (Reply::Simple(line.into()), body),
        b'-' => (Reply::Error(line.into()), body),
        b':' => (Reply::Int(line.parse()?), body),
        b'$' if line == "-1" => (Reply::Bulk(None), body),
        b'$' => {
            let end = body + line.parse::<usize>()?;
            if buf.len() < end + 2 {
                return Ok(None);
            }
            (Reply::Bulk(Some(buf[body..end].to_vec())), end + 2)
        }
        b'*' => {
            let mut items = Vec::new();
            let mut at = body;
            for _ in 0..line.parse::<usize>()? {
                let Some((item, len)) = decode(&buf[at..])? else {
                    return Ok(None);
                };
                items.push(item);
                at += len;
            }
            (Reply::Array(items), at)
        }
        other => bail!("byte {other:#x} does not start a reply"),
    };
    Ok(Some(reply))
}

/// A blocking connection.
pub struct Client {
    stream: UnixStream,
    buf: Vec<u8>,
}

impl Client {
    /// Connects to the server's unix socket.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        Ok(Self {
            stream,
            buf: Vec::new(),
        })
    }

    /// Sends `bytes` and reads `replies` replies.
    ///
    /// # Errors
    /// A broken connection. An error reply is a reply.
    pub fn exchange(&mut self, bytes: &[u8], replies: usize) -> Result<Vec<Reply>> {
        self.stream
            .write_all(bytes)
            .context("the server does not take requests")?;
        (0..replies).map(|_| self.read_reply()).collect()
    }

    /// Runs one command, words separated by blanks.
    ///
    /// # Errors
    /// A broken connection, or the server's error.
    pub fn run(&mut self, command: &str) -> Result<Reply> {
        self.run_all(&[command])
            .map(|mut replies| replies.remove(0))
    }

    /// Sends the commands in one write; the server executes them one after the
    /// other. Replies in their order.
    ///
    /// # Errors
    /// A broken connection, or the first error of the server.
    pub fn run_all(&mut self, commands: &[&str]) -> Result<Vec<Reply>> {
        let mut bytes = Vec::new();
        for command in commands {
            let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            encode(&mut bytes, &words);
        }
        let replies = self.exchange(&bytes, commands.len())?;
        for (command, reply) in commands.iter().zip(&replies) {
            if let Reply::Error(e) = reply {
                bail!("the server answers {command} with: {e}");
            }
        }
        Ok(replies)
    }

    fn read_reply(&mut self) -> Result<Reply> {
        let mut chunk = [0; 64 << 10];
        loop {
            if let Some((reply, len)) = decode(&self.buf)? {
                self.buf.drain(..len);
                return Ok(reply);
            }
            let n = self
                .stream
                .read(&mut chunk)
                .context("the server does not answer")?;
            if n == 0 {
                bail!("the server closed the connection");
            }
            self.buf.extend_from_slice(&chunk[..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_reply_is_parsed() {
        let cases: [(&[u8], Reply); 6] = [
            (b"+OK\r\n", Reply::Simple("OK".into())),
            (b"-ERR no\r\n", Reply::Error("ERR no".into())),
            (b":-42\r\n", Reply::Int(-42)),
            (b"$-1\r\n", Reply::Bulk(None)),
            (b"$4\r\na\r\nb\r\n", Reply::Bulk(Some(b"a\r\nb".to_vec()))),
            (
                b"*2\r\n$1\r\nx\r\n:7\r\n",
                Reply::Array(vec![Reply::Bulk(Some(b"x".to_vec())), Reply::Int(7)]),
            ),
        ];
        for (bytes, want) in cases {
            let mut more = bytes.to_vec();
            more.extend_from_slice(b"+NEXT\r\n");
            assert_eq!(decode(&more).unwrap(), Some((want, bytes.len())));
        }
    }

    #[test]
    fn a_reply_cut_anywhere_is_incomplete() {
        for bytes in [
            b"*2\r\n$3\r\nabc\r\n:7\r\n".as_slice(),
            b"+OK\r\n",
            b"$0\r\n\r\n",
        ] {
            for end in 0..bytes.len() {
                assert_eq!(
                    decode(&bytes[..end]).unwrap(),
                    None,
                    "{end} bytes of {bytes:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [b"OK\r\n".as_slice(), b"$x\r\n", b"\r\n", b":1.5\r\n"] {
            assert!(decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn commands_are_arrays_of_values() {
        let mut out = Vec::new();
        encode(&mut out, &[b"SET", b"k", b"\r\n"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n");
    }
}
