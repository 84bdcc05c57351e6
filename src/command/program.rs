//! What `exec`, `run` and `shell` have in common: a program in an image.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use sifon_mount::image::open::OnProgress;

use super::{gpu, serve};
use crate::container;
use crate::container::bind::{self, BindRequest};
use crate::container::client::{Hears, Server};
use crate::container::environment::{self, Sources, Variables};
use crate::container::identity::Identity;
use crate::container::instance::{self, Detached, Register};
use crate::container::launch::{Isolation, Launch};
use crate::container::meeting::Group;
use crate::container::plan::{self, Host, Options, TargetKind};
use crate::container::wire::Ready;
use crate::container::writable::{Overlay, Writable};
use crate::output::fatal;
use crate::setting::{Context, Error, parsed};

/// Options of `exec`, `run` and `shell`. Each that takes no value can also be given as a variable, such as `SIFON_CONTAIN=1`,
/// `APPTAINER_CONTAIN=1` or `SINGULARITY_CONTAIN=1`.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Show a path of this machine in the container too: SOURCE[:TARGET[:ro]]
    ///
    /// May be repeated, or list several separated by commas. $SIFON_BIND, $APPTAINER_BIND and
    /// $SINGULARITY_BIND (or …_BINDPATH) add to it.
    #[arg(short = 'B', long, value_name = "BIND")]
    bind: Vec<OsString>,
    /// The same in other words: type=bind,source=DIR,destination=DIR[,ro]
    #[arg(long, value_name = "WORDS")]
    mount: Vec<OsString>,
    /// Show DIR, or SOURCE at TARGET, as the home directory
    #[arg(short = 'H', long, value_name = "SOURCE[:TARGET]")]
    home: Option<OsString>,
    /// Do not show your home directory
    #[arg(long)]
    no_home: bool,
    /// Leave out what is there otherwise: proc, sys, dev, home, tmp, cwd, bind-paths or a file such as /etc/localtime
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    no_mount: Vec<String>,
    /// Put /tmp, /var/tmp and scratch directories into this directory
    #[arg(short = 'W', long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// An empty directory that only the container has
    #[arg(short = 'S', long, value_name = "DIR")]
    scratch: Vec<PathBuf>,
    /// Start the program in this directory of the container
    #[arg(long, visible_alias = "cwd", value_name = "DIR")]
    pwd: Option<PathBuf>,
    /// Own, empty /tmp, /var/tmp and home, and only the most necessary devices
    #[arg(short, long)]
    contain: bool,
    /// --contain, --pid, --ipc and --cleanenv
    #[arg(short = 'C', long)]
    containall: bool,
    /// As Docker would: --containall, --no-umask, --no-eval and --writable-tmpfs
    #[arg(long)]
    compat: bool,
    /// Keep your environment out of the container, but for TERM and proxies
    #[arg(short = 'e', long)]
    cleanenv: bool,
    /// Set a variable in the container; $NAME stands for the container's other variables
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Set the variables in this file, NAME=VALUE on each line
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Take $ in values and arguments for a character like any other
    #[arg(long)]
    no_eval: bool,
    /// Do not pass the umask on: 0022 in the container
    #[arg(long)]
    no_umask: bool,
    /// A user namespace: always so
    #[arg(short, long)]
    userns: bool,
    /// Own process numbers; all processes end with the program
    #[arg(short, long)]
    pid: bool,
    /// Own shared memory, semaphores and message queues
    #[arg(short, long)]
    ipc: bool,
    /// Own name of the machine
    #[arg(long)]
    uts: bool,
    /// The machine's name in the container; implies --uts
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Own network, with nothing but the loopback interface: needs --network none
    #[arg(short, long)]
    net: bool,
    /// The kind of network that --net makes
    #[arg(long, value_name = "KIND", value_parser = ["none"])]
    network: Option<String>,
    /// Let the program write into the image; what it writes is in memory and gone with it
    #[arg(long)]
    writable_tmpfs: bool,
    /// Let the program write into the image, and keep what it writes in this directory [DIR:ro: show it, keep nothing]
    #[arg(short, long, value_name = "DIR[:ro]")]
    overlay: Vec<OsString>,
    /// Be root in the container: the only user that is mapped, with rights over nothing but your own files
    #[arg(short, long)]
    fakeroot: bool,
    /// Show the host's NVIDIA driver: libraries, programs, devices
    #[arg(long)]
    nv: bool,
    /// Show the host's ROCm driver
    #[arg(long)]
    rocm: bool,
    /// Start in the image's WORKDIR, as Docker does; Singularity does not
    #[arg(long)]
    oci_defaults: bool,
    /// For command lines written for Singularity: no effect, the program has no more rights than you have
    #[arg(long, hide = true, value_name = "WORDS")]
    security: Vec<String>,
    /// For command lines written for Singularity: no effect
    #[arg(long, hide = true)]
    no_init: bool,
    /// For command lines written for Singularity: no effect
    #[arg(long, hide = true)]
    no_privs: bool,
    /// How long the image stays mounted for the next program when this one has ended, in seconds; also $SIFON_LINGER
    #[arg(long, value_name = "SECONDS", env = "SIFON_LINGER", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=86_400 * 7))]
    linger: u32,
    /// Share nothing with other programs: a server and a mount for this one alone, and --pid
    #[arg(long)]
    private: bool,
}

