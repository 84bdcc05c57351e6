//! The command line: what can be said, and which command does it.

mod settings;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use settings::SettingArgs;

use crate::command::{
    build, cache, compact, complete, completion, demo, doctor, exec, hint, index, inspect,
    instance, mount, overlay, profile, ps, pull, push, registry as registries, run, serve, shell,
    sif, sign, stats, stop, umount, verify,
};
use crate::container::ahead;
use crate::demo::{cleaner, program, unpacked};
use crate::output::{Verbosity, fatal};
use crate::setting::Context;

/// What Singularity exits with when it could not do what was asked; a program's own status passes through.
const FATAL: u8 = 255;

/// What Singularity exits with when it was asked wrongly.
const USAGE: u8 = 1;

/// Container images as directories, at once and without root
///
/// sifon shows an image from a registry as a directory, fetching only the bytes
/// that are read, runs programs in it, and packs it into a SIF file for
/// Singularity and Apptainer. `sifon demo` shows all of that on this machine alone.
///
/// An image is named as Singularity names it:
///
///   docker://python:3.11                     from Docker Hub
///   docker://ghcr.io/owner/name@sha256:…     from another registry, by digest
///   oci:DIR[:TAG]  oci-archive:FILE  docker-archive:FILE  docker-daemon:NAME
///   x.sif  oras://ghcr.io/owner/name:tag  https://example.org/x.sif
///   DIR                                      a root file system, for programs only
#[derive(Debug, Parser)]
#[command(name = "sifon", version, verbatim_doc_comment)]
struct Cli {
    /// As --quiet, in Singularity's words; before the command only
    #[arg(short, long, hide = true)]
    silent: bool,
    /// No colours: there are none
    #[arg(long, hide = true)]
    nocolor: bool,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Exec(exec::Args),
    Run(run::Args),
    Shell(shell::Args),
    Instance(instance::Args),
    Ps(ps::Args),
    Stop(stop::Args),
    Pull(pull::Args),
    Push(push::Args),
    Build(build::Args),
    Overlay(overlay::Args),
    Compact(compact::Args),
    Registry(registries::Args),
    Inspect(inspect::Args),
    Sif(sif::Args),
    Sign(sign::Args),
    Verify(verify::Args),
    Index(index::Args),
    Complete(complete::Args),
    Stats(stats::Args),
    Profile(profile::Args),
    Cache(cache::Args),
    Doctor(doctor::Args),
    Completion(completion::Args),
}

/// What this program is when it has started itself: then its only argument is a hidden verb, and it hears the rest from
/// the one that started it. `None` if a user did.
fn as_helper() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().filter(|_| arguments.next().is_none())?;
    match verb.to_str()? {
        program::VERB => Some(demo::program()),
        cleaner::VERB => {
            cleaner::run();
            Some(ExitCode::SUCCESS)
        }
        unpacked::VERB => Some(demo::from_sif()),
        serve::VERB => Some(serve::run()),
        ahead::VERB => Some(ahead::run()),
        mount::SERVE_VERB => Some(mount::serve()),
        mount::WATCH_VERB => {
            sifon_mount::daemon::watch();
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

/// The version of Apptainer that this command line follows; programs that start containers read it.
const APPTAINER_VERSION: &str = "1.4.5";

/// What a program that is called `singularity` or `apptainer` says of its version: scripts and workflow engines parse that. `None` if it is not
/// called so, or asked for something else.
fn as_another_name() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = PathBuf::from(arguments.next()?);
    let name = name.file_name()?.to_str()?;
    if !matches!(name, "singularity" | "apptainer") {
        return None;
    }
    let first = arguments.next()?;
    let text = match first.to_str()? {
        "--version" => format!(
            "apptainer version {APPTAINER_VERSION} (sifon {})\n",
            env!("CARGO_PKG_VERSION")
        ),
        "version" if arguments.next().is_none() => format!("{APPTAINER_VERSION}\n"),
        _ => return None,
    };
    // Whoever closed stdout does not want it.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    Some(ExitCode::SUCCESS)
}

/// The command line. The first line of a SIF names `run-singularity`, so that the file can be started like a program; a program of that
/// name runs the file that comes first.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name == Some(OsStr::new("run-singularity")) {
        arguments.insert(1, "run".into());
    }
    arguments
}

/// Does what the command line says; the status is Singularity's.
pub fn main() -> ExitCode {
    if let Some(status) = as_helper() {
        return status;
    }
    if let Some(status) = as_another_name() {
        return status;
    }
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        Err(err) => {
            // Fails only where the terminal is gone.
            let _ = err.print();
            return if err.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let has_arch = cli.settings.arch.is_some();
    let mut settings = cli.settings.resolved();
    if cli.silent {
        settings.verbosity = Verbosity::Quiet;
    }
    match &cli.command {
        Command::Pull(args) => args.amend(&mut settings, has_arch),
        Command::Push(args) => args.amend(&mut settings),
        _ => {}
    }
    let context = Context::new(settings);
    let done = match &cli.command {
        Command::Demo(args) => demo::run(&context, args),
        Command::Mount(args) => mount::run(&context, args),
        Command::Umount(args) => umount::run(args),
        Command::Exec(args) => exec::run(&context, args),
        Command::Run(args) => run::run(&context, args),
        Command::Shell(args) => shell::run(&context, args),
        Command::Instance(args) => instance::run(&context, args),
        Command::Ps(args) => ps::run(args),
        Command::Stop(args) => stop::run(args),
        Command::Pull(args) => pull::run(&context, args),
        Command::Push(args) => push::run(&context, args),
        Command::Build(args) => build::run(&context, args),
        Command::Overlay(args) => overlay::run(args),
        Command::Compact(args) => compact::run(&context, args),
        Command::Registry(args) => registries::run(&context, args),
        Command::Inspect(args) => inspect::run(&context, args),
        Command::Sif(args) => sif::run(args),
        Command::Sign(args) => sign::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Index(args) => index::run(&context, args),
        Command::Complete(args) => complete::run(&context, args),
        Command::Stats(args) => stats::run(&context, args),
        Command::Profile(args) => profile::run(&context, args),
        Command::Cache(args) => cache::run(&context, args),
        Command::Doctor(args) => doctor::run(&context, args),
        Command::Completion(args) => completion::run(Cli::command(), args),
    };
    done.unwrap_or_else(|err| {
        if output_kind(&*err) == Some(std::io::ErrorKind::BrokenPipe) {
            // Whoever read stdout has seen enough.
            return ExitCode::SUCCESS;
        }
        fatal(&*err, hint(&err).as_deref());
        ExitCode::from(FATAL)
    })
}

/// What went wrong when we wrote, if that is what went wrong.
fn output_kind(err: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let io = err.downcast_ref::<std::io::Error>();
    let json = err.downcast_ref::<serde_json::Error>();
    io.map(std::io::Error::kind)
        .or_else(|| json?.io_error_kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_options_of_a_command_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
