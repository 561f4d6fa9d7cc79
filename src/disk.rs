//! The few things that log, promises, identity and register ask of a disk, so that their tests can be done on a disk that
//! fails. Not a file system: no permissions, no locks, no files that are not read and written at offsets.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, FallocateFlags, RawDir, RenameFlags, SeekFrom};

/// Work that may take long and that nobody waits for yet.
pub type Job = Box<dyn FnOnce() + Send>;

/// Identifies a file or directory, whatever it is called, while it exists or is held open. Later the number may be given
/// to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// Of the file system.
    pub device: u64,
    /// Of the file in it.
    pub inode: u64,
}

fn not_offered<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

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
    /// Writes all of it behind the end, wherever other processes have moved that.
    ///
    /// # Errors
    /// From the system; any part may have been written. Only files of [`Disk::open_to_append`] offer it.
    fn append(&self, _bytes: &[u8]) -> io::Result<()> {
        not_offered()
    }
    /// Cuts the file to this length.
    ///
    /// # Errors
    /// From the system.
    fn cut(&self, _length: u64) -> io::Result<()> {
        not_offered()
    }
    /// Has room for this many bytes from the start, whatever else fills the disk. `grow`: they are part of the file, as
    /// zeros; else its length stays as it is.
    ///
    /// # Errors
    /// From the system; nothing was lost.
    fn allocate(&self, _bytes: u64, _grow: bool) -> io::Result<()> {
        not_offered()
    }
    /// Which file it is.
    ///
    /// # Errors
    /// From the system.
    fn identity(&self) -> io::Result<FileId> {
        not_offered()
    }
}

/// A directory that is held open: all of this needs no further descriptor, and goes to this directory wherever it was
/// moved.
pub trait DiskDirectory: Send + Sync {
    /// Names of the files in it.
    ///
    /// # Errors
    /// From the system.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Names in it are on the disk.
    ///
    /// # Errors
    /// From the system.
    fn sync(&self) -> io::Result<()>;
    /// Which directory it is.
    fn identity(&self) -> FileId;
    /// Which file has this name and how long it is; `None`: none has it.
    ///
    /// # Errors
    /// From the system.
    fn look(&self, name: &str) -> io::Result<Option<(FileId, u64)>>;
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
    /// Opens a file that nothing is written to.
    ///
    /// # Errors
    /// From the system.
    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path, false)
    }
    /// Opens a file that is only appended to, making it where there is none.
    ///
    /// # Errors
    /// From the system.
    fn open_to_append(&self, _path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        not_offered()
    }
    /// Makes a file that was not there.
    ///
    /// # Errors
    /// From the system; `AlreadyExists` where something has the name.
    fn create_new(&self, _path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        not_offered()
    }
    /// Gives a file a second name.
    ///
    /// # Errors
    /// From the system; `AlreadyExists` where something has the name.
    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        not_offered()
    }
    /// Gives a file another name that nothing has yet. Needs no inode, as a link does on tmpfs.
    ///
    /// # Errors
    /// From the system; `AlreadyExists` where something has the name.
    fn rename_new(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        not_offered()
    }
    /// What has this name now: a file or a directory.
    ///
    /// # Errors
    /// From the system; `NotFound` where nothing has it.
    fn identity(&self, _path: &Path) -> io::Result<FileId> {
        not_offered()
    }
    /// Opens a directory to hold it.
    ///
    /// # Errors
    /// From the system.
    fn open_directory(&self, _path: &Path) -> io::Result<Arc<dyn DiskDirectory>> {
        not_offered()
    }
    /// Files that can still be made on the file system that this lies on.
    ///
    /// # Errors
    /// From the system.
    fn free_files(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
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

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        // Opened to append: every write goes behind the end. One write, so that those of others do not come between.
        (&self.0).write_all(bytes)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn allocate(&self, bytes: u64, grow: bool) -> io::Result<()> {
        let flags = if grow { FallocateFlags::empty() } else { FallocateFlags::KEEP_SIZE };
        match rustix::fs::fallocate(&self.0, flags, 0, bytes) {
            // A file system that does not know the call takes zeros.
            Err(rustix::io::Errno::OPNOTSUPP) if grow && self.length()? < bytes => {
                let from = self.length()?;
                self.0.write_all_at(&vec![0; usize::try_from(bytes - from).unwrap_or(usize::MAX)], from)
            }
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn identity(&self) -> io::Result<FileId> {
        Ok(file_id(&self.0.metadata()?))
    }
}

fn file_id(metadata: &std::fs::Metadata) -> FileId {
    FileId { device: metadata.dev(), inode: metadata.ino() }
}

struct RealDirectory {
    directory: File,
    identity: FileId,
    /// Reading moves the position in the directory.
    reading: Mutex<()>,
}

impl DiskDirectory for RealDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        let _alone = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&self.directory, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn identity(&self) -> FileId {
        self.identity
    }

    fn look(&self, name: &str) -> io::Result<Option<(FileId, u64)>> {
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => {
                let id = FileId { device: found.st_dev, inode: found.st_ino };
                Ok(Some((id, u64::try_from(found.st_size).unwrap_or(0))))
            }
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
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

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }

    fn open_to_append(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        Ok(Arc::new(RealFile(options.read(true).append(true).create(true).mode(0o600).open(path)?)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }

    fn identity(&self, path: &Path) -> io::Result<FileId> {
        Ok(file_id(&std::fs::metadata(path)?))
    }

    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn DiskDirectory>> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let directory = File::open(path)?;
        let identity = file_id(&directory.metadata()?);
        Ok(Arc::new(RealDirectory { directory, identity, reading: Mutex::new(()) }))
    }

    fn free_files(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        // A file system without a bound on files has no count of them.
        Ok(if found.f_files == 0 { u64::MAX } else { found.f_favail })
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
