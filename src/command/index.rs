//! `sifon index`: an unmodified image becomes one that is read lazily.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;
use sifon_mount::digest::Digest;
use sifon_mount::image::indexing::{Outcome, Plan, index};
use sifon_mount::image::share::{ShareError, Way, share};
use sifon_mount::layer::soci::SPACING_BYTES;
use sifon_mount::reference::Reference;

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
    /// Push what was made to the image's registry, for everyone: a SOCI index that is attached to the unchanged image
    ///
    /// Who mounts the image with --soci-v1 reads it lazily, and so do SOCI's own programs. Layers that have an index here
    /// are streamed once more.
    #[arg(long)]
    push: bool,
    /// With --push: push a copy of the image under this tag, in the same repository, that names its index instead
    ///
    /// The copy shares all layers with the image, and is read lazily by everyone, since whoever trusts the image can trust
    /// its index.
    #[arg(long, value_name = "TAG", requires = "push")]
    tag: Option<String>,
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

/// What is printed of an index that was pushed, with the same promise.
#[derive(Debug, Serialize)]
struct Pushed {
    index: Digest,
    layers: usize,
    bytes: u64,
    image: Option<Digest>,
    tag: Option<String>,
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
    let way = way(args, &reference)?;
    let plan = Plan {
        spacing: args.spacing,
        shares: way.is_some(),
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
    let pushed = way.map(|way| {
        share(
            &reference,
            settings,
            context.store(),
            &description,
            &outcomes,
            &way,
        )
    });
    let pushed = pushed.transpose()?.map(|shared| Pushed {
        index: shared.index,
        layers: shared.layers,
        bytes: shared.bytes,
        image: shared.image,
        tag: shared.tag,
    });
    match (args.json, pushed) {
        (true, None) => print_json(&layers)?,
        (true, Some(pushed)) => print_json(&json!({"layers": layers, "pushed": pushed}))?,
        (false, pushed) => {
            print_layers(&layers)?;
            pushed.as_ref().map_or(Ok(()), print_pushed)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How the index is pushed, if it is; known to be possible before anything is read.
fn way(args: &Args, reference: &Reference) -> Result<Option<Way>, Error> {
    let Reference::Registry(repository) = reference else {
        let reference = reference.to_string();
        return match args.push {
            true => Err(ShareError::NotARegistry { reference }.into()),
            false => Ok(None),
        };
    };
    let Some(tag) = &args.tag else {
        return Ok(args.push.then_some(Way::Attached));
    };
    let (host, repository) = (&repository.host, &repository.repository);
    let named = format!("docker://{host}/{repository}:{tag}").parse();
    match named {
        Ok(Reference::Registry(named)) if named.tag.as_ref() == Some(tag) => {
            Ok(Some(Way::Named { tag: tag.clone() }))
        }
        _ => Err(
            format!("--tag {tag:?}: not a tag, which is letters, digits, and . _ - inside").into(),
        ),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value)?;
    Ok(writeln!(stdout)?)
}

fn print_layers(layers: &[Layer]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    for layer in layers {
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
    Ok(())
}

fn print_pushed(pushed: &Pushed) -> Result<(), Error> {
    let (index, layers, size) = (short(pushed.index), pushed.layers, bytes(pushed.bytes));
    let place = match (pushed.image, &pushed.tag) {
        (Some(image), Some(tag)) => format!("named by {tag} ({})", short(image)),
        (_, Some(tag)) => format!("attached to the image, listed under {tag}"),
        (_, None) => "attached to the image".into(),
    };
    let mut stdout = io::stdout().lock();
    Ok(writeln!(
        stdout,
        "pushed index {index}: {layers} layers, {size}, {place}"
    )?)
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Made { .. } => "made",
        Outcome::Had => "had",
        Outcome::Seekable => "seekable",
        Outcome::NotGzip => "not gzip",
    }
}
