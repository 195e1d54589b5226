// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each finding on a machine that is broken in that way, and on none that is not.

use super::*;
use crate::exit;
use crate::module::{Enrolment, Terms};
use crate::process::READ;
use crate::sample::Samples;
use crate::testing::{elf, fork, status, Fake};
use asyncfork_uapi::{Outcome, Reason};
use finding::{Kind, ALL};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libasyncfork.so";
const REDIS: &str = "redis-server.service";

/// A Debian 12 on which a server with the library is served.
fn healthy() -> Fake {
    let fake = Fake::new();
    fake.loaded()
        .bootable("6.1.0-56-amd64")
        .server(42)
        .cgroup("system.slice/redis-server.service")
        .write(
            "/proc/meminfo",
            "MemTotal: 134217728 kB\nMemAvailable: 67108864 kB\nSwapTotal: 0 kB\n",
        )
        .write("/proc/sys/vm/overcommit_memory", "1\n")
        .write("/sys/class/misc/asyncfork/dev", "1:3\n")
        .write("/sys/module/asyncfork/parameters/policy", "enrolled\n")
        .write("/sys/module/asyncfork/parameters/state", "on\n")
        .link("/dev/asyncfork", "/dev/null")
        .write_bytes(LIBRARY, &elf::library(None))
        .program(
            "/usr/bin/redis-server",
            &elf::program(Some("/lib64/ld-linux-x86-64.so.2")),
        )
        .module(|m| m.abi = 3);
    fake.write(
        "/etc/systemd/system/redis-server.service.d/asyncfork.conf",
        "# Written by asyncfork enable; asyncfork disable removes it.\n# via: preload\n[Service]\n",
    );
    fake.unit(REDIS, &unit(""));
    fake
}

fn unit(more: &str) -> String {
    format!(
        "Id={REDIS}\nLoadState=loaded\nActiveState=active\nMainPID=42\nControlGroup=/system.slice/{REDIS}\n\
         ActiveEnterTimestampMonotonic=18446744073709551615\nNeedDaemonReload=no\n{more}"
    )
}

fn pid() -> DoctorArgs {
    DoctorArgs {
        pid: Some(42),
        no_measure: true,
        ..DoctorArgs::default()
    }
}

fn of_unit() -> DoctorArgs {
    DoctorArgs {
        unit: Some("redis-server".into()),
        no_measure: true,
        ..DoctorArgs::default()
    }
}

fn next_boot() -> DoctorArgs {
    DoctorArgs {
        next_boot: true,
        ..DoctorArgs::default()
    }
}

/// Its JSON and exit code.
fn doctor(fake: &Fake, args: &DoctorArgs) -> (Exit, serde_json::Value) {
    let (result, text) = fake.json("doctor", |ctx| run(ctx, args));
    (result.unwrap(), serde_json::from_str(&text).unwrap())
}

fn ids(found: &serde_json::Value) -> Vec<String> {
    let list = found["findings"].as_array().unwrap();
    list.iter()
        .map(|f| f["id"].as_str().unwrap().to_owned())
        .collect()
}

fn environment(fake: &Fake, variables: &str) {
    fake.write(
        "/proc/42/environ",
        &format!("LD_PRELOAD={LIBRARY}\0{variables}\0"),
    );
}

fn change_status(fake: &Fake, from: &str, to: &str) {
    let text = status("redis-server", 42);
    assert!(text.contains(from));
    fake.write("/proc/42/status", &text.replace(from, to));
}

fn without_library(fake: &Fake) {
    fake.write("/proc/42/environ", "")
        .write("/proc/42/maps", "");
}

fn not_loaded(fake: &Fake) {
    std::fs::remove_dir_all(fake.host.path("/sys/module/asyncfork")).unwrap();
}

