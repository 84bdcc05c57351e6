//! `sifon mount`: an image on a directory.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sifon_mount::daemon::{self, Announcer, LaunchError, Mount, MountError, Options, Stop, Target};
use sifon_mount::fuse::View;
use sifon_mount::image::history::{History, Plan};
use sifon_mount::image::open::{OnProgress, OnTop, Opened, Progress};
use sifon_mount::reference::Reference;
use sifon_mount::store::Lease;
use sifon_mount::sys::memory::keep_one_heap;
use sifon_mount::sys::mount::FuseOptions;

use super::stats;
use crate::output::bytes;
use crate::pack;
use crate::pack::singularity::Origin;
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
    #[command(flatten)]
    extras: Extras,
}

/// What a mount does besides showing files.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
struct Extras {
    /// Fetch the rest of the image while nobody reads, so that later it needs no network
    #[arg(long)]
    background: bool,
    /// Serve numbers for Prometheus on this port of the loopback address
    #[arg(long, value_name = "PORT")]
    metrics: Option<u16>,
    /// Show /.singularity.d too, so that `apptainer exec DIR` takes the directory for a container
    #[arg(long)]
    singularity: bool,
}

/// What the process in the background is asked to do.
#[derive(Serialize, Deserialize)]
struct Request {
    settings: Settings,
    /// As the user wrote it; paths count from the launcher's directory, in which this process starts.
    image: OsString,
    directory: PathBuf,
    allow_other: bool,
    extras: Extras,
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
        let opened = opened(
            context,
            &reference,
            &args.extras,
            &context.output.progress(),
        )?;
        let how = How {
            directory: &args.directory,
            allow_other: args.allow_other,
            extras: &args.extras,
        };
        let (mount, _kept) = mounted(opened, &reference, how, context, stop)?;
        mount.wait()?;
        return Ok(ExitCode::SUCCESS);
    }
    let request = Request {
        settings: context.settings.clone(),
        image: args.image.clone(),
        directory: std::path::absolute(&args.directory)?,
        allow_other: args.allow_other,
        extras: args.extras.clone(),
    };
    let progress = context.output.progress();
    let verb = daemon::Respawn::verb(SERVE_VERB);
    daemon::launch(&verb, &request, |step: Progress| progress(step))?;
    Ok(ExitCode::SUCCESS)
}

/// The process in the background, from its start to the end of the mount.
pub fn serve() -> ExitCode {
    keep_one_heap();
    let Ok((request, announcer, stop)) = daemon::begin::<Request>() else {
        // The launcher has heard nothing and says so.
        return ExitCode::FAILURE;
    };
    match started(request, &announcer, stop) {
        Ok((mount, _kept)) if announcer.ready().is_ok() => match mount.wait() {
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

fn started(request: Request, announcer: &Announcer, stop: Stop) -> Result<(Mount, Kept), Error> {
    let context = Context::new(request.settings);
    let reference = parsed(&request.image)?;
    let told = announcer.clone();
    let progress: OnProgress = Arc::new(move |step| told.progress(&step));
    let opened = opened(&context, &reference, &request.extras, &progress)?;
    let how = How {
        directory: &request.directory,
        allow_other: request.allow_other,
        extras: &request.extras,
    };
    mounted(opened, &reference, how, &context, stop)
}

fn opened(
    context: &Context,
    reference: &Reference,
    extras: &Extras,
    progress: &OnProgress,
) -> Result<Opened, Error> {
    let opened = with_singularitys_layer(reference, |on_top| {
        let on_top = extras.singularity.then_some(on_top);
        context.open_for_programs(reference, progress, on_top)
    })?;
    match opened.has_layer_on_top {
        Err(err) => Err(format!("{reference}: --singularity: {err}").into()),
        Ok(_) => Ok(opened),
    }
}

/// What `open` gives, which is told what to lay on top of an image so that Singularity takes it for one of its own.
pub(super) fn with_singularitys_layer<T>(
    reference: &Reference,
    open: impl FnOnce(&OnTop<'_>) -> T,
) -> T {
    open(&OnTop {
        name: &format!(
            "Singularity's names {} of {reference}",
            pack::layer::VERSION
        ),
        layer: &|below, description| {
            let origin =
                Origin::of(&reference.to_string()).with_manifest(description.manifest_digest);
            pack::layer::layer(below, &description.config, &origin)
        },
    })
}

/// What lives as long as a mount: the record of what is read, and what keeps the image in the store.
type Kept = (History, Option<Lease>);

/// How an image is to be mounted.
struct How<'a> {
    directory: &'a Path,
    allow_other: bool,
    extras: &'a Extras,
}

/// The mount, and what lives as long as it.
fn mounted(
    opened: Opened,
    reference: &Reference,
    how: How<'_>,
    context: &Context,
    stop: Stop,
) -> Result<(Mount, Kept), Error> {
    let target = Target::look(how.directory)?;
    let plan = Plan {
        records_profile: !context.settings.open.no_profile,
        completes: how.extras.background && !context.settings.open.offline,
    };
    if context.settings.open.offline {
        tell_missing(&opened);
    }
    let history = History::begin(&opened, &reference.to_string(), context.store(), plan);
    let answers = stats::answers(history.teller());
    if let Some(port) = how.extras.metrics {
        let address = daemon::serve_metrics(port, answers.clone())
            .map_err(|err| format!("metrics, port {port}: cannot be listened on: {err}"))?;
        tracing::info!("metrics: http://{address}/metrics");
    }
    let digest = opened.description.manifest_digest;
    let options = Options {
        fuse: FuseOptions {
            source: daemon::source_of(&reference.to_string(), digest),
            allow_other: how.allow_other || rustix::process::getuid().is_root(),
            ..FuseOptions::default()
        },
        view: View {
            timeout: context.settings.open.registry.timeout,
            ..View::default()
        },
        watcher: daemon::Respawn::verb(WATCH_VERB),
        answers: Some(answers),
    };
    let mount = Mount::start(opened.image, target, options, stop)?;
    Ok((mount, (history, opened.lease)))
}

/// Without a network what is missing stays so: the user should know before a program does.
fn tell_missing(opened: &Opened) {
    for lacking in opened.chunks.lacking() {
        let (missing, of) = (bytes(lacking.bytes), bytes(lacking.of));
        tracing::warn!(
            "offline, layer {}: {missing} of {of} are not in the store; reading what lies there fails (`sifon complete` \
             fetches it where there is a network)",
            lacking.layer
        );
    }
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