/// What is started.
pub enum Action {
    /// A program with its arguments: `exec`.
    Exec(Vec<OsString>),
    /// What the image names, with these arguments: `run`.
    Run(Vec<OsString>),
    /// What an image has for instances, with these arguments; else nothing.
    Instance(Vec<OsString>),
    /// A shell, this one or the image's, with these arguments: `shell`.
    Shell(Option<PathBuf>, Vec<OsString>),
}

impl Action {
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Run(_) => "run",
            Self::Shell(..) => "shell",
            Self::Instance(_) => "start",
        }
    }
}

/// Becomes the program; returns only if that fails.
pub fn run(
    context: &Context,
    args: &Args,
    image: &OsStr,
    action: Action,
) -> Result<ExitCode, Error> {
    match start(context, &args.resolved(), image, action, None)? {}
}

/// Becomes an instance: the program goes on by itself once `detached` was told that it begins. Returns only if that fails.
pub fn become_instance(
    context: &Context,
    args: &Args,
    image: &OsStr,
    action: Action,
    detached: Detached,
) -> Result<Infallible, Error> {
    let mut args = args.resolved();
    args.pid = true;
    args.linger = 0;
    start(context, &args, image, action, Some(detached))
}

impl Args {
    /// With what variables say, and what options imply.
    fn resolved(&self) -> Self {
        let mut args = self.clone();
        for (flag, name) in [
            (&mut args.no_home, "NO_HOME"),
            (&mut args.contain, "CONTAIN"),
            (&mut args.containall, "CONTAINALL"),
            (&mut args.compat, "COMPAT"),
            (&mut args.cleanenv, "CLEANENV"),
            (&mut args.no_eval, "NO_EVAL"),
            (&mut args.no_umask, "NO_UMASK"),
            (&mut args.pid, "UNSHARE_PID"),
            (&mut args.ipc, "UNSHARE_IPC"),
            (&mut args.uts, "UNSHARE_UTS"),
            (&mut args.net, "UNSHARE_NET"),
            (&mut args.writable_tmpfs, "WRITABLE_TMPFS"),
            (&mut args.fakeroot, "FAKEROOT"),
            (&mut args.nv, "NV"),
            (&mut args.rocm, "ROCM"),
        ] {
            *flag |= variable(name).is_some_and(|value| is_true(&value));
        }
        args.home = args.home.or_else(|| variable("HOME"));
        args.workdir = args.workdir.or_else(|| variable("WORKDIR").map(Into::into));
        args.hostname = args
            .hostname
            .or_else(|| variable("HOSTNAME")?.into_string().ok());
        args.pwd = args
            .pwd
            .or_else(|| variable("PWD").or_else(|| variable("CWD")).map(Into::into));
        args.env_file = args
            .env_file
            .or_else(|| variable("ENV_FILE").map(Into::into));
        if args.overlay.is_empty() {
            args.overlay = listed(variable("OVERLAY"));
        }
        args.no_mount.extend(
            listed(variable("NO_MOUNT"))
                .into_iter()
                .filter_map(|name| name.into_string().ok()),
        );
        args.mount.extend(variable("MOUNT"));
        args.containall |= args.compat;
        args.no_umask |= args.compat;
        args.no_eval |= args.compat;
        args.writable_tmpfs |= args.compat && args.overlay.is_empty();
        args.contain |= args.containall;
        args.pid |= args.containall || args.private;
        args.ipc |= args.containall;
        args.cleanenv |= args.containall;
        args.uts |= args.hostname.is_some();
        args
    }

