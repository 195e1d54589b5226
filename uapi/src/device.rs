// SPDX-License-Identifier: MIT OR Apache-2.0
//! Handle of the device, and its errors.
//!
//! [`Device::open_at`], [`Device::arm`], [`Device::report`] and drop make plain
//! system calls: they do not allocate, lock, touch errno or act on a pending
//! thread cancellation, so they may run around `fork()` and in signal handlers.
//! So may the [`Display`](core::fmt::Display) of [`Error`].

use core::ffi::CStr;
use core::fmt;
use core::mem::ManuallyDrop;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{fstat, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Opcode, Updater};

use crate::abi::{
    AbiArgument, Arm, Enroll, Enrolled, Entry, Recent, Report, Stats, Unenroll, Version,
    ABI_OLDEST, ABI_VERSION, DEVICE, IOC_ARM, IOC_ENROLL, IOC_ENROLLED, IOC_RECENT, IOC_REPORT,
    IOC_STATS, IOC_UNENROLL, IOC_VERSION,
};
use crate::fd::Fd;

/// Why the device could not be used, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `open()` failed.
    #[error("cannot be opened: {}{}", ErrnoName(*.0), open_hint(*.0))]
    Open(Errno),
    /// The path names something else than a character device.
    #[error("is not a character device; give the path of the asyncfork device")]
    NotADevice,
    /// The descriptor was closed, and maybe reused, behind the handle's back.
    #[error("was closed by the program while in use")]
    Lost,
    /// An ioctl failed.
    #[error("{}: {}{}", .0.label(), ErrnoName(*.1), ioctl_hint(*.0, *.1))]
    Ioctl(IoctlName, Errno),
    /// The module speaks another ABI.
    #[error(
        "speaks ABI {found}, this library ABI {ABI_OLDEST} and {ABI_VERSION}; \
         install module and library of the same release"
    )]
    Abi {
        /// What the module says it speaks.
        found: u32,
    },
}

/// The device's calls, as named in [`Error::Ioctl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoctlName {
    /// `ASYNCFORK_IOC_VERSION`
    Version,
    /// `ASYNCFORK_IOC_ARM`
    Arm,
    /// `ASYNCFORK_IOC_REPORT`
    Report,
    /// `ASYNCFORK_IOC_STATS`
    Stats,
    /// `ASYNCFORK_IOC_RECENT`
    Recent,
    /// `ASYNCFORK_IOC_ENROLL`
    Enroll,
    /// `ASYNCFORK_IOC_UNENROLL`
    Unenroll,
    /// `ASYNCFORK_IOC_ENROLLED`
    Enrolled,
}

impl IoctlName {
    /// The call's name in messages.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Version => "VERSION",
            Self::Arm => "ARM",
            Self::Report => "REPORT",
            Self::Stats => "STATS",
            Self::Recent => "RECENT",
            Self::Enroll => "ENROLL",
            Self::Unenroll => "UNENROLL",
            Self::Enrolled => "ENROLLED",
        }
    }
}

/// An errno by its name. rustix's own display asks libc, which allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrnoName(pub Errno);

impl fmt::Display for ErrnoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Errno::ACCESS => "EACCES",
            Errno::AGAIN => "EAGAIN",
            Errno::BADF => "EBADF",
            Errno::BUSY => "EBUSY",
            Errno::FAULT => "EFAULT",
            Errno::INTR => "EINTR",
            Errno::INVAL => "EINVAL",
            Errno::IO => "EIO",
            Errno::LOOP => "ELOOP",
            Errno::MFILE => "EMFILE",
            Errno::NFILE => "ENFILE",
            Errno::NODEV => "ENODEV",
            Errno::NOENT => "ENOENT",
            Errno::NOMEM => "ENOMEM",
            Errno::NOSYS => "ENOSYS",
            Errno::NOSPC => "ENOSPC",
            Errno::NOTDIR => "ENOTDIR",
            Errno::NOTTY => "ENOTTY",
            Errno::NXIO => "ENXIO",
            Errno::PERM => "EPERM",
            Errno::ROFS => "EROFS",
            other => return write!(f, "errno {}", other.raw_os_error()),
        })
    }
}

const fn open_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => {
            "; load the module, and let the service see the device \
             (systemd: PrivateDevices=no; containers: pass the device in)"
        }
        Errno::ACCESS | Errno::PERM => {
            "; add the service's user to group asyncfork \
             (systemd: also DeviceAllow=/dev/asyncfork rw)"
        }
        Errno::MFILE | Errno::NFILE => "; raise the limit of open files",
        _ => "",
    }
}

