// SPDX-License-Identifier: MIT OR Apache-2.0
//! No signal comes of a log line, none from elsewhere is lost by it, and it never
//! waits.
//!
//! The program is `tests/c/signals.c`, whose forks check that signals, errno and
//! descriptors are as before.

mod support;

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use support::{Finished, Fixture, Run};

const LINE: &str = "stock fork: ";

/// What standard error can be that has another end.
const CHANNELS: [&str; 6] = ["pipe", "stream", "seqpacket", "datagram", "tcp", "terminal"];

/// What a program may have done with the signal before, and what of it is
/// still so afterwards.
const CONDITIONS: [&str; 10] = [
    "",
    "ignore=SIG",
    "handle=SIG",
    "block=SIG",
    "block=SIG raise=SIG",
    "block=SIG kill=SIG",
    "handle=SIG block=SIG",
    "handle=SIG block=SIG raise=SIG",
    "ignore=SIG block=SIG raise=SIG",
    "ignore=SIG block=SIG kill=SIG",
];

/// `tests/c/signals.c`, compiled once.
struct Scene {
    fixture: Fixture,
    program: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let fixture = Fixture::new();
        let program = fixture.compile("signals", &[]);
        Self { fixture, program }
    }

    fn path(&self, name: &str) -> String {
        self.fixture.path(name).to_str().unwrap().to_owned()
    }

    /// These steps, with lines to a new log file.
    fn log_file(&self, steps: &str) -> Run<'_> {
        let log = self.fixture.path("log");
        if log.is_file() {
            fs::remove_file(log).unwrap();
        }
        let steps: Vec<&str> = steps.split_whitespace().collect();
        self.fixture.run(&self.program).args(&steps)
    }

    /// These steps, with lines to standard error.
    fn stderr(&self, steps: &str) -> Run<'_> {
        self.log_file(steps).without("ASYNCFORK_LOG_FILE")
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        let name = CString::new(path.as_str()).unwrap();
        // SAFETY: the name is NUL-terminated.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        path
    }
}

fn lines(path: impl AsRef<Path>) -> usize {
    let log = fs::read(path).unwrap();
    String::from_utf8_lossy(&log).matches(LINE).count()
}

/// Each of [`CONDITIONS`] of `signal`.
fn conditions(signal: &str) -> impl Iterator<Item = String> + '_ {
    CONDITIONS
        .iter()
        .map(move |condition| condition.replace("SIG", signal))
}

/// A signal that is pending already cannot be told from what a write raises: the
/// line may be left out then.
fn may_cost_lines(condition: &str) -> bool {
    condition.contains("raise=") || condition.contains("kill=")
}

#[track_caller]
fn expect_lines(got: usize, wanted: usize, condition: &str) {
    assert!(
        got == wanted || got < wanted && may_cost_lines(condition),
        "{got} lines, not {wanted}: {condition}"
    );
}

/// It happens when a line is about to be written.
#[track_caller]
fn expect_race(finished: &Finished, condition: &str) {
    let happened = finished.stdout.starts_with("it happened\n");
    assert!(happened || may_cost_lines(condition), "{finished:#?}");
    assert!(
        finished.stdout.ends_with("forked\nforked\n"),
        "{finished:#?}"
    );
}

mod a_file_at_its_size_limit {
    use super::*;

    #[test]
    fn takes_no_line_from_standard_error_and_raises_nothing() {
        let scene = Scene::new();
        for condition in conditions("XFSZ") {
            let file = scene.path("stderr");
            let _ = fs::remove_file(&file);
            let finished = scene
                .stderr(&format!(
                    "stderr=file:{file} exec {condition} fsize=10 times=2 fork=fork fork=_Fork \
                     fsize=-1 fork=fork"
                ))
                .succeed();
            finished.expect_stdout(&"forked\n".repeat(3));
            // The last one.
            expect_lines(lines(&file), 1, &condition);
        }
    }

    #[test]
    fn takes_no_line_as_the_log_file_and_raises_nothing() {
        let scene = Scene::new();
        for condition in conditions("XFSZ") {
            let finished = scene
                .log_file(&format!(
                    "{condition} fsize=10 times=2 fork=fork fsize=-1 fork=fork"
                ))
                .succeed_loaded();
            finished.expect_stdout(&"forked\n".repeat(2));
            expect_lines(finished.log_lines(LINE), 1, &condition);
        }
    }

