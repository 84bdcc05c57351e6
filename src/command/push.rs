//! `sifon push`: a SIF file to a registry.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use sifon_mount::blob::BlobError;
use sifon_mount::reference::Reference;

use super::pull::is_set;
use crate::output::bytes;
use crate::pack::upload::{UploadError, push};
use crate::setting::{Context, Error, Settings, parsed};

/// Upload a SIF file to a registry
///
/// It is stored as Singularity and Apptainer store it, and they pull it with oras://…, as `sifon pull` does. Who may
/// write there says `sifon registry login`, or any file that docker, podman or apptainer write.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The SIF file
    file: PathBuf,
    /// Where to put it: oras://HOST/NAME:TAG
    image: OsString,
    /// Taken for Singularity's sake: nothing here is refused for want of a signature
    #[arg(short = 'U', long, hide = true)]
    allow_unsigned: bool,
}

impl Args {
    /// What Singularity's variables for this command say about the settings of all.
    pub fn amend(&self, settings: &mut Settings) {
        settings.open.registry.plain_http |= is_set(&["NOHTTPS", "NO_HTTPS"]);
    }
}

/// Pushes.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let Reference::Oras(place) = parsed(&args.image)? else {
        let problem = "a SIF file can only be pushed to oras://HOST/NAME:TAG";
        return Err(format!("{}: {problem}", args.image.display()).into());
    };
    if context.settings.open.offline {
        let object = format!("oras://{place}");
        return Err(BlobError::Offline { object }.into());
    }
    let size = std::fs::metadata(&args.file).map_or(0, |metadata| metadata.len());
    let bar = context.output.bar("uploading", size);
    let shown = bar.clone();
    let sent = Arc::new(move |more: i64| {
        let at = shown.position().saturating_add_signed(more);
        shown.set_position(at);
    });
    let pushed = push(&args.file, &place, &context.settings.open.registry, sent)?;
    bar.finish_and_clear();
    let there = match pushed.was_there {
        true => ", which the registry had already",
        false => "",
    };
    // The first words are Singularity's.
    tracing::info!(
        "Upload complete: oras://{place}: {}{there}, manifest {}",
        bytes(pushed.bytes),
        pushed.manifest
    );
    Ok(ExitCode::SUCCESS)
}

/// What the user can do about a failure of this command.
pub fn hint(error: &Error) -> Option<String> {
    error.downcast_ref::<UploadError>()?.hint()
}
