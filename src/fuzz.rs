//! A bounded fuzz run over the decoders of the port and of the disk, as far as they are pure; the port itself is fuzzed
//! in `tests/suite/fuzz.rs`, against a real node. What goes in are valid bytes with mistakes put into them, all from one
//! seed. The rule: no bytes end the process, take more than [`CPU`] of a processor, or make memory grow by more than
//! [`GROWTH`] times their size; what is accepted for the log can be applied from the log's bytes.
//!
//! ```text
//! REPLCLUSTER_FUZZ_CASES=100000 cargo test --lib fuzz::               # more of it
//! REPLCLUSTER_FUZZ_SEED=17 REPLCLUSTER_FUZZ_CASES=1 cargo test --lib fuzz::   # the one case that failed
//! ```
//!
//! A case that ends the process at once (a stack that overflows) cannot print its seed: the case under way stands in the
//! temporary directory, in `replcluster-fuzz-TARGET`.

#![allow(clippy::needless_update, reason = "messages gain fields")]

mod disk;
mod message;
mod port;
mod source;
mod text;

use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use self::source::Source;

/// Of one processor, for one input; measured as processor time, so that other work on the machine does not count.
const CPU: Duration = Duration::from_millis(50);
/// Memory may grow by so many times the input.
const GROWTH: u64 = 4;
/// And by this, whatever the input: error texts, tables of fixed size.
const FLOOR: u64 = 64 << 10;
/// The largest request that the port takes with the usual bounds. A few mistakes can make an input far larger; it is
/// skipped, because no client can send it.
const INPUT_MAX: usize = 2 << 20;
/// Cases of each target, unless `REPLCLUSTER_FUZZ_CASES` says otherwise.
const CASES: u64 = 3_000;
/// A target takes no longer, unless it is a single case.
const LASTING: Duration = Duration::from_secs(60);

/// A decoder with what it is fed.
struct Target<'t> {
    name: &'static str,
    /// Valid inputs.
    corpus: Vec<Vec<u8>>,
    /// Puts a mistake into one.
    mutate: &'t dyn Fn(&mut Source, &[u8]) -> Vec<u8>,
    /// What must stand any bytes; an error is a claim that failed.
    decode: &'t dyn Fn(&[u8]) -> Result<(), String>,
    /// Bytes beside the input that it may take: what it builds before it looks at the input, or what a bound allows.
    fixed_bytes: u64,
    /// What it may take of a processor; more than [`CPU`] only where nobody else waits.
    cpu: Duration,
    /// Of so many cases one is tried: some cost much.
    one_of: u64,
}

impl Target<'_> {
    /// Runs it over the valid inputs and over as many mistakes as asked for.
    fn run(&self) {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let cases = number("REPLCLUSTER_FUZZ_CASES").unwrap_or(CASES).div_ceil(self.one_of);
        let first = number("REPLCLUSTER_FUZZ_SEED").unwrap_or(0);
        let path = std::env::temp_dir().join(format!("replcluster-fuzz-{}", self.name));
        let place = std::fs::File::create(&path).unwrap();
        for input in &self.corpus {
            self.judge(input).unwrap_or_else(|why| panic!("{}: a valid input: {why}", self.name));
        }
        let began = std::time::Instant::now();
        for seed in first..first + cases {
            if began.elapsed() > LASTING {
                println!("{}: {} of {cases} cases in {LASTING:?}", self.name, seed - first);
                break;
            }
            place.write_all_at(format!("seed {seed:<20}\n").as_bytes(), 0).unwrap();
            let mut source = Source::new(seed);
            let start = source.pick(&self.corpus).clone();
            let input = (self.mutate)(&mut source, &start);
            if input.len() > start.len().max(INPUT_MAX) {
                continue;
            }
            if let Err(why) = self.judge(&input) {
                panic!(
                    "{why}\n{} bytes: {}\nagain: REPLCLUSTER_FUZZ_SEED={seed} REPLCLUSTER_FUZZ_CASES=1 cargo test --lib fuzz::{}",
                    input.len(),
                    shown(&input),
                    self.name
                );
            }
        }
        let _ = std::fs::remove_file(path);
    }

    fn judge(&self, input: &[u8]) -> Result<(), String> {
        let mut outcome = Ok(Ok(()));
        let began = processor_time();
        let memory = allocation_counter::measure(|| {
            outcome = catch_unwind(AssertUnwindSafe(|| (self.decode)(input)));
        });
        let took = processor_time().saturating_sub(began);
        outcome.map_err(|_| "the decoder panicked".to_owned())??;
        if took > self.cpu {
            return Err(format!("it took {took:?} of a processor"));
        }
        let allowed = GROWTH * u64::try_from(input.len()).unwrap_or(u64::MAX) + FLOOR + self.fixed_bytes;
        if memory.bytes_max > allowed {
            return Err(format!("memory grew by {} bytes where {allowed} are allowed", memory.bytes_max));
        }
        Ok(())
    }
}

/// What this thread has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The beginning of the bytes, as hexadecimal digits.
fn shown(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().take(600).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > 600 { digits + "…" } else { digits }
}

fn target<'t>(
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    mutate: &'t dyn Fn(&mut Source, &[u8]) -> Vec<u8>,
    decode: &'t dyn Fn(&[u8]) -> Result<(), String>,
) -> Target<'t> {
    Target { name, corpus, mutate, decode, fixed_bytes: 0, cpu: CPU, one_of: 1 }
}

/// A check that cannot fail proves nothing.
#[test]
fn each_part_of_the_rule_is_noticed_when_it_is_broken() {
    let same = |_: &mut Source, bytes: &[u8]| bytes.to_vec();
    let judged = |decode: &dyn Fn(&[u8]) -> Result<(), String>| {
        target("itself", vec![vec![1; 100]], &same, decode).judge(&[1; 100])
    };
    assert_eq!(judged(&|_| Ok(())), Ok(()));
    assert!(judged(&|_| panic!("as planted")).unwrap_err().contains("panicked"));
    assert!(judged(&|_| Err("not applied".to_owned())).unwrap_err().contains("not applied"));
    let grows = |bytes: &[u8]| {
        std::hint::black_box(vec![0_u8; bytes.len() * 8 + 70_000]);
        Ok(())
    };
    assert!(judged(&grows).unwrap_err().contains("memory grew"));
    let spins = |_: &[u8]| {
        let began = processor_time();
        while processor_time().saturating_sub(began) < CPU + Duration::from_millis(5) {}
        Ok(())
    };
    assert!(judged(&spins).unwrap_err().contains("of a processor"));
}
