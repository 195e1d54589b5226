// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that asyncfork runs on: loading and asking the module, what kernel
//! and machine there is, and what programs need that fork to measure or to test. For
//! programs, never for the library: this may allocate and block.

pub mod hold;
pub mod kernel;
pub mod machine;
pub mod module;
mod newer_libc;
pub mod procfs;
pub mod size;
pub mod span;
pub mod sys;
pub mod wait;
