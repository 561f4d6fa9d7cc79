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
    /// R39: a verb acts on a role only where an in-sync node confirms it.
    ConfirmRoles,
    /// R39: a verdict looks at what other clients did before it calls a write lost.
    LookBack,
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
        Rule::ConfirmRoles,
        Rule::LookBack,
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
