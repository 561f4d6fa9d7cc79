//! Only one supervisor a cluster: a lock on a file that says who holds it. The kernel frees it with its holder, so
//! no dead supervisor ever stands in the way.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;

use super::os::{self, ProcessId};
use super::owner;

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("a supervisor already runs for {} ({})\nit serves every command; `replcluster status` shows what it runs", .directory.display(), holder(.pid))]
    Held {
        /// The cluster's directory.
        directory: PathBuf,
        /// The holder's process, where the file says.
        pid: Option<u32>,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock {}: {cause}\ncheck that you may write to its directory", .path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or("process unknown".to_owned(), |pid| format!("pid {pid}"))
}

/// How long a lock of a holder that is dead is waited for.
const INHERITED: Duration = Duration::from_secs(2);

/// Held while this value lives.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    /// The directory it is in, whatever that is called now.
    directory: File,
}

/// What became of a lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It keeps others out.
    Held,
    /// Its file was deleted or replaced, and the directory is what it was: somebody took it for left behind.
    Unlinked,
    /// The directory was deleted, moved or replaced.
    DirectoryGone,
}

impl Lock {
    /// Takes the lock and writes our name into it: the supervisor's.
    ///
    /// # Errors
    /// [`LockError`]; nothing changed then.
    pub fn take(path: &Path) -> Result<Lock, LockError> {
        let own = os::identify(std::process::id())
            .and_then(|id| Ok(serde_json::to_vec(&id)?))
            .map_err(|cause| LockError::System { path: path.to_owned(), cause })?;
        Lock::take_as(path, &own)
    }

    /// Takes the lock for a moment, so that no supervisor begins meanwhile; names nobody.
    ///
    /// # Errors
    /// [`LockError`]; nothing changed then.
    pub fn take_briefly(path: &Path) -> Result<Lock, LockError> {
        Lock::take_as(path, b"")
    }

    fn take_as(path: &Path, name: &[u8]) -> Result<Lock, LockError> {
        let failed = |cause| LockError::System { path: path.to_owned(), cause };
        let deadline = clock::now() + INHERITED;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            owner::like_directory(&file, path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                // A dead holder's lock lives on in a child between its fork and its exec: until then nobody can tell
                // what that supervisor started, so nobody may begin. One that names nobody is held for a moment only.
                Err(TryLockError::WouldBlock) if holding(path).is_none() && clock::now() < deadline => {
                    std::thread::yield_now();
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
                    return Err(LockError::Held { directory, pid: read(&mut file).map(|id| id.pid) });
                }
                Err(TryLockError::Error(cause)) => return Err(failed(cause)),
            }
            let directory = File::open(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
            let lock = Lock { path: path.to_owned(), file, directory };
            // Deleted between the opening and the locking: that is no lock any more.
            if lock.standing() != Standing::Held {
                if clock::now() < deadline {
                    continue;
                }
                return Err(failed(io::Error::other("it is deleted again and again")));
            }
            let mut file = &lock.file;
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(name))
                .map_err(failed)?;
            return Ok(lock);
        }
    }

    /// Whether it still keeps others out, and if not, why.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if !os::is_at(&self.directory, self.path.parent().unwrap_or(Path::new("/"))) {
            Standing::DirectoryGone
        } else if os::is_at(&self.file, &self.path) {
            Standing::Held
        } else {
            Standing::Unlinked
        }
    }
}

/// Who holds the lock, where somebody alive does. What the file says is not enough: in a copy of the directory it names
/// the holder of the original.
#[must_use]
pub fn holding(path: &Path) -> Option<ProcessId> {
    let mut file = File::open(path).ok()?;
    let id = read(&mut file).filter(os::is_alive)?;
    // Taken for this moment only, which whoever begins just now waits for.
    match file.try_lock_shared() {
        Ok(()) => None,
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Some(id),
    }
}

fn read(file: &mut File) -> Option<ProcessId> {
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Lock::take(&path).unwrap();
        match Lock::take(&path) {
            Err(LockError::Held { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        assert_eq!(holding(&path).unwrap().pid, std::process::id());
        drop(first);
        Lock::take(&path).unwrap();
    }

    #[test]
    fn a_deleted_or_replaced_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("c");
        std::fs::create_dir(&inside).unwrap();
        let path = inside.join("lock");
        let lock = Lock::take(&path).unwrap();
        assert_eq!(lock.standing(), Standing::Held);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(lock.standing(), Standing::Unlinked);
        std::fs::write(&path, "").unwrap();
        assert_eq!(lock.standing(), Standing::Unlinked);
        std::fs::rename(&inside, directory.path().join("moved")).unwrap();
        assert_eq!(lock.standing(), Standing::DirectoryGone);
        std::fs::create_dir(&inside).unwrap();
        let again = Lock::take(&path).unwrap();
        assert_eq!((lock.standing(), again.standing()), (Standing::DirectoryGone, Standing::Held));
    }

    #[test]
    fn what_a_dead_holder_wrote_names_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        std::fs::write(&path, r#"{"pid":1,"start_time":0,"boot_id":"earlier"}"#).unwrap();
        assert_eq!(holding(&path), None);
    }

    #[test]
    fn a_copy_of_the_file_is_held_by_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let (path, copy) = (directory.path().join("lock"), directory.path().join("copy"));
        let _lock = Lock::take(&path).unwrap();
        std::fs::copy(&path, &copy).unwrap();
        assert!(holding(&path).is_some());
        assert_eq!(holding(&copy), None);
    }

    #[test]
    fn a_lock_for_a_moment_names_nobody_and_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let brief = Lock::take_briefly(&path).unwrap();
        assert_eq!(holding(&path), None);
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || Lock::take(&path).map(|lock| lock.standing())
        });
        drop(brief);
        assert_eq!(waiting.join().unwrap().unwrap(), Standing::Held);
    }
}
