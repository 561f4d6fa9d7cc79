//! Looks at the data directory of a node that does not run, and changes nothing in it: no torn tail is cut, no recovery
//! is written, no lock file made. What cannot be read is said in words, and the rest is still shown.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::directory::{self, DirectoryError};
use super::engine::refusal_of;
use super::identity;
use super::link::ENTRIES_BYTES;
use super::log::{self, LogReader, Position, Recovered};
use super::promise::Promise;
use super::snapshot;
use super::state::StateBackend;
use crate::disk::{self, Disk, DiskFile, Job};
use crate::kv;
use crate::proto::replcluster::mutation;
use crate::view::{ClusterId, Incarnation, Index, NodeId};

/// The log as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFound {
    /// What comes before the first entry.
    pub base: Position,
    /// The last entry.
    pub last: Position,
    /// The highest commit index that an entry carries.
    pub commit: Index,
    /// Bytes of a torn tail.
    pub torn_bytes: u64,
}

/// The state as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFound {
    /// The last entry applied.
    pub applied: Position,
    /// The revision after it.
    pub revision: i64,
    /// What the log may hold behind it (R37).
    pub feature_level: u32,
}

/// An entry of the log as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFound {
    /// Where it stands.
    pub position: Position,
    /// Length of its payload, in bytes.
    pub bytes: usize,
    /// What it is, in words.
    pub what: &'static str,
    /// Why every node refuses it.
    pub refused: Option<String>,
}

/// A directory as found.
#[derive(Debug)]
pub struct Found {
    /// Which.
    pub path: PathBuf,
    /// Whose it is: address, incarnation, and cluster once it has one. `None` for a new one.
    pub identity: Option<(NodeId, Incarnation, Option<ClusterId>)>,
    /// Promise, newest view, and commit mark.
    pub promise: Promise,
    /// Its log.
    pub log: Option<LogFound>,
    /// Its state.
    pub state: Option<StateFound>,
    /// Entries behind the state: the next to be applied, and some that every node refuses; and the one asked for.
    pub entries: Vec<EntryFound>,
    /// The newest time of its log and state files: for people only.
    pub written_at: Option<SystemTime>,
    /// What is wrong, in words.
    pub damage: Vec<String>,
    /// What was set aside in it.
    pub aside: Vec<Found>,
}

impl Found {
    /// A node would start on it, and it has belonged to a cluster.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let belongs = self.identity.as_ref().is_some_and(|(_, _, cluster)| cluster.is_some());
        belongs && self.damage.is_empty() && self.log.is_some() && self.state.is_some()
    }

    /// Everything up to here is known to be committed.
    #[must_use]
    pub fn commit(&self) -> Index {
        let of_log = self.log.as_ref().map_or(Index(0), |log| log.commit);
        let of_state = self.state.as_ref().map_or(Index(0), |state| state.applied.index);
        self.promise.commit.max(of_log).max(of_state)
    }
}

/// Looks at what a directory has promised and seen, and not at its log and state, which takes a moment however much they
/// hold.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_promise(path: &Path) -> Result<Found, DirectoryError> {
    if let Err(source) = fs::read_dir(path) {
        return Err(DirectoryError::Io { path: path.to_owned(), source });
    }
    inspect_one(path, Depth::Promise, None)
}

/// Looks at a directory, and at what was set aside in it.
///
/// # Errors
/// [`DirectoryError::InUse`] while a node works in it; [`DirectoryError::Io`] where there is none.
pub fn inspect(path: &Path) -> Result<Found, DirectoryError> {
    inspect_entry(path, None)
}

/// As [`inspect`], and also at one entry of the log.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_entry(path: &Path, entry: Option<Index>) -> Result<Found, DirectoryError> {
    let io = |source| DirectoryError::Io { path: path.to_owned(), source };
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    let mut found = inspect_one(path, Depth::Everything, entry)?;
    let mut aside: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_prefix(identity::ASIDE).and_then(|number| number.parse().ok()))
        .collect();
    aside.sort_unstable();
    for number in aside {
        let place = path.join(format!("{}{number}", identity::ASIDE));
        match inspect_one(&place, Depth::Everything, None) {
            Ok(old) => found.aside.push(old),
            Err(error) => found.damage.push(first_line(&error)),
        }
    }
    Ok(found)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Promise,
    Everything,
}

