// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a guest gets its root, the checkout and the directories that it may write to:
//! by 9p, which QEMU serves, or by virtiofs, which takes a daemon for each of them.
//! 9p is what the tests have always run on; Debian's cloud kernels have none.

use std::fmt;
use std::fs;

use anyhow::{bail, ensure, Context, Result};

use crate::checkout::Checkout;

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TransportChoice {
    /// 9p if the kernel has it, otherwise virtiofs
    Auto,
    /// 9p, served by QEMU
    #[value(name = "9p")]
    NineP,
    /// virtiofs, each directory served by a daemon
    Virtiofs,
}

/// What a guest's directories come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    NineP,
    Virtiofs,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::NineP => "9p",
            Transport::Virtiofs => "virtiofs",
        })
    }
}

impl Transport {
    /// What it takes of a kernel, built in or as modules.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Transport::NineP => &["CONFIG_9P_FS", "CONFIG_NET_9P_VIRTIO"],
            Transport::Virtiofs => &["CONFIG_VIRTIO_FS"],
        }
    }

    /// Whether a kernel of this configuration can mount it.
    fn fits(self, config: &str) -> bool {
        self.needs().iter().all(|option| {
            config
                .lines()
                .filter_map(|line| line.strip_prefix(option))
                .any(|value| matches!(value, "=y" | "=m"))
        })
    }
}

/// Settles `choice` by the configuration of the checkout's kernel.
///
/// # Errors
/// The configuration cannot be read, or the kernel lacks what is asked for.
pub(super) fn choose(checkout: &Checkout, choice: TransportChoice) -> Result<Transport> {
    let path = checkout
        .guest_root
        .join(format!("boot/config-{}", checkout.release));
    let config = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}, what the kernel can mount", path.display()))?;
    fitting(&config, choice).with_context(|| path.display().to_string())
}

fn fitting(config: &str, choice: TransportChoice) -> Result<Transport> {
    use Transport::{NineP, Virtiofs};
    let wanted = match choice {
        TransportChoice::Auto if NineP.fits(config) => NineP,
        TransportChoice::Auto if Virtiofs.fits(config) => Virtiofs,
        TransportChoice::Auto => bail!(
            "the kernel has neither 9p ({}) nor virtiofs ({}): no guest can boot it",
            NineP.needs().join(", "),
            Virtiofs.needs().join(", ")
        ),
        TransportChoice::NineP => NineP,
        TransportChoice::Virtiofs => Virtiofs,
    };
    ensure!(
        wanted.fits(config),
        "the kernel has no {wanted} ({}): leave --transport out",
        wanted.needs().join(", ")
    );
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use TransportChoice::{Auto, NineP, Virtiofs};

    #[test]
    fn a_kernel_without_9p_gets_virtiofs() {
        const USUAL: &str =
            "CONFIG_NET_9P=m\nCONFIG_NET_9P_VIRTIO=m\nCONFIG_9P_FS=m\nCONFIG_VIRTIO_FS=m\n";
        const CLOUD: &str = "# CONFIG_NET_9P is not set\nCONFIG_VIRTIO_FS=y\n";
        const OLD: &str = "CONFIG_9P_FS=y\nCONFIG_NET_9P_VIRTIO=y\n# CONFIG_VIRTIO_FS is not set\n";
        for (config, choice, want) in [
            (USUAL, Auto, Some(Transport::NineP)),
            (USUAL, NineP, Some(Transport::NineP)),
            (USUAL, Virtiofs, Some(Transport::Virtiofs)),
            (CLOUD, Auto, Some(Transport::Virtiofs)),
            (CLOUD, NineP, None),
            (CLOUD, Virtiofs, Some(Transport::Virtiofs)),
            (OLD, Auto, Some(Transport::NineP)),
            (OLD, Virtiofs, None),
            ("CONFIG_9P_FS_SECURITY=y\nCONFIG_9P_FS=n\n", Auto, None),
        ] {
            assert_eq!(fitting(config, choice).ok(), want, "{choice:?} of {config}");
        }
    }
}
