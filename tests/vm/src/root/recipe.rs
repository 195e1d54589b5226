// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest root is made from.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::DEBIAN11;
use crate::kernels::{self, Kernel};
use crate::tools;

/// The kernel's build, the guest's init, the tests. tiny-initramfs because the image wants
/// something of the kind, and virtme-ng brings its own.
const PACKAGES: &[&str] = &[
    "tiny-initramfs",
    "gcc",
    "make",
    "libc6-dev",
    "sparse",
    "kmod",
    "mount",
    "iproute2",
    "procps",
    "redis-server",
    "redis-tools",
];
/// And where the Debian has them: the other server, and what scripts/qemu runs.
const NEWER_PACKAGES: &[&str] = &[
    "valkey-server",
    "valkey-tools",
    "qemu-system-x86",
    "virtiofsd",
    "seabios",
    "ipxe-qemu",
];
/// And for the tests: systemd and udev, for guests that boot with them; what packaging/debian
/// depends on; a unit that is to be left alone; containers, with the seccomp profile that Podman
/// gives to all; static programs.
const TEST_PACKAGES: &[&str] = &[
    "systemd",
    "udev",
    "dkms",
    "openssl",
    "redis-sentinel",
    "crun",
    "runc",
    "golang-github-containers-common",
    "musl-tools",
];
/// And where those are new enough: the Rust of scripts/rust-1.85, who reads metrics.
const NEWER_TEST_PACKAGES: &[&str] = &["cargo", "rustc", "prometheus", "prometheus-node-exporter"];
/// And for the suites that nobody here wrote: kernel selftests, the servers' own.
const SUITES_PACKAGES: &[&str] = &[
    "bc",
    "bison",
    "flex",
    "pahole",
    "python3",
    "libelf-dev",
    "libssl-dev",
    "libcap-dev",
    "libnuma-dev",
    "liburing-dev",
    "rsync",
    "xz-utils",
    "dpkg-dev",
    "tcl",
    "tcl-tls",
    "stress-ng",
];
/// For the tests of the library, which meets such old C libraries in containers.
const DEBIAN11_PACKAGES: &[&str] = &[
    "gcc",
    "libc6-dev",
    "musl-tools",
    "redis-server",
    "redis-tools",
];

/// What a Debian of this code name has beside the older one's.
fn newer_packages(debian: &str) -> &'static [&'static str] {
    match debian {
        "bookworm" => &[],
        _ => NEWER_PACKAGES,
    }
}

fn newer_test_packages(debian: &str) -> &'static [&'static str] {
    match debian {
        "bookworm" => &[],
        _ => NEWER_TEST_PACKAGES,
    }
}

/// Whether the Debian of a kernel has Valkey; all have Redis.
pub fn has_valkey(kernel: &Kernel) -> bool {
    newer_packages(&kernel.debian).contains(&"valkey-server")
}

/// The bash script that makes a root.
const MAKE_ROOT: &str = include_str!("make_root.sh");

/// What a root is made from: another recipe, another root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipe {
    /// What the root's name begins with.
    pub(super) name: String,
    /// Code name of the Debian.
    debian: &'static str,
    /// Its kernels: of each the newest, with headers.
    kernels: Vec<&'static Kernel>,
    pub(super) packages: Vec<&'static str>,
    source_packages: Vec<&'static str>,
    /// With what the suites need.
    suites: bool,
    /// A mirror may have dropped the updates of a release that gets no more of them.
    unsupported: bool,
}

impl Recipe {
    /// Of the root of a stock kernel, the larger one with `suites`.
    pub(super) fn of(kernel: &'static Kernel, suites: bool) -> Self {
        let mut packages = [PACKAGES, newer_packages(&kernel.debian)].concat();
        let mut source_packages = Vec::new();
        packages.extend(TEST_PACKAGES);
        if suites {
            packages.extend(SUITES_PACKAGES);
            source_packages.push("redis");
            source_packages.extend(has_valkey(kernel).then_some("valkey"));
        } else {
            packages.extend(newer_test_packages(&kernel.debian));
        }
        Recipe {
            name: format!("{}{}", kernel.root, if suites { "-suites" } else { "" }),
            debian: &kernel.debian,
            kernels: kernels::all()
                .iter()
                .filter(|other| other.is_stock() && other.root == kernel.root)
                .collect(),
            packages,
            source_packages,
            suites,
            unsupported: false,
        }
    }

    pub(super) fn debian11() -> Self {
        Recipe {
            name: DEBIAN11.into(),
            debian: "bullseye",
            kernels: Vec::new(),
            packages: DEBIAN11_PACKAGES.to_vec(),
            source_packages: Vec::new(),
            suites: false,
            unsupported: true,
        }
    }

    /// Makes the root in `dir`. Errors: mmdebstrap fails, or apt knows no mirror.
    pub(super) fn make(&self, checkout: &Path, dir: &Path) -> Result<()> {
        let targets = tools::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(RELEASE) $(CODENAME) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let mut bash = Command::new("bash");
        bash.args(["-c", MAKE_ROOT, "make_root"])
            .current_dir(checkout)
            .env("PWD", checkout)
            .env("dir", dir)
            .env("name", &self.name)
            .env("suite", self.debian)
            .env("suites", if self.suites { "1" } else { "" })
            .env("ROOT_KERNELS", self.kernel_words().join(" "))
            .env("ROOT_PACKAGES", self.packages.join(" "))
            .env("ROOT_SOURCE_PACKAGES", self.source_packages.join(" "))
            .env(
                "ROOT_SOURCES_LIST",
                self.sources_list(&targets, &own_code_name()?)?,
            );
        tools::run_aside(&mut bash)
    }

