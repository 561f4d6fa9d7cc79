//! Where the dashboard's events come from: looks at the cluster, a light read, the selected node's log, the keyboard,
//! and the ends of what was begun. Everything here only sends; the model decides.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ratatui::crossterm::event;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::client::probe::PREFIX;
use crate::client::{Client, Options};
use crate::clock;
use crate::supervisor::events::{self, Entry};
use crate::supervisor::layout::Layout;
use crate::view::NodeId;

use super::super::context::{self, Context};
use super::super::exit::last_lines;
use super::super::render::time_of_day;
use super::super::status;
use super::super::survey::{self, Survey};

use super::act::Act;
use super::model::{Event, Picture};

/// How often the cluster is looked at, a key is read, and a log is looked at for more.
const INTERVAL: Duration = Duration::from_millis(250);
/// How often the keyboard's thread looks whether it is still wanted.
const KEY_PATIENCE: Duration = Duration::from_millis(50);
/// Events kept for the pane.
const EVENTS: usize = 200;
/// Lines of a log kept for the pane.
const LOG_LINES: usize = 1000;
/// Bytes of a stamp at the start of a log line.
const STAMP_BYTES: usize = 27;

/// Looks at the cluster again and again, and tells the reader whom it can ask.
pub async fn look(mut context: Context, tx: mpsc::Sender<Event>, endpoints: watch::Sender<Vec<String>>) {
    let opened = clock::now();
    let mut ticks = ticks();
    let mut history = History::new(context.layout.events());
    let mut configured = modified(&context.config.path);
    loop {
        ticks.tick().await;
        let newest = modified(&context.config.path);
        if newest != configured {
            // Half written or wrong: the nodes known so far are shown, and the next change is read again.
            let _ = context.reload();
            configured = newest;
        }
        let event = match survey::survey(&context).await {
            Err(failure) => Event::Blind { why: failure.message },
            Ok(found) => {
                endpoints.send_if_modified(|old| {
                    let new = reachable(&found);
                    std::mem::replace(old, new.clone()) != new
                });
                Event::Looked { at: opened.elapsed(), picture: picture(&context, found, history.read()) }
            }
        };
        if tx.send(event).await.is_err() {
            return;
        }
    }
}

fn picture(context: &Context, found: Survey, history: Vec<Entry>) -> Box<Picture> {
    let notes = status::notes(context, &found, &history);
    Box::new(Picture { found, notes, history })
}

/// Those that answered, the leader first.
fn reachable(found: &Survey) -> Vec<String> {
    let mut endpoints = found.endpoints();
    let leader = found.sum.leader.as_ref().map(NodeId::as_str);
    endpoints.sort_by_key(|endpoint| Some(endpoint.as_str()) != leader);
    endpoints
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// The history, read again only where it grew.
struct History {
    path: PathBuf,
    length: Option<u64>,
    entries: Vec<Entry>,
}

impl History {
    fn new(path: PathBuf) -> History {
        History { path, length: None, entries: Vec::new() }
    }

    fn read(&mut self) -> Vec<Entry> {
        let length = std::fs::metadata(&self.path).map(|metadata| metadata.len()).ok();
        if length != self.length {
            // It only explains: what cannot be read is not shown.
            let mut entries = events::recent(&self.path, context::HISTORY_BYTES).unwrap_or_default();
            entries.drain(..entries.len().saturating_sub(EVENTS));
            (self.entries, self.length) = (entries, length);
        }
        self.entries.clone()
    }
}

/// Reads a key that does not exist, linearizable, through the leader or whoever else answers, and tells how long that
/// took.
pub async fn probe(tx: mpsc::Sender<Event>, endpoints: watch::Receiver<Vec<String>>) {
    let options = Options {
        timeout: Duration::from_secs(1),
        attempt_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_millis(500),
    };
    let key = [PREFIX, b"nothing"].concat();
    let mut ticks = ticks();
    let mut client: Option<Client> = None;
    let mut known = Vec::new();
    let mut has_begun = false;
    loop {
        ticks.tick().await;
        let newest = endpoints.borrow().clone();
        if newest != known {
            client = Client::new(&newest, options).ok();
            known = newest;
            has_begun = true;
        }
        if !has_begun {
            continue; // nobody has answered yet
        }
        let took = match &client {
            None => None,
            Some(client) => {
                let begun = clock::now();
                client.get(key.clone()).await.ok().map(|_| begun.elapsed())
            }
        };
        if tx.send(Event::Probed(took)).await.is_err() {
            return;
        }
    }
}

/// Follows the log of whichever node is wanted.
pub async fn follow(layout: Layout, tx: mpsc::Sender<Event>, mut wanted: watch::Receiver<Option<NodeId>>) {
    let mut ticks = ticks();
    let mut shown: Option<(NodeId, Vec<String>)> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
        let Some(node) = wanted.borrow_and_update().clone() else { continue };
        let lines: Vec<String> =
            last_lines(&layout.log(&node), LOG_LINES).iter().map(|line| tidied(line)).collect();
        let now = Some((node.clone(), lines.clone()));
        if now != shown && tx.send(Event::Logged { node, lines }).await.is_err() {
            return;
        }
        shown = now;
    }
}

