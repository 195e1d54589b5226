// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles the programs of `tests/c` and runs them under the library.
#![allow(dead_code)] // each test binary uses its part

pub mod root;
pub mod server;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use root::{Compiler, Root};

/// A user and group that own nothing.
pub const NOBODY: u32 = 65534;
/// Stands for the device where the fake module answers for it.
pub const ANY_CHAR_DEVICE: &str = "/dev/null";

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c")
}

/// The library, built as it ships.
fn built_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/library");
        let built = Command::new(script)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "scripts/library: {}", built.status);
        PathBuf::from(String::from_utf8(built.stdout).unwrap().trim_end())
    })
}

/// A directory of its own for one test, open to every user, with a copy of
/// the library: the build directory may be closed to other users.
pub struct Fixture {
    dir: tempfile::TempDir,
    compiler: Compiler,
    /// Where programs run, if not on this machine.
    root: Option<Root>,
}

impl Fixture {
    pub fn new() -> Self {
        // SAFETY: a plain query.
        let uid = unsafe { libc::geteuid() };
        assert_eq!(
            uid, 0,
            "these tests change users and roots: run them as root"
        );
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let fixture = Self {
            dir,
            compiler: Compiler::default(),
            root: None,
        };
        fs::copy(built_library(), fixture.library()).unwrap();
        fs::set_permissions(fixture.library(), fs::Permissions::from_mode(0o755)).unwrap();
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn library(&self) -> PathBuf {
        self.path("libasyncfork.so")
    }

    /// Lets `command` compile the programs, if they are to be of another C library;
    /// in `root`, if it is there.
    pub fn compile_by(&mut self, command: &[&str], root: Option<Root>) {
        self.compiler = Compiler::new(command, root);
    }

    /// Lets the programs run in `root`.
    pub fn run_in(&mut self, root: Root) {
        self.root = Some(root);
    }

    /// A file of the directory, as programs see it.
    pub fn seen(&self, name: &str) -> PathBuf {
        self.seen_in(self.root.as_ref(), name)
    }

    fn seen_in(&self, root: Option<&Root>, name: &str) -> PathBuf {
        match root {
            Some(_) => Path::new(root::BENCH).join(name),
            None => self.path(name),
        }
    }

    /// Compiles `tests/c/NAME.c`.
    pub fn compile(&self, name: &str, flags: &[&OsStr]) -> PathBuf {
        self.compile_with(&self.compiler, name, flags);
        self.seen(name)
    }

    /// The fake module, which always runs on this machine.
    fn fake_module(&self) -> PathBuf {
        const NAME: &str = "fake_module";
        let program = self.path(NAME);
        if !program.exists() {
            self.compile_with(&Compiler::default(), NAME, &[]);
        }
        program
    }

    fn compile_with(&self, compiler: &Compiler, name: &str, flags: &[&OsStr]) {
        let mut all: Vec<&OsStr> = [
            "-std=gnu11",
            "-g",
            "-O1",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-I",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../kmod/uapi"),
        ]
        .map(OsStr::new)
        .to_vec();
        all.extend(flags);
        self.call_compiler(compiler, name, &all);
    }

    /// Compiles `tests/c/NAME.c`, which needs nothing but the C library.
    pub fn compile_simply(&self, name: &str) -> PathBuf {
        self.call_compiler(&self.compiler, name, &[]);
        self.seen(name)
    }

    fn call_compiler(&self, compiler: &Compiler, name: &str, flags: &[&OsStr]) {
        let mut cc = Command::new(&compiler.command[0]);
        cc.args(&compiler.command[1..])
            .arg("-o")
            .arg(self.seen_in(compiler.root.as_ref(), name))
            .arg(sources().join(format!("{name}.c")))
            .args(flags);
        if let Some(root) = &compiler.root {
            cc.env("TMPDIR", root::BENCH);
            root.enter(&mut cc);
        }
        let cc = cc.output().expect("run the compiler: install gcc");
        assert!(
            cc.status.success(),
            "cc {name}: {}",
            String::from_utf8_lossy(&cc.stderr)
        );
    }

    /// Compiles a program and prepares a run of it under the library.
    pub fn program(&self, name: &str) -> Run<'_> {
        self.run(self.compile(name, &[]))
    }

    /// A run of any program under the library, by default without a device,
    /// with any size large enough, logging everything to a file.
    pub fn run(&self, program: impl AsRef<Path>) -> Run<'_> {
        let mut run = Run {
            fixture: self,
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            preload: vec![self.seen("libasyncfork.so")],
            fake_module: None,
        };
        run.env("ASYNCFORK_LOG", "debug");
        run.env("ASYNCFORK_LOG_FILE", run.fixture.seen("log"));
        run.env("ASYNCFORK_DEVICE", run.fixture.seen("no-device"));
        run.env("ASYNCFORK_MIN_RSS", "0");
        run
    }
}

