// SPDX-License-Identifier: MIT OR Apache-2.0
//! One process: is it served, and by what is it kept from it.

use std::ffi::CStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use asyncfork_settings::{base_name, names, Mode, Settings};
use asyncfork_uapi::{By, Outcome, Reason};

use super::finding::{self as f, Findings};
use super::{machine, Target};
use crate::commands::enable;
use crate::commands::explain::advice;
use crate::ctx::Ctx;
use crate::host::Host;
use crate::module::{self, Enrolment, Policy, ENROLMENT_ABI};
use crate::out::bytes;
use crate::process::{Mapped, Process};
use crate::{cgroup, elf, library};

/// Whether the process is served by the library, its cgroup or the policy.
pub fn check(ctx: &Ctx<'_>, process: &Process, target: &Target, findings: &mut Findings) -> bool {
    let enrolment = enrolment(ctx, process);
    let policy = module::policy(&ctx.host);
    let by_cgroup = enrolment.is_some() && policy != Some(Policy::Armed);
    let by_policy = match policy {
        Some(Policy::All { min_rss }) => process.resident_bytes() >= min_rss,
        _ => false,
    };
    let otherwise = by_cgroup || by_policy;
    let by_library = with_library(ctx, process, target, otherwise, findings);
    // The library of a process that is to be left alone tells the module.
    let served = by_library || (otherwise && !findings.has(&f::SETTINGS_OFF));
    if let (Some(enrolment), false) = (&enrolment, by_library) {
        small(process, enrolment.terms.min_rss, "its enrolment", findings);
    }
    let unknown = process.library.is_none();
    let told = [
        &f::LIBRARY_NOT_MAPPED,
        &f::LIBRARY_INCOMPATIBLE,
        &f::SETTINGS_OFF,
        &f::MODULE_POLICY,
    ]
    .iter()
    .any(|kind| findings.has(kind));
    if !served && !unknown && !told {
        let seen = format!(
            "process {} ({}) has no {}",
            process.pid,
            process.status.name,
            library::NAME
        );
        findings.add(
            &f::PROCESS_NOT_SERVED,
            format!("{seen}, {}", not_enrolled(process)),
            serve(ctx, process, target),
        );
    }
    memory(&ctx.host, process, findings);
    one_cpu(ctx, process, findings);
    last_fork(ctx, process, findings);
    limit(&ctx.host, process, target, findings);
    served
}

fn not_enrolled(process: &Process) -> String {
    match &process.cgroup {
        Some(path) => format!("and its cgroup {path} is not enrolled"),
        None => "and no cgroup that could be enrolled".into(),
    }
}

/// The line that makes its forks asynchronous.
fn serve(ctx: &Ctx<'_>, process: &Process, target: &Target) -> String {
    let directory = process
        .cgroup
        .as_deref()
        .and_then(|path| cgroup::directory(&ctx.host, path).ok());
    let version = ctx.module().and_then(|module| module.version());
    let can_enrol = directory.is_some() && version.map_or(true, |v| v.abi >= ENROLMENT_ABI);
    match (&target.unit, can_enrol) {
        (Some((unit, _)), true) => enable::enrol_again(&ctx.host, unit)
            .unwrap_or_else(|| format!("asyncfork enable {unit}")),
        (Some((unit, _)), false) => format!("asyncfork enable {unit} --via preload --restart"),
        (None, true) => format!("asyncfork enroll --pid {}", process.pid),
        (None, false) => format!("start it by asyncfork run -- {}", process.status.name),
    }
}

/// The enrolment of its cgroup, or of one that this is in.
fn enrolment(ctx: &Ctx<'_>, process: &Process) -> Option<Enrolment> {
    let enrolled = ctx.module().ok()?.enrolled().ok()?;
    let directory = cgroup::directory(&ctx.host, process.cgroup.as_deref()?).ok()?;
    let ids = cgroup::ids_upwards(&ctx.host, &directory);
    ids.iter()
        .find_map(|id| enrolled.iter().find(|e| e.id == *id).copied())
}

