//! `sifon demo`: the whole way from a registry to a SIF, on this machine alone.

use std::convert::Infallible;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::container;
use crate::demo::scratch::{RunError, Scratch};
use crate::demo::tour::{Cost, Size, Start, Tour, TourError};
use crate::demo::{image, program, unpacked};
use crate::output::{Verbosity, bytes, fatal};
use crate::pack::check_place;
use crate::setting::{Context, Error};

/// Show what sifon does, without a network and without root
///
/// Makes a small image, serves it from a registry inside this process, runs a program in it while hardly
/// anything of it has been fetched, runs it again, packs the image into a SIF file and runs the program from
/// that. Then everything is removed. Takes a few seconds and 300 MB in $TMPDIR.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep the SIF as this file, for your own Singularity or Apptainer
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Print the numbers only, as JSON
    #[arg(long)]
    json: bool,
    /// Bytes in the image's data file
    #[arg(long, hide = true, value_name = "BYTES", default_value_t = image::DATA_BYTES)]
    data_size: u64,
}

/// What all steps have cost.
struct Costs {
    image: Size,
    first: Cost,
    second: Cost,
    packing: Cost,
    sif_bytes: u64,
    from_sif: Cost,
}

/// Goes through all steps.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let verbosity = context.settings.verbosity;
    let keep = args.keep.as_deref().map(std::path::absolute).transpose()?;
    if let Some(file) = &keep {
        check_place(file, false)?;
    }
    let scratch = Scratch::new(verbosity <= Verbosity::Normal)?;
    let mut stdout = io::stdout().lock();
    if args.json {
        let costs = shown(
            &scratch,
            args.data_size,
            verbosity,
            keep.as_deref(),
            &mut io::sink(),
        )?;
        scratch.close()?;
        writeln!(stdout, "{:#}", costs.to_json())?;
    } else {
        let costs = shown(
            &scratch,
            args.data_size,
            verbosity,
            keep.as_deref(),
            &mut stdout,
        )?;
        scratch.close()?;
        costs.print(&mut stdout)?;
        epilogue(keep.as_deref(), &mut stdout)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The steps; what happens is told to `to`.
fn shown(
    scratch: &Scratch,
    data_bytes: u64,
    verbosity: Verbosity,
    keep: Option<&Path>,
    to: &mut dyn Write,
) -> Result<Costs, Error> {
    writeln!(
        to,
        "An image, a registry and a SIF on this machine alone; everything is removed at the end.\n"
    )?;
    let tour = Tour::begin(scratch, data_bytes, verbosity)?;
    let size = tour.image;
    writeln!(
        to,
        "1. Made an image of {} ({} of files: this program, its libraries, some text, a data file)\n   \
         and a registry inside this process that serves it.\n",
        bytes(size.packed_bytes),
        bytes(size.plain_bytes),
    )?;

    let reference = tour.reference();
    writeln!(
        to,
        "2. Running a program in it:\n   $ sifon exec {reference} {} {}",
        image::PROGRAM,
        program::VERB
    )?;
    to.flush()?;
    let first = tour.start()?;
    quote(&first, to)?;
    writeln!(
        to,
        "   It said its first word after {}. What it read, and what lies next to that, was fetched: {} of {}.\n",
        time(first.cost),
        bytes(first.cost.fetched_bytes),
        bytes(size.packed_bytes),
    )?;

    let second = tour.start()?;
    expect_same(&first, &second)?;
    writeln!(
        to,
        "3. Ran the same again. What had been fetched is in the store: first word after {}, {} fetched.\n",
        time(second.cost),
        bytes(second.cost.fetched_bytes),
    )?;

    let sif = keep.map_or_else(|| tour.sif(), Path::to_owned);
    let sif_name = keep.unwrap_or(Path::new("demo.sif")).display();
    writeln!(
        to,
        "4. Packing it into one file, which Singularity and Apptainer run without a network:\n   \
         $ sifon compact {reference} {sif_name}"
    )?;
    to.flush()?;
    let packing = tour.compact(&sif)?;
    let sif_bytes = sif.metadata()?.len();
    writeln!(
        to,
        "   {} after {}. The rest of the image was fetched for that: {}.\n",
        bytes(sif_bytes),
        time(packing),
        bytes(packing.fetched_bytes),
    )?;

    let from_sif = tour.start_from_sif(&sif)?;
    expect_same(&first, &from_sif)?;
    writeln!(
        to,
        "5. Unpacked the SIF into memory and ran the program from there. It said the same.\n"
    )?;
    Ok(Costs {
        image: size,
        first: first.cost,
        second: second.cost,
        packing,
        sif_bytes,
        from_sif: from_sif.cost,
    })
}

fn quote(start: &Start, to: &mut dyn Write) -> io::Result<()> {
    for line in String::from_utf8_lossy(&start.said).lines() {
        writeln!(to, "   | {line}")?;
    }
    Ok(())
}

/// The program checks what it reads; here it is made sure that it ran at all.
fn expect_same(one: &Start, other: &Start) -> Result<(), Error> {
    match !one.said.is_empty() && one.said == other.said {
        true => Ok(()),
        false => Err("the program in the demonstration's image did not say the same twice".into()),
    }
}

fn time(cost: Cost) -> String {
    match cost.milliseconds {
        fast @ ..1000.0 => format!("{fast:.0} ms"),
        slow => format!("{:.1} s", slow / 1000.0),
    }
}

impl Costs {
    fn print(&self, to: &mut dyn Write) -> io::Result<()> {
        writeln!(
            to,
            "{:34}{:>12}{:>10}{:>10}{:>10}",
            "", "fetched", "of image", "requests", "time"
        )?;
        for (what, cost) in [
            ("first start, from the registry", self.first),
            ("second start, from the store", self.second),
            ("packing into a SIF", self.packing),
            ("start from the unpacked SIF", self.from_sif),
        ] {
            let share = cost.fetched_bytes as f64 / self.image.packed_bytes.max(1) as f64;
            writeln!(
                to,
                "{what:34}{:>12}{:>8.0} %{:>10}{:>10}",
                bytes(cost.fetched_bytes),
                share * 100.0,
                cost.requests,
                time(cost)
            )?;
        }
        writeln!(to, "Time of a start: until the program's first output.\n")
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "image": self.image,
            "first_start": self.first,
            "second_start": self.second,
            "packing": self.packing,
            "sif_bytes": self.sif_bytes,
            "start_from_sif": self.from_sif,
        })
    }
}

