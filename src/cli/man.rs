//! `man`: the manual, made from the same words as `--help`, and what help has no place for: how the program ends, what
//! it reads and writes, and examples. For packagers: the pages of both programs in a directory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{Exit, Failure, Outcome};
use super::{EXIT_CODES, command};

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write the pages of both programs into this directory instead, one a verb
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(verb: &Man) -> Outcome {
    let failed = |error: io::Error| {
        Failure::new(
            Exit::Failed,
            format!("cannot write the manual: {error}\nname a directory that you may write to with --out"),
        )
    };
    match &verb.out {
        Some(directory) => write_all(directory).map_err(failed)?,
        None => {
            let mut text = Vec::new();
            page(&built(), &mut text).map_err(failed)?;
            anstream::print!("{}", String::from_utf8_lossy(&text));
        }
    }
    Ok(Exit::Done)
}

fn write_all(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    write_with_verbs(&built(), directory)?;
    let mut server = crate::server::command();
    server.build();
    write_with_verbs(&server, directory)
}

fn write_with_verbs(command: &clap::Command, directory: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_with_verbs(verb, directory)?;
    }
    let mut text = Vec::new();
    page(command, &mut text)?;
    std::fs::write(directory.join(format!("{}.1", title(command))), text)
}

/// The command line with what clap adds to it, except a page for `help`.
fn built() -> clap::Command {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    command
}

fn title(command: &clap::Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &clap::Command, text: &mut Vec<u8>) -> io::Result<()> {
    let title = title(command);
    let own = match title.as_str() {
        "replcluster" => CONTROLLER,
        "replserver" => SERVER,
        _ => VERB,
    };
    // Only the programs themselves have a version; their pages end with it.
    let source = format!("replcluster {}", env!("CARGO_PKG_VERSION"));
    let man = clap_mangen::Man::new(command.clone())
        .title(title.to_uppercase())
        .source(source)
        .manual("replcluster manual");
    man.render_title(text)?;
    man.render_name_section(text)?;
    man.render_synopsis_section(text)?;
    man.render_description_section(text)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(text)?;
    }
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(text)?;
    }
    for section in own {
        section.write(text)?;
    }
    Ok(())
}

/// A section of a page.
struct Section {
    heading: &'static str,
    content: Content,
}

