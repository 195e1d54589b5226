// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packages of scripts/package, on a machine with a server that is in the middle of a snapshot: README's lines, an
//! upgrade to another ABI, a purge.

use super::Test;
use crate::ctx::Ctx;
use crate::module;
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_uapi::{By, Outcome as Fate, Reason};
use std::collections::hash_map::DefaultHasher;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const TESTS: &[Test] = &[
    Test::new(
        "packages_upgraded_to_another_abi_during_a_snapshot_keep_forks_async",
        upgraded,
    )
    .systemd(),
    Test::new(
        "packages_installed_by_readmes_lines_and_purged_during_snapshots_leave_nothing",
        installed,
    )
    .systemd(),
    Test::new(
        "unsigned_module_is_refused_where_signatures_are_enforced_and_doctor_says_what_to_do",
        signatures,
    )
    .systemd()
    .forbids_modules(),
];

/// Of the checkout, in which tests run: scripts/test has it made.
const DEBS: &str = "target/packages/tested";

/// A machine with a running server, without the packages at the end.
struct Machine {
    debs: PathBuf,
    faults: PathBuf,
}

impl Machine {
    /// The module is not loaded afterwards.
    fn set_up(ctx: &Ctx) -> TestResult<Self> {
        let checkout = std::env::current_dir()?;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let faults = format!("target/kmod/{}-faults/asyncfork.ko", release.trim());
        let machine = Machine {
            debs: checkout.join(DEBS),
            faults: checkout.join(faults),
        };
        require!(
            machine.debs.exists() && machine.faults.exists(),
            "no {} or {}",
            machine.debs.display(),
            machine.faults.display()
        );
        ctx.module.unload()?;
        machine.sh("set_up")?;
        Ok(machine)
    }

    /// The module of the tests is loaded afterwards.
    fn end(self, ctx: &Ctx) -> TestResult {
        drop(self);
        Ok(ctx.module.load("")?)
    }