fn inspect_one(path: &Path, depth: Depth, asked: Option<Index>) -> Result<Found, DirectoryError> {
    // Held until everything is read, so that no node starts meanwhile.
    let look = directory::look(&ReadOnly, path)?;
    let mut damage = Vec::new();
    let mut note = |error: &dyn std::fmt::Display| damage.push(first_line(error));
    let identity = look.identity.unwrap_or_else(|error| {
        note(&error);
        None
    });
    let promise = look.promise.unwrap_or_else(|error| {
        note(&error);
        Promise::default()
    });
    let (log_path, state_path) = (path.join("log"), path.join("state.redb"));
    if depth == Depth::Promise {
        let path = path.to_owned();
        let (log, state, written_at, aside, entries) = (None, None, None, Vec::new(), Vec::new());
        return Ok(Found { path, identity, promise, log, state, entries, written_at, damage, aside });
    }
    let log = if log_path.is_dir() {
        match log::look(&ReadOnly, &log_path, promise.commit) {
            Ok(log) => Some(log),
            Err(error) => {
                note(&error);
                None
            }
        }
    } else {
        None
    };
    let state = if state_path.exists() {
        match look_at_state(path) {
            Ok(state) => Some(state),
            Err(error) => {
                note(&error);
                None
            }
        }
    } else {
        None
    };
    if promise.view.is_some() {
        for (missing, name) in [(!log_path.is_dir(), "log"), (!state_path.exists(), "state.redb")] {
            if missing {
                note(&format!("{} is missing, and the node has seen a view", path.join(name).display()));
            }
        }
    }
    let entries = match (&log, &state) {
        (Some((recovered, reader)), Some(state)) => entries(reader, state, recovered.last.index, asked),
        (Some(_) | None, Some(_) | None) => Vec::new(),
    };
    let log = match (log, &state) {
        (Some((recovered, reader)), Some(state)) => match fit(recovered, &reader, state, promise.commit) {
            Ok(log) => Some(log),
            Err((log, why)) => {
                note(&why);
                Some(log)
            }
        },
        (Some((recovered, _)), None) => Some(as_found(recovered)),
        (None, _) => None,
    };
    let written_at = written_at(&log_path, &state_path);
    let (path, aside) = (path.to_owned(), Vec::new());
    Ok(Found { path, identity, promise, log, state, entries, written_at, damage, aside })
}

/// So many entries that every node refuses are named.
const REFUSED_NAMED: usize = 16;

/// What a start meets behind the state. An entry that cannot be read from the disk is named elsewhere, as damage.
fn entries(reader: &LogReader, state: &StateFound, last: Index, asked: Option<Index>) -> Vec<EntryFound> {
    let mut found: Vec<EntryFound> = Vec::new();
    let mut refused = 0;
    if let Some(asked) = asked.filter(|asked| *asked <= state.applied.index) {
        visit(reader, asked, asked, &mut |position, payload| found.push(entry(position, payload, state)));
    }
    visit(reader, state.applied.index.next(), last, &mut |position, payload| {
        let entry = entry(position, payload, state);
        let names = entry.refused.is_some() && refused < REFUSED_NAMED;
        refused += usize::from(names);
        if names || position.index == state.applied.index.next() || asked == Some(position.index) {
            found.push(entry);
        }
    });
    found
}

fn visit(reader: &LogReader, first: Index, last: Index, each: &mut dyn FnMut(Position, &Bytes)) {
    let mut first = first;
    while first <= last {
        let Ok(Some((mut frames, end))) = reader.read(first, ENTRIES_BYTES) else { return };
        while let Ok(Some((record, chain))) = log::decode(&mut frames) {
            if record.index > last {
                return;
            }
            each(Position { index: record.index, epoch: record.epoch, chain }, &record.payload);
        }
        first = end.index.next();
    }
}

fn entry(position: Position, payload: &Bytes, state: &StateFound) -> EntryFound {
    // The level may be raised between the state and this entry; what is refused for its level only is not named then.
    let refused = refusal_of(payload, state.feature_level).map(|refusal| refusal.to_string());
    let what = match kv::decode(payload, state.feature_level).map(|mutation| mutation.request) {
        _ if payload.is_empty() => "the opening of an epoch",
        Ok(Some(mutation::Request::Put(_))) => "a put",
        Ok(Some(mutation::Request::DeleteRange(_))) => "a delete",
        Ok(Some(mutation::Request::Txn(_))) => "a transaction",
        Ok(Some(mutation::Request::Compact(_))) => "a compaction",
        Ok(Some(mutation::Request::Space(_))) => "the space alarm",
        Ok(Some(mutation::Request::FeatureLevel(_))) => "a feature level",
        Ok(None) => "of a kind that this build does not know",
        Err(_) => "nothing that can be read",
    };
    EntryFound { position, bytes: payload.len(), what, refused }
}

