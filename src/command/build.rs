//! `sifon build`: an image, or a directory, as a SIF file or as a directory of its own.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sifon_mount::registry::Platform;
use sifon_mount::source;

use super::compact::{Packing, packed, source_date_epoch, tell_unpacked, unpacked};
use crate::output::bytes;
use crate::pack::directory::DirectorySource;
use crate::pack::singularity::{Config, Origin};
use crate::pack::{
    Compression, Options, PackError, SandboxError, check_place, copy_directory, pack_directory,
    sandbox,
};
use crate::setting::{Context, Error, parsed};

/// Build a SIF file from an image or a directory
///
/// The source is an image, such as docker://python:3.11, or a directory: a root file system, or what Singularity calls
/// a sandbox. Definition files are not built.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to write
    file: PathBuf,
    /// The image or the directory
    source: OsString,
    /// Replace the file if it exists
    #[arg(short = 'F', long)]
    force: bool,
    /// Unpack the image, or copy the directory, into a directory instead, which `exec` takes as an image
    #[arg(short, long)]
    sandbox: bool,
    /// How to compress: zstd, gzip, xz, lz4 or none, with a level as in zstd:19
    #[arg(long, value_name = "NAME[:LEVEL]", default_value_t)]
    compression: Compression,
}

/// Builds.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let packing = Packing {
        force: args.force,
        compression: args.compression,
        ..Packing::default()
    };
    let directory = Path::new(&args.source);
    if directory.is_dir() {
        match args.sandbox {
            true => copied(context, directory, &args.file, args.force)?,
            false => from_directory(context, directory, &args.file, &packing)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    if directory.is_file() && !source::is_image_file(directory) {
        let problem = "definition files cannot be built";
        return Err(format!(
            "{}: {problem}: name an image or a directory",
            directory.display()
        )
        .into());
    }
    let reference = parsed(&args.source)?;
    if args.sandbox {
        unpacked(context, &reference, &args.file, args.force)?;
        return Ok(ExitCode::SUCCESS);
    }
    packed(context, &reference, None, &args.file, &packing)?;
    Ok(ExitCode::SUCCESS)
}

/// What there is to say about a directory, which has no configuration.
fn said_of(directory: &Path) -> (Config, Origin) {
    let config = Config {
        architecture: Platform::host().architecture,
        oci_config: serde_json::json!({}),
        ..Config::default()
    };
    let origin = Origin {
        bootstrap: "localimage".into(),
        from: directory.display().to_string(),
        manifest: None,
    };
    (config, origin)
}

fn from_directory(
    context: &Context,
    directory: &Path,
    file: &Path,
    packing: &Packing,
) -> Result<(), Error> {
    check_place(file, packing.force)?;
    let source = DirectorySource::open(directory)?;
    let bar = context.output.bar("packing", source.file_bytes());
    let options = Options {
        overwrite: packing.force,
        compression: packing.compression,
        created: source_date_epoch()?,
        timeout: context.settings.open.registry.timeout,
        progress: &|bytes| bar.inc(bytes),
        ..Options::default()
    };
    let (config, origin) = said_of(directory);
    let report = pack_directory(&source, &config, &origin, file, options)?;
    bar.finish_and_clear();
    for warning in report.lost.warnings() {
        tracing::warn!("{}: {warning}", directory.display());
    }
    tracing::info!("{}: {}", file.display(), bytes(report.bytes));
    Ok(())
}

fn copied(context: &Context, directory: &Path, out: &Path, overwrite: bool) -> Result<(), Error> {
    sandbox::check_place(out, overwrite).map_err(PackError::from)?;
    let failed = |source| SandboxError::Io {
        path: out.to_owned(),
        source,
    };
    if let Some(problem) = nested(directory, out).map_err(|err| PackError::from(failed(err)))? {
        return Err(format!("{}: {problem}", out.display()).into());
    }
    let source = DirectorySource::open(directory)?;
    let bar = context.output.bar("copying", source.file_bytes());
    let options = Options {
        overwrite,
        created: source_date_epoch()?,
        progress: &|bytes| bar.inc(bytes),
        ..Options::default()
    };
    let (config, origin) = said_of(directory);
    let withheld = copy_directory(&source, &config, &origin, out, options)?;
    bar.finish_and_clear();
    tell_unpacked(out, &withheld);
    Ok(())
}

/// Why `out` cannot be a copy of `directory`, whatever symlinks lead to them: one would have the other in it. A directory can take its
/// own place, with what Singularity needs.
fn nested(directory: &Path, out: &Path) -> io::Result<Option<String>> {
    let from = directory.canonicalize()?;
    let place = match (out.parent(), out.file_name()) {
        (Some(parent), Some(name)) if parent == Path::new("") => {
            Path::new(".").canonicalize()?.join(name)
        }
        (Some(parent), Some(name)) => parent.canonicalize()?.join(name),
        _ => out.canonicalize()?,
    };
    let shown = directory.display();
    Ok(if from == place {
        None
    } else if place.starts_with(&from) {
        Some(format!("lies in {shown}, which is to be copied"))
    } else if from.starts_with(&place) {
        Some(format!("{shown} lies in it, and would go with it"))
    } else {
        None
    })
}
