// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signatures of modules, where the kernel loads no others.

use std::path::Path;

use super::finding::{Findings, Kind};
use super::kernel;
use crate::ctx::Ctx;
use crate::host::Host;
use crate::module;

/// At the end of a file that is signed.
const MAGIC: &[u8] = b"~Module signature appended~\n";
/// The name on the key that dkms makes for itself,
const DKMS: &str = "DKMS module signing key";
/// and its certificate.
const DKMS_CERTIFICATE: &str = "/var/lib/dkms/mok.pub";
/// Whether Secure Boot is on: the last byte.
const SECURE_BOOT: &str =
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Why only signed modules are loaded; none: others are, too.
fn enforced(host: &Host) -> Option<&'static str> {
    let enforce = host.line("/sys/module/module/parameters/sig_enforce");
    if enforce.as_deref() == Some("Y") {
        return Some("module.sig_enforce is on");
    }
    let lockdown = host.line("/sys/kernel/security/lockdown")?;
    ["[integrity]", "[confidentiality]"]
        .iter()
        .any(|mode| lockdown.contains(mode))
        .then_some("the kernel is locked down")
}

/// Whose signature a module has.
#[derive(Debug, PartialEq, Eq)]
enum Signer {
    Nobody,
    Name(String),
    /// modinfo cannot tell, or is not there.
    Unknown,
}

impl Signer {
    fn of(host: &Host, file: &Path) -> Self {
        let is_plain = file.extension().is_some_and(|e| e == "ko");
        if is_plain && host.read_bytes(file).is_ok_and(|b| !b.ends_with(MAGIC)) {
            return Self::Nobody;
        }
        let output = host.run("modinfo", &["-F", "signer", &file.to_string_lossy()]);
        match output {
            Ok(output) if output.success => match output.stdout.trim() {
                "" if is_plain => Self::Unknown,
                "" => Self::Nobody,
                name => Self::Name(name.into()),
            },
            _ => Self::Unknown,
        }
    }
}

/// Whether the kernel has a key of that name; none: its keys are not to be seen.
fn has_key(host: &Host, name: &str) -> Option<bool> {
    let keys = host.read("/proc/keys").ok()?;
    let mut names = keys
        .lines()
        .filter_map(|line| Some(line.split_once(" asymmetri ")?.1))
        .peekable();
    names.peek()?;
    // Organization, name and number of the key, with ": " between them.
    Some(names.any(|found| format!(": {found}").contains(&format!(": {name}: "))))
}

/// Says what keeps the kernel from taking the module in `file` that is for a release, if it
/// is its signature, as a finding of this kind. Whether there is nothing.
pub fn check(
    ctx: &Ctx<'_>,
    release: &str,
    file: &Path,
    kind: &'static Kind,
    findings: &mut Findings,
) -> bool {
    let host = &ctx.host;
    let Some(why) = enforced(host) else {
        return true;
    };
    let path = file.display();
    let signer = match Signer::of(host, file) {
        Signer::Nobody => {
            findings.add(
                kind,
                format!("{why}, and {path} has no signature"),
                sign(host, release, file),
            );
            return false;
        }
        Signer::Name(signer) => signer,
        Signer::Unknown => {
            findings.unknown(
                format!("the signature of {path}"),
                "modinfo is not there, or cannot tell",
            );
            return true;
        }
    };
    match has_key(host, &signer) {
        Some(true) => true,
        // A certificate may have another name than who issued it, which is the one that
        // modinfo says.
        Some(false) if is_proven(ctx, &signer) => true,
        Some(false) => {
            findings.add(
                kind,
                format!(
                    "{why}, {path} is signed by {signer}, and /proc/keys has no key of that name"
                ),
                enrol(host, &signer),
            );
            false
        }
        None => {
            findings.unknown(
                format!("whether the kernel has the key of {path}, {signer}"),
                "/proc/keys shows none: run it as root",
            );
            true
        }
    }
}

/// Whether the kernel has taken a module of the same signer.
fn is_proven(ctx: &Ctx<'_>, signer: &str) -> bool {
    let file = kernel::module_file(&ctx.host, &ctx.kernel());
    module::is_loaded(&ctx.host)
        && file.is_some_and(|file| Signer::of(&ctx.host, &file) == Signer::Name(signer.into()))
}

