//! One node of a replicated key-value cluster. Everything is in the library.

fn main() -> std::process::ExitCode {
    replcluster::server::main(std::env::args_os())
}
