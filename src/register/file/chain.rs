//! Whether two views belong to one chain (R11).

use super::FileRegister;
use crate::disk::Disk;
use crate::register::RegisterError;
use crate::register::lineage::Lineage;
use crate::rules::{Rule, breaks};
use crate::view::{Checksum, Epoch, View, ViewId};

impl<D: Disk> FileRegister<D> {
    /// R11: `newest` is what the chain of views holds that `known` is in.
    pub(super) fn check_chain(&self, known: ViewId, newest: &View) -> Result<(), RegisterError> {
        let fork = || RegisterError::Forked {
            path: self.place.path.clone(),
            known: known.epoch,
            newest: Box::new(newest.clone()),
        };
        let same = |checksum| if checksum == known.checksum { Ok(()) } else { Err(fork()) };
        // An operator has decided what counts since (R4).
        if newest.recovered > known.epoch || breaks(Rule::CheckAncestry) {
            return Ok(());
        }
        if newest.epoch < known.epoch {
            return Err(self.backwards(newest.epoch, known.epoch));
        }
        let (mut epoch, mut checksum, mut previous) = (newest.epoch, newest.checksum(), newest.previous);
        while epoch > known.epoch {
            let below = Epoch(epoch.0 - 1);
            // A view before this one that is damaged harms no more than one that is gone.
            let Some(seen) = self.load(below).ok().flatten() else {
                if below == known.epoch && previous != Checksum(0) {
                    return same(previous);
                }
                let names = self.entries()?.lineages;
                let recorded = Lineage::find(&self.place, &names, known.epoch)
                    .map_err(self.io("reading the lineage in"))?;
                // Older than anything that is recorded: nothing speaks against it.
                return recorded.map_or(Ok(()), same);
            };
            let found = seen.view.checksum();
            if previous != Checksum(0) && previous != found {
                return Err(fork());
            }
            (epoch, checksum, previous) = (below, found, seen.view.previous);
        }
        same(checksum)
    }

    /// Every line of the lineage.
    #[cfg(test)]
    pub(in crate::register) fn records(
        &self,
    ) -> Result<std::collections::BTreeMap<Epoch, Checksum>, RegisterError> {
        let names = self.entries()?.lineages;
        Lineage::all(&self.place, &names).map_err(self.io("reading the lineage in"))
    }
}