const fn ioctl_hint(name: IoctlName, errno: Errno) -> &'static str {
    match (name, errno) {
        (IoctlName::Enroll | IoctlName::Unenroll | IoctlName::Enrolled, Errno::NOTTY) => {
            "; the module is older than enrolment: load that of this release"
        }
        (_, Errno::NOTTY) => {
            "; this is not the asyncfork device, or its module speaks another ABI than 2 and 3; \
             install module and library of the same release"
        }
        (IoctlName::Arm, Errno::BUSY) => "; this descriptor is armed already",
        (IoctlName::Arm, Errno::INVAL) => "; too many helper threads",
        (IoctlName::Enroll | IoctlName::Unenroll, Errno::PERM) => {
            "; this takes CAP_SYS_ADMIN, outside of containers' user namespaces"
        }
        (IoctlName::Enroll | IoctlName::Unenroll, Errno::BADF) => {
            "; that is no cgroup's directory in the default hierarchy (cgroup version 2)"
        }
        (IoctlName::Enroll, Errno::INVAL) => {
            "; the root cgroup cannot be enrolled, or too many helper threads"
        }
        (IoctlName::Enroll, Errno::NOENT) => "; the cgroup is gone",
        (IoctlName::Unenroll, Errno::NOENT) => "; it is not enrolled, or gone",
        (IoctlName::Enroll, Errno::NOSPC) => "; too many cgroups are enrolled",
        _ => "",
    }
}

// The hint above names the versions in plain text.
const _: () = assert!(ABI_OLDEST == 2 && ABI_VERSION == 3);

/// Which object a descriptor refers to. A program may close descriptors that
/// are not its own and get their numbers again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    dev: u64,
    ino: u64,
    rdev: u64,
    kind: FileType,
}

impl FileId {
    /// Identity of what `fd` refers to now; `None` if it is closed.
    pub fn of(fd: impl AsFd) -> Option<Self> {
        let stat = fstat(fd).ok()?;
        Some(Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            rdev: stat.st_rdev,
            kind: FileType::from_raw_mode(stat.st_mode),
        })
    }

    /// Is it the file with these numbers of stat(2)?
    pub const fn is(&self, dev: u64, ino: u64) -> bool {
        self.dev == dev && self.ino == ino
    }

    /// What kind of file it is.
    pub const fn kind(&self) -> FileType {
        self.kind
    }
}

/// An open device. Serves one thread: arm, fork, report, drop.
#[derive(Debug)]
pub struct Device {
    fd: ManuallyDrop<Fd>,
    id: FileId,
}

impl Device {
    /// Opens [`DEVICE`].
    ///
    /// # Errors
    /// As [`Device::open_at`].
    pub fn open() -> Result<Self, Error> {
        Self::open_at(DEVICE)
    }

