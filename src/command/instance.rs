//! `sifon instance`: containers that stay.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use sifon_mount::reference::Reference;
use sifon_mount::sys::{descriptor, process};

use super::program::{self, Action, register};
use crate::container::instance::{Detached, Instance, News, is_name, started};
use crate::container::wire;
use crate::output::plain;
use crate::setting::{Context, Error};

/// Containers that stay, with a name
///
/// `exec`, `run` and `shell` take `instance://NAME` in place of an image.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Start an instance; an image that Singularity made has a script for what runs in it
    Start(StartArgs),
    /// Start an instance in which the program of `run` runs
    Run(StartArgs),
    /// List instances
    List(ListArgs),
    /// End instances
    Stop(StopArgs),
    /// Show what an instance uses
    Stats(StatsArgs),
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct StartArgs {
    #[command(flatten)]
    program: program::Args,
    /// Write the number of the first process to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// The image, the name and arguments
    #[arg(value_names = ["IMAGE", "NAME"], num_args = 2.., required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct ListArgs {
    /// As JSON
    #[arg(short, long)]
    json: bool,
    /// With the files of what they say
    #[arg(short, long)]
    logs: bool,
    /// Only this one, or those whose names begin with what stands before a *
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct StopArgs {
    /// All of them
    #[arg(short, long)]
    all: bool,
    /// The signal that is sent first, by name or number [default: INT]
    #[arg(short, long, value_name = "SIGNAL", value_parser = signal)]
    signal: Option<Signal>,
    /// Kill at once
    #[arg(short = 'F', long)]
    force: bool,
    /// Seconds until what is left is killed
    // Takes the place of the option of all commands, and so has its type.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    timeout: u16,
    /// Which one; the same as for `list`
    #[arg(required_unless_present = "all")]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct StatsArgs {
    /// As JSON
    #[arg(short, long)]
    json: bool,
    /// Which one
    name: String,
}

/// Does what is asked.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    match &args.verb {
        Verb::Start(args) => start(context, args, Action::Instance),
        Verb::Run(args) => start(context, args, Action::Run),
        Verb::List(args) => list(args),
        Verb::Stop(args) => stop(args),
        Verb::Stats(args) => stats(args),
    }
}

/// A signal by name, with or without SIG, or by number.
fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let known = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("TERM", Signal::TERM),
        ("WINCH", Signal::WINCH),
    ];
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = known.iter().find(|(known, _)| *known == name);
    let number = || Signal::from_named_raw(text.parse().ok()?);
    named
        .map(|(_, signal)| *signal)
        .or_else(number)
        .ok_or_else(|| format!("{text:?} is no signal"))
}

fn start(
    context: &Context,
    args: &StartArgs,
    action: fn(Vec<OsString>) -> Action,
) -> Result<ExitCode, Error> {
    let [image, name, arguments @ ..] = args.words.as_slice() else {
        return Err("an image and a name are needed".into());
    };
    let name = name.to_str().filter(|name| is_name(name)).ok_or_else(|| {
        format!(
            "instance name {}: letters, digits, - _ and . are possible",
            name.display()
        )
    })?;
    let register = register()?;
    if register.find(name).is_some() {
        return Err(format!("instance {name} already exists").into());
    }
    let (out, err) = register.logs(name)?;
    let (here, there) = wire::pair()?;
    let detached = Detached {
        socket: there,
        out: File::create(&out)?,
        err: File::create(&err)?,
    };
    let action = action(arguments.to_vec());
    let child = process::fork(|| {
        let failed = match became(context, &args.program, image, action, detached) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        crate::output::fatal(&*failed, super::hint(&failed).as_deref());
        255
    })?;
    let begun = begun(here)?;
    let Some((pid, about)) = begun else {
        // It has said why.
        let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
        return Ok(ExitCode::from(255));
    };
    register.add(&Instance {
        name: name.to_owned(),
        pid,
        started: started(pid).ok_or_else(|| format!("instance {name} ended at once"))?,
        image: shown(image),
        out,
        err,
        is_root_inside: args.program.is_root_inside(),
        home: args.program.home_inside(),
        about,
    })?;
    if let Some(file) = &args.pid_file {
        fs::write(file, format!("{pid}\n"))
            .map_err(|err| format!("--pid-file {}: {err}", file.display()))?;
    }
    tracing::info!("instance started successfully");
    Ok(ExitCode::SUCCESS)
}

/// The image as it is listed: a file with its whole path, an address without what may be a secret.
fn shown(image: &OsStr) -> String {
    if let Ok(reference @ Reference::Web(_)) = Reference::parse(image) {
        return reference.to_string();
    }
    let path = std::path::absolute(image).ok();
    // Without a slash at the end of a directory's name.
    let path = path.map(|path| path.components().collect::<PathBuf>());
    let file = path.filter(|path| path.exists());
    let shown = file.as_deref().map_or(image, |file| file.as_os_str());
    shown.to_string_lossy().into_owned()
}

/// The process that goes on: without the caller's session and input.
fn became(
    context: &Context,
    args: &program::Args,
    image: &OsStr,
    action: Action,
    detached: Detached,
) -> Result<Infallible, Error> {
    rustix::process::setsid()?;
    descriptor::let_go_of_input()?;
    program::become_instance(context, args, image, action, detached)
}