fn look_at_state(directory: &Path) -> Result<StateFound, String> {
    let backend = StateBackend::look(directory).map_err(|error| error.to_string())?;
    let store = kv::Store::open(backend).map_err(|error| format!("state.redb is damaged: {error}"))?;
    Ok(StateFound {
        applied: snapshot::applied_of(&store),
        revision: store.revision(),
        feature_level: store.feature_level(),
    })
}

fn as_found(recovered: Recovered) -> LogFound {
    let Recovered { base, last, commit, torn_bytes, .. } = recovered;
    LogFound { base, last, commit, torn_bytes }
}

/// Does the state belong to the log, as a start would see it? Else the log, and what is wrong.
fn fit(
    recovered: Recovered,
    reader: &LogReader,
    state: &StateFound,
    promised_commit: Index,
) -> Result<LogFound, (LogFound, String)> {
    let applied = state.applied;
    let staged = recovered.staged;
    let log = as_found(recovered);
    if applied.index >= log.base.index
        && (reader.position(applied.index) == Some(applied) || is_start(&log, applied))
    {
        return Ok(log);
    }
    let known = log.commit.max(promised_commit);
    if staged != Some(applied) && applied.index > log.last.index {
        let why = format!(
            "state.redb holds everything up to entry {}, and the log ends at {}: the end of the log is missing",
            applied.index, log.last.index
        );
        return Err((log, why));
    }
    if staged != Some(applied) {
        let why = format!(
            "state.redb holds everything up to entry {}, but the log begins after {} and entries up to {known} were committed here",
            applied.index, log.base.index
        );
        return Err((log, why));
    }
    // A snapshot was put in place, and the log not yet begun after it: the next start does that.
    Ok(LogFound { base: applied, last: applied, commit: applied.index.max(known), torn_bytes: 0 })
}

/// A log without a segment begins with nothing, as does its state.
fn is_start(log: &LogFound, applied: Position) -> bool {
    applied == Position::default() && log.base == applied
}

/// Newest among the files that entries and state go to.
fn written_at(log: &Path, state: &Path) -> Option<SystemTime> {
    let segments = fs::read_dir(log).into_iter().flatten().flatten().map(|entry| entry.path());
    let written = segments.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    written.chain([state.to_owned()]).filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max()
}

fn first_line(error: &(impl std::fmt::Display + ?Sized)) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The host's file system, opened for reading only.
#[derive(Debug, Clone, Copy)]
struct ReadOnly;

struct ReadOnlyFile(File);

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this directory is only looked at")
}