/// The line that gets a signature by a key that the kernel takes.
fn sign(host: &Host, release: &str, file: &Path) -> String {
    if !takes_keys(host) {
        return WITHOUT_KEYS.into();
    }
    if file.components().any(|part| part.as_os_str() == "extra") {
        return format!(
            "apt install ./asyncfork-modules-{release}_*.deb  # made with --sign-key KEY --sign-cert CERT; then: mokutil --import CERT (in DER), reboot, and enrol the key at the console"
        );
    }
    format!(
        "apt install openssl mokutil && {} && mokutil --import {DKMS_CERTIFICATE}{AT_THE_CONSOLE}",
        kernel::rebuild(host, release)
    )
}

/// The line after which the kernel takes a signer's key.
fn enrol(host: &Host, signer: &str) -> String {
    if !takes_keys(host) {
        return WITHOUT_KEYS.into();
    }
    if signer == DKMS {
        return format!(
            "apt install mokutil && mokutil --import {DKMS_CERTIFICATE}{AT_THE_CONSOLE}"
        );
    }
    format!("mokutil --import CERT{AT_THE_CONSOLE}; CERT is the certificate of {signer}, in DER")
}

const AT_THE_CONSOLE: &str =
    "  # asks for a password; then reboot, and enrol the key at the console with it";
const WITHOUT_KEYS: &str =
    "boot without module.sig_enforce=1 and lockdown=, or with Secure Boot: without it the kernel takes no key that mokutil enrols";