    #[test]
    fn may_be_so_from_the_start() {
        let scene = Scene::new();
        for condition in [
            "",
            "ignore=XFSZ",
            "block=XFSZ raise=XFSZ",
            "block=XFSZ kill=XFSZ",
        ] {
            let file = scene.path("stderr");
            scene
                .stderr(&format!(
                    "stderr=file:{file} {condition} fsize=0 exec fork=fork"
                ))
                .succeed()
                .expect_stdout("forked\n");
            scene
                .log_file(&format!("{condition} fsize=0 exec fork=fork"))
                .succeed_loaded()
                .expect_stdout("forked\n")
                .expect_log(0, LINE);
        }
    }

    /// What fits of one line is written without a signal; the next is too much.
    #[test]
    fn may_have_room_for_a_part_of_the_line() {
        let scene = Scene::new();
        let file = scene.path("stderr");
        for handled in ["", "handle=XFSZ"] {
            fs::write(&file, [b'.'; 4000]).unwrap();
            scene
                .stderr(&format!(
                    "stderr=file:{file} exec {handled} fsize=4500 times=20 fork=fork"
                ))
                .succeed()
                .expect_stdout("forked\n");
            assert!(fs::metadata(&file).unwrap().len() <= 4500);
        }
    }

    #[test]
    fn still_raises_the_signal_at_the_programs_own_write() {
        let scene = Scene::new();
        let file = scene.path("stderr");
        scene
            .stderr(&format!(
                "stderr=file:{file} exec handle=XFSZ fsize=1 fork=fork own=XFSZ fork=_Fork own=XFSZ"
            ))
            .succeed();
    }

    /// EFBIG without a signal: nothing may be waited for.
    #[test]
    fn may_be_at_the_file_systems_own_limit() {
        let scene = Scene::new();
        let file = scene.path("stderr");
        for condition in conditions("XFSZ") {
            scene
                .stderr(&format!(
                    "stretch={file} stderr=file:{file} exec {condition} fork=fork"
                ))
                .succeed()
                .expect_stdout("forked\n");
        }
    }

    #[test]
    fn may_become_so_when_the_library_has_looked() {
        let scene = Scene::new();
        for condition in conditions("XFSZ") {
            let file = scene.path("stderr");
            let race = format!("{condition} race=fsize fork=fork fork=fork");
            for run in [
                scene.stderr(&format!("stderr=file:{file} exec {race}")),
                scene.log_file(&race),
            ] {
                expect_race(&run.succeed(), &condition);
            }
        }
    }

    /// After an armed fork the line is written in the parent.
    #[test]
    fn does_not_mind_an_armed_fork() {
        let scene = Scene::new();
        for condition in conditions("XFSZ") {
            let finished = scene
                .log_file(&format!(
                    "{condition} fsize=10 times=2 fork=fork fsize=-1 fork=fork"
                ))
                .fake_module(&[])
                .succeed_loaded();
            finished.expect_stdout(&"forked\n".repeat(2));
            expect_lines(finished.log_lines("async fork of "), 1, &condition);
        }
    }
}

mod a_terminal_that_stops_its_background {
    use super::*;

    #[test]
    fn does_not_stop_a_server_for_a_line() {
        let scene = Scene::new();
        let run = |steps: &str| {
            let steps = format!("background=tostop exec {steps} times=2 fork=fork fork=_Fork");
            scene
                .stderr(&steps)
                .succeed()
                .expect_stdout("forked\nforked\n");
        };
        conditions("TTOU").for_each(|condition| run(&condition));
        // Another thread would take what is pending at the process.
        conditions("TTOU")
            .filter(|condition| !condition.contains("kill="))
            .for_each(|condition| run(&format!("{condition} bystanders")));
    }

    #[test]
    fn still_stops_it_for_its_own_output() {
        let scene = Scene::new();
        for threads in ["", "bystanders"] {
            scene
                .stderr(&format!("background=tostop exec {threads} fork=fork write"))
                .succeed()
                .expect_stdout("forked\nstopped by signal 22\nwrote\n");
        }
        scene
            .stderr("background=tostop exec handle=TTOU fork=fork own=TTOU fork=fork own=TTOU")
            .succeed()
            .expect_stdout("forked\nforked\n");
    }

