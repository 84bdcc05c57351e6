//! `sifon umount`: the end of a mount.

use std::path::PathBuf;
use std::process::ExitCode;

use sifon_mount::daemon;

use crate::setting::Error;

/// Unmount an image
///
/// Waits until it is gone and its process has ended. When somebody uses it, says who.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where it is mounted
    #[arg(required = true, value_name = "DIRECTORY")]
    directories: Vec<PathBuf>,
    /// Detach it now, even if it is used; it ends with its last user
    #[arg(short, long)]
    lazy: bool,
}

/// Unmounts one after another.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    for directory in &args.directories {
        if args.lazy {
            daemon::detach(directory)?;
            continue;
        }
        for user in daemon::unmount(directory)?.kept_by {
            tracing::warn!(
                directory = %directory.display(),
                "unmounted, but {user} still has it; its server ends with that (a container's, when all have ended: sifon stop)"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
