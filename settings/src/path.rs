// SPDX-License-Identifier: MIT OR Apache-2.0
//! Paths without the heap.

use core::ffi::CStr;
use core::fmt::{self, Write as _};

use arrayvec::ArrayVec;

/// A path, kept without the heap: the program's environment may be overwritten.
#[derive(Clone, PartialEq, Eq)]
pub struct PathBuffer {
    /// With its NUL.
    bytes: ArrayVec<u8, { libc::PATH_MAX as usize }>,
}

impl PathBuffer {
    /// `None` if it is too long or contains a NUL.
    pub fn new(path: &[u8]) -> Option<Self> {
        let mut bytes = ArrayVec::new();
        bytes.try_extend_from_slice(path).ok()?;
        bytes.try_push(0).ok()?;
        CStr::from_bytes_with_nul(&bytes).ok()?;
        Some(Self { bytes })
    }

    /// As the system calls want it.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.bytes).unwrap_or_default()
    }
}

impl Default for PathBuffer {
    fn default() -> Self {
        let mut bytes = ArrayVec::new();
        let _ = bytes.try_push(0);
        Self { bytes }
    }
}

/// What is not UTF-8, and control characters, left out.
impl fmt::Display for PathBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = self.as_c_str().to_bytes().utf8_chunks();
        chunks
            .flat_map(|chunk| chunk.valid().chars())
            .filter(|c| !c.is_control())
            .try_for_each(|c| f.write_char(c))
    }
}

impl fmt::Debug for PathBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_c_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> PathBuffer {
        PathBuffer::new(path.as_bytes()).unwrap()
    }

    #[test]
    fn a_path_is_kept_whole_or_not_at_all() {
        let longest = "/".repeat(4095);
        assert_eq!(path(&longest).as_c_str().to_bytes(), longest.as_bytes());
        assert_eq!(PathBuffer::new(&[b'/'; 4096]), None);
        assert_eq!(PathBuffer::new(b"/a\0b"), None);
        assert_eq!(PathBuffer::default().as_c_str(), c"");
    }

    #[test]
    fn a_path_cannot_start_a_log_line_of_its_own() {
        let path = PathBuffer::new(b"/a\n\xff\x1b[b").unwrap();
        assert_eq!(path.to_string(), "/a[b");
    }
}