/// How to break a machine so that it has the finding, and what to ask then.
fn break_it(kind: &Kind, fake: &Fake) -> DoctorArgs {
    const KO: &str = "/lib/modules/6.1.0-56-amd64/updates/dkms/asyncfork.ko";
    match kind.id {
        "kernel.unsupported" => {
            not_loaded(fake);
            fake.write("/proc/sys/kernel/osrelease", "6.6.1-custom\n");
        }
        "module.missing" => {
            not_loaded(fake);
            fake.remove(KO);
        }
        "module.not-loaded" => not_loaded(fake),
        "module.unsigned" => {
            not_loaded(fake);
            fake.write("/sys/module/module/parameters/sig_enforce", "Y\n");
        }
        "module.off" => {
            fake.write("/sys/module/asyncfork/parameters/enabled", "N\n");
        }
        "module.switched-off" => {
            fake.write(
                "/sys/module/asyncfork/parameters/state",
                "switched off: a slot has changed\n",
            );
        }
        "module.abi" => {
            fake.module(|m| m.abi = 1);
        }
        "module.policy" => {
            fake.module(|m| m.stats.enrolled = 1);
            fake.write("/sys/module/asyncfork/parameters/policy", "armed\n");
        }
        "module.limit" => {
            fake.module(|m| m.forks = vec![fork(1, Outcome::Stock, Reason::Limit)]);
        }
        "module.killed" => {
            fake.module(|m| {
                let mut fork = fork(1, Outcome::Async, Reason::None);
                fork.0.state = asyncfork_uapi::State::Aborted.raw();
                m.forks = vec![fork];
                m.stats.killed = 1;
            });
        }
        "device.missing" => {
            fake.unreachable().remove("/dev/asyncfork");
        }
        "device.stale" => {
            fake.write("/sys/class/misc/asyncfork/dev", "10:124\n");
        }
        "device.hidden" => {
            fake.link("/proc/42/root", "../elsewhere")
                .directory("/proc/elsewhere");
        }
        "device.denied" => {
            fake.unit(REDIS, &unit("PrivateDevices=yes\nDevicePolicy=closed\n"));
            return of_unit();
        }
        "library.incompatible" => {
            fake.write("/proc/42/maps", "")
                .program("/usr/bin/redis-server", &elf::program(None));
        }
        "library.not-mapped" => {
            fake.write("/proc/42/maps", "");
        }
        "library.deleted" => {
            fake.write(
                "/proc/42/maps",
                &format!("7f r-xp 0 08:01 7 {LIBRARY} (deleted)\n"),
            );
        }
        "library.everywhere" => {
            fake.write("/etc/ld.so.preload", &format!("{LIBRARY}\n"));
        }
        "process.not-served" => without_library(fake),
        "process.small" => change_status(fake, "VmRSS:\t67108864 kB", "VmRSS:\t1024 kB"),
        "process.pinned" => change_status(fake, "VmPin:\t0 kB", "VmPin:\t64 kB"),
        "process.notifier" => {
            fake.link("/proc/42/fd/9", "anon_inode:kvm-vm");
        }
        "process.userfaultfd" => {
            fake.link("/proc/42/fd/9", "anon_inode:[userfaultfd]");
        }
        "process.one-cpu" => {
            change_status(fake, "Cpus_allowed_list:\t0-3", "Cpus_allowed_list:\t3")
        }
        "process.last-stock" => {
            fake.module(|m| m.forks = vec![fork(42, Outcome::Stock, Reason::NoMemory)]);
        }
        "settings.invalid" => environment(fake, "ASYNCFORK_MIN_RSS=64X"),
        "settings.off" => environment(fake, "ASYNCFORK=off"),
        "settings.require" => environment(fake, "ASYNCFORK=require"),
        "unit.not-enabled" => {
            without_library(fake);
            fake.host
                .remove("/etc/systemd/system/redis-server.service.d/asyncfork.conf")
                .unwrap();
            return of_unit();
        }
        "unit.not-running" => {
            fake.unit(
                REDIS,
                &format!("Id={REDIS}\nLoadState=loaded\nActiveState=inactive\nMainPID=0\n"),
            );
            return of_unit();
        }
        "unit.reload" => {
            fake.unit(
                REDIS,
                &unit("").replace("NeedDaemonReload=no", "NeedDaemonReload=yes"),
            );
            return of_unit();
        }
        "unit.restart" => {
            fake.unit(
                REDIS,
                &unit("").replace("Monotonic=18446744073709551615", "Monotonic=1"),
            );
            return of_unit();
        }
        "cgroup.v1" => {
            fake.remove("/sys/fs/cgroup/cgroup.controllers");
        }
        "memory.limit" => {
            fake.write("/sys/fs/cgroup/system.slice/memory.max", "68719476736\n")
                .write(
                    "/sys/fs/cgroup/system.slice/memory.current",
                    "68719000000\n",
                );
        }
        "memory.overcommit" => {
            fake.write("/proc/sys/vm/overcommit_memory", "2\n");
        }
        "memory.thp" => {
            fake.write(
                "/sys/kernel/mm/transparent_hugepage/enabled",
                "[always] madvise never\n",
            );
            change_status(fake, "THP_enabled:\t0", "THP_enabled:\t1");
        }
        "next.unsupported" => {
            fake.write("/boot/vmlinuz-6.19.1-amd64", "");
            return next_boot();
        }
        "next.missing" => {
            fake.write("/boot/vmlinuz-6.1.0-57-amd64", "");
            fake.write("/lib/modules/6.1.0-57-amd64/build/Makefile", "");
            return next_boot();
        }
        "next.headers" => {
            fake.write("/boot/vmlinuz-6.1.0-57-amd64", "");
            return next_boot();
        }
        "next.unsigned" => {
            fake.write("/sys/module/module/parameters/sig_enforce", "Y\n");
            return next_boot();
        }
        "next.not-loaded" => {
            fake.remove("/etc/modules-load.d/asyncfork.conf");
            return next_boot();
        }
        "next.off" => {
            fake.write(
                "/etc/modprobe.d/asyncfork.conf",
                "options asyncfork enabled=0\n",
            );
            return next_boot();
        }
        other => panic!("no test breaks a machine in this way: {other}"),
    }
    pid()
}