/// What is left, and what can be done next.
fn epilogue(kept: Option<&Path>, to: &mut dyn Write) -> io::Result<()> {
    let Some(file) = kept else {
        writeln!(to, "Everything is removed again. With an image of yours:")?;
        return writeln!(
            to,
            "  sifon exec docker://python:3.11 python3 -c 'print(\"hello\")'"
        );
    };
    let (file, program, verb) = (file.display(), image::PROGRAM, program::VERB);
    writeln!(
        to,
        "Everything but the SIF is removed again. Where Apptainer is installed:"
    )?;
    writeln!(to, "  apptainer exec {file} {program} {verb}")
}

/// The program in the image.
pub fn program() -> ExitCode {
    match program::run(image::DATA.as_ref(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            fatal(&err, None);
            ExitCode::FAILURE
        }
    }
}

/// The process that becomes the program in the SIF.
pub fn from_sif() -> ExitCode {
    let started = || -> Result<Infallible, Error> {
        let request: unpacked::Request = serde_json::from_reader(io::stdin())?;
        unpacked::become_program(&request)
    };
    match started() {
        Ok(never) => match never {},
        Err(err) => {
            let hint = err
                .downcast_ref::<container::Error>()
                .and_then(|err| err.hint());
            fatal(&*err, hint);
            ExitCode::from(255)
        }
    }
}

/// What the user can do about a failure of the demonstration.
pub fn hint(error: &Error) -> Option<String> {
    if let Some(err) = error.downcast_ref::<RunError>() {
        return err.hint();
    }
    error.downcast_ref::<TourError>()?.hint()
}
