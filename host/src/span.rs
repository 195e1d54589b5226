// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges of this process's address space, to fork them and to try system calls on.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use crate::sys::cvt;

/// Bytes of a base page.
pub const PAGE: usize = 4096;
/// Bytes that one PTE table maps.
pub const CHUNK: usize = 2 << 20;

/// All spans come from this region of every process. The kernel places mappings of
/// its own choice from the top down, far above: it never puts one into a hole that
/// somebody makes here.
const REGION: usize = 0x1000_0000_0000;
const REGION_LEN: usize = 32 << 40;

/// The next unused address of the region. Addresses are never used again.
static NEXT: OnceLock<io::Result<AtomicUsize>> = OnceLock::new();

/// Maps the region, without memory.
fn map_region() -> io::Result<AtomicUsize> {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let start = REGION as *mut libc::c_void;
    // SAFETY: MAP_FIXED_NOREPLACE fails rather than replace anything.
    let at = unsafe { libc::mmap(start, REGION_LEN, libc::PROT_NONE, flags, -1, 0) };
    if at != start {
        return Err(io::Error::last_os_error());
    }
    Ok(AtomicUsize::new(REGION))
}

/// Page-aligned memory in which no Rust object lives, so that any system call may be
/// tried on it and the worst that a wrong call can do is SIGSEGV. Spans come from
/// [`Span::reserve`] and from parts of such spans only. Nothing is unmapped on drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    addr: usize,
    len: usize,
}

impl Span {
    /// Address space of `len` bytes (PROT_NONE, no memory) that starts at a chunk, with
    /// at least a chunk of the like on both sides, so that no mapping made here merges
    /// with a foreign one. `len` is a multiple of [`PAGE`], and not 0.
    ///
    /// # Errors
    /// The region cannot be mapped, or is used up: 32 TiB in the life of a process.
    pub fn reserve(len: usize) -> io::Result<Self> {
        assert!(len > 0 && len.is_multiple_of(PAGE));
        let room = len.next_multiple_of(CHUNK) + 2 * CHUNK;
        let next = NEXT.get_or_init(map_region).as_ref();
        let next = next.map_err(|e| io::Error::new(e.kind(), format!("map {REGION:#x}: {e}")))?;
        let addr = next.fetch_add(room, Ordering::Relaxed) + CHUNK;
        if addr + len > REGION + REGION_LEN {
            return Err(io::Error::other("the address space for spans is used up"));
        }
        Ok(Self { addr, len })
    }

    /// Any address range.
    ///
    /// # Safety
    /// No Rust object may live in `addr..addr + len` while the span is in use.
    pub unsafe fn from_raw(addr: usize, len: usize) -> Self {
        Self { addr, len }
    }