    /// Whether the user is root inside.
    pub fn is_root_inside(&self) -> bool {
        self.resolved().fakeroot
    }

    fn requested_binds(&self) -> Result<(Vec<BindRequest>, Vec<u8>), Error> {
        let mut texts = self.bind.clone();
        for suffix in ["BIND", "BINDPATH"] {
            texts.extend(variable(suffix));
        }
        texts.retain(|text| !text.is_empty());
        let mut binds = Vec::new();
        for text in &texts {
            binds.extend(bind::requests(text)?);
        }
        for text in &self.mount {
            binds.extend(bind::mounts(text)?);
        }
        Ok((binds, texts.join(OsStr::new(",")).into_vec()))
    }

    fn options(&self, binds: Vec<BindRequest>) -> Result<Options, Error> {
        let mut driver = Vec::new();
        let mut devices = Vec::new();
        for (is_wanted, kind) in [(self.nv, &gpu::NVIDIA), (self.rocm, &gpu::ROCM)] {
            if is_wanted {
                driver.extend(kind.binds());
                devices.extend(kind.devices());
            }
        }
        Ok(Options {
            binds,
            home: self.home.as_deref().map(home).transpose()?,
            is_without_home: self.no_home,
            left_out: self.no_mount.clone(),
            is_contained: self.contain,
            has_own_processes: self.pid,
            work_directory: self.workdir.as_deref().map(work_directory).transpose()?,
            scratch: self.scratch.clone(),
            host_name: self.hostname.clone(),
            driver,
            devices,
            directory: self.pwd.clone(),
        })
    }

    fn environment(
        &self,
        image: &OsStr,
        action: &Action,
        home: Option<&Path>,
        bind: Vec<u8>,
    ) -> Result<Sources, Error> {
        let mut asked = Variables::new();
        if let Some(file) = &self.env_file {
            let text =
                fs::read(file).map_err(|err| format!("--env-file {}: {err}", file.display()))?;
            asked.extend(environment::file(&text));
        }
        asked.extend(assignments(&self.env)?);
        Ok(Sources {
            host: std::env::vars_os()
                .map(|(name, value)| (name.into_vec(), value.into_vec()))
                .collect(),
            image: Variables::new(),
            asked,
            is_clean: self.cleanenv,
            is_literal: self.no_eval,
            home: home.map(|home| home.as_os_str().as_bytes().to_vec()),
            name: name_of(image.as_bytes()).to_vec(),
            container: image.as_bytes().to_vec(),
            bind,
            command: action.verb().into(),
        })
    }

    fn writable(&self) -> Result<Writable, Error> {
        let overlays = self
            .overlay
            .iter()
            .map(|text| overlay(text))
            .collect::<Result<Vec<_>, Error>>()?;
        let writable = overlays.iter().filter(|overlay| !overlay.is_read_only);
        if writable.count() > 1 {
            return Err(
                "--overlay: only one directory can be written to; add :ro to the others".into(),
            );
        }
        Ok(Writable {
            in_memory: self.writable_tmpfs,
            overlays,
        })
    }
}

