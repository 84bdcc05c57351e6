//! What `exec`, `run` and `shell` have in common: a program in an image.

mod assignments;
mod limits;
mod options;
mod overlays;
mod variables;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::Access;
use sifon_mount::image::open::OnProgress;
use sifon_mount::reference::Reference;

use super::serve;
use crate::container;
use crate::container::app;
use crate::container::client::{Hears, Server};
use crate::container::directory::Directory;
use crate::container::identity::Identity;
use crate::container::instance::{self, Detached, Register};
use crate::container::launch::{Isolation, Launch};
use crate::container::meeting::Group;
use crate::container::namespaces::Privilege;
use crate::container::plan::{self, Host, TargetKind};
use crate::container::runscript;
use crate::container::subids::Ranges;
use crate::container::variables::{Variables, evaluated};
use crate::container::wire::{Ready, Request};
use crate::output::fatal;
use crate::setting::{Context, Error, image_or_directory, require_own};

pub use options::Args;
use variables::variable;

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

    /// The program that the user names.
    fn program(&self) -> Option<&OsString> {
        match self {
            Self::Exec(words) => words.first(),
            Self::Run(_) | Self::Instance(_) | Self::Shell(..) => None,
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
    match start(context, &args.resolved()?, image, action, None)? {}
}

/// Becomes an instance: the program goes on by itself once `detached` was told that it begins. Returns only if that fails.
pub fn become_instance(
    context: &Context,
    args: &Args,
    image: &OsStr,
    action: Action,
    detached: Detached,
) -> Result<Infallible, Error> {
    let mut args = args.resolved()?;
    args.pid = true;
    args.linger = 0;
    start(context, &args, image, action, Some(detached))
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
    let reference = image_or_directory(image)?;
    let in_directory = match &reference {
        Reference::Directory(path) => Some(directory(path, args.writable)?),
        _ => None,
    };
    if args.net && args.network.as_deref() != Some("none") {
        return Err("--net: without root only --network none can be had".into());
    }
    let (binds, bind_text) = args.requested_binds()?;
    let kind = kind(args);
    let group = match args.private {
        true => Group::of_nobody_else()?,
        false => Group::of_caller(kind)?,
    };
    let settings = serde_json::to_value(&context.settings)?;
    let own_settings = match in_directory {
        // What is in it is the kernel's business: of what there is to be shown beside, nothing is worth keeping.
        Some(_) => serde_json::to_value(context.settings.keeping_nothing())?,
        None => settings.clone(),
    };
    let linger = match args.private {
        true => Duration::ZERO,
        false => Duration::from_secs(args.linger.into()),
    };
    let progress = context.output.progress();
    let told = Told(progress);
    let opened = |file: &Path, part: &Path| -> Result<OwnedFd, Error> {
        let request = Request {
            settings: settings.clone(),
            image: file.into(),
            targets: Vec::new(),
            linger,
            is_bare: true,
            program: None,
        };
        Ok(Server::tree(
            &group,
            serve::VERB,
            kind,
            request,
            part,
            &told,
        )?)
    };
    let writable = args.writable(&reference, |file| opened(file, Path::new("/")))?;
    let from_images = options::from_images(&binds, opened)?;
    // It starts while this process finds out the rest.
    let server = Server::reach(&group, serve::VERB, kind)?;
    let mut identity = match args.fakeroot {
        true => Identity::root()?,
        false => Identity::of_caller()?,
    };
    let here = current_directory();
    let mut options = args.options(binds)?;
    options.adds_no_names = in_directory.as_ref().is_some_and(|from| from.is_written);
    options.from_images = from_images.iter().map(|(kind, _)| *kind).collect();
    if let (Some((_, target)), Some(user)) = (&options.home, &mut identity.user) {
        user.home = target.as_os_str().as_bytes().to_vec();
    }
    let host = Host {
        identity: &identity,
        directory: here.as_ref().map(|(directory, _)| &**directory),
        named_directory: here.as_ref().map(|(_, named)| &**named),
        kind_of: &kind_of,
    };
    let plan = plan::plan(&options, &host)?;
    let environment = args.environment(image, &action, plan.home.as_deref(), bind_text)?;
    let launch = Launch {
        identity: &identity,
        plan: &plan,
        environment,
        settings: own_settings,
        from_images: from_images.into_iter().map(|(_, tree)| tree).collect(),
        image: reference.written().into(),
        directory: in_directory,
        program: action.program().cloned(),
        linger,
        isolation: Isolation {
            processes: args.pid,
            communication: args.ipc,
            name: args.uts,
            host_name: args.hostname.clone(),
            network: args.net,
        },
        writable,
        umask: args.no_umask.then_some(0o022),
        starts_where_image_says: args.oci_defaults && args.pwd.is_none(),
        is_root_inside: args.fakeroot,
        detached,
        hears: &told,
        report: &|error| fatal(&error, error.hint()),
    };
    let (is_literal, app) = (args.no_eval, args.app.as_deref());
    Ok(launch.become_program(server, |ready, variables| {
        words(action, ready, variables, is_literal, app)
    })?)
}

/// The directory at `path` in the place of an image.
fn directory(path: &Path, is_written: bool) -> Result<Directory, Error> {
    // Of the host's own root directory a container would be no container.
    if fs::canonicalize(path)? == Path::new("/") {
        return Err("/ as sandbox is not authorized".into());
    }
    Ok(Directory {
        path: path.to_owned(),
        is_written,
    })
}

/// Becomes a program in an instance.
fn join(args: &Args, name: &OsStr, action: Action) -> Result<Infallible, Error> {
    let shown = name.display();
    let register = register()?;
    let instance = name
        .to_str()
        .filter(|name| instance::is_name(name))
        .and_then(|name| register.find(name))
        .ok_or_else(|| format!("no instance found with name {shown}"))?;
    let identity = Identity::of_caller()?;
    let home = instance.home.clone().or_else(|| identity.home());
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
    let (is_literal, app) = (args.no_eval, args.app.as_deref());
    let words =
        |ready: &Ready, variables: &Variables| words(action, ready, variables, is_literal, app);
    let report = |error: container::Error| fatal(&error, error.hint());
    Ok(instance.become_program(environment, &directories, words, &report)?)
}

/// Where this user's instances are: below $HOME; where that is not set, in a directory of the user's own beside other
/// temporary ones.
pub fn register() -> Result<Register, Error> {
    let home = || std::env::var_os("HOME").filter(|home| !home.is_empty());
    let below_home = || home().map(|home| PathBuf::from(home).join(".sifon"));
    let directory = match variable("CONFIGDIR").map(PathBuf::from).or_else(below_home) {
        Some(directory) => directory,
        None => {
            let uid = rustix::process::geteuid().as_raw();
            let directory = std::env::temp_dir().join(format!("sifon-{uid}"));
            require_own(&directory)
                .map_err(|err| format!("instances, as $HOME is not set: {err}"))?;
            directory
        }
    };
    Ok(Register::below(&directory))
}

/// Which users there are in the server's user namespace.
fn kind(args: &Args) -> &'static str {
    if !args.fakeroot {
        return "";
    }
    match Ranges::of_caller() {
        _ if Privilege::of_caller() == Privilege::Root => {
            tracing::debug!("--fakeroot: root is root already");
            serve::ROOT_INSIDE
        }
        Ok(Ranges { users, groups }) => {
            tracing::debug!(
                "--fakeroot: root, and {} users from {} on, {} groups from {} on",
                users.count,
                users.first,
                groups.count,
                groups.first
            );
            serve::ROOT_AND_OTHERS
        }
        Err(problem) => {
            tracing::debug!("--fakeroot: root alone, no other user: {problem}");
            serve::ROOT_INSIDE
        }
    }
}

