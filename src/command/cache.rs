//! `sifon cache`: what the store keeps.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use serde_json::json;
use sifon_mount::store::ImageUse;

use crate::output::{bytes, plain, short};
use crate::setting::{Context, Error};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Show or shrink what is kept of images
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the images in the store, most recently used first
    List {
        /// Print JSON
        #[arg(short, long)]
        json: bool,
        /// Of Apptainer's kinds: all that is kept here is of one
        #[arg(
            short = 'T',
            long = "type",
            value_name = "KIND",
            value_delimiter = ',',
            hide = true
        )]
        kinds: Vec<String>,
    },
    /// Remove images that are not mounted, or as many as make the store fit a size
    ///
    /// Images that are mounted somewhere are kept. Prints how much was freed.
    Clean {
        /// Stop when the store takes this much at most, such as 5G; without it everything unused goes
        #[arg(long, value_name = "BYTES", value_parser = crate::setting::byte_count)]
        to: Option<u64>,
        /// Only images that nobody has used for so many days
        #[arg(short = 'D', long, value_name = "COUNT", conflicts_with = "to")]
        days: Option<u16>,
        /// Only say what would be removed
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Print JSON
        #[arg(short, long)]
        json: bool,
        /// Do not ask: nobody is ever asked
        #[arg(short, long, hide = true)]
        force: bool,
        /// Of Apptainer's kinds: all that is kept here is of one
        #[arg(
            short = 'T',
            long = "type",
            value_name = "KIND",
            value_delimiter = ',',
            hide = true
        )]
        kinds: Vec<String>,
    },
}

/// What Apptainer calls kinds of cached things that ours are of.
const KINDS: [&str; 5] = ["all", "blob", "blobs", "oci", "oci-tmp"];

/// Whether one of the kinds that the user named is kept here.
fn are_ours(kinds: &[String]) -> bool {
    kinds.is_empty() || kinds.iter().any(|kind| KINDS.contains(&&**kind))
}

/// Lists or cleans.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    match &args.verb {
        Verb::List { json, kinds } => list(context, *json, are_ours(kinds))?,
        Verb::Clean { kinds, .. } if !are_ours(kinds) => {
            tracing::info!("nothing of these kinds is kept here");
        }
        &Verb::Clean {
            to,
            days,
            dry_run,
            json,
            ..
        } => clean(context, to, days, dry_run, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(context: &Context, json: bool, are_ours: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let store = context.store();
    let mut images = store.images();
    images.retain(|_| are_ours);
    let (used, budget) = (store.used_bytes(), store.budget());
    if json {
        let images: Vec<_> = images.iter().map(as_json).collect();
        let store_path = store.directory().to_string_lossy();
        return writeln!(
            stdout,
            "{}",
            json!({"store": store_path, "used_bytes": used, "budget_bytes": budget, "images": images})
        );
    }
    writeln!(
        stdout,
        "{:<12}  {:>10}  {:>9}  {:<6}  IMAGE",
        "MANIFEST", "SIZE", "LAST USE", "IN USE"
    )?;
    for image in &images {
        writeln!(
            stdout,
            "{:<12}  {:>10}  {:>9}  {:<6}  {}",
            short(image.record.manifest),
            bytes(image.bytes),
            ago(image.last_used),
            if image.is_in_use { "yes" } else { "no" },
            plain(&image.record.reference),
        )?;
    }
    writeln!(
        stdout,
        "{} of {} used in {}",
        bytes(used),
        bytes(budget),
        store.directory().display()
    )
}

fn as_json(image: &ImageUse) -> serde_json::Value {
    let since_epoch = image.last_used.duration_since(SystemTime::UNIX_EPOCH);
    json!({
        "reference": image.record.reference,
        "manifest": image.record.manifest,
        "bytes": image.bytes,
        "last_used": since_epoch.map_or(0, |since| since.as_secs()),
        "in_use": image.is_in_use,
    })
}

fn clean(
    context: &Context,
    to: Option<u64>,
    days: Option<u16>,
    dry_run: bool,
    json: bool,
) -> io::Result<()> {
    let store = context.store();
    let evicted = match days {
        Some(days) => store.evict_unused(DAY * days.into(), dry_run),
        None => store.evict(to.unwrap_or(0), dry_run),
    };
    let mut stdout = io::stdout().lock();
    if json {
        writeln!(
            stdout,
            "{}",
            json!({"images": evicted.images, "bytes": evicted.bytes, "dry_run": dry_run})
        )
    } else {
        let verb = if dry_run {
            "would be removed"
        } else {
            "removed"
        };
        writeln!(
            stdout,
            "{} {} {verb}, {} freed",
            evicted.images,
            if evicted.images == 1 {
                "image"
            } else {
                "images"
            },
            bytes(evicted.bytes)
        )
    }
}

/// How long ago, in the largest unit that fits.
fn ago(at: SystemTime) -> String {
    let seconds = at.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
