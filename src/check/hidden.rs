//! Who made the revisions that nobody was told of and nobody saw? Each was made by a request whose outcome is
//! unknown, each request made at most one, and what follows must fit.
//!
//! The search goes through the hidden revisions upwards. For each it chooses a request, replays that key up to the
//! next thing that does not fit, and goes on as long as everything that does not fit lies behind a revision that is
//! still to be explained. Requests that want the same of the same key are alike (nobody saw which it was), and one
//! that can have made a revision can have made every later one, as only its call bounds it; so of those that are
//! alike the one called first is taken. Keys that need a hidden change soon are served first, which nearly always
//! hits at once. A wrong choice leads back; after [`STEPS`] the search is given up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;
use super::replay::{Evidence, concerned, set};
use super::violation::Said;
use super::{Found, History, Key, NAMED_OF_A_KIND, Request, Token, Violation};

/// Pieces of evidence looked at before the search is given up: some seconds of one processor at most.
const STEPS: usize = 20_000_000;

/// How the search ended.
pub(super) enum Search {
    /// There is somebody for every hidden revision.
    Explained,
    /// There is nobody.
    Impossible(Violation),
    /// It took too long.
    GivenUp,
}

/// How many revisions nobody was told of and nobody saw.
pub(super) fn count(history: &History, facts: &Facts) -> usize {
    let all = usize::try_from(facts.last_revision.saturating_sub(history.first_revision)).unwrap_or(0);
    all.saturating_sub(facts.by_revision.len())
}

/// The hidden revisions upwards.
fn revisions(history: &History, facts: &Facts) -> impl Iterator<Item = i64> {
    let first = history.first_revision.saturating_add(1);
    (first..=facts.last_revision).filter(|revision| !facts.by_revision.contains_key(revision))
}

/// Requests that are alike, by their calls; `taken` of them are used up.
#[derive(Clone, Debug)]
struct Kind {
    wants: Wants,
    /// Of the keys about which anything is known, those that it would change.
    changes: BTreeSet<Key>,
    /// And those together with the one that decides whether it does.
    concerns: BTreeSet<Key>,
    operations: Vec<usize>,
}

/// What such a request does, whatever the values it sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wants {
    /// First, as there are fewer states in which a request with a condition can have happened.
    class: Class,
    expected: Option<(Key, i64)>,
    removes: Option<(Key, Key)>,
    sets: Vec<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    SetIf,
    Set,
    Remove,
}

impl Wants {
    fn of(request: &Request) -> Wants {
        let sets: Vec<Key> = request.sets().map(|(key, _)| key).collect();
        let class = match (request.expects(), sets.is_empty()) {
            (Some(_), _) => Class::SetIf,
            (None, false) => Class::Set,
            (None, true) => Class::Remove,
        };
        let removes = request.removes().map(|span| (span.first, span.last));
        Wants { class, expected: request.expects(), removes, sets }
    }
}

/// A key as far as it was replayed.
#[derive(Clone, Debug)]
struct Line {
    /// Evidence up to here is in the state.
    position: usize,
    state: Option<Found>,
    /// The first evidence from there on that does not fit, its revision, the state it meets, and what it says.
    misfit: Option<(usize, i64, Option<Found>, Said)>,
}

/// One way to explain the hidden revisions so far.
#[derive(Clone, Debug)]
struct Attempt {
    lines: BTreeMap<Key, Line>,
    taken: Vec<usize>,
}

impl Line {
    /// The revision at which it does not fit any more; the greatest of all where it fits to the end.
    fn misfit_at(&self) -> i64 {
        self.misfit.map_or(i64::MAX, |(_, revision, _, _)| revision)
    }
}

struct Searcher<'h> {
    history: &'h History,
    facts: &'h Facts,
    evidence: BTreeMap<Key, Vec<Evidence>>,
    revisions: Vec<i64>,
    /// For each hidden revision the latest call of a request that can have made it.
    latest_calls: Vec<u64>,
    /// Keys that are known to have been created by one of them: whoever made it has set them.
    created: BTreeMap<i64, BTreeSet<Key>>,
    kinds: Vec<Kind>,
    steps: usize,
    /// How far the best attempt came, and what it could not go past.
    best: Option<(i64, Box<Violation>)>,
}

