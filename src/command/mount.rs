//! `sifon mount`: an image on a directory.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sifon_mount::daemon::{self, Announcer, LaunchError, Mount, MountError, Options, Stop, Target};
use sifon_mount::fuse::View;
use sifon_mount::image::open::{OnProgress, Opened, Progress};
use sifon_mount::reference::Reference;
use sifon_mount::store::Lease;
use sifon_mount::sys::mount::FuseOptions;

use crate::setting::{Context, Error, Settings, parsed};

/// Show an image as a directory
///
/// Returns when the image can be read; a process in the background serves it until `sifon umount`.
/// An image that can be read lazily (zstd:chunked), or that is in the store, is there at once; another is
/// streamed once. The directory is made if it is missing, and then removed again at the end.
///
/// As root every user sees the image with the owners it has, and the permissions that go with them. Other users
/// mount through fusermount3 and see it alone; inside a user namespace no helper is needed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, such as docker://python:3.11
    image: OsString,
    /// The directory, empty or missing
    directory: PathBuf,
    /// Stay in the foreground until the image is unmounted or a signal comes
    #[arg(short, long)]
    foreground: bool,
    /// Let other users look into the image too, with the permissions it gives them
    #[arg(long)]
    allow_other: bool,
}

/// What the process in the background is asked to do.
#[derive(Serialize, Deserialize)]
struct Request {
    settings: Settings,
    /// As the user wrote it; paths count from the launcher's directory, in which this process starts.
    image: OsString,
    directory: PathBuf,
    allow_other: bool,
}

/// Verb of the process in the background.
pub const SERVE_VERB: &str = "serve-mount";

/// Verb of the process that watches it.
pub const WATCH_VERB: &str = "watch-mount";

/// Mounts, in the background unless told otherwise.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let reference = parsed(&args.image)?;
    // The daemon looks again; here it is for an answer before anything is fetched.
    Target::look(&args.directory)?;
    if args.foreground {
        let stop = Stop::on_signals()?;
        let opened = context.open(&reference)?;
        let (mount, _lease) = mounted(
            opened,
            &reference,
            &args.directory,
            args.allow_other,
            context,
            stop,
        )?;
        mount.wait()?;
        return Ok(ExitCode::SUCCESS);
    }
    let request = Request {
        settings: context.settings.clone(),
        image: args.image.clone(),
        directory: std::path::absolute(&args.directory)?,
        allow_other: args.allow_other,
    };
    let progress = context.output.progress();
    let verb = daemon::Respawn::verb(SERVE_VERB);
    daemon::launch(&verb, &request, |step: Progress| progress(step))?;
    Ok(ExitCode::SUCCESS)
}

/// The process in the background, from its start to the end of the mount.
pub fn serve() -> ExitCode {
    let Ok((request, announcer, stop)) = daemon::begin::<Request>() else {
        // The launcher has heard nothing and says so.
        return ExitCode::FAILURE;
    };
    match started(request, &announcer, stop) {
        Ok((mount, _lease)) if announcer.ready().is_ok() => match mount.wait() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(_unwanted) => ExitCode::FAILURE,
        Err(err) => {
            announcer.failed(&*err, crate::command::hint(&err));
            ExitCode::FAILURE
        }
    }
}

fn started(
    request: Request,
    announcer: &Announcer,
    stop: Stop,
) -> Result<(Mount, Option<Lease>), Error> {
    let context = Context::new(request.settings);
    let reference = parsed(&request.image)?;
    let told = announcer.clone();
    let progress: OnProgress = Arc::new(move |step| told.progress(&step));
    let opened = context.open_telling(&reference, &progress)?;
    mounted(
        opened,
        &reference,
        &request.directory,
        request.allow_other,
        &context,
        stop,
    )
}

/// The mount, and what keeps its image in the store as long as it lives.
fn mounted(
    opened: Opened,
    reference: &Reference,
    directory: &Path,
    allow_other: bool,
    context: &Context,
    stop: Stop,
) -> Result<(Mount, Option<Lease>), Error> {
    let target = Target::look(directory)?;
    let digest = opened.description.manifest_digest;
    let options = Options {
        fuse: FuseOptions {
            source: daemon::source_of(&reference.to_string(), digest),
            allow_other: allow_other || rustix::process::getuid().is_root(),
            ..FuseOptions::default()
        },
        view: View {
            timeout: context.settings.open.registry.timeout,
            ..View::default()
        },
        watcher: daemon::Respawn::verb(WATCH_VERB),
    };
    let mount = Mount::start(opened.image, target, options, stop)?;
    Ok((mount, opened.lease))
}

/// What the user can do about a failure of these commands.
pub fn hint(error: &Error) -> Option<String> {
    if let Some(err) = error.downcast_ref::<MountError>() {
        return err.hint();
    }
    if let Some(err) = error.downcast_ref::<daemon::TargetError>() {
        return err.hint();
    }
    error
        .downcast_ref::<LaunchError>()?
        .hint()
        .map(str::to_owned)
}
