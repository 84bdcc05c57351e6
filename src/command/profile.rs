//! `sifon profile`: what is known about the reads of an image.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use sifon_mount::digest::Digest;
use sifon_mount::image::history;
use sifon_mount::image::profile::{AGE_LIMIT, PROFILE_BYTES_LIMIT, Profile};
use sifon_mount::layer::entry::shown;
use sifon_mount::store::Name;

use crate::output::{bytes, plain};
use crate::setting::{Context, Error, parsed};

/// Show or exchange what is known about the reads of an image
///
/// Each mount records what is read of an image, in the order of the first reads, and the next one fetches that at once, before
/// programs ask for it. Nothing of it is believed: a wrong profile costs time, not correctness.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the parts of files in the order of their first reads
    Show {
        /// The image, such as docker://python:3.11
        image: OsString,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the profile to a file
    Export {
        /// The image, such as docker://python:3.11
        image: OsString,
        /// The file; without it stdout
        file: Option<PathBuf>,
    },
    /// Add a profile from a file, which may be of another build of the image
    Import {
        /// The image, such as docker://python:3.11
        image: OsString,
        /// The file; - is stdin
        file: PathBuf,
    },
}

/// Shows, writes or reads.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    match &args.verb {
        Verb::Show { image, json } => {
            let profile = found(context, image)?;
            match json {
                true => show_json(&profile)?,
                false => show(&profile)?,
            }
        }
        Verb::Export { image, file } => export(&found(context, image)?, file.as_deref())?,
        Verb::Import { image, file } => import(context, manifest(context, image)?, file)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn manifest(context: &Context, image: &OsString) -> Result<Digest, Error> {
    let (description, _) = context.outlook(&parsed(image)?)?;
    Ok(description.manifest_digest)
}

fn found(context: &Context, image: &OsString) -> Result<Profile, Error> {
    let manifest = manifest(context, image)?;
    let profile = history::profile(context.store(), manifest);
    let name = image.to_string_lossy();
    profile.ok_or_else(|| {
        format!("{name}: the store has no profile of it: nobody has read it yet").into()
    })
}

fn show(profile: &Profile) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(
        stdout,
        "{:>12}  {:>12}  {:>4}  FILE",
        "FROM", "LENGTH", "AGE"
    )?;
    for part in &profile.parts {
        let len = part.bytes.end - part.bytes.start;
        let path = plain(&shown(&part.path));
        writeln!(
            stdout,
            "{:>12}  {len:>12}  {:>4}  {path}",
            part.bytes.start, part.age
        )?;
    }
    let sum = |all: &mut dyn Iterator<Item = u64>| all.fold(0u64, u64::saturating_add);
    let all = sum(&mut profile
        .parts
        .iter()
        .map(|part| part.bytes.end - part.bytes.start));
    let ahead = sum(&mut profile
        .lively()
        .map(|part| part.bytes.end - part.bytes.start));
    writeln!(
        stdout,
        "{} parts, {}; {} are fetched ahead (what was read in the last {AGE_LIMIT} mounts)",
        profile.parts.len(),
        bytes(all),
        bytes(ahead)
    )
}

fn show_json(profile: &Profile) -> io::Result<()> {
    let parts: Vec<_> = profile
        .parts
        .iter()
        .map(|part| {
            json!({
                "path": String::from_utf8_lossy(&part.path),
                "from": part.bytes.start,
                "bytes": part.bytes.end - part.bytes.start,
                "age": part.age,
            })
        })
        .collect();
    let manifest = profile.manifest;
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, &json!({"manifest": manifest, "parts": parts}))?;
    writeln!(stdout)
}

fn export(profile: &Profile, file: Option<&Path>) -> Result<(), Error> {
    let text = profile.text();
    match file {
        None => io::stdout().lock().write_all(text.as_bytes())?,
        Some(file) => std::fs::write(file, text).map_err(|err| unusable(file, &err))?,
    }
    Ok(())
}

fn unusable(file: &Path, problem: &dyn std::fmt::Display) -> Error {
    format!("file {}: {problem}", file.display()).into()
}

fn import(context: &Context, manifest: Digest, file: &Path) -> Result<(), Error> {
    let mut text = Vec::new();
    let limit = PROFILE_BYTES_LIMIT as u64 + 1;
    let read = match file == Path::new("-") {
        true => io::stdin().lock().take(limit).read_to_end(&mut text),
        false => File::open(file).and_then(|file| file.take(limit).read_to_end(&mut text)),
    };
    read.map_err(|err| unusable(file, &err))?;
    let imported = Profile::parse(&text).map_err(|err| unusable(file, &err))?;
    if imported.manifest != manifest {
        tracing::info!(
            "it was recorded for another build of the image: files that this one lacks are passed over"
        );
    }
    let store = context.store();
    let before = history::profile(store, manifest).unwrap_or_else(|| Profile::empty(manifest));
    let count = imported.parts.len();
    let after = before.after(imported.parts, false);
    let kept = store.keep_hint(Name::Profile(manifest), after.text().as_bytes());
    kept.map_err(|err| format!("store {}: {err}", store.directory().display()))?;
    writeln!(io::stdout().lock(), "{count} parts imported")?;
    Ok(())
}
