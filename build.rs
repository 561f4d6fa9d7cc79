//! Turns the `.proto` texts into Rust with `protox`, so that no `protoc` is needed on the machine, and says which
//! commit is built.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Set by packagers who build without the repository: the commit, as it shall be printed.
const COMMIT_VARIABLE: &str = "REPLCLUSTER_COMMIT";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let plain = std::env::var("CARGO_PKG_VERSION")?;
    let version = commit().map_or(plain.clone(), |commit| format!("{plain} ({commit})"));
    println!("cargo:rustc-env=REPLCLUSTER_VERSION={version}");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    for file in ["etcd/rpc.proto", "replcluster/peer.proto", "replcluster/node.proto"] {
        compiler.open_file(file)?;
    }
    std::fs::write(out.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    // Keys and values stay slices of the buffer they arrived in: no copy per request.
    tonic_prost_build::configure()
        .bytes(".authpb")
        .bytes(".mvccpb")
        .bytes(".etcdserverpb")
        .bytes(".replcluster")
        .generate_default_stubs(true)
        .codec_path("crate::proto::codec::BoundedCodec")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// What stands behind the version: what a packager says, else the commit of the repository that this directory is,
/// with its day. Nothing where there is neither: a source archive builds too.
///
/// Builds for development carry none. They would be built anew after every commit, or name a wrong one.
fn commit() -> Option<String> {
    println!("cargo:rerun-if-env-changed={COMMIT_VARIABLE}");
    if let Some(told) = std::env::var(COMMIT_VARIABLE).ok().filter(|told| !told.trim().is_empty()) {
        return Some(told.trim().to_owned());
    }
    if std::env::var("PROFILE").ok()? != "release" {
        return None;
    }
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").ok()?).canonicalize().ok()?;
    // A copy that somebody else keeps in a repository of theirs has none of our commits.
    if Path::new(&git(&here, &["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != here {
        return None;
    }
    // Where a commit shows itself, and whatever can make the source another than that of the commit.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&here, &["rev-parse", "--git-path", name]) {
            let path = here.join(path);
            // A file that is not there would have this run each time.
            if path.is_file() {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
    for path in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let commit = git(&here, &["log", "-1", "--format=%h %cs", "--abbrev=7"])?;
    let changed = git(&here, &["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { commit.replacen(' ', "-dirty ", 1) })
}

/// What git says; nothing where it is not there or refuses.
fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("--no-optional-locks").arg("-C").arg(directory).args(arguments);
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
