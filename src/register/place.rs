//! What a directory must be to hold locks and views: private, on a disk of this host, writable.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};

/// Why a directory will not do.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Locks prove nothing there (R27).
    #[error("{} is on a network file system ({kind}), where locks prove nothing: put it on a disk of this host", path.display())]
    Network {
        /// The directory.
        path: PathBuf,
        /// The file system's name.
        kind: &'static str,
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
    if let Some(kind) = network_file_system(status.f_type as u64) {
        return Err(PlaceError::Network { path: path.to_owned(), kind });
    }
    rustix::fs::accessat(&directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| PlaceError::ReadOnly { path: path.to_owned(), source: error.into() })?;
    if !existed && let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io("syncing the parent of"))?;
    }
    Ok(directory)
}

/// The name of the network file system with this magic number (statfs(2)); `None` for what is local.
/// FUSE counts as one: what stands behind it cannot be told.
fn network_file_system(magic: u64) -> Option<&'static str> {
    match magic & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x6573_5546 => Some("FUSE"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x00c3_6400 => Some("Ceph"),
        0x7375_7245 => Some("Coda"),
        0x0116_1970 => Some("GFS2"),
        0x7461_636f => Some("OCFS2"),
        0x0bd0_0bd0 => Some("Lustre"),
        _ => None,
    }
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
        let error = private_directory(Path::new("/proc/self")).unwrap_err();
        assert!(matches!(error, PlaceError::ReadOnly { .. }), "{error}");
    }

    #[test]
    fn network_file_systems_are_known_and_local_ones_are_not_taken_for_them() {
        for (magic, kind) in
            [(0x6969, "NFS"), (0xfe53_4d42, "SMB"), (0x0102_1997, "9p"), (0x6573_5546, "FUSE")]
        {
            assert_eq!(network_file_system(magic), Some(kind));
        }
        // A 32-bit magic number with its top bit set arrives sign-extended.
        assert_eq!(network_file_system(0xffff_ffff_ff53_4d42), Some("SMB"));
        // ext4, xfs, btrfs, tmpfs, overlayfs
        for magic in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert_eq!(network_file_system(magic), None, "{magic:x}");
        }
    }
}