/// The program and its arguments; called inside the container.
fn words(
    action: Action,
    ready: &Ready,
    variables: &Variables,
    is_literal: bool,
    app: Option<&OsStr>,
) -> Result<Vec<OsString>, container::Error> {
    match action {
        Action::Exec(words) => Ok(words),
        Action::Run(arguments) => match app {
            Some(app) => {
                let script = app::runscript(app)?.into_os_string();
                Ok([script].into_iter().chain(arguments).collect())
            }
            None => run_words(arguments, ready, variables, is_literal),
        },
        Action::Instance(arguments) => {
            let script = match app {
                Some(app) => app::startscript(app)?,
                None => Some(STARTSCRIPT.into())
                    .filter(|script: &PathBuf| ready.has_own_scripts && script.exists()),
            };
            let words = script.filter(|_| has_shell()).map(|script| {
                let script = script.into_os_string();
                [script].into_iter().chain(arguments).collect()
            });
            Ok(words.unwrap_or_default())
        }
        Action::Shell(shell, arguments) => {
            let is_there = |shell: &PathBuf| {
                let is_name = !shell.as_os_str().as_bytes().contains(&b'/');
                is_name || shell.exists()
            };
            if let Some(missing) = shell.as_ref().filter(|shell| !is_there(shell)) {
                tracing::warn!(
                    "the image has no {}: its own shell is used",
                    missing.display()
                );
            }
            let mut words = match shell.filter(is_there) {
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

/// Whether scripts can be run.
fn has_shell() -> bool {
    Path::new("/bin/sh").exists()
}

/// The script of an image that Singularity made, or ENTRYPOINT and CMD as Docker joins them: arguments take the place of CMD. Arguments
/// are evaluated once more, as Singularity does in an image from a registry.
fn run_words(
    arguments: Vec<OsString>,
    ready: &Ready,
    variables: &Variables,
    is_literal: bool,
) -> Result<Vec<OsString>, container::Error> {
    let named = |words: &[Vec<u8>]| -> Vec<OsString> {
        words.iter().cloned().map(OsString::from_vec).collect()
    };
    let (mut entrypoint, mut command) = (named(&ready.entrypoint), named(&ready.command));
    if entrypoint.is_empty() && command.is_empty() && ready.has_own_scripts {
        let needs_shell = !is_literal
            && arguments
                .iter()
                .any(|argument| runscript::needs_shell(argument));
        match own_words().filter(|_| !(needs_shell && has_shell())) {
            Some(words) => (entrypoint, command) = words,
            None => {
                let script = script();
                return Ok([script].into_iter().chain(arguments).collect());
            }
        }
    }
    let mut words = entrypoint;
    if arguments.is_empty() {
        words.extend(command);
    }
    for argument in arguments {
        words.push(match is_literal {
            true => argument,
            false => OsString::from_vec(evaluated(argument.as_bytes(), variables)),
        });
    }
    if words.is_empty() {
        // As under Singularity, where the script of such an image does nothing.
        tracing::warn!("this image has neither ENTRYPOINT nor CMD: say what to run");
        std::process::exit(0);
    }
    Ok(words)
}

const RUNSCRIPT: &str = "/.singularity.d/runscript";
const STARTSCRIPT: &str = "/.singularity.d/startscript";

/// What `run` starts in a container that may have a script for that, in Singularity's order.
fn script() -> OsString {
    let can_be_run = |path: &&str| rustix::fs::access(*path, Access::EXEC_OK).is_ok();
    if let Some(script) = [RUNSCRIPT, "/apptainer"]
        .iter()
        .copied()
        .find(|path| can_be_run(path))
    {
        return script.into();
    }
    if can_be_run(&"/bin/sh") {
        tracing::info!("No runscript found in container, executing /bin/sh");
        return "/bin/sh".into();
    }
    tracing::error!("No runscript and no /bin/sh executable found in container, aborting");
    std::process::exit(1)
}

/// Bytes of a runscript at most that is looked into.
const RUNSCRIPT_BYTES_LIMIT: u64 = 1 << 20;

/// ENTRYPOINT and CMD as the image's script has them, if it is one that only starts these.
fn own_words() -> Option<(Vec<OsString>, Vec<OsString>)> {
    rustix::fs::access(RUNSCRIPT, Access::EXEC_OK).ok()?;
    let script = fs::metadata(RUNSCRIPT).ok()?;
    if !script.is_file() || script.len() > RUNSCRIPT_BYTES_LIMIT {
        return None;
    }
    runscript::entrypoint_and_command(&fs::read(RUNSCRIPT).ok()?)
}

/// The current directory, without symlinks, and as $PWD has it if that is the same; none if it was removed.
fn current_directory() -> Option<(PathBuf, PathBuf)> {
    use std::os::unix::fs::MetadataExt;
    let directory = std::env::current_dir()
        .ok()
        .filter(|directory| directory.is_absolute())?;
    let of = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let is_plain = |path: &PathBuf| {
        let parts = path.components().skip(1);
        path.is_absolute() && parts.map(|part| part.as_os_str()).all(|part| part != "..")
    };
    let named = std::env::var_os("PWD").map(PathBuf::from);
    let named = named.filter(|named| is_plain(named) && of(named) == of(&directory));
    let named = named.unwrap_or_else(|| directory.clone());
    Some((directory, named))
}

fn kind_of(path: &Path) -> Option<TargetKind> {
    let found = fs::metadata(path).ok()?;
    Some(if found.is_dir() {
        TargetKind::Directory
    } else {
        TargetKind::File
    })
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
