// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the suites need that Debian has no package of: built once, in the guest's root.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use anyhow::{ensure, Context, Result};

use super::{Suite, RESULTS};
use crate::checkout::Checkout;
use crate::kernels;
use crate::prepare;
use crate::root::Root;
use crate::tools;
use crate::vm::last_lines;

/// The series without some of the selftests, and the kernel whose sources it gets them of.
const OLDER: &str = "6.1";
const NEWER: &str = "6.12";
const NEWER_PROGRAMS: [&str; 3] = ["cow", "mkdirty", "ksm_functional_tests"];
/// Lines of a failed build's log that are shown.
const SHOWN_LINES: usize = 20;

/// Builds what a suite needs, if that has not been done.
///
/// # Errors
/// The sources are missing, or it cannot be built.
pub fn suite(suite: Suite, checkout: &Checkout) -> Result<()> {
    match suite {
        Suite::Kselftests => kselftests(checkout),
        Suite::StressNg => Ok(()),
        Suite::Redis | Suite::RedisWhole => server_tests(checkout, "redis"),
        Suite::Valkey | Suite::ValkeyWhole => server_tests(checkout, "valkey"),
    }
}

/// Those of the kernel's own version, and what that lacks.
fn kselftests(checkout: &Checkout) -> Result<()> {
    let series = &checkout.kernel.series;
    kselftests_of(checkout, series, &checkout.guest_root, &[])?;
    if series == OLDER {
        let newer = kernels::find(NEWER).expect("the list has it");
        let newer = Root::of(&checkout.root, newer, true)?;
        newer.ensure(false)?;
        kselftests_of(checkout, NEWER, &newer.dir, &NEWER_PROGRAMS)?;
    }
    Ok(())
}

/// Builds programs, or all, of the sources that the root `sources` has.
fn kselftests_of(
    checkout: &Checkout,
    version: &str,
    sources: &Path,
    programs: &[&str],
) -> Result<()> {
    let build = Build {
        checkout,
        what: format!("the selftests of {version}"),
        made: format!("build/kselftests-{version}/.made"),
        log: format!("build-{}-selftests-{version}.log", checkout.kernel),
    };
    if build.is_made() {
        return Ok(());
    }
    let tarball = sources.join(format!("usr/src/linux-source-{version}.tar.xz"));
    let tarball =
        File::open(&tarball).with_context(|| format!("no sources: {}", tarball.display()))?;
    build.run(
        include_str!("kselftests.sh"),
        &[&[version], programs].concat(),
        tarball.into(),
    )
}

/// Unpacks a server's own suite in the guest's /build/SERVER-tests and builds its test modules.
fn server_tests(checkout: &Checkout, server: &str) -> Result<()> {
    let build = Build {
        checkout,
        what: format!("the test modules of {server}"),
        made: format!("build/{server}-tests/.made"),
        log: format!("build-{}-{server}.log", checkout.kernel),
    };
    if build.is_made() {
        return Ok(());
    }
    ensure!(
        has_sources(&checkout.guest_root, server)?,
        "the mirror had no sources of {server} when {} was made: delete that and try again",
        checkout.guest_root.display()
    );
    build.run(include_str!("server-tests.sh"), &[server], Stdio::null())
}

/// Whether a guest root has the source package of a server.
fn has_sources(guest_root: &Path, server: &str) -> Result<bool> {
    let dir = guest_root.join("usr/src");
    let names = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for name in names {
        let name = name?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&format!("{server}_")) && name.ends_with(".dsc") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Something that is built in a guest root, once.
struct Build<'a> {
    checkout: &'a Checkout,
    what: String,
    /// The file that says so when it is complete, below the root.
    made: String,
    /// What the build printed, below [`RESULTS`].
    log: String,
}

impl Build<'_> {
    fn is_made(&self) -> bool {
        self.checkout.guest_root.join(&self.made).exists()
    }

    /// Runs a script of ours in the root.
    fn run(&self, script: &str, args: &[&str], input: Stdio) -> Result<()> {
        eprintln!("suites: building {}", self.what);
        let path = self.checkout.root.join(RESULTS).join(&self.log);
        let log = File::create(&path)?;
        let Checkout {
            root, guest_root, ..
        } = self.checkout;
        let mut command = tools::in_root(root, Some(guest_root), "sh");
        command
            .args(["-euc", script, "sh"])
            .args(args)
            .stdin(input)
            .stdout(log.try_clone()?)
            .stderr(log);
        let status = prepare::wait(&mut command)?;
        if !status.success() {
            let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            for line in last_lines(&log, SHOWN_LINES) {
                eprintln!("{line}");
            }
        }
        ensure!(
            status.success(),
            "building {}: {status}; log: {}",
            self.what,
            path.display()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_sources_is_told_from_one_whose_name_begins_alike() {
        let root = std::env::temp_dir().join(format!("asyncfork-dsc-{}", std::process::id()));
        fs::create_dir_all(root.join("usr/src")).unwrap();
        fs::write(root.join("usr/src/redis_8.0-1.dsc"), "").unwrap();
        fs::write(root.join("usr/src/valkey_8.1.orig.tar.gz"), "").unwrap();
        let has = |server| has_sources(&root, server).unwrap();
        assert_eq!(
            (has("redis"), has("valkey"), has("red")),
            (true, false, false)
        );
        fs::remove_dir_all(&root).unwrap();
    }
}
