//! `sifon build`: an image, or a directory, as a SIF file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sifon_mount::registry::Platform;
use sifon_mount::source;

use super::compact::{Packing, packed, source_date_epoch, unpacked};
use crate::output::bytes;
use crate::pack::directory::DirectorySource;
use crate::pack::singularity::{Config, Origin};
use crate::pack::{Compression, Options, check_place, pack_directory};
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
    /// Unpack the image into a directory instead, which `exec` takes as an image
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
    if directory.is_dir() && args.sandbox {
        return Err(format!("{}: is a directory already", directory.display()).into());
    }
    if directory.is_dir() {
        from_directory(context, directory, &args.file, &packing)?;
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
    let report = pack_directory(&source, &config, &origin, file, options)?;
    bar.finish_and_clear();
    for warning in report.lost.warnings() {
        tracing::warn!("{}: {warning}", directory.display());
    }
    tracing::info!("{}: {}", file.display(), bytes(report.bytes));
    Ok(())
}
