//! `sifon shell`: a shell in an image.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use super::program::{self, Action};
use crate::setting::{Context, Error, environment};

/// Run a shell in an image
///
/// /bin/bash if the image has it, else /bin/sh. All else is as with `exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    program: program::Args,
    /// Which shell of the image; also $SIFON_SHELL and Singularity's variables
    #[arg(short, long, value_name = "PATH")]
    shell: Option<PathBuf>,
    /// The image and arguments for the shell
    #[arg(value_names = ["IMAGE", "ARGUMENT"], num_args = 1.., required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// Becomes the shell; returns only if that fails.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let (image, words) = args.words.split_first().ok_or("no image was named")?;
    let named = environment(&["SIFON_SHELL", "APPTAINER_SHELL", "SINGULARITY_SHELL"]);
    let shell = args.shell.clone().or_else(|| named.map(PathBuf::from));
    let action = Action::Shell(shell, words.to_vec());
    program::run(context, &args.program, image, action)
}