/// A variable of the user's, under the first of the three names that is set.
fn variable(suffix: &str) -> Option<OsString> {
    ["SIFON", "APPTAINER", "SINGULARITY"]
        .iter()
        .find_map(|prefix| std::env::var_os(format!("{prefix}_{suffix}")))
        .filter(|value| !value.is_empty())
}

fn is_true(value: &OsStr) -> bool {
    let value = value.to_string_lossy().to_ascii_lowercase();
    matches!(value.as_str(), "1" | "t" | "true" | "y" | "yes" | "on")
}

fn listed(text: Option<OsString>) -> Vec<OsString> {
    let text = text.unwrap_or_default();
    let parts = text.as_bytes().split(|&byte| byte == b',');
    parts
        .filter(|part| !part.is_empty())
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect()
}

/// `SOURCE[:TARGET]` of `--home`, both absolute.
fn home(text: &OsStr) -> Result<(PathBuf, PathBuf), Error> {
    let mut parts = text.as_bytes().splitn(2, |&byte| byte == b':');
    let source = OsStr::from_bytes(parts.next().unwrap_or_default());
    let source = std::path::absolute(source)?;
    if !source.is_dir() {
        return Err(format!("--home: {} is no directory", source.display()).into());
    }
    let target = match parts.next() {
        Some(target) => PathBuf::from(OsStr::from_bytes(target)),
        None => source.clone(),
    };
    if !target.is_absolute() {
        return Err(format!("--home: {} must be an absolute path", target.display()).into());
    }
    Ok((source, target))
}

/// The directory of `--workdir`, with those in it that are shown.
fn work_directory(directory: &Path) -> Result<PathBuf, Error> {
    let directory = std::path::absolute(directory)?;
    for name in ["tmp", "var_tmp", "home", "scratch"] {
        let path = directory.join(name);
        fs::create_dir_all(&path).map_err(|err| format!("--workdir: {}: {err}", path.display()))?;
    }
    Ok(directory)
}

/// `DIR[:ro]` of `--overlay`, with the directories that Singularity makes in it.
fn overlay(text: &OsStr) -> Result<Overlay, Error> {
    let bytes = text.as_bytes();
    let (path, is_read_only) = match bytes.strip_suffix(b":ro") {
        Some(path) => (path, true),
        None => (bytes, false),
    };
    let directory = std::path::absolute(OsStr::from_bytes(path))?;
    let shown = directory.display();
    if !directory.is_dir() {
        return Err(format!(
            "--overlay {shown}: no directory; images with overlays in them are not supported yet"
        )
        .into());
    }
    if !is_read_only {
        for name in ["upper", "work"] {
            fs::create_dir_all(directory.join(name))
                .map_err(|err| format!("--overlay {shown}: {err}"))?;
        }
    }
    Ok(Overlay {
        directory,
        is_read_only,
    })
}

fn start(
    context: &Context,
    args: &Args,
    image: &OsStr,
    action: Action,
    detached: Option<Detached>,
) -> Result<Infallible, Error> {
    if let Some(name) = image.as_bytes().strip_prefix(b"instance://") {
        return join(args, OsStr::from_bytes(name), action);
    }
    let reference = parsed(image)?;
    if args.net && args.network.as_deref() != Some("none") {
        return Err("--net: without root only --network none can be had".into());
    }
    let (binds, bind_text) = args.requested_binds()?;
    let group = match args.private {
        true => Group::of_nobody_else()?,
        false => Group::of_caller(kind(args))?,
    };
    // It starts while this process finds out the rest.
    let server = Server::reach(&group, serve::VERB, kind(args))?;
    let mut identity = match args.fakeroot {
        true => Identity::root()?,
        false => Identity::of_caller()?,
    };
    let directory = std::env::current_dir()
        .ok()
        .filter(|directory| directory.is_absolute());
    let options = args.options(binds)?;
    if let (Some((_, target)), Some(user)) = (&options.home, &mut identity.user) {
        user.home = target.as_os_str().as_bytes().to_vec();
    }
    for path in options.scratch.iter().filter(|_| args.workdir.is_some()) {
        if let Some(work_directory) = &options.work_directory {
            fs::create_dir_all(work_directory.join(format!("scratch/{}", path.display())))?;
        }
    }
    let host = Host {
        identity: &identity,
        directory: directory.as_deref(),
        kind_of: &kind_of,
    };
    let plan = plan::plan(&options, &host)?;
    let environment = args.environment(image, &action, plan.home.as_deref(), bind_text)?;
    let progress = context.output.progress();
    let launch = Launch {
        identity: &identity,
        plan: &plan,
        environment,
        settings: serde_json::to_value(&context.settings)?,
        image: reference.to_string().into(),
        linger: match args.private {
            true => Duration::ZERO,
            false => Duration::from_secs(args.linger.into()),
        },
        isolation: Isolation {
            processes: args.pid,
            communication: args.ipc,
            name: args.uts,
            host_name: args.hostname.clone(),
            network: args.net,
        },
        writable: args.writable()?,
        umask: args.no_umask.then_some(0o022),
        starts_where_image_says: args.oci_defaults && args.pwd.is_none(),
        is_root_inside: args.fakeroot,
        detached,
        hears: &Told(progress),
        report: &|error| fatal(&error, error.hint()),
    };
    let is_literal = args.no_eval;
    Ok(launch.become_program(server, |ready, variables| {
        words(action, ready, variables, is_literal)
    })?)
}