/// Checks the library and its settings; whether they serve the process. What keeps the
/// library from it is no finding if it is served otherwise.
fn with_library(
    ctx: &Ctx<'_>,
    process: &Process,
    target: &Target,
    otherwise: bool,
    findings: &mut Findings,
) -> bool {
    let preload = process.variable("LD_PRELOAD").unwrap_or_default();
    let named = library::entries(preload).find(|entry| library::is_ours(entry));
    match (&process.library, named) {
        (None, _) if otherwise => return false,
        (None, _) => {
            findings.unknown(
                format!("whether process {} has the library", process.pid),
                "its maps may not be read: run doctor as root",
            );
            return false;
        }
        (Some(Mapped::No), None) => return false,
        (Some(Mapped::No), Some(_)) if otherwise => return false,
        (Some(Mapped::No), Some(named)) => {
            not_mapped(ctx, process, target, named, findings);
            return false;
        }
        (Some(Mapped::Deleted(path)), _) => findings.add(
            &f::LIBRARY_DELETED,
            format!(
                "process {} has {}, which is not the file of that name any more",
                process.pid,
                path.display()
            ),
            target.restart(),
        ),
        (Some(Mapped::Yes(_)), _) => {}
    }
    if process.environment.is_none() && process.overwritten && process.marked {
        findings.add(
            &f::SETTINGS_REQUIRE,
            "it has the mark that the library makes for ASYNCFORK=require, and off",
            format!(
                "take ASYNCFORK=require out of its environment, then {}",
                target.restart()
            ),
        );
    } else if process.environment.is_none() {
        findings.unknown(
            format!("the settings of process {}", process.pid),
            if process.overwritten {
                "it has overwritten its environment, as Redis does for its title: look at the unit, or at what starts it"
            } else {
                "its environment may not be read: run doctor as root"
            },
        );
    }
    let get = |name: &CStr| process.variable(name.to_str().ok()?).map(str::as_bytes);
    let (settings, problems) = Settings::parse(get);
    for problem in &problems {
        let evidence = problem.to_string();
        let name = evidence.split('=').next().unwrap_or_default().to_owned();
        findings.add(
            &f::SETTINGS_INVALID,
            evidence,
            format!(
                "correct {name} in its environment, then {}",
                target.restart()
            ),
        );
    }
    if !is_wanted(process, &settings) {
        findings.add(
            &f::SETTINGS_OFF,
            match settings.mode {
                Mode::Off => "ASYNCFORK=off".to_owned(),
                _ => format!(
                    "ASYNCFORK_MATCH={}",
                    String::from_utf8_lossy(settings.programs)
                ),
            },
            format!("take it out of its environment, then {}", target.restart()),
        );
        return false;
    }
    if settings.mode == Mode::Require {
        findings.add(
            &f::SETTINGS_REQUIRE,
            "ASYNCFORK=require; stop-writes-on-bgsave-error is yes by default",
            format!(
                "take ASYNCFORK=require out of its environment, then {}",
                target.restart()
            ),
        );
    }
    if process.environment.is_some() {
        small(process, settings.min_rss, "ASYNCFORK_MIN_RSS", findings);
    }
    let device = String::from_utf8_lossy(settings.device.as_c_str().to_bytes()).into_owned();
    if !otherwise && module::is_loaded(&ctx.host) {
        device_inside(ctx, process, target, Path::new(&device), findings);
    }
    true
}

fn is_wanted(process: &Process, settings: &Settings<'_>) -> bool {
    if settings.mode == Mode::Off {
        return false;
    }
    let mut wanted = names(settings.programs).peekable();
    if wanted.peek().is_none() {
        return true;
    }
    let exe = process
        .exe
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default();
    let exe = exe.trim_end_matches(" (deleted)");
    wanted.any(|name| name == base_name(exe.as_bytes()) || name == process.status.name.as_bytes())
}

fn small(process: &Process, least: u64, what: &str, findings: &mut Findings) {
    if process.resident_bytes() < least {
        findings.add(
            &f::PROCESS_SMALL,
            format!(
                "{} resident, {what} is {}",
                bytes(process.resident_bytes()),
                bytes(least)
            ),
            "nothing, its forks are short; or lower the size",
        );
    }
}