    #[test]
    fn may_be_the_log_file() {
        let scene = Scene::new();
        for condition in conditions("TTOU") {
            scene
                .log_file(&format!("background=tostop {condition} times=2 fork=fork"))
                .with("ASYNCFORK_LOG_FILE", "/dev/tty")
                .succeed()
                .expect_stdout("forked\n");
        }
    }

    #[test]
    fn may_become_so_when_the_library_has_looked() {
        let scene = Scene::new();
        for condition in conditions("TTOU") {
            let finished = scene
                .stderr(&format!(
                    "background exec {condition} race=tostop fork=fork fork=fork"
                ))
                .succeed();
            expect_race(&finished, &condition);
            assert!(!finished.stdout.contains("stopped"), "{finished:#?}");
        }
    }

    #[test]
    fn does_not_mind_an_armed_fork() {
        let scene = Scene::new();
        scene
            .stderr("background=tostop exec times=2 fork=fork")
            .fake_module(&[])
            .succeed()
            .expect_stdout("forked\n");
    }
}

/// Lines to the background of a terminal that does not mind are written.
#[test]
fn a_terminal_gets_the_lines() {
    let scene = Scene::new();
    let finished = scene.stderr("background exec fork=fork").succeed();
    finished.expect_stdout("forked\n");
    // One of the program in the foreground.
    assert_eq!(finished.all_lines(LINE), 2, "{finished:#?}");
}

/// Neither as standard error nor as log file.
#[test]
fn no_terminal_becomes_the_programs() {
    let scene = Scene::new();
    for log in ["", "log=terminal"] {
        scene
            .stderr(&format!(
                "stderr=terminal {log} session exec no-terminal times=2 fork=fork no-terminal"
            ))
            .succeed()
            .expect_stdout("forked\n");
    }
}

mod a_reader_that_is_gone {
    use super::*;

    const GONE: [&str; 12] = [
        "stderr=pipe far=close",
        "stderr=stream far=close",
        "stderr=stream far=deaf",
        "stderr=stream far=mute",
        "stderr=seqpacket far=close",
        "stderr=seqpacket far=mute",
        "stderr=datagram far=close",
        "stderr=datagram far=mute",
        "stderr=tcp far=close",
        "stderr=tcp far=reset",
        "stderr=tcp far=mute",
        "stderr=terminal far=close",
    ];

    #[test]
    fn costs_the_line_only() {
        let scene = Scene::new();
        for gone in GONE {
            for condition in conditions("PIPE") {
                scene
                    .stderr(&format!(
                        "{gone} exec {condition} times=3 fork=fork fork=_Fork"
                    ))
                    .succeed()
                    .expect_stdout("forked\nforked\n");
            }
        }
    }

    #[test]
    fn may_go_after_the_start() {
        let scene = Scene::new();
        for gone in GONE {
            let (stderr, far) = gone.split_once(' ').unwrap();
            for condition in ["", "handle=PIPE", "block=PIPE raise=PIPE"] {
                scene
                    .stderr(&format!(
                        "{stderr} exec {condition} {far} times=3 fork=fork"
                    ))
                    .succeed()
                    .expect_stdout("forked\n");
            }
        }
    }

    #[test]
    fn may_go_when_the_library_has_looked() {
        let scene = Scene::new();
        for stderr in CHANNELS {
            for condition in conditions("PIPE") {
                let finished = scene
                    .stderr(&format!(
                        "stderr={stderr} exec {condition} race=close fork=fork fork=fork"
                    ))
                    .succeed();
                expect_race(&finished, &condition);
            }
        }
    }

    #[test]
    fn still_raises_the_signal_at_the_programs_own_write() {
        let scene = Scene::new();
        for gone in ["pipe far=close", "stream far=close", "tcp far=mute"] {
            scene
                .stderr(&format!(
                    "stderr={gone} exec handle=PIPE fork=fork own=PIPE fork=_Fork own=PIPE"
                ))
                .succeed();
        }
    }

    #[test]
    fn does_not_mind_an_armed_fork() {
        let scene = Scene::new();
        for gone in GONE {
            scene
                .stderr(&format!("{gone} exec handle=PIPE times=2 fork=fork"))
                .fake_module(&[])
                .succeed()
                .expect_stdout("forked\n");
        }
    }

