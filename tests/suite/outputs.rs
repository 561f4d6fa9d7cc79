//! Every verb from the outside: what it prints, on which stream, and how it ends, in every situation that a user meets.
//! One line a verb in `TABLE`; what is printed stands in `outputs/*.txt`, a file a situation, without what differs from
//! run to run. `UPDATE_GOLDENFILES=1` writes the files anew; codes are never updated, they are what scripts rely on.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::LazyLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex::Regex;

use super::cli::Scene;
use super::cluster::until;

/// A verb, what is typed, what is typed wrongly (exit code 2), and the exit codes of the first.
struct Row {
    verb: &'static str,
    /// Several commands with `; ` between; the codes are those of the last.
    typed: &'static str,
    wrong: &'static str,
    /// Without a configuration, without a cluster, with the supervisor dead, and with all as it should be.
    codes: [i32; 4],
}

const fn row(verb: &'static str, typed: &'static str, wrong: &'static str, codes: [i32; 4]) -> Row {
    Row { verb, typed, wrong, codes }
}

/// NODE1 leads, NODE2 follows, NODE3 is an address that nobody has yet. Every verb of `--help` must be here.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("init",         "init",                              "init here",                          [0, 5, 5, 5]),
    row("check",        "check",                             "check NODE1",                        [2, 0, 0, 0]),
    row("check",        "check --json",                      "check --jsn",                        [2, 0, 0, 0]),
    row("status",       "status",                            "status NODE1",                       [2, 3, 0, 0]),
    row("status",       "status --json",                     "status --wach",                      [2, 3, 0, 0]),
    row("log-level",    "log-level",                         "log-level loud",                     [2, 3, 0, 0]),
    row("log-level",    "log-level debug follower",          "log-level info nobody",              [2, 3, 0, 0]),
    row("events",       "events",                            "events --since yesterday",           [2, 0, 0, 0]),
    row("events",       "events -n 1 --json",                "events -n few",                      [2, 0, 0, 0]),
    row("events",       "events --since 1h",                 "events -n -1",                       [2, 0, 0, 0]),
    row("logs",         "logs -n 1",                         "logs NODE9",                         [2, 3, 0, 0]),
    row("logs",         "logs --level error",                "logs --level loud",                  [2, 3, 0, 0]),
    row("logs",         "logs --json -n 1 leader",           "logs --json --no-prefix",            [2, 3, 0, 0]),
    row("logs",         "logs --no-prefix -n 1 NODE1",       "logs --grep (",                      [2, 3, 0, 0]),
    row("recover",      "recover",                           "recover --source NODE1",             [2, 3, 0, 0]),
    row("recover",      "recover --accept-data-loss --yes",  "recover --accept-data-loss --source :9", [2, 1, 1, 1]),
    row("client",       "client put greeting hello",         "client put",                         [2, 3, 0, 0]),
    row("client",       "client get greeting",               "client got greeting",                [2, 3, 0, 0]),
    row("client",       "client watch greeting",             "client --endpoints nowhere get k",   [2, 1, 1, 1]),
    row("client",       "client",                            "client get k --timeout 5",           [2, 0, 0, 0]),
    row("bench",        "bench --seconds 0.1 --clients 1",   "bench --mix water",                  [2, 3, 0, 0]),
    row("torture",      "torture --cycles 1 --nodes 2 --rate 200 --seed 1", "torture --cycles 0",  [0, 0, 0, 0]),
    row("up",           "up",                                "up --only :9",                       [2, 0, 0, 0]),
    row("up",           "up --dry-run",                      "up --timeout soon",                  [2, 0, 0, 0]),
    row("pause",        "pause NODE2",                       "pause leader --for 2",               [2, 3, 0, 0]),
    row("pause",        "pause all",                         "pause",                              [2, 3, 2, 2]),
    row("pause",        "pause NODE2 --for 200ms",          "pause nobody",                       [2, 3, 0, 0]),
    row("resume",       "pause NODE2; resume all",           "resume",                             [2, 3, 0, 0]),
    row("resume",       "resume all",                        "resume nobody",                      [2, 3, 1, 1]),
    row("stop",         "stop NODE2",                        "stop :9",                            [2, 3, 0, 0]),
    row("start",        "stop NODE2; start NODE2",           "start nobody",                       [2, 3, 0, 0]),
    row("stop",         "stop NODE2; status",                "stop",                               [2, 3, 8, 8]),
    row("restart",      "restart NODE2",                     "restart leader follower",            [2, 3, 0, 0]),
    row("add-follower", "add-follower NODE3",                "add-follower nowhere",               [2, 0, 0, 0]),
    row("add-follower", "add-follower NODE1",                "add-follower NODE3 --count 2",       [2, 5, 5, 5]),
    row("remove",       "add-follower NODE3; remove NODE3",  "remove all",                         [2, 3, 0, 0]),
    row("move-leader",  "move-leader NODE2",                 "move-leader all",                    [2, 3, 0, 0]),
    row("move-leader",  "move-leader NODE1",                 "move-leader",                        [2, 3, 0, 0]),
    row("kill",         "kill leader",                       "kill leadr",                         [2, 3, 0, 0]),
    row("kill",         "kill NODE2 --no-probe",             "kill leader --signal STOP",          [2, 3, 0, 0]),
    row("kill",         "kill NODE2 --no-probe; kill NODE2", "kill --seed 1",                      [2, 3, 1, 1]),
    row("kill",         "kill follower --json",              "kill",                               [2, 3, 0, 0]),
    row("kill",         "kill --random --seed 7",            "kill --random --seed x",             [2, 3, 0, 0]),
    row("kill",         "kill all",                          "kill leader --signal NONE",          [2, 3, 2, 2]),
    row("kill",         "kill supervisor",                   "kill --random supervisor --seed",    [2, 3, 1, 0]),
    row("down",         "down",                              "down --timeout",                     [2, 0, 0, 0]),
    row("down",         "down --purge",                      "down NODE1",                         [2, 2, 2, 2]),
    row("down",         "down --purge --yes",                "down --purge=yes",                   [2, 0, 0, 0]),
    row("top",          "top",                               "top NODE1",                          [2, 2, 2, 2]),
    row("export",       "export systemd --user replcluster",  "export launchd",                     [2, 0, 0, 0]),
    row("export",       "export systemd --user replcluster --node NODE2", "export systemd --node :9",           [2, 0, 0, 0]),
    row("completions",  "completions bash",                  "completions tcsh",                   [0, 0, 0, 0]),
    row("man",          "man",                               "man kill",                           [0, 0, 0, 0]),
    row("help",         "help",                              "help nonsense",                      [0, 0, 0, 0]),
    row("--version",    "--version",                         "--verson",                           [0, 0, 0, 0]),
    row("-f",           "-f missing.toml status",            "-f",                                 [2, 2, 2, 2]),
];