fn not_mapped(
    ctx: &Ctx<'_>,
    process: &Process,
    target: &Target,
    named: &str,
    findings: &mut Findings,
) {
    let inside = PathBuf::from(format!("/proc/{}/root", process.pid));
    let file = inside.join(named.trim_start_matches('/'));
    let program = PathBuf::from(format!("/proc/{}/exe", process.pid));
    let evidence = format!("LD_PRELOAD of process {} names {named}", process.pid);
    if ctx.host.exists(&file) {
        if let Some(why) = elf::obstacle(&ctx.host, &file, &program) {
            findings.add(
                &f::LIBRARY_INCOMPATIBLE,
                format!("{evidence}: {why}"),
                other_way(ctx, process, target),
            );
            return;
        }
    }
    findings.add(
        &f::LIBRARY_NOT_MAPPED,
        format!("{evidence}, and it is not mapped"),
        match &target.unit {
            Some((unit, _)) => format!("asyncfork enable {unit} --via preload --restart; journalctl -u {unit} has the loader's reason"),
            None => format!("look for the loader's message where its standard error goes; the file must be readable for it: ls -l {}", file.display()),
        },
    );
}

/// What serves a program that takes no library.
fn other_way(ctx: &Ctx<'_>, process: &Process, target: &Target) -> String {
    match (&target.unit, serve(ctx, process, target)) {
        (_, way) if !way.contains("preload") && !way.contains("run --") => way,
        (Some((unit, _)), _) => format!(
            "asyncfork enable {unit}, with a module that has enrolment (ABI {ENROLMENT_ABI})"
        ),
        (None, _) => format!(
            "asyncfork enroll --pid {}, with a module that has enrolment (ABI {ENROLMENT_ABI})",
            process.pid
        ),
    }
}

/// The device as the process sees it.
fn device_inside(
    ctx: &Ctx<'_>,
    process: &Process,
    target: &Target,
    device: &Path,
    findings: &mut Findings,
) {
    let root = PathBuf::from(format!("/proc/{}/root", process.pid));
    let path = root.join(device.strip_prefix("/").unwrap_or(device));
    let show = match &target.unit {
        Some((unit, _)) => format!("asyncfork enable {unit} --via preload --restart"),
        None => format!(
            "give it {}: a container, by --device {}; then restart it",
            device.display(),
            device.display()
        ),
    };
    let metadata = match ctx.host.metadata(&path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Not in the host's either: that is the host's finding.
            if !findings.has(&f::DEVICE_MISSING) {
                findings.add(
                    &f::DEVICE_HIDDEN,
                    format!(
                        "there is no {} for process {}",
                        device.display(),
                        process.pid
                    ),
                    show,
                );
            }
            return;
        }
        Err(e) => {
            findings.unknown(
                format!("the device as process {} sees it", process.pid),
                format!("{}: {e}", path.display()),
            );
            return;
        }
    };
    if let Some(evidence) = machine::stale(&ctx.host, &path, &metadata) {
        // As above.
        if !findings.has(&f::DEVICE_STALE) {
            findings.add(&f::DEVICE_STALE, evidence, show);
        }
        return;
    }
    if !may_open(process, &metadata) {
        findings.add(
            &f::DEVICE_DENIED,
            format!(
                "{} is {:o} {}:{}; process {} is user {}, groups {:?}",
                device.display(),
                metadata.mode() & 0o777,
                metadata.uid(),
                metadata.gid(),
                process.pid,
                process.status.euid,
                process.status.groups
            ),
            match &target.unit {
                Some(_) => show,
                None => format!(
                    "let its user be in the device's group, asyncfork (usermod -aG, or a container's --group-add); then {}",
                    target.restart()
                ),
            },
        );
        return;
    }
    if let Some((unit, shown)) = &target.unit {
        let policy = shown.get("DevicePolicy");
        let strict = shown.get("PrivateDevices") == "yes"
            || matches!(policy, "closed" | "strict")
            || !shown.get("DeviceAllow").is_empty();
        if !strict {
            return;
        }
        if shown.get("DeviceAllow").contains("asyncfork") {
            // systemd has looked the number up as the service started. The module may have got the same one again.
            if enable::started_before(&ctx.host, &path, shown) && !has_armed(ctx, process) {
                findings.add(
                    &f::UNIT_DEVICE,
                    format!(
                        "{unit} was started before {} was made, and has not used it since",
                        device.display()
                    ),
                    format!("systemctl restart {unit}"),
                );
            }
        } else {
            findings.add(
                &f::DEVICE_DENIED,
                format!(
                    "{unit} has DevicePolicy={policy}, and no DeviceAllow= for {}",
                    device.display()
                ),
                show,
            );
        }
    }
}

