// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/kmod`: builds and checks the kernel module. Nothing is ever loaded.

mod check;
mod sources;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;

use anyhow::{ensure, Context, Result};
use nix::fcntl::Flock;

use crate::checkout::repository_root;
use crate::kernels;
use crate::root::Root;
use crate::tools;

/// Build and check the kernel module; nothing is ever loaded
///
/// Builds target/kmod/RELEASE/asyncfork.ko. Warnings are errors. KMOD_SRC in the environment
/// names another source directory than kmod/.
#[derive(Debug, clap::Args)]
#[command(override_usage = "scripts/kmod [OPTIONS]", args_override_self = true)]
pub struct KmodOptions {
    #[arg(long, value_name = "KERNEL", default_value_t = kernels::first().name.clone())]
    #[arg(help = kernel_help(), long_help = kernel_help())]
    kernel: String,
    /// With fault injection, into target/kmod/RELEASE-faults
    #[arg(long)]
    faults: bool,
    /// Build, then sparse, checkpatch.pl --strict, no version tests outside kmod/compat, no
    /// calls through pointers (scripts/kmod-calls), no circles (scripts/kmod-graph)
    #[arg(long, overrides_with = "release")]
    check: bool,
    /// Print RELEASE
    #[arg(long, overrides_with = "check")]
    release: bool,
}

fn kernel_help() -> String {
    let mut text =
        "A kernel of the list, built in its guest root (scripts/root) with the compiler \
                    there;\nor a release: this machine's own headers and compiler, for \
                    \"$(uname -r)\""
            .to_owned();
    for kernel in kernels::all() {
        text += &format!("\n  {kernel:<7} {}", kernel.description());
    }
    text
}

/// Builds, checks, or prints the release. The exit status of a build that fails is that of
/// make.
///
/// # Errors
/// There is no such kernel, its headers are missing, or files cannot be read or written.
pub fn run(options: &KmodOptions) -> Result<ExitCode> {
    let checkout = repository_root()?;
    let (root, release) = find(&checkout, &options.kernel)?;
    if options.release {
        println!("{release}");
        return Ok(ExitCode::SUCCESS);
    }
    let kmod = Kmod::new(&checkout, root, &release, options.faults)?;
    if options.check {
        return kmod.check();
    }
    let status = kmod.kbuild(&["modules"], &mut io::stdout())?;
    if !status.success() {
        return Ok(exit_code(status));
    }
    kmod.deliver()?;
    Ok(ExitCode::SUCCESS)
}

/// The guest root of a kernel, if it is not this machine's, and its release.
fn find(checkout: &Path, kernel: &str) -> Result<(Option<PathBuf>, String)> {
    if let Some(kernel) = kernels::find(kernel) {
        let root = Root::of(checkout, kernel, false)?;
        root.ensure(false)?;
        let release = root.release(kernel)?;
        return Ok((Some(root.dir), release));
    }
    let headers = format!("/lib/modules/{kernel}/build/Makefile");
    ensure!(
        Path::new(&headers).exists(),
        "no headers of kernel {kernel} here: install linux-headers-{kernel}{}",
        match kernel.chars().all(|c| c.is_ascii_digit() || c == '.') {
            true => format!("; or name a kernel of scripts/root: {}", names().join(", ")),
            false => String::new(),
        }
    );
    Ok((None, kernel.to_owned()))
}

fn names() -> Vec<&'static str> {
    kernels::all().iter().map(|k| &*k.name).collect()
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}

/// A build of the module, which nobody else is at meanwhile.
struct Kmod<'a> {
    checkout: &'a Path,
    /// The sources' directory, as messages name it.
    src: String,
    /// Where the kernel's headers are, if not on this machine.
    root: Option<PathBuf>,
    release: String,
    faults: bool,
    /// Where the module goes.
    out: PathBuf,
    /// Where it is built: kbuild may write next to the sources, so it gets a copy.
    build: PathBuf,
    /// The sources' names, relative to their directory.
    sources: Vec<String>,
    _lock: Flock<File>,
}

impl<'a> Kmod<'a> {
    fn new(checkout: &'a Path, root: Option<PathBuf>, release: &str, faults: bool) -> Result<Self> {
        let src = match std::env::var_os("KMOD_SRC").filter(|src| !src.is_empty()) {
            Some(src) => src.into_string().ok().context("KMOD_SRC is no text")?,
            None => "kmod".to_owned(),
        };
        let name = format!("{release}{}", if faults { "-faults" } else { "" });
        let out = checkout.join("target/kmod").join(&name);
        let build = match &root {
            Some(root) => root.join("build").join(&name),
            None => out.clone(),
        };
        std::fs::create_dir_all(&out)?;
        let lock = tools::lock(&build.join(".lock"))?;
        Ok(Kmod {
            sources: sources::sync(&checkout.join(&src), &build)
                .with_context(|| format!("cannot copy {src} to {}", build.display()))?,
            checkout,
            src,
            root,
            release: release.to_owned(),
            faults,
            out,
            build,
            _lock: lock,
        })
    }

