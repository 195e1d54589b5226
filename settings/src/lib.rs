// SPDX-License-Identifier: MIT OR Apache-2.0
//! The environment variables of `libasyncfork.so`: [`SETTINGS`] lists them, and
//! [`Settings`] has what they say in one process.
//!
//! Part of the library, which runs inside other people's servers: no std, no heap,
//! no system calls, no path to a panic.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(
        // A panic must not reach the server.
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used,
    )
)]

mod path;
mod table;
mod value;

pub use path::PathBuffer;
pub use table::{Problem, Problems, Setting, Settings, Unset, SETTINGS};
pub use value::{base_name, level_label, names, size, Mode};
