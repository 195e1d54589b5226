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

use rustix::fd::AsFd;
use rustix::fs::{fstat, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Opcode, Updater};

use crate::abi::{
    AbiArgument, Arm, Recent, Report, Stats, Version, ABI_VERSION, DEVICE, IOC_ARM, IOC_RECENT,
    IOC_REPORT, IOC_STATS, IOC_VERSION,
};
use crate::fd::Fd;

/// Why the device could not be used, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `open()` failed.
    #[error("cannot be opened: {}{}", Name(*.0), open_hint(*.0))]
    Open(Errno),
    /// The path names something else than a character device.
    #[error("is not a character device; give the path of the asyncfork device")]
    NotADevice,
    /// The descriptor was closed, and maybe reused, behind the handle's back.
    #[error("was closed by the program while in use")]
    Lost,
    /// An ioctl failed.
    #[error("{}: {}{}", .0.label(), Name(*.1), ioctl_hint(*.0, *.1))]
    Ioctl(IoctlName, Errno),
    /// The module speaks another ABI.
    #[error(
        "speaks ABI {found}, this library ABI {ABI_VERSION}; \
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
        }
    }
}

/// An errno by its name. rustix's own display asks libc, which allocates.
struct Name(Errno);

impl fmt::Display for Name {
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
        (_, Errno::NOTTY) => {
            "; this is not the asyncfork device, or its module speaks another ABI than 2; \
             install module and library of the same release"
        }
        (IoctlName::Arm, Errno::BUSY) => "; this descriptor is armed already",
        (IoctlName::Arm, Errno::INVAL) => "; too many helper threads",
        _ => "",
    }
}

// The hint above names the version in plain text.
const _: () = assert!(ABI_VERSION == 2);

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

    /// [`Device::version`], if it is the ABI of this crate.
    ///
    /// # Errors
    /// [`Error::Abi`], and those of [`Device::version`].
    pub fn check_abi(&self) -> Result<Version, Error> {
        let version = self.version()?;
        if version.abi == ABI_VERSION {
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

    /// Fills `entries` with the last forks that consumed an ARM, newest first; one
    /// with a session when that has ended. Their pids are those of the initial
    /// namespace. The module keeps at least 32.
    ///
    /// Returns how many it filled.
    ///
    /// # Errors
    /// [`Error::Ioctl`], [`Error::Lost`].
    pub fn recent(&self, entries: &mut [Report]) -> Result<usize, Error> {
        let mut recent = Recent {
            entries: entries.as_mut_ptr() as u64,
            entry_size: size_of::<Report>() as u32,
            count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            ..Recent::default()
        };
        self.call::<IOC_RECENT, Recent>(IoctlName::Recent, &mut recent)?;
        Ok(entries.len().min(recent.count as usize))
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
        // with and what a Recent has room for, another device no more than the 8 bytes
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
    use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};

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
        assert!(error.to_string().contains("another ABI than 2"), "{error}");
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
