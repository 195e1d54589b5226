// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control groups of the default hierarchy (cgroup v2), by their directories.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use procfs::{FromRead as _, ProcessCGroups};

use crate::exit;
use crate::host::Host;

/// Where systemd mounts it.
const MOUNT: &str = "/sys/fs/cgroup";
/// Where it is besides hierarchies of version 1.
const HYBRID: &str = "/sys/fs/cgroup/unified";
/// Directories that a search by number looks at.
const SEARCHED: usize = 100_000;

/// Where the default hierarchy is mounted.
///
/// # Errors
/// There is none.
pub fn mount(host: &Host) -> Result<&'static Path> {
    [MOUNT, HYBRID]
        .into_iter()
        .find(|mount| host.exists(Path::new(mount).join("cgroup.controllers")))
        .map(Path::new)
        .ok_or_else(|| {
            exit::cannot_tell(format!(
                "no cgroup v2 below {MOUNT}: boot with systemd.unified_cgroup_hierarchy=1, or use the library (--via preload)"
            ))
        })
}

/// The cgroup of a process, as `/a/b`; `None`: not in the default hierarchy, or gone.
pub fn of_pid(host: &Host, pid: &str) -> Option<String> {
    let file = host.open(format!("/proc/{pid}/cgroup")).ok()?;
    let groups = ProcessCGroups::from_read(file).ok()?;
    let default = groups.0.into_iter().find(|group| group.hierarchy == 0)?;
    Some(default.pathname)
}

/// The directory of the cgroup that a path of `/proc/PID/cgroup` names.
///
/// # Errors
/// No cgroup v2, or the process is in its root.
pub fn directory(host: &Host, path: &str) -> Result<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    if relative.as_os_str().is_empty() || path.starts_with("/..") {
        return Err(exit::input(format!(
            "the process is in cgroup {path}, as seen from here: the root cgroup cannot be enrolled, \
             and a container cannot enrol itself; run it on the host, with --pid"
        )));
    }
    Ok(mount(host)?.join(relative))
}

/// What a person gives as a cgroup: a directory below the mount, or a path in it.
///
/// # Errors
/// It is none, or the root.
pub fn given(host: &Host, text: &Path) -> Result<PathBuf> {
    let mount = mount(host)?;
    let inside = text.strip_prefix(mount).unwrap_or(text);
    let inside = inside.strip_prefix("/").unwrap_or(inside);
    let path = mount.join(inside);
    let wrong = |why: &str| {
        exit::input(format!(
            "{} {why}: give a directory below {}, such as system.slice/redis-server.service",
            text.display(),
            mount.display()
        ))
    };
    if inside
        .components()
        .any(|c| !matches!(c, Component::Normal(_)))
    {
        return Err(wrong("is no plain path"));
    }
    if inside.as_os_str().is_empty() {
        return Err(wrong("is the root cgroup, which cannot be enrolled"));
    }
    if !host.exists(path.join("cgroup.procs")) {
        return Err(wrong("is no cgroup"));
    }
    Ok(path)
}

/// The cgroup of this process. systemd starts helpers of a unit with `Delegate=` in a
/// group `.control` of their own: then that of the unit.
///
/// # Errors
/// No cgroup v2, or the root.
pub fn own(host: &Host) -> Result<PathBuf> {
    let path = of_pid(host, "self")
        .ok_or_else(|| exit::cannot_tell("this process is in no cgroup v2; use --unit or --pid"))?;
    directory(host, path.strip_suffix("/.control").unwrap_or(&path))
}

/// Opens a cgroup's directory.
///
/// # Errors
/// It is gone.
pub fn open(host: &Host, directory: &Path) -> Result<File> {
    host.open(directory).map_err(|e| {
        exit::input(format!(
            "{}: {e}; is the service running?",
            directory.display()
        ))
    })
}

/// The number by which the module knows a cgroup.
pub fn id(host: &Host, directory: &Path) -> Option<u64> {
    Some(host.metadata(directory).ok()?.ino())
}