/// Lines of one stream that are kept; what is longer is the manual.
const LINES: usize = 14;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Situation {
    NoConfiguration,
    NoCluster,
    DeadSupervisor,
    Pipe,
    Narrow,
}

impl Situation {
    fn code(self, row: &Row) -> i32 {
        match self {
            Situation::NoConfiguration => row.codes[0],
            Situation::NoCluster => row.codes[1],
            Situation::DeadSupervisor => row.codes[2],
            Situation::Pipe | Situation::Narrow => row.codes[3],
        }
    }

    fn file(self) -> &'static str {
        match self {
            Situation::NoConfiguration => "no-configuration",
            Situation::NoCluster => "no-cluster",
            Situation::DeadSupervisor => "dead-supervisor",
            Situation::Pipe => "pipe",
            Situation::Narrow => "forty-columns",
        }
    }

    /// Makes it so, whatever the row before has left behind.
    fn prepare(self, scene: &Scene, config: &str) {
        match self {
            Situation::NoConfiguration => {
                let _ = std::fs::remove_file(scene.path("cluster.toml"));
            }
            Situation::NoCluster => {
                if scene.path(".replcluster").exists() {
                    scene.done(&["down", "--purge", "--yes"]);
                }
                scene.config(config);
            }
            Situation::DeadSupervisor => {
                healthy(scene, config);
                if let Some(pid) = supervisor(scene) {
                    kill(pid, Signal::SIGKILL).unwrap();
                    until("the end of the supervisor", || supervisor(scene).is_none());
                }
            }
            Situation::Pipe | Situation::Narrow => {
                healthy(scene, config);
                if supervisor(scene).is_none() {
                    scene.done(&["up"]);
                }
            }
        }
    }
}

fn supervisor(scene: &Scene) -> Option<Pid> {
    let pid = scene.status()["supervisor"]["pid"].as_i64()?;
    Some(Pid::from_raw(i32::try_from(pid).unwrap()))
}

/// As after the first `up`: both nodes in sync under the lower address, and no third.
fn healthy(scene: &Scene, config: &str) {
    let is = || {
        let status = scene.status();
        status["state"] == "healthy" && status["leader"] == scene.address(0)
    };
    if scene.path(&format!(".replcluster/nodes/{}", scene.address(2).replace(':', "_"))).exists() {
        // A third node was added: with it goes what is remembered of it.
        scene.done(&["down", "--purge", "--yes"]);
    }
    scene.config(config);
    if !is() {
        scene.done(&["up"]);
        until("the cluster is whole", is);
    }
}