impl DiskFile for ReadOnlyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        disk::read_as_much_as_there_is(&self.0, buffer, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(refused())
    }

    fn sync(&self) -> io::Result<()> {
        Err(refused())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Disk for ReadOnly {
    fn make_directory(&self, _: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        disk::list(path)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        if create { Err(refused()) } else { Ok(Arc::new(ReadOnlyFile(File::open(path)?))) }
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Err(refused())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Err(refused())
    }

    fn in_background(&self, job: Job) {
        drop(job); // everything that is put off here would write
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::BytesMut;

    use super::super::directory::DataDirectory;
    use super::super::log::{Log, Record, encode};
    use super::*;
    use crate::disk::RealDisk;
    use crate::kv::Backend as _;
    use crate::view::{Epoch, View};

    fn node() -> NodeId {
        NodeId::parse("127.0.0.1:2379").unwrap()
    }

    /// A directory with `count` entries, all of them applied up to `applied`.
    fn make(path: &Path, count: u64, applied: u64) {
        let directory = DataDirectory::open(path, &node()).unwrap();
        let own = BTreeMap::from([(node(), directory.incarnation())]);
        let view = View {
            cluster: ClusterId(9),
            epoch: Epoch(4),
            leader: node(),
            led_since: Epoch(4),
            in_sync: own.clone(),
            members: own,
            floor: Index(0),
            recovered: Epoch(0),
            previous: crate::view::Checksum(0),
        };
        directory.save_promise(Epoch(5), Some(&view), Index(1)).unwrap();
        let (mut log, _) = Log::open(RealDisk, &path.join("log"), Index(0)).unwrap();
        let mut store = StateBackend::open(path).unwrap();
        let mut last = Position::default();
        let mut buffer = BytesMut::new();
        for index in 1..=count {
            let record = Record {
                epoch: Epoch(4),
                index: Index(index),
                commit: Index(index - 1),
                origin: 1,
                sequence: index,
                payload: bytes::Bytes::from_static(b"payload"),
            };
            let chain = encode(&mut buffer, &record, last.chain);
            last = Position { index: Index(index), epoch: Epoch(4), chain };
            if index == applied {
                store.put_meta(snapshot::APPLIED, snapshot::encode_position(last));
            }
        }
        log.append(&buffer.freeze(), last).unwrap();
        log.sync().unwrap();
        if let Some(job) = store.begin_flush() {
            job.run().unwrap();
        }
    }

    /// Every file with its content.
    fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(contents(&path));
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        found
    }

    fn segment(path: &Path) -> PathBuf {
        fs::read_dir(path.join("log")).unwrap().next().unwrap().unwrap().path()
    }

    #[test]
    fn everything_is_found_and_nothing_is_changed() {
        let parent = tempfile::tempdir().unwrap();
        make(parent.path(), 7, 3);
        // A torn tail that a start would cut.
        let mut bytes = fs::read(segment(parent.path())).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        bytes[end..end + 30].copy_from_slice(&[0xab; 30]);
        fs::write(segment(parent.path()), &bytes).unwrap();
        let before = contents(parent.path());
        let found = inspect(parent.path()).unwrap();
        assert_eq!(contents(parent.path()), before);
        assert_eq!(found.damage, Vec::<String>::new());
        assert!(found.is_usable());
        let (address, _, cluster) = found.identity.clone().unwrap();
        assert_eq!((address, cluster), (node(), Some(ClusterId(9))));
        assert_eq!((found.promise.promised, found.commit()), (Epoch(5), Index(6)));
        let log = found.log.unwrap();
        assert_eq!((log.last.index, log.last.epoch, log.torn_bytes), (Index(7), Epoch(4), 30));
        assert_eq!(found.state.unwrap().applied.index, Index(3));
        assert!(found.written_at.is_some());
    }

    #[test]
    fn a_directory_in_use_is_not_looked_into_and_a_missing_one_is_an_error() {
        let parent = tempfile::tempdir().unwrap();
        let _held = DataDirectory::open(parent.path(), &node()).unwrap();
        let error = inspect(parent.path()).unwrap_err();
        assert!(error.is_conflict() && error.to_string().contains("pid "), "{error}");
        assert!(inspect(&parent.path().join("nowhere")).is_err());
    }

    #[test]
    fn an_empty_directory_holds_nothing_and_is_not_damaged() {
        let parent = tempfile::tempdir().unwrap();
        let found = inspect(parent.path()).unwrap();
        assert!(found.identity.is_none() && found.damage.is_empty() && !found.is_usable());
        assert!(contents(parent.path()).is_empty());
    }

    #[test]
    fn of_a_damaged_directory_the_rest_is_shown() {
        let parent = tempfile::tempdir().unwrap();
        make(parent.path(), 7, 3);
        let mut bytes = fs::read(segment(parent.path())).unwrap();
        let at = bytes.windows(7).position(|window| window == b"payload").unwrap();
        bytes[at] ^= 1;
        fs::write(segment(parent.path()), &bytes).unwrap();
        fs::write(parent.path().join("promise"), vec![7; 131_072]).unwrap();
        let found = inspect(parent.path()).unwrap();
        assert!(!found.is_usable());
        assert_eq!(found.damage.len(), 2, "{:?}", found.damage);
        assert!(found.damage[1].contains("the log is damaged"), "{:?}", found.damage);
        assert_eq!(found.state.unwrap().applied.index, Index(3), "the state can still be read");
    }

    #[test]
    fn what_was_set_aside_is_shown_too() {
        let parent = tempfile::tempdir().unwrap();
        make(parent.path(), 7, 3);
        DataDirectory::open(parent.path(), &node()).unwrap().set_aside().unwrap();
        let found = inspect(parent.path()).unwrap();
        assert!(!found.is_usable());
        assert_eq!(found.aside.len(), 1);
        assert!(found.aside[0].is_usable());
    }
}
