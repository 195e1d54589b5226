// SPDX-License-Identifier: MIT OR Apache-2.0

//! `enable` and `disable` on a machine of files.

use super::drop_in::{MARK, VIA};
use super::*;
use crate::testing::Fake;

const DROP_IN: &str = "/etc/systemd/system/redis-server.service.d/asyncfork.conf";
const DEBIAN: &str =
    "[Unit]\nDescription=Redis\n[Service]\nExecStart=/usr/bin/redis-server\nPrivateDevices=yes\n\
                      NoExecPaths=/\nExecPaths=/usr/bin/redis-server /usr/lib /lib\nUser=redis\n";

fn args(unit: &str, via: &[Via]) -> EnableArgs {
    EnableArgs {
        unit: unit.into(),
        via: via.to_vec(),
        min_rss: None,
        helpers: None,
        dry_run: false,
        restart: false,
    }
}

fn off(unit: &str, via: &[Via]) -> DisableArgs {
    DisableArgs {
        unit: unit.into(),
        via: via.to_vec(),
        dry_run: false,
        restart: false,
    }
}

/// A host with Redis under systemd, and a module with enrolment.
fn redis() -> Fake {
    let fake = Fake::new();
    fake.loaded()
        .cgroup("system.slice/redis-server.service")
        .write("/etc/group", "root:x:0:\nasyncfork:x:990:\n")
        .write("/usr/lib/x86_64-linux-gnu/libasyncfork.so", "")
        .module(|m| m.abi = 3);
    fake.unit(
        "redis-server.service",
        "Id=redis-server.service\nLoadState=loaded\nActiveState=active\nMainPID=42\n\
         ActiveEnterTimestampMonotonic=1\nControlGroup=/system.slice/redis-server.service\n",
    );
    fake.unit_file("redis-server.service", DEBIAN);
    fake
}

#[test]
fn a_unit_is_enabled_by_its_cgroup_and_enrolled_at_once() {
    let fake = redis();
    let (result, text) = fake.command("enable", |ctx| {
        enable(ctx, &args("redis-server", &[Via::Cgroup]))
    });
    assert_eq!(result.unwrap(), Exit::Done);
    assert!(text.starts_with("changed: true\n"), "{text}");
    assert!(text.contains("enrolled: the running service"), "{text}");
    let written = fake.host.read(DROP_IN).unwrap();
    assert!(
        written.contains("\nExecStartPre=-+/usr/bin/asyncfork enroll --self\n"),
        "{written}"
    );
    // Debian's unit has PrivateDevices=yes, which is also a filter on its cgroup.
    assert!(
        written.ends_with("\nDeviceAllow=/dev/asyncfork rw\n"),
        "{written}"
    );
    fake.module(|m| assert_eq!(m.enrolled.len(), 1));
    assert_eq!(fake.calls("daemon-reload"), 1);

    let (_, text) = fake.command("enable", |ctx| {
        enable(ctx, &args("redis-server", &[Via::Cgroup]))
    });
    assert!(text.starts_with("changed: false\n"), "{text}");
    assert_eq!(fake.calls("daemon-reload"), 1);

    let (_, text) = fake.command("disable", |ctx| disable(ctx, &off("redis-server", &[])));
    assert!(text.starts_with("changed: true\n"), "{text}");
    assert!(!fake
        .host
        .exists("/etc/systemd/system/redis-server.service.d"));
    fake.module(|m| assert!(m.enrolled.is_empty()));
    let (result, text) = fake.command("disable", |ctx| disable(ctx, &off("redis-server", &[])));
    assert_eq!(result.unwrap(), Exit::Done);
    assert!(text.starts_with("changed: false\n"), "{text}");
}

#[test]
fn the_library_gets_what_the_unit_would_keep_from_it() {
    let fake = redis();
    let mut wanted = args("redis-server", &[Via::Preload]);
    wanted.min_rss = Some(1 << 30);
    for changed in ["changed: true", "changed: false"] {
        let (_, text) = fake.command("enable", |ctx| enable(ctx, &wanted));
        assert!(text.starts_with(changed), "{text}");
        let lines = fake.host.read(DROP_IN).unwrap();
        let lines: Vec<_> = lines.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "[Service]",
                "Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libasyncfork.so",
                "Environment=ASYNCFORK_MIN_RSS=1073741824",
                "SupplementaryGroups=asyncfork",
                "PrivateDevices=no",
                "DevicePolicy=closed",
                "DeviceAllow=/dev/asyncfork rw",
            ]
        );
    }
    assert!(fake
        .command("enable", |ctx| enable(ctx, &wanted))
        .1
        .contains("systemctl restart"));
}

#[test]
fn other_preloads_and_open_devices_stay() {
    let fake = redis();
    fake.unit_file(
        "redis-server.service",
        "[Service]\nEnvironment=\"LD_PRELOAD=libjemalloc.so.2\" X=1\n",
    );
    fake.command("enable", |ctx| {
        enable(ctx, &args("redis-server", &[Via::Preload]))
    })
    .0
    .unwrap();
    let text = fake.host.read(DROP_IN).unwrap();
    assert!(
        text.contains("LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libasyncfork.so:libjemalloc.so.2\n"),
        "{text}"
    );
    assert!(!text.contains("Device"), "{text}");
}

