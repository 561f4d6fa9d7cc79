//! `init`: a commented `cluster.toml` that starts as it is.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::Args;

use crate::config::{FILE_NAME, SAMPLE};

use super::exit::{Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct Init {}

pub(super) fn run(_: &Init, given: Option<PathBuf>) -> Outcome {
    let path = given.unwrap_or_else(|| PathBuf::from(FILE_NAME));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(SAMPLE.as_bytes()));
    match written {
        Ok(()) => {
            anstream::println!("wrote {}\nnext: replcluster up", path.display());
            Ok(Exit::Done)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::new(
            Exit::Conflict,
            format!(
                "{} is there already and was left as it is\nstart what it describes with `replcluster up`",
                path.display()
            ),
        )),
        Err(error) => Err(Failure::new(
            Exit::Failed,
            format!("cannot write {}: {error}\nname another file with --config", path.display()),
        )),
    }
}
