// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory that is parked, and the page on which the processes write what they saw.

use crate::sys::cvt;
use std::io;
use std::marker::PhantomData;

/// What one PTE table maps.
pub const CHUNK: usize = 2 << 20;
/// Chunks with contents; one more is kept free.
pub const CHUNKS: usize = 3;
/// The chunk that operations act on; its neighbours must stay as they are.
const TARGET: usize = 1;
const PAGE: usize = 4096;
const WORD: usize = size_of::<u64>();

/// What memory must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The contents that the given chunk had at first.
    Chunk(usize),
    /// Zeros.
    Zero,
}

impl Want {
    fn word(self, offset: usize) -> u64 {
        match self {
            // Odd factor: no two words are the same, and none is zero.
            Self::Chunk(n) => ((n * CHUNK + offset) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            Self::Zero => 0,
        }
    }
}

/// Chunks of this process, and what they must hold.
#[derive(Clone)]
pub struct Arena {
    base: usize,
    /// Chunk slot and contents; slots that are not listed may not be touched.
    wants: Vec<(usize, Want)>,
    /// A word that was overwritten: address and value.
    patched: Option<(usize, u64)>,
}

impl Arena {
    /// Maps and fills the chunks, without transparent huge pages.
    pub fn new() -> io::Result<Self> {
        // One more to align, one in front and one behind that keep neighbours from merging with ours, one to spare.
        let reserved = map(0, (CHUNKS + 4) * CHUNK, libc::PROT_NONE, 0)?;
        let base = reserved.next_multiple_of(CHUNK) + CHUNK;
        map(
            base,
            CHUNKS * CHUNK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED,
        )?;
        // SAFETY: our own mapping. A kernel without huge pages says EINVAL, which is fine.
        unsafe { libc::madvise(base as *mut _, CHUNKS * CHUNK, libc::MADV_NOHUGEPAGE) };
        let arena = Self {
            base,
            wants: (0..CHUNKS).map(|n| (n, Want::Chunk(n))).collect(),
            patched: None,
        };
        for &(slot, want) in &arena.wants {
            for offset in (0..CHUNK).step_by(WORD) {
                let at = (arena.slot(slot) + offset) as *mut u64;
                // SAFETY: inside the fresh mapping, aligned.
                unsafe { at.write(want.word(offset)) };
            }
        }
        Ok(arena)
    }

    fn slot(&self, slot: usize) -> usize {
        self.base + slot * CHUNK
    }

    /// Address of the chunk that operations act on.
    pub fn target(&self) -> usize {
        self.slot(TARGET)
    }

    /// An address range without contents, as large as a chunk.
    pub fn spare(&self) -> usize {
        self.slot(CHUNKS)
    }

    /// Overwrites one word of the target.
    pub fn overwrite(&mut self) {
        let addr = self.target() + 7 * PAGE;
        let value = 0x0123_4567_89ab_cdef;
        // SAFETY: inside the mapping, aligned. Volatile: it is the fault that counts.
        unsafe { (addr as *mut u64).write_volatile(value) };
        self.patched = Some((addr, value));
    }

    /// MADV_DONTNEED of the target.
    pub fn zap(&mut self) -> io::Result<()> {
        // SAFETY: our own memory, of which nobody holds a reference.
        cvt(unsafe { libc::madvise(self.target() as *mut _, CHUNK, libc::MADV_DONTNEED) })?;
        self.wants[TARGET].1 = Want::Zero;
        Ok(())
    }

    /// munmap() of the target.
    pub fn unmap(&mut self) -> io::Result<()> {
        // SAFETY: as in zap().
        cvt(unsafe { libc::munmap(self.target() as *mut _, CHUNK) })?;
        self.wants[TARGET].1 = Want::Zero;
        Ok(())
    }

    /// Maps the target anew: what was not unmapped would come back.
    pub fn map_again(&self) -> io::Result<()> {
        map(self.target(), CHUNK, libc::PROT_READ, libc::MAP_FIXED)?;
        Ok(())
    }

