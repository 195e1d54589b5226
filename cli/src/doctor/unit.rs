// SPDX-License-Identifier: MIT OR Apache-2.0
//! One systemd service.

use super::finding::{self as f, Findings};
use crate::cli::Via;
use crate::commands::enable;
use crate::ctx::Ctx;
use crate::systemd::{Shown, Unit};

/// Its drop-in, and whether that is in effect.
pub fn check(ctx: &Ctx<'_>, unit: &Unit, shown: &Shown, served: bool, findings: &mut Findings) {
    let ways = enable::ways(&ctx.host, unit).or_else(|| {
        // By the drop-in of its template.
        let name = unit.to_string();
        let (stem, _) = name.split_once('@')?;
        enable::ways(&ctx.host, &Unit::parse(&format!("{stem}@")).ok()?)
    });
    if shown.get("NeedDaemonReload") == "yes" {
        findings.add(
            &f::UNIT_RELOAD,
            format!("NeedDaemonReload of {unit} is yes"),
            "systemctl daemon-reload",
        );
    }
    if !shown.is_active() && !unit.is_template() {
        findings.add(
            &f::UNIT_NOT_RUNNING,
            format!("ActiveState of {unit} is {}", shown.get("ActiveState")),
            format!("systemctl start {unit}"),
        );
    }
    match ways {
        None if !served => findings.add(
            &f::UNIT_NOT_ENABLED,
            format!("there is no {}", unit.drop_in()),
            format!("asyncfork enable {unit}"),
        ),
        Some(ways)
            if ways.contains(&Via::Preload) && enable::needs_restart(&ctx.host, unit, shown) =>
        {
            findings.add(
                &f::UNIT_RESTART,
                format!("{unit} was started before {} was written", unit.drop_in()),
                format!("systemctl restart {unit}"),
            )
        }
        _ => {}
    }
}
