//! `sifon complete`: the rest of an image, so that it needs no network.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use sifon_mount::digest::Digest;

use crate::output::{bytes, short};
use crate::setting::{Context, Error, parsed};

/// Fetch what is missing of an image, so that it needs no network
///
/// What the store has is not fetched again: a completion that was interrupted goes on where it stopped. At the end all of
/// each layer is compared with its digest. Afterwards the image can be mounted with --offline.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, such as docker://python:3.11
    image: OsString,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed of a layer. The names of the fields are those of the JSON: scripts depend on them.
#[derive(Debug, Serialize)]
struct Layer {
    digest: Digest,
    bytes: u64,
    /// What had to be fetched, of a layer that is kept as it is; others were streamed when the image was opened.
    fetched_bytes: u64,
}

/// Completes, and says what came.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let reference = parsed(&args.image)?;
    let opened = context.open(&reference)?;
    let chunks = &opened.chunks;
    let lacking = chunks.lacking();
    let mut layers = Vec::new();
    for layer in &opened.description.manifest.layers {
        let missing = lacking.iter().find(|lacking| lacking.layer == layer.digest);
        let is_seekable = chunks
            .seekable()
            .iter()
            .any(|seekable| seekable.layer == layer.digest);
        if is_seekable {
            let bar = RefCell::new(context.output.bar("completing", layer.size));
            let came = |bytes| bar.borrow_mut().inc(bytes);
            chunks.complete(layer.digest, &came, &|| false)?;
        } else if !reference.is_file_system() && context.store().native(layer.digest).is_none() {
            return Err(format!(
                "layer {}: the store {} could not keep it",
                layer.digest,
                context.store().directory().display()
            )
            .into());
        }
        layers.push(Layer {
            digest: layer.digest,
            bytes: layer.size,
            fetched_bytes: missing.map_or(0, |missing| missing.bytes),
        });
    }
    let mut stdout = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &layers)?;
        writeln!(stdout)?;
        return Ok(ExitCode::SUCCESS);
    }
    for layer in &layers {
        let (digest, size) = (short(layer.digest), bytes(layer.bytes));
        match layer.fetched_bytes {
            0 => writeln!(stdout, "{digest:<12}  {size:>10}  complete")?,
            fetched => writeln!(
                stdout,
                "{digest:<12}  {size:>10}  complete, {} fetched",
                bytes(fetched)
            )?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
