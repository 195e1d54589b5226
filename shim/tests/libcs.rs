// SPDX-License-Identifier: MIT OR Apache-2.0
//! One library for every C library: programs of an older and of newer ones of
//! glibc, and of musl, each compiled and run where there is that one.
//!
//! A library that asks for a symbol version that a C library lacks, or for another
//! library beside it, keeps the whole program from starting there.

mod support;

use std::fs;
use std::path::PathBuf;

use support::root::Root;
use support::server::{snapshot_twice, DEBUG};
use support::{Finished, Fixture, Run, ANY_CHAR_DEVICE};

const NO_DEVICE: &str = "cannot be opened: ENOENT; load the module";
const STOCK: &str = " warn: stock fork: ";
const ASYNC: &str = " info: async fork of ";

/// The root that has the oldest glibc and musl.
const OLD: &str = "debian11";
/// The root of the newest glibc, by its kernel.
const NEW: &str = "6.12";
/// For musl. It comes without the kernel's headers.
const MUSL_GCC: [&str; 5] = [
    "musl-gcc",
    "-idirafter",
    "/usr/include",
    "-idirafter",
    "/usr/include/x86_64-linux-gnu",
];
const MUSL_LOADER: &str = "/lib/ld-musl-x86_64.so.1";

#[derive(Clone, Copy, PartialEq)]
enum Libc {
    /// glibc 2.31
    Debian11,
    /// glibc 2.36
    ThisMachine,
    /// glibc 2.41
    Debian13,
    /// musl, on a machine that has glibc, too
    MuslBesideGlibc,
    /// musl, and no other file
    MuslAlone,
}

impl Libc {
    /// Where programs are compiled for it, and run.
    fn fixture(self) -> Fixture {
        let mut fixture = Fixture::new();
        let root = |fixture: &Fixture, name| Root::made(name, &fixture.path(""));
        match self {
            Self::ThisMachine => {}
            Self::Debian11 | Self::Debian13 => {
                let root = root(&fixture, if self == Self::Debian11 { OLD } else { NEW });
                fixture.compile_by(&["gcc"], Some(root.clone()));
                fixture.run_in(root);
            }
            Self::MuslBesideGlibc => {
                let root = root(&fixture, OLD);
                let loader = fixture.path("ld-musl");
                fs::copy(root.file(MUSL_LOADER), &loader).unwrap();
                let option = format!("-Wl,--dynamic-linker={}", loader.display());
                fixture.compile_by(&[&MUSL_GCC[..], &[&option]].concat(), Some(root));
            }
            Self::MuslAlone => {
                let root = root(&fixture, OLD);
                let loader = root.file(MUSL_LOADER);
                fixture.run_in(Root::bare(&loader, ANY_CHAR_DEVICE, &fixture.path("")));
                fixture.compile_by(&MUSL_GCC, Some(root));
            }
        }
        fixture
    }

    /// A run of each of the library's functions, and what it prints.
    fn forks(self, fixture: &Fixture) -> (Run<'_>, &'static str) {
        let run = fixture.run(compile(fixture, "forks"));
        let run = run.args(&["fork=fork", "fork=__fork"]);
        let run = match self {
            Self::Debian11 => run.args(&["lacks_Fork", "fork=_Fork"]),
            _ => run.args(&["fork=_Fork"]),
        };
        let prints = "fork gave a child\n__fork gave a child\n_Fork gave a child\n";
        (run, prints)
    }
}

fn compile(fixture: &Fixture, name: &str) -> PathBuf {
    // Where dlsym() is in older ones.
    fixture.compile(name, &["-ldl".as_ref()])
}

/// The program that uses the C library and no other.
fn alive(fixture: &Fixture) -> Run<'_> {
    fixture.run(fixture.compile_simply("alive"))
}

fn forks_are_stock_without_the_module(libc: Libc) {
    let fixture = libc.fixture();
    let (run, prints) = libc.forks(&fixture);
    let finished = run.succeed_loaded();
    finished
        .expect_stdout(prints)
        .expect_log(3, NO_DEVICE)
        .expect_log(1, STOCK);
    assert_eq!(finished.stderr, "");
}