    /// Then standard error has to do.
    #[test]
    fn of_the_log_file_costs_nothing() {
        let scene = Scene::new();
        let fifo = scene.fifo("fifo");
        for condition in conditions("PIPE") {
            let finished = scene
                .log_file(&format!("{condition} times=3 fork=fork"))
                .with("ASYNCFORK_LOG_FILE", &fifo)
                .succeed();
            finished.expect_stdout("forked\n");
            expect_lines(finished.all_lines(LINE), 3, &condition);
        }
    }

    #[test]
    fn of_the_log_file_may_go_when_the_library_has_looked() {
        let scene = Scene::new();
        let fifo = scene.fifo("fifo");
        for condition in conditions("PIPE") {
            let finished = scene
                .log_file(&format!(
                    "reader={fifo} {condition} race=close fork=fork fork=fork"
                ))
                .with("ASYNCFORK_LOG_FILE", &fifo)
                .succeed();
            expect_race(&finished, &condition);
        }
    }
}

/// Nobody reads, and there is room for no line or a part of one. If a line
/// waits, the program dies of SIGALRM.
mod a_full_output {
    use super::*;

    #[test]
    fn costs_the_line_only() {
        let scene = Scene::new();
        let run = |steps: &str| {
            scene
                .stderr(&format!("{steps} times=5 fork=fork fork=_Fork"))
                .succeed()
                .expect_stdout("forked\nforked\n");
        };
        for stderr in CHANNELS {
            run(&format!("stderr={stderr} exec fill"));
            run(&format!("stderr={stderr} fill exec"));
        }
        // Full after two lines, on kernels that take a line for a number.
        run("stderr=eventfd exec");
    }

    #[test]
    fn may_have_room_for_a_part_of_the_line() {
        let scene = Scene::new();
        let long = scene.path(&"long".repeat(60));
        for stderr in CHANNELS {
            let mut steps = format!("stderr={stderr} exec");
            for room in [1, 50, 200, 300, 500, 600, 1000, 2000, 4095] {
                steps += &format!(" fill take={room} times=4 fork=fork");
            }
            scene
                .stderr(&steps)
                .with("ASYNCFORK_DEVICE", &long)
                .succeed()
                .expect_stdout(&"forked\n".repeat(9));
        }
    }

    #[test]
    fn may_fill_when_the_library_has_looked() {
        let scene = Scene::new();
        let without_nowait = "pipe deny=pwritev2:95";
        for stderr in CHANNELS.into_iter().chain([without_nowait]) {
            scene
                .stderr(&format!(
                    "stderr={stderr} exec race=fill fork=fork fork=fork"
                ))
                .succeed()
                .expect_stdout("it happened\nforked\nforked\n");
        }
    }

    #[test]
    fn may_be_a_stopped_terminal() {
        let scene = Scene::new();
        for steps in ["exec freeze fork=fork", "freeze exec fork=fork"] {
            scene
                .stderr(&format!("stderr=terminal {steps}"))
                .succeed()
                .expect_stdout("forked\n");
        }
        scene
            .stderr("stderr=terminal exec race=freeze fork=fork fork=fork")
            .succeed()
            .expect_stdout("it happened\nforked\nforked\n");
    }

    #[test]
    fn may_be_the_log_file() {
        let scene = Scene::new();
        let fifo = scene.fifo("fifo");
        let run = |steps: &str| {
            scene
                .log_file(&format!("reader={fifo} {steps}"))
                .with("ASYNCFORK_LOG_FILE", &fifo)
                .succeed()
        };
        run(&format!("fill={fifo} times=3 fork=fork")).expect_stdout("forked\n");
        run("race=fill fork=fork fork=fork").expect_stdout("it happened\nforked\nforked\n");
        scene
            .stderr("stderr=terminal log=terminal exec fill times=3 fork=fork freeze fork=fork")
            .succeed()
            .expect_stdout("forked\nforked\n");
    }

    /// The line for which there is room is written.
    #[test]
    fn gets_lines_again_when_it_is_read() {
        let scene = Scene::new();
        for stderr in CHANNELS {
            let finished = scene
                .stderr(&format!(
                    "stderr={stderr} exec fill fork=fork show fork=fork show"
                ))
                .succeed();
            assert_eq!(finished.stdout.matches(LINE).count(), 1, "{finished:#?}");
        }
    }
}

