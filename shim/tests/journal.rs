// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines to the journal begin with their priority, as sd-daemon(3) has it; all others
//! do not.

mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use support::{Fixture, Run};

/// What journald gives to services.
fn socket() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = UnixStream::pair().unwrap();
    (reader.into(), writer.into())
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors, which are nobody's.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// Device and inode number.
fn numbers(file: BorrowedFd<'_>) -> (u64, u64) {
    let metadata = File::from(file.try_clone_to_owned().unwrap()).metadata();
    let metadata = metadata.unwrap();
    (metadata.dev(), metadata.ino())
}

/// What the run writes to standard error, which is this.
fn written(run: &Run<'_>, (reader, writer): (OwnedFd, OwnedFd)) -> String {
    let (mut command, _) = run.command();
    let status = command.stdout(Stdio::null()).stderr(writer).status();
    let status = status.unwrap();
    drop(command);
    assert!(status.success(), "{status}");
    let mut text = String::new();
    File::from(reader).read_to_string(&mut text).unwrap();
    text
}

/// The lines begin so, up to the process id.
#[track_caller]
fn expect_lines(text: &str, begin: &[&str]) {
    let lines: Vec<&str> = text.lines().map(|l| l.split('[').next().unwrap()).collect();
    assert_eq!(lines, begin, "{text}");
}

/// A run that logs a line of "debug" and one of "warn".
fn run(fixture: &Fixture) -> Run<'_> {
    let mut program = fixture.path("forks");
    if !program.exists() {
        program = fixture.compile("forks", &[]);
    }
    let run = fixture.run(program).args(&["fork=fork"]);
    run.without("ASYNCFORK_LOG_FILE")
}

const PLAIN: [&str; 2] = ["asyncfork"; 2];
const WITH_PRIORITY: [&str; 2] = ["<7>asyncfork", "<4>asyncfork"];

#[test]
fn lines_to_the_journal_begin_with_their_priority() {
    for stream in [socket(), pipe()] {
        let fixture = Fixture::new();
        let (dev, ino) = numbers(stream.1.as_fd());
        let run = run(&fixture).with("JOURNAL_STREAM", format!("{dev}:{ino}"));
        expect_lines(&written(&run, stream), &WITH_PRIORITY);
    }
}

#[test]
fn each_level_has_its_priority() {
    let fixture = Fixture::new();
    let stream = socket();
    let (dev, ino) = numbers(stream.1.as_fd());
    let run = run(&fixture)
        .with("JOURNAL_STREAM", format!("{dev}:{ino}"))
        .with("ASYNCFORK_LOG", "info")
        .fake_module(&[]);
    expect_lines(&written(&run, stream), &["<6>asyncfork"]);

    let stream = socket();
    let (dev, ino) = numbers(stream.1.as_fd());
    let run = self::run(&fixture)
        .with("JOURNAL_STREAM", format!("{dev}:{ino}"))
        .with("ASYNCFORK_LOG", "error")
        .with("ASYNCFORK", "require");
    expect_lines(&written(&run, stream), &["<3>asyncfork"]);
}

#[test]
fn another_stream_gets_plain_lines() {
    type Spoil = fn(u64, u64) -> String;
    let spoils: [Spoil; 8] = [
        |dev, ino| format!("{dev}:{}", ino + 1),
        |dev, ino| format!("{}:{ino}", dev + 1),
        |dev, ino| format!("{ino}:{dev}"),
        |dev, ino| format!("{dev}:{ino}:"),
        |dev, ino| format!("{dev} {ino}"),
        |dev, ino| format!("{dev}:{ino}x"),
        |dev, _| format!("{dev}:"),
        |_, _| String::new(),
    ];
    let fixture = Fixture::new();
    for spoil in spoils {
        let stream = pipe();
        let (dev, ino) = numbers(stream.1.as_fd());
        let run = run(&fixture).with("JOURNAL_STREAM", spoil(dev, ino));
        expect_lines(&written(&run, stream), &PLAIN);
    }
    let run = run(&fixture).without("JOURNAL_STREAM");
    expect_lines(&written(&run, pipe()), &PLAIN);
}

#[test]
fn a_log_file_is_not_the_journal() {
    let fixture = Fixture::new();
    let stream = socket();
    let (dev, ino) = numbers(stream.1.as_fd());
    let run = fixture
        .program("forks")
        .args(&["fork=fork"])
        .with("JOURNAL_STREAM", format!("{dev}:{ino}"));
    assert_eq!(written(&run, stream), "");
    let log = std::fs::read_to_string(fixture.path("log")).unwrap();
    expect_lines(&log, &PLAIN);

    // Where it cannot be opened, the line goes to standard error.
    let stream = socket();
    let (dev, ino) = numbers(stream.1.as_fd());
    let run = run
        .with("JOURNAL_STREAM", format!("{dev}:{ino}"))
        .with("ASYNCFORK_LOG_FILE", fixture.path("no/such/log"));
    expect_lines(&written(&run, stream), &WITH_PRIORITY);
}

/// A service's shell may send a program's standard error elsewhere.
#[test]
fn a_program_whose_standard_error_is_another_file_by_then_writes_plain_lines() {
    let fixture = Fixture::new();
    let (journal, file) = (socket(), fixture.path("errors"));
    let (dev, ino) = numbers(journal.1.as_fd());
    let run = run(&fixture).with("JOURNAL_STREAM", format!("{dev}:{ino}"));
    let (mut command, _) = run.command();
    command.stdout(Stdio::null());
    let status = command.stderr(File::create(&file).unwrap()).status();
    assert!(status.unwrap().success());
    expect_lines(&std::fs::read_to_string(file).unwrap(), &PLAIN);
}