enum Content {
    /// A paragraph.
    Text(&'static str),
    /// The table of exit codes.
    ExitCodes,
    /// Things and what they are.
    List(&'static [(&'static str, &'static str)]),
    /// What each of these does, and the lines to type.
    Examples(&'static [(&'static str, &'static str)]),
    /// Other pages.
    Pages(&'static [(&'static str, u8)]),
}

const CONTROLLER: &[Section] = &[
    Section { heading: "EXIT STATUS", content: Content::ExitCodes },
    Section {
        heading: "ENVIRONMENT",
        content: Content::List(&[
            ("REPLCLUSTER_CONFIG", "The configuration, where neither -f nor --config names one."),
            ("REPLSERVER", "The server program, where it is not the one beside this program or on the PATH."),
            ("NO_COLOR", "Where set and not empty, nothing is coloured unless --color says so."),
            ("RUST_LOG", "What is logged, such as info or replcluster=debug."),
            ("NOTIFY_SOCKET", "Set by a service manager: up --foreground tells it when the cluster serves."),
        ]),
    },
    Section {
        heading: "FILES",
        content: Content::List(&[
            (
                "cluster.toml",
                "The configuration, here or in the nearest parent directory. Relative paths in it start where it lies.",
            ),
            (".replcluster/", "Everything the cluster writes, unless data_dir names another directory:"),
            (
                ".replcluster/nodes/ADDRESS/data/",
                "A node's copy of the data. `replserver inspect` shows what it holds.",
            ),
            (".replcluster/nodes/ADDRESS/log", "A node's log. `replcluster logs` merges all of them."),
            (".replcluster/register/", "Where the nodes agree on who leads and who is in sync."),
            (
                ".replcluster/events.jsonl",
                "The history: starts, exits with their cause, views, faults, commands.",
            ),
            (".replcluster/supervisor.log", "The supervisor's own log."),
            (".replcluster/supervisor.sock", "The control socket, for its owner only."),
        ]),
    },
    Section {
        heading: "EXAMPLES",
        content: Content::Examples(&[
            (
                "Start three nodes, kill the leader with proof that no acknowledged write is lost, and look:",
                "replcluster init\nreplcluster up\nreplcluster kill leader\nreplcluster status",
            ),
            ("Use any etcd v3 client:", "etcdctl --endpoints 127.0.0.1:2379,127.0.0.1:2380 put key value"),
            ("Hand the cluster to systemd:", "replcluster export systemd --out units"),
            ("End it and delete its data:", "replcluster down --purge"),
        ]),
    },
    Section {
        heading: "SEE ALSO",
        content: Content::Pages(&[("replserver", 1), ("etcdctl", 1), ("systemd.service", 5)]),
    },
];

const SERVER: &[Section] = &[
    Section {
        heading: "INSPECTION",
        content: Content::Text(
            "replserver inspect --data-dir DIRECTORY shows what the directory of a stopped node holds and changes nothing. With --json it prints JSON.",
        ),
    },
    Section {
        heading: "EXIT STATUS",
        content: Content::List(&[
            ("0", "It was told to end with SIGTERM, and did."),
            ("1", "It failed; the last lines of its log say why."),
            ("2", "Its arguments are wrong."),
            ("5", "Its address, port or directory is held by another process."),
            ("130", "It was ended with Ctrl-C."),
        ]),
    },
    Section {
        heading: "ENVIRONMENT",
        content: Content::List(&[
            ("RUST_LOG", "What is logged, such as info or replcluster=debug."),
            (
                "NOTIFY_SOCKET",
                "Set by a service manager: told when the node serves, and when it begins to end.",
            ),
        ]),
    },
    Section {
        heading: "FILES",
        content: Content::List(&[
            ("DATA-DIR/", "The node's copy of the data. Only one process uses it at a time."),
            (
                "REGISTER/",
                "Where all nodes of the cluster agree on who leads and who is in sync; the same for all.",
            ),
        ]),
    },
    Section {
        heading: "EXAMPLES",
        content: Content::Examples(&[(
            "Two nodes by hand; the second joins the first:",
            "replserver --address 127.0.0.1:2379 --cluster demo \\\n  --data-dir data/a --register file:data/register\nreplserver --address 127.0.0.1:2380 --cluster demo \\\n  --data-dir data/b --register file:data/register \\\n  --join 127.0.0.1:2379",
        )]),
    },
    Section { heading: "SEE ALSO", content: Content::Pages(&[("replcluster", 1)]) },
];

const VERB: &[Section] = &[
    Section { heading: "EXIT STATUS", content: Content::ExitCodes },
    Section { heading: "SEE ALSO", content: Content::Pages(&[("replcluster", 1), ("replserver", 1)]) },
];

impl Section {
    fn write(&self, text: &mut Vec<u8>) -> io::Result<()> {
        writeln!(text, ".SH {}", escaped(self.heading))?;
        match &self.content {
            Content::Text(paragraph) => writeln!(text, "{}", escaped(paragraph)),
            Content::ExitCodes => {
                for (code, meaning) in exit_codes() {
                    writeln!(text, ".TP\n\\fB{}\\fR\n{}", escaped(code), escaped(meaning))?;
                }
                Ok(())
            }
            Content::List(items) => {
                for (name, meaning) in *items {
                    writeln!(text, ".TP\n\\fB{}\\fR\n{}", escaped(name), escaped(meaning))?;
                }
                Ok(())
            }
            Content::Examples(examples) => {
                for (what, lines) in *examples {
                    writeln!(text, ".PP\n{}\n.PP\n.RS 4\n.nf", escaped(what))?;
                    for line in lines.lines() {
                        writeln!(text, "{}", escaped(line))?;
                    }
                    writeln!(text, ".fi\n.RE")?;
                }
                Ok(())
            }
            Content::Pages(pages) => {
                let last = pages.len().saturating_sub(1);
                for (position, (name, section)) in pages.iter().enumerate() {
                    let comma = if position == last { "" } else { " ," };
                    writeln!(text, ".BR {} ({section}){comma}", escaped(name))?;
                }
                Ok(())
            }
        }
    }
}

/// The codes of the help text and their meanings.
fn exit_codes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let list = EXIT_CODES.trim_start_matches("Exit codes: ").trim_end_matches('.');
    list.split(", ").filter_map(|item| item.split_once(' '))
}

/// Nothing in it is taken for a command of the typesetter, and a hyphen stays one that can be copied.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main_page() -> String {
        let mut text = Vec::new();
        page(&built(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_page_says_how_the_program_ends_and_what_it_uses() {
        let text = main_page();
        for heading in ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"] {
            assert!(text.contains(&format!(".SH {heading}\n")), "{heading}");
        }
        let codes: Vec<&str> = exit_codes().map(|(code, _)| code).collect();
        assert_eq!(codes, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "130"]);
        assert!(text.contains("replcluster/events.jsonl"), "{text}");
    }

    #[test]
    fn every_verb_that_help_shows_has_a_page_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        write_all(directory.path()).unwrap();
        let is_there = |name: &str| directory.path().join(name).is_file();
        for verb in built().get_subcommands() {
            let name = format!("replcluster-{}.1", verb.get_name());
            assert_eq!(is_there(&name), !verb.is_hide_set(), "{name}");
        }
        assert!(is_there("replcluster.1") && is_there("replserver.1"));
    }
}