/// Opening it to write would wait for its holder.
#[test]
fn a_log_file_under_a_lease_is_not_waited_for() {
    let scene = Scene::new();
    let file = scene.path("leased");
    fs::write(&file, "").unwrap();
    let finished = scene
        .log_file(&format!("lease={file} times=2 fork=fork"))
        .with("ASYNCFORK_LOG_FILE", &file)
        .succeed();
    finished.expect_stdout("forked\n");
    assert_eq!(finished.all_lines(LINE), 2, "{finished:#?}");
}

#[test]
fn a_standard_error_that_takes_nothing_is_harmless() {
    let scene = Scene::new();
    let dir = scene.path("");
    let file = scene.path("file");
    fs::write(&file, "").unwrap();
    for stderr in [
        "closed",
        "file:/dev/full",
        &format!("readonly:{file}"),
        &format!("readonly:{dir}"),
        &format!("path:{dir}"),
    ] {
        scene
            .stderr(&format!(
                "stderr={stderr} exec times=2 fork=fork fork=_Fork"
            ))
            .succeed()
            .expect_stdout("forked\nforked\n");
    }
}

#[test]
fn a_log_file_that_takes_nothing_is_harmless() {
    let scene = Scene::new();
    for (file, on_stderr) in [("/dev/full", 0), ("/", 2), ("/dev/null/no", 2)] {
        let finished = scene
            .log_file("times=2 fork=fork")
            .with("ASYNCFORK_LOG_FILE", file)
            .succeed();
        finished.expect_stdout("forked\n");
        assert_eq!(finished.all_lines(LINE), on_stderr, "{finished:#?}");
    }
}

#[test]
fn a_full_disk_costs_the_line_only() {
    let scene = Scene::new();
    let dir = scene.fixture.path("disk");
    fs::create_dir(&dir).unwrap();
    let (dir, full) = (dir.display(), dir.join("full"));
    let full = full.display();
    scene
        .stderr(&format!(
            "tmpfs={dir} stderr=file:{full} exec fill-disk={full} times=2 fork=fork"
        ))
        .succeed()
        .expect_stdout("forked\n");
    scene
        .log_file(&format!("tmpfs={dir} fill-disk={full} times=2 fork=fork"))
        .with("ASYNCFORK_LOG_FILE", format!("{dir}/log"))
        .succeed()
        .expect_stdout("forked\n");
}

/// As a full disk, a quota, a failing disk or an old kernel would.
#[test]
fn a_write_may_fail_for_any_reason() {
    let scene = Scene::new();
    for errno in [
        libc::EDQUOT,
        libc::ENOSPC,
        libc::EIO,
        libc::EINTR,
        libc::EAGAIN,
        libc::EPIPE,
        libc::EFBIG,
        libc::EOPNOTSUPP,
        libc::EINVAL,
    ] {
        for stderr in ["", "stderr=pipe exec", "stderr=stream exec"] {
            let mut steps = format!("{stderr} handle=PIPE handle=XFSZ");
            for call in ["write", "writev", "pwritev2", "sendto", "sendmsg"] {
                steps += &format!(" deny={call}:{errno}");
            }
            scene
                .log_file(&format!("{steps} times=2 fork=fork"))
                .succeed();
            scene
                .stderr(&format!("{steps} times=2 fork=fork"))
                .succeed();
        }
    }
}

mod a_filter {
    use super::*;

    const CALLS: [&str; 21] = [
        "fcntl",
        "fstat",
        "getpid",
        "getrusage",
        "ioctl",
        "newfstatat",
        "openat",
        "poll",
        "ppoll",
        "prctl",
        "prlimit64",
        "pwritev2",
        "read",
        "rt_sigpending",
        "rt_sigprocmask",
        "rt_sigtimedwait",
        "sendmsg",
        "sendto",
        "statx",
        "write",
        "writev",
    ];