#[test]
fn one_way_of_two_is_taken_away() {
    let fake = redis();
    let both = args("redis-server", &[Via::Preload, Via::Cgroup]);
    fake.command("enable", |ctx| enable(ctx, &both)).0.unwrap();
    fake.command("disable", |ctx| {
        disable(ctx, &off("redis-server", &[Via::Preload]))
    })
    .0
    .unwrap();
    let text = fake.host.read(DROP_IN).unwrap();
    assert!(
        text.contains("# via: cgroup\n") && !text.contains("LD_PRELOAD"),
        "{text}"
    );
    fake.command("disable", |ctx| {
        disable(ctx, &off("redis-server", &[Via::Cgroup]))
    })
    .0
    .unwrap();
    assert!(!fake.host.exists(DROP_IN));
}

#[test]
fn ways_that_are_not_named_go() {
    let fake = redis();
    for (via, enrolled) in [(Via::Cgroup, 1), (Via::Preload, 0), (Via::Cgroup, 1)] {
        let (result, text) =
            fake.command("enable", |ctx| enable(ctx, &args("redis-server", &[via])));
        result.unwrap();
        assert!(text.starts_with("changed: true"), "{text}");
        fake.module(|m| assert_eq!(m.enrolled.len(), enrolled));
    }
}

#[test]
fn an_instance_gets_what_it_needs_whatever_its_template_has() {
    let fake = redis();
    let text = |fake: &Fake| {
        fake.host
            .read("/etc/systemd/system/redis-server@a.service.d/asyncfork.conf")
            .unwrap()
    };
    let names = ["redis-server@asyncfork-check", "redis-server@a"];
    for name in names {
        fake.unit(
            &format!("{name}.service"),
            &format!("Id={name}.service\nLoadState=loaded\n"),
        );
    }
    for name in ["redis-server@.service", "redis-server@a.service"] {
        fake.unit_file(name, DEBIAN);
    }
    let on = |name| fake.command("enable", |ctx| enable(ctx, &args(name, &[Via::Preload])));
    on("redis-server@a").0.unwrap();
    let alone = text(&fake);
    on("redis-server@").0.unwrap();
    assert!(on("redis-server@a").1.starts_with("changed: false"));
    assert_eq!(text(&fake), alone);
}

#[test]
fn a_dry_run_changes_nothing() {
    let fake = redis();
    let mut dry = args("redis-server", &[Via::Cgroup]);
    dry.dry_run = true;
    let (_, text) = fake.command("enable", |ctx| enable(ctx, &dry));
    assert!(
        text.starts_with("would change: true\n# /etc/systemd"),
        "{text}"
    );
    assert!(!fake.host.exists(DROP_IN));
    fake.module(|m| assert!(m.enrolled.is_empty()));
    assert_eq!(fake.calls("daemon-reload"), 0);
}

#[test]
fn it_is_restarted_only_if_asked_and_only_if_older() {
    let fake = redis();
    let mut again = args("redis-server", &[Via::Preload]);
    fake.command("enable", |ctx| enable(ctx, &again)).0.unwrap();
    assert_eq!(fake.calls("try-restart"), 0);
    again.restart = true;
    let (_, text) = fake.command("enable", |ctx| enable(ctx, &again));
    assert!(
        text.contains("changed: false") && text.contains("restarted: redis-server.service"),
        "{text}"
    );
    fake.unit(
        "redis-server.service",
        "Id=redis-server.service\nLoadState=loaded\nActiveState=active\nActiveEnterTimestampMonotonic=18446744073709551615\n",
    );
    fake.command("enable", |ctx| enable(ctx, &again)).0.unwrap();
    assert_eq!(fake.calls("try-restart"), 1);
}

#[test]
fn a_unit_that_may_use_all_devices_is_not_limited_to_ours() {
    let fake = redis();
    let open: String = DEBIAN
        .lines()
        .filter(|line| !line.starts_with("PrivateDevices"))
        .map(|line| format!("{line}\n"))
        .collect();
    fake.unit_file("redis-server.service", &open);
    let (result, _) = fake.command("enable", |ctx| {
        enable(ctx, &args("redis-server", &[Via::Cgroup]))
    });
    assert_eq!(result.unwrap(), Exit::Done);
    let written = fake.host.read(DROP_IN).unwrap();
    assert!(!written.contains("DeviceAllow"), "{written}");
}