/// Whether the mode of a node lets a process read and write it.
fn may_open(process: &Process, metadata: &Metadata) -> bool {
    let status = &process.status;
    may(
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        status.euid,
        status.egid,
        &status.groups,
    )
}

fn may(mode: u32, uid: u32, gid: u32, euid: u32, egid: u32, groups: &[u32]) -> bool {
    let shift = if euid == uid {
        6
    } else if egid == gid || groups.contains(&gid) {
        3
    } else {
        0
    };
    euid == 0 || mode >> shift & 0o6 == 0o6
}

fn memory(host: &Host, process: &Process, findings: &mut Findings) {
    let descriptor = |starts: &[&str]| {
        let mut all = process.descriptors.iter().map(|(_, link)| link);
        all.find(|link| starts.iter().any(|start| link.starts_with(start)))
            .cloned()
    };
    let pinned = process.status.vmpin.unwrap_or(0);
    let buffers = ring_buffers(host, process);
    let evidence = if pinned > 0 {
        Some(format!("{} pinned now (VmPin)", bytes(pinned << 10)))
    } else if buffers > 0 {
        Some(format!("{} are buffers of an io_uring", bytes(buffers)))
    } else {
        descriptor(&["/dev/infiniband/uverbs", "/dev/vfio/"])
            .map(|link| format!("it has {link} open"))
    };
    if let Some(evidence) = evidence {
        findings.add(&f::PROCESS_PINNED, evidence, advice(Reason::Pinned));
    }
    if let Some(link) = descriptor(&["anon_inode:kvm-vm", "/dev/nvidia", "/dev/kfd"]) {
        findings.add(
            &f::PROCESS_NOTIFIER,
            format!("it has {link} open"),
            advice(Reason::Notifier),
        );
    }
    if let Some(link) = descriptor(&["anon_inode:[userfaultfd]"]) {
        findings.add(
            &f::PROCESS_UFFD,
            format!("it has {link} open"),
            advice(Reason::Uffd),
        );
    }
}

/// Bytes that are registered as buffers of its io_urings: not every kernel counts them as
/// pinned by the process.
fn ring_buffers(host: &Host, process: &Process) -> u64 {
    let rings = process
        .descriptors
        .iter()
        .filter(|(_, link)| link == "anon_inode:[io_uring]");
    rings
        .filter_map(|(number, _)| {
            host.read(format!("/proc/{}/fdinfo/{number}", process.pid))
                .ok()
        })
        .map(|text| registered(&text))
        .sum()
}

/// The sum of the buffers in what fdinfo says of an io_uring.
fn registered(fdinfo: &str) -> u64 {
    let lines = fdinfo.lines().skip_while(|l| !l.starts_with("UserBufs:"));
    let buffers = lines.skip(1).take_while(|line| line.starts_with(' '));
    buffers
        .filter_map(|line| {
            let (address, len) = line.split_once("0x")?.1.split_once('/')?;
            // The kernel's own buffers have no address here.
            (address != "0").then(|| len.parse::<u64>().ok())?
        })
        .sum()
}

/// A processor that is online, besides this one.
fn another_cpu(host: &Host, cpu: u32) -> Option<u32> {
    let online = host.line("/sys/devices/system/cpu/online")?;
    let ranges = online.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().find(|&other| other != cpu)
}

fn one_cpu(ctx: &Ctx<'_>, process: &Process, findings: &mut Findings) {
    if process.cpus() != Some(1)
        || process
            .variable("ASYNCFORK_THREADS")
            .is_some_and(|n| n != "0")
    {
        return;
    }
    let cpu = process
        .status
        .cpus_allowed_list
        .as_ref()
        .and_then(|list| list.first())
        .map_or(0, |range| range.0);
    findings.add(
        &f::PROCESS_ONE_CPU,
        format!("Cpus_allowed_list of process {} is {cpu}", process.pid),
        match another_cpu(&ctx.host, cpu) {
            Some(other) => format!(
                "taskset -apc {cpu},{other} {}  # or ASYNCFORK_THREADS=1 in its environment",
                process.pid
            ),
            None => "give the machine a second CPU".into(),
        },
    );
}