    /// Makes the target read-only.
    pub fn protect(&self) -> io::Result<()> {
        // SAFETY: as in zap().
        cvt(unsafe { libc::mprotect(self.target() as *mut _, CHUNK, libc::PROT_READ) }).map(drop)
    }

    /// mremap() of the target to the spare range.
    pub fn move_away(&mut self) -> io::Result<()> {
        // SAFETY: as in zap(); the destination is ours and empty.
        let at = unsafe {
            libc::mremap(
                self.target() as *mut _,
                CHUNK,
                CHUNK,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                self.spare() as *mut libc::c_void,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.wants[TARGET].0 = CHUNKS;
        Ok(())
    }

    /// Number of the target's pages that mincore() says are resident.
    pub fn resident(&self) -> io::Result<usize> {
        let mut vec = [0_u8; CHUNK / PAGE];
        // SAFETY: one byte a page.
        cvt(unsafe { libc::mincore(self.target() as *mut _, CHUNK, vec.as_mut_ptr()) })?;
        Ok(vec.iter().filter(|&&v| v & 1 != 0).count())
    }

    /// Compares every word.
    pub fn verify(&self) -> Result<(), String> {
        for &(slot, want) in &self.wants {
            for offset in (0..CHUNK).step_by(WORD) {
                let addr = self.slot(slot) + offset;
                let want = match self.patched {
                    Some((at, value)) if at == addr => value,
                    _ => want.word(offset),
                };
                // SAFETY: inside a mapping of ours, aligned.
                let got = unsafe { (addr as *const u64).read_volatile() };
                if got != want {
                    return Err(format!(
                        "chunk {slot}+{offset:#x}: got {got:#018x}, want {want:#018x}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Pages of a chunk.
pub const PAGES: usize = CHUNK / PAGE;

fn map(addr: usize, len: usize, prot: i32, flags: i32) -> io::Result<usize> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED a fresh mapping; with it inside our reservation.
    let at = unsafe { libc::mmap(addr as *mut _, len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at as usize)
    }
}

/// A `T` that forked processes share. It is never parked: shared mappings are not.
pub struct Shared<T> {
    at: *mut T,
    _owns: PhantomData<T>,
}

impl<T: Copy> Shared<T> {
    /// Holds `value` at first.
    pub fn new(value: T) -> io::Result<Self> {
        // SAFETY: a fresh mapping, page aligned.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let shared = Self {
            at: at.cast(),
            _owns: PhantomData,
        };
        shared.set(value);
        Ok(shared)
    }

    /// The value. Processes take turns: the reader has seen the writer end.
    pub fn get(&self) -> T {
        // SAFETY: mapped, aligned, initialised by new().
        unsafe { self.at.read_volatile() }
    }

    /// Changes the value.
    pub fn set(&self, value: T) {
        // SAFETY: mapped, aligned.
        unsafe { self.at.write_volatile(value) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by new(), not used again.
        unsafe { libc::munmap(self.at.cast(), size_of::<T>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_notices_a_wrong_word() {
        let mut arena = Arena::new().unwrap();
        arena.verify().unwrap();
        arena.overwrite();
        arena.verify().unwrap();
        arena.patched = None;
        let why = arena.verify().unwrap_err();
        assert!(why.starts_with("chunk 1+0x7000: got 0x0123"), "{why}");
    }

    #[test]
    fn operations_keep_the_model_true() {
        let mut arena = Arena::new().unwrap();
        assert_eq!(arena.resident().unwrap(), PAGES);
        arena.protect().unwrap();
        arena.verify().unwrap();
        arena.move_away().unwrap();
        arena.verify().unwrap();

        let mut arena = Arena::new().unwrap();
        arena.zap().unwrap();
        arena.verify().unwrap();
        let mut arena = Arena::new().unwrap();
        arena.unmap().unwrap();
        arena.map_again().unwrap();
        arena.verify().unwrap();
    }

    #[test]
    fn no_two_words_are_alike() {
        let first = Want::Chunk(0).word(0);
        assert_ne!(first, Want::Chunk(1).word(0));
        assert_ne!(first, Want::Chunk(0).word(WORD));
        assert_ne!(first, 0);
    }
}