/// Becomes a program in an instance.
fn join(args: &Args, name: &OsStr, action: Action) -> Result<Infallible, Error> {
    let shown = name.display();
    let instance = name
        .to_str()
        .filter(|name| instance::is_name(name))
        .and_then(|name| register().find(name))
        .ok_or_else(|| format!("no instance found with name {shown}"))?;
    let identity = Identity::of_caller()?;
    let home = identity.home();
    let image = OsString::from(&instance.image);
    let environment = args.environment(&image, &action, home.as_deref(), Vec::new())?;
    let directories = match &args.pwd {
        Some(directory) => vec![directory.clone()],
        None => {
            let here = std::env::current_dir().ok();
            here.into_iter()
                .chain(home)
                .chain([PathBuf::from("/")])
                .collect()
        }
    };
    let is_literal = args.no_eval;
    let words = |ready: &Ready, variables: &Variables| words(action, ready, variables, is_literal);
    let report = |error: container::Error| fatal(&error, error.hint());
    Ok(instance.become_program(environment, &directories, words, &report)?)
}

/// Where this user's instances are.
pub fn register() -> Register {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".sifon"));
    let directory = variable("CONFIGDIR").map(PathBuf::from).or_else(home);
    Register::below(&directory.unwrap_or_else(std::env::temp_dir))
}

/// Which users there are in the server's user namespace.
fn kind(args: &Args) -> &'static str {
    match args.fakeroot {
        true => serve::ROOT_INSIDE,
        false => "",
    }
}

/// The program and its arguments; called inside the container.
fn words(
    action: Action,
    ready: &Ready,
    variables: &Variables,
    is_literal: bool,
) -> Result<Vec<OsString>, container::Error> {
    match action {
        Action::Exec(words) => Ok(words),
        Action::Run(arguments) => run_words(arguments, ready, variables, is_literal),
        Action::Instance(arguments) => {
            const SCRIPT: &str = "/.singularity.d/startscript";
            let mut words: Vec<OsString> = Vec::new();
            if Path::new(SCRIPT).exists() {
                words.push(SCRIPT.into());
                words.extend(arguments);
            }
            Ok(words)
        }
        Action::Shell(shell, arguments) => {
            let mut words = match shell {
                Some(shell) => vec![shell.into_os_string()],
                None if Path::new("/bin/bash").exists() => {
                    vec!["/bin/bash".into(), "--norc".into()]
                }
                None => vec!["/bin/sh".into()],
            };
            words.extend(arguments);
            Ok(words)
        }
    }
}