    /// Runs make with these words, and writes what it prints to `to`: with the names that
    /// the files have in the sources.
    fn kbuild(&self, words: &[&str], to: &mut dyn Write) -> Result<ExitStatus> {
        let inside = match &self.root {
            Some(root) => Path::new("/").join(self.build.strip_prefix(root)?),
            None => self.build.clone(),
        };
        let inside = inside.to_str().context("the build directory is no text")?;
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let (output, theirs) = io::pipe()?;
        let mut make = tools::in_root(self.checkout, self.root.as_deref(), "env");
        make.args(["-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"])
            .args(["make", "--no-print-directory"])
            .args(["-C", &format!("/lib/modules/{}/build", self.release)])
            .arg(format!("M={inside}"))
            .args(["W=1", "KCFLAGS=-Werror"])
            .arg(format!("AF_FAULTS={}", if self.faults { "1" } else { "" }))
            .arg(format!("-j{jobs}"))
            .args(words)
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        let mut child = make.spawn().context("cannot run make")?;
        // It holds a writing end, with which the pipe would never come to its end.
        drop(make);
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            to.write_all(self.in_sources(&text, inside).as_bytes())?;
            line.clear();
        }
        to.flush()?;
        Ok(child.wait()?)
    }

    /// A message with the files' names in the sources. `make` itself is in the build
    /// directory, or not, by version.
    fn in_sources(&self, line: &str, inside: &str) -> String {
        let line = line.replace(&format!("{inside}/"), &format!("{}/", self.src));
        let bare = line.split(':').next().unwrap_or_default();
        match self.sources.iter().any(|file| file == bare) && bare != line {
            true => format!("{}/{line}", self.src),
            false => line,
        }
    }

    /// Copies the module out of the root, and lists it.
    fn deliver(&self) -> Result<()> {
        if self.build != self.out {
            let mut cp = Command::new("cp");
            cp.arg("-p").arg(self.built()).arg(&self.out);
            tools::run(&mut cp)?;
        }
        let out = self.out.strip_prefix(self.checkout)?;
        let mut ls = Command::new("ls");
        ls.arg("-l").arg(out.join("asyncfork.ko"));
        tools::run(ls.current_dir(self.checkout))
    }

    /// The module where it is built.
    fn built(&self) -> PathBuf {
        self.build.join("asyncfork.ko")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_files_in_the_sources() {
        let dir = std::env::temp_dir().join(format!("asyncfork-kmod-{}", std::process::id()));
        let kmod = Kmod {
            checkout: &dir,
            src: "my/kmod".into(),
            root: None,
            release: "6.12.118+deb13-amd64".into(),
            faults: false,
            out: dir.clone(),
            build: dir.clone(),
            sources: ["Kbuild", "main.c", "compat/hooks.c"]
                .map(str::to_owned)
                .to_vec(),
            _lock: tools::lock(&dir.join(".lock")).unwrap(),
        };
        for (line, want) in [
            ("main.c:3:1: error: x\n", "my/kmod/main.c:3:1: error: x\n"),
            (
                "/build/6.12+deb13/compat/hooks.c:3: warning: x\n",
                "my/kmod/compat/hooks.c:3: warning: x\n",
            ),
            (
                "  CC [M]  /build/6.12+deb13/main.o\n",
                "  CC [M]  my/kmod/main.o\n",
            ),
            ("main.cc:3: error\n", "main.cc:3: error\n"),
            ("main.c\n", "main.c\n"),
            ("include/main.c:1: x", "include/main.c:1: x"),
        ] {
            assert_eq!(kmod.in_sources(line, "/build/6.12+deb13"), want);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_kernel_without_headers_is_refused_with_what_to_do() {
        let dir = std::env::temp_dir();
        let error = |kernel| find(&dir, kernel).unwrap_err().to_string();
        let said = error("6.8.0-48-generic");
        assert!(
            said.ends_with("install linux-headers-6.8.0-48-generic"),
            "{said}"
        );
        let said = error("6.5");
        assert!(said.ends_with(&names().join(", ")), "{said}");
    }
}
