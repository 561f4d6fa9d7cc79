//! What node and register must never leave out, each as a switch: a test turns one off and shows that the checks
//! notice. In a program every rule holds: outside of tests [`breaks`] is always false. The core has switches of its own
//! (`protocol::rules`), one node at a time; all together stand in a table in `mutations`.

/// A rule to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// R20: what is reported as durable was synced.
    SyncBeforeReport,
    /// R21: a failed sync is never retried.
    EndOnFailedSync,
    /// R22: what a segment's name stands for is on the disk before the name.
    SyncBeforeRename,
    /// R22: directories are synced after they have changed.
    SyncDirectories,
    /// R22: the names found at the start are durable before what they supersede is removed.
    SyncNamesFound,
    /// R22: the end of the log found at the start is on the disk before it is told to anybody.
    SyncTail,
    /// R21: it is written again before, because an earlier sync may have failed.
    RewriteTail,
    /// R22: the promise found at the start is written again and synced before it counts.
    RewritePromise,
    /// R5: a promise is durable when it is given.
    SyncPromise,
    /// R5: a promise never overwrites the one before it.
    TwoSlots,
    /// A promise is written twice, so that one flipped bit loses none.
    TwoCopies,
    /// R23: what the segment's head says to have been synced is not cut.
    TrustMark,
    /// R23: what was committed here is not cut.
    TrustCommit,
    /// R23: a record that no power cut can have left like that is not cut.
    TrustShape,
    /// R23: valid records after a bad one prove nothing.
    DoubtWhatFollows,
    /// R23: what remains of a torn tail never counts again.
    SupersedeTornTail,
    /// R12: the running checksum over the log is right.
    CheckChain,
    /// R14: segments are counted by their heads, before the superseded ones are read.
    SupersedeByHeads,
    /// R14: what takes the place of a fresh start is one itself.
    InheritFresh,
    /// Segments leave the front of the log one at a time, each for good before the next.
    DropInOrder,
    /// R25: after an append that found no room, nothing is written behind its remains.
    LeaveRemains,
    /// R25: a file is kept in reserve for when the disk is full.
    KeepReserve,
    /// R25: what is kept in reserve has its room on the disk.
    AllocateSpares,
    /// R34: what could not be made for want of something is tried again after a time.
    RetryAfterLack,
    /// R34: a missing descriptor, inode or the like is no failure of the disk.
    LackIsNoFailure,
    /// R34: a promise does not wait behind what finds no room.
    PromiseAhead,
    /// R34: what makes the state grow leaves the reserve to what must go on.
    SpareReserve,
    /// R25: what finds no room in the state is put off, and ends nothing.
    PutOffState,
    /// R22: what is flushed to the state is synced.
    SyncState,
    /// R22: the state's name is on the disk before the log drops what it holds.
    SyncStateName,
    /// R22: a new state is on the disk before it takes the old one's name.
    SyncNewState,
    /// R22: that name is on the disk before the old log is superseded.
    SyncPlacedState,
    /// R22: an identity is on the disk before it has its name.
    SyncIdentity,
    /// R22: an identity's name is on the disk before anybody hears of it.
    SyncIdentityName,
    /// R22: the directory for what is set aside is on the disk before anything is moved there.
    SyncAsideMade,
    /// R22: what is set aside is there before it leaves its place.
    SyncAside,
    /// R22: what was moved out of the data directory is in its new place for good.
    SyncMoved,
    /// R22: what is set aside has left its place before that is said.
    SyncLeft,
    /// R16: an entry does the same on every node.
    ApplyTheSame,
    /// R17: a leader's read is proved.
    ProveReads,
    /// R17: the proof is taken after the value was read.
    ProveAfterReading,
    /// R17: a follower asks the leader before it reads.
    AskLeader,
    /// R17: the leader's answer counts for no read that came after the question.
    AskAnew,
    /// R18: a leader that was replaced answers no question of a follower.
    AnswerOnlyAsLeader,
    /// R19: a leader takes each request once.
    TakeOnce,
    /// R19: a request is not given to a new leader before its opening shows what older ones have left.
    WaitForOpening,
    /// R25: room is looked for before the disk is full.
    WatchRoom,
    /// R1, R26: a view's name is given once.
    LinkOnce,
    /// R27: no child keeps a lock.
    CloseOnExec,
    /// R33: what is refused does not depend on whether an answer is wanted.
    RefuseAlike,
    /// R35: no reader sees a mutation before it is done.
    HideHalf,
    /// R35: what a reader that has paused may need is not removed.
    KeepForReaders,
    /// R31: who can do nothing does not call itself ready.
    ConfirmHealth,
    /// R32: a process is known by a random number, not by its process id.
    RandomSession,
    /// R32: a process id counts only in the pid namespace in which it was given.
    SamePidNamespace,
    /// R28: a copy of a lock file proves no death.
    NameLockFile,
    /// R22: a view is on the disk before it has its name.
    SyncViewFile,
    /// R22: a view's name is on the disk before its swap counts.
    SyncViewName,
    /// R22: so it is before anyone acts on a view that another process has swapped in.
    SyncViewRead,
    /// R22: and before its line is in the lineage.
    SyncBeforeRecord,
    /// R11: a view is forgotten only once its line in the lineage is on the disk.
    SyncLineage,
    /// R11: a new lineage file's name is on the disk before views are forgotten for it.
    SyncLineageName,
    /// R22: a directory is on the disk before anything is moved into it.
    SyncAsideName,
    /// R11: a register that was moved or replaced answers nothing.
    CheckDirectory,
    /// R11: a register whose lineage knows later epochs has lost views.
    CheckLineage,
    /// R11: what a reader knows is in the chain of what it finds.
    CheckAncestry,
    /// R34: files for views are kept in reserve.
    KeepSpares,
    /// R34: a view that not every reader could keep is refused before anything is promised.
    BoundViews,
    /// R37: the feature level is raised when every member knows it.
    RaiseTogether,
    /// R33: what a peer forwards is decoded before it is ordered.
    DecodeForwarded,
    /// R33: an entry that cannot be read is refused, and ends no node.
    RefuseUnreadable,
    /// R35: what is heavy is applied apart from the protocol.
    ApplyApart,
    /// R15: what an installed snapshot holds is published with it.
    PublishInstalled,
    /// R39: a verb acts on a role only where an in-sync node confirms it.
    ConfirmRoles,
    /// R39: a verdict looks at what other clients did before it calls a write lost.
    LookBack,
    /// R38: a peer shows that it knows the secret of the cluster.
    ProvePeers,
}

