//! `completions`: what a shell has to run to complete verbs, options, and the names of the nodes; and those names.
//! A shell waits for the answer on every press of a key: nothing is started, and nobody is waited for long.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;

use super::exit::{Exit, Failure, Outcome};
use super::{command, context};
use crate::config::{self, Config};
use crate::control::health::Role;
use crate::supervisor::ask::{self, Asker};
use crate::view::NodeId;

/// How long the nodes may take to say how they are. Without an answer their names do.
const PATIENCE: Duration = Duration::from_millis(120);

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// bash, zsh, fish, elvish or powershell
    #[arg(add = ArgValueCandidates::new(shells))]
    shell: String,
}

pub(super) fn run(verb: &Completions) -> Outcome {
    if verb.shell == "bash" {
        anstream::print!("{BASH}");
        return Ok(Exit::Done);
    }
    let shells = Shells::builtins();
    let Some(shell) = shells.completer(&verb.shell) else {
        let known: Vec<&str> = shells.names().collect();
        return Err(Failure::usage(format!(
            "\"{}\" is no shell known here\nexpected one of {}",
            verb.shell,
            known.join(", ")
        )));
    };
    let mut script = Vec::new();
    shell.write_registration("COMPLETE", "replcluster", "replcluster", "replcluster", &mut script).map_err(
        |error| Failure::new(Exit::Failed, format!("cannot write the script: {error}\ntry another shell")),
    )?;
    anstream::print!("{}", String::from_utf8_lossy(&script));
    if verb.shell == "zsh" {
        anstream::print!("{ZSH}");
    }
    Ok(Exit::Done)
}

/// Zsh loads a file of its completion directories when it is first needed, and takes it for the function itself.
const ZSH: &str = r#"if [ "${funcstack[1]}" = "_replcluster" ]; then
    _clap_dynamic_completer_replcluster "$@"
fi
"#;

