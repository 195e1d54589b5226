// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the kernel is left as it was found.

use crate::verdict::{TestResult, Verdict};
use asyncfork_watch::Census;

/// Waits for late frees, then fails if anything is still above the baseline.
pub fn expect_unchanged(baseline: &Census) -> TestResult<String> {
    let (now, growth) = baseline.settle()?;
    if growth.is_empty() {
        Ok(now.summary())
    } else {
        Err(Verdict::Failed(growth.join("; ")))
    }
}