    /// Opens a device, close-on-exec.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::NotADevice`].
    pub fn open_at(path: &CStr) -> Result<Self, Error> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
        // Left alone if it is lost already.
        let fd = ManuallyDrop::new(Fd::open(path, flags, Mode::empty()).map_err(Error::Open)?);
        let Some(id) = FileId::of(&*fd) else {
            return Err(Error::Lost);
        };
        // From here on drop closes it.
        let device = Self { fd, id };
        if device.id.kind != FileType::CharacterDevice {
            return Err(Error::NotADevice);
        }
        Ok(device)
    }

    /// What the module speaks.
    ///
    /// # Errors
    /// [`Error::Ioctl`]: `NOTTY` if it is another device or another layout;
    /// [`Error::Lost`].
    pub fn version(&self) -> Result<Version, Error> {
        self.fill::<IOC_VERSION, Version>(IoctlName::Version)
    }

    /// [`Device::version`], if it is an ABI of this crate: its own or the one before.
    ///
    /// # Errors
    /// [`Error::Abi`], and those of [`Device::version`].
    pub fn check_abi(&self) -> Result<Version, Error> {
        let version = self.version()?;
        if version.is_usable() {
            Ok(version)
        } else {
            Err(Error::Abi { found: version.abi })
        }
    }

    /// The calling thread's next fork may be asynchronous. A fork consumes the
    /// newest ARM of its thread, of whatever device; a thread may have several.
    ///
    /// # Errors
    /// [`Error::Ioctl`]: `INVAL` for unknown flags or too many helpers, `BUSY`
    /// if this device is armed already; [`Error::Lost`].
    pub fn arm(&self, arm: &Arm) -> Result<(), Error> {
        let mut arm = *arm;
        self.call::<IOC_ARM, Arm>(IoctlName::Arm, &mut arm)
    }

    /// The last fork that consumed this device's ARM.
    ///
    /// # Errors
    /// [`Error::Ioctl`], [`Error::Lost`].
    pub fn report(&self) -> Result<Report, Error> {
        self.fill::<IOC_REPORT, Report>(IoctlName::Report)
    }

    /// Totals since the module was loaded.
    ///
    /// # Errors
    /// [`Error::Ioctl`], [`Error::Lost`].
    pub fn stats(&self) -> Result<Stats, Error> {
        self.fill::<IOC_STATS, Stats>(IoctlName::Stats)
    }

    /// [`Device::recent_after`] without a number: all that the module remembers.
    ///
    /// # Errors
    /// As [`Device::recent_after`].
    pub fn recent(&self, entries: &mut [Report]) -> Result<usize, Error> {
        self.recent_after(0, entries)
    }

    /// Fills `entries` with the last forks that were to be asynchronous and whose
    /// [`Report::seq`] is greater than `seq`, newest first; one with a session when that
    /// has ended. The module keeps at least 32.
    ///
    /// To a caller with CAP_SYS_ADMIN in the initial user namespace it tells all, with
    /// the pids of the initial pid namespace; to others those of their own and the ones
    /// below it, as seen there.
    ///
    /// Returns how many it filled.
    ///
    /// # Errors
    /// [`Error::Ioctl`]: `TOOBIG` for a number, from a module of ABI 2, which has none;
    /// [`Error::Lost`].
    pub fn recent_after(&self, seq: u64, entries: &mut [Report]) -> Result<usize, Error> {
        let mut recent = Recent {
            entries: entries.as_mut_ptr() as u64,
            entry_size: size_of::<Report>() as u32,
            count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            after_seq: seq,
            ..Recent::default()
        };
        self.call::<IOC_RECENT, Recent>(IoctlName::Recent, &mut recent)?;
        Ok(entries.len().min(recent.count as usize))
    }

    /// Enrols a cgroup, by its directory in the default hierarchy: from now on every fork
    /// of a process in it, or below it, may be asynchronous without an ARM, if the process
    /// has `min_rss` bytes resident. Changes the values of one that is enrolled. The entry
    /// goes with [`Device::unenroll`] and with the module, not with the device.
    ///
    /// # Errors
    /// [`Error::Ioctl`]: `PERM` without CAP_SYS_ADMIN in the initial user namespace;
    /// `BADF` if it is not such a directory, `NOENT` if the cgroup is gone; `INVAL` for the
    /// root cgroup or too many helpers; `NOSPC` beyond [`MAX_ENTRIES`]; `NOTTY` from a module
    /// of ABI 2. [`Error::Lost`].
    ///
    /// [`MAX_ENTRIES`]: crate::MAX_ENTRIES
    pub fn enroll(&self, cgroup: BorrowedFd<'_>, min_rss: u64, helpers: u32) -> Result<(), Error> {
        let mut enroll = Enroll {
            cgroup_fd: cgroup.as_raw_fd(),
            min_rss,
            helpers,
            ..Enroll::default()
        };
        self.call::<IOC_ENROLL, Enroll>(IoctlName::Enroll, &mut enroll)
    }

    /// Takes a cgroup's entry away, by its directory.
    ///
    /// # Errors
    /// As [`Device::enroll`]; `NOENT` also if it is not enrolled.
    pub fn unenroll(&self, cgroup: BorrowedFd<'_>) -> Result<(), Error> {
        let mut unenroll = Unenroll {
            cgroup_fd: cgroup.as_raw_fd(),
            ..Unenroll::default()
        };
        self.call::<IOC_UNENROLL, Unenroll>(IoctlName::Unenroll, &mut unenroll)
    }

    /// Takes a cgroup's entry away, by its id: the cgroup may be gone.
    ///
    /// # Errors
    /// As [`Device::unenroll`]; `INVAL` for 0.
    pub fn unenroll_id(&self, id: u64) -> Result<(), Error> {
        let mut unenroll = Unenroll {
            cgroup_id: id,
            cgroup_fd: -1,
            ..Unenroll::default()
        };
        self.call::<IOC_UNENROLL, Unenroll>(IoctlName::Unenroll, &mut unenroll)
    }

    /// Fills `entries` with the enrolled cgroups, in no order; for a caller without
    /// CAP_SYS_ADMIN in the initial user namespace those that its own processes are in.
    /// There are at most [`MAX_ENTRIES`]; cgroups that are gone may be among them.
    ///
    /// Returns how many it filled.
    ///
    /// # Errors
    /// [`Error::Ioctl`], [`Error::Lost`].
    ///
    /// [`MAX_ENTRIES`]: crate::MAX_ENTRIES
    pub fn enrolled(&self, entries: &mut [Entry]) -> Result<usize, Error> {
        let mut enrolled = Enrolled {
            entries: entries.as_mut_ptr() as u64,
            entry_size: size_of::<Entry>() as u32,
            count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            ..Enrolled::default()
        };
        self.call::<IOC_ENROLLED, Enrolled>(IoctlName::Enrolled, &mut enrolled)?;
        Ok(entries.len().min(enrolled.count as usize))
    }

    fn check_ours(&self) -> Result<(), Error> {
        if FileId::of(&*self.fd) == Some(self.id) {
            Ok(())
        } else {
            Err(Error::Lost)
        }
    }

    fn fill<const OPCODE: Opcode, T: AbiArgument>(&self, name: IoctlName) -> Result<T, Error> {
        // Zeroed: another device may say "done" to this number and write nothing.
        let mut value = T::default();
        self.call::<OPCODE, T>(name, &mut value)?;
        Ok(value)
    }

    fn call<const OPCODE: Opcode, T: AbiArgument>(
        &self,
        name: IoctlName,
        value: &mut T,
    ) -> Result<(), Error> {
        self.check_ours()?;
        // SAFETY: the module writes no more than the size that an AbiArgument begins
        // with and what a Recent or an Enrolled has room for, another device no more than the 8 bytes
        // that OPCODE carries; any bit pattern is a valid AbiStruct.
        unsafe { ioctl(&*self.fd, Updater::<OPCODE, T>::new(value)) }
            .map_err(|errno| Error::Ioctl(name, errno))
    }
}

