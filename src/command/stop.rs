//! `sifon stop`: servers leave at once.

use std::process::ExitCode;

use crate::container::client::Server;
use crate::container::meeting;
use crate::setting::Error;

/// Unmount images that were left mounted for the next program
///
/// Those that programs run in stay, and are an error, unless `--force` is given: such programs get errors from then on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Even if programs run in them
    #[arg(short, long)]
    force: bool,
    /// Only those of this job, as `sifon ps` names it
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
}

/// Stops every server of this user that can be reached from here.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let mut is_used = false;
    for stream in meeting::servers()? {
        let Ok(Some(server)) = Server::at(stream) else {
            continue;
        };
        if let Some(job) = &args.job {
            match server.status() {
                Ok(Some(status)) if status.job == *job => {}
                _ => continue,
            }
        }
        let Ok(Some(status)) = server.stop(args.force) else {
            continue;
        };
        for image in &status.images {
            if !image.clients.is_empty() && !args.force {
                is_used = true;
                tracing::warn!(
                    "{} stays: processes {:?} run in it (--force stops it all the same)",
                    image.image,
                    image.clients
                );
            }
        }
    }
    Ok(ExitCode::from(u8::from(is_used)))
}
