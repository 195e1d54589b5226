// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels: which of them the module takes, and where it is for one.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use glob::Pattern;

use crate::host::Host;

/// The list that the module is built with.
const KERNELS: &str = include_str!("../../../kmod/compat/kernels.h");

/// The patterns of releases that the module loads on.
pub fn patterns() -> Vec<&'static str> {
    let mut patterns = Vec::new();
    for entry in KERNELS.split("\nAF_KERNEL(").skip(1) {
        let strings = entry.split('"').skip(1).step_by(2);
        // Name, flavour, suite and root come first.
        patterns.extend(strings.skip(4));
    }
    patterns
}

/// Whether the module loads on a release without being forced.
pub fn is_supported(release: &str) -> bool {
    let matches = |pattern: &&str| Pattern::new(pattern).is_ok_and(|p| p.matches(release));
    patterns().iter().any(matches)
}

/// The series that are supported, for a message.
pub fn series() -> String {
    let mut series: Vec<_> = KERNELS
        .split("\nAF_KERNEL(")
        .skip(1)
        .filter(|entry| entry.split('"').skip(1).step_by(2).count() > 4)
        .filter_map(|entry| entry.split('"').nth(1))
        .collect();
    series.dedup();
    series.join(", ")
}

/// The module's file for a release.
pub fn module_file(host: &Host, release: &str) -> Option<PathBuf> {
    let directory = Path::new("/lib/modules").join(release);
    const NAMES: &[&str] = &[
        "asyncfork.ko",
        "asyncfork.ko.xz",
        "asyncfork.ko.zst",
        "asyncfork.ko.gz",
    ];
    let dep = host.read(directory.join("modules.dep")).unwrap_or_default();
    let listed = dep.lines().filter_map(|line| line.split(':').next());
    let listed = listed.filter(|path| {
        NAMES
            .iter()
            .any(|name| path.rsplit('/').next() == Some(name))
    });
    let listed = listed.map(|path| directory.join(path));
    let usual = ["updates/dkms", "extra", "updates"]
        .iter()
        .flat_map(|place| NAMES.iter().map(move |name| Path::new(place).join(name)))
        .map(|path| directory.join(path));
    listed.chain(usual).find(|path| host.exists(path))
}

/// Whether the headers of a release are there.
pub fn has_headers(host: &Host, release: &str) -> bool {
    host.exists(format!("/lib/modules/{release}/build/Makefile"))
}

/// The package asyncfork-dkms builds by this, which goes when it is removed,
const SCRIPT: &str = "/usr/lib/asyncfork/kernel";
/// and this runs that for a kernel; it stays until purge.
const HOOK: &str = "/etc/kernel/postinst.d/asyncfork";
/// What became of it, a file a release. See docs/packages.md.
const RECORDS: &str = "/var/lib/asyncfork/kernels";
/// Of dpkg: the package of the command is installed.
const COMMAND: &str = "/var/lib/dpkg/info/asyncfork.list";

/// What the package has recorded of a release.
fn record(host: &Host, release: &str) -> Option<String> {
    host.line(format!("{RECORDS}/{release}"))
}

/// The record, if it begins with one of these words.
fn recorded(host: &Host, release: &str, words: &[&str]) -> Option<String> {
    record(host, release).filter(|line| words.iter().any(|word| line.starts_with(word)))
}

/// Whether the package builds for the kernels of this machine.
fn is_packaged(host: &Host) -> bool {
    host.is_executable(SCRIPT) && host.is_executable(HOOK)
}

/// Evidence that a release has no module.
pub fn missing(host: &Host, release: &str) -> String {
    let record = record(host, release).map_or(String::new(), |line| {
        format!("; {RECORDS}/{release}: {line}")
    });
    format!("no asyncfork.ko below /lib/modules/{release}{record}")
}

/// Evidence that the module of a release is older than the package: a newer one was not
/// built.
pub fn old(host: &Host, release: &str) -> Option<String> {
    let file = module_file(host, release)?;
    let line = recorded(host, release, &["failed:", "headers-missing:"])?;
    Some(format!(
        "{} is there; {RECORDS}/{release}: {line}",
        file.display()
    ))
}

/// The line that gets a release a module, or says that there is none for it.
pub fn build(host: &Host, release: &str) -> String {
    if !is_supported(release) || recorded(host, release, &["excluded:"]).is_some() {
        return boot_another(host);
    }
    let headers = format!("linux-headers-{release}");
    let headers = (!has_headers(host, release)).then_some(headers);
    if is_packaged(host) {
        if let Some(headers) = headers {
            // Their hook builds.
            return format!("apt install {headers}");
        }
        let again = format!("{HOOK} {release}");
        return match recorded(host, release, &["failed:"]) {
            Some(_) => format!("{again}  # after what {RECORDS}/{release}.log asks for"),
            None => again,
        };
    }
    if host.exists(COMMAND) {
        let headers = headers.map_or(String::new(), |headers| format!("{headers} "));
        return format!("apt install {headers}asyncfork-dkms  # without a compiler: asyncfork-modules-{release}");
    }
    let headers = headers.map_or(String::new(), |headers| {
        format!("apt install {headers} && ")
    });
    format!(
        "{headers}dkms install asyncfork/{} -k {release}",
        env!("CARGO_PKG_VERSION")
    )
}

