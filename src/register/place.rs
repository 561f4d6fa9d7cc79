//! What a directory must be to hold locks and views: private, on a disk of this host, writable.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};

/// Why a directory will not do.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Locks may prove nothing there (R27).
    #[error(
        "{} is on {kind}, which is not known as a file system of this host's own disks: elsewhere locks prove nothing; put it on one of these: {}",
        path.display(), local_names()
    )]
    NotLocal {
        /// The directory.
        path: PathBuf,
        /// The file system's type.
        kind: String,
    },
    /// It exists, but nothing can be written in it.
    #[error("{} cannot be written to: {source}; give this user write access or choose another directory", path.display())]
    ReadOnly {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It could not be made or opened.
    #[error("{doing} {} failed: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Makes the directory (mode 0700, with its parents) where it does not exist, and opens it.
///
/// # Errors
/// [`PlaceError`] where it cannot serve.
pub fn private_directory(path: &Path) -> Result<File, PlaceError> {
    let io = |doing| move |source| PlaceError::Io { doing, path: path.to_owned(), source };
    let existed = path.is_dir();
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            PlaceError::ReadOnly { path: path.to_owned(), source }
        }
        _ => PlaceError::Io { doing: "creating the directory", path: path.to_owned(), source },
    })?;
    let directory = File::open(path).map_err(io("opening the directory"))?;
    let status = rustix::fs::fstatfs(&directory).map_err(|error| io("asking about")(error.into()))?;
    if let Some(kind) = not_local(status.f_type as u64) {
        return Err(PlaceError::NotLocal { path: path.to_owned(), kind });
    }
    rustix::fs::accessat(&directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| PlaceError::ReadOnly { path: path.to_owned(), source: error.into() })?;
    if !existed && let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io("syncing the parent of"))?;
    }
    Ok(directory)
}

/// File systems on which locks, links, renames and syncs do what they should, by their magic numbers (statfs(2)). All
/// others are refused, known ones by their names: new ways to share files come up all the time.
const LOCAL: &[(u32, &str)] = &[
    (0xef53, "ext2, ext3 or ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0xf2f5_2010, "f2fs"),
    (0x2fc1_2fc1, "zfs"),
    (0x794c_7630, "overlayfs"),
    (0xca45_1a4e, "bcachefs"),
    (0x3153_464a, "jfs"),
    (0x3434, "nilfs2"),
    (0x2405_1905, "ubifs"),
    (0x8584_58f6, "ramfs"),
];

/// What people have that does not do.
const ELSEWHERE: &[(u32, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x7375_7245, "Coda"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x786f_4256, "a VirtualBox shared folder"),
    (0x4d44, "FAT"),
    (0x2011_bab0, "exFAT"),
    (0x7366_746e, "NTFS"),
    (0xf15f, "eCryptfs"),
];

fn local_names() -> String {
    LOCAL.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

/// The type of a file system that is not known to be local; `None` for one that is.
fn not_local(magic: u64) -> Option<String> {
    // A 32-bit number with its top bit set arrives sign-extended.
    let magic = u32::try_from(magic & 0xffff_ffff).unwrap_or_default();
    let named =
        |list: &[(u32, &'static str)]| list.iter().find(|(of, _)| *of == magic).map(|(_, name)| *name);
    if named(LOCAL).is_some() {
        return None;
    }
    Some(named(ELSEWHERE).map_or_else(|| format!("a file system of type {magic:#x}"), str::to_owned))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_new_directory_is_private() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        private_directory(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let error = private_directory(&path).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn a_read_only_file_system_is_refused_as_such() {
        // /proc is there on every Linux host, takes no directory from anyone, and needs no root to show it.
        let error = private_directory(Path::new("/proc/self/new")).unwrap_err();
        assert!(error.to_string().contains("/proc/self/new"), "{error}");
        // Nor is it a place for locks.
        let error = private_directory(Path::new("/proc/self")).unwrap_err();
        assert!(matches!(error, PlaceError::NotLocal { .. }), "{error}");
    }

    #[test]
    fn only_file_systems_that_are_known_to_be_local_are_taken() {
        for (magic, _) in LOCAL {
            assert_eq!(not_local(u64::from(*magic)), None, "{magic:x}");
        }
        for (magic, kind) in
            [(0x6969, "NFS"), (0xffff_ffff_ff53_4d42, "SMB"), (0x0102_1997, "9p"), (0x6573_5546, "FUSE")]
        {
            assert_eq!(not_local(magic).as_deref(), Some(kind));
        }
        let unknown = not_local(0x1234).unwrap();
        let error = PlaceError::NotLocal { path: PathBuf::from("/r"), kind: unknown }.to_string();
        assert!(error.contains("type 0x1234") && error.contains("ext4") && error.contains("/r"), "{error}");
    }

    #[test]
    fn the_places_of_the_tests_are_taken() {
        private_directory(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
