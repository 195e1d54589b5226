// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel that boots next.

use super::finding::{self as f, Findings};
use super::{kernel, signature};
use crate::ctx::Ctx;
use crate::modprobe;

/// Whether it has the module, and what loads it.
pub fn check(ctx: &Ctx<'_>, findings: &mut Findings) {
    let host = &ctx.host;
    let Some(release) = kernel::next(host) else {
        findings.unknown(
            "the kernel that boots next",
            "there is none in /boot: is this a container?",
        );
        return;
    };
    if !kernel::is_supported(&release) {
        findings.add(
            &f::NEXT_UNSUPPORTED,
            format!(
                "the newest kernel in /boot is {release}; tested series: {}",
                kernel::series()
            ),
            format!(
                "apt remove linux-image-{release}  # or let the boot loader {}",
                kernel::boot_another(host)
            ),
        );
    }
    match kernel::module_file(host, &release) {
        // It is not built for that.
        None if !kernel::is_supported(&release) => {}
        None => {
            findings.add(
                &f::NEXT_MISSING,
                kernel::missing(host, &release),
                kernel::build(host, &release),
            );
            if !kernel::has_headers(host, &release) {
                findings.add(
                    &f::NEXT_HEADERS,
                    format!("there is no /lib/modules/{release}/build/Makefile"),
                    format!("apt install linux-headers-{release}"),
                );
            }
        }
        Some(file) => {
            signature::check(ctx, &release, &file, &f::NEXT_UNSIGNED, findings);
        }
    }
    if let Some(evidence) = kernel::old(host, &release) {
        findings.add(&f::MODULE_OLD, evidence, kernel::build(host, &release));
    }
    if !kernel::loaded_at_boot(host) {
        findings.add(
            &f::NEXT_NOT_LOADED,
            "no file in /etc/modules-load.d, /run/modules-load.d or /usr/lib/modules-load.d, nor /etc/modules, names asyncfork",
            "echo asyncfork > /etc/modules-load.d/asyncfork.conf",
        );
    }
    for place in modprobe::off_at_load(host) {
        let fix = if place == modprobe::FILE {
            "asyncfork on --persist".to_owned()
        } else {
            format!("take enabled=0 for asyncfork out of {place}")
        };
        findings.add(&f::NEXT_OFF, place, fix);
    }
}
