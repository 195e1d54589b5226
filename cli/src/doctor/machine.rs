// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running kernel, the loaded module, its device, and the system's settings.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use asyncfork_uapi::{Outcome, Reason};
use nix::sys::stat::{major, minor};

use super::finding::{self as f, Findings};
use super::{kernel, signature};
use crate::commands::hidden;
use crate::ctx::Ctx;
use crate::host::Host;
use crate::module::{self, Policy, State};
use crate::pause::meminfo;
use crate::process::Process;
use crate::{cgroup, library, modprobe};

/// Where the package's udev rule and everybody else expects the device.
const DEVICE: &str = "/dev/asyncfork";

/// The line that makes the node again: udev does not, it leaves that to the kernel, which
/// does so once, when the module is loaded.
fn make_node(host: &Host) -> String {
    let number = host.line("/sys/class/misc/asyncfork/dev");
    let number = number.unwrap_or_default().replace(':', " ");
    let groups = host.read("/etc/group").unwrap_or_default();
    let group = if groups.lines().any(|line| line.starts_with("asyncfork:")) {
        format!(" && chgrp asyncfork {DEVICE}")
    } else {
        String::new()
    };
    format!("mknod -m 660 {DEVICE} c {number}{group}")
}

/// Module and device.
pub fn check(ctx: &Ctx<'_>, findings: &mut Findings) {
    if module::is_loaded(&ctx.host) {
        loaded(ctx, findings);
    } else {
        not_loaded(ctx, findings);
    }
    kernels(ctx, findings);
}

fn not_loaded(ctx: &Ctx<'_>, findings: &mut Findings) {
    let host = &ctx.host;
    let release = ctx.kernel();
    let file = kernel::module_file(host, &release);
    if !kernel::is_supported(&release) {
        let boot = kernel::boot_another(host);
        findings.add(
            &f::KERNEL_UNSUPPORTED,
            format!(
                "uname -r says {release}; tested series: {}",
                kernel::series()
            ),
            match file {
                Some(_) => {
                    format!("{boot}, or at your own risk: modprobe asyncfork allow_untested=1")
                }
                None => boot,
            },
        );
        return;
    }
    let Some(file) = file else {
        findings.add(
            &f::MODULE_MISSING,
            kernel::missing(host, &release),
            kernel::build(host, &release),
        );
        return;
    };
    if signature::check(ctx, &release, &file, &f::MODULE_UNSIGNED, findings) {
        findings.add(
            &f::MODULE_NOT_LOADED,
            format!("{} is there, {} is not", file.display(), module::SYSFS),
            "modprobe asyncfork  # if it refuses, dmesg says why",
        );
    }
}

/// Kernels that are installed, besides what the running one has.
fn kernels(ctx: &Ctx<'_>, findings: &mut Findings) {
    let host = &ctx.host;
    let running = ctx.kernel();
    if let Some(evidence) = kernel::old(host, &running) {
        findings.add(&f::MODULE_OLD, evidence, kernel::build(host, &running));
    }
    for release in kernel::installed(host) {
        if release != running && kernel::module_file(host, &release).is_none() {
            findings.add(
                &f::KERNEL_WITHOUT_MODULE,
                kernel::missing(host, &release),
                kernel::build(host, &release),
            );
        }
    }
}

