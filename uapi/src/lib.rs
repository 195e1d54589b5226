// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rust mirror of `kmod/uapi/asyncfork.h`, the ABI of `/dev/asyncfork`.
//!
//! The header is the original. `tests/header.rs` compiles a C program against
//! it and compares every size, offset, value and ioctl number with this crate,
//! and fails when the header has a name that this crate lacks.
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC`, sizes are bytes, a chunk is
//! what one PTE table maps (2 MiB).

#![cfg_attr(not(test), no_std)]

mod abi;
mod device;
mod fd;

pub use abi::*;
pub use device::{Device, ErrnoName, Error, FileId, IoctlName};
pub use fd::Fd;
/// Of std, if rustix is built with it; otherwise rustix's own.
pub use rustix::fd::BorrowedFd;
pub use rustix::io::Errno;
