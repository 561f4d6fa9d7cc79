//! `export`: what another service manager needs to run this cluster, resolved from the configuration. Only prints, or
//! writes files where it is told to; nothing is installed or started.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use crate::config::{Config, Register};
use crate::supervisor::layout::Layout;
use crate::supervisor::spawn;

use super::completions::nodes_and_all;
use super::context::{Context, list};
use super::exit::{Exit, Failure, Outcome};
use super::target;

mod unit;

use unit::Unit;

#[derive(Debug, Args)]
pub(super) struct Export {
    /// For whom
    #[arg(value_enum, value_name = "FORMAT")]
    format: Format,
    /// A unit for this node alone, or with `all` one for each: systemd is their supervisor then
    #[arg(long, value_name = "ADDR", conflicts_with = "cluster", add = ArgValueCandidates::new(nodes_and_all))]
    node: Option<String>,
    /// A unit for the supervisor, which runs all nodes [default]
    #[arg(long)]
    cluster: bool,
    /// Write the units into this directory instead of printing them
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The user they run as [default: whoever types this, or replcluster where that is root]
    #[arg(long, value_name = "NAME", value_parser = user_name)]
    user: Option<String>,
    /// With --out: say what would be written, and write nothing
    #[arg(long, requires = "out")]
    dry_run: bool,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Units for systemd.
    Systemd,
}

pub(super) fn run(verb: &Export, context: &Context) -> Outcome {
    let Format::Systemd = verb.format;
    let config = &context.config;
    if let Register::Etcd { .. } = config.register {
        let message =
            "a register in etcd is not served by this version\nset kind = \"file\" under [register]";
        return Err(Failure::usage(message));
    }
    let user = verb.user.clone().unwrap_or_else(default_user);
    let units = units(verb, config, &context.layout, &user)?;
    match &verb.out {
        None => {
            for (position, unit) in units.iter().enumerate() {
                let gap = if position == 0 { "" } else { "\n" };
                anstream::print!("{gap}# {}\n{}", unit.name, unit.text);
            }
        }
        Some(directory) => {
            for unit in &units {
                let path = directory.join(&unit.name);
                if verb.dry_run {
                    anstream::println!("would write {}", path.display());
                } else {
                    write(directory, &path, &unit.text)?;
                    anstream::println!("wrote {}", path.display());
                }
            }
        }
    }
    // Beside the units and not in them: what is printed can go into a file as it is.
    let directory = verb.out.as_deref();
    anstream::eprintln!("\ninstall:");
    for line in installation(&units, directory, &user, config, context.layout.root()) {
        anstream::eprintln!("  {line}");
    }
    for warning in warnings(&units, config, &context.layout) {
        anstream::eprintln!("warning: {warning}");
    }
    Ok(Exit::Done)
}

fn units(verb: &Export, config: &Config, layout: &Layout, user: &str) -> Result<Vec<Unit>, Failure> {
    let Some(text) = &verb.node else {
        let program = std::env::current_exe().map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("cannot tell where this program lies: {error}\nstart it by its path"),
            )
        })?;
        return Ok(vec![unit::of_cluster(config, layout, &program, user)]);
    };
    let nodes = if text == "all" {
        config.nodes.clone()
    } else {
        let node = target::by_address(text, &config.nodes);
        vec![node.map_err(|error| Failure::usage(error.to_string()))?]
    };
    let program = spawn::find_server().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    Ok(nodes.iter().map(|node| unit::of_node(config, layout, node, &program, user)).collect())
}

fn write(directory: &Path, path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::create_dir_all(directory).and_then(|()| std::fs::write(path, text)).map_err(|error| {
        let message =
            format!("cannot write {}: {error}\nname a directory of yours with --out", path.display());
        Failure::new(Exit::Failed, message)
    })
}

