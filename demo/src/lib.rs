// SPDX-License-Identifier: MIT OR Apache-2.0
//! Snapshots of a real server, Redis or Valkey, with stock fork and with async fork side
//! by side: `asyncfork-demo guest`, which runs in a VM, and what `scripts/demo`, which boots
//! it, has to know of that.

pub mod guest;
mod load;
pub mod machine;
mod module;
mod progress;
mod report;
mod resp;
mod server;
mod snapshots;

/// Something that the demo claims did not hold; other errors mean that it
/// could not be tried.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Claim(String);

/// Returns a [`Claim`] with the formatted message unless the condition holds.
macro_rules! claim {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err($crate::Claim(format!($($message)+)).into());
        }
    };
}
use claim;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_told_from_other_errors_through_context() {
        let fail = || -> anyhow::Result<()> {
            claim!(1 > 2, "{} is not greater", 1);
            Ok(())
        };
        use anyhow::Context;
        let error = fail().context("comparing").unwrap_err();
        assert!(error.is::<Claim>());
        assert_eq!(format!("{error:#}"), "comparing: 1 is not greater");
        assert!(!anyhow::anyhow!("setup").is::<Claim>());
    }
}
