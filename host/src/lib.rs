// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that asyncfork runs on: loading and asking the module, and what
//! kernel there is. For programs, never for the library: this may allocate and
//! block.

pub mod kernel;
pub mod module;
pub mod size;
pub mod wait;
