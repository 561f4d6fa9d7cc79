//! A disk that can be filled to the last byte without harm to anything else: a small file system in memory, mounted for
//! the run. Only root may mount one. Without that right there is no way to fill a disk that stays within bounds.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::TortureFailure;
use super::faults::{Kind, Stop, Torturer};
use crate::check::{Freshness, Key, Request};

/// Enough for three nodes with short logs and the load's few keys.
const MEBIBYTES: u32 = 1024;

/// A mounted file system; gone with this value.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Mounts one at a directory, which is made.
    pub(super) fn mount(root: &Path) -> Result<Disk, TortureFailure> {
        std::fs::create_dir_all(root).map_err(|error| TortureFailure::Directory(root.to_owned(), error))?;
        let size = format!("size={MEBIBYTES}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(root).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Disk { root: root.to_owned() }),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(TortureFailure::NoDisk(said))
            }
            Err(error) => Err(TortureFailure::NoDisk(error.to_string())),
        }
    }

    /// Where the cluster goes.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn filler(&self) -> PathBuf {
        self.root.join("of-another-program")
    }

    /// Takes everything that is free, to the last byte.
    fn fill(&self) -> std::io::Result<()> {
        let mut file = File::options().create(true).append(true).open(self.filler())?;
        for size in [1 << 20, 4096, 1] {
            let piece = vec![b'x'; size];
            while file.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    fn make_room(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.filler())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still have files there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.root).output();
    }
}

impl Torturer<'_> {
    /// On a full disk reads and deletes go on, also after the leader has died and when it has come back.
    pub(super) async fn fill_disk(&mut self, lasting: Duration, kills_leader: bool) -> Result<String, Stop> {
        let Some(disk) = self.disk else { return Ok("no disk to fill".to_owned()) };
        let failed = |error| TortureFailure::Directory(disk.root.clone(), error);
        let leader = self.whole().await?;
        let all: Vec<usize> = (0..self.cluster.len()).collect();
        self.disturb(&all);
        self.strike(Kind::FullDisk);
        disk.fill().map_err(failed)?;
        let served = self.serve_without_room(leader, lasting, kills_leader).await;
        disk.make_room().map_err(failed)?;
        served?;
        let how = if kills_leader { ", killed the leader meanwhile" } else { "" };
        Ok(format!("filled the disk for {} ms{how}", lasting.as_millis()))
    }

    async fn serve_without_room(
        &mut self,
        leader: usize,
        lasting: Duration,
        kills_leader: bool,
    ) -> Result<(), Stop> {
        let read = Request::get(Key(0), Freshness::Linearizable);
        let delete = Request::Delete { key: Key(0) };
        tokio::time::sleep(lasting).await;
        self.demand(read, "a read on a full disk").await?;
        self.demand(delete, "a delete on a full disk").await?;
        if kills_leader {
            self.kill(&[leader])?;
            self.demand(delete, "a delete on a full disk after the leader's death").await?;
            self.bring_back(&[leader], Duration::ZERO).await?;
            self.demand(read, "a read on a full disk after the leader's return").await?;
            self.demand(delete, "a delete on a full disk after the leader's return").await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_filled_has_no_byte_left_and_then_room_again() {
        let directory = tempfile::tempdir().unwrap();
        let disk = match Disk::mount(&directory.path().join("disk")) {
            Ok(disk) => disk,
            Err(refused) => {
                eprintln!("SKIPPED, NOTHING IS SHOWN: {refused}");
                return;
            }
        };
        let other = disk.root().join("other");
        disk.fill().unwrap();
        assert!(std::fs::write(&other, "x").is_err());
        disk.make_room().unwrap();
        std::fs::write(&other, "x").unwrap();
        drop(disk);
        assert!(!other.exists(), "it is unmounted");
    }
}