// --- what is printed, without what differs from run to run ---

/// Names for what differs from run to run.
pub struct Names {
    nodes: Vec<String>,
    directory: PathBuf,
}

/// In this order; lines that differ as a whole come last.
static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\b127\.0\.0\.1:\d+", "ADDRESS"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z?", "TIME"),
        (r"\b\d\d:\d\d:\d\d\b", "TIME"),
        (r"\b\d+[hm]\d\d[ms]\b", "SPAN"),
        (r"\b\d+(?: \d{3})*(?:\.\d+)? ?(?:ms|s)\b", "SPAN"),
        (r"\b(pid|epoch|entry|--seed|seed|operations) +\d+", "$1 #"),
        (r"\bentries \d+ to \d+", "entries # to #"),
        (r"\b\d+(?: \d{3})* (acknowledged|indeterminate|refused|unknown|revisions)\b", "# $1"),
        (r"(-torture)/\d+", "$1/#"),
        (r"^errors +\d+ ", "errors # "),
        (
            r#""(pid|epoch|applied|revision|uptime_ms|restarts|cpu_percent|memory_bytes|disk_bytes|unavailable_ms|seen_ms|lag|errors|acknowledged|indeterminate)":[\d.]+"#,
            "\"$1\":#",
        ),
        (r"^replcluster \d.*", "replcluster VERSION"),
        (r"^(User|Group)=.*", "$1=USER"),
        // The supervisor sees views a moment after everybody else.
        (r"^(last: .*?) → .*", "$1"),
        (r"^(NODE\d|supervisor) +TIME .*", "a line of a log"),
        (r"^TIME +(ERROR|WARN|INFO|DEBUG|TRACE) .*", "a line of a log"),
        (r"^──── .* ────$", "a line of a log"),
        (r#"^\{.*"target":.*\}$"#, "a line of a log"),
        (r"^TIME .*", "an event"),
        (r#"^\{.*"event":.*\}$"#, "an event"),
    ]
    .into_iter()
    .map(|(pattern, name)| (Regex::new(pattern).unwrap(), name))
    .collect()
});

static TABLE_LINE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(?:▶ |  )?(?:NODE\d|ADDRESS|put)  +\S").unwrap());
static MEASURE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[\d.]+(?:%|[a-zA-Z]{1,2})?$|^SPAN$").unwrap());
static LAST: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)^last: .*(?:\n  \S.*)*").unwrap());
static GAP: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(\S)  +").unwrap());

impl Names {
    pub fn new(nodes: impl IntoIterator<Item = String>, directory: &Path) -> Names {
        Names { nodes: nodes.into_iter().collect(), directory: directory.to_owned() }
    }

    fn of(scene: &Scene) -> Names {
        Names::new((0..3).map(|node| scene.address(node)), scene.directory.path())
    }

    /// What is typed, with addresses.
    fn typed(&self, text: &str) -> String {
        self.nodes
            .iter()
            .enumerate()
            .fold(text.to_owned(), |text, (number, node)| text.replace(&format!("NODE{}", number + 1), node))
    }

