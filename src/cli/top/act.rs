//! What an operator can have done from the dashboard: in words, as a command line, and what it costs.

use std::fmt;

use crate::view::NodeId;

use super::super::status::words::survives;
use super::super::survey::Survey;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// SIGKILL, under a load, with a verdict.
    Kill,
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Resume,
    /// Start it.
    Start,
    /// End it gracefully.
    Stop,
    /// One more node.
    AddFollower,
    /// Start everything.
    Up,
}

/// Something done, and to which node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// What.
    pub verb: Verb,
    /// To which; `None` where it is for the cluster.
    pub node: Option<NodeId>,
}

impl Act {
    /// What follows the name of the program on a command line that does it.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let node = self.node.iter().map(ToString::to_string);
        // The question was asked here, with what it costs.
        let yes = matches!(self.verb, Verb::Kill | Verb::Pause).then(|| "--yes".to_owned());
        std::iter::once(self.verb.word().to_owned()).chain(node).chain(yes).collect()
    }

    /// Which of the lines that it printed are worth showing: all of a verdict, else the first.
    #[must_use]
    pub fn result(&self, printed: &str) -> String {
        match self.verb {
            Verb::Kill => {
                let lines: Vec<&str> =
                    printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                lines.join(" · ")
            }
            Verb::Pause | Verb::Resume | Verb::Start | Verb::Stop => {
                printed.lines().next().unwrap_or_default().to_owned()
            }
            // They print the whole table, which is here already.
            Verb::AddFollower | Verb::Up => format!("{self}: done"),
        }
    }

    /// The question, with what it costs.
    #[must_use]
    pub fn question(&self, found: &Survey) -> String {
        let Some(node) = &self.node else {
            return match self.verb {
                Verb::Up => "nothing runs: start the whole cluster? [y/N]".to_owned(),
                Verb::Kill | Verb::Pause | Verb::Resume | Verb::Start | Verb::Stop | Verb::AddFollower => {
                    format!("{self}? [y/N]")
                }
            };
        };
        let cost = match self.verb {
            Verb::Kill | Verb::Pause | Verb::Stop => cost(found, node),
            Verb::Resume | Verb::Start | Verb::AddFollower | Verb::Up => String::new(),
        };
        let role = if found.sum.leader.as_ref() == Some(node) { " (leader)" } else { "" };
        format!("{self}{role}?{cost} [y/N]")
    }
}

/// What the cluster loses with a node.
fn cost(found: &Survey, node: &NodeId) -> String {
    let sum = &found.sum;
    if sum.leader.is_none() {
        return " nobody leads.".to_owned();
    }
    if !sum.in_sync.contains(node) {
        return " it is not in sync.".to_owned();
    }
    // As `kill` and `pause` count: one that is frozen or down serves nobody.
    let spared = found
        .nodes
        .iter()
        .any(|one| one.node != *node && one.runs() && !one.is_paused() && sum.in_sync.contains(&one.node));
    match (spared, sum.failures_tolerated) {
        (false, _) => " this is the last in-sync node that runs!".to_owned(),
        (true, 0) => " writes will be refused: min_in_sync.".to_owned(),
        (true, more) => format!(" {}.", survives(more)),
    }
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Verb::Kill => "kill",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::AddFollower => "add-follower",
            Verb::Up => "up",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(formatter, "{} {node}", self.verb.word()),
            None => formatter.write_str(self.verb.word()),
        }
    }
}