/// The line that builds it anew, for a release that has one.
pub fn rebuild(host: &Host, release: &str) -> String {
    if is_packaged(host) {
        return format!("rm -f {RECORDS}/{release} && {HOOK} {release}");
    }
    let module = format!("asyncfork/{} -k {release}", env!("CARGO_PKG_VERSION"));
    format!("dkms build --force {module} && dkms install --force {module}")
}

/// The kernels in /boot, the newest first.
pub fn installed(host: &Host) -> Vec<String> {
    let names = host.list("/boot").into_iter();
    let mut releases: Vec<_> = names
        .filter_map(|name| Some(name.to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .filter(|release| !release.ends_with(".old") && !release.contains("rescue"))
        .collect();
    releases.sort_by(|a, b| compare(b, a));
    releases
}

/// What to boot instead of a release that the module is not for.
pub fn boot_another(host: &Host) -> String {
    let mut served = installed(host);
    served.retain(|r| is_supported(r) && module_file(host, r).is_some());
    if served.is_empty() {
        "boot a tested kernel".into()
    } else {
        format!("boot a kernel that has the module: {}", served.join(", "))
    }
}

/// The kernel that GRUB boots unless told otherwise: the newest in /boot.
pub fn next(host: &Host) -> Option<String> {
    let newest = installed(host).into_iter().next();
    newest.or_else(|| {
        let link = host.read_link("/vmlinuz").ok()?;
        Some(
            link.file_name()?
                .to_str()?
                .strip_prefix("vmlinuz-")?
                .to_owned(),
        )
    })
}

/// Releases by their numbers: 6.1.0-9 is older than 6.1.0-10.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        let numbers = text.split(|c: char| !c.is_ascii_digit());
        numbers.filter_map(|n| n.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

/// What loads the module at boot.
pub fn loaded_at_boot(host: &Host) -> bool {
    const DIRECTORIES: &[&str] = &[
        "/etc/modules-load.d",
        "/run/modules-load.d",
        "/usr/lib/modules-load.d",
    ];
    let files = DIRECTORIES.iter().flat_map(|directory| {
        let names = host.list(directory).into_iter();
        let names = names.filter(|name| name.to_string_lossy().ends_with(".conf"));
        names.map(move |name| Path::new(directory).join(name))
    });
    let mut files = files.chain(std::iter::once("/etc/modules".into()));
    let listed = files.any(|file| {
        let text = host.read(file).unwrap_or_default();
        text.lines().any(|line| line.trim() == "asyncfork")
    });
    let line = host.line("/proc/cmdline").unwrap_or_default();
    listed
        || line
            .split_whitespace()
            .filter_map(|w| w.strip_prefix("modules-load="))
            .any(|list| list.split(',').any(|m| m == "asyncfork"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn the_modules_own_list_of_kernels_is_used() {
        for release in [
            "6.1.0-56-amd64",
            "6.1.0-56-cloud-amd64",
            "6.12.118+deb13-amd64",
            "7.2.12+deb14-amd64",
        ] {
            assert!(is_supported(release), "{release}");
        }
        for release in [
            "6.1.0-56-rt-amd64",
            "5.10.0-28-amd64",
            "6.18.44-fc-v657",
            "",
            "6.1.0-5-amd64",
        ] {
            assert!(!is_supported(release), "{release}");
        }
        assert!(series().starts_with("6.1, 6.1-cloud, "), "{}", series());
        assert!(!series().contains("debug"));
    }

    #[test]
    fn the_newest_kernel_boots_next() {
        let fake = Fake::new();
        assert_eq!(next(&fake.host), None);
        for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-11-amd64.old"] {
            fake.write(&format!("/boot/vmlinuz-{release}"), "");
        }
        assert_eq!(next(&fake.host).as_deref(), Some("6.1.0-10-amd64"));
        fake.write("/boot/vmlinuz-6.12.43+deb13-amd64", "");
        assert_eq!(next(&fake.host).as_deref(), Some("6.12.43+deb13-amd64"));
    }

    #[test]
    fn a_module_is_found_by_depmods_list_and_in_the_usual_places() {
        let fake = Fake::new();
        assert_eq!(module_file(&fake.host, "6.1.0-56-amd64"), None);
        fake.write(
            "/lib/modules/6.1.0-56-amd64/modules.dep",
            "misc/asyncfork.ko.zst: kernel/a.ko\n",
        )
        .write("/lib/modules/6.1.0-56-amd64/updates/dkms/asyncfork.ko", "");
        assert!(module_file(&fake.host, "6.1.0-56-amd64")
            .unwrap()
            .ends_with("updates/dkms/asyncfork.ko"));
        fake.write("/lib/modules/6.1.0-56-amd64/misc/asyncfork.ko.zst", "");
        assert!(module_file(&fake.host, "6.1.0-56-amd64")
            .unwrap()
            .ends_with("misc/asyncfork.ko.zst"));
    }
}