/// The script of an image that Singularity made, or ENTRYPOINT and CMD as Docker joins them: arguments take the place of CMD. Arguments
/// are evaluated once more, as Singularity does in an image from a registry.
fn run_words(
    arguments: Vec<OsString>,
    ready: &Ready,
    variables: &Variables,
    is_literal: bool,
) -> Result<Vec<OsString>, container::Error> {
    const SCRIPT: &str = "/.singularity.d/runscript";
    let named = |words: &[Vec<u8>]| -> Vec<OsString> {
        words.iter().cloned().map(OsString::from_vec).collect()
    };
    let mut words = named(&ready.entrypoint);
    if words.is_empty() && ready.command.is_empty() && Path::new(SCRIPT).exists() {
        words.push(SCRIPT.into());
        words.extend(arguments);
        return Ok(words);
    }
    if arguments.is_empty() {
        words.extend(named(&ready.command));
    }
    for argument in arguments {
        words.push(match is_literal {
            true => argument,
            false => OsString::from_vec(environment::evaluated(argument.as_bytes(), variables)),
        });
    }
    match words.is_empty() {
        true => Err(container::Error::Refused(
            "this image has neither ENTRYPOINT nor CMD: say what to run".into(),
        )),
        false => Ok(words),
    }
}

fn kind_of(path: &Path) -> Option<TargetKind> {
    let found = fs::metadata(path).ok()?;
    Some(if found.is_dir() {
        TargetKind::Directory
    } else {
        TargetKind::File
    })
}

/// `NAME=VALUE`, several separated by commas; a piece without a name belongs to the value before it.
fn assignments(texts: &[OsString]) -> Result<Variables, Error> {
    let mut variables = Variables::new();
    for text in texts {
        let mut is_first = true;
        for piece in text.as_bytes().split(|&byte| byte == b',') {
            match (named(piece), variables.last_mut()) {
                (Some((name, value)), _) => variables.push((name.to_vec(), value.to_vec())),
                (None, Some((_, value))) if !is_first => {
                    value.push(b',');
                    value.extend_from_slice(piece);
                }
                (None, _) => {
                    return Err(format!("--env {}: expected NAME=VALUE", text.display()).into());
                }
            }
            is_first = false;
        }
    }
    Ok(variables)
}

fn named(piece: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = piece.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (&piece[..equals], &piece[equals + 1..]);
    let is_name = name.first().is_some_and(|byte| !byte.is_ascii_digit())
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    is_name.then_some((name, value))
}

/// What the image is called inside: the last part of its name.
fn name_of(image: &[u8]) -> &[u8] {
    image.rsplit(|&byte| byte == b'/').next().unwrap_or(image)
}

/// Shows the user how the opening of an image goes.
struct Told(OnProgress);

impl Hears for Told {
    fn step(&self, step: serde_json::Value) {
        // One that this version does not know is not worth failing for.
        if let Ok(step) = serde_json::from_value(step) {
            (self.0)(step);
        }
    }

    fn message(&self, line: &str) {
        // Nothing can be said where stderr is closed.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// What the user can do about an error of a container.
pub fn hint(error: &Error) -> Option<String> {
    error
        .downcast_ref::<container::Error>()?
        .hint()
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_split_at_commas_before_names() {
        let list = |texts: &[&str]| {
            let texts: Vec<OsString> = texts.iter().map(OsString::from).collect();
            assignments(&texts).map(|list| {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                list.into_iter()
                    .map(|(name, value)| (text(name), text(value)))
                    .collect::<Vec<_>>()
            })
        };
        for (texts, expected) in [
            (&["A=1"][..], &[("A", "1")][..]),
            (&["A=1,B=2"], &[("A", "1"), ("B", "2")]),
            (&["A=1,2,B=x=y"], &[("A", "1,2"), ("B", "x=y")]),
            (&["A=", "B=a, b"], &[("A", ""), ("B", "a, b")]),
        ] {
            let expected: Vec<(String, String)> = expected
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect();
            assert_eq!(list(texts).unwrap(), expected);
        }
        for texts in [&["A"][..], &["=1"], &["1=2"], &["A=1", "B"]] {
            assert!(list(texts).is_err(), "{texts:?}");
        }
    }
}