/// Whether the kernel takes keys that mokutil enrols: with Secure Boot only.
fn takes_keys(host: &Host) -> bool {
    if !host.exists("/sys/firmware/efi") {
        return false;
    }
    let on = host.read_bytes(SECURE_BOOT);
    on.map_or(true, |bytes| bytes.last() == Some(&1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Finding, MODULE_UNSIGNED};
    use crate::exit::Exit;
    use crate::testing::Fake;

    const RELEASE: &str = "6.1.0-56-amd64";
    const BUILT: &str = "/lib/modules/6.1.0-56-amd64/updates/dkms/asyncfork.ko";
    const PREBUILT: &str = "/lib/modules/6.1.0-56-amd64/extra/asyncfork.ko";

    /// A machine with Secure Boot.
    fn secure() -> Fake {
        let fake = Fake::new();
        fake.write(
            "/sys/kernel/security/lockdown",
            "none [integrity] confidentiality\n",
        )
        .write_bytes(SECURE_BOOT, &[6, 0, 0, 0, 1]);
        trusts(&fake, "");
        fake
    }

    /// The kernel has Debian's key, and this one.
    fn trusts(fake: &Fake, line: &str) {
        let debian = "1a2b3c4d I------     1 perm 1f030000     0     0 asymmetri Debian Secure Boot CA: 6ccece7e: X509.rsa cc5cbb41 []\n";
        let other = "2a2b3c4d I--Q---     2 perm 1f3f0000     0 65534 keyring   DKMS module signing key: 1\n";
        fake.write("/proc/keys", &format!("{other}{debian}{line}"));
    }

    /// What is found, if anything, of the module in `file` with this content.
    fn found(fake: &Fake, file: &str, content: &str) -> (Option<Finding>, usize) {
        fake.write(file, content);
        let mut findings = Findings::default();
        let mut fine = false;
        let look = |ctx: &mut Ctx<'_>| {
            fine = check(
                ctx,
                RELEASE,
                Path::new(file),
                &MODULE_UNSIGNED,
                &mut findings,
            );
            Ok(Exit::Done)
        };
        fake.command("doctor", look).0.unwrap();
        assert_eq!(fine, findings.findings.is_empty());
        (findings.findings.pop(), findings.unknown.len())
    }

    const SIGNED: &str = "ELF~Module signature appended~\n";

    #[test]
    fn what_is_not_enforced_is_not_asked_for() {
        let fake = Fake::new();
        assert!(matches!(found(&fake, BUILT, "ELF"), (None, 0)));
        fake.write("/sys/kernel/security/lockdown", "[none] integrity\n");
        assert!(matches!(found(&fake, BUILT, "ELF"), (None, 0)));
        fake.write("/sys/module/module/parameters/sig_enforce", "Y\n");
        assert!(matches!(found(&fake, BUILT, "ELF"), (Some(_), 0)));
    }

    #[test]
    fn a_module_without_a_signature_is_signed_by_who_built_it() {
        let fake = secure();
        let (finding, _) = found(&fake, BUILT, "ELF");
        let fix = finding.unwrap().fix;
        assert!(
            fix.starts_with("apt install openssl mokutil && dkms build --force asyncfork/"),
            "{fix}"
        );
        assert!(
            fix.contains(" && mokutil --import /var/lib/dkms/mok.pub  #"),
            "{fix}"
        );
        fake.packaged();
        let (finding, _) = found(&fake, BUILT, "ELF");
        let fix = finding.unwrap().fix;
        let line = "apt install openssl mokutil \
             && rm -f /var/lib/asyncfork/kernels/6.1.0-56-amd64 \
             && /etc/kernel/postinst.d/asyncfork 6.1.0-56-amd64 \
             && mokutil --import /var/lib/dkms/mok.pub  # ";
        assert!(fix.starts_with(line), "{fix}");
        let (finding, _) = found(&fake, PREBUILT, "ELF");
        let fix = finding.unwrap().fix;
        assert!(
            fix.contains("--sign-key KEY --sign-cert CERT; then: mokutil --import CERT"),
            "{fix}"
        );
        assert!(!fix.contains("dkms"), "{fix}");
    }

    #[test]
    fn a_signature_is_good_for_a_kernel_that_has_the_key() {
        let fake = secure();
        for (file, signer, line) in [
            (
                BUILT,
                DKMS,
                "apt install mokutil && mokutil --import /var/lib/dkms/mok.pub  #",
            ),
            (PREBUILT, "Acme", "mokutil --import CERT  #"),
        ] {
            fake.module(|m| m.signer = Some(signer.into()));
            let (finding, _) = found(&fake, file, SIGNED);
            let finding = finding.unwrap();
            assert!(finding.fix.starts_with(line), "{}", finding.fix);
            assert!(
                finding
                    .evidence
                    .contains(&format!("is signed by {signer}, ")),
                "{}",
                finding.evidence
            );
            for named in ["", "Example: "] {
                let name = format!("{named}{signer}");
                trusts(&fake, &format!("3a I------ 1 perm 1f030000 0 0 asymmetri {name}: 0badcafe: X509.rsa 0badcafe []\n"));
                assert!(matches!(found(&fake, file, SIGNED), (None, 0)), "{name}");
            }
            trusts(&fake, "");
        }
    }

    #[test]
    fn a_key_of_which_a_module_is_loaded_is_taken() {
        let fake = secure();
        fake.module(|m| m.signer = Some("Acme".into()));
        assert!(found(&fake, PREBUILT, SIGNED).0.is_some());
        fake.loaded();
        assert!(matches!(found(&fake, PREBUILT, SIGNED), (None, 0)));
    }

    #[test]
    fn keys_are_enrolled_with_secure_boot_only() {
        let fake = secure();
        fake.module(|m| m.signer = Some(DKMS.into()));
        for content in ["ELF", SIGNED] {
            for (on, mokutil) in [(1, true), (0, false)] {
                fake.write_bytes(SECURE_BOOT, &[6, 0, 0, 0, on]);
                let fix = found(&fake, BUILT, content).0.unwrap().fix;
                assert_eq!(fix.contains("mokutil --import"), mokutil, "{fix}");
                assert_eq!(
                    fix.contains("boot without module.sig_enforce"),
                    !mokutil,
                    "{fix}"
                );
            }
            // A kernel that says nothing of it.
            fake.remove(SECURE_BOOT);
            let fix = found(&fake, BUILT, content).0.unwrap().fix;
            assert!(fix.contains("mokutil --import"), "{fix}");
        }
        std::fs::remove_dir_all(fake.host.path("/sys/firmware")).unwrap();
        let fix = found(&fake, BUILT, SIGNED).0.unwrap().fix;
        assert_eq!(fix, WITHOUT_KEYS);
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let fake = secure();
        // No modinfo.
        assert!(matches!(found(&fake, BUILT, SIGNED), (None, 1)));
        assert!(matches!(found(&fake, "/a.ko.xz", ""), (None, 1)));
        // One that cannot read signatures, but of a compressed file says that there is none.
        fake.module(|m| m.signer = Some(String::new()));
        assert!(matches!(found(&fake, BUILT, SIGNED), (None, 1)));
        assert!(matches!(found(&fake, "/a.ko.xz", ""), (Some(_), 0)));
        // Not root.
        fake.module(|m| m.signer = Some(DKMS.into()))
            .write("/proc/keys", "");
        assert!(matches!(found(&fake, BUILT, SIGNED), (None, 1)));
        fake.remove("/proc/keys");
        assert!(matches!(found(&fake, BUILT, SIGNED), (None, 1)));
    }
}