/// The commands that install the units, ready for a shell.
fn installation(
    units: &[Unit],
    written: Option<&Path>,
    user: &str,
    config: &Config,
    root: &Path,
) -> Vec<String> {
    let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
    let names = names.join(" ");
    let quoted = |path: &Path| quote(path.as_os_str());
    let mut lines = Vec::new();
    if user != "root" {
        lines.push(format!(
            "id {user} >/dev/null 2>&1 || sudo useradd --system --shell /usr/sbin/nologin {user}"
        ));
    }
    if root.exists() {
        let down = format!("replcluster --config {} down", quoted(&config.path));
        lines.push(format!("{down}   # where it runs by hand now"));
        lines.push(format!("sudo chown -R {user}: {}", quoted(root)));
    } else {
        lines.push(format!("sudo install -d -m 0700 -o {user} {}", quoted(root)));
    }
    match written {
        Some(directory) => {
            let files: Vec<String> = units.iter().map(|unit| quoted(&directory.join(&unit.name))).collect();
            lines.push(format!("sudo install -m 0644 {} /etc/systemd/system/", files.join(" ")));
        }
        None if units.len() == 1 => {
            lines.push(format!("… | sudo tee /etc/systemd/system/{names} >/dev/null"));
        }
        None => {
            lines.push("the same again with --out DIR, and its files into /etc/systemd/system".to_owned());
        }
    }
    lines.push("sudo systemctl daemon-reload".to_owned());
    lines.push(format!("sudo systemctl enable --now {names}"));
    lines
}

/// What would not work as it stands.
fn warnings(units: &[Unit], config: &Config, layout: &Layout) -> Vec<String> {
    let mut warnings = Vec::new();
    for unit in units {
        if unit::is_in_home(&unit.program) {
            warnings.push(format!(
                "{} lies in a home directory that other users may not enter; install it in /usr/local/bin, and export from there",
                unit.program.display()
            ));
            break;
        }
    }
    let home = [config.path.as_path(), layout.root()].into_iter().find(|path| unit::is_in_home(path));
    if let Some(path) = home {
        warnings.push(format!(
            "{} lies in a home directory: ProtectHome is only read-only, and the user of the unit must be let in",
            path.display()
        ));
    }
    if units.len() < config.nodes.len() && units.iter().any(|unit| unit.node.is_some()) {
        warnings.push(format!("the other nodes of {} need units too: --node all", list(&config.nodes)));
    }
    warnings
}

fn default_user() -> String {
    let own = nix::unistd::Uid::effective();
    let name = nix::unistd::User::from_uid(own).ok().flatten().map(|user| user.name);
    name.filter(|_| !own.is_root()).unwrap_or_else(|| "replcluster".to_owned())
}

/// Names that systemd takes; also keeps what is printed for a shell free of anything to quote.
fn user_name(text: &str) -> Result<String, String> {
    let first = text.chars().next().is_some_and(|letter| letter.is_ascii_lowercase() || letter == '_');
    let rest = text
        .chars()
        .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "_-".contains(letter));
    if first && rest && text.len() <= 31 {
        Ok(text.to_owned())
    } else {
        Err("expected a user's name: small letters, digits, _ and -".to_owned())
    }
}

/// A word for a shell.
fn quote(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%,".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_create_what_is_missing_and_quote_paths() {
        let unit = Unit {
            name: "replcluster-c.service".to_owned(),
            text: String::new(),
            program: PathBuf::from("/usr/bin/replcluster"),
            node: None,
        };
        let config = crate::config::parse(
            Path::new("/c/cluster.toml"),
            "nodes = [\"127.0.0.1:1\"]",
            &crate::config::resolve,
        );
        let config = config.unwrap();
        let lines = installation(
            &[unit],
            Some(Path::new("/x y")),
            "replcluster",
            &config,
            Path::new("/nonexistent/it's"),
        );
        assert_eq!(
            lines,
            [
                "id replcluster >/dev/null 2>&1 || sudo useradd --system --shell /usr/sbin/nologin replcluster",
                r"sudo install -d -m 0700 -o replcluster '/nonexistent/it'\''s'",
                "sudo install -m 0644 '/x y/replcluster-c.service' /etc/systemd/system/",
                "sudo systemctl daemon-reload",
                "sudo systemctl enable --now replcluster-c.service",
            ]
        );
    }

    #[test]
    fn a_users_name_is_one_that_systemd_takes() {
        assert!(user_name("replcluster").is_ok());
        for text in ["", "1a", "a b", "a%i", "Root", "a\nb"] {
            assert!(user_name(text).is_err(), "{text}");
        }
    }
}