#[test]
fn templates_and_instances_have_drop_ins_of_their_own() {
    let fake = redis();
    fake.unit(
        "redis-server@asyncfork-check.service",
        "Id=redis-server@asyncfork-check.service\nLoadState=loaded\n",
    );
    fake.unit(
        "redis-server@a.service",
        "Id=redis-server@a.service\nLoadState=loaded\n",
    );
    fake.unit_file("redis-server@.service", DEBIAN);
    fake.unit_file("redis-server@a.service", DEBIAN);
    for (name, directory) in [
        ("redis-server@", "redis-server@.service.d"),
        ("redis-server@a", "redis-server@a.service.d"),
    ] {
        let (result, text) = fake.command("enable", |ctx| enable(ctx, &args(name, &[Via::Cgroup])));
        result.unwrap();
        assert!(text.contains("changed: true"), "{text}");
        assert!(fake
            .host
            .exists(format!("/etc/systemd/system/{directory}/asyncfork.conf")));
        // What runs is enrolled at once, unless it is for systemd to say what that is.
        let told = text.contains("instances that run");
        assert_eq!(told, name.ends_with('@'), "{text}");
    }
}

#[test]
fn what_would_keep_the_service_from_starting_is_refused() {
    for (break_it, via, words) in [
        ("/etc/group", Via::Preload, "groupadd"),
        (
            "/usr/lib/x86_64-linux-gnu/libasyncfork.so",
            Via::Preload,
            "scripts/library",
        ),
    ] {
        let fake = redis();
        fake.host.remove_file(break_it).unwrap();
        let error = fake
            .command("enable", |ctx| enable(ctx, &args("redis-server", &[via])))
            .0
            .unwrap_err();
        assert_eq!(exit::of(&error), Exit::Failed);
        assert!(error.to_string().contains(words), "{error}");
        assert!(!fake.host.exists(DROP_IN));
    }
}

#[test]
fn an_older_module_leaves_the_library() {
    let fake = redis();
    fake.module(|m| m.abi = 2);
    let error = fake
        .command("enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Cgroup]))
        })
        .0
        .unwrap_err();
    assert!(error.to_string().contains("--via preload"), "{error}");
    fake.command("enable", |ctx| {
        enable(ctx, &args("redis-server", &[Via::Preload]))
    })
    .0
    .unwrap();
}

#[test]
fn somebody_elses_drop_in_is_left_alone() {
    let fake = redis();
    fake.write(DROP_IN, "[Service]\nNice=1\n");
    for result in [
        fake.command("enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Cgroup]))
        })
        .0,
        fake.command("disable", |ctx| disable(ctx, &off("redis-server", &[])))
            .0,
    ] {
        assert_eq!(exit::of(&result.unwrap_err()), Exit::Failed);
    }
    assert_eq!(fake.host.read(DROP_IN).unwrap(), "[Service]\nNice=1\n");
}

#[test]
fn a_drop_in_that_systemd_does_not_read_is_taken_back() {
    let fake = redis();
    fake.blind_systemd();
    let error = fake
        .command("enable", |ctx| {
            enable(ctx, &args("redis-server", &[Via::Cgroup]))
        })
        .0
        .unwrap_err();
    assert_eq!(exit::of(&error), Exit::Failed);
    assert!(!fake.host.exists(DROP_IN));
}

#[test]
fn unknown_units_change_nothing() {
    let fake = redis();
    for bad in ["none", "none@", "a/b", ""] {
        let error = fake
            .command("enable", |ctx| enable(ctx, &args(bad, &[Via::Cgroup])))
            .0
            .unwrap_err();
        assert_eq!(exit::of(&error), Exit::Input, "{bad}");
        let error = fake
            .command("disable", |ctx| disable(ctx, &off(bad, &[])))
            .0
            .unwrap_err();
        assert_eq!(exit::of(&error), Exit::Input, "{bad}");
    }
    // One that is gone leaves its drop-in behind.
    fake.write(
        "/etc/systemd/system/gone.service.d/asyncfork.conf",
        &format!("{MARK}\n{VIA}cgroup\n"),
    );
    fake.command("disable", |ctx| disable(ctx, &off("gone", &[])))
        .0
        .unwrap();
    assert!(!fake.host.exists("/etc/systemd/system/gone.service.d"));
}

#[test]
fn a_plan_survives_its_drop_in() {
    let fake = redis();
    let unit = Unit::parse("redis-server").unwrap();
    for via in [
        vec![Via::Cgroup],
        vec![Via::Preload],
        vec![Via::Cgroup, Via::Preload],
    ] {
        let plan = Plan {
            via: via.into_iter().collect(),
            min_rss: Some(5 << 20),
            helpers: Some(2),
        };
        assert_eq!(plan_of(&text(&fake.host, &unit, &plan).unwrap()), plan);
    }
}

#[test]
fn json_is_as_documented() {
    let fake = redis();
    let dry = EnableArgs {
        dry_run: true,
        ..args("redis-server", &[Via::Preload])
    };
    fake.golden("enable-dry-run", "enable", |ctx| enable(ctx, &dry));
    fake.golden("enable", "enable", |ctx| {
        enable(ctx, &args("redis-server", &[Via::Cgroup]))
    });
    fake.golden("disable", "disable", |ctx| {
        disable(ctx, &off("redis-server", &[]))
    });
}
