//! `sifon run`: the program that an image names.

use std::ffi::OsString;
use std::process::ExitCode;

use super::program::{self, Action};
use crate::setting::{Context, Error};

/// Run what the image is for
///
/// The program is the image's ENTRYPOINT, with the arguments given here or else those of CMD; without ENTRYPOINT the arguments are
/// the program, or else CMD is; an image that Singularity made has a script for it, and a directory without one a shell. Arguments
/// are evaluated once more ($NAME), unless --no-eval is given. All else is as with `exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    program: program::Args,
    /// The image and arguments
    #[arg(value_names = ["IMAGE", "ARGUMENT"], num_args = 1.., required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// Becomes the program; returns only if that fails.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let (image, words) = args.words.split_first().ok_or("no image was named")?;
    program::run(context, &args.program, image, Action::Run(words.to_vec()))
}
