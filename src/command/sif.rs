//! `sifon sif`: what is in a SIF, in the words of Apptainer's command of that name.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use crate::command::hint;
use crate::output::fatal;
use crate::pack::sif::{Sif, listing};
use crate::setting::Error;

/// What Apptainer's command exits with, whatever went wrong; the others exit with 255.
const FAILED: u8 = 1;

/// Show what a SIF file consists of
///
/// Header, objects and their bytes, printed as `apptainer sif` prints them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the objects
    List {
        /// The file
        file: PathBuf,
    },
    /// Print the header
    Header {
        /// The file
        file: PathBuf,
    },
    /// Print what the table says of one object
    Info {
        /// The object's number, as `list` prints it
        id: u32,
        /// The file
        file: PathBuf,
    },
    /// Write the bytes of one object to stdout
    Dump {
        /// The object's number, as `list` prints it
        id: u32,
        /// The file
        file: PathBuf,
    },
}

/// Prints.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let done = match &args.verb {
        Verb::List { file } => opened(file).and_then(|(_, sif)| print(listing::List(&sif))),
        Verb::Header { file } => opened(file).and_then(|(_, sif)| print(listing::Header(&sif))),
        Verb::Info { id, file } => info(file, *id),
        Verb::Dump { id, file } => dump(file, *id),
    };
    match done {
        Err(err) if !is_unread(&err) => {
            fatal(&*err, hint(&err).as_deref());
            Ok(ExitCode::from(FAILED))
        }
        // Whoever read stdout has seen enough.
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn is_unread(err: &Error) -> bool {
    let err = err.downcast_ref::<io::Error>();
    err.is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe)
}

/// A SIF and its table.
fn opened(path: &Path) -> Result<(File, Sif), Error> {
    let wrong = |problem: &dyn fmt::Display| Error::from(format!("{}: {problem}", path.display()));
    let file = File::open(path).map_err(|err| wrong(&err))?;
    let metadata = file.metadata().map_err(|err| wrong(&err))?;
    if !metadata.is_file() {
        return Err(wrong(&"not a file"));
    }
    let sif = Sif::open(&file).map_err(|err| wrong(&err))?;
    Ok((file, sif))
}

fn print(text: impl fmt::Display) -> Result<(), Error> {
    Ok(write!(io::stdout().lock(), "{text}")?)
}

fn info(path: &Path, id: u32) -> Result<(), Error> {
    let (_, sif) = opened(path)?;
    let object = sif.by_id(id).ok_or_else(|| missing(path, id))?;
    print(listing::Info(object))
}

fn dump(path: &Path, id: u32) -> Result<(), Error> {
    let (mut file, sif) = opened(path)?;
    let object = sif.by_id(id).ok_or_else(|| missing(path, id))?;
    file.seek(SeekFrom::Start(object.at))?;
    let copied = io::copy(&mut file.take(object.len), &mut io::stdout().lock())?;
    match copied == object.len {
        true => Ok(()),
        false => Err(format!("{}, object {id}: the file ends in it", path.display()).into()),
    }
}

fn missing(path: &Path, id: u32) -> Error {
    format!("{}, object {id}: object not found", path.display()).into()
}