#[test]
fn a_healthy_machine_has_no_finding() {
    let fake = healthy();
    for args in [pid(), of_unit(), next_boot(), DoctorArgs::default()] {
        let (exit, found) = doctor(&fake, &args);
        assert_eq!(
            (exit, ids(&found)),
            (Exit::Done, vec![]),
            "{args:?} {found:#}"
        );
        assert_eq!(found["verdict"], "fine");
    }
}

#[test]
fn each_finding_is_found_with_evidence_and_a_line_that_mends_it() {
    // Needs a module whose hooks do not fire: for the tests in virtual machines.
    for kind in ALL.iter().filter(|kind| kind.id != "module.hooks") {
        let fake = healthy();
        let args = break_it(kind, &fake);
        let (exit, found) = doctor(&fake, &args);
        let list = found["findings"].as_array().unwrap();
        let this = list
            .iter()
            .find(|f| f["id"] == kind.id)
            .unwrap_or_else(|| panic!("{}: {found:#}", kind.id));
        assert_eq!(this["severity"], kind.severity.label());
        for text in ["evidence", "fix"] {
            let text = this[text].as_str().unwrap();
            assert!(
                !text.is_empty() && !text.contains('\n'),
                "{}: {text:?}",
                kind.id
            );
        }
        let counts = list.iter().any(|f| f["severity"] != "note");
        assert_eq!(
            exit,
            if counts { Exit::No } else { Exit::Done },
            "{}",
            kind.id
        );
        // One cause, one finding; these come along by their nature.
        let along: &[&str] = match kind.id {
            "next.headers" => &["next.missing"],
            "unit.not-enabled" => &["process.not-served"],
            _ => &[],
        };
        let unexpected: Vec<_> = ids(&found)
            .into_iter()
            .filter(|id| id != kind.id && !along.contains(&id.as_str()))
            .collect();
        assert!(unexpected.is_empty(), "{}: also {unexpected:?}", kind.id);
    }
}

