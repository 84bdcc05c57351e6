//! `sifon compact`: an image as one SIF file.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use sifon_mount::daemon;
use sifon_mount::digest::Digest;
use sifon_mount::image::history;
use sifon_mount::reference::Reference;
use sifon_mount::source::config::ImageConfig;

use crate::output::bytes;
use crate::pack::singularity::Origin;
use crate::pack::touched::Summary;
use crate::pack::without::{LeftOut, Patterns};
use crate::pack::{
    Checked, Compression, Options, PackError, PlaceError, SandboxError, Withheld, check_place,
    compact, sandbox, unpack,
};
use crate::setting::{Context, Error, environment, parsed};

/// Pack an image into a SIF file
///
/// Singularity and Apptainer run the file on machines without a network. Layers that are not in the store are
/// fetched. The bytes depend on the image and on these options only.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, such as docker://python:3.11, or where one is mounted
    image: OsString,
    /// The file to write
    file: PathBuf,
    /// Replace the file if it exists
    #[arg(short = 'F', long)]
    force: bool,
    /// How to compress: zstd, gzip, xz, lz4 or none, with a level as in zstd:19; without a level, zstd copies what the
    /// store has, and gzip is read by the oldest kernels too
    #[arg(long, value_name = "NAME[:LEVEL]", default_value_t)]
    compression: Compression,
    /// Leave out what matches, such as usr/share/doc or **/*.pyc; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Keep only files that programs have read in mounts of the image, as `profile show` lists them, and what is needed to start; says
    /// what is missing then, and so does the file
    #[arg(long)]
    only_touched: bool,
    /// Read the file back, with a program part that did not write it, and compare everything in it with the image
    #[arg(long)]
    check: bool,
}

/// Packs.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let (reference, mounted) = meant(&args.image)?;
    let options = Packing {
        force: args.force,
        compression: args.compression,
        check: args.check,
        only_touched: args.only_touched,
        exclude: (!args.exclude.is_empty())
            .then(|| Patterns::parse(&args.exclude))
            .transpose()?,
    };
    packed(context, &reference, mounted, &args.file, &options)?;
    Ok(ExitCode::SUCCESS)
}

/// What users decide about packing.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    /// Whether a file that is there is replaced.
    pub force: bool,
    /// How blocks are compressed.
    pub compression: Compression,
    /// Whether the file is read back before it appears.
    pub check: bool,
    /// Whether only what was read stays.
    pub only_touched: bool,
    /// What is left out.
    pub exclude: Option<Patterns>,
}

/// Packs the image into `file`, and says so. Its manifest must be `expected`, if that is given, whatever its tag means today; the file
/// names its source as `reference` does.
pub(super) fn packed(
    context: &Context,
    reference: &Reference,
    expected: Option<Digest>,
    file: &Path,
    packing: &Packing,
) -> Result<(), Error> {
    let created = source_date_epoch()?;
    check_place(file, packing.force)?;
    let opened = context.open(&pinned(reference, expected))?;
    let found = opened.description.manifest_digest;
    if expected.is_some_and(|expected| expected != found) {
        return Err(format!("{reference}: changed since it was mounted").into());
    }
    warn_of_other_machine(context, reference, &opened.description.config);
    let touched = match packing.only_touched {
        true => Some(touched(context, reference, found)?),
        false => None,
    };
    let bar = context
        .output
        .bar("packing", opened.image.tree().file_bytes());
    let options = Options {
        overwrite: packing.force,
        compression: packing.compression,
        check: packing.check,
        exclude: packing.exclude.as_ref(),
        touched: touched.as_ref(),
        created,
        timeout: context.settings.open.registry.timeout,
        progress: &|bytes| bar.inc(bytes),
    };
    let origin = Origin::of(&reference.to_string()).with_manifest(found);
    let config = &opened.description.config;
    let report = compact(&opened.image, config, &origin, file, options)?;
    bar.finish_and_clear();
    for warning in report.lost.warnings() {
        tracing::warn!("{reference}: {warning}");
    }
    if let Some(summary) = &report.untouched {
        tell_missing(file, summary);
    }
    if packing.exclude.is_some() {
        let LeftOut {
            names,
            bytes: count,
        } = report.left_out;
        tracing::info!(
            "{}: without {names} names, {}",
            file.display(),
            bytes(count)
        );
    }
    match report.checked {
        Some(Checked {
            unchecked: Some(problem),
            ..
        }) => {
            tracing::warn!(
                "{}: not checked: the other reader cannot read {problem}",
                file.display()
            );
        }
        Some(Checked { names, .. }) => {
            tracing::info!(
                "{}: checked, {names} names are as in the image",
                file.display()
            );
        }
        None => {}
    }
    tracing::info!("{}: {}", file.display(), bytes(report.bytes));
    Ok(())
}