    /// The kernels, for make_root.sh: series, flavour and the archive it comes from, if not
    /// from the Debian itself.
    fn kernel_words(&self) -> Vec<String> {
        let word = |kernel: &&Kernel| {
            let pocket = if kernel.backports { "backports" } else { "" };
            format!("{}/{}/{pocket}", kernel.series, kernel.flavour)
        };
        self.kernels.iter().map(word).collect()
    }

    /// All that makes a difference to the root, and where it is mounted.
    pub(super) fn text(&self, checkout: &Path) -> String {
        let script = MAKE_ROOT
            .lines()
            .skip_while(|line| !line.starts_with("make_root"));
        let end = script.clone().position(|line| line.starts_with('}'));
        let script: Vec<&str> = script.take(end.map_or(usize::MAX, |n| n + 1)).collect();
        format!(
            "{}; {}; {}; {}; mount point {}\n{}\n",
            self.debian,
            self.kernel_words().join(" "),
            self.packages.join(" "),
            self.source_packages.join(" "),
            checkout.display(),
            script.join("\n")
        )
    }

    /// Where its packages come from, as lines of sources.list. `targets` is what apt-get has
    /// to say of this machine's sources, `own` this machine's Debian.
    fn sources_list(&self, targets: &str, own: &str) -> Result<String> {
        let debian = self.debian;
        let archive = archive_of(targets, own)
            .with_context(|| format!("apt is configured with no mirror of {own} (main)"))?;
        let mut list = format!("deb {archive} {debian} main\n");
        if self.unsupported {
            return Ok(list);
        }
        list += &format!("deb {archive} {debian}-updates main\n");
        match archive_of(targets, &format!("{own}-security")) {
            Some(security) => list += &format!("deb {security} {debian}-security main\n"),
            None => {
                eprintln!("root: apt is configured with no {own}-security: going without");
            }
        }
        if self.kernels.iter().any(|kernel| kernel.backports) {
            list += &format!("deb {archive} {debian}-backports main\n");
        }
        // For the tests in them: an update of the servers seldom changes those.
        if !self.source_packages.is_empty() {
            list += &format!("deb-src {archive} {debian} main\n");
        }
        Ok(list)
    }
}

/// Where this machine gets a suite of its own release from.
fn archive_of<'a>(targets: &'a str, suite: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [release, code_name, "main", uri, ..] if release == suite || code_name == suite => {
                Some(uri)
            }
            _ => None,
        }
    })
}

/// The code name of this machine's Debian.
fn own_code_name() -> Result<String> {
    const PATH: &str = "/etc/os-release";
    let text = fs::read_to_string(PATH).context(PATH)?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .with_context(|| format!("{PATH} has no VERSION_CODENAME: is this Debian?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str) -> &'static Kernel {
        kernels::find(name).unwrap()
    }

    #[test]
    fn a_root_has_all_its_kernels_and_the_larger_one_more_packages() {
        let recipe = Recipe::of(kernel("6.12"), false);
        assert_eq!(recipe.debian, "trixie");
        let own = kernels::all()
            .iter()
            .filter(|k| k.is_stock() && k.root == recipe.name);
        assert_eq!(recipe.kernels, own.clone().collect::<Vec<_>>());
        for kernel in own {
            assert_eq!(recipe, Recipe::of(kernel, false));
        }
        let words = recipe.kernel_words();
        for word in [
            "6.12/amd64/",
            "7.2/amd64/backports",
            "7.2/cloud-amd64/backports",
        ] {
            assert!(words.iter().any(|w| w == word), "{word}: {words:?}");
        }
        for package in ["valkey-server", "virtiofsd", "systemd"] {
            assert!(recipe.packages.contains(&package), "{package}");
        }
        let larger = Recipe::of(kernel("7.2"), true);
        assert_eq!(larger.name, "debian13-suites");
        assert!(larger.packages.contains(&"stress-ng"));
        assert_eq!(larger.source_packages, ["redis", "valkey"]);
        let older = Recipe::of(kernel("6.1"), true);
        assert!(!older.packages.contains(&"valkey-server"));
        assert_eq!(
            (&*older.name, older.debian),
            ("debian12-suites", "bookworm")
        );
    }

    #[test]
    fn packages_come_from_where_this_machine_gets_its_own() {
        const TARGETS: &str = "\
stable bookworm main http://mirror/debian/
stable bookworm contrib http://other/
stable-updates bookworm-updates main http://mirror/debian/
bookworm-security bookworm-security main http://mirror/security/
";
        let list = |recipe: Recipe, targets, own| recipe.sources_list(targets, own);
        assert_eq!(
            list(Recipe::of(kernel("6.12"), true), TARGETS, "bookworm").unwrap(),
            "deb http://mirror/debian/ trixie main\n\
             deb http://mirror/debian/ trixie-updates main\n\
             deb http://mirror/security/ trixie-security main\n\
             deb http://mirror/debian/ trixie-backports main\n\
             deb-src http://mirror/debian/ trixie main\n"
        );
        assert_eq!(
            list(Recipe::debian11(), TARGETS, "bookworm").unwrap(),
            "deb http://mirror/debian/ bullseye main\n"
        );
        let first = TARGETS.split_inclusive('\n').next().unwrap();
        assert_eq!(
            list(Recipe::of(kernel("6.1"), false), first, "bookworm").unwrap(),
            "deb http://mirror/debian/ bookworm main\n\
             deb http://mirror/debian/ bookworm-updates main\n"
        );
        assert!(list(Recipe::debian11(), TARGETS, "trixie").is_err());
    }
}
