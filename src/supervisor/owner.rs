//! Which user a cluster's directory belongs to. Files that root makes in a user's directory would lock that user out of every verb, so
//! root starts nothing there; and the little that a verb of root's writes beside a living cluster of the user's is given
//! to the user.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, User, geteuid};

/// Why this user must not start anything in a cluster's directory; `None` where it may.
#[must_use]
pub fn refusal(directory: &Path) -> Option<String> {
    let place = existing(directory);
    let owner = Uid::from_raw(fs::metadata(place).ok()?.uid());
    // An owner without a name has no login that could be locked out: a container sees the numbers of its host.
    let name = User::from_uid(owner).ok().flatten()?.name;
    (geteuid().is_root() && !owner.is_root()).then(|| {
        format!(
            "{} belongs to {name} (uid {owner}), and what root makes there would lock {name} out of every verb\n\
             run it as that user (sudo -u {name} replcluster up), or set data_dir to a directory of root's",
            place.display()
        )
    })
}

/// What to do about a file that may not be read or written: its owner, and how to go on.
#[must_use]
pub fn advice(path: &Path) -> String {
    let place = existing(path);
    let owner = fs::metadata(place).ok().map(|metadata| Uid::from_raw(metadata.uid()));
    match owner.filter(|owner| *owner != geteuid()) {
        None => "check that you are the user who started it".to_owned(),
        Some(owner) => {
            let name = User::from_uid(owner).ok().flatten().map_or(format!("uid {owner}"), |user| user.name);
            format!(
                "{} belongs to {name}: run the command as that user, or end the cluster as that user and give you its \
                 directory with chown -R",
                place.display()
            )
        }
    }
}

/// Gives a file that root has made to the owner of the directory it lies in.
///
/// # Errors
/// What the system said.
pub fn like_directory(file: &File, path: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let directory = fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (directory.uid(), directory.gid()) || own.uid() != 0 {
        return Ok(());
    }
    let (owner, group) = (Uid::from_raw(directory.uid()), Gid::from_raw(directory.gid()));
    nix::unistd::fchown(file, Some(owner), Some(group)).map_err(io::Error::from)
}

/// The path itself, or the nearest directory above it that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|place| place.exists()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_refused_in_a_directory_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(refusal(&directory.path().join("not/there/yet")), None);
        assert!(advice(directory.path()).contains("the user who started it"));
    }

    #[test]
    fn root_starts_nothing_in_a_users_directory_and_gives_away_what_it_writes_there() {
        if !geteuid().is_root() {
            return;
        }
        let nobody = User::from_name("nobody").unwrap().expect("every system has it");
        let directory = tempfile::tempdir().unwrap();
        nix::unistd::chown(directory.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
        let refused = refusal(&directory.path().join(".replcluster")).unwrap();
        assert!(refused.contains("belongs to nobody") && refused.contains("sudo -u nobody"), "{refused}");
        assert!(advice(&directory.path().join("x")).contains("belongs to nobody"));
        let path = directory.path().join("events.jsonl");
        let file = File::create(&path).unwrap();
        like_directory(&file, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), nobody.uid.as_raw());
    }
}
