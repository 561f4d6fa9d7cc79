//! The shape of the source as a test: who may import whom (see the square in `src/lib.rs`), and what never stands in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// For each module what it may not name, as crate modules or as crates.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("view", &["crate::", "tokio", "tonic", "std::fs", "std::net"]),
    (
        "protocol",
        &[
            "crate::kv",
            "crate::node",
            "crate::api",
            "crate::register",
            "crate::config",
            "crate::control",
            "crate::supervisor",
            "crate::cli",
            "crate::client",
            "crate::clock",
            "crate::proto",
            "tokio",
            "tonic",
            "prost",
            "std::fs",
            "std::net",
            "std::time",
            "std::thread",
            "rand::",
        ],
    ),
    (
        "kv",
        &[
            "crate::protocol",
            "crate::view",
            "crate::node",
            "crate::api",
            "crate::register",
            "crate::config",
            "crate::control",
            "crate::supervisor",
            "crate::cli",
            "crate::client",
            "crate::clock",
            "tokio",
            "tonic",
            "std::fs",
            "std::net",
            "std::time",
            "std::thread",
            "rand::",
        ],
    ),
    ("notify", &["crate::", "tokio", "tonic", "std::time", "std::thread", "rand::"]),
    ("check", &["crate::", "tokio", "tonic", "std::fs", "std::net", "std::time", "std::thread", "rand::"]),
    (
        "control",
        &[
            "crate::protocol",
            "crate::kv",
            "crate::node",
            "crate::api",
            "crate::register",
            "crate::supervisor",
            "crate::cli",
            "crate::client",
            "crate::clock",
            "crate::proto",
            "tokio",
            "tonic",
            "std::fs",
            "std::net",
            "std::thread",
            "rand::",
        ],
    ),
    (
        "register",
        &[
            "crate::protocol",
            "crate::kv",
            "crate::node",
            "crate::api",
            "crate::control",
            "crate::supervisor",
            "crate::cli",
            "crate::client",
        ],
    ),
    (
        "node",
        &[
            "crate::api",
            "crate::control",
            "crate::supervisor",
            "crate::cli",
            "crate::client",
            "crate::config",
        ],
    ),
    (
        "api",
        &[
            "crate::protocol",
            "crate::register",
            "crate::control",
            "crate::supervisor",
            "crate::cli",
            "crate::config",
        ],
    ),
    (
        "telemetry",
        &[
            "crate::protocol",
            "crate::kv",
            "crate::node",
            "crate::api",
            "crate::register",
            "crate::control",
            "crate::supervisor",
            "crate::cli",
            "crate::client",
            "crate::config",
            "crate::server",
            "tokio",
            "tonic",
        ],
    ),
    ("supervisor", &["crate::protocol", "crate::kv", "crate::node", "crate::api", "crate::cli"]),
    ("cli", &["crate::node", "crate::protocol", "crate::kv", "crate::api"]),
    (
        "client",
        &["crate::node", "crate::protocol", "crate::kv", "crate::api", "crate::supervisor", "crate::cli"],
    ),
];

fn sources(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The crate module that a file belongs to.
fn module_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap();
    let first = inner.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Lines of code: comments and what only tests see are left out.
fn code(text: &str) -> Vec<(usize, &str)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut kept = Vec::new();
    let mut number = 0;
    while let Some(line) = lines.get(number) {
        if line.starts_with("#[cfg(test)]") {
            // A module in a file of its own is one line; one in braces is the rest of the file.
            let declared = lines[number + 1..].iter().find(|line| !line.starts_with('#'));
            if !declared.is_some_and(|line| line.ends_with(';')) {
                break;
            }
            number += lines[number + 1..].iter().take_while(|line| line.starts_with('#')).count() + 2;
            continue;
        }
        if !line.trim_start().starts_with("//") {
            kept.push((number + 1, *line));
        }
        number += 1;
    }
    kept
}

/// Files, without `.rs`, and directories that only tests see: `#[cfg(test)] mod name;`, with its `#[path]` if it has one.
fn test_modules() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for path in sources(&root().join("src")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let parent = path.parent().unwrap();
        let own = if stem == "mod" || stem == "lib" { parent.to_owned() } else { parent.join(&stem) };
        for number in (0..lines.len()).filter(|number| lines[*number].starts_with("#[cfg(test)]")) {
            let named =
                lines[number + 1].strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix(".rs\"]"));
            if let Some(name) = named {
                found.insert(parent.join(name));
            } else if let Some((_, name)) =
                lines[number + 1].split_once("mod ").filter(|(_, name)| name.ends_with(';'))
            {
                found.insert(own.join(name.trim_end_matches(';')));
            }
        }
    }
    found
}

fn is_test_file(path: &Path, modules: &BTreeSet<PathBuf>) -> bool {
    let bare = path.with_extension("");
    bare.ancestors().any(|part| modules.contains(part))
}

/// What a module names that it may not.
fn violations(module: &str, text: &str) -> Vec<String> {
    let Some((_, forbidden)) = FORBIDDEN.iter().find(|(name, _)| *name == module) else { return Vec::new() };
    let mut found = Vec::new();
    for (number, line) in code(text) {
        for word in *forbidden {
            let named = line.match_indices(word).any(|(at, _)| {
                let (before, after) =
                    (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
                let is_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
                // One of our modules is named whole; a crate stands for its whole family.
                let ends =
                    !word.starts_with("crate::") || word.ends_with(':') || !after.is_some_and(is_of_word);
                ends && !before.is_some_and(|letter| is_of_word(letter) || letter == ':')
            });
            if named {
                found.push(format!("{number}: {word}"));
            }
        }
    }
    found
}

#[test]
fn no_module_names_what_it_may_not() {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let tests = test_modules();
    for path in sources(&root().join("src")) {
        let module = module_of(&path);
        seen.insert(module.clone());
        if !is_test_file(&path, &tests) {
            let text = std::fs::read_to_string(&path).unwrap();
            found.extend(
                violations(&module, &text).into_iter().map(|what| format!("{}:{what}", path.display())),
            );
        }
    }
    assert!(found.is_empty(), "arrows that go the wrong way:\n{}", found.join("\n"));
    for (module, _) in FORBIDDEN {
        assert!(seen.contains(*module), "the table names {module}, which is not there");
    }
}

#[test]
fn the_table_would_notice_a_wrong_arrow() {
    assert_eq!(violations("protocol", "use crate::view::View;\nuse crate::kv::Store;\n"), ["2: crate::kv"]);
    assert_eq!(violations("kv", "let x = tokio::spawn(y);"), ["1: tokio"]);
    assert_eq!(violations("kv", "use tokio_stream::Stream;"), ["1: tokio"]);
    assert_eq!(violations("api", "use crate::cli::Verb;"), ["1: crate::cli"]);
    assert!(violations("api", "use crate::client::Link;").is_empty(), "another module of a longer name");
    assert_eq!(violations("kv", "#[cfg(test)]\nmod tests;\nuse std::fs;"), ["3: std::fs"]);
    assert!(violations("kv", "// tokio is not named here\n#[cfg(test)]\nuse std::fs;").is_empty());
}

#[test]
fn every_file_says_what_it_is_for_and_nothing_is_left_for_later() {
    let mut found = Vec::new();
    let tests = test_modules();
    for path in sources(&root().join("src")).into_iter().chain(sources(&root().join("tests"))) {
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.starts_with("//!") && !is_test_file(&path, &tests) {
            found.push(format!("{} does not open with //!", path.display()));
        }
        for word in
            [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("#[ig", "nore")]
        {
            if text.contains(word) {
                found.push(format!("{} holds {word}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
