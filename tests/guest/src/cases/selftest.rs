// SPDX-License-Identifier: MIT OR Apache-2.0
//! The self-test: it passes here, it can fail, and it says why it cannot run.

use super::Test;
use crate::ctx::Ctx;
use crate::sys::cvt;
use crate::verdict::{Context, TestResult, Verdict};
use crate::{claim, require};
use asyncfork_selftest::{self as selftest, Finding};
use asyncfork_uapi::{Hook, DEVICE};

pub const TESTS: &[Test] = &[
    Test::new("selftest_sees_every_hook_fire_without_privilege", passes)
        .module()
        .quick(),
    Test::new("selftest_tells_hooks_that_do_not_fire", fails)
        .module()
        .quick(),
    Test::new("selftest_cannot_run_on_a_disabled_module", disabled)
        .module()
        .quick(),
    Test::new("selftest_cannot_run_without_the_module", no_module)
        .module()
        .quick(),
];

/// Not root any more; the group's access to the device is left.
fn drop_privilege() -> TestResult {
    const NOBODY: u32 = 65534;
    // SAFETY: the test's process has one thread.
    cvt(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) })
        .map(drop)
        .at("setresuid")
}

/// Demands that the guest was quick enough for the self-test to see anything.
fn expect_conclusive<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> TestResult {
    for finding in findings {
        require!(!matches!(finding, Finding::Inconclusive(_)), "{finding}");
    }
    Ok(())
}

fn passes(ctx: &Ctx) -> TestResult<String> {
    let before = ctx.stats()?;
    drop_privilege()?;
    let report = selftest::run(DEVICE).map_err(|e| Verdict::Failed(e.to_string()))?;
    expect_conclusive(report.hooks.iter().map(|(_, finding)| finding))?;
    for (hook, finding) in &report.hooks {
        let expected = match hook {
            Hook::Migration | Hook::Dump | Hook::Poison | Hook::PteAlloc => {
                matches!(finding, Finding::NotExercised(_))
            }
            // Nothing there makes the child wait for the thread.
            Hook::Helper if matches!(finding, Finding::NotExercised(_)) => true,
            _ => matches!(finding, Finding::Fired { chunks: 1.., .. }),
        };
        claim!(expected, "{hook}: {finding}");
    }
    claim!(report.hooks.len() == Hook::ALL.len(), "hooks are missing");
    claim!(
        report.passed() && selftest::exit_code(&Ok(report.clone())) == selftest::PASSED,
        "every hook fired, yet: {report}"
    );
    // The totals agree: nothing was made up.
    let after = ctx.stats()?;
    for (hook, finding) in &report.hooks {
        if let Finding::Fired { chunks, .. } = finding {
            let counted = after.pulls_by(*hook) - before.pulls_by(*hook);
            claim!(
                counted >= *chunks,
                "{hook}: {finding}, but the module counts {counted}"
            );
        }
    }
    let text = report.to_string();
    Ok(text.lines().last().unwrap_or_default().into())
}

fn fails(_: &Ctx) -> TestResult<String> {
    let findings = selftest::control(DEVICE).map_err(|e| Verdict::Failed(e.to_string()))?;
    expect_conclusive(&findings)?;
    for finding in &findings {
        claim!(
            matches!(finding, Finding::NotFired(_)),
            "an operation that the hook cannot see: {finding}"
        );
    }
    claim!(!findings.is_empty(), "no control was made");
    let report = selftest::Report {
        hooks: Hook::ALL.iter().copied().zip(findings.clone()).collect(),
        switched_off: false,
        elapsed: std::time::Duration::ZERO,
    };
    let code = selftest::exit_code(&Ok(report));
    claim!(code == selftest::FAILED, "exit code {code}");
    let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Ok(texts.join("; "))
}

/// Demands that the self-test cannot run, for a reason that contains `words`.
fn expect_cannot_run(words: &[&str]) -> TestResult<String> {
    let result = selftest::run(DEVICE);
    let code = selftest::exit_code(&result);
    claim!(code == selftest::CANNOT_RUN, "exit code {code}");
    let text = match result {
        Ok(report) => return Err(Verdict::Failed(format!("it ran: {report}"))),
        Err(e) => e.to_string(),
    };
    for word in words {
        claim!(text.contains(word), "{text:?} does not say {word:?}");
    }
    Ok(text)
}

fn disabled(ctx: &Ctx) -> TestResult<String> {
    ctx.module.set("enabled", 0)?;
    expect_cannot_run(&["enabled=0", "echo Y >"])
}

fn no_module(ctx: &Ctx) -> TestResult<String> {
    ctx.module.unload()?;
    let result = expect_cannot_run(&["/dev/asyncfork", "load the module"]);
    ctx.module.load("").at("load again")?;
    result
}