/// The numbers of a cgroup and of those that it is in, innermost first.
pub fn ids_upwards(host: &Host, directory: &Path) -> Vec<u64> {
    let Ok(mount) = mount(host) else {
        return Vec::new();
    };
    directory
        .ancestors()
        .take_while(|dir| *dir != mount && dir.starts_with(mount))
        .filter_map(|dir| id(host, dir))
        .collect()
}

/// The directories of the cgroups with these numbers, in their order.
pub fn find(host: &Host, ids: &[u64]) -> Vec<Option<PathBuf>> {
    let mut found = vec![None; ids.len()];
    let Ok(mount) = mount(host) else {
        return found;
    };
    let mut left = ids.len();
    let mut searched = 0;
    let mut todo = vec![mount.to_owned()];
    while let Some(directory) = todo.pop() {
        searched += 1;
        if left == 0 || searched > SEARCHED {
            break;
        }
        let Ok(metadata) = host.metadata(&directory) else {
            continue;
        };
        for (place, _) in found
            .iter_mut()
            .zip(ids)
            .filter(|(_, id)| **id == metadata.ino())
        {
            *place = Some(directory.clone());
            left -= 1;
        }
        let inside = host.list_directories(&directory).into_iter();
        todo.extend(inside.map(|name| directory.join(name)));
    }
    found
}

/// The unit that a cgroup belongs to, by its name.
pub fn unit(path: &str) -> Option<&str> {
    path.rsplit('/')
        .find(|name| name.ends_with(".service") || name.ends_with(".scope"))
}

/// A number in a file of a cgroup; `None` also for `max`.
pub fn number(host: &Host, directory: &Path, file: &str) -> Option<u64> {
    host.line(directory.join(file))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::testing::Fake;

    const REDIS: &str = "/sys/fs/cgroup/system.slice/redis-server.service";

    #[test]
    fn a_cgroup_is_taken_with_and_without_its_mount() {
        let fake = Fake::new();
        fake.cgroup("system.slice/redis-server.service");
        for text in [
            REDIS,
            "system.slice/redis-server.service",
            "/system.slice/redis-server.service",
        ] {
            assert_eq!(
                given(&fake.host, Path::new(text)).unwrap(),
                Path::new(REDIS)
            );
        }
        for bad in [
            "",
            "/",
            "/sys/fs/cgroup",
            "../../etc",
            "nothing.slice",
            "/etc",
        ] {
            let error = given(&fake.host, Path::new(bad)).unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input, "{bad}");
        }
    }

    #[test]
    fn a_helper_of_a_unit_enrols_the_unit() {
        let fake = Fake::new();
        fake.cgroup("system.slice/redis-server.service");
        for path in ["", "/.control"] {
            let line = format!("1:name=systemd:/\n0::/system.slice/redis-server.service{path}\n");
            fake.write("/proc/self/cgroup", &line);
            assert_eq!(own(&fake.host).unwrap(), Path::new(REDIS));
        }
        fake.write("/proc/self/cgroup", "0::/\n");
        assert_eq!(exit::of(&own(&fake.host).unwrap_err()), Exit::Input);
    }

    #[test]
    fn without_version_2_it_is_said() {
        let fake = Fake::new();
        let error = given(&fake.host, Path::new("system.slice")).unwrap_err();
        assert!(error.to_string().contains("no cgroup v2"), "{error}");
    }

    #[test]
    fn groups_are_found_by_number() {
        let fake = Fake::new();
        fake.cgroup("system.slice/redis-server.service")
            .cgroup("system.slice/a.service");
        let number = id(&fake.host, Path::new(REDIS)).unwrap();
        let found = find(&fake.host, &[1, number]);
        assert_eq!(found, [None, Some(PathBuf::from(REDIS))]);
        let upwards = ids_upwards(&fake.host, Path::new(REDIS));
        assert_eq!(upwards.len(), 2);
        assert_eq!(upwards[0], number);
    }

    #[test]
    fn units_are_named_by_their_cgroups() {
        assert_eq!(
            unit("/system.slice/redis-server.service/sub"),
            Some("redis-server.service")
        );
        assert_eq!(unit("/user.slice"), None);
    }
}
