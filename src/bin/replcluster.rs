//! The controller's program. All of it is in [`replcluster::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    replcluster::cli::main()
}