    /// Outputs that would raise a signal, or make wait, and one of each kind
    /// that would not.
    const OUTPUTS: [&str; 14] = [
        "exec",
        "stderr=pipe exec",
        "stderr=stream exec",
        "stderr=terminal exec",
        "stderr=pipe far=close exec handle=PIPE",
        "stderr=stream far=close exec handle=PIPE",
        "stderr=tcp far=mute exec handle=PIPE",
        "stderr=tcp far=mute exec block=PIPE",
        "stderr=pipe exec fill",
        "stderr=stream exec fill",
        "stderr=terminal exec fill",
        "background=tostop exec",
        "stderr=file:FILE exec handle=XFSZ fsize=1",
        "stderr=file:FILE exec block=XFSZ fsize=1",
    ];

    fn outputs(scene: &Scene) -> Vec<String> {
        OUTPUTS
            .iter()
            .map(|output| output.replace("FILE", &scene.path("stderr")))
            .collect()
    }

    #[test]
    fn may_deny_any_call_of_the_library() {
        let scene = Scene::new();
        let outputs = outputs(&scene);
        for call in CALLS {
            for errno in [libc::EPERM, libc::ENOSYS] {
                let steps = format!("deny={call}:{errno} times=2 fork=fork");
                for output in &outputs {
                    scene.stderr(&format!("{output} {steps}")).succeed();
                }
                for limit in ["", "handle=XFSZ fsize=1"] {
                    scene.log_file(&format!("{limit} {steps}")).succeed_loaded();
                }
            }
        }
    }

    /// Raises SIGSYS, which must not be blocked then: it would kill.
    #[test]
    fn may_trap_any_call_of_the_library() {
        let scene = Scene::new();
        for call in CALLS {
            for output in outputs(&scene) {
                let steps = format!("{output} trap={call} times=2 fork=fork");
                scene.stderr(&steps).succeed();
            }
            let steps = format!("trap={call} times=2 fork=fork");
            scene.log_file(&steps).succeed_loaded();
        }
    }

    /// To ignore a signal for a moment takes it back, too: from every thread.
    #[test]
    fn does_no_harm_to_other_threads_signals() {
        let scene = Scene::new();
        let file = scene.path("stderr");
        for call in ["poll", "rt_sigpending", "rt_sigprocmask", "rt_sigtimedwait"] {
            for steps in [
                format!("stderr=file:{file} exec fsize=1 bystanders deny={call}:1 forbid"),
                format!("fsize=1 bystanders trap={call}"),
                format!("stderr=pipe exec bystanders race=close deny={call}:1"),
            ] {
                let steps = format!("{steps} fork=fork fork=fork");
                scene.stderr(&steps).succeed();
                scene.log_file(&steps).succeed();
            }
        }
    }

    /// As a service manager installs it.
    #[test]
    fn may_be_there_before_the_library() {
        let scene = Scene::new();
        for call in [
            "getpid",
            "getrusage",
            "ioctl",
            "poll",
            "ppoll",
            "pwritev2",
            "rt_sigpending",
            "rt_sigprocmask",
            "rt_sigtimedwait",
            "sendto",
            "write",
        ] {
            for errno in [libc::EPERM, libc::ENOSYS] {
                for signals in ["", "fsize=0"] {
                    let steps = format!("{signals} deny={call}:{errno} exec times=2 fork=fork");
                    scene.log_file(&steps).succeed();
                    scene.stderr(&steps).succeed();
                }
            }
        }
    }

    /// Dispositions, timers, limits, flags of open files, modes of terminals:
    /// the library changes nothing that another thread would notice.
    #[test]
    fn may_kill_for_what_concerns_other_threads() {
        let scene = Scene::new();
        for output in outputs(&scene) {
            let steps = format!("{output} forbid times=2 fork=fork fork=_Fork");
            scene
                .stderr(&steps)
                .succeed()
                .expect_stdout("forked\nforked\n");
        }
        scene.log_file("forbid fork=fork").succeed_loaded();
        scene
            .log_file("forbid fork=fork")
            .fake_module(&[])
            .succeed_loaded();
    }
}

mod a_signal_from_elsewhere {
    use super::*;

