//! `completions`: what a shell has to run to complete verbs, options, and the names of the nodes.

use clap::Args;
use clap_complete::env::Shells;

use super::exit::{Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// bash, zsh, fish, elvish or powershell
    shell: String,
}

pub(super) fn run(verb: &Completions) -> Outcome {
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
    Ok(Exit::Done)
}
