//! `sifon stats`: what reading an image costs.

mod page;
mod treemap;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use sifon_mount::daemon::{self, Answers};
use sifon_mount::digest::Digest;
use sifon_mount::fetch::Why;
use sifon_mount::image::history::{self, Teller};
use sifon_mount::image::open::{Options, identify};
use sifon_mount::image::prometheus;
use sifon_mount::image::stats::Stats;
use sifon_mount::store::Store;

use crate::container::client::Server;
use crate::container::meeting::{self, Group};
use crate::output::{bytes, plain};
use crate::setting::{Context, Error, image_or_directory};

/// What a mount's process is asked.
const QUESTION: &str = "stats";

/// What a process that shows an image can be asked.
pub fn answers(teller: Teller) -> Answers {
    Answers(Arc::new(move |question| match question {
        QUESTION => serde_json::to_vec(&teller.stats()).ok(),
        daemon::METRICS => Some(prometheus::text(&teller.stats()).into_bytes()),
        _ => None,
    }))
}

/// Tell what reading an image costs
///
/// Of a directory where an image is mounted, and of an image that programs run in: so far. Of an image that was mounted: the last
/// time. What was fetched, why and
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
        let numbers = asked(context, &args.what, daemon::METRICS)?;
        let numbers = numbers.ok_or_else(|| not_there(&args.what))?;
        io::stdout().lock().write_all(&numbers)?;
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
    if let Some(answer) = asked(context, what, QUESTION)? {
        return Ok(serde_json::from_slice(&answer)?);
    }
    let stats = manifest(context, what)?.and_then(|known| history::stored(context.store(), known));
    stats.ok_or_else(|| {
        let what = Path::new(what).display();
        format!("{what}: the store knows of no mount in which something was read").into()
    })
}

/// What the process says that shows the image now, in this directory or to programs.
fn asked(context: &Context, what: &OsStr, question: &str) -> Result<Option<Vec<u8>>, Error> {
    if daemon::mounted_at(Path::new(what)).is_ok_and(|mounted| mounted.is_some()) {
        let answer = daemon::asked(Path::new(what), question)?;
        return answer.ok_or_else(|| not_there(what)).map(Some);
    }
    let Some(manifest) = manifest(context, what)? else {
        return Ok(None);
    };
    let mut servers = servers()?;
    let own = Group::of_caller("")?.job;
    servers.sort_by_key(|(job, _)| *job != own);
    Ok(servers.iter().find_map(|(_, server)| {
        let answer = server.question(&manifest.to_string(), question);
        Some(answer.ok()??.into_bytes())
    }))
}

/// The servers of this user that do not leave at this moment, with their jobs.
fn servers() -> Result<Vec<(String, Server)>, Error> {
    let streams = meeting::servers()?.into_iter();
    let servers = streams.filter_map(|stream| {
        let server = Server::at(stream).ok()??;
        Some((server.status().ok()??.job, server))
    });
    Ok(servers.collect())
}

/// The image's manifest, as it was mounted last; or as it is, where that can be told without asking another machine.
fn manifest(context: &Context, what: &OsStr) -> Result<Option<Digest>, Error> {
    let reference = image_or_directory(what)?;
    let name = reference.to_string();
    let images = context.store().images();
    let mut records = images.into_iter().map(|image| image.record);
    if let Some(record) = records.find(|record| record.reference == name) {
        return Ok(Some(record.manifest));
    }
    // Nothing of a directory is in the store.
    let options = Options {
        offline: true,
        ..context.settings.open.clone()
    };
    let nowhere = Arc::new(Store::open(&context.settings.keeping_nothing().store));
    let known = identify(&reference, &options, &nowhere);
    Ok(known.ok().map(|(manifest, _)| manifest))
}

fn not_there(what: &OsStr) -> Error {
    let what = Path::new(what).display();
    format!("{what}: no process of this user shows it now").into()
}

/// Where no part of a layer was asked for.
const NO_RANGES: &str =
    "Nothing was fetched in parts. Layers that must be streamed whole are not counted here.";

/// For people.
fn write(stats: &Stats, to: &mut impl Write) -> io::Result<()> {
    let (moved, reads, share) = (&stats.moved, &stats.reads, &stats.share);
    writeln!(to, "{}", plain(&stats.subject.reference))?;
    writeln!(
        to,
        "manifest {}, mounted for {}",
        stats.subject.manifest,
        match stats.seconds {
            0 => "less than a second".into(),
            seconds => time(seconds.saturating_mul(1_000_000)),
        }
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
    if moved.fetched.iter().all(|count| count.requests == 0) {
        writeln!(to, "{NO_RANGES}")?;
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
