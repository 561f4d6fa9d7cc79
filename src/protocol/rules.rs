//! Rules that a test can switch off in one node, to show that the checks notice. In a program every rule holds: outside
//! of tests [`Node::breaks`] is always false.

use super::node::Node;

/// A rule to switch off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// R20 off: a follower acknowledges what it has received but not yet synced.
    AcknowledgeBeforeDurable,
    /// R20 off: the leader counts its own entries before they are synced.
    CountOwnBeforeDurable,
    /// R13 off: all but one of the in-sync nodes are enough.
    CommitWithoutEveryone,
    /// R3 off: a node is no longer waited for as soon as the swap without it is sent.
    ShrinkBeforeConfirmed,
    /// R3 off: a joiner is waited for only when the swap with it is known to have won.
    GrowAfterSwap,
    /// R30 off: a joiner is taken in before it has caught up.
    JoinBehind,
    /// R2 off: a swap whose answer was lost counts as not done.
    GuessLostSwap,
    /// R4 off: a node outside the set elects itself.
    ElectOutsideSet,
    /// R5 off: a candidate swaps without a promise.
    SkipPromise,
    /// R6 off: messages of an older epoch are taken as if they were of this one.
    ObeyStaleEpoch,
    /// R7 off: a new leader serves before its opening entry is committed.
    ServeBeforeOpening,
    /// R14 off: what differs from the leader's log stays, and counts as the same.
    NoTruncate,
    /// R15 off: entries are applied when they are on the disk, committed or not.
    ApplyUncommitted,
    /// R8 off: nobody waits for lower addresses that live.
    TakeOverAtOnce,
    /// R9 off: leadership goes back at once to whoever returns.
    HandBackAtOnce,
    /// R9 off: leadership is handed over before everyone has everything.
    HandOverUndrained,
    /// R10 off: a swap whose outcome is not known counts as done.
    AssumeSwap,
    /// R25 off: a leader whose disk is nearly full goes on.
    LeadWithFullDisk,
    /// R25 off: nodes on one disk are compared by when each found it full.
    CompareSharedDisk,
    /// R28 off: the proved death of an older process counts against the one that lives.
    AnyDeathCounts,
    /// R11 off: a register that is older than what other nodes have seen is taken for the newest.
    TrustOldRegister,
    /// R11 off: whatever chain of views the register holds is obeyed.
    TrustOtherChain,
    /// R11 off: a process that has just started replaces the view on its disk before it has heard the others.
    SwapUnheard,
    /// R11 off: what counts in a view is acknowledged before the view is on the disk.
    ForgetView,
    /// R17 off: a leader proves reads although its followers may obey another by now.
    ProveUnheard,
    /// R32 off: a process number that was once proved dead is ignored for ever.
    DeadForEver,
    /// R34 off: a candidate promises before it knows whether the register can take its view.
    PromiseUnprepared,
    /// R36 off: who comes and goes is let in at once each time.
    JoinUndamped,
    /// R36 off: who acknowledges slowly is waited for as long as it speaks.
    WaitForSlow,
    /// R36 off: a leader that is silent for most of the time is followed as long as it speaks.
    FollowSlow,
    /// R36 off: leadership is handed back to a node that keeps others waiting.
    HandBackToSlow,
    /// A leader whose disk hangs goes on sending heartbeats.
    LeadWithHungDisk,
    /// A follower whose disk hangs is waited for as long as it talks.
    WaitForHungDisk,
    /// R24 off: another data directory at a counted address is taken for the one that is counted.
    TrustWipedNode,
}

#[cfg(test)]
impl Rule {
    /// Every one.
    pub(crate) const ALL: &[Rule] = &[
        Rule::AcknowledgeBeforeDurable,
        Rule::CountOwnBeforeDurable,
        Rule::CommitWithoutEveryone,
        Rule::ShrinkBeforeConfirmed,
        Rule::GrowAfterSwap,
        Rule::JoinBehind,
        Rule::GuessLostSwap,
        Rule::ElectOutsideSet,
        Rule::SkipPromise,
        Rule::ObeyStaleEpoch,
        Rule::ServeBeforeOpening,
        Rule::NoTruncate,
        Rule::ApplyUncommitted,
        Rule::TakeOverAtOnce,
        Rule::HandBackAtOnce,
        Rule::HandOverUndrained,
        Rule::AssumeSwap,
        Rule::LeadWithFullDisk,
        Rule::CompareSharedDisk,
        Rule::AnyDeathCounts,
        Rule::TrustOldRegister,
        Rule::TrustOtherChain,
        Rule::SwapUnheard,
        Rule::ForgetView,
        Rule::ProveUnheard,
        Rule::DeadForEver,
        Rule::PromiseUnprepared,
        Rule::JoinUndamped,
        Rule::WaitForSlow,
        Rule::FollowSlow,
        Rule::HandBackToSlow,
        Rule::LeadWithHungDisk,
        Rule::WaitForHungDisk,
        Rule::TrustWipedNode,
    ];
}

impl Node {
    /// True where a test has switched this rule off in this node.
    #[cfg(test)]
    pub(super) fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }

    /// True where a test has switched this rule off in this node: never, in a program.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "the same signature as in tests")]
    pub(super) const fn breaks(&self, _: Rule) -> bool {
        false
    }
}
