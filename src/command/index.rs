//! `sifon index`: an unmodified image becomes one that is read lazily.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use sifon_mount::digest::Digest;
use sifon_mount::image::indexing::{Outcome, Plan, index};
use sifon_mount::layer::soci::SPACING_BYTES;

use crate::output::{bytes, short};
use crate::setting::{Context, Error, byte_count, parsed};

/// Make an image readable lazily, once and for all
///
/// Streams each gzip layer once and keeps checkpoints in the store at which it can be decompressed later, with a digest of
/// what lies between them, and a table of the files: together about a fiftieth of the layer. From then on a mount fetches only what is
/// read, even if nothing else of the image is in the store. The image itself does not change.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, such as docker://python:3.11
    image: OsString,
    /// How far checkpoints are apart at least, in bytes after decompression
    #[arg(long, value_name = "BYTES", default_value_t = SPACING_BYTES, value_parser = spacing)]
    spacing: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed of a layer. The names of the fields are those of the JSON: scripts depend on them.
#[derive(Debug, Serialize)]
struct Layer {
    digest: Digest,
    packed_bytes: u64,
    /// `made`, `had`, `seekable` or `not gzip`.
    index: &'static str,
    index_bytes: u64,
}

/// Between what costs more than it saves and what nobody waits for.
fn spacing(text: &str) -> Result<u64, String> {
    match byte_count(text)? {
        spacing @ 64_000..=0x200_0000 => Ok(spacing),
        _ => Err("must be between 64K and 32M".into()),
    }
}

/// Indexes, and says what that cost.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let reference = parsed(&args.image)?;
    let plan = Plan {
        spacing: args.spacing,
        shares: false,
    };
    let progress = context.output.progress();
    let settings = &context.settings.open;
    let (description, outcomes) = index(&reference, settings, context.store(), plan, &progress)?;
    let layers = description.manifest.layers.iter().zip(&outcomes);
    let layers: Vec<Layer> = layers
        .map(|(layer, outcome)| Layer {
            digest: layer.digest,
            packed_bytes: layer.size,
            index: word(outcome),
            index_bytes: match outcome {
                Outcome::Made { index_bytes, .. } => *index_bytes,
                _ => 0,
            },
        })
        .collect();
    let mut stdout = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &layers)?;
        writeln!(stdout)?;
        return Ok(ExitCode::SUCCESS);
    }
    for layer in &layers {
        let (digest, size) = (short(layer.digest), bytes(layer.packed_bytes));
        match layer.index_bytes {
            0 => writeln!(stdout, "{digest:<12}  {size:>10}  {}", layer.index)?,
            index => writeln!(
                stdout,
                "{digest:<12}  {size:>10}  {}: {}",
                layer.index,
                bytes(index)
            )?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Made { .. } => "made",
        Outcome::Had => "had",
        Outcome::Seekable => "seekable",
        Outcome::NotGzip => "not gzip",
    }
}
