//! How long an operator waits: this program's own commands, timed as processes from their start to their end, on a
//! cluster of their own. What a command prints is not looked at, except whether a kill is proved.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use super::tally::nearest_rank;
use super::{BenchArguments, BenchFailure, Report, note};
use crate::cli::client::print::table;
use crate::cli::exit::Exit;
use crate::cli::scratch::{Scratch, free_addresses};
use crate::clock;
use crate::config::FILE_VARIABLE;

/// Nodes of the cluster.
const NODES: usize = 3;

/// A command of the tour.
struct Stop {
    /// As it is printed.
    name: &'static str,
    /// What is typed.
    line: &'static str,
    /// What its median should not exceed, in milliseconds.
    target_ms: Option<f64>,
}

/// In this order, on a new directory each time.
const TOUR: [Stop; 6] = [
    Stop { name: "up, nothing there", line: "up", target_ms: Some(1000.0) },
    Stop { name: "status", line: "status --json", target_ms: Some(50.0) },
    Stop { name: "kill leader, verdict", line: "kill leader --json", target_ms: Some(3000.0) },
    Stop { name: "up, one node down", line: "up", target_ms: None },
    Stop { name: "down", line: "down", target_ms: None },
    Stop { name: "up, data of all there", line: "up", target_ms: Some(1000.0) },
];

/// Runs the tour as often as it is asked for.
pub(super) async fn run(arguments: &BenchArguments, scratch: &Scratch) -> Result<Report, BenchFailure> {
    let mut times: Vec<Vec<f64>> = TOUR.iter().map(|_| Vec::new()).collect();
    let mut inconclusive = 0;
    let mut violations = Vec::new();
    for number in 1..=arguments.runs {
        let seat = Seat::new(scratch, number)?;
        for (stop, times) in TOUR.iter().zip(&mut times) {
            let done = seat.run(stop.line).await?;
            times.push(done.ms);
            if done.exit == Exit::Inconclusive as i32 {
                inconclusive += 1;
            } else if done.exit == Exit::Violated as i32 {
                violations.push(done.said);
            }
            note(&format!("{number} of {}: {}: {:.0} ms", arguments.runs, stop.name, done.ms));
        }
        drop(seat);
    }
    let report = report(&times, inconclusive);
    if violations.is_empty() { Ok(report) } else { Err(BenchFailure::Violated { report, violations }) }
}

fn report(times: &[Vec<f64>], inconclusive: u32) -> Report {
    let head = ["COMMAND", "RUNS", "MEDIAN MS", "P90 MS", "MAX MS", "TARGET MS", "MET"];
    let rows = TOUR.iter().zip(times).map(|(stop, times)| {
        let at = |quantile| format!("{:.0}", nearest_rank(times, quantile));
        let target = stop.target_ms.map_or("-".to_owned(), |target| format!("{target:.0}"));
        let met = stop.met(times).map_or("-", |met| if met { "yes" } else { "no" });
        vec![stop.name.to_owned(), times.len().to_string(), at(0.5), at(0.9), at(1.0), target, met.to_owned()]
    });
    let mut text = table(&head, rows);
    if inconclusive > 0 {
        text.extend(format!("{inconclusive} kills were inconclusive\n").into_bytes());
    }
    let commands: Value = TOUR
        .iter()
        .zip(times)
        .map(|(stop, times)| {
            json!({
                "name": stop.name,
                "command": stop.line,
                "median_ms": nearest_rank(times, 0.5),
                "p90_ms": nearest_rank(times, 0.9),
                "max_ms": nearest_rank(times, 1.0),
                "target_ms": stop.target_ms,
                "met": stop.met(times),
                "times_ms": times,
            })
        })
        .collect();
    Report { text, value: json!({ "commands": commands, "inconclusive": inconclusive }) }
}

impl Stop {
    /// Whether its median is within its target, where it has one.
    fn met(&self, times: &[f64]) -> Option<bool> {
        self.target_ms.map(|target| nearest_rank(times, 0.5) <= target)
    }
}

/// A directory with a configuration; what runs there ends with this value.
struct Seat {
    program: PathBuf,
    directory: PathBuf,
}

/// A command that was run.
struct Ran {
    ms: f64,
    exit: i32,
    said: String,
}

impl Seat {
    fn new(scratch: &Scratch, number: u32) -> Result<Seat, BenchFailure> {
        let directory = scratch.join(&number.to_string());
        let failed = |error| BenchFailure::Directory(directory.clone(), error);
        let nodes = free_addresses(NODES).map_err(failed)?;
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let text = format!("name = \"bench\"\nnodes = {nodes:?}\n");
        std::fs::write(directory.join("cluster.toml"), text).map_err(failed)?;
        let program = std::env::current_exe().map_err(failed)?;
        Ok(Seat { program, directory })
    }

    async fn run(&self, command: &'static str) -> Result<Ran, BenchFailure> {
        let failed = |error| BenchFailure::Spawn(self.program.clone(), error);
        let mut line = tokio::process::Command::new(&self.program);
        line.args(command.split(' ')).current_dir(&self.directory).env_remove(FILE_VARIABLE);
        // Own process group: a Ctrl-C on the terminal reaches this program alone, which then ends what it started.
        line.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        let began = clock::now();
        let output = line.output().await.map_err(failed)?;
        let ms = began.elapsed().as_secs_f64() * 1e3;
        let said =
            [String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout)].concat();
        let exit = output.status.code().unwrap_or(-1);
        // A kill may prove nothing or find something; a node that is not there yet makes a cluster degraded.
        let expected = [Exit::Done, Exit::Violated, Exit::Inconclusive, Exit::Degraded];
        if expected.iter().any(|expected| *expected as i32 == exit) {
            return Ok(Ran { ms, exit, said });
        }
        let directory = self.directory.clone();
        Err(BenchFailure::Command { command, status: output.status, said, directory })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut line = std::process::Command::new(&self.program);
        line.args(["down", "--now"]).current_dir(&self.directory).env_remove(FILE_VARIABLE);
        // What does not end by this is for the user to see: its directory stays in use and its log is there.
        let _ = line.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_above_its_target_is_said() {
        let times: Vec<Vec<f64>> =
            vec![vec![900.0, 1100.0, 950.0], vec![60.0; 3], vec![1.0], vec![1.0], vec![1.0], vec![1.0]];
        let report = report(&times, 2);
        let text = String::from_utf8(report.text).unwrap();
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!(
            (row("up, nothing").as_str(), row("status").as_str(), row("down").as_str()),
            ("yes", "no", "-")
        );
        assert!(text.ends_with("2 kills were inconclusive\n"), "{text}");
        assert_eq!(report.value["commands"][0]["median_ms"], 950.0);
        assert_eq!(report.value["commands"][1]["met"], false);
    }
}
