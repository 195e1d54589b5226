// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations on an arena. Each keeps the arena's model true; its pieces stay mapped and writable.

use super::Without;
use crate::claim;
use crate::mem::{probe, Arena, Span, Want, CHUNK_PAGES, PAGE};
use crate::procfs;
use crate::rng::Rng;
use crate::sys::{self, cvt, is_errno};
use crate::verdict::{Context, TestResult};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Most pages that an operation takes at a time.
const PAGES: usize = 200;
/// MADV_COLLAPSE (Linux 6.1), which libc does not name.
const MADV_COLLAPSE: i32 = 25;
const MLOCK_ONFAULT: u32 = 1;

/// An operation on these pages of the arena, which may hold generation `gen` afterwards.
type Op = fn(&mut Arena, Range<usize>, &mut Rng, u32) -> TestResult;

/// Name, share among all of them, and what it does.
pub const OPS: &[(&str, usize, Op)] = &[
    ("write", 12, write),
    ("write a word", 4, write_word),
    ("verify", 1, |arena, _, _, _| arena.verify()),
    ("MADV_DONTNEED", 5, discard),
    ("munmap, mmap", 4, unmap),
    ("mmap over", 3, map_over),
    ("mprotect read-only", 4, read_only),
    ("mprotect none", 2, no_access),
    ("mremap a page", 3, move_page),
    ("mremap many", 3, move_many),
    ("mremap DONTUNMAP", 2, move_dontunmap),
    ("mlock", 2, lock),
    ("mlock on fault", 1, lock_on_fault),
    ("MADV_COLD", 2, |a, r, _, _| {
        Ok(a.part(r).advise(libc::MADV_COLD)?)
    }),
    ("MADV_PAGEOUT", 4, |a, r, _, _| {
        Ok(a.part(r).advise(libc::MADV_PAGEOUT)?)
    }),
    ("MADV_FREE", 2, free),
    ("huge pages", 3, huge),
    ("no huge pages", 5, no_huge),
    ("populate", 2, |a, r, _, _| {
        Ok(a.part(r).advise(libc::MADV_POPULATE_WRITE)?)
    }),
    ("pagemap", 2, pagemap),
    ("mincore", 1, mincore),
    ("read(2) into", 3, read_into),
    ("write(2) from", 3, write_from),
];

/// Draws operations at random.
#[derive(Clone)]
pub struct Mix(Vec<usize>);

impl Default for Mix {
    fn default() -> Self {
        Self::new(&Without::default())
    }
}

impl Mix {
    /// All of them but these.
    pub fn new(without: &Without) -> Self {
        let share = |op: &(&str, usize, Op)| if without.has(op.0) { 0 } else { op.1 };
        Self(OPS.iter().map(share).collect())
    }

    /// Does one.
    pub fn operate(&self, arena: &mut Arena, rng: &mut Rng, gen: u32) -> Operation {
        let number = rng.weighted(&self.0);
        let (name, _, op) = OPS[number];
        let pages = arena.some_range(rng, PAGES);
        let result = op(arena, pages.clone(), rng, gen).at(name);
        Operation {
            number,
            pages,
            result,
        }
    }
}

/// An operation that was done.
pub struct Operation {
    /// Its place in [`OPS`].
    pub number: usize,
    /// Pages of the arena.
    pub pages: Range<usize>,
    /// How it ended.
    pub result: TestResult,
}

fn write(arena: &mut Arena, range: Range<usize>, _: &mut Rng, gen: u32) -> TestResult {
    arena.write_range(range, gen);
    Ok(())
}

/// Stores to a page here and there: most pages of a chunk stay shared.
fn write_word(arena: &mut Arena, range: Range<usize>, rng: &mut Rng, _: u32) -> TestResult {
    for page in range.step_by(1 + rng.below(64)) {
        let (off, value) = (rng.below(PAGE / 8) * 8, rng.next());
        arena.part(page..page + 1).store(off, value);
        arena.expect_word(page, off, value);
    }
    Ok(())
}

fn discard(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    arena.part(range.clone()).advise(libc::MADV_DONTNEED)?;
    arena.expect(range, Want::Zero);
    Ok(())
}

fn unmap(arena: &mut Arena, range: Range<usize>, rng: &mut Rng, gen: u32) -> TestResult {
    arena.part(range.clone()).unmap()?;
    map_over(arena, range, rng, gen)
}