/// Looks for somebody for every hidden revision among the requests `unseen`, so that `evidence` (of all keys they
/// would change) fits.
pub(super) fn search(
    history: &History,
    facts: &Facts,
    evidence: BTreeMap<Key, Vec<Evidence>>,
    unseen: &[usize],
) -> Search {
    let impossible = |revisions, why| Search::Impossible(Violation::Unexplained { missing: revisions, why });
    let mut calls: Vec<u64> = unseen.iter().map(|index| history.operations[*index].called).collect();
    calls.sort_unstable();
    // A revision beyond what there are requests for is unexplained whatever it is; there may be billions.
    let revisions: Vec<i64> = revisions(history, facts).take(unseen.len() + NAMED_OF_A_KIND).collect();
    let latest_calls = latest_calls(history, facts, &revisions);
    // Hall's condition: later revisions admit every request that earlier ones admit.
    let lacking = latest_calls
        .iter()
        .enumerate()
        .position(|(place, latest)| calls.partition_point(|call| call <= latest) <= place);
    if let Some(place) = lacking {
        return impossible(revisions[place..].iter().copied().take(NAMED_OF_A_KIND).collect(), None);
    }
    let kinds = kinds(history, &evidence, unseen);
    let created = created(history, facts);
    let mut searcher =
        Searcher { history, facts, evidence, revisions, latest_calls, created, kinds, steps: 0, best: None };
    match searcher.run() {
        Some(true) => Search::Explained,
        None => Search::GivenUp,
        Some(false) => {
            let why = searcher.best.map(|(_, why)| why);
            impossible(searcher.revisions.into_iter().take(NAMED_OF_A_KIND).collect(), why)
        }
    }
}

/// Whatever returned with a revision or a later one proves that the revision existed then.
fn latest_calls(history: &History, facts: &Facts, revisions: &[i64]) -> Vec<u64> {
    let mut returns: BTreeMap<i64, u64> = BTreeMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        if let Some((returned, answer)) = operation.answer()
            && !facts.malformed.contains(&index)
        {
            let earliest = returns.entry(answer.revision()).or_insert(returned);
            *earliest = returned.min(*earliest);
        }
    }
    let mut earliest = u64::MAX;
    let mut latest_calls = vec![u64::MAX; revisions.len()];
    let mut returns = returns.into_iter().rev().peekable();
    for (latest, revision) in latest_calls.iter_mut().zip(revisions).rev() {
        while let Some((_, returned)) = returns.next_if(|(at, _)| at >= revision) {
            earliest = earliest.min(returned);
        }
        *latest = earliest;
    }
    latest_calls
}

/// The hidden revisions that are the create revision of something that was read.
fn created(history: &History, facts: &Facts) -> BTreeMap<i64, BTreeSet<Key>> {
    let mut created: BTreeMap<i64, BTreeSet<Key>> = BTreeMap::new();
    let answers = history.operations.iter().filter_map(|operation| operation.answer());
    for found in answers.flat_map(|(_, answer)| answer.found()) {
        if !facts.by_revision.contains_key(&found.create_revision) {
            created.entry(found.create_revision).or_default().insert(found.key);
        }
    }
    created
}

fn kinds(history: &History, evidence: &BTreeMap<Key, Vec<Evidence>>, unseen: &[usize]) -> Vec<Kind> {
    let mut kinds: BTreeMap<Wants, Vec<usize>> = BTreeMap::new();
    for index in unseen {
        kinds.entry(Wants::of(&history.operations[*index].request)).or_default().push(*index);
    }
    let sorted = |(wants, mut operations): (Wants, Vec<usize>)| {
        operations.sort_by_key(|index| history.operations[*index].called);
        let request = &history.operations[operations[0]].request;
        let concerns = concerned(request, evidence);
        let changes = concerns.iter().copied().filter(|key| request.touches(*key)).collect();
        Kind { wants, changes, concerns, operations }
    };
    kinds.into_iter().map(sorted).collect()
}

