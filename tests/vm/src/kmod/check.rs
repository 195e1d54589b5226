// SPDX-License-Identifier: MIT OR Apache-2.0
//! `scripts/kmod --check`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{bail, Context, Result};

use super::Kmod;
use crate::{kmod_calls, tools};

/// The packages, of Debian 12 and of 13, that have the checkpatch.pl for every kernel; the
/// first that is there has the say.
const SOURCES: [&str; 2] = ["linux-source-6.1", "linux-source-6.12"];
/// What is unpacked of it.
const SCRIPTS: [&str; 3] = ["checkpatch.pl", "spelling.txt", "const_structs.checkpatch"];

impl Kmod<'_> {
    /// All checks; what they find is printed.
    pub(super) fn check(&self) -> Result<ExitCode> {
        println!("== sparse");
        let mut clean = self.sparse()?;
        println!("== checkpatch");
        clean &= self.checkpatch()?;
        println!("== kernel version tests outside {}/compat", self.src);
        clean &= self.version_tests()?;
        println!("== calls through pointers");
        clean &= kmod_calls::check(&self.built())?;
        println!("== layers");
        clean &= self.layers()?;
        Ok(match clean {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    fn sparse(&self) -> Result<bool> {
        let path = self.out.join("check.log");
        let mut log = File::create(&path)?;
        // C=2 checks every file, up to date or not. KBUILD_CHECKSRC overrides the
        // Makefile, which looks for a script that Debian's 7.2 headers lack.
        // What the sparse of Debian 13 does not know: the operator, and that the length
        // of a literal is a constant.
        let flags = "CF=-D__typeof_unqual__=__typeof__ '-D__builtin_strlen(s)=(sizeof(s)-1)'";
        let status = self.kbuild(&["C=2", "KBUILD_CHECKSRC=2", flags, "modules"], &mut log)?;
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        if !status.success() {
            io::stdout().write_all(text.as_bytes())?;
            bail!("the build failed: make: {status}");
        }
        let found = complaints(&text, &self.src);
        for line in &found {
            println!("{line}");
        }
        Ok(found.is_empty())
    }

    fn checkpatch(&self) -> Result<bool> {
        let checkpatch = self.checkpatch_pl()?;
        let mut clean = true;
        for file in self.sources.iter().filter(|name| !name.ends_with("Kbuild")) {
            let status = Command::new("perl")
                .arg(&checkpatch)
                .args([
                    "--no-tree",
                    "--strict",
                    "--quiet",
                    "--terse",
                    "--no-summary",
                ])
                .args(["--show-types", "--ignore", &ignored(file)])
                .args(["--file", &format!("{}/{file}", self.src)])
                .current_dir(self.checkout)
                .status()
                .context("cannot run perl")?;
            clean &= status.success();
        }
        Ok(clean)
    }

    fn checkpatch_pl(&self) -> Result<PathBuf> {
        let dir = self.checkout.join("target/linux-source");
        let checkpatch = dir.join("scripts/checkpatch.pl");
        if !checkpatch.exists() {
            let (source, archive) = SOURCES
                .map(|source| (source, format!("/usr/src/{source}.tar.xz")))
                .into_iter()
                .find(|(_, archive)| Path::new(archive).exists())
                .context("no checkpatch.pl: run scripts/setup --test")?;
            fs::create_dir_all(&dir)?;
            let mut tar = Command::new("tar");
            tar.args(["-xJf", &archive, "--strip-components=1", "-C"])
                .arg(&dir)
                .args(SCRIPTS.map(|name| format!("{source}/scripts/{name}")));
            tools::run(&mut tar).with_context(|| format!("no checkpatch.pl in {archive}"))?;
        }
        Ok(checkpatch)
    }

    fn version_tests(&self) -> Result<bool> {
        let mut clean = true;
        for file in &self.sources {
            if file.starts_with("compat/") || file.contains("/compat/") {
                continue;
            }
            let text = fs::read(self.checkout.join(&self.src).join(file))?;
            let text = String::from_utf8_lossy(&text);
            for (n, line) in text.lines().enumerate().filter(|(_, l)| tests_version(l)) {
                println!("{}/{file}:{}:{line}", self.src, n + 1);
                clean = false;
            }
        }
        Ok(clean)
    }

    fn layers(&self) -> Result<bool> {
        let status = Command::new(self.checkout.join("scripts/kmod-graph"))
            .arg(&self.build)
            .stdout(Stdio::null())
            .status()
            .context("cannot run scripts/kmod-graph")?;
        Ok(status.success())
    }
}

/// Of what is printed, what is said about our files: the kernel's own headers do not count.
fn complaints<'a>(text: &'a str, src: &str) -> Vec<&'a str> {
    let ours = |line: &&str| {
        let Some((place, said)) = line.split_once(' ') else {
            return false;
        };
        let place = place.strip_suffix(':').and_then(|p| p.strip_prefix(src));
        place.is_some_and(|place| place.len() > 1 && place.starts_with('/'))
            && ["warning:", "error:"]
                .iter()
                .any(|kind| said.starts_with(kind))
    };
    text.lines().filter(ours).collect()
}

/// What checkpatch.pl does not look for in a file.
fn ignored(file: &str) -> String {
    // Version tests compare constants, in compat/ only; version_tests() sees to that.
    let mut types = "LINUX_VERSION_CODE,CONSTANT_COMPARISON".to_owned();
    // What is made from a list seldom uses all its columns. Only the newer one has this type.
    types += ",MACRO_ARG_UNUSED";
    types += match file {
        // TRACE_EVENT() has a layout of its own.
        "trace.h" => ",OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT",
        // Declarations made from a list, or where the function is.
        "attach.c" | "symbols.c" | "symbols.h" => ",TRAILING_SEMICOLON",
        "hooks.h" => ",MULTISTATEMENT_MACRO_USE_DO_WHILE,FUNCTION_ARGUMENTS",
        _ => "",
    };
    types
}

/// Whether a line has one of the words that tell kernel versions apart.
fn tests_version(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|word| ["LINUX_VERSION_CODE", "KERNEL_VERSION"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_about_our_files_counts() {
        let text = "\
  CHECK   kmod/main.c
kmod/main.c:3:1: warning: symbol 'x' was not declared
kmod/compat/hooks.c:4: error: y
kmod/main.c:5:1: note: expanded from
/lib/modules/x/include/linux/mm.h:1:1: warning: theirs
kmodx/main.c:3:1: warning: z
kmod: warning: w
";
        let found = complaints(text, "kmod");
        assert_eq!(found, text.lines().skip(1).take(2).collect::<Vec<_>>());
    }

    #[test]
    fn a_version_test_is_found_by_its_words() {
        for line in [
            "#if LINUX_VERSION_CODE >= 5",
            "KERNEL_VERSION(6, 12, 0)",
            "x = LINUX_VERSION_CODE;",
        ] {
            assert!(tests_version(line), "{line}");
        }
        for line in ["AF_KERNEL_VERSION", "LINUX_VERSION_CODES", "version"] {
            assert!(!tests_version(line), "{line}");
        }
    }

    #[test]
    fn setup_installs_what_has_checkpatch() {
        let setup = include_str!("../../../../scripts/setup");
        for source in SOURCES {
            assert!(
                setup.contains(&format!("linux_source={source} ")),
                "{source}"
            );
        }
    }

    #[test]
    fn files_with_a_layout_of_their_own_are_known() {
        assert!(ignored("trace.h").ends_with(",OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT"));
        assert!(ignored("symbols.h").ends_with(",TRAILING_SEMICOLON"));
        assert_eq!(ignored("compat/hooks.h"), ignored("main.c"));
    }
}