    /// Sent while the library writes, which raises another one of its own
    /// where the reader goes at the same moment.
    #[test]
    fn is_not_lost() {
        let scene = Scene::new();
        for (signal, steps) in [
            ("PIPE", "stderr=pipe exec COND race=PIPE"),
            ("PIPE", "stderr=pipe exec COND race=close+PIPE"),
            ("PIPE", "stderr=pipe exec COND race=PIPE+close"),
            ("PIPE", "stderr=stream exec COND race=close+PIPE"),
            ("XFSZ", "stderr=file:FILE exec COND race=XFSZ"),
            ("XFSZ", "stderr=file:FILE exec COND race=fsize+XFSZ"),
            ("XFSZ", "stderr=file:FILE exec COND race=XFSZ+fsize"),
            ("TTOU", "background=tostop exec COND race=TTOU"),
            ("USR1", "stderr=pipe exec COND race=close+USR1"),
        ] {
            for condition in ["handle=SIG", "block=SIG", "handle=SIG block=SIG"] {
                let condition = condition.replace("SIG", signal);
                let steps = steps
                    .replace("COND", &condition)
                    .replace("FILE", &scene.path("stderr"));
                scene
                    .stderr(&format!("{steps} expect={signal} fork=fork fork=fork"))
                    .succeed()
                    .expect_stdout("it happened\nforked\nforked\n");
            }
        }
    }

    /// A thread that has it not blocked handles it meanwhile.
    #[test]
    fn is_not_lost_to_another_thread() {
        let scene = Scene::new();
        for race in ["race=PIPE", "race=close+PIPE", "race=PIPE+close"] {
            for condition in ["handle=PIPE", "handle=PIPE block=PIPE"] {
                scene
                    .stderr(&format!(
                        "stderr=pipe exec {condition} bystanders {race} expect=PIPE fork=fork fork=fork"
                    ))
                    .succeed();
            }
        }
    }

    /// Nor does a child that the handler makes inherit it.
    #[test]
    fn does_not_see_the_librarys_mask_in_its_handler() {
        let scene = Scene::new();
        for handler in ["handle=USR1", "fork-in=USR1"] {
            for race in ["race=USR1", "race=close+USR1", "race=USR1+close"] {
                scene
                    .stderr(&format!(
                        "stderr=pipe exec {handler} {race} expect=USR1 fork=fork fork=fork"
                    ))
                    .succeed();
            }
        }
    }
}

#[test]
fn other_threads_signals_are_left_alone() {
    let scene = Scene::new();
    let file = scene.path("stderr");
    for output in [
        "stderr=pipe far=close exec",
        "stderr=stream far=mute exec",
        &format!("stderr=file:{file} exec fsize=1"),
        "background=tostop exec",
    ] {
        for condition in ["", "block=PIPE block=XFSZ block=TTOU"] {
            scene
                .stderr(&format!(
                    "{output} {condition} bystanders times=3 fork=fork fork=_Fork"
                ))
                .succeed()
                .expect_stdout("forked\nforked\n");
        }
    }
}

/// SIGSEGV is a signal, too.
#[test]
fn a_handler_with_little_stack_may_fork() {
    let fixture = Fixture::new();
    let program = fixture.compile("stack", &[]);
    fixture
        .run(&program)
        .args(&["4096"])
        .succeed_loaded()
        .expect_log(2, LINE);
    fixture
        .run(&program)
        .args(&["4096"])
        .fake_module(&[])
        .succeed_loaded()
        .expect_log(2, "async fork of ");
}

/// Some of them raise signals when they come out of a terminal's other end.
#[test]
fn a_line_holds_no_control_characters() {
    let scene = Scene::new();
    let finished = scene
        .log_file("fork=fork")
        .with("ASYNCFORK_DEVICE", "/no\x03\nasyncfork[1] error: \x1c\x1a")
        .succeed_loaded();
    finished.expect_log(1, LINE);
    for line in finished.log.lines() {
        assert!(
            !line.contains(char::is_control) && !line.starts_with("asyncfork[1] "),
            "{finished:#?}"
        );
    }
}

#[test]
fn threads_with_signals_of_their_own_fork_at_once() {
    let scene = Scene::new();
    let file = scene.path("stderr");
    for output in [
        "stderr=pipe far=close exec",
        "stderr=stream far=mute exec",
        "stderr=pipe exec fill",
        &format!("stderr=file:{file} exec fsize=1"),
        "background=tostop exec",
    ] {
        scene
            .stderr(&format!("{output} threads=8 times=5 fork=fork"))
            .succeed()
            .expect_stdout("forked\n");
    }
}
