//! The few things that log and promises ask of a disk, so that their tests can be done on a disk that fails.
//! Not a file system: no permissions, no locks, no files that are not read and written at offsets.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

/// Work that may take long and that nobody waits for yet.
pub type Job = Box<dyn FnOnce() + Send>;

/// A file of a [`Disk`]: written and read at offsets, by several threads.
pub trait DiskFile: Send + Sync {
    /// Reads until the buffer is full or the file ends; answers with how much.
    ///
    /// # Errors
    /// From the system.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of it, beyond the end if need be.
    ///
    /// # Errors
    /// From the system; any part may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Everything written so far is on the disk.
    ///
    /// # Errors
    /// From the system; nothing is known then (R21).
    fn sync(&self) -> io::Result<()>;
    /// Its length in bytes.
    ///
    /// # Errors
    /// From the system.
    fn length(&self) -> io::Result<u64>;
}

/// Files in directories. What was made, renamed or removed survives a power cut after [`Disk::sync_directory`] only.
pub trait Disk: Clone + Send + Sync + 'static {
    /// Makes the directory and its parents.
    ///
    /// # Errors
    /// From the system.
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    /// Names of the files in a directory.
    ///
    /// # Errors
    /// From the system.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Opens a file, making or emptying it where `create`.
    ///
    /// # Errors
    /// From the system.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, replacing what has it.
    ///
    /// # Errors
    /// From the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// From the system.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in this directory are on the disk.
    ///
    /// # Errors
    /// From the system.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Bytes that can still be written on the file system that this lies on.
    ///
    /// # Errors
    /// From the system.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Has the job done beside everything else. A job that cannot be begun is dropped.
    fn in_background(&self, job: Job);
    /// Somebody is about to wait for a job: a disk that has put it off does it now.
    fn hurry_background(&self) {}
}

/// The host's file system.
#[derive(Debug, Clone, Copy)]
pub struct RealDisk;

struct RealFile(File);

/// Fills the buffer from there on, as far as the file goes; gives back how far that was.
pub(super) fn read_as_much_as_there_is(
    file: &File,
    mut buffer: &mut [u8],
    mut offset: u64,
) -> io::Result<usize> {
    let wanted = buffer.len();
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wanted - buffer.len())
}

/// Names of the files in a directory of the host.
pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
    std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_as_much_as_there_is(&self.0, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Disk for RealDisk {
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        list(path)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(create).mode(0o600);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        File::open(path)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn in_background(&self, job: Job) {
        // Whoever waits for it learns that it was dropped.
        let _ = std::thread::Builder::new().name("disk".to_owned()).spawn(job);
    }
}