#[test]
fn nothing_is_read_that_walks_the_servers_memory() {
    let fake = healthy();
    doctor(&fake, &pid());
    doctor(&fake, &of_unit());
    let mut seen = 0;
    for path in fake.host.reads.borrow().iter() {
        let Ok(rest) = path.strip_prefix("/proc/42") else {
            continue;
        };
        seen += 1;
        let first = rest
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        assert!(READ.contains(&first), "{}", path.display());
    }
    assert!(seen > 5);
    for bad in [
        "smaps",
        "smaps_rollup",
        "numa_maps",
        "pagemap",
        "mem",
        "clear_refs",
    ] {
        assert!(!READ.contains(&bad));
    }
}

#[test]
fn an_enrolled_process_needs_no_library() {
    let fake = healthy();
    without_library(&fake);
    let slice = fake.host.metadata("/sys/fs/cgroup/system.slice").unwrap();
    let enrolment = Enrolment {
        id: std::os::unix::fs::MetadataExt::ino(&slice),
        terms: Terms {
            min_rss: 1 << 40,
            helpers: 0,
        },
        async_forks: 0,
        stock_forks: 0,
    };
    fake.module(|m| m.enrolled = vec![enrolment]);
    let (exit, found) = doctor(&fake, &pid());
    assert_eq!(
        (exit, ids(&found)),
        (Exit::Done, vec!["process.small".to_owned()])
    );
    // Nor does one that the policy covers.
    fake.module(|m| m.enrolled.clear());
    assert_eq!(ids(&doctor(&fake, &pid()).1), ["process.not-served"]);
    fake.write("/sys/module/asyncfork/parameters/policy", "all\n")
        .write(
            "/sys/module/asyncfork/parameters/policy_min_rss",
            "1073741824\n",
        );
    assert_eq!(doctor(&fake, &pid()).0, Exit::Done);
}

#[test]
fn what_may_not_be_read_is_unknown() {
    let fake = healthy();
    fake.unreachable().remove("/proc/42/maps");
    let (exit, found) = doctor(&fake, &pid());
    assert_eq!(exit, Exit::CannotTell, "{found:#}");
    assert_eq!(found["verdict"], "cannot-tell");
    assert_eq!(found["unknown"].as_array().unwrap().len(), 2, "{found:#}");
}

#[test]
fn wrong_targets_are_wrong_input() {
    let fake = healthy();
    for args in [
        DoctorArgs {
            pid: Some(4711),
            ..DoctorArgs::default()
        },
        DoctorArgs {
            unit: Some("none".into()),
            ..DoctorArgs::default()
        },
        DoctorArgs {
            unit: Some("a b".into()),
            ..DoctorArgs::default()
        },
    ] {
        let error = fake.command("doctor", |ctx| run(ctx, &args)).0.unwrap_err();
        assert_eq!(exit::of(&error), Exit::Input);
    }
}

#[test]
fn what_redis_leaves_of_its_environment_is_not_taken_for_its_settings() {
    let fake = healthy();
    fake.write("/proc/42/environ", "\0\0\0");
    change_status(&fake, "VmRSS:\t67108864 kB", "VmRSS:\t1024 kB");
    let (exit, found) = doctor(&fake, &pid());
    assert_eq!((exit, ids(&found)), (Exit::CannotTell, vec![]), "{found:#}");
    let maps = fake.host.read("/proc/42/maps").unwrap();
    let mark = "7e0 ---p 0 00:01 7 /memfd:asyncfork:stock (deleted)\n";
    fake.write("/proc/42/maps", &format!("{maps}\n{mark}"));
    let (_, found) = doctor(&fake, &pid());
    assert_eq!(ids(&found), ["settings.require"], "{found:#}");
}

#[test]
fn no_other_file_is_to_be_removed_for_a_device() {
    let fake = healthy();
    fake.write("/sys/class/misc/asyncfork/dev", "10:124\n")
        .write("/etc/passwd", "");
    fake.unreachable();
    for path in ["/etc/passwd", "/none", "/dev/asyncfork"] {
        let (_, text) = fake.json("doctor", |ctx| {
            ctx.device = path.into();
            run(ctx, &DoctorArgs::default())
        });
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let fix = found["findings"][0]["fix"].as_str().unwrap();
        if path == "/dev/asyncfork" {
            assert_eq!(
                fix,
                "rm /dev/asyncfork && mknod -m 660 /dev/asyncfork c 10 124"
            );
        } else {
            assert!(fix.contains("--device") && !fix.contains("rm "), "{fix}");
        }
    }
}