fn loaded(ctx: &Ctx<'_>, findings: &mut Findings) {
    let host = &ctx.host;
    let module = (ctx.connect)(host, &ctx.device);
    let asked = module.and_then(|module| {
        let version = module.version()?;
        Ok((
            version,
            version.is_usable().then(|| module.stats()).transpose()?,
        ))
    });
    // Before ABI 3 a module warns when it switches itself off; a later one says its state.
    let warns = match &asked {
        Ok((version, _)) => version.abi < 3,
        Err(_) => module::parameter(host, "state").is_none(),
    };
    let panics = host.line("/proc/sys/kernel/panic_on_warn");
    if warns && panics.is_some_and(|n| n != "0") {
        findings.add(
            &f::KERNEL_PANIC_ON_WARN,
            "kernel.panic_on_warn is 1, and this module warns when it switches itself off",
            "sysctl kernel.panic_on_warn=0",
        );
    }
    let stats = match asked {
        Ok((_, Some(stats))) => Some(stats),
        Ok((version, None)) => {
            findings.add(
                &f::MODULE_ABI,
                module::abi_mismatch(&version),
                "install command and module of the same release, then: modprobe -r asyncfork && modprobe asyncfork",
            );
            None
        }
        Err(e) => {
            if !node(host, &ctx.device, findings) {
                findings.unknown("the module's totals", format!("{e:#}"));
            }
            None
        }
    };
    match State::of(host, stats.as_ref()) {
        State::SwitchedOff(why) => findings.add(
            &f::MODULE_SWITCHED_OFF,
            why.unwrap_or_else(|| "its statistics say so; the kernel log has a warning".into()),
            "modprobe -r asyncfork && modprobe asyncfork  # after keeping the kernel log, to report it",
        ),
        State::Off => {
            let places = modprobe::off_at_load(host);
            let (more, fix) = if places.is_empty() {
                (String::new(), "asyncfork on")
            } else {
                (
                    format!("; also {}", places.join(", ")),
                    "asyncfork on --persist",
                )
            };
            findings.add(
                &f::MODULE_OFF,
                format!("{}: N{more}", module::parameter_path("enabled").display()),
                fix,
            );
        }
        State::On | State::NotLoaded => {}
    }
    let Some(stats) = stats else {
        return;
    };
    if stats.enrolled > 0 && module::policy(host) == Some(Policy::Armed) {
        findings.add(
            &f::MODULE_POLICY,
            format!(
                "{} cgroups are enrolled, and {} is armed",
                stats.enrolled,
                module::parameter_path("policy").display()
            ),
            "echo enrolled > /sys/module/asyncfork/parameters/policy",
        );
    }
    // Totals never fall: what counts is what the module still remembers.
    let recent = ctx.module().and_then(|module| module.recent());
    let recent = recent.unwrap_or_default();
    let limited = recent
        .iter()
        .filter(|fork| fork.0.outcome() == Outcome::Stock && fork.0.reason() == Reason::Limit);
    let limited = limited.count();
    if limited > 0 {
        let limit = module::parameter(host, "max_sessions")
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(1024);
        findings.add(
            &f::MODULE_LIMIT,
            format!(
                "{limited} of the last {} forks; max_sessions is {limit}",
                recent.len()
            ),
            format!(
                "echo {} > /sys/module/asyncfork/parameters/max_sessions",
                (limit * 2).max(1)
            ),
        );
    }
    let aborted = recent
        .iter()
        .filter(|fork| fork.is_async() && fork.0.state() == asyncfork_uapi::State::Aborted);
    let aborted: Vec<_> = aborted.map(|fork| fork.0.parent_pid.to_string()).collect();
    if stats.killed > 0 && !aborted.is_empty() {
        findings.add(
            &f::MODULE_KILLED,
            format!(
                "{} of the last {} forks, of processes {}",
                aborted.len(),
                recent.len(),
                aborted.join(", ")
            ),
            "give their cgroups (memory.max), or the machine, more memory",
        );
    }
}

/// Looks at the device node. Whether something was found.
fn node(host: &Host, path: &Path, findings: &mut Findings) -> bool {
    // Another path than the usual one may be anything: nothing is to be made or removed there.
    let is_usual = path == Path::new(DEVICE);
    let other = format!("name the module's device by --device, and in ASYNCFORK_DEVICE: {DEVICE}");
    let metadata = match host.metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            findings.add(
                &f::DEVICE_MISSING,
                format!("there is no {}", path.display()),
                if is_usual { make_node(host) } else { other },
            );
            return true;
        }
        Err(_) => return false,
    };
    if let Some(evidence) = stale(host, path, &metadata) {
        let remove = if metadata.is_dir() { "rmdir" } else { "rm" };
        findings.add(
            &f::DEVICE_STALE,
            evidence,
            if is_usual {
                format!("{remove} {DEVICE} && {}", make_node(host))
            } else {
                other
            },
        );
        return true;
    }
    false
}