/// Exactly as a user has it who sets LD_PRELOAD and nothing else.
fn a_program_lives_without_the_module(libc: Libc) {
    let fixture = libc.fixture();
    let finished = alive(&fixture)
        .without("ASYNCFORK_LOG")
        .without("ASYNCFORK_LOG_FILE")
        .without("ASYNCFORK_MIN_RSS")
        .succeed();
    finished.expect_stdout("alive\n");
    // The dynamic loader complains there, too.
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:#?}");
    assert_eq!(finished.all_lines(STOCK), 1, "{finished:#?}");
    assert_eq!(finished.all_lines(NO_DEVICE), 1, "{finished:#?}");
}

#[track_caller]
fn expect_armed(finished: &Finished, forks: usize) {
    finished.expect_log(forks, ASYNC);
    let calls = finished.sequence();
    let count = |wanted: &str| calls.iter().filter(|c| c.starts_with(wanted)).count();
    for call in ["arm ", "fork armed", "report"] {
        assert_eq!(count(call), forks, "{call}: {finished:#?}");
    }
    assert_eq!(finished.stderr, "");
}

fn forks_are_armed_with_the_module(libc: Libc) {
    let fixture = libc.fixture();
    let (run, prints) = libc.forks(&fixture);
    let finished = run.fake_module(&[]).succeed_loaded();
    finished.expect_stdout(prints);
    expect_armed(&finished, 3);
}

fn a_program_lives_with_the_module(libc: Libc) {
    let fixture = libc.fixture();
    let finished = alive(&fixture).fake_module(&[]).succeed_loaded();
    finished.expect_stdout("alive\n");
    expect_armed(&finished, 1);
}

/// What else the library must leave as it is: program, arguments, forks.
const OTHERS: [(&str, &[&str], usize); 6] = [
    ("pages", &["4", "3"], 3),
    ("threads", &["4", "5"], 20),
    ("stdio", &[], 1),
    ("handler", &["plain"], 20),
    ("child_calls", &[], 1),
    ("cancel", &[], 1),
];

fn programs_do_their_work(libc: Libc) {
    for (name, args, forks) in OTHERS {
        let fixture = libc.fixture();
        let program = compile(&fixture, name);
        let run = || fixture.run(&program).args(args);
        run()
            .succeed_loaded()
            .expect_log(forks, NO_DEVICE)
            .expect_log(1, STOCK);
        fs::remove_file(fixture.path("log")).unwrap();
        expect_armed(&run().fake_module(&[]).succeed_loaded(), forks);
    }
}

fn redis_arms_its_snapshots(libc: Libc, settings: &[&str]) {
    let fixture = libc.fixture();
    let redis = || fixture.run("/usr/bin/redis-server").args(settings);
    let run = redis().with("ASYNCFORK_MIN_RSS", "8M").fake_module(&[]);
    let log = snapshot_twice(&fixture, run, redis(), "no");
    assert_eq!(log.matches(ASYNC).count(), 2, "{log}");
    let calls = fs::read_to_string(fixture.path("calls")).unwrap();
    assert_eq!(calls.matches(" fork armed\n").count(), 2, "{calls}");
}

/// The claims above for each C library.
macro_rules! for_each {
    ($($name:ident: $libc:ident,)*) => {$(
        mod $name {
            use super::Libc;

            #[test]
            fn forks_are_stock_without_the_module() {
                super::forks_are_stock_without_the_module(Libc::$libc);
            }

            #[test]
            fn a_program_lives_without_the_module() {
                super::a_program_lives_without_the_module(Libc::$libc);
            }

            #[test]
            fn forks_are_armed_with_the_module() {
                super::forks_are_armed_with_the_module(Libc::$libc);
            }

            #[test]
            fn a_program_lives_with_the_module() {
                super::a_program_lives_with_the_module(Libc::$libc);
            }

            #[test]
            fn programs_do_their_work_with_and_without_the_module() {
                super::programs_do_their_work(Libc::$libc);
            }
        }
    )*};
}

for_each! {
    debian_11: Debian11,
    this_machine: ThisMachine,
    debian_13: Debian13,
    musl_beside_glibc: MuslBesideGlibc,
    musl_alone: MuslAlone,
}

// That of this machine, Debian 12, has tests of its own: redis.rs.

#[test]
fn redis_of_debian_11_arms_its_snapshots() {
    redis_arms_its_snapshots(Libc::Debian11, &[]);
}

#[test]
fn redis_of_debian_13_arms_its_snapshots() {
    redis_arms_its_snapshots(Libc::Debian13, &DEBUG);
}
