//! The command line: what can be said, and which command does it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use sifon_mount::image::open::Options;
use sifon_mount::registry::{self, Credentials, Platform, Secret};
use sifon_mount::store;

use crate::command::{
    build, cache, compact, complete, completion, demo, doctor, exec, hint, index, inspect,
    instance, mount, profile, ps, pull, push, registry as registries, run, serve, shell, sif, sign,
    stats, stop, umount, verify,
};
use crate::demo::{cleaner, program, unpacked};
use crate::output::{Verbosity, fatal};
use crate::setting::{Context, Settings, byte_count, default_store, environment};

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

/// Options of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct SettingArgs {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with_all = ["verbose", "debug"])]
    quiet: bool,
    /// Say what is decided and why
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Say everything
    #[arg(short, long, global = true)]
    debug: bool,
    /// Where to keep what was fetched; also $SIFON_STORE
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// How much to keep at most, such as 20G [default: 10G or a quarter of the free space]
    #[arg(long, global = true, hide_short_help = true, value_name = "BYTES", value_parser = byte_count)]
    store_size: Option<u64>,
    /// Make no request at all: use what the store has
    #[arg(long, global = true)]
    offline: bool,
    /// Ask what a tag names even if that was asked less than ten minutes ago
    #[arg(long, global = true)]
    refresh: bool,
    /// Use a SOCI index that somebody attached to the image, though nobody signs it; also $SIFON_SOCI_V1
    #[arg(long = "soci-v1", global = true, hide_short_help = true)]
    soci_v1: bool,
    /// Neither record what is read nor fetch ahead what was read before; also $SIFON_NO_PROFILE
    #[arg(long, global = true, hide_short_help = true)]
    no_profile: bool,
    /// Processor architecture of the image [default: this machine's]
    #[arg(long, global = true, value_name = "ARCH")]
    arch: Option<String>,
    /// Variant of the architecture, such as v7 of arm
    #[arg(long, global = true, hide_short_help = true, value_name = "VARIANT")]
    arch_variant: Option<String>,
    /// User name at the registry; also $SIFON_DOCKER_USERNAME and Singularity's variables
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        value_name = "NAME",
        requires = "docker_password"
    )]
    docker_username: Option<String>,
    /// Password or token at the registry; better in $SIFON_DOCKER_PASSWORD, where nobody sees it
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        value_name = "PASSWORD",
        requires = "docker_username"
    )]
    docker_password: Option<String>,
    /// File with credentials, as `docker login` writes it
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Ask here before the registry itself: [http[s]://]HOST[:PORT][/PREFIX]; may be repeated, also $SIFON_MIRRORS
    #[arg(long, global = true, hide_short_help = true, value_name = "PLACE")]
    mirror: Vec<String>,
    /// Speak plain HTTP with the registry, as is done with those on this machine
    #[arg(long, global = true, hide_short_help = true)]
    no_https: bool,
    /// Trust this certificate authority too (PEM); may be repeated
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    /// How many connections to open at once
    #[arg(long, global = true, hide_short_help = true, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// How long to try before a read fails, in seconds
    #[arg(long, global = true, hide_short_help = true, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
    timeout: u16,
}

impl SettingArgs {
    fn resolved(self) -> Settings {
        let verbosity = match (self.quiet, self.verbose, self.debug) {
            (true, ..) => Verbosity::Quiet,
            (_, _, true) => Verbosity::Debug,
            (_, true, _) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        let mut registry = registry::Settings::from_environment();
        if let Some(architecture) = &self.arch {
            registry.platform = Platform::linux(architecture, self.arch_variant.as_deref());
        }
        if let (Some(username), Some(password)) = (self.docker_username, self.docker_password) {
            registry.credentials = Some(Credentials {
                username,
                password: Secret(password),
            });
        }
        registry.authfile = self.authfile.or(registry.authfile).map(absolute);
        registry.mirrors = match self.mirror.is_empty() {
            true => separated("SIFON_MIRRORS"),
            false => self.mirror,
        };
        registry.plain_http |= self.no_https;
        registry.ca_files.extend(self.ca_file);
        registry.ca_files = registry.ca_files.into_iter().map(absolute).collect();
        registry.connections = self.connections.into();
        registry.timeout = Duration::from_secs(self.timeout.into());
        let site = environment(&["SIFON_SITE_STORES"]).unwrap_or_default();
        Settings {
            store: store::Settings {
                directory: absolute(self.store.unwrap_or_else(default_store)),
                site_directories: std::env::split_paths(&site).map(absolute).collect(),
                budget: self.store_size,
                trusted_uids: numbers("SIFON_TRUSTED_UIDS"),
                trusted_gids: numbers("SIFON_TRUSTED_GIDS"),
                nothing_kept: None,
            },
            open: Options {
                registry,
                offline: self.offline,
                refresh: self.refresh,
                soci_v1: self.soci_v1 || is_set("SIFON_SOCI_V1"),
                no_profile: self.no_profile || is_set("SIFON_NO_PROFILE"),
            },
            verbosity,
        }
    }
}

/// Whether a variable says yes.
fn is_set(variable: &str) -> bool {
    environment(&[variable])
        .is_some_and(|value| !["", "0", "false", "no"].contains(&&*value.to_string_lossy()))
}

/// `path` for a process in another directory; where this one's is gone, relative paths lead nowhere.
fn absolute(path: PathBuf) -> PathBuf {
    match path.as_os_str().is_empty() {
        true => path,
        false => std::path::absolute(&path).unwrap_or(path),
    }
}

/// Words separated by commas.
fn separated(variable: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_default();
    let words = text.split(',').map(str::trim);
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Numbers of users or groups, separated by commas; what is no number trusts nobody.
fn numbers(variable: &str) -> Vec<u32> {
    let text = std::env::var(variable).unwrap_or_default();
    text.split(',')
        .filter_map(|number| number.trim().parse().ok())
        .collect()
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