/// A program about to run under the library.
#[must_use]
pub struct Run<'a> {
    fixture: &'a Fixture,
    program: PathBuf,
    args: Vec<PathBuf>,
    env: Vec<(String, PathBuf)>,
    preload: Vec<PathBuf>,
    fake_module: Option<Vec<String>>,
}

impl Run<'_> {
    pub fn arg(mut self, arg: impl AsRef<Path>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(PathBuf::from));
        self
    }

    fn env(&mut self, name: &str, value: impl AsRef<Path>) {
        self.unset(name);
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
    }

    fn unset(&mut self, name: &str) {
        self.env.retain(|(n, _)| n != name);
    }

    pub fn with(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.unset(name);
        self
    }

    /// Another library, initialised before ours.
    pub fn also_preload(mut self, library: PathBuf) -> Self {
        self.preload.push(library);
        self
    }

    /// Another library, which comes before ours.
    pub fn preload_first(mut self, library: PathBuf) -> Self {
        self.preload.insert(0, library);
        self
    }

    pub fn no_preload(mut self) -> Self {
        self.preload.clear();
        self
    }

    /// Under `tests/c/fake_module.c`, with these settings.
    pub fn fake_module(mut self, settings: &[&str]) -> Self {
        self.fake_module = Some(settings.iter().map(|&s| s.to_owned()).collect());
        self.with("ASYNCFORK_DEVICE", ANY_CHAR_DEVICE)
    }

    /// The command; for the fake module also the file of its calls.
    pub fn command(&self) -> (Command, PathBuf) {
        let preload: Vec<&str> = self.preload.iter().map(|p| p.to_str().unwrap()).collect();
        let preload = preload.join(":");
        let calls = self.fixture.path("calls");
        let mut command = match &self.fake_module {
            None => {
                let mut command = Command::new(&self.program);
                if !preload.is_empty() {
                    command.env("LD_PRELOAD", preload);
                }
                if let Some(root) = &self.fixture.root {
                    root.enter(&mut command);
                }
                command
            }
            Some(settings) => {
                let mut command = Command::new(self.fixture.fake_module());
                command.arg(format!("calls={}", calls.display()));
                command.arg(format!("preload={preload}"));
                if let Some(root) = &self.fixture.root {
                    let dir = root.mount_for(&mut command);
                    command.arg(format!("root={}", dir.display()));
                }
                command.args(settings).arg(&self.program);
                command
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| n.starts_with("ASYNCFORK")) {
                command.env_remove(name);
            }
        }
        command
            .env_remove("JOURNAL_STREAM")
            .args(&self.args)
            .envs(self.env.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::null());
        (command, calls)
    }

    /// Runs it to its end.
    pub fn finish(&self) -> Finished {
        let (mut command, calls) = self.command();
        let output = command
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished {
            command: format!("{command:?}"),
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            log: fs::read(self.fixture.path("log"))
                .map(|log| text(&log))
                .unwrap_or_default(),
            calls: fs::read_to_string(calls).unwrap_or_default(),
        }
    }

    /// Runs it to its end, which must be exit status 0.
    pub fn succeed(&self) -> Finished {
        let finished = self.finish();
        assert!(finished.status.success(), "{finished:#?}");
        finished
    }

    /// As [`Run::succeed`], and the library must have taken its settings.
    pub fn succeed_loaded(&self) -> Finished {
        let finished = self.succeed();
        assert!(
            finished.all_lines("loaded: mode ") > 0,
            "not loaded: {finished:#?}"
        );
        finished
    }
}

/// What a run left behind.
#[derive(Debug)]
pub struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// The log file.
    pub log: String,
    /// What the fake module saw.
    pub calls: String,
}

impl Finished {
    /// Lines of the log file that contain `text`.
    pub fn log_lines(&self, text: &str) -> usize {
        self.log.lines().filter(|line| line.contains(text)).count()
    }

    /// Lines of the log file and of standard error that contain `text`.
    pub fn all_lines(&self, text: &str) -> usize {
        self.log_lines(text)
            + self
                .stderr
                .lines()
                .filter(|line| line.contains(text))
                .count()
    }

    /// The log file has exactly `count` lines with `text`.
    #[track_caller]
    pub fn expect_log(&self, count: usize, text: &str) -> &Self {
        assert_eq!(
            self.log_lines(text),
            count,
            "lines with {text:?}: {self:#?}"
        );
        self
    }

    #[track_caller]
    pub fn expect_stdout(&self, stdout: &str) -> &Self {
        assert_eq!(self.stdout, stdout, "{self:#?}");
        self
    }

    /// What the fake module saw, without the thread ids.
    pub fn sequence(&self) -> Vec<&str> {
        self.calls
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect()
    }
}