/// Number of the first process and what the image says of itself; none if it ended before the program began.
fn begun(socket: OwnedFd) -> Result<Option<(i32, wire::Ready)>, Error> {
    let (mut pid, mut ready) = (None, None);
    loop {
        match wire::receive::<News>(socket.as_fd())? {
            Some((News::Pid(number), _)) => pid = Some(number),
            Some((News::Ready(about), _)) => ready = Some(about),
            None => return Ok(None),
        }
        if let (Some(pid), Some(ready)) = (pid, &ready) {
            return Ok(Some((pid, ready.clone())));
        }
    }
}

/// Those that a name or the beginning of names means.
fn chosen(pattern: Option<&str>) -> Result<Vec<Instance>, Error> {
    let mut instances = register()?.all();
    if let Some(pattern) = pattern {
        instances.retain(|instance| match pattern.strip_suffix('*') {
            Some(start) => instance.name.starts_with(start),
            None => instance.name == pattern,
        });
    }
    Ok(instances)
}

fn list(args: &ListArgs) -> Result<ExitCode, Error> {
    let instances = chosen(args.name.as_deref())?;
    let mut text = String::new();
    if args.json {
        let listed: Vec<_> = instances
            .iter()
            .map(|instance| {
                json!({
                    "instance": instance.name,
                    "pid": instance.pid,
                    "img": instance.image,
                    "ip": "",
                    "logErrPath": instance.err,
                    "logOutPath": instance.out,
                })
            })
            .collect();
        text = format!("{:#}\n", json!({ "instances": listed }));
    } else {
        let last = if args.logs { "LOGS" } else { "IMAGE" };
        text.push_str(&format!(
            "{:<16} {:<8} {:<6} {last}\n",
            "INSTANCE NAME", "PID", "IP"
        ));
        for instance in &instances {
            let last = match args.logs {
                true => format!("{} {}", instance.out.display(), instance.err.display()),
                false => instance.image.clone(),
            };
            let (name, pid) = (&instance.name, instance.pid);
            text.push_str(&format!("{name:<16} {pid:<8} {:<6} {}\n", "", plain(&last)));
        }
    }
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn stop(args: &StopArgs) -> Result<ExitCode, Error> {
    let instances = chosen(args.name.as_deref())?;
    if instances.is_empty() && !args.all {
        let name = args.name.as_deref().unwrap_or_default();
        return Err(format!("no instance found with name {name}").into());
    }
    let register = register()?;
    for instance in instances {
        tracing::info!(
            "Stopping {} instance of {} (PID={})",
            instance.name,
            instance.image,
            instance.pid
        );
        let signal = match args.force {
            true => Signal::KILL,
            false => args.signal.unwrap_or(Signal::INT),
        };
        let limit = Duration::from_secs(args.timeout.into());
        if !instance.stop(signal, limit)? {
            instance.stop(Signal::KILL, limit)?;
        }
        register.remove(&instance.name);
    }
    Ok(ExitCode::SUCCESS)
}

fn stats(args: &StatsArgs) -> Result<ExitCode, Error> {
    let instance = register()?
        .find(&args.name)
        .ok_or_else(|| format!("no instance found with name {}", args.name))?;
    let usage = Usage::of(instance.pid)?;
    let text = match args.json {
        true => format!(
            "{:#}\n",
            json!({
                "instance": instance.name,
                "processes": usage.processes,
                "memory_bytes": usage.memory_bytes,
                "cpu_seconds": usage.cpu.as_secs_f64(),
            })
        ),
        false => format!(
            "INSTANCE NAME    PROCESSES  MEMORY       CPU TIME\n{:<16} {:<10} {:<12} {:.2} s\n",
            instance.name,
            usage.processes,
            crate::output::bytes(usage.memory_bytes),
            usage.cpu.as_secs_f64(),
        ),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What the processes in one namespace use.
#[derive(Default)]
struct Usage {
    processes: u32,
    memory_bytes: u64,
    cpu: Duration,
}

impl Usage {
    /// Of those that have the same process namespace as `pid`.
    fn of(pid: i32) -> io::Result<Self> {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/pid"))?;
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let page = rustix::param::page_size() as u64;
        let mut usage = Self::default();
        for entry in fs::read_dir("/proc")?.flatten() {
            if fs::read_link(entry.path().join("ns/pid")).is_ok_and(|other| other == namespace)
                && let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
                && let Some((_, after)) = stat.rsplit_once(')')
            {
                // proc_pid_stat(5): after the name, utime and stime are the 12th and 13th field, rss the 22nd.
                let fields: Vec<&str> = after.split_whitespace().collect();
                let field = |at: usize| {
                    fields
                        .get(at)
                        .and_then(|field| field.parse().ok())
                        .unwrap_or(0_u64)
                };
                usage.processes += 1;
                usage.memory_bytes += field(21) * page;
                usage.cpu += Duration::from_millis((field(11) + field(12)) * 1000 / ticks);
            }
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_kill_names_them() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(text), Ok(Signal::TERM), "{text}");
        }
        for text in ["", "NONE", "0", "999"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(usage.processes > 0 && usage.memory_bytes > 0);
    }
}
