//! The register put back to an older copy, as a restored backup does it, while the leader that stood in the copy sleeps or
//! is dead. Nothing need be served meanwhile, and a node may refuse to go on; but nothing acknowledged is lost, and no two
//! nodes lead in one epoch. Then the newer copy comes back, nodes that had opened the other are started anew, and
//! everything is there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::TortureFailure;
use super::faults::{Kind, Stop, Torturer};
use crate::clock;
use crate::proto::replcluster::DescribeResponse;
use crate::proto::replcluster::describe_response::Role;

/// How often the nodes are asked who leads.
const LOOK: Duration = Duration::from_millis(20);

/// What is done, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rollback {
    pub(super) leader_dies: bool,
    pub(super) way: Way,
    pub(super) lasting: Duration,
}

/// How a copy is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// File by file, the locks left as they are.
    InPlace,
    /// The directory is replaced, and so are the locks.
    AnotherDirectory,
}

impl Torturer<'_> {
    pub(super) async fn roll_back(&mut self, rollback: Rollback) -> Result<String, Stop> {
        let leader = self.whole().await?;
        let register = self.cluster.register();
        let failed = |error| Stop::Failed(TortureFailure::Directory(register.clone(), error));
        let (older, newer) = (beside(&register, "older"), beside(&register, "newer"));
        for path in [&older, &newer] {
            remove(path).map_err(failed)?;
        }
        copy(&register, &older).map_err(failed)?;
        let all: Vec<usize> = (0..self.cluster.len()).collect();
        self.disturb(&all);
        let struck = self.strike(Kind::RegisterRollback);
        if rollback.leader_dies {
            self.kill(&[leader])?;
        } else {
            self.cluster.signal(leader, Signal::SIGSTOP)?;
        }
        self.acknowledged(struck, "the survivors").await?;
        self.forgives_ends = true;
        match rollback.way {
            Way::InPlace => copy(&register, &newer).and_then(|()| put_back(&older, &register)),
            Way::AnotherDirectory => {
                fs::rename(&register, &newer).and_then(|()| fs::rename(&older, &register))
            }
        }
        .map_err(failed)?;
        if rollback.leader_dies {
            self.bring_back(&[leader], Duration::ZERO).await?;
        } else {
            self.cluster.signal(leader, Signal::SIGCONT)?;
        }
        self.watch_leaders(rollback.lasting).await;
        match rollback.way {
            Way::InPlace => put_back(&newer, &register),
            Way::AnotherDirectory => {
                fs::rename(&register, &older).and_then(|()| fs::rename(&newer, &register))
            }
        }
        .map_err(failed)?;
        // Who has opened the older one, or a file that was replaced, has to open the register anew.
        let anew = match rollback.way {
            Way::InPlace => all,
            Way::AnotherDirectory if rollback.leader_dies => vec![leader],
            Way::AnotherDirectory => Vec::new(),
        };
        self.restart_ended().await?;
        self.kill(&anew)?;
        self.bring_back(&anew, Duration::ZERO).await?;
        let whole = self.whole().await;
        self.forgives_ends = false;
        whole?;
        let leader = self.names(&[leader]);
        let end = if rollback.leader_dies { "killed" } else { "stopped" };
        Ok(format!("{end} {leader} and put the register back for {} ms", rollback.lasting.as_millis()))
    }

    /// Notes where two nodes say that they lead in one epoch.
    async fn watch_leaders(&mut self, lasting: Duration) {
        let began = clock::now();
        let mut leaders = Leaders::default();
        while began.elapsed() < lasting {
            for said in self.cluster.descriptions().await {
                self.done.violations.extend(leaders.note(&said));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Who has led in which epoch.
#[derive(Debug, Default)]
struct Leaders(BTreeMap<u64, String>);

impl Leaders {
    /// The violation that lies in what a node says of itself.
    fn note(&mut self, said: &DescribeResponse) -> Option<String> {
        if said.role() != Role::Leader || !said.ready {
            return None;
        }
        let leader = self.0.entry(said.epoch).or_insert_with(|| said.address.clone());
        (*leader != said.address)
            .then(|| format!("{leader} and {} both lead in epoch {}", said.address, said.epoch))
    }
}

fn beside(register: &Path, name: &str) -> std::path::PathBuf {
    register.with_file_name(format!("register-{name}"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A copy of a directory with everything in it. What is removed by others meanwhile is left out.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let copied = if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), &target).map(drop)
        };
        match copied {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Makes the files of a register those of a copy: removes what is not in it, replaces the rest. Locks stay.
fn put_back(copy: &Path, register: &Path) -> io::Result<()> {
    for entry in fs::read_dir(register)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && !copy.join(entry.file_name()).exists() {
            fs::remove_file(entry.path())?;
        }
    }
    for entry in fs::read_dir(copy)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let target = register.join(entry.file_name());
            let unfinished = register.join("being-put-back");
            fs::copy(entry.path(), &unfinished)?;
            fs::rename(&unfinished, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_one_epoch_are_a_violation_and_of_two_are_none() {
        let said = |address: &str, epoch, ready| DescribeResponse {
            address: address.to_owned(),
            epoch,
            ready,
            role: Role::Leader.into(),
            ..Default::default()
        };
        let mut leaders = Leaders::default();
        assert_eq!(leaders.note(&said("a:1", 4, true)), None);
        assert_eq!(leaders.note(&said("a:1", 4, true)), None);
        assert_eq!(leaders.note(&said("b:1", 5, true)), None);
        assert_eq!(leaders.note(&said("b:1", 4, false)), None, "it does not serve");
        assert!(leaders.note(&said("b:1", 4, true)).unwrap().contains("a:1 and b:1"));
    }

    #[test]
    fn a_register_put_back_is_the_copy_and_its_locks_stay() {
        let directory = tempfile::tempdir().unwrap();
        let register = directory.path().join("register");
        fs::create_dir_all(register.join("nodes")).unwrap();
        fs::write(register.join("nodes/lock"), "1").unwrap();
        fs::write(register.join("view-1"), "one").unwrap();
        let older = beside(&register, "older");
        copy(&register, &older).unwrap();
        fs::write(register.join("view-1"), "changed").unwrap();
        fs::write(register.join("view-2"), "two").unwrap();
        fs::write(register.join("nodes/lock"), "2").unwrap();
        put_back(&older, &register).unwrap();
        assert_eq!(fs::read_to_string(register.join("view-1")).unwrap(), "one");
        assert!(!register.join("view-2").exists());
        assert_eq!(fs::read_to_string(register.join("nodes/lock")).unwrap(), "2");
        assert_eq!(fs::read_dir(&register).unwrap().count(), 2, "nothing is left over");
    }
}