#[test]
fn another_processor_is_one_that_is_there() {
    for (online, cpus, other) in [
        ("0-3", "3", "3,0"),
        ("0-3", "0", "0,1"),
        ("0,2", "0", "0,2"),
    ] {
        let fake = healthy();
        fake.write("/sys/devices/system/cpu/online", &format!("{online}\n"));
        change_status(
            &fake,
            "Cpus_allowed_list:\t0-3",
            &format!("Cpus_allowed_list:\t{cpus}"),
        );
        let (_, found) = doctor(&fake, &pid());
        let fix = found["findings"][0]["fix"].as_str().unwrap();
        assert!(
            fix.starts_with(&format!("taskset -apc {other} 42 ")),
            "{fix}"
        );
    }
}

#[test]
fn the_fixes_are_for_the_module_that_is_there() {
    let fake = healthy();
    without_library(&fake);
    let fix = |fake: &Fake| {
        let (_, found) = doctor(fake, &pid());
        found["findings"][0]["fix"].as_str().unwrap().to_owned()
    };
    assert_eq!(fix(&fake), "asyncfork enable redis-server.service");
    fake.module(|m| m.abi = 2);
    assert_eq!(
        fix(&fake),
        "asyncfork enable redis-server.service --via preload --restart"
    );
    fake.without_systemd();
    assert_eq!(fix(&fake), "start it by asyncfork run -- redis-server");
    fake.module(|m| m.abi = 3);
    assert_eq!(fix(&fake), "asyncfork enroll --pid 42");
}

fn measured(what: &crate::sample::Sampling) -> Result<Samples> {
    let each = if what.asynchronous { 10 } else { 10_000 };
    Ok(Samples {
        ns: vec![100_000 + each * what.tables as u64],
        parked: 0,
    })
}

#[test]
fn the_pause_is_predicted() {
    let fake = healthy();
    let args = DoctorArgs {
        pid: Some(42),
        ..DoctorArgs::default()
    };
    let (result, text) = fake.command("doctor", |ctx| {
        ctx.sample = Box::new(measured);
        run(ctx, &args)
    });
    assert_eq!(result.unwrap(), Exit::Done);
    assert!(text.contains("32768 page tables (128 MiB)"), "{text}");
    assert!(
        text.contains("stock: about 328 ms (10.0 us a page table, measured here with 128)"),
        "{text}"
    );
    assert!(
        text.contains("asynchronous: about 428 us (10 ns a page table"),
        "{text}"
    );
    assert!(text.ends_with("nothing found\n"), "{text}");

    not_loaded(&fake);
    let (_, text) = fake.command("doctor", |ctx| {
        ctx.sample = Box::new(measured);
        run(ctx, &args)
    });
    assert!(text.contains("stock: about 328 ms"), "{text}");
    assert!(
        text.contains("asynchronous: unknown: the module is not loaded"),
        "{text}"
    );
}

#[test]
fn json_is_as_documented() {
    let fake = healthy();
    environment(&fake, "ASYNCFORK=require");
    fake.golden("doctor", "doctor", |ctx| {
        ctx.sample = Box::new(measured);
        run(
            ctx,
            &DoctorArgs {
                pid: Some(42),
                ..DoctorArgs::default()
            },
        )
    });
}

#[test]
fn the_next_boot_is_ready_or_not_or_unknown() {
    let ready = |fake: &Fake| {
        let mut said = None;
        fake.command("metrics", |ctx| {
            said = next_boot_is_ready(ctx);
            Ok(Exit::Done)
        })
        .0
        .unwrap();
        said
    };
    let fake = healthy();
    assert_eq!(ready(&fake), Some(true));
    fake.write("/boot/vmlinuz-6.12.99+deb12-amd64", "");
    assert_eq!(ready(&fake), Some(false));
    assert_eq!(ready(&Fake::new()), None);
}
