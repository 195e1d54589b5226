// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a program takes a preloaded library, by its ELF headers.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use elf::endian::AnyEndian;
use elf::{abi, ElfStream};

use crate::host::Host;

/// Scripts that are interpreted by scripts, as the kernel limits them.
const SCRIPTS: usize = 5;

/// The C library of a program, or what a library asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    /// GNU's.
    Glibc,
    /// Alpine's.
    Musl,
}

/// What a program is, to the dynamic loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// It has an interpreter, and that is of this C library, if known.
    Dynamic(PathBuf, Option<Libc>),
    /// It has none, and so nothing is preloaded.
    Static,
    /// For another machine, or 32 bits.
    Foreign,
    /// No ELF file.
    Unknown,
}

/// What a file is.
///
/// # Errors
/// It cannot be opened.
pub fn program(file: File) -> io::Result<Program> {
    let Ok(mut elf) = ElfStream::<AnyEndian, _>::open_stream(file) else {
        return Ok(Program::Unknown);
    };
    if is_foreign(&elf) {
        return Ok(Program::Foreign);
    }
    let interpreter = elf
        .segments()
        .iter()
        .find(|s| s.p_type == abi::PT_INTERP)
        .copied();
    let Some(interpreter) = interpreter else {
        return Ok(Program::Static);
    };
    let Ok(bytes) = elf.segment_data(&interpreter) else {
        return Ok(Program::Unknown);
    };
    let path = String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned();
    let libc = libc_of(&path);
    Ok(Program::Dynamic(path.into(), libc))
}

fn is_foreign(elf: &ElfStream<AnyEndian, File>) -> bool {
    elf.ehdr.class != elf::file::Class::ELF64 || elf.ehdr.e_machine != abi::EM_X86_64
}

fn libc_of(name: &str) -> Option<Libc> {
    if name.contains("ld-musl") || name.contains("libc.musl") {
        Some(Libc::Musl)
    } else if name.contains("ld-linux") || name.contains("libc.so.6") {
        Some(Libc::Glibc)
    } else {
        None
    }
}

/// What a library is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    /// For this machine; asks for that C library, or for none.
    For(Option<Libc>),
    /// For another machine.
    Foreign,
    /// No ELF file.
    Unknown,
}

/// What the library in a file is.
///
/// # Errors
/// It cannot be opened.
pub fn library(file: File) -> io::Result<Library> {
    let Ok(mut elf) = ElfStream::<AnyEndian, _>::open_stream(file) else {
        return Ok(Library::Unknown);
    };
    if is_foreign(&elf) {
        return Ok(Library::Foreign);
    }
    let needed = needed(&mut elf).unwrap_or_default();
    Ok(Library::For(needed.iter().find_map(|name| libc_of(name))))
}

