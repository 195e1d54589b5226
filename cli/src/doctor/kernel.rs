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

/// Why only signed modules are loaded; none: others are, too.
pub fn signatures_enforced(host: &Host) -> Option<&'static str> {
    if host
        .line("/sys/module/module/parameters/sig_enforce")
        .as_deref()
        == Some("Y")
    {
        return Some("module.sig_enforce is on");
    }
    let lockdown = host
        .line("/sys/kernel/security/lockdown")
        .unwrap_or_default();
    if lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]") {
        return Some("the kernel is locked down (Secure Boot)");
    }
    None
}

/// Whether a module's file has a signature; none: it is compressed and modinfo is not
/// there.
pub fn is_signed(host: &Host, file: &Path) -> Option<bool> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    if file.extension().is_some_and(|e| e == "ko") {
        return Some(host.read_bytes(file).ok()?.ends_with(MAGIC));
    }
    let output = host
        .run("modinfo", &["-F", "signer", &file.to_string_lossy()])
        .ok()?;
    output.success.then(|| !output.stdout.trim().is_empty())
}

/// The kernel that GRUB boots unless told otherwise: the newest in /boot.
pub fn next(host: &Host) -> Option<String> {
    let names = host.list("/boot").into_iter();
    let releases =
        names.filter_map(|name| Some(name.to_str()?.strip_prefix("vmlinuz-")?.to_owned()));
    let newest = releases
        .filter(|release| !release.ends_with(".old") && !release.contains("rescue"))
        .max_by(|a, b| compare(a, b));
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

    #[test]
    fn signatures_are_seen() {
        let fake = Fake::new();
        fake.write("/a.ko", "ELF~Module signature appended~\n")
            .write("/b.ko", "ELF")
            .write("/c.ko.xz", "");
        assert_eq!(is_signed(&fake.host, Path::new("/a.ko")), Some(true));
        assert_eq!(is_signed(&fake.host, Path::new("/b.ko")), Some(false));
        assert_eq!(is_signed(&fake.host, Path::new("/c.ko.xz")), None);
        assert_eq!(signatures_enforced(&fake.host), None);
        fake.write(
            "/sys/kernel/security/lockdown",
            "none [integrity] confidentiality\n",
        );
        assert!(signatures_enforced(&fake.host).is_some());
    }
}