/// In which way a node is not the module's.
pub fn stale(host: &Host, path: &Path, metadata: &std::fs::Metadata) -> Option<String> {
    let wanted = host.line("/sys/class/misc/asyncfork/dev")?;
    if !metadata.file_type().is_char_device() {
        return Some(format!(
            "{} is no device; the module's is {wanted}",
            path.display()
        ));
    }
    let found = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    (found != wanted).then(|| format!("{} is {found}; the module's is {wanted}", path.display()))
}

/// Tries the hooks.
pub fn self_test(ctx: &Ctx<'_>, findings: &mut Findings) {
    match hidden::run_self_test(ctx) {
        Ok(found) if found.passed => {}
        Ok(found) => {
            let bad: Vec<_> = found
                .lines
                .into_iter()
                .filter(|line| {
                    ["DID NOT FIRE", "WRONG", "INCONCLUSIVE", "FAILED"]
                        .iter()
                        .any(|word| line.contains(word))
                })
                .collect();
            findings.add(
                &f::MODULE_HOOKS,
                bad.join("; "),
                "asyncfork off  # then report it, with the kernel's release and its log",
            );
        }
        Err(e) => findings.unknown("the hooks", format!("{e:#}")),
    }
}

/// What the system is set to.
pub fn check_system(ctx: &Ctx<'_>, process: Option<&Process>, findings: &mut Findings) {
    let host = &ctx.host;
    let preload = host.read("/etc/ld.so.preload").unwrap_or_default();
    let mut entries = preload.lines().flat_map(library::entries);
    if let Some(entry) = entries.find(|entry| library::is_ours(entry)) {
        findings.add(
            &f::LIBRARY_EVERYWHERE,
            format!("/etc/ld.so.preload has {entry}"),
            // An entry of others in the same line stays.
            format!(
                r"sed -i 's,[^ :]*{},,' /etc/ld.so.preload  # then asyncfork enable UNIT, for each that is to have it",
                library::NAME
            ),
        );
    }
    if let Err(e) = cgroup::mount(host) {
        findings.add(
            &f::CGROUP_V1,
            format!("{e:#}"),
            "boot with systemd.unified_cgroup_hierarchy=1, or use the library: --via preload",
        );
    }
    overcommit(host, process, findings);
    if let Some(process) = process {
        let always = host.line("/sys/kernel/mm/transparent_hugepage/enabled");
        if always.is_some_and(|text| text.contains("[always]"))
            && process.status.thp_enabled != Some(false)
        {
            findings.add(
                &f::MEMORY_THP,
                format!(
                    "transparent_hugepage/enabled is always, and process {} has not opted out",
                    process.pid
                ),
                "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
            );
        }
    }
}

fn overcommit(host: &Host, process: Option<&Process>, findings: &mut Findings) {
    let bytes = |name| meminfo(host, name).unwrap_or(0);
    let private = process.map(|p| p.status.vmdata.unwrap_or(0) << 10);
    let evidence = match host.line("/proc/sys/vm/overcommit_memory").as_deref() {
        Some("2") => {
            let left = bytes("CommitLimit").saturating_sub(bytes("Committed_AS"));
            match private {
                Some(private) if private <= left => return,
                Some(private) => format!("vm.overcommit_memory is 2; {left} bytes may be promised, a fork promises up to {private}"),
                None => "vm.overcommit_memory is 2".into(),
            }
        }
        Some("0") => {
            let all = bytes("MemTotal") + bytes("SwapTotal");
            match private {
                Some(private) if private > all => {
                    format!("vm.overcommit_memory is 0; a fork promises up to {private} bytes, memory and swap are {all}")
                }
                _ => return,
            }
        }
        _ => return,
    };
    findings.add(
        &f::MEMORY_OVERCOMMIT,
        evidence,
        "sysctl vm.overcommit_memory=1",
    );
}
