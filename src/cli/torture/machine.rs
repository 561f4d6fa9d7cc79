//! How the machine itself does meanwhile: a thread that wants to run ten times a second, and to sync a few bytes to the
//! same disk. Where either takes seconds, so does everything else, and a long gap says nothing about the cluster.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::TortureFailure;
use crate::clock;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// The watch, until it is asked.
#[derive(Debug)]
pub(super) struct Watch {
    /// Dropped to end the thread.
    stop: Sender<()>,
    thread: JoinHandle<Stalls>,
}

/// The longest times that the machine stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stalls {
    /// A thread that should run did not.
    pub(super) processor: Duration,
    /// A small write took to be synced.
    pub(super) disk: Duration,
}

impl Stalls {
    /// The longer of the two.
    pub(super) fn longest(&self) -> Duration {
        self.processor.max(self.disk)
    }
}

/// As it is printed, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct InMillis {
    processor_ms: u128,
    disk_ms: u128,
}

impl From<Stalls> for InMillis {
    fn from(stalls: Stalls) -> InMillis {
        InMillis { processor_ms: stalls.processor.as_millis(), disk_ms: stalls.disk.as_millis() }
    }
}

impl Watch {
    /// Begins; writes to a file in `directory`.
    pub(super) fn start(directory: &Path) -> Result<Watch, TortureFailure> {
        let path = directory.join("watch");
        let fail = |error| TortureFailure::Directory(path.clone(), error);
        let mut file = File::create(&path).map_err(fail)?;
        let (stop, stopped) = mpsc::channel();
        let watching = move || {
            let mut stalls = Stalls::default();
            let mut due = clock::now() + INTERVAL;
            while stopped.recv_timeout(due.saturating_duration_since(clock::now()))
                == Err(RecvTimeoutError::Timeout)
            {
                let began = clock::now();
                stalls.processor = stalls.processor.max(began.saturating_duration_since(due));
                // A disk that fails will be heard of from the nodes.
                let _ = file
                    .rewind()
                    .and_then(|()| file.write_all(b"still here"))
                    .and_then(|()| file.sync_data());
                stalls.disk = stalls.disk.max(began.elapsed());
                due = clock::now() + INTERVAL;
            }
            stalls
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(watching).map_err(fail)?;
        Ok(Watch { stop, thread })
    }

    /// Ends it; answers with what it saw.
    pub(super) fn end(self) -> Stalls {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watch_measures_the_disk_and_ends_when_it_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::start(directory.path()).unwrap();
        let file = directory.path().join("watch");
        while std::fs::metadata(&file).unwrap().len() == 0 {
            std::thread::yield_now();
        }
        assert!(watch.end().disk > Duration::ZERO);
    }
}