/// A log line as it is shown: the time of day for the whole stamp, no escapes, no tabs.
fn tidied(line: &str) -> String {
    let line = anstream::adapter::strip_str(line).to_string().replace('\t', " ");
    match line.get(..STAMP_BYTES).filter(|head| head.ends_with('Z')) {
        Some(stamp) => format!("{}{}", time_of_day(stamp), &line[STAMP_BYTES..]),
        None => line,
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The keyboard. Reading it blocks, so it has a thread of its own, which ends when this is dropped.
pub struct Keyboard {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Keyboard {
    /// Begins to read.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn read(tx: mpsc::Sender<Event>) -> io::Result<Keyboard> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("keyboard".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let event = match event::poll(KEY_PATIENCE) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let (event, is_last) = match event {
                    Ok(event::Event::Key(key)) => (Event::Key(key), false),
                    Ok(event::Event::Resize(..)) => (Event::Resized, false),
                    Ok(event::Event::FocusGained | event::Event::FocusLost) => continue,
                    Ok(event::Event::Mouse(_) | event::Event::Paste(_)) => continue,
                    // The terminal is gone.
                    Err(_) => (Event::Told, true),
                };
                if tx.blocking_send(event).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Keyboard { stop, thread: Some(thread) })
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Our own program while it does what was asked.
#[derive(Debug)]
pub struct Begun {
    act: Act,
    child: tokio::process::Child,
    out: File,
    err: File,
}

/// Does what a user at a shell would do: runs our own program with the verb. It goes on when the dashboard is left.
///
/// # Errors
/// What the system said.
pub fn begin(config: &Path, act: Act) -> io::Result<Begun> {
    // Not pipes: it can go on printing when nobody listens any more.
    let (out, err) = (in_memory()?, in_memory()?);
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("--config").arg(config).args(act.arguments()).args(["--color", "never"]);
    // Of its own group: a Ctrl-C that ends the dashboard does not end what it began.
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?).process_group(0);
    Ok(Begun { act, child: command.spawn()?, out, err })
}

/// Waits until it has ended; what it said.
pub async fn ended(number: u64, mut begun: Begun) -> Event {
    let (done, said) = match outcome(&mut begun).await {
        Err(error) => (false, format!("{}: what became of it is not known: {error}", begun.act)),
        Ok((true, out, _)) => (true, begun.act.result(&out)),
        Ok((false, out, err)) => {
            let why = err.lines().find_map(|line| line.strip_prefix("error: "));
            // Without an error it is a verdict that is not good.
            (false, why.map_or_else(|| begun.act.result(&out), |why| format!("{}: {why}", begun.act)))
        }
    };
    Event::Ended { number, done, said }
}

/// Whether it did what was asked, and what it printed.
async fn outcome(begun: &mut Begun) -> io::Result<(bool, String, String)> {
    let status = begun.child.wait().await?;
    Ok((status.success(), text_of(&mut begun.out)?, text_of(&mut begun.err)?))
}

fn in_memory() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC)?))
}

fn text_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_is_shown_with_the_time_of_day_and_without_escapes() {
        let told = tidied("2026-11-22T14:03:11.000001Z \u{1b}[32m INFO\u{1b}[0m a\tb");
        assert!(told.ends_with("  INFO a b") && told.len() == "00:00:00".len() + 10, "{told}");
        assert_eq!(tidied("  a line that goes on"), "  a line that goes on");
        assert_eq!(tidied("Z"), "Z");
    }
}