/// Bash takes `127.0.0.1:2379` for three words. They are put together again before the program is asked, and what bash
/// holds for done is cut off from the answers.
const BASH: &str = r#"_replcluster() {
    local IFS=$'\n' rest=${COMP_LINE:0:COMP_POINT} trimmed word breaks='' current prefix i
    local -a joined=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        trimmed=${rest#"${rest%%[![:space:]]*}"}
        word=${COMP_WORDS[i]}
        ((i == COMP_CWORD)) && word=$trimmed
        if ((i > 0)) && [[ -n $rest && $trimmed == "$rest" ]]; then
            joined[${#joined[@]}-1]+=$word
        elif ((i == 0)) || [[ -n $rest ]]; then
            joined+=("$word")
        fi
        rest=${trimmed#"$word"}
    done
    COMPREPLY=($(_CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((${#joined[@]} - 1)) COMPLETE=bash \
        "${COMP_WORDS[0]/#\~/$HOME}" -- "${joined[@]}" 2>/dev/null)) || COMPREPLY=()
    current=${joined[${#joined[@]}-1]}
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=:
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+==
    if [[ -n $breaks ]]; then
        prefix=${current%"${current##*[$breaks]}"}
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
    if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == *[=/:] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
if ((BASH_VERSINFO[0] > 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] >= 4))); then
    complete -o bashdefault -o nosort -F _replcluster replcluster
else
    complete -o bashdefault -F _replcluster replcluster
fi
"#;

/// The nodes of the configuration.
pub(super) fn nodes() -> Vec<CompletionCandidate> {
    candidates(&[])
}

/// What can stand for one node.
pub(super) fn node_or_role() -> Vec<CompletionCandidate> {
    candidates(&["leader", "follower"])
}

/// The signals that somebody who kills means most often.
pub(super) fn signals() -> Vec<CompletionCandidate> {
    ["KILL", "TERM", "INT", "QUIT", "ABRT", "HUP"].map(CompletionCandidate::new).into()
}

fn shells() -> Vec<CompletionCandidate> {
    Shells::builtins().names().map(|name| CompletionCandidate::new(name.to_owned())).collect()
}

/// The nodes of the configuration, or all of them.
pub(super) fn nodes_and_all() -> Vec<CompletionCandidate> {
    candidates(&["all"])
}

/// What can stand for a node or several.
pub(super) fn targets() -> Vec<CompletionCandidate> {
    candidates(&["leader", "follower", "followers", "all"])
}

fn candidates(roles: &[&'static str]) -> Vec<CompletionCandidate> {
    let Some(config) = configuration() else {
        return roles.iter().map(|role| CompletionCandidate::new(OsStr::new(role))).collect();
    };
    let standings = standings(&config);
    let leader = standings.iter().find(|(_, standing)| standing.leads).map(|(node, _)| node);
    let named = config.nodes.iter().map(|node| {
        let help = standings.get(node).map_or("does not answer", |standing| standing.text);
        CompletionCandidate::new(node.as_str()).help(Some(help.into()))
    });
    // Offered only to those who begin to type one.
    let ends = config.nodes.iter().filter_map(|node| {
        let (_, port) = node.as_str().rsplit_once(':')?;
        let end = format!(":{port}");
        let fitting = config.nodes.iter().filter(|other| other.as_str().ends_with(&end)).count();
        (fitting == 1).then(|| CompletionCandidate::new(end).help(Some(node.to_string().into())).hide(true))
    });
    let roles = roles.iter().map(|role| {
        let help = match (*role, leader) {
            ("leader", Some(leader)) => format!("now {leader}"),
            ("leader", None) => "the node that leads".to_owned(),
            ("follower", _) => "one of those that do not lead".to_owned(),
            ("followers", _) => "all that do not lead".to_owned(),
            _ => "every node".to_owned(),
        };
        CompletionCandidate::new(OsStr::new(role)).help(Some(help.into()))
    });
    named.chain(ends).chain(roles).collect()
}

/// How a node stands, by its own account.
struct Standing {
    leads: bool,
    text: &'static str,
}

fn standings(config: &Config) -> BTreeMap<NodeId, Standing> {
    // A cluster that never ran has nobody to ask.
    if !config.data_dir.exists() {
        return BTreeMap::new();
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return BTreeMap::new();
    };
    let answers = runtime.block_on(async {
        let asker = Asker::new(&config.nodes);
        tokio::time::timeout(PATIENCE * 5 / 4, asker.describe_all(&config.nodes, PATIENCE)).await
    });
    // A name that is still being looked up must not hold the shell.
    runtime.shutdown_background();
    let answers = answers.unwrap_or_default().into_iter();
    let known = answers.filter_map(|(node, answer)| Some((node, answer.ok()?)));
    known
        .filter(|(_, answer)| answer.cluster_name == config.name)
        .map(|(node, answer)| {
            let account = ask::account(&answer);
            let in_sync = ask::is_in_sync(&answer);
            let text = match (account.role, in_sync) {
                (Role::Leader, true) => "leader, ready",
                (Role::Leader, false) => "leader, starting",
                (Role::Follower, true) => "follower, ready",
                (Role::Follower, false) => "follower, not in sync",
                (Role::Joining, _) => "joining",
                (Role::None, _) => "starting",
            };
            (node, Standing { leads: account.role == Role::Leader, text })
        })
        .collect()
}

/// The configuration that the command being typed will use.
fn configuration() -> Option<Config> {
    let words: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(2).collect();
    let path = context::config_path(named(&words)).ok()?;
    config::load(&path).ok()
}

/// The file that the words of a command line name with `-f` or `--config`; the last one counts.
fn named(words: &[OsString]) -> Option<PathBuf> {
    let mut found = None;
    // After some verbs `-f` means "follow".
    let mut short = true;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--config" || (short && text == "-f") {
            found = words.next().cloned();
        } else if let Some(path) = text.strip_prefix("--config=") {
            found = Some(path.into());
        } else if let Some(path) = text.strip_prefix("-f").filter(|path| short && !path.is_empty()) {
            found = Some(path.into());
        } else if !text.starts_with('-') && means_follow(&text) {
            short = false;
        }
    }
    found.map(|path| expanded(&path))
}

fn means_follow(verb: &str) -> bool {
    let command = command();
    let verb = command.find_subcommand(verb);
    verb.is_some_and(|verb| {
        let mut taken = verb.get_arguments().filter(|argument| argument.get_short() == Some('f'));
        taken.any(|argument| argument.get_id() != super::SHORT_CONFIG_OF_VERB)
    })
}

/// Shells hand words over as they were typed.
fn expanded(path: &OsStr) -> PathBuf {
    match (path.to_string_lossy().strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_on_the_line_is_found() {
        let named = |line: &str| named(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in
            ["-f x kill", "kill -f x", "kill --config x", "--config=x kill", "-fx kill", "-f y kill -f x"]
        {
            assert_eq!(named(line), Some(PathBuf::from("x")), "{line}");
        }
        for line in ["logs -f x", "events -f x", "kill x", "kill -f"] {
            assert_eq!(named(line), None, "{line}");
        }
    }
}