/// With the flags of the whole arena, so that mappings become one again and chunks parkable.
fn map_over(arena: &mut Arena, range: Range<usize>, rng: &mut Rng, gen: u32) -> TestResult {
    let span = arena.part(range.clone());
    span.map(RW, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
    span.advise(libc::MADV_NOHUGEPAGE)?;
    arena.expect(range.clone(), Want::Zero);
    if rng.one_in(2) {
        arena.write_range(range, gen);
    }
    Ok(())
}

fn read_only(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let span = arena.part(range);
    span.protect(libc::PROT_READ)?;
    let written = probe::store(span, 1);
    span.protect(RW)?;
    claim!(!written, "a store to read-only memory went through");
    Ok(())
}

fn no_access(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let span = arena.part(range);
    span.protect(libc::PROT_NONE)?;
    let read = probe::readable(span);
    span.protect(RW)?;
    claim!(!read, "a load from memory without access went through");
    Ok(())
}

fn move_page(arena: &mut Arena, range: Range<usize>, rng: &mut Rng, gen: u32) -> TestResult {
    move_many(arena, range.start..range.start + 1, rng, gen)
}

/// Away and back again.
fn move_many(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let (here, away) = (
        arena.part(range.clone()),
        Span::reserve(range.len() * PAGE)?,
    );
    let moved = here.remap(here.len(), 0, Some(away));
    if is_errno(&moved, libc::EFAULT) {
        // More than one mapping, which kernels before 6.17 do not move; nothing has changed.
        return Ok(());
    }
    moved?;
    arena.moved(range, away).verify().at("moved away")?;
    away.remap(away.len(), 0, Some(here))?;
    Ok(())
}

/// The pages go, the mapping stays, and the pages come back over it.
fn move_dontunmap(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let (here, away) = (
        arena.part(range.clone()),
        Span::reserve(range.len() * PAGE)?,
    );
    let moved = here.remap(here.len(), libc::MREMAP_DONTUNMAP, Some(away));
    if is_errno(&moved, libc::EFAULT) || is_errno(&moved, libc::EINVAL) {
        // As in move_many(); EINVAL is how some kernels say it here.
        return Ok(());
    }
    moved?;
    arena.moved(range.clone(), away).verify().at("moved away")?;
    for page in range {
        let word = arena.part(page..page + 1).load(0);
        claim!(
            word == 0,
            "page {page} was moved away, and still holds {word:#x}"
        );
    }
    away.remap(away.len(), 0, Some(here))?;
    Ok(())
}

fn lock(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let span = arena.part(range);
    let locked = span.lock(0);
    span.unlock()?;
    Ok(locked?)
}

fn lock_on_fault(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let span = arena.part(range);
    let locked = span.lock(MLOCK_ONFAULT);
    span.unlock()?;
    Ok(locked?)
}

fn free(arena: &mut Arena, range: Range<usize>, _: &mut Rng, gen: u32) -> TestResult {
    for page in range.clone() {
        if arena.is_patched(page) {
            arena.write(page, gen);
        }
    }
    arena.part(range.clone()).advise(libc::MADV_FREE)?;
    for page in range {
        if let Want::Key(key) | Want::KeyOrZero(key) = arena.want(page) {
            arena.expect(page..page + 1, Want::KeyOrZero(key));
        }
    }
    Ok(())
}

/// Huge pages from now on, and for the chunk of the range at once where that is possible: it needs 2 MiB in one piece, and
/// pages that nobody else has mapped.
fn huge(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    for span in arena.piece_spans() {
        span.advise(libc::MADV_HUGEPAGE)?;
    }
    let start = range.start / CHUNK_PAGES * CHUNK_PAGES;
    let chunk = arena.part(start..(start + CHUNK_PAGES).min(arena.pages()));
    let _ = chunk.advise(MADV_COLLAPSE);
    Ok(())
}

fn no_huge(arena: &mut Arena, _: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    for span in arena.piece_spans() {
        span.advise(libc::MADV_NOHUGEPAGE)?;
    }
    Ok(())
}

fn pagemap(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let map = procfs::pagemap(0, arena.part(range.clone()))?;
    claim!(map.len() == range.len(), "pagemap is short");
    for (entry, page) in map.into_iter().zip(range) {
        // What is neither in memory nor in swap is zero.
        let gone = entry & (procfs::PRESENT | procfs::SWAPPED) == 0;
        claim!(
            !gone || !matches!(arena.want(page), Want::Key(_)),
            "pagemap has nothing for page {page}, want {:?}",
            arena.want(page)
        );
    }
    Ok(())
}

fn mincore(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let resident = arena.part(range.clone()).resident()?;
    claim!(resident.len() == range.len(), "mincore is short");
    Ok(())
}

/// A file in memory that holds a few pages.
fn scratch_file(pages: usize) -> TestResult<File> {
    Ok(File::from(sys::memfd(pages * PAGE)?))
}

/// The kernel stores to the pages.
fn read_into(arena: &mut Arena, range: Range<usize>, _: &mut Rng, gen: u32) -> TestResult {
    let range = range.start..range.end.min(range.start + 8);
    let file = scratch_file(range.len())?;
    for (i, page) in range.clone().enumerate() {
        file.write_all_at(&arena.bytes(page, gen), (i * PAGE) as u64)?;
    }
    let span = arena.part(range.clone());
    // SAFETY: the span is mapped and writable, and no Rust object lives in it.
    let read = cvt(unsafe { libc::pread(file.as_raw_fd(), span.ptr(), span.len(), 0) })?;
    claim!(read as usize == span.len(), "read(2) is short: {read}");
    arena.expect_gen(range, gen);
    Ok(())
}

/// The kernel loads from the pages.
fn write_from(arena: &mut Arena, range: Range<usize>, _: &mut Rng, _: u32) -> TestResult {
    let range = range.start..range.end.min(range.start + 8);
    let file = scratch_file(range.len())?;
    let span = arena.part(range.clone());
    // SAFETY: the span is mapped and readable.
    let written = cvt(unsafe { libc::pwrite(file.as_raw_fd(), span.ptr(), span.len(), 0) })?;
    claim!(
        written as usize == span.len(),
        "write(2) is short: {written}"
    );
    arena
        .moved(range, span)
        .verify_through(|addr, page| file.read_exact_at(page, (addr - span.addr()) as u64))
}