/// The names of the libraries that one asks for.
fn needed(elf: &mut ElfStream<AnyEndian, File>) -> Option<Vec<String>> {
    let table: Vec<_> = elf.dynamic().ok()??.iter().collect();
    let value = |tag| table.iter().find(|d| d.d_tag == tag).map(|d| d.d_val());
    let (address, size) = (value(abi::DT_STRTAB)?, value(abi::DT_STRSZ)?);
    let segment = elf.segments().iter().find(|s| {
        s.p_type == abi::PT_LOAD
            && (s.p_vaddr..s.p_vaddr.saturating_add(s.p_filesz)).contains(&address)
    });
    let segment = *segment?;
    let data = elf.segment_data(&segment).ok()?;
    let start = usize::try_from(address - segment.p_vaddr).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    let strings = data.get(start..end.min(data.len()))?;
    let names = table.iter().filter(|d| d.d_tag == abi::DT_NEEDED);
    let text = |offset: u64| {
        let rest = strings.get(usize::try_from(offset).ok()?..)?;
        let name = rest.split(|&b| b == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    Some(names.filter_map(|d| text(d.d_val())).collect())
}

/// The program that runs when a file is executed: its own, or that of its `#!` line.
///
/// # Errors
/// It, or its interpreter, cannot be read.
pub fn executed(host: &Host, path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..SCRIPTS {
        let mut line = Vec::new();
        BufReader::new(host.open(&path)?.take(256)).read_until(b'\n', &mut line)?;
        let Some(rest) = line.strip_prefix(b"#!") else {
            break;
        };
        let rest = String::from_utf8_lossy(rest);
        let Some(interpreter) = rest.split_whitespace().next() else {
            break;
        };
        path = PathBuf::from(interpreter);
    }
    Ok(path)
}

/// Why `library` cannot be used in the program at `path`; `None`: it can, as far as
/// the files tell.
pub fn obstacle(host: &Host, library: &Path, path: &Path) -> Option<String> {
    let wants = match host.open(library).and_then(self::library) {
        Err(e) => return Some(format!("the library {}: {e}", library.display())),
        Ok(Library::Unknown) => return Some(format!("{} is no library", library.display())),
        Ok(Library::Foreign) => {
            return Some(format!(
                "the library {} is for another machine",
                library.display()
            ))
        }
        Ok(Library::For(wants)) => wants,
    };
    let Ok(executed) = executed(host, path) else {
        return None;
    };
    let name = executed.display();
    let Ok(metadata) = host.metadata(&executed) else {
        return None;
    };
    if metadata.mode() & 0o6000 != 0 {
        return Some(format!(
            "{name} is set-user-ID: the loader ignores LD_PRELOAD"
        ));
    }
    match (host.open(&executed).and_then(program).ok()?, wants) {
        (Program::Static, _) => Some(format!(
            "{name} is statically linked and takes no library; enrol its cgroup instead (asyncfork enroll)"
        )),
        (Program::Foreign, _) => Some(format!("{name} is no 64-bit x86 program")),
        (Program::Dynamic(_, Some(Libc::Musl)), Some(Libc::Glibc)) => Some(format!(
            "{name} is a musl program and the library is one for glibc"
        )),
        (Program::Dynamic(_, Some(Libc::Glibc)), Some(Libc::Musl)) => Some(format!(
            "{name} is a glibc program and the library is one for musl"
        )),
        (Program::Dynamic(..) | Program::Unknown, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{elf, Fake};

    fn kind(bytes: &[u8]) -> Program {
        let fake = Fake::new();
        fake.write_bytes("/a", bytes);
        program(fake.host.open("/a").unwrap()).unwrap()
    }

    #[test]
    fn programs_are_known_by_their_interpreters() {
        let glibc = elf::program(Some("/lib64/ld-linux-x86-64.so.2"));
        assert!(matches!(
            kind(&glibc),
            Program::Dynamic(_, Some(Libc::Glibc))
        ));
        let musl = elf::program(Some("/lib/ld-musl-x86_64.so.1"));
        assert!(matches!(kind(&musl), Program::Dynamic(_, Some(Libc::Musl))));
        assert_eq!(kind(&elf::program(None)), Program::Static);
        assert_eq!(kind(&elf::foreign()), Program::Foreign);
        assert_eq!(kind(b"#!/bin/sh\n"), Program::Unknown);
        assert_eq!(kind(b""), Program::Unknown);
        let mut broken = glibc;
        broken.truncate(70);
        assert_eq!(kind(&broken), Program::Unknown);
    }

    #[test]
    fn a_library_for_no_c_library_serves_all() {
        let fake = Fake::new();
        for (needed, libc) in [
            (None, None),
            (Some("libc.so.6"), Some(Libc::Glibc)),
            (Some("libc.musl-x86_64.so.1"), Some(Libc::Musl)),
        ] {
            fake.write_bytes("/l.so", &elf::library(needed));
            let found = library(fake.host.open("/l.so").unwrap()).unwrap();
            assert_eq!(found, Library::For(libc), "{needed:?}");
        }
    }

    #[test]
    fn what_cannot_work_is_said() {
        let fake = Fake::new();
        fake.write_bytes("/glibc", &elf::program(Some("/lib64/ld-linux-x86-64.so.2")))
            .write_bytes("/musl", &elf::program(Some("/lib/ld-musl-x86_64.so.1")))
            .write_bytes("/static", &elf::program(None))
            .write_bytes("/old", &elf::foreign())
            .write("/script", "#! /musl -x\n")
            .write_bytes("/both.so", &elf::library(None))
            .write_bytes("/glibc.so", &elf::library(Some("libc.so.6")))
            .write("/text.so", "no library");
        let say = |library: &str, program: &str| {
            obstacle(&fake.host, Path::new(library), Path::new(program)).unwrap_or_default()
        };
        assert_eq!(say("/both.so", "/glibc"), "");
        assert_eq!(say("/both.so", "/musl"), "");
        assert_eq!(say("/both.so", "/script"), "");
        assert_eq!(say("/glibc.so", "/glibc"), "");
        assert!(say("/glibc.so", "/musl").contains("/musl is a musl program"));
        assert!(say("/glibc.so", "/script").contains("/musl is a musl program"));
        assert!(say("/both.so", "/static").contains("statically linked"));
        assert!(say("/both.so", "/old").contains("no 64-bit x86"));
        assert!(say("/none.so", "/glibc").contains("No such file"));
        assert!(say("/text.so", "/glibc").contains("is no library"));
    }
}
