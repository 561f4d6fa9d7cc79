//! What a step can want that the system does not have just now. Nothing of it is a failure of the disk (R21): what was
//! to be done is as undone as before, and is tried again after a time (R34).

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::libc;

/// A resource that ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Bytes of the file system.
    Space,
    /// Files of the file system.
    Inodes,
    /// What the file system allows this user, group or project.
    Quota,
    /// Descriptors of this process or of the host.
    Descriptors,
    /// Memory of the kernel or of this process's limits.
    Memory,
}

impl Lack {
    /// What an answer of the system says to be missing; `None` for everything that is a failure. A file system that has
    /// no files left says the same as one that has no bytes: see [`Lack::found`].
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Lack> {
        match (error.raw_os_error(), error.kind()) {
            (Some(libc::EMFILE | libc::ENFILE), _) => Some(Lack::Descriptors),
            (_, io::ErrorKind::StorageFull) => Some(Lack::Space),
            (_, io::ErrorKind::QuotaExceeded) => Some(Lack::Quota),
            (_, io::ErrorKind::OutOfMemory) => Some(Lack::Memory),
            _ => None,
        }
    }

    /// The same, with what is known of the file system: how many more files it can take, and whether what was tried
    /// makes one.
    #[must_use]
    pub fn found(error: &io::Error, free_files: u64) -> Option<Lack> {
        match Lack::of(error) {
            Some(Lack::Space) if free_files == 0 => Some(Lack::Inodes),
            other => other,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lack::Space => "space on the file system",
            Lack::Inodes => "files (inodes) on the file system",
            Lack::Quota => "quota on the file system",
            Lack::Descriptors => "file descriptors",
            Lack::Memory => "memory",
        })
    }
}

/// What is missing, for other threads to see.
#[derive(Debug, Default)]
pub struct LackCell(AtomicU8);

impl LackCell {
    const ALL: [Lack; 5] = [Lack::Space, Lack::Inodes, Lack::Quota, Lack::Descriptors, Lack::Memory];

    /// From now on.
    pub fn store(&self, lack: Option<Lack>) {
        let number = lack.and_then(|lack| Self::ALL.iter().position(|one| *one == lack));
        let number = number.map_or(0, |number| u8::try_from(number + 1).expect("five kinds"));
        self.0.store(number, Ordering::Relaxed);
    }

    /// As it was last stored.
    #[must_use]
    pub fn load(&self) -> Option<Lack> {
        Self::ALL.get(usize::from(self.0.load(Ordering::Relaxed)).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_from_what_has_failed() {
        let found = |code: i32| Lack::found(&io::Error::from_raw_os_error(code), 7);
        assert_eq!(found(libc::ENOSPC), Some(Lack::Space));
        assert_eq!(found(libc::EDQUOT), Some(Lack::Quota));
        assert_eq!(found(libc::EMFILE), Some(Lack::Descriptors));
        assert_eq!(found(libc::ENFILE), Some(Lack::Descriptors));
        assert_eq!(found(libc::ENOMEM), Some(Lack::Memory));
        for failed in [libc::EIO, libc::EROFS, libc::EACCES, libc::ENOENT, libc::EBADF] {
            assert_eq!(found(failed), None, "{failed}");
        }
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(Lack::found(&full, 0), Some(Lack::Inodes), "no files are left");
    }
}
