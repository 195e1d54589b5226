// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory under test: raw ranges, page patterns, and arenas with a model of their contents.

mod arena;
mod pattern;
pub mod probe;

pub use arena::{Arena, Shape, Want};
pub use asyncfork_host::span::{Span, CHUNK, PAGE};

/// Pages of a chunk.
pub const CHUNK_PAGES: usize = CHUNK / PAGE;
/// 64-bit words of a page.
pub const PAGE_WORDS: usize = PAGE / 8;