    /// What is printed, without addresses, places, times and measures.
    pub fn plain(&self, text: &str) -> Vec<String> {
        let programs = Path::new(env!("CARGO_BIN_EXE_replcluster")).parent().unwrap();
        let mut text = text.replace(&programs.display().to_string(), "PROGRAMS");
        text = text.replace(&self.directory.display().to_string(), "DIRECTORY");
        for (number, node) in self.nodes.iter().enumerate() {
            let name = format!("NODE{}", number + 1);
            let port = node.rsplit(':').next().unwrap();
            text = text.replace(node, &name).replace(&node.replace(':', "_"), &name);
            text = text.replace(&format!(":{port}"), &format!(":{name}"));
        }
        // Whether what followed is told already decides where it is wrapped.
        let text = LAST.replace_all(&text, |found: &regex::Captures<'_>| found[0].replace("\n  ", " "));
        let mut lines: Vec<String> = text.lines().map(plain_line).collect();
        // How many there are differs.
        lines.dedup_by(|next, line| next == line && (*line == "a line of a log" || *line == "an event"));
        lines
    }
}

fn plain_line(line: &str) -> String {
    let is_table = TABLE_LINE.is_match(line);
    let line = PATTERNS
        .iter()
        .fold(line.to_owned(), |line, (pattern, name)| pattern.replace_all(&line, *name).into_owned());
    let line = GAP.replace_all(&line, "$1  ").trim_end().to_owned();
    if !is_table {
        return line;
    }
    let words = line.split("  ").map(|word| if MEASURE.is_match(word) { "#" } else { word });
    words.collect::<Vec<_>>().join("  ")
}

fn write_stream(transcript: &mut String, number: u8, lines: &[String]) {
    for line in lines.iter().take(LINES) {
        writeln!(transcript, "{}", format!("{number}| {line}").trim_end()).unwrap();
    }
    if lines.len() > LINES {
        writeln!(transcript, "{number}| …").unwrap();
    }
}

/// Types it, writes down what comes, and says how it ended.
fn type_in(scene: &Scene, names: &Names, typed: &str, transcript: &mut String) -> i32 {
    let arguments = names.typed(typed);
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let output = scene.run(&arguments);
    let code = output.status.code().unwrap_or(-1);
    writeln!(transcript, "$ replcluster {typed}").unwrap();
    let (stdout, stderr) = texts(&output);
    write_stream(transcript, 1, &names.plain(&stdout));
    write_stream(transcript, 2, &names.plain(&stderr));
    writeln!(transcript, "= {code}\n").unwrap();
    assert!(!stderr.contains("panicked"), "{typed}: {stderr}");
    if matches!(code, 2 | 5) {
        let advised = stderr.lines().count() > 1 || stderr.contains("expected");
        assert!(stdout.is_empty() && advised, "{typed}: {stdout}{stderr}");
    }
    code
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Compares with the file, or writes it.
fn compare(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/suite/outputs/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let different = differences(&expected, found);
    assert!(
        different.is_empty(),
        "what is printed is not what stands in outputs/{name}.txt:\n{}\nif it is meant so: UPDATE_GOLDENFILES=1 cargo test --test suite outputs",
        different.join("\n")
    );
}

/// The commands that print something else.
fn differences(expected: &str, found: &str) -> Vec<String> {
    let commands = |text: &str| text.split("\n\n").map(str::to_owned).collect::<Vec<_>>();
    let (expected, found) = (commands(expected), commands(found));
    let mut different = Vec::new();
    for number in 0..expected.len().max(found.len()) {
        let (wanted, got) = (expected.get(number), found.get(number));
        if wanted != got {
            let show = |text: Option<&String>| text.cloned().unwrap_or_else(|| "(nothing)".to_owned());
            different.push(format!("--- expected\n{}\n--- found\n{}", show(wanted), show(got)));
        }
    }
    different
}

fn walk(situation: Situation) {
    let mut scene = Scene::new(2);
    let config = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    if situation == Situation::Narrow {
        scene.environment("COLUMNS", "40");
    }
    let names = Names::of(&scene);
    let mut transcript = String::new();
    let mut wrong = Vec::new();
    for row in TABLE {
        situation.prepare(&scene, &config);
        let before = transcript.len();
        let codes: Vec<i32> =
            row.typed.split("; ").map(|typed| type_in(&scene, &names, typed, &mut transcript)).collect();
        let (code, expected) = (*codes.last().unwrap(), situation.code(row));
        if code != expected {
            wrong.push(format!("{code} instead of {expected}:\n{}", &transcript[before..]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    compare(situation.file(), &transcript);
}

#[test]
fn every_verb_without_a_configuration() {
    walk(Situation::NoConfiguration);
}

#[test]
fn every_verb_without_a_cluster() {
    walk(Situation::NoCluster);
}

#[test]
fn every_verb_with_its_supervisor_dead() {
    walk(Situation::DeadSupervisor);
}

#[test]
fn every_verb_on_a_pipe() {
    walk(Situation::Pipe);
}

#[test]
fn every_verb_at_forty_columns() {
    walk(Situation::Narrow);
}

#[test]
fn every_verb_refuses_wrong_input_and_changes_nothing() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let asked = || {
        let history = scene.done(&["events", "--json"]);
        history.lines().filter(|line| line.contains("\"event\":\"command\"")).count()
    };
    let before = asked();
    let names = Names::of(&scene);
    let mut transcript = String::new();
    for row in TABLE {
        let code = type_in(&scene, &names, row.wrong, &mut transcript);
        assert_eq!(code, 2, "{}: {transcript}", row.wrong);
    }
    assert_eq!(asked(), before, "nothing was begun");
    assert_eq!(scene.status()["state"], "healthy");
    compare("wrong-input", &transcript);
}

fn verbs_of_help() -> BTreeSet<String> {
    let scene = Scene::new(1);
    let help = scene.done(&["--help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let verb = Regex::new(r"(?m)^  ([a-z][a-z-]*)").unwrap();
    verb.captures_iter(commands).map(|found| found[1].to_owned()).collect()
}

#[test]
fn the_table_has_every_verb() {
    let verbs = verbs_of_help();
    assert!(verbs.contains("status") && verbs.len() > 20, "{verbs:?}");
    let table: BTreeSet<String> =
        TABLE.iter().map(|row| row.verb).filter(|verb| !verb.starts_with('-')).map(str::to_owned).collect();
    assert_eq!(verbs, table, "a verb without a row in TABLE, or a row without a verb");
    for row in TABLE {
        assert!(row.typed.contains(row.verb) && row.wrong.contains(&row.verb[..2]), "{}", row.typed);
    }
}

#[test]
fn help_fits_into_forty_columns() {
    let mut scene = Scene::new(1);
    scene.environment("COLUMNS", "40");
    for verb in verbs_of_help() {
        let help = if verb == "help" { scene.done(&["--help"]) } else { scene.done(&[&verb, "--help"]) };
        for line in help.lines() {
            // One word cannot be broken, nor can the usage line.
            let breakable = line.split_whitespace().count() > 2 && !line.starts_with("Usage: ");
            assert!(!breakable || line.chars().count() <= 40, "{verb}: {line}");
        }
    }
}

/// A full disk and a reader that left, for all that prints without a cluster.
#[test]
fn no_verb_falls_over_where_its_output_cannot_go() {
    let scene = Scene::new(2);
    let names = Names::of(&scene);
    let is_cheap = |row: &&Row| {
        !row.typed.contains(';') && !["torture", "up", "bench", "add-follower"].contains(&row.verb)
    };
    for row in TABLE.iter().filter(is_cheap) {
        let typed = names.typed(row.typed);
        let arguments: Vec<&str> = typed.split(' ').collect();
        for full in [true, false] {
            let mut command = scene.command(&arguments);
            if full {
                command.stdout(File::options().write(true).open("/dev/full").unwrap());
            } else {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                command.stdout(writer);
            }
            let output = command.stderr(Stdio::piped()).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code();
            assert!(!stderr.contains("panicked"), "{}: {stderr}", row.typed);
            let expected = row.codes[1];
            let other = if full { 1 } else { 0 };
            assert!(code == Some(expected) || code == Some(other), "{}: {code:?} {stderr}", row.typed);
            let told = !full || code == Some(expected) || stderr.contains("No space left on device");
            assert!(told, "{}: {stderr}", row.typed);
        }
    }
}

#[test]
fn a_difference_in_one_command_is_found_and_the_rest_is_not_shown() {
    let expected = "$ a\n1| x\n= 0\n\n$ b\n1| y\n= 0\n\n";
    assert!(differences(expected, expected).is_empty());
    let found = differences(expected, &expected.replace("1| y", "2| y"));
    assert_eq!(found, ["--- expected\n$ b\n1| y\n= 0\n--- found\n$ b\n2| y\n= 0"]);
    assert_eq!(differences(expected, "$ a\n1| x\n= 0\n\n").len(), 2);
}

#[test]
fn only_what_differs_from_run_to_run_is_left_out() {
    let names = Names::new(["127.0.0.1:2379".to_owned(), "127.0.0.1:2380".to_owned()], Path::new("/home/me"));
    for (line, plain) in [
        (
            "▶ 127.0.0.1:2379  leader    ready  yes      -    3         8568  0s      0         6%   7.7M",
            "▶ NODE1  leader  ready  yes  -  #  #  #  #  #  #",
        ),
        (
            "47 acknowledged, 0 lost, 2 indeterminate · proved",
            "# acknowledged, 0 lost, # indeterminate · proved",
        ),
        ("1 204 acknowledged, 3 lost", "# acknowledged, 3 lost"),
        (
            "demo  healthy  epoch 3  leader 127.0.0.1:2380  agreed 2/3  survives 1 more failure",
            "demo  healthy  epoch #  leader NODE2  agreed 2/3  survives 1 more failure",
        ),
        (
            "killed 127.0.0.1:2379 (leader, pid 8568) · writes paused 1 412 ms",
            "killed NODE1 (leader, pid #) · writes paused SPAN",
        ),
        (
            "last: 00:39:36 up (127.0.0.1:2379, operator) → 127.0.0.1:2379 leads",
            "last: TIME up (NODE1, operator)",
        ),
        (
            "error: cannot read /home/me/x: it is no file (os error 2)",
            "error: cannot read DIRECTORY/x: it is no file (os error 2)",
        ),
    ] {
        assert_eq!(names.plain(line), [plain]);
    }
}