    /// What the steps say, all of which succeed.
    fn sh(&self, steps: &str) -> TestResult<String> {
        let text = include_str!("packages.sh");
        let output = Command::new("bash")
            .args(["-c", &format!("{text}\n{steps}")])
            .env("DEBS", &self.debs)
            .env("FAULTS", &self.faults)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        Err(Verdict::Failed(format!(
            "{steps:?}: {}: {said}; {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(v) = self.sh("tear_down") {
            eprintln!("{v}");
        }
    }
}

/// From a release whose module speaks ABI 2, of which this library and this command are the next: forks stay asynchronous,
/// with no reboot and no reload.
fn upgraded(ctx: &Ctx) -> TestResult<String> {
    const OLD: &str = r#"
make_old
echo 'options asyncfork fault_abi=2 allow_untested=1' >/etc/modprobe.d/test.conf
dpkg -i $old/*.deb
modprobe asyncfork
udevadm settle
mkdir -p /etc/systemd/system/$unit.service.d
printf '[Service]\nEnvironment=ASYNCFORK_LOG=info\n' >/etc/systemd/system/$unit.service.d/test.conf
asyncfork enable $unit --via preload --restart
populate
snapshot
"#;
    const UPGRADE: &str = r#"
before=$(loaded)
[[ $(next) == "$before" ]]
meanwhile apt install $(scripts/package)
[[ $(loaded) == "$before" && $(next) != "$before" ]]
grep -q 'libasyncfork.so (deleted)' /proc/$(main_pid)/maps
snapshot
systemctl restart $unit
populate
! grep -q 'libasyncfork.so (deleted)' /proc/$(main_pid)/maps
snapshot
[[ $(loaded) == "$before" ]]
asyncfork status
"#;
    let machine = Machine::set_up(ctx)?;
    // The journal has what other tests' services said, too.
    let lines = || -> TestResult<usize> {
        let journal = machine.sh("journalctl --no-pager -o cat -u $unit")?;
        Ok(journal.matches("async fork of").count())
    };
    let before = lines()?;
    machine.sh(OLD).at("the release before")?;
    let said = machine.sh(UPGRADE)?;
    // One before, one that was under way, one with the old library, one with the new one.
    claim!(
        said.contains("ABI 2") && said.contains("4 asynchronous, 0 stock"),
        "the module says: {said}"
    );
    let said = lines()? - before;
    claim!(said == 4, "{said} lines of the library, want 4");
    machine.end(ctx)?;
    Ok("4 async forks, by a module of ABI 2".into())
}

/// On a machine where nobody has heard of it.
fn installed(ctx: &Ctx) -> TestResult<String> {
    let machine = Machine::set_up(ctx)?;
    let before = changes()?;
    as_readme_says(ctx, &machine)?;
    // Somebody has the device open for a while.
    machine
        .sh("sleep 5 </dev/asyncfork & meanwhile apt purge '^asyncfork'")
        .at("purge")?;
    claim!(
        !ctx.module.is_loaded() && !Path::new("/dev/asyncfork").exists(),
        "the module is there after the purge"
    );
    expect_unchanged(&before, &changes()?)?;
    machine.end(ctx)?;
    Ok("README's lines, purge".into())
}

/// How a fork ended, why, and who had asked for it.
type Ending = (Fate, Reason, By);

/// The lines of README, as they are.
fn as_readme_says(ctx: &Ctx, machine: &Machine) -> TestResult {
    let readme = fs::read_to_string("README.md")?;
    let lines = readme
        .split_once("## Use it")
        .and_then(|(_, rest)| rest.split_once("```sh\n"))
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(lines, _)| lines.lines().collect::<Vec<_>>())
        .unwrap_or_default();
    for word in [
        "apt install",
        "modprobe",
        "enable",
        "bgsave",
        "explain",
        "off",
    ] {
        claim!(
            lines.iter().any(|line| line.contains(word)),
            "README has no line with {word}: {lines:?}"
        );
    }
    let mut said = String::new();
    for line in lines {
        let line = line.split('#').next().unwrap_or_default().trim();
        said += &match line {
            install if install.contains("apt install") => {
                machine.sh(&format!("meanwhile {install}"))
            }
            bgsave if bgsave.contains("bgsave") => machine.sh(&format!("{bgsave}\nsnapshot_ends")),
            line => machine.sh(line),
        }?;
    }
    claim!(
        said.contains("an asynchronous fork"),
        "the fork is explained so: {said}"
    );
    const ASYNC: Ending = (Fate::Async, Reason::None, By::Enrolled);
    let off = (Fate::Stock, Reason::Disabled, By::Enrolled);
    expect_forks("snapshot", machine, &[ASYNC, off])?;
    expect_forks("asyncfork on; snapshot", machine, &[ASYNC, off, ASYNC])?;
    // By its drop-in.
    const RESTART: &str = "systemctl restart $unit; populate; snapshot";
    expect_forks(RESTART, machine, &[ASYNC, off, ASYNC, ASYNC])?;
    // With those of doctor's own processes.
    let said = machine.sh("asyncfork status; asyncfork metrics")?;
    let stats = ctx.stats()?;
    for words in [
        format!("{} asynchronous, {} stock", stats.r#async, stats.stock),
        format!(
            "asyncfork_forks_total{{outcome=\"async\"}} {}",
            stats.r#async
        ),
        "asyncfork_stock_forks_total{reason=\"disabled\"} 1".into(),
    ] {
        claim!(said.contains(&words), "no {words:?} in {said}");
    }
    Ok(())
}

fn expect_forks(steps: &str, machine: &Machine, want: &[Ending]) -> TestResult {
    machine.sh(steps)?;
    let mut forks = module::recent(&module::open()?)?;
    forks.retain(|r| r.comm() == b"redis-server");
    forks.sort_by_key(|r| r.seq);
    let forks: Vec<Ending> = forks
        .iter()
        .map(|r| (r.outcome(), r.reason(), r.by()))
        .collect();
    claim!(forks == want, "after {steps:?} the ring has {forks:?}");
    Ok(())
}

fn signatures(ctx: &Ctx) -> TestResult<String> {
    const ENFORCE: &str = "/sys/module/module/parameters/sig_enforce";
    let machine = Machine::set_up(ctx)?;
    machine.sh("apt install $(scripts/package)")?;
    fs::write(ENFORCE, "1").at(ENFORCE)?;
    let said = machine.sh("! modprobe asyncfork 2>&1")?;
    claim!(said.contains("Key was rejected"), "modprobe says {said}");
    let said = machine.sh("asyncfork doctor || [[ $? == 1 ]]")?;
    for words in ["module.unsigned", "has no signature", "with Secure Boot"] {
        claim!(
            said.contains(words),
            "doctor does not say {words:?}: {said}"
        );
    }
    // The server does not mind.
    machine.sh("asyncfork enable $unit --restart; populate; snapshot")?;
    Ok("refused".into())
}

/// Where the guest's PID 1 has put the two halves of its root.
const LOWER: &str = "/run/asyncfork/lower";
const UPPER: &str = "/run/asyncfork/upper";
/// Logs, caches, what dpkg and apt know, and what systemd keeps for itself; backups of the files of users and groups.
const NOBODYS: &[&str] = &[
    "tmp",
    "var/log",
    "var/cache",
    "var/tmp",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/lib/systemd/timers",
    "var/lib/systemd/random-seed",
    "etc/group-",
    "etc/gshadow-",
    "etc/.pwd.lock",
];

/// What is not as in the read-only root, and what it is now.
fn changes() -> TestResult<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    add_changes(Path::new(""), &mut found).at(UPPER)?;
    Ok(found)
}

fn add_changes(directory: &Path, found: &mut BTreeMap<PathBuf, String>) -> io::Result<()> {
    for name in names(Path::new(UPPER), directory)? {
        let path = directory.join(name);
        // If it is gone, its directory lacks a name.
        let Some(now) = describe(Path::new("/"), &path)? else {
            continue;
        };
        if describe(Path::new(LOWER), &path)?.as_ref() != Some(&now) {
            found.insert(path.clone(), now);
        }
        if fs::symlink_metadata(Path::new(UPPER).join(&path))?.is_dir() {
            add_changes(&path, found)?;
        }
    }
    Ok(())
}

/// The names in a directory, sorted, but for what is nobody's.
fn names(root: &Path, directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join(directory))? {
        let name = entry?.file_name();
        let path = directory.join(&name);
        if NOBODYS.iter().all(|nobodys| path != Path::new(nobodys)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Kind, owner and contents.
fn describe(root: &Path, path: &Path) -> io::Result<Option<String>> {
    let full = root.join(path);
    let data = match fs::symlink_metadata(&full) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        data => data?,
    };
    let contents = if data.is_symlink() {
        format!("{:?}", fs::read_link(&full)?)
    } else if data.is_dir() {
        format!("{:?}", names(root, path)?)
    } else if data.is_file() {
        let mut hasher = DefaultHasher::new();
        fs::read(&full)?.hash(&mut hasher);
        format!("{} bytes, {:x}", data.len(), hasher.finish())
    } else {
        String::new()
    };
    let (mode, uid, gid) = (data.mode(), data.uid(), data.gid());
    Ok(Some(format!("{mode:o} {uid}:{gid} {contents}")))
}

fn expect_unchanged(
    before: &BTreeMap<PathBuf, String>,
    after: &BTreeMap<PathBuf, String>,
) -> TestResult {
    let paths = before.keys().chain(after.keys());
    let unequal: BTreeMap<_, _> = paths
        .filter(|path| before.get(*path) != after.get(*path))
        .map(|path| (path, (before.get(path), after.get(path))))
        .collect();
    claim!(unequal.is_empty(), "not as before: {unequal:#?}");
    Ok(())
}
