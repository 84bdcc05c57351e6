//! `sifon stats`: what reading an image costs.

mod page;
mod treemap;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sifon_mount::daemon;
use sifon_mount::fetch::Why;
use sifon_mount::image::history;
use sifon_mount::image::stats::Stats;

use crate::output::{bytes, plain};
use crate::setting::{Context, Error, parsed};

/// What a mount's process is asked.
pub const QUESTION: &str = "stats";

/// Tell what reading an image costs
///
/// Of a directory where an image is mounted: so far. Of an image that was mounted: the last time. What was fetched, why and
/// how often; how long programs waited, and for which files; how much of the image was ever read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory, or the image, such as docker://python:3.11
    what: OsString,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw it into this file: a page for any browser, with a map of the image and a timeline of the requests
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
    /// Print what Prometheus reads (of a mounted image)
    #[arg(long, conflicts_with_all = ["json", "html"])]
    prometheus: bool,
}

/// Asks, and tells.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    if args.prometheus {
        let numbers = daemon::asked(Path::new(&args.what), daemon::METRICS)?;
        io::stdout()
            .lock()
            .write_all(&numbers.ok_or_else(|| not_there(&args.what))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stats = found(context, &args.what)?;
    if let Some(file) = &args.html {
        std::fs::write(file, page::page(&stats))
            .map_err(|err| format!("file {}: {err}", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut stdout = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &stats)?;
        writeln!(stdout)?;
    } else {
        write(&stats, &mut stdout)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn found(context: &Context, what: &OsStr) -> Result<Stats, Error> {
    if daemon::mounted_at(Path::new(what)).is_ok_and(|mounted| mounted.is_some()) {
        let answer = daemon::asked(Path::new(what), QUESTION)?;
        return Ok(serde_json::from_slice(
            &answer.ok_or_else(|| not_there(what))?,
        )?);
    }
    let reference = parsed(what)?.to_string();
    let images = context.store().images();
    let image = images
        .iter()
        .find(|image| image.record.reference == reference);
    let stats = image.and_then(|image| history::stored(context.store(), image.record.manifest));
    stats.ok_or_else(|| {
        format!("{reference}: the store knows of no mount in which something was read").into()
    })
}

fn not_there(what: &OsStr) -> Error {
    let path = Path::new(what).display();
    format!("directory {path}: no process of this user answers there for a mounted image").into()
}

/// For people.
fn write(stats: &Stats, to: &mut impl Write) -> io::Result<()> {
    let (moved, reads, share) = (&stats.moved, &stats.reads, &stats.share);
    writeln!(to, "{}", plain(&stats.subject.reference))?;
    writeln!(
        to,
        "manifest {}, mounted for {}",
        stats.subject.manifest,
        time(stats.seconds.saturating_mul(1_000_000))
    )?;
    writeln!(to, "\nFETCHED             REQUESTS       BYTES  FAILED")?;
    for (why, count) in Why::ALL.into_iter().zip(&moved.fetched) {
        let came = bytes(count.bytes);
        writeln!(
            to,
            "{:<18}  {:>8}  {came:>10}  {:>6}",
            why.name(),
            count.requests,
            count.failures
        )?;
    }
    if stats.mounts_before > 0 {
        let before = bytes(stats.fetched_before);
        writeln!(to, "{before} by {} mounts before", stats.mounts_before)?;
    }
    if moved.fetched_again > 0 {
        writeln!(
            to,
            "{} were wrong and fetched again",
            bytes(moved.fetched_again)
        )?;
    }
    if let (Some(round_trip), Some(rate)) = (moved.round_trip_us, moved.bytes_per_sec) {
        writeln!(
            to,
            "round trip {}, {}/s over a connection",
            time(round_trip),
            bytes(rate)
        )?;
    }
    let read_bytes = bytes(reads.bytes);
    writeln!(
        to,
        "\nREADS   {} of {read_bytes}, {} failed",
        reads.reads, reads.failures
    )?;
    writeln!(
        to,
        "        {} answered from memory",
        percent(reads.from_memory, reads.reads)
    )?;
    let chunks = moved
        .chunks_from_store
        .saturating_add(moved.chunks_waited_for);
    let from_store = percent(moved.chunks_from_store, chunks);
    writeln!(
        to,
        "        {from_store} of the other chunks of lazy layers were in the store"
    )?;
    writeln!(to, "        programs waited {}", time(reads.waited_us))?;
    writeln!(
        to,
        "\nEVER READ  {} of {} ({}), {} of {} files",
        bytes(share.read_bytes),
        bytes(share.bytes),
        percent(share.read_bytes, share.bytes),
        share.read_files,
        share.files
    )?;
    for kept in &stats.layers {
        let (here, of) = (bytes(kept.kept_bytes), bytes(kept.bytes));
        writeln!(to, "layer {}: {here} of {of} in the store", kept.layer)?;
    }
    writeln!(to, "\n    WAITED       READ  READS  FILE")?;
    for file in &stats.costly {
        let (waited, read) = (time(file.reads.waited_us), bytes(file.reads.bytes));
        writeln!(
            to,
            "{waited:>10} {read:>10} {:>6}  {}",
            file.reads.reads,
            plain(&file.path)
        )?;
    }
    Ok(())
}

fn time(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        1_000_000..120_000_000 => format!("{:.1} s", micros as f64 / 1e6),
        _ => format!("{} min", micros / 60_000_000),
    }
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "0 %".into(),
        whole => format!("{:.1} %", part as f64 / whole as f64 * 100.0),
    }
}
