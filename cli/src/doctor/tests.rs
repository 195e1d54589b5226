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

fn record(fake: &Fake, release: &str, line: &str) {
    let path = format!("/var/lib/asyncfork/kernels/{release}");
    fake.write(&path, &format!("{line}\n"));
}

/// The only finding's evidence and line.
fn only(fake: &Fake, args: &DoctorArgs, id: &str) -> (String, String) {
    let (_, found) = doctor(fake, args);
    assert_eq!(ids(&found), [id], "{found:#}");
    let text = |name: &str| found["findings"][0][name].as_str().unwrap().to_owned();
    (text("evidence"), text("fix"))
}

/// How to break a machine so that it has the finding, and what to ask then.
fn break_it(kind: &Kind, fake: &Fake) -> DoctorArgs {
    const KO: &str = "/lib/modules/6.1.0-56-amd64/updates/dkms/asyncfork.ko";
    match kind.id {
        "kernel.unsupported" => {
            not_loaded(fake);
            fake.write("/proc/sys/kernel/osrelease", "6.6.1-custom\n");
        }
        "kernel.without-module" => {
            fake.write("/boot/vmlinuz-6.1.0-55-amd64", "");
        }
        "kernel.panic-on-warn" => {
            fake.module(|m| m.abi = 2);
            fake.write("/proc/sys/kernel/panic_on_warn", "1\n");
        }
        "module.missing" => {
            not_loaded(fake);
            fake.remove(KO);
        }
        "module.old" => record(
            fake,
            "6.1.0-56-amd64",
            "failed: pull.c:1: error: no; see the log",
        ),
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
    // A module whose hooks do not fire, a device that is made anew: for the tests in virtual machines.
    let elsewhere = ["module.hooks", "unit.device"];
    for kind in ALL.iter().filter(|kind| !elsewhere.contains(&kind.id)) {
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
fn a_service_that_lost_its_entry_gets_it_back_as_its_drop_in_has_it() {
    for (file, want) in [
        (
            "ExecStartPre=-+/usr/bin/asyncfork enroll --self --min-rss 1048576 --helpers 2\n",
            "asyncfork enroll --unit redis-server.service --min-rss 1048576 --helpers 2",
        ),
        (
            "ExecStartPre=-+/usr/bin/asyncfork enroll --self\n",
            "asyncfork enroll --unit redis-server.service",
        ),
    ] {
        let fake = healthy();
        without_library(&fake);
        fake.unit_file(REDIS, "[Service]");
        fake.write(
            "/etc/systemd/system/redis-server.service.d/asyncfork.conf",
            &format!("# Written by asyncfork enable; asyncfork disable removes it.\n# via: cgroup\n[Service]\n{file}"),
        );
        let (_, fix) = only(&fake, &of_unit(), "process.not-served");
        assert_eq!(fix, want);
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

fn ready(fake: &Fake) -> Option<bool> {
    let mut said = None;
    fake.command("metrics", |ctx| {
        said = next_boot_is_ready(ctx);
        Ok(Exit::Done)
    })
    .0
    .unwrap();
    said
}

#[test]
fn the_next_boot_is_ready_or_not_or_unknown() {
    let fake = healthy();
    assert_eq!(ready(&fake), Some(true));
    fake.write("/boot/vmlinuz-6.12.99+deb12-amd64", "");
    assert_eq!(ready(&fake), Some(false));
    assert_eq!(ready(&Fake::new()), None);
}

#[test]
fn a_module_that_is_missing_comes_with_what_the_package_recorded() {
    const NEXT: &str = "6.1.0-57-amd64";
    const HOOK: &str = "/etc/kernel/postinst.d/asyncfork 6.1.0-57-amd64";
    const HEADERS: &str = "apt install linux-headers-6.1.0-57-amd64";
    const RECORD: &str = "/var/lib/asyncfork/kernels/6.1.0-57-amd64";
    let failed = format!("{HOOK}  # after what {RECORD}.log asks for");
    for (line, has_headers, wanted) in [
        (None, true, HOOK),
        (None, false, HEADERS),
        (
            Some("headers-missing: apt install linux-headers"),
            false,
            HEADERS,
        ),
        (
            Some("headers-missing: apt install linux-headers"),
            true,
            HOOK,
        ),
        (Some("failed: pull.c:1: error: no"), true, &failed),
        (Some("built: asyncfork-dkms 0.1.0"), true, HOOK),
        (
            Some("excluded: asyncfork 0.1.0 is not for this kernel"),
            true,
            "boot a kernel that has the module: 6.1.0-56-amd64",
        ),
    ] {
        let fake = healthy();
        fake.packaged().write(&format!("/boot/vmlinuz-{NEXT}"), "");
        if has_headers {
            fake.write(&format!("/lib/modules/{NEXT}/build/Makefile"), "");
        }
        if let Some(line) = line {
            record(&fake, NEXT, line);
        }
        let said = |found: &serde_json::Value, id: &str| {
            let list = found["findings"].as_array().unwrap().iter();
            let this = list.clone().find(|f| f["id"] == id).unwrap();
            let evidence = this["evidence"].as_str().unwrap();
            assert!(
                evidence.contains(&format!("/lib/modules/{NEXT}")),
                "{evidence}"
            );
            if let Some(line) = line {
                assert!(
                    evidence.ends_with(&format!("{RECORD}: {line}")),
                    "{evidence}"
                );
            }
            assert_eq!(this["fix"], wanted, "{id}: {line:?}");
        };
        said(&doctor(&fake, &next_boot()).1, "next.missing");
        said(&doctor(&fake, &pid()).1, "kernel.without-module");
        not_loaded(&fake);
        fake.write("/proc/sys/kernel/osrelease", &format!("{NEXT}\n"));
        said(&doctor(&fake, &DoctorArgs::default()).1, "module.missing");
    }
}

#[test]
fn without_the_package_that_builds_another_line_gets_the_module() {
    let fake = healthy();
    not_loaded(&fake);
    fake.remove("/lib/modules/6.1.0-56-amd64/updates/dkms/asyncfork.ko");
    let fix = || only(&fake, &DoctorArgs::default(), "module.missing").1;
    let dkms = format!(
        "dkms install asyncfork/{} -k 6.1.0-56-amd64",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(fix(), dkms);
    // That of the command only.
    fake.write("/var/lib/dpkg/info/asyncfork.list", "");
    let package = "asyncfork-dkms  # without a compiler: asyncfork-modules-6.1.0-56-amd64";
    assert_eq!(fix(), format!("apt install {package}"));
    fake.remove("/lib/modules/6.1.0-56-amd64/build/Makefile");
    assert_eq!(
        fix(),
        format!("apt install linux-headers-6.1.0-56-amd64 {package}")
    );
    // Removed, not purged: the hook does nothing.
    fake.program("/etc/kernel/postinst.d/asyncfork", b"");
    assert!(fix().contains("asyncfork-dkms"));
    fake.packaged();
    assert_eq!(fix(), "apt install linux-headers-6.1.0-56-amd64");
}

#[test]
fn a_kernel_that_is_not_served_is_named_beside_those_that_are() {
    let fake = healthy();
    fake.packaged();
    for release in [
        "6.1.0-55-amd64",
        "6.1.0-56-rt-amd64",
        "5.10.0-1-amd64",
        "6.6.1-custom",
    ] {
        fake.write(&format!("/boot/vmlinuz-{release}"), "");
    }
    fake.write("/lib/modules/6.6.1-custom/updates/dkms/asyncfork.ko", "ELF");
    record(&fake, "6.1.0-56-rt-amd64", "excluded: not for this kernel");
    let (exit, found) = doctor(&fake, &DoctorArgs::default());
    // The newest first.
    assert_eq!(ids(&found), ["kernel.without-module"; 3]);
    assert_eq!(exit, Exit::Done);
    let rt = &found["findings"][0];
    assert!(rt["evidence"]
        .as_str()
        .unwrap()
        .ends_with("6.1.0-56-rt-amd64: excluded: not for this kernel"));
    assert_eq!(
        rt["fix"],
        "boot a kernel that has the module: 6.1.0-56-amd64"
    );
    assert_eq!(
        found["findings"][1]["fix"],
        "apt install linux-headers-6.1.0-55-amd64"
    );
    assert_eq!(found["findings"][2]["fix"], rt["fix"]);

    let (_, fix) = only(&fake, &next_boot(), "next.unsupported");
    assert_eq!(fix, "apt remove linux-image-6.6.1-custom  # or let the boot loader boot a kernel that has the module: 6.1.0-56-amd64");
    not_loaded(&fake);
    fake.write("/proc/sys/kernel/osrelease", "6.6.1-custom\n");
    let fix = || {
        let (_, found) = doctor(&fake, &DoctorArgs::default());
        assert_eq!(found["findings"][0]["id"], "kernel.unsupported");
        found["findings"][0]["fix"].as_str().unwrap().to_owned()
    };
    let boot = "boot a kernel that has the module: 6.1.0-56-amd64";
    let risk = ", or at your own risk: modprobe asyncfork allow_untested=1";
    assert_eq!(fix(), format!("{boot}{risk}"));
    fake.remove("/lib/modules/6.6.1-custom/updates/dkms/asyncfork.ko");
    assert_eq!(fix(), boot);
    fake.remove("/lib/modules/6.1.0-56-amd64/updates/dkms/asyncfork.ko");
    assert_eq!(fix(), "boot a tested kernel");
}

#[test]
fn a_module_older_than_the_package_is_found_and_is_ready_for_the_next_boot() {
    let fake = healthy();
    fake.packaged();
    for line in [
        "failed: pull.c:1: error: no",
        "headers-missing: apt install linux-headers",
    ] {
        record(&fake, "6.1.0-56-amd64", line);
        for args in [pid(), next_boot()] {
            let (evidence, _) = only(&fake, &args, "module.old");
            assert!(
                evidence.contains("updates/dkms/asyncfork.ko is there; ")
                    && evidence.ends_with(line),
                "{evidence}"
            );
        }
        assert_eq!(ready(&fake), Some(true));
    }
    for line in [
        "built: asyncfork-dkms 0.1.0",
        "prebuilt: /lib/modules",
        "excluded: no",
    ] {
        record(&fake, "6.1.0-56-amd64", line);
        assert_eq!(doctor(&fake, &next_boot()).0, Exit::Done, "{line}");
    }
    record(&fake, "6.1.0-56-amd64", "failed: no");
    fake.remove("/lib/modules/6.1.0-56-amd64/updates/dkms/asyncfork.ko");
    only(&fake, &next_boot(), "next.missing");
    assert_eq!(ready(&fake), Some(false));
}

#[test]
fn a_warning_is_fatal_with_a_module_that_warns() {
    const PANIC: &str = "/proc/sys/kernel/panic_on_warn";
    const STATE: &str = "/sys/module/asyncfork/parameters/state";
    let found = |fake: &Fake| ids(&doctor(fake, &DoctorArgs::default()).1);
    let fake = healthy();
    fake.write(PANIC, "1\n");
    assert_eq!(found(&fake), <[&str; 0]>::default());
    fake.module(|m| m.abi = 2);
    assert_eq!(found(&fake), ["kernel.panic-on-warn"]);
    fake.write(PANIC, "0\n");
    assert_eq!(found(&fake), <[&str; 0]>::default());
    // By the parameter, where the device cannot be asked.
    fake.write(PANIC, "1\n").unreachable();
    assert_eq!(found(&fake), <[&str; 0]>::default());
    fake.remove(STATE);
    assert_eq!(found(&fake), ["kernel.panic-on-warn"]);
}
