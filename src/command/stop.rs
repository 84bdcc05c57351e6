//! `sifon stop`: servers leave at once.

use std::process::ExitCode;

use crate::container::client::Server;
use crate::container::meeting::{self, Group};
use crate::setting::Error;

/// Unmount images that were left mounted for the next program
///
/// Those that programs run in stay, and are an error, unless `--force` is given: such programs get errors from then on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Even if programs run in them
    #[arg(short, long)]
    force: bool,
    /// Those of this job, as `sifon ps` names it [default: the job or login session of the caller]
    #[arg(long, value_name = "JOB", conflicts_with = "all")]
    job: Option<String>,
    /// Those of all jobs of this user
    #[arg(short, long)]
    all: bool,
}

/// Stops servers of this user that can be reached from here.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let job = match (&args.job, args.all) {
        (_, true) => None,
        (Some(job), false) => Some(job.clone()),
        (None, false) => Some(Group::of_caller("")?.job),
    };
    let mut is_used = false;
    for stream in meeting::servers()? {
        let Ok(Some(server)) = Server::at(stream) else {
            continue;
        };
        if let Some(job) = &job {
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
