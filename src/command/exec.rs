//! `sifon exec`: a program in an image.

use std::ffi::OsString;
use std::process::ExitCode;

use super::program::{self, Action};
use crate::setting::{Context, Error};

/// Run a program in an image
///
/// The program sees the image as its root directory, and of this machine /proc, /sys, /dev, $HOME,
/// /tmp, /var/tmp and the current directory. It runs as you, with your terminal and your environment
/// (what the image sets wins), and its exit status is this command's. WORKDIR and USER of the image
/// are ignored, as Singularity does (see --oci-defaults). Options end at the image's name.
///
/// A directory with a root file system will do as image, too (Singularity's sandbox, made by `sifon build --sandbox`): it is shown as it
/// is at that moment, and only read unless --writable is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    program: program::Args,
    /// The image, the program and its arguments
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 2.., required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// Becomes the program; returns only if that fails.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let (image, words) = args.words.split_first().ok_or("no image was named")?;
    program::run(context, &args.program, image, Action::Exec(words.to_vec()))
}
