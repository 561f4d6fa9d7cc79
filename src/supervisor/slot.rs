//! One node as its supervisor holds it: the life as decided by `control`, and the process it stands for.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::clock;
use crate::control::cause::{self, Cause, Ended};
use crate::control::life::{Life, Moment, State};
use crate::telemetry::stamp;

use super::os::{self, Handle, MemoryCounter};
use super::record::{Fault, LastAnswer, LastExit, NodeRecord, Phase};

/// One node.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Where its process stands, and what follows.
    pub life: Life,
    /// The process, from its start until its end was seen.
    pub process: Option<Process>,
    /// It is to run.
    pub wanted: bool,
    /// How many processes were started, ever.
    pub spawns: u64,
    /// How the last one ended.
    pub last_exit: Option<LastExit>,
    /// What the operator ordered to be done to it and is not over.
    pub fault: Option<Fault>,
    /// When the pause that this is ends by itself.
    pub resume_at: Option<Moment>,
    /// What the process that is being started will have to say to be believed; of use while there is no process yet.
    pub nonce: String,
    /// What its process was told of the configuration.
    pub settings: BTreeMap<String, String>,
    /// The last question has not been answered yet: no second one is asked meanwhile.
    pub asking: bool,
    /// When it is asked next; at once where there is no such time.
    pub ask_at: Option<Instant>,
    /// Last answer named this epoch.
    pub epoch: u64,
    /// What it last said, for when it says nothing any more.
    pub last_answer: Option<LastAnswer>,
}

/// A node's process.
#[derive(Debug)]
pub(super) struct Process {
    /// To signal it.
    pub handle: Handle,
    /// Tells its messages from those of earlier processes.
    pub number: u64,
    /// What it must say to be believed.
    pub nonce: String,
    /// When it was started or taken over.
    pub since: Instant,
    /// Was taken over.
    pub adopted: bool,
    /// The history knows that it is in sync.
    pub ready_told: bool,
    /// What it says outside its log begins here in its file.
    pub words_from: u64,
    /// A command of ours is to end it.
    pub asked_to_end: bool,
    /// Whether something was killed for memory of late.
    pub memory_kills: MemoryKills,
    /// Processor time at the last look.
    pub usage: Option<(Instant, u64)>,
    /// Share of one processor between the last two looks.
    pub cpu_percent: Option<f64>,
}

/// How far back a kill for memory may lie that a death is put down to: the count stands for all processes of a control
/// group or of the machine, and a large process takes its time to end once it is killed.
const MEMORY_WINDOW: Duration = Duration::from_secs(5);

/// The count of kills for memory as it was a while ago.
#[derive(Debug)]
pub(super) struct MemoryKills {
    /// Where the count stands: with the control group that the process lives in, which need not be ours.
    counter: MemoryCounter,
    /// When `last` was read.
    at: Instant,
    last: u64,
    /// The count before that.
    before: u64,
}

impl MemoryKills {
    /// Begins to count for a process that lives.
    pub fn of(now: Instant, pid: u32) -> MemoryKills {
        let counter = MemoryCounter::of(pid);
        let count = counter.read();
        MemoryKills { counter, at: now, last: count, before: count }
    }

    fn look(&mut self, now: Instant, count: u64) {
        if now.duration_since(self.at) >= MEMORY_WINDOW {
            (self.at, self.before, self.last) = (now, self.last, count);
        }
    }

    /// True where something was killed within one to two windows before now.
    fn grew(&self, count: u64) -> bool {
        count > self.before
    }
}

impl Process {
    /// Looks at how much processor time was used since the last look.
    pub fn measure(&mut self, now: Instant) {
        let Ok(stat) = os::stat(self.handle.id.pid) else { return };
        if let Some((before, ticks)) = self.usage {
            let seconds = now.duration_since(before).as_secs_f64();
            let used = stat.cpu_ticks.saturating_sub(ticks) as f64 / os::ticks_per_second() as f64;
            if seconds > 0.1 {
                self.cpu_percent = Some((used / seconds * 1000.0).round() / 10.0);
            }
        }
        self.usage = Some((now, stat.cpu_ticks));
        let count = self.memory_kills.counter.read();
        self.memory_kills.look(now, count);
    }

    /// How it ended, who or what ended it, and what it said last.
    pub fn explain(&self, ended: Ended, words_file: &Path) -> LastExit {
        let of_late = self.memory_kills.grew(self.memory_kills.counter.read());
        let cause = cause::attribute(ended, self.asked_to_end, of_late);
        let words = match cause {
            Cause::Operator | Cause::OutOfMemory => None,
            Cause::Crash | Cause::Unknown => last_words(words_file, self.words_from),
        };
        LastExit {
            code: ended.code,
            signal: ended.signal,
            cause,
            at: stamp(clock::wall()),
            trouble: words.as_ref().and_then(|words| cause::trouble(ended, words)),
            words,
        }
    }
}

