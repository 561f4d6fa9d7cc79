//! What a register does when nothing waits: lines in the lineage, old views, room for new ones.

use std::io::ErrorKind;
use std::path::Path;

use super::{Entries, FileRegister, KEPT};
use crate::disk::Disk;
use crate::register::lineage::Replaced;
use crate::register::{RegisterError, room};
use crate::rules::Rule;
use crate::view::{Checksum, Epoch};

/// How many views stay where there is no room for spares: the room of the others is used again.
const KEPT_WHEN_SHORT: u64 = 8;

impl<D: Disk> FileRegister<D> {
    /// What is done when nothing waits: see [`crate::register::Register::tidy`].
    pub(super) fn tidy_up(&self) -> Result<(), RegisterError> {
        self.check_opened()?;
        let (_, entries) = self.recorded_and_found()?;
        if entries.highest() < self.seen_epoch() {
            return Ok(()); // it went back: what is there is not ours to change
        }
        let recorded = self.record(&entries);
        self.prune(&entries, KEPT);
        // Making one takes a moment: so many are left over.
        if entries.making.len() > room::SPARES {
            for name in &entries.making {
                let _ = self.place.disk.remove(&self.place.path.join(name));
            }
        }
        let spares = self.entries()?.spares;
        let replenished = self.room().replenish(&self.place, &spares);
        if replenished.as_ref().is_err_and(room::is_shortage) {
            self.prune(&entries, KEPT_WHEN_SHORT);
        }
        recorded?;
        replenished.map_err(self.io("keeping room for views in"))
    }

    /// Writes down what views there are, once their names are on the disk.
    pub(super) fn record(&self, entries: &Entries) -> Result<(), RegisterError> {
        let failed = self.io("writing the lineage in");
        let mut lineage = self.lineage();
        if let Err(Replaced) = lineage.latest(&self.place).map_err(&failed)? {
            return Err(self.replaced("its lineage was cut or is another file"));
        }
        // From the newest down to the first gap: what lies below one is a late swapper's, or from before a view that an
        // operator made.
        let run = entries.views.iter().rev().zip((0..=entries.highest().0).rev());
        let run = run.take_while(|(epoch, expected)| epoch.0 == *expected).map(|(epoch, _)| *epoch);
        let missing = run.filter(|epoch| !lineage.has(*epoch));
        let mut lines: Vec<(Epoch, Checksum)> =
            missing.filter_map(|epoch| Some((epoch, self.view_of(epoch)?.checksum()))).collect();
        lines.reverse();
        if !lines.is_empty() {
            self.sync_names(Rule::SyncBeforeRecord)?;
        }
        lineage.append(&self.place, &entries.lineages, &lines).map_err(&failed)?;
        Ok(())
    }

    /// Forgets old views that are recorded, lowest first: the proof in [`Register::has_newer`] rests on that order, so the
    /// first that cannot be removed ends it.
    pub(super) fn prune(&self, entries: &Entries, kept: u64) {
        let recorded = self.lineage().durable();
        let ours = self.room().kept().map(Path::to_owned);
        for (epoch, name) in &entries.unfinished {
            // Its name is taken.
            let path = self.place.path.join(name);
            if *epoch <= entries.highest() && Some(&path) != ours.as_ref() {
                let _ = self.place.disk.remove(&path);
            }
        }
        let line = Epoch(entries.highest().0.saturating_sub(kept)).min(recorded);
        let mut spares = entries.spares.len();
        for epoch in entries.views.iter().take_while(|epoch| **epoch <= line) {
            let path = self.view_path(*epoch);
            // Its room is never free for others while it is wanted for the next views.
            let forgotten = if spares < room::SPARES {
                spares += 1;
                self.place.disk.rename(&path, &self.place.path.join(room::spare_name()))
            } else {
                self.place.disk.remove(&path)
            };
            match forgotten {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an old view stays");
                    return;
                }
            }
        }
    }
}