/// An image that is not in an index is taken for whatever machine it is; Apptainer says as much.
fn warn_of_other_machine(context: &Context, reference: &Reference, config: &ImageConfig) {
    let (found, wanted) = (
        &config.architecture,
        &context.settings.open.registry.platform.architecture,
    );
    if !found.is_empty() && found != wanted {
        tracing::warn!("{reference}: is for {found}, not for {wanted}, and there is no other");
    }
}

/// The files that were read in mounts of the image.
fn touched(
    context: &Context,
    reference: &Reference,
    manifest: Digest,
) -> Result<HashSet<Vec<u8>>, Error> {
    let profile = history::profile(context.store(), manifest);
    let profile = profile.filter(|profile| !profile.parts.is_empty());
    let Some(profile) = profile else {
        return Err(Unread(reference.to_string()).into());
    };
    Ok(profile.parts.into_iter().map(|part| part.path).collect())
}

/// There is nothing to go by.
#[derive(Debug, thiserror::Error)]
#[error("{0}: the store does not know what is read of it")]
struct Unread(String);

fn tell_missing(file: &Path, summary: &Summary) {
    let file = file.display();
    tracing::warn!(
        "{file}: {} files, {}, are missing because nothing has read them; {} are there",
        summary.missing_files,
        bytes(summary.missing_bytes),
        summary.kept_files
    );
    for (directory, count) in &summary.missing_most {
        tracing::info!("{file}: without {} below /{directory}", bytes(*count));
    }
}

/// Unpacks the image into the directory `out`, and says so.
pub(super) fn unpacked(
    context: &Context,
    reference: &Reference,
    out: &Path,
    overwrite: bool,
) -> Result<(), Error> {
    let created = source_date_epoch()?;
    sandbox::check_place(out, overwrite).map_err(PackError::from)?;
    let opened = context.open(reference)?;
    warn_of_other_machine(context, reference, &opened.description.config);
    let bar = context
        .output
        .bar("unpacking", opened.image.tree().file_bytes());
    let options = Options {
        overwrite,
        created,
        timeout: context.settings.open.registry.timeout,
        progress: &|bytes| bar.inc(bytes),
        ..Options::default()
    };
    let origin = Origin::of(&reference.to_string());
    let config = &opened.description.config;
    let withheld = unpack(&opened.image, config, &origin, out, options)?;
    bar.finish_and_clear();
    tell_unpacked(out, &withheld);
    Ok(())
}

/// Says that the directory `out` is there, and what it has not.
pub(super) fn tell_unpacked(out: &Path, withheld: &Withheld) {
    for warning in withheld.warnings() {
        tracing::warn!("{}: {warning}", out.display());
    }
    tracing::info!("{}: unpacked", out.display());
}

/// What the user can do about a failure of this command.
pub fn hint(error: &Error) -> Option<String> {
    if error.is::<Unread>() {
        return Some("mount or run it first, and use what has to work; what is read is recorded within a minute, or at the end".into());
    }
    match error.downcast_ref::<PackError>()? {
        PackError::Place(PlaceError::Exists { .. })
        | PackError::Sandbox(SandboxError::Exists { .. }) => Some("--force replaces it".into()),
        PackError::Full { .. } => Some("give a name on a file system with more room".into()),
        _ => None,
    }
}

/// What to pack. Of a mounted image, the manifest that is mounted.
fn meant(text: &OsStr) -> Result<(Reference, Option<Digest>), Error> {
    let image = match parsed(text) {
        // A path may be a directory on which an image is mounted.
        Ok(Reference::File(path)) => Ok(Reference::File(path)),
        Ok(reference) => return Ok((reference, None)),
        Err(err) => Err(err),
    };
    let Ok(Some(mounted)) = daemon::mounted_at(Path::new(text)) else {
        return Ok((image?, None));
    };
    Ok((parsed(OsStr::new(&mounted.reference))?, mounted.digest))
}

/// The same image, if it is one of a registry, by the digest of its manifest.
fn pinned(reference: &Reference, manifest: Option<Digest>) -> Reference {
    let mut reference = reference.clone();
    if let Reference::Registry(registry) = &mut reference {
        registry.digest = manifest.or(registry.digest);
    }
    reference
}

/// What a change of a file is dated, in seconds since 1970: now, unless a build says what time it is.
pub(super) fn time_of_change() -> Result<i64, Error> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since_epoch.map_or(0, |since| since.as_secs() as i64);
    Ok(source_date_epoch()?.unwrap_or(now))
}

/// The time that reproducible-builds.org lets a build say it is.
pub(super) fn source_date_epoch() -> Result<Option<i64>, Error> {
    let Some(value) = environment(&["SOURCE_DATE_EPOCH"]) else {
        return Ok(None);
    };
    let seconds = value.to_str().and_then(|text| text.parse().ok());
    match seconds {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(format!("$SOURCE_DATE_EPOCH: {value:?} is no number of seconds").into()),
    }
}
