//! What every test over many seeds needs: the seeds a user asked for, all cores at work, and panics as sentences.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;

/// A number that the environment gives.
///
/// # Panics
/// Where it gives something else.
pub(crate) fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The seeds to run: `REPLCLUSTER_SEEDS` of them (else so many) from `REPLCLUSTER_FIRST_SEED` (else 0) on.
pub(crate) fn seeds(usually: u64) -> Range<u64> {
    let first = from_environment("REPLCLUSTER_FIRST_SEED").unwrap_or(0);
    first..first + from_environment("REPLCLUSTER_SEEDS").unwrap_or(usually)
}

/// All seeds below `count`, beginning at one of them.
pub(crate) fn from_there(first: u64, count: u64) -> impl Iterator<Item = u64> {
    (first..count).chain(0..first)
}

/// Runs each seed once, on all cores, and folds what they came to: first within a core, then over all of them.
pub(crate) fn over_all_cores<S: Default + Send>(
    seeds: &Range<u64>,
    take: impl Fn(&mut S, u64) + Sync,
    join: impl Fn(&mut S, S),
) -> S {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = S::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores)
            .map(|core| {
                let (seeds, take) = (seeds.clone(), &take);
                scope.spawn(move || {
                    let mut sum = S::default();
                    seeds.skip(core).step_by(cores).for_each(|seed| take(&mut sum, seed));
                    sum
                })
            })
            .collect();
        for worker in workers {
            join(&mut all, worker.join().expect("a worker reports panics, it does not panic"));
        }
    });
    all
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Prints how many seeds broke which claim, and some of them.
pub(crate) fn print_broken<C: Display + Ord>(broken: impl IntoIterator<Item = (C, u64)>) {
    let mut claims: BTreeMap<C, Vec<u64>> = BTreeMap::new();
    for (claim, seed) in broken {
        claims.entry(claim).or_default().push(seed);
    }
    for (claim, seeds) in &claims {
        println!("{} seeds break \"{claim}\": {:?}", seeds.len(), &seeds[..seeds.len().min(8)]);
    }
}

/// A machine's name in a trace: `a`, `b`, …
pub(crate) fn letter(machine: usize) -> char {
    char::from(b'a' + u8::try_from(machine).expect("few machines"))
}

#[test]
fn every_seed_is_run_once() {
    let seen: Vec<u64> = over_all_cores(
        &(5..105),
        |seen: &mut Vec<u64>, seed| seen.push(seed),
        |all, more| {
            all.extend(more);
            all.sort_unstable();
        },
    );
    assert_eq!(seen, (5..105).collect::<Vec<_>>());
}