    /// First address.
    pub fn addr(self) -> usize {
        self.addr
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "nothing makes empty ones")]
    pub fn len(self) -> usize {
        self.len
    }

    /// Address after the last byte.
    pub fn end(self) -> usize {
        self.addr + self.len
    }

    /// Length in pages.
    pub fn pages(self) -> usize {
        self.len / PAGE
    }

    /// `len` bytes from offset `off`.
    pub fn part(self, off: usize, len: usize) -> Self {
        assert!(off + len <= self.len, "part {off:#x}+{len:#x} of {self:?}");
        Self {
            addr: self.addr + off,
            len,
        }
    }

    /// The pages `range` of this span.
    pub fn page_range(self, range: std::ops::Range<usize>) -> Self {
        self.part(range.start * PAGE, range.len() * PAGE)
    }

    /// Page `i`.
    pub fn page(self, i: usize) -> Self {
        self.part(i * PAGE, PAGE)
    }

    /// Reads the aligned word at byte offset `off`; SIGSEGV if it is not readable.
    #[inline]
    pub fn load(self, off: usize) -> u64 {
        assert!(off + 8 <= self.len && off.is_multiple_of(8));
        // SAFETY: in range and aligned; no Rust object lives in a span, and a fault is
        // a signal, not undefined behaviour.
        unsafe { ((self.addr + off) as *const u64).read_volatile() }
    }

    /// Writes the aligned word at byte offset `off`; SIGSEGV if it is not writable.
    #[inline]
    pub fn store(self, off: usize, value: u64) {
        assert!(off + 8 <= self.len && off.is_multiple_of(8));
        // SAFETY: as for load().
        unsafe { ((self.addr + off) as *mut u64).write_volatile(value) }
    }

    /// The words of the span. Valid as its memory is: an access to what is not mapped is
    /// a signal.
    pub fn words(self) -> impl Iterator<Item = *mut u64> {
        let first = self.addr as *mut u64;
        (0..self.len / 8).map(move |i| first.wrapping_add(i))
    }

    /// A pointer for system calls.
    pub fn ptr(self) -> *mut libc::c_void {
        self.addr as *mut libc::c_void
    }

    /// An iovec for system calls.
    pub fn iovec(self) -> libc::iovec {
        libc::iovec {
            iov_base: self.ptr(),
            iov_len: self.len,
        }
    }

    /// Maps anonymous memory over the span: `flags` are MAP_PRIVATE or MAP_SHARED and friends.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(self, prot: i32, flags: i32) -> io::Result<()> {
        // SAFETY: MAP_FIXED replaces mappings inside the span only, where no Rust object lives.
        let at = unsafe {
            libc::mmap(
                self.ptr(),
                self.len,
                prot,
                flags | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Maps `fd` from `offset` over the span.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map_fd(self, prot: i32, flags: i32, fd: BorrowedFd<'_>, offset: i64) -> io::Result<()> {
        // SAFETY: as for map().
        let at = unsafe {
            libc::mmap(
                self.ptr(),
                self.len,
                prot,
                flags | libc::MAP_FIXED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// munmap(2).
    ///
    /// # Errors
    /// Those of munmap(2).
    pub fn unmap(self) -> io::Result<()> {
        // SAFETY: no Rust object lives in a span.
        cvt(unsafe { libc::munmap(self.ptr(), self.len) }).map(drop)
    }

    /// mprotect(2).
    ///
    /// # Errors
    /// Those of mprotect(2).
    pub fn protect(self, prot: i32) -> io::Result<()> {
        // SAFETY: no Rust object lives in a span.
        cvt(unsafe { libc::mprotect(self.ptr(), self.len, prot) }).map(drop)
    }

    /// madvise(2).
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn advise(self, advice: i32) -> io::Result<()> {
        // SAFETY: no Rust object lives in a span.
        cvt(unsafe { libc::madvise(self.ptr(), self.len, advice) }).map(drop)
    }

    /// mlock2(2).
    ///
    /// # Errors
    /// Those of mlock2(2).
    pub fn lock(self, flags: u32) -> io::Result<()> {
        // SAFETY: locking changes no contents.
        cvt(unsafe { libc::mlock2(self.ptr(), self.len, flags) }).map(drop)
    }

    /// munlock(2).
    ///
    /// # Errors
    /// Those of munlock(2).
    pub fn unlock(self) -> io::Result<()> {
        // SAFETY: unlocking changes no contents.
        cvt(unsafe { libc::munlock(self.ptr(), self.len) }).map(drop)
    }

    /// mremap(2) to `new_len` bytes; with `to`, to that place (MREMAP_FIXED).
    ///
    /// # Errors
    /// Those of mremap(2).
    pub fn remap(self, new_len: usize, flags: i32, to: Option<Self>) -> io::Result<Self> {
        let at = match to {
            // SAFETY: source and target are spans, where no Rust object lives.
            Some(to) => unsafe {
                libc::mremap(
                    self.ptr(),
                    self.len,
                    new_len,
                    flags | libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE,
                    to.ptr(),
                )
            },
            // SAFETY: the source is a span; without MREMAP_FIXED the target is free
            // address space. Its hint: with MREMAP_DONTUNMAP glibc reads one.
            None => unsafe {
                let anywhere = std::ptr::null_mut::<libc::c_void>();
                libc::mremap(self.ptr(), self.len, new_len, flags, anywhere)
            },
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            addr: at as usize,
            len: new_len,
        })
    }

    /// mincore(2): residency of each page.
    ///
    /// # Errors
    /// A page is not mapped.
    pub fn resident(self) -> io::Result<Vec<bool>> {
        let mut vec = vec![0u8; self.pages()];
        // SAFETY: the vector has one byte for each page.
        cvt(unsafe { libc::mincore(self.ptr(), self.len, vec.as_mut_ptr()) })?;
        Ok(vec.into_iter().map(|b| b & 1 == 1).collect())
    }
}
