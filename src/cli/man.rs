//! `man`: the manual, made from the same words as `--help`.

use std::path::PathBuf;

use clap::Args;

use super::command;
use super::exit::{Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write one page a verb into this directory instead
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(verb: &Man) -> Outcome {
    let failed = |error: std::io::Error| {
        Failure::new(
            Exit::Failed,
            format!("cannot write the manual: {error}\nname a directory that exists with --out"),
        )
    };
    match &verb.out {
        Some(directory) => clap_mangen::generate_to(command(), directory).map_err(failed)?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command()).render(&mut page).map_err(failed)?;
            anstream::print!("{}", String::from_utf8_lossy(&page));
        }
    }
    Ok(Exit::Done)
}
