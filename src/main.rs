//! The command line; see [`sifon::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    sifon::cli::main()
}