#[cfg(test)]
impl Rule {
    /// Every one.
    pub(crate) const ALL: &[Rule] = &[
        Rule::SyncBeforeReport,
        Rule::EndOnFailedSync,
        Rule::SyncBeforeRename,
        Rule::SyncDirectories,
        Rule::SyncNamesFound,
        Rule::SyncTail,
        Rule::RewriteTail,
        Rule::RewritePromise,
        Rule::SyncPromise,
        Rule::TwoSlots,
        Rule::TwoCopies,
        Rule::TrustMark,
        Rule::TrustCommit,
        Rule::TrustShape,
        Rule::DoubtWhatFollows,
        Rule::SupersedeTornTail,
        Rule::CheckChain,
        Rule::SupersedeByHeads,
        Rule::InheritFresh,
        Rule::DropInOrder,
        Rule::LeaveRemains,
        Rule::KeepReserve,
        Rule::AllocateSpares,
        Rule::RetryAfterLack,
        Rule::LackIsNoFailure,
        Rule::PromiseAhead,
        Rule::SpareReserve,
        Rule::PutOffState,
        Rule::SyncState,
        Rule::SyncStateName,
        Rule::SyncNewState,
        Rule::SyncPlacedState,
        Rule::SyncIdentity,
        Rule::SyncIdentityName,
        Rule::SyncAsideMade,
        Rule::SyncAside,
        Rule::SyncMoved,
        Rule::SyncLeft,
        Rule::ApplyTheSame,
        Rule::ProveReads,
        Rule::ProveAfterReading,
        Rule::AskLeader,
        Rule::AskAnew,
        Rule::AnswerOnlyAsLeader,
        Rule::TakeOnce,
        Rule::WaitForOpening,
        Rule::WatchRoom,
        Rule::LinkOnce,
        Rule::CloseOnExec,
        Rule::RefuseAlike,
        Rule::HideHalf,
        Rule::KeepForReaders,
        Rule::ConfirmHealth,
        Rule::RandomSession,
        Rule::SamePidNamespace,
        Rule::NameLockFile,
        Rule::SyncViewFile,
        Rule::SyncViewName,
        Rule::SyncViewRead,
        Rule::SyncBeforeRecord,
        Rule::SyncLineage,
        Rule::SyncLineageName,
        Rule::SyncAsideName,
        Rule::CheckDirectory,
        Rule::CheckLineage,
        Rule::CheckAncestry,
        Rule::KeepSpares,
        Rule::BoundViews,
        Rule::RaiseTogether,
        Rule::DecodeForwarded,
        Rule::RefuseUnreadable,
        Rule::ApplyApart,
        Rule::PublishInstalled,
        Rule::ConfirmRoles,
        Rule::LookBack,
        Rule::ProvePeers,
    ];
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// True where a test has switched this rule off on this thread.
#[cfg(test)]
pub(crate) fn breaks(rule: Rule) -> bool {
    BROKEN.get() == Some(rule)
}

/// True where a test has switched this rule off: never, in a program.
#[cfg(not(test))]
pub(crate) const fn breaks(_: Rule) -> bool {
    false
}

/// Does something with one rule switched off on this thread.
#[cfg(test)]
pub(crate) fn without<T>(rule: Option<Rule>, body: impl FnOnce() -> T) -> T {
    let before = BROKEN.replace(rule);
    let result = body();
    BROKEN.set(before);
    result
}