impl Searcher<'_> {
    /// True where everything is explained, false where nothing can, none where it took too long.
    fn run(&mut self) -> Option<bool> {
        let keys: Vec<Key> = self.evidence.keys().copied().collect();
        let start = Line { position: 0, state: None, misfit: None };
        let lines = keys.into_iter().map(|key| (key, self.look_ahead(key, start.clone()))).collect();
        let mut first = Attempt { lines, taken: vec![0; self.kinds.len()] };
        if !self.is_open(&first, 0) {
            return Some(false);
        }
        // A stack of its own: there may be more hidden revisions than a thread's stack has room for.
        let choices = self.choices(&mut first, 0);
        let mut stack = vec![(first, choices)];
        while let Some((attempt, choices)) = stack.last_mut() {
            let Some((number, lines)) = choices.pop() else {
                stack.pop();
                continue;
            };
            let mut next = attempt.clone();
            next.lines.extend(lines);
            next.taken[number] += 1;
            let place = stack.len();
            if !self.is_open(&next, place) {
                continue;
            }
            if place == self.revisions.len() {
                return Some(true);
            }
            if self.steps > STEPS {
                return None;
            }
            let choices = self.choices(&mut next, place);
            stack.push((next, choices));
        }
        Some(false)
    }

    /// The kinds of request that can have made the hidden revision at `place`, and what becomes of their key then; the
    /// most promising last.
    fn choices(&mut self, attempt: &mut Attempt, place: usize) -> Vec<(usize, BTreeMap<Key, Line>)> {
        let revision = self.revisions[place];
        let next = self.revisions.get(place + 1).copied().unwrap_or(i64::MAX);
        // A key that does not fit before the next hidden revision must be mended by this one: no other is looked at.
        let urgent = attempt.lines.iter().find(|(_, line)| line.misfit_at() < next).map(|(key, _)| *key);
        let mut choices = Vec::new();
        for number in 0..self.kinds.len() {
            self.steps += 1;
            let Kind { wants, changes, operations, .. } = &self.kinds[number];
            let created = self.created.get(&revision);
            let is_excluded = urgent.is_some_and(|urgent| !changes.contains(&urgent))
                || created.is_some_and(|keys| keys.iter().any(|key| !wants.sets.contains(key)));
            let operation = operations.get(attempt.taken[number]).copied();
            let in_time = |index: &usize| self.history.operations[*index].called <= self.latest_calls[place];
            let Some(operation) = operation.filter(in_time).filter(|_| !is_excluded) else { continue };
            let needed_at =
                changes.iter().filter_map(|key| attempt.lines.get(key)).map(Line::misfit_at).min();
            let Some(lines) = self.place(attempt, number, operation, revision) else { continue };
            let misfit_at = lines.values().map(Line::misfit_at).min();
            let class = self.kinds[number].wants.class;
            choices.push(((needed_at, Reverse(misfit_at), class), number, lines));
        }
        choices.sort_by_key(|(rank, ..)| Reverse(*rank));
        choices.into_iter().map(|(_, number, lines)| (number, lines)).collect()
    }

    /// Replays a key up to a revision that nobody is known to have made, whatever that turns out to be. False where it
    /// does not fit.
    fn advance(&mut self, key: Key, line: &mut Line, revision: i64) -> bool {
        let evidence = &self.evidence[&key];
        while let Some(next) = evidence.get(line.position).filter(|next| next.revision < revision) {
            self.steps += 1;
            if next.follow(key, &mut line.state).is_err() {
                return false;
            }
            line.position += 1;
        }
        true
    }

    /// Carries out a hidden request: answers with what becomes of each key that it changes. None where something does
    /// not fit before, or where the request would have changed nothing then.
    fn place(
        &mut self,
        attempt: &mut Attempt,
        number: usize,
        operation: usize,
        revision: i64,
    ) -> Option<BTreeMap<Key, Line>> {
        let Kind { wants, changes, concerns, .. } = self.kinds[number].clone();
        for key in &concerns {
            let line = attempt.lines.get_mut(key)?;
            if !self.advance(*key, line, revision) {
                return None;
            }
        }
        let state = |key: &Key| attempt.lines.get(key).and_then(|line| line.state);
        if let Some((key, expected)) = wants.expected
            && state(&key).map_or(0, |state| state.mod_revision) != expected
        {
            return None;
        }
        if wants.class == Class::Remove && changes.iter().all(|key| state(key).is_none()) {
            return None;
        }
        let request = self.history.operations[operation].request;
        let values: BTreeMap<Key, Token> = request.sets().collect();
        let mut lines = BTreeMap::new();
        for key in changes {
            let line = attempt.lines.get(&key)?.clone();
            let state = values.get(&key).map(|value| set(key, revision, *value, line.state));
            lines.insert(key, self.look_ahead(key, Line { state, ..line }));
        }
        Some(lines)
    }

    /// Finds the first evidence that does not fit if nothing hidden happens to the key any more.
    fn look_ahead(&mut self, key: Key, mut line: Line) -> Line {
        let mut state = line.state;
        line.misfit = None;
        for (position, evidence) in self.evidence[&key].iter().enumerate().skip(line.position) {
            self.steps += 1;
            if let Err(said) = evidence.follow(key, &mut state) {
                line.misfit = Some((position, evidence.revision, state, said));
                break;
            }
        }
        line
    }

    /// Whether everything that does not fit can still be mended by the hidden revisions from `place` on: by one of its
    /// own for each key, in time.
    fn is_open(&mut self, attempt: &Attempt, place: usize) -> bool {
        self.steps += attempt.lines.len();
        let mut misfits: Vec<(i64, Key)> = attempt
            .lines
            .iter()
            .filter(|(_, line)| line.misfit.is_some())
            .map(|(key, line)| (line.misfit_at(), *key))
            .collect();
        misfits.sort_unstable();
        // One request can mend several keys at once: only keys that are mended alone need a revision each.
        let mut taken_before = 0;
        for (revision, key) in misfits {
            let mut has_requests = false;
            let mut is_alone = true;
            for (kind, taken) in self.kinds.iter().zip(&attempt.taken) {
                if *taken < kind.operations.len() && kind.changes.contains(&key) {
                    has_requests = true;
                    is_alone &= kind.changes.len() == 1;
                }
            }
            let last_chance = self.revisions.get(place + taken_before);
            if !has_requests || last_chance.is_none_or(|last| *last > revision) {
                self.note_misfit(revision, key, &attempt.lines[&key]);
                return false;
            }
            taken_before += usize::from(is_alone);
        }
        true
    }

    fn note_misfit(&mut self, revision: i64, key: Key, line: &Line) {
        if self.best.as_ref().is_none_or(|(best, _)| *best < revision)
            && let Some((position, _, state, said)) = line.misfit
        {
            let evidence = &self.evidence[&key][position];
            let why = evidence.refuse(self.history, self.facts, key, state, said);
            self.best = Some((revision, Box::new(why)));
        }
    }
}