impl Drop for Device {
    /// Disarms. Leaves the number alone if it refers to something else now.
    fn drop(&mut self) {
        if self.check_ours().is_err() {
            return;
        }
        // SAFETY: `fd` is not used again.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::{FromRawFd, OwnedFd};

    #[test]
    fn a_missing_device_says_what_to_do() {
        let error = Device::open_at(c"/nonexistent/asyncfork").unwrap_err();
        assert_eq!(error, Error::Open(Errno::NOENT));
        let text = error.to_string();
        assert!(text.contains("ENOENT; load the module"), "{text}");
    }

    #[test]
    fn a_plain_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = std::ffi::CString::new(file.path().to_str().unwrap()).unwrap();
        assert_eq!(Device::open_at(&path).unwrap_err(), Error::NotADevice);
    }

    #[test]
    fn another_device_answers_enotty() {
        let device = Device::open_at(c"/dev/null").unwrap();
        let error = device.check_abi().unwrap_err();
        assert_eq!(error, Error::Ioctl(IoctlName::Version, Errno::NOTTY));
        assert!(
            error.to_string().contains("another ABI than 2 and 3"),
            "{error}"
        );
        let arm = Arm::default();
        assert_eq!(
            device.arm(&arm).unwrap_err(),
            Error::Ioctl(IoctlName::Arm, Errno::NOTTY)
        );
    }

    #[test]
    fn drop_closes() {
        // No other test here opens this one.
        let device = Device::open_at(c"/dev/zero").unwrap();
        let path = format!("/proc/self/fd/{}", device.fd.as_fd().as_raw_fd());
        let id = device.id;
        drop(device);
        // Another test's thread may have the number by now.
        if let Ok(file) = std::fs::File::open(path) {
            assert_ne!(FileId::of(&file), Some(id));
        }
    }

    #[test]
    fn a_reused_descriptor_is_left_alone() {
        let device = Device::open_at(c"/dev/null").unwrap();
        let file = tempfile::tempfile().unwrap();
        let number = device.fd.as_fd().as_raw_fd();
        // dup2() puts the file under the device's number atomically, so that
        // no other test's thread can get it.
        // SAFETY: `reused` takes over the number that `device` has lost.
        let mut reused = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::dup2(&file, &mut reused).unwrap();
        assert_eq!(device.report().unwrap_err(), Error::Lost);
        drop(device);
        assert_eq!(FileId::of(&reused), FileId::of(&file));
    }

    #[test]
    fn unnamed_errnos_show_their_number() {
        let text = Error::Open(Errno::XDEV).to_string();
        assert_eq!(
            text,
            format!("cannot be opened: errno {}", Errno::XDEV.raw_os_error())
        );
    }
}
