// SPDX-License-Identifier: MIT OR Apache-2.0
//! `on` and `off`.

use anyhow::Result;
use serde_json::json;

use crate::cli::SwitchArgs;
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::host::why;
use crate::modprobe;
use crate::module::{self, State};

/// Switches the module, and with `--persist` its next loads.
///
/// # Errors
/// No permission; `on` without a module, or with one that has switched itself off.
pub fn run(ctx: &mut Ctx<'_>, on: bool, args: &SwitchArgs) -> Result<Exit> {
    let mut changed = false;
    if args.persist {
        changed |= persist(ctx, on)?;
    }
    let (before, _) = ctx.state();
    let parameter = module::parameter_path("enabled");
    match (&before, on) {
        (State::NotLoaded, true) => {
            return Err(exit::cannot_tell(format!(
                "the module is not loaded, there is nothing to switch on{}: modprobe asyncfork",
                persisted(args)
            )))
        }
        (State::NotLoaded, false) => {}
        _ => {
            let wanted = if on { "Y" } else { "N" };
            if module::parameter(&ctx.host, "enabled").as_deref() != Some(wanted) {
                ctx.host.write_into(&parameter, wanted).map_err(|e| {
                    exit::failed(format!(
                        "{}: {}{}",
                        parameter.display(),
                        why(&e),
                        persisted(args)
                    ))
                })?;
                changed = true;
            }
        }
    }
    let (state, _) = ctx.state();
    if let (State::SwitchedOff(reason), true) = (&state, on) {
        let reason = reason.as_deref().unwrap_or("an inconsistency, see dmesg");
        return Err(exit::failed(format!(
            "the module has switched itself off ({reason}), only loading it again helps{}: \
             keep the kernel log, then modprobe -r asyncfork && modprobe asyncfork",
            persisted(args)
        )));
    }
    let elsewhere = if on && args.persist {
        modprobe::off_at_load(&ctx.host)
    } else {
        Vec::new()
    };
    for place in &elsewhere {
        log::warn!("{place} still switches it off when it is loaded");
    }
    if ctx.out.is_json() {
        ctx.out.object(&json!({
            "changed": changed, "state": state.label(), "persist": args.persist, "off_at_load": elsewhere,
        }))?;
    } else {
        ctx.out.line(format!("changed: {changed}"))?;
        ctx.out.line(format!("state: {}", state.label()))?;
    }
    Ok(Exit::Done)
}

fn persisted(args: &SwitchArgs) -> &'static str {
    if args.persist {
        " (what is to hold for the next load is written)"
    } else {
        ""
    }
}

fn persist(ctx: &Ctx<'_>, on: bool) -> Result<bool> {
    let exists = ctx.host.exists(modprobe::FILE);
    let before = if exists {
        let text = ctx.host.read(modprobe::FILE);
        text.map_err(|e| exit::failed(format!("{}: {}", modprobe::FILE, why(&e))))?
    } else {
        String::new()
    };
    let after = modprobe::with_switch(&before, on);
    if after == before {
        return Ok(false);
    }
    if after.is_empty() {
        ctx.host.remove_file(modprobe::FILE)?;
    } else {
        ctx.host.replace(modprobe::FILE, &after)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    fn switch(fake: &Fake, on: bool, persist: bool) -> (Result<Exit>, String) {
        fake.command("on", |ctx| run(ctx, on, &SwitchArgs { persist }))
    }

    #[test]
    fn it_switches_and_says_what_changed() {
        let fake = Fake::new();
        fake.loaded();
        let (result, text) = switch(&fake, false, false);
        assert_eq!(result.unwrap(), Exit::Done);
        assert_eq!(text, "changed: true\nstate: off\n");
        assert_eq!(
            switch(&fake, false, false).1,
            "changed: false\nstate: off\n"
        );
        assert_eq!(switch(&fake, true, false).1, "changed: true\nstate: on\n");
        assert!(!fake.host.exists(modprobe::FILE));
    }

    #[test]
    fn what_persists_is_written_once_and_taken_away_again() {
        let fake = Fake::new();
        fake.loaded().write("/etc/modprobe.d/other.conf", "");
        switch(&fake, false, true).0.unwrap();
        assert_eq!(
            fake.host.read(modprobe::FILE).unwrap(),
            "options asyncfork enabled=0\n"
        );
        assert!(switch(&fake, false, true).1.contains("changed: false"));
        assert!(switch(&fake, true, true).1.contains("changed: true"));
        assert!(!fake.host.exists(modprobe::FILE));
        assert!(switch(&fake, true, true).1.contains("changed: false"));
    }

    #[test]
    fn json_is_as_documented() {
        let fake = Fake::new();
        fake.loaded();
        fake.golden("off", "off", |ctx| {
            run(ctx, false, &SwitchArgs { persist: true })
        });
    }

    #[test]
    fn without_a_module_off_is_so_already_and_on_fails() {
        let fake = Fake::new();
        let (result, text) = switch(&fake, false, true);
        assert_eq!(result.unwrap(), Exit::Done);
        assert_eq!(text, "changed: true\nstate: not_loaded\n");
        let error = switch(&fake, true, false).0.unwrap_err();
        assert_eq!(exit::of(&error), Exit::CannotTell);
    }

    #[test]
    fn a_module_that_switched_itself_off_stays_off() {
        let fake = Fake::new();
        fake.loaded().write(
            "/sys/module/asyncfork/parameters/state",
            "switched off: a slot\n",
        );
        let error = switch(&fake, true, false).0.unwrap_err();
        assert_eq!(exit::of(&error), Exit::Failed);
        assert!(error.to_string().contains("(a slot)"), "{error}");
    }
}
