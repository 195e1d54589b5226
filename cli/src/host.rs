// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine, below a root directory that tests can choose: its files and the
//! programs that are asked about it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exit;
use crate::progress;

/// What a program printed, and how it ended.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// It exited with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs the programs that are asked about the machine.
pub trait Tools {
    /// Runs one to its end.
    ///
    /// # Errors
    /// It cannot be started; `NotFound` if it is not there.
    fn run(&self, program: &str, args: &[&str]) -> io::Result<Output>;
}

/// The machine.
pub struct Host {
    root: PathBuf,
    tools: Box<dyn Tools>,
    #[cfg(test)]
    pub(crate) reads: std::cell::RefCell<Vec<PathBuf>>,
}

impl Host {
    /// The machine below `root`, which is `/` but for tests.
    pub fn new(root: PathBuf) -> Self {
        let tools = Box::new(Programs { root: root.clone() });
        Self::with_tools(root, tools)
    }

    /// The same, with other programs.
    pub fn with_tools(root: PathBuf, tools: Box<dyn Tools>) -> Self {
        Self {
            root,
            tools,
            #[cfg(test)]
            reads: std::cell::RefCell::default(),
        }
    }

    /// Whether this is the machine itself.
    pub fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where an absolute path really is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Where a path below the root is on the machine: the inverse of [`Host::path`].
    pub fn on_machine(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root)
            .map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
    }

    fn reading(&self, path: &Path) -> PathBuf {
        log::debug!("reading {}", path.display());
        #[cfg(test)]
        self.reads.borrow_mut().push(path.to_owned());
        self.path(path)
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read_bytes(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        fs::read(self.reading(path.as_ref()))
    }

    /// A file's text; what is no UTF-8 is replaced.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.read_bytes(path)?).into_owned())
    }

    /// A file's text without white space at both ends; `None` if it cannot be read.
    pub fn line(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(self.read(path).ok()?.trim().to_owned())
    }

    /// An open file.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        File::open(self.reading(path.as_ref()))
    }

    /// What kind of file is there; symbolic links are followed.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn metadata(&self, path: impl AsRef<Path>) -> io::Result<fs::Metadata> {
        fs::metadata(self.reading(path.as_ref()))
    }

    /// Whether something is there.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path).is_ok()
    }

    /// Where a symbolic link points to.
    ///
    /// # Errors
    /// Those of readlink(2).
    pub fn read_link(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        fs::read_link(self.reading(path.as_ref()))
    }

    /// The names in a directory, sorted; none if it cannot be read.
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<OsString> {
        let Ok(entries) = fs::read_dir(self.reading(path.as_ref())) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    }

    /// The directories in a directory; none if it cannot be read.
    pub fn list_directories(&self, path: impl AsRef<Path>) -> Vec<OsString> {
        let Ok(entries) = fs::read_dir(self.reading(path.as_ref())) else {
            return Vec::new();
        };
        let directories = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| entry.file_name()).collect()
    }

    /// Replaces a file in one step, with mode 0644, and makes its directory.
    ///
    /// # Errors
    /// With the path; the old file stays then.
    pub fn replace(&self, path: impl AsRef<Path>, text: &str) -> Result<()> {
        let path = path.as_ref();
        let real = self.path(path);
        let directory = real.parent().context("a file has a directory")?;
        let write = || -> io::Result<()> {
            fs::create_dir_all(directory)?;
            let mut file = tempfile::Builder::new()
                .prefix(".asyncfork-")
                .tempfile_in(directory)?;
            file.write_all(text.as_bytes())?;
            file.as_file()
                .set_permissions(fs::Permissions::from_mode(0o644))?;
            file.as_file().sync_all()?;
            file.persist(&real).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(|e| exit::failed(format!("cannot write {}: {}", path.display(), why(&e))))
    }

    /// Writes into a file that is there, as those of sysfs are.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_into(&self, path: impl AsRef<Path>, text: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .truncate(!self.is_real())
            .open(self.path(path))?;
        file.write_all(text.as_bytes())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// With the path.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        fs::remove_file(self.path(path))
            .map_err(|e| exit::failed(format!("cannot remove {}: {}", path.display(), why(&e))))
    }

    /// Removes a file, and its directory if that is empty then.
    ///
    /// # Errors
    /// With the path.
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.remove_file(path)?;
        if let Some(directory) = self.path(path).parent() {
            // Fails, as it is to, if something else is in there.
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }

    /// Runs a program that is asked about the machine.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, program: &str, args: &[&str]) -> io::Result<Output> {
        log::debug!("running {program} {}", args.join(" "));
        self.tools.run(program, args)
    }

    /// Whether the file at `path` is on the machine and executable.
    pub fn is_executable(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path)
            .is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0)
    }
}

/// An error of the system in words, with what to do about the common ones.
pub fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied; run it as root".into(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        _ => error.to_string(),
    }
}

struct Programs {
    root: PathBuf,
}

impl Tools for Programs {
    fn run(&self, program: &str, args: &[&str]) -> io::Result<Output> {
        let path = if self.root == Path::new("/") {
            PathBuf::from(program)
        } else {
            self.root.join("usr/bin").join(program)
        };
        let mut command = Command::new(path);
        command
            .args(args)
            .env("LC_ALL", "C")
            .env("SYSTEMD_COLORS", "0")
            .env("SYSTEMD_PAGER", "cat")
            .stdin(std::process::Stdio::null());
        let words = [&[program], args].concat().join(" ");
        let output = progress::during(&format!("waiting for {words}"), || command.output())?;
        Ok(Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn a_file_is_replaced_whole_and_with_mode_0644() {
        let fake = Fake::new();
        fake.host.replace("/etc/x/asyncfork.conf", "one\n").unwrap();
        fake.host.replace("/etc/x/asyncfork.conf", "two\n").unwrap();
        assert_eq!(fake.host.read("/etc/x/asyncfork.conf").unwrap(), "two\n");
        assert_eq!(fake.host.list("/etc/x"), ["asyncfork.conf"]);
        let mode = fake.host.metadata("/etc/x/asyncfork.conf").unwrap().mode();
        assert_eq!(mode & 0o777, 0o644);
    }

    #[test]
    fn a_removed_file_takes_its_empty_directory_along() {
        let fake = Fake::new();
        fake.write("/etc/x/a", "").write("/etc/x/b", "");
        fake.host.remove("/etc/x/a").unwrap();
        assert!(fake.host.exists("/etc/x"));
        fake.host.remove("/etc/x/b").unwrap();
        assert!(!fake.host.exists("/etc/x"));
    }
}