impl Slot {
    /// What is remembered and shown of it.
    pub fn record(&self, now: Moment) -> NodeRecord {
        let (phase, wait) = match self.life.state {
            State::Down => (Phase::Down, None),
            State::Spawning | State::Starting => (Phase::Starting, None),
            State::Serving { .. } => (Phase::Serving, None),
            State::Paused { .. } => (Phase::Paused, None),
            State::Signalled { .. } | State::Stopping { .. } => (Phase::Stopping, None),
            State::Waiting { until } => (Phase::Waiting, Some(until.saturating_sub(now))),
            State::Failed => (Phase::Failed, None),
        };
        let restart_in_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        NodeRecord {
            wanted: self.wanted,
            phase,
            process: self.process.as_ref().map(|process| process.handle.id.clone()),
            nonce: self.process.as_ref().map_or(&self.nonce, |process| &process.nonce).clone(),
            fault: self.fault.clone(),
            settings: self.settings.clone(),
            spawns: self.spawns,
            last_exit: self.last_exit.clone(),
            cpu_percent: self.process.as_ref().and_then(|process| process.cpu_percent),
            restart_in_ms,
            restart_at_ms: restart_in_ms.map(|wait| os::milliseconds_since_boot().saturating_add(wait)),
            failures: self.life.failures.all,
            own_failures: self.life.failures.own,
            last_answer: self.last_answer.clone(),
        }
    }

    /// When something is due of it, if ever.
    pub fn due(&self) -> Option<Moment> {
        match (self.life.due(), self.resume_at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// No more than this is read of what a process said outside its log.
const WORDS_BYTES: u64 = 8 * 1024;
/// No more than this of it is told.
const WORDS_CHARS: usize = 300;

/// What a process said last outside its log: the message that it ended with, from where it begins in the file. A program
/// of ours ends with its name and a message, or with the report of a panic.
fn last_words(file: &Path, from: u64) -> Option<String> {
    let file = File::open(file).ok()?;
    let end = file.metadata().ok()?.len();
    let from = from.min(end).max(end.saturating_sub(WORDS_BYTES));
    let mut text = vec![0; usize::try_from(end - from).ok()?];
    file.read_exact_at(&mut text, from).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let begin = lines.iter().rposition(|line| line.starts_with(SAYS) || line.contains("panicked at"));
    let told = match begin {
        Some(begin) => one_line(lines[begin..].iter().take(3)),
        None => (*lines.last()?).to_owned(),
    };
    Some(told.strip_prefix(SAYS).unwrap_or(&told).chars().take(WORDS_CHARS).collect())
}

/// Several lines in one: where a line is a sentence of its own, the next begins behind a semicolon.
fn one_line<'a>(lines: impl Iterator<Item = &'a &'a str>) -> String {
    let mut told = String::new();
    for line in lines {
        if !told.is_empty() {
            told.push_str(if told.ends_with([':', ',', ';']) { " " } else { "; " });
        }
        told.push_str(line.trim());
    }
    told
}

/// What a node's program begins its last message with.
const SAYS: &str = "replserver: ";

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, from: u64) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stderr");
        std::fs::write(&path, text).unwrap();
        last_words(&path, from)
    }

    #[test]
    fn a_kill_for_memory_counts_for_a_while_and_not_for_ever() {
        let start = clock::now();
        let mut kills =
            MemoryKills { counter: MemoryCounter::of(std::process::id()), at: start, last: 7, before: 7 };
        assert!(!kills.grew(7) && kills.grew(8));
        for seconds in 1..=6 {
            kills.look(start + Duration::from_secs(seconds), 8);
        }
        assert!(kills.grew(8), "a process that is killed may end a little later");
        kills.look(start + Duration::from_secs(11), 8);
        assert!(!kills.grew(8) && kills.grew(9));
    }

    #[test]
    fn last_words_are_the_message_that_a_process_ended_with() {
        let said = "replserver: old\nsome line\nreplserver: h:1 is taken by x (pid 7)\nstop it\n";
        assert_eq!(words(said, 0).unwrap(), "h:1 is taken by x (pid 7); stop it");
        let panic = "thread 'main' panicked at a.rs:1:2:\nindex out of bounds\nnote: run with\nmore\n";
        assert!(words(panic, 0).unwrap().starts_with("thread 'main' panicked at a.rs:1:2: index out of"));
        assert_eq!(words("a line\n", 0).unwrap(), "a line");
        assert_eq!(words("", 0), None);
        assert_eq!(words("of an earlier process\n", 22), None);
        assert_eq!(words("cut since\n", 4000), None);
        assert_eq!(words(&"x".repeat(9000), 0).unwrap().len(), WORDS_CHARS);
    }
}
