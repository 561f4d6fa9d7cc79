//! The table of rules: for each the switches that leave it out, and for each switch what fails then. The tests named
//! here switch the rule off themselves and demand that they fail; a switch that is missing here does not compile.

use crate::protocol::rules::Rule as Core;
use crate::rules::Rule as Hands;

/// What notices that a rule is left out.
#[derive(Clone, Copy)]
enum Noticed {
    /// A test that runs with the rule switched off and demands a failure.
    By(&'static str),
}

use Noticed::By;

const STORMS: Noticed = By("every_rule_that_is_switched_off_is_missed");
const TIMES: Noticed = By("claims_about_time_miss_each_rule_that_is_left_out");
const NODES: Noticed = By("whole_nodes_miss_each_rule_that_is_left_out");
const HISTORIES: Noticed = By("the_histories_notice_each_rule_that_is_left_out");
const PLACES: Noticed = By("the_places_notice_each_sync_that_is_left_out");
const STEPS: Noticed = By("breaking_off_at_every_step_notices_each_rule_that_is_left_out");

const REGISTER: Noticed = By("the_register_misses_each_sync_that_is_left_out");

fn core(rule: Core) -> (&'static str, Noticed) {
    match rule {
        Core::AcknowledgeBeforeDurable | Core::CountOwnBeforeDurable => ("R20", STORMS),
        Core::CommitWithoutEveryone => ("R13", STORMS),
        Core::ShrinkBeforeConfirmed | Core::GrowAfterSwap => ("R3", STORMS),
        Core::JoinBehind => ("R30", STORMS),
        Core::GuessLostSwap => ("R2", STORMS),
        Core::ElectOutsideSet => ("R4", STORMS),
        Core::SkipPromise => ("R5", STORMS),
        Core::ObeyStaleEpoch => ("R6", STORMS),
        Core::ServeBeforeOpening => ("R7", STORMS),
        Core::NoTruncate => ("R14", STORMS),
        Core::ApplyUncommitted => ("R15", STORMS),
        Core::TrustWipedNode => ("R24", STORMS),
        Core::AssumeSwap => ("R10", STORMS),
        Core::TrustOldRegister => ("R11", STORMS),
        Core::TrustOtherChain | Core::ForgetView => ("R11", STORMS),
        Core::SwapUnheard => ("R11", TIMES),
        Core::ProveUnheard => ("R17", STORMS),
        Core::DeadForEver => ("R32", STORMS),
        Core::PromiseUnprepared => ("R34", TIMES),
        Core::JoinUndamped | Core::WaitForSlow | Core::FollowSlow | Core::HandBackToSlow => ("R36", TIMES),
        Core::TakeOverAtOnce => ("R8", TIMES),
        Core::HandBackAtOnce | Core::HandOverUndrained => ("R9", TIMES),
        Core::AnyDeathCounts => ("R28", TIMES),
        Core::LeadWithFullDisk | Core::CompareSharedDisk => ("R25", TIMES),
        Core::LeadWithHungDisk | Core::WaitForHungDisk => ("R31", TIMES),
    }
}

fn hands(rule: Hands) -> (&'static str, Noticed) {
    match rule {
        Hands::SyncBeforeReport => ("R20", HISTORIES),
        Hands::EndOnFailedSync => ("R21", HISTORIES),
        Hands::RewriteTail => {
            ("R21", By("what_an_earlier_process_failed_to_sync_and_still_reads_is_written_again"))
        }
        Hands::SyncBeforeRename | Hands::SyncDirectories | Hands::SyncTail => ("R22", HISTORIES),
        Hands::RewritePromise => ("R22", HISTORIES),
        Hands::SyncNamesFound => ("R22", STEPS),
        Hands::SyncPromise | Hands::TwoSlots => ("R5", HISTORIES),
        Hands::TwoCopies => ("R5", By("no_flipped_bit_loses_a_promise")),
        Hands::TrustMark => ("R23", By("zeros_in_what_was_synced_are_noticed_by_the_mark_or_by_the_commit")),
        Hands::TrustCommit => {
            ("R23", By("zeros_in_what_was_synced_are_noticed_by_the_mark_or_by_the_commit"))
        }
        Hands::TrustShape => ("R23", By("a_flipped_bit_in_what_was_synced_is_noticed_wherever_it_is")),
        Hands::DoubtWhatFollows | Hands::SupersedeTornTail | Hands::DropInOrder => ("R23", HISTORIES),
        Hands::CheckChain => ("R12", By("a_whole_record_with_another_history_before_it_is_noticed")),
        Hands::SupersedeByHeads => ("R14", HISTORIES),
        Hands::InheritFresh => ("R14", STEPS),
        Hands::LeaveRemains => ("R25", HISTORIES),
        Hands::KeepReserve => {
            ("R25", By("on_a_full_disk_the_log_can_still_be_cut_started_anew_and_recovered"))
        }
        Hands::AllocateSpares => ("R25", By("what_is_kept_in_reserve_has_its_room_from_the_start")),
        Hands::RetryAfterLack => ("R34", By("what_failed_for_want_of_something_is_tried_again_after_a_time")),
        Hands::LackIsNoFailure => ("R34", By("a_missing_descriptor_or_inode_is_no_failure_of_the_disk")),
        Hands::PromiseAhead => ("R34", By("a_promise_does_not_wait_behind_what_finds_no_room")),
        Hands::SpareReserve => ("R34", By("deletes_go_on_where_puts_would_fill_the_reserve")),
        Hands::PutOffState => ("R25", By("a_flush_that_meets_a_full_disk_is_put_off_and_loses_nothing")),
        Hands::SyncState | Hands::SyncStateName | Hands::SyncNewState | Hands::SyncPlacedState => {
            ("R22", PLACES)
        }
        Hands::SyncIdentity | Hands::SyncIdentityName => ("R22", PLACES),
        Hands::SyncAsideMade | Hands::SyncMoved | Hands::SyncLeft => ("R22", PLACES),
        Hands::WatchRoom => ("R25", By("full_disks_raise_an_alarm_and_room_ends_it")),
        Hands::ApplyTheSame => ("R16", NODES),
        Hands::ProveReads | Hands::AskLeader | Hands::AskAnew => ("R17", NODES),
        Hands::ProveAfterReading => ("R17", By("a_leader_replaced_while_it_reads_does_not_answer")),
        Hands::AnswerOnlyAsLeader => ("R18", NODES),
        Hands::TakeOnce | Hands::WaitForOpening => ("R19", NODES),
        Hands::ConfirmHealth => ("R31", NODES),
        Hands::ProvePeers => {
            ("R38", By("a_forged_peer_changes_nothing_and_without_a_proof_its_word_counts_as_a_copy"))
        }
        Hands::RaiseTogether => ("R37", NODES),
        Hands::DecodeForwarded => ("R33", NODES),
        Hands::RefuseUnreadable => {
            ("R33", By("an_entry_that_cannot_be_read_is_refused_by_every_node_and_ends_none"))
        }
        Hands::ApplyApart => ("R35", By("entries_that_take_longer_than_the_failure_timeout_depose_nobody")),
        Hands::PublishInstalled => ("R15", By("what_a_snapshot_holds_is_seen_as_soon_as_it_is_installed")),
        Hands::RefuseAlike => ("R33", By("too_large_an_answer_is_refused_by_all_nodes_or_by_none")),
        Hands::HideHalf => ("R35", By("however_it_is_divided_nothing_else_comes_out_and_no_half_is_seen")),
        Hands::KeepForReaders => ("R35", By("a_read_that_began_before_a_compaction_keeps_its_records")),
        Hands::LinkOnce => {
            ("R1, R26", By("of_two_swappers_one_wins_and_without_a_link_made_once_both_would"))
        }
        Hands::ConfirmRoles => ("R39", By("a_verb_on_the_followers_never_hits_the_leader")),
        Hands::LookBack => ("R39", By("a_delete_by_another_client_is_never_called_a_loss")),
        Hands::CloseOnExec => ("R27", By("no_child_keeps_a_lock_and_without_close_on_exec_one_would")),
        Hands::RandomSession => {
            ("R32", By("a_process_with_the_pid_of_a_dead_one_is_another_and_by_its_pid_it_is_not"))
        }
        Hands::SamePidNamespace => {
            ("R32", By("a_pid_of_another_namespace_is_watched_by_its_lock_and_else_another_process_is"))
        }
        Hands::SyncViewFile
        | Hands::SyncViewName
        | Hands::SyncViewRead
        | Hands::SyncBeforeRecord
        | Hands::SyncAsideName
        | Hands::SyncAside => ("R22", REGISTER),
        Hands::SyncLineage | Hands::SyncLineageName => ("R11", REGISTER),
        Hands::CheckDirectory => {
            ("R11", By("a_register_moved_away_and_copied_answers_nothing_and_unchecked_it_would"))
        }
        Hands::CheckLineage => {
            ("R11", By("a_view_that_was_taken_away_is_missed_and_without_the_lineage_it_is_not"))
        }
        Hands::CheckAncestry => {
            ("R11", By("views_made_on_an_older_copy_are_a_fork_and_unchecked_they_are_taken"))
        }
        Hands::KeepSpares => ("R34", By("a_full_disk_stops_no_view_and_without_spares_it_would")),
        Hands::BoundViews => ("R34", By("a_view_that_is_too_large_is_refused_before_anything_is_promised")),
        Hands::NameLockFile => {
            ("R28", By("a_copied_lock_proves_nothing_and_without_its_inode_a_living_process_is_dead"))
        }
    }
}

/// R29 is a time: `replcluster bench --failover --data 4GiB` measures it.
const MEASURED: &[u32] = &[29];

fn sources(directory: &std::path::Path, into: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *into += &std::fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_rule_has_a_switch_and_something_fails_without_it() {
    let mut source = String::new();
    sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    let core = Core::ALL.iter().map(|rule| (core(*rule), format!("{rule:?}")));
    let hands = Hands::ALL.iter().map(|rule| (hands(*rule), format!("{rule:?}")));
    let mut rows: Vec<_> = core.chain(hands).collect();
    let number = |rule: &str| rule[1..].split(',').next().unwrap().parse::<u32>().unwrap();
    rows.sort_by_key(|((rule, _), ..)| number(rule));
    println!("{:<8} {:<24} fails without it", "rule", "switch");
    for ((rule, By(test)), switch) in &rows {
        println!("{rule:<8} {switch:<24} {test}");
        assert!(source.contains(&format!("fn {test}()")), "there is no test {test}");
        let used = source.matches(&format!("Rule::{switch}")).count();
        assert!(used >= 2, "{switch} is switched off nowhere");
    }
    for rule in 1..=39 {
        let covered = rows
            .iter()
            .any(|((rules, _), ..)| rules.split(", ").any(|covered| covered == format!("R{rule}")));
        assert!(covered || MEASURED.contains(&rule), "nothing fails without R{rule}");
    }
}