/// Whether the library of the process has had a fork by this module.
fn has_armed(ctx: &Ctx<'_>, process: &Process) -> bool {
    let forks = ctx.module().and_then(|module| module.recent());
    forks.is_ok_and(|forks| {
        forks
            .iter()
            .any(|fork| fork.0.parent_pid == process.pid && fork.0.by() == By::Arm)
    })
}

fn last_fork(ctx: &Ctx<'_>, process: &Process, findings: &mut Findings) {
    let Ok(forks) = ctx.module().and_then(|module| module.recent()) else {
        return;
    };
    let Some(last) = forks
        .iter()
        .rev()
        .find(|fork| fork.0.parent_pid == process.pid)
    else {
        return;
    };
    let reason = last.0.reason();
    let usual = matches!(
        reason,
        Reason::MinRss | Reason::Nothing | Reason::Disabled | Reason::SwitchedOff
    );
    if last.0.outcome() == Outcome::Stock && !usual {
        findings.add(
            &f::PROCESS_LAST_STOCK,
            format!("reason {}: {}", reason.label(), reason.explain()),
            advice(reason),
        );
    }
}

/// Memory limits of its cgroup and of those above it.
fn limit(host: &Host, process: &Process, target: &Target, findings: &mut Findings) {
    let Some(directory) = process
        .cgroup
        .as_deref()
        .and_then(|path| cgroup::directory(host, path).ok())
    else {
        return;
    };
    let Ok(mount) = cgroup::mount(host) else {
        return;
    };
    let needed = process.page_table_bytes();
    for directory in directory.ancestors().take_while(|dir| *dir != mount) {
        let (Some(max), Some(now)) = (
            cgroup::number(host, directory, "memory.max"),
            cgroup::number(host, directory, "memory.current"),
        ) else {
            continue;
        };
        // What the kernel drops before it kills.
        let stat = host.read(directory.join("memory.stat")).unwrap_or_default();
        let cache: u64 = ["inactive_file ", "active_file "]
            .iter()
            .filter_map(|name| {
                stat.lines()
                    .find_map(|l| l.strip_prefix(name)?.parse::<u64>().ok())
            })
            .sum();
        let left = max.saturating_sub(now.saturating_sub(cache));
        if left < needed {
            let more = max + (needed - left).next_multiple_of(1 << 20);
            let is_units = target.unit.as_ref().is_some_and(|(_, shown)| {
                shown
                    .cgroup()
                    .is_some_and(|path| mount.join(path.trim_start_matches('/')) == directory)
            });
            let fix = match &target.unit {
                Some((unit, _)) if is_units => {
                    format!("systemctl set-property {unit} MemoryMax={more}")
                }
                _ => format!("echo {more} > {}/memory.max", directory.display()),
            };
            findings.add(
                &f::MEMORY_LIMIT,
                format!(
                    "{}: {} left of {}, the child's page tables take {}",
                    directory.display(),
                    bytes(left),
                    bytes(max),
                    bytes(needed)
                ),
                fix,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_io_uring_are_summed_up() {
        let text = |buffers: &str| {
            format!(
                "pos:\t0\nSqMask:\t0x3\nUserFiles:\t1\n    0: 0x7/9\nUserBufs:\t4\n{buffers}PollList:\n  op=0x1/7\n"
            )
        };
        assert_eq!(registered(&text("")), 0);
        assert_eq!(registered(&text("    0: <none>\n    1: 0x0/64\n")), 0);
        let two = "    0: 0x7f7a5f000000/2097152\n    1: <none>\n    2: 0x7f7a5e000000/4096\n";
        assert_eq!(registered(&text(two)), 2_101_248);
        // Nothing is said of a ring that is at work.
        assert_eq!(registered("pos:\t0\nSqMask:\t0x3\n"), 0);
    }

    #[test]
    fn modes_decide_who_opens_the_device() {
        assert!(may(0o660, 0, 990, 101, 102, &[102, 990]));
        assert!(may(0o660, 0, 102, 101, 102, &[]));
        assert!(!may(0o660, 0, 990, 101, 102, &[102]));
        assert!(!may(0o640, 0, 990, 101, 102, &[990]));
        assert!(may(0o600, 0, 0, 0, 0, &[]));
        assert!(may(0o666, 0, 0, 101, 102, &[]));
        // An owner's bits hold for the owner, whatever the others are.
        assert!(!may(0o066, 101, 0, 101, 102, &[]));
    }
}
