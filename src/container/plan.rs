//! What a program will see of the host, decided before anything is done: a value.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::bind::BindRequest;
use super::error::Error;
use super::identity::Identity;

/// What a path is, as far as a mount cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum TargetKind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// What the command line and the user's environment variables ask for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--bind` and `--mount`, in order.
    pub binds: Vec<BindRequest>,
    /// What those of them show that come from file systems in files, in the same order.
    pub from_images: Vec<TargetKind>,
    /// `--home`: what is shown as home, and where.
    pub home: Option<(PathBuf, PathBuf)>,
    /// `--no-home`.
    pub is_without_home: bool,
    /// `--no-mount`: names of what is otherwise always there, or paths of files.
    pub left_out: Vec<String>,
    /// `--contain`: home, temporary directories and devices are the container's own.
    pub is_contained: bool,
    /// `--pid`: /proc shows the container's processes only.
    pub has_own_processes: bool,
    /// `--workdir`: a directory with `tmp`, `var_tmp`, `home` and `scratch` in it, for what would be in memory otherwise.
    pub work_directory: Option<PathBuf>,
    /// `--scratch`: directories of the container's own.
    pub scratch: Vec<PathBuf>,
    /// Name of the machine in the container, if that is another one.
    pub host_name: Option<String>,
    /// Libraries and programs of the host's graphics driver.
    pub driver: Vec<BindRequest>,
    /// Devices that are there even if the container has its own, below /dev.
    pub devices: Vec<PathBuf>,
    /// `--dns`: who is asked for names, in place of what the host asks.
    pub name_servers: Vec<IpAddr>,
    /// `--pwd`: where the program starts; must exist in the container.
    pub directory: Option<PathBuf>,
    /// `--writable` with a directory: no name is added to it, so that what has no place there is left out.
    pub adds_no_names: bool,
}

/// What the plan depends on of the machine.
pub struct Host<'a> {
    /// Who calls.
    pub identity: &'a Identity,
    /// The current directory, without symlinks; none if it was removed or cannot be named.
    pub directory: Option<&'a Path>,
    /// The same as the caller's shell names it, perhaps through symlinks.
    pub named_directory: Option<&'a Path>,
    /// What a path of the host is, symlinks followed; none if it is not there or cannot be reached.
    pub kind_of: &'a dyn Fn(&Path) -> Option<TargetKind>,
}

/// Everything to do between joining the image's namespaces and becoming the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are made: a later one may lie inside an earlier one.
    pub binds: Vec<Bind>,
    /// Where the program starts: the first of these that can be entered.
    pub directories: Vec<PathBuf>,
    /// The home directory in the container, whether or not it is bound.
    pub home: Option<PathBuf>,
}

/// One bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// What is shown.
    pub source: Source,
    /// Where, as an absolute path in the container.
    pub target: PathBuf,
    /// What the source is.
    pub kind: TargetKind,
    /// Whether writing through it is refused.
    pub is_read_only: bool,
    /// Whether the program must not start without it.
    pub is_required: bool,
    /// What happens if the image does not have the target.
    pub if_missing: IfMissing,
    /// Whether a symlink at the target is covered itself, not what it points to.
    pub covers_link: bool,
}

/// What a bind mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing that stays: where what only this container has is made.
    Stage,
    /// A path of the host, with everything mounted below it.
    Host(PathBuf),
    /// Part of a file system in a file: the one of this number in [`Options::from_images`].
    FromImage(usize),
    /// The image's /etc/passwd with the caller in it.
    Passwd,
    /// The image's /etc/group with the caller's groups in it.
    Group,
    /// A directory in memory, with these permissions.
    Memory(u32),
    /// /dev with the devices that every program needs, and these.
    Devices(Vec<PathBuf>),
    /// /proc of the container's own processes.
    Processes,
    /// A file with this content.
    Text(Vec<u8>),
}

/// What happens if the image does not have a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum IfMissing {
    /// The name is shown beside the image's own.
    Add,
    /// The bind is left out.
    Skip,
}

/// A current directory with one of these names is the system's, and the image has its own.
const SYSTEM_DIRECTORIES: [&str; 10] = [
    "/", "/etc", "/bin", "/mnt", "/usr", "/var", "/opt", "/sbin", "/lib", "/lib64",
];

/// Where files of the container's own are made, before libraries of the host are shown there.
const STAGE: &str = "/.singularity.d/libs";

/// The plan for a program that `options` and `host` describe.
pub fn plan(options: &Options, host: &Host<'_>) -> Result<Plan, Error> {
    let home = match &options.home {
        Some((_, target)) => Some(target.clone()),
        None => host.identity.home(),
    };
    let home = home.filter(|home| home != Path::new("/"));
    // First, because nothing below could hide the image's own files from them.
    let mut binds = vec![
        Bind {
            kind: TargetKind::Directory,
            if_missing: IfMissing::Add,
            ..identity_file(Source::Stage, STAGE)
        },
        identity_file(Source::Passwd, "/etc/passwd"),
        identity_file(Source::Group, "/etc/group"),
    ];
    binds.extend(system(options, host));
    if !options.leaves_out("bind-paths") {
        binds.extend(configured(options, host));
    }
    let shown = home_directory(options, host, home.as_deref());
    binds.extend(shown.as_ref().and_then(|home| above_home(options, home)));
    binds.extend(shown);
    binds.extend(temporary(options, host));
    for path in &options.scratch {
        let inside = format!("scratch/{}", path.display());
        binds.push(own_directory(options, path, &inside, 0o755));
    }
    for directory in [host.directory, host.named_directory].into_iter().flatten() {
        binds.extend(current_directory(&binds, options, host, directory));
    }
    binds.extend(resolver(options, host));
    if options.adds_no_names {
        for bind in &mut binds {
            bind.is_required &=
                bind.target == Path::new("/dev") || options.scratch.contains(&bind.target);
        }
    }
    let mut from_images = options.from_images.iter().enumerate();
    for request in &options.binds {
        binds.push(match &request.within_image {
            None => asked_for(request, host)?,
            Some(_) => {
                let shown = from_images.next();
                let (number, &kind) = shown.expect("every image that a bind names was opened");
                let source = Source::FromImage(number);
                users_own(request, host, source, kind)
            }
        });
    }
    for request in &options.driver {
        let bind = asked_for(request, host)?;
        binds.push(Bind {
            is_required: false,
            ..bind
        });
    }
    Ok(Plan {
        binds,
        directories: directories(options, host, home.as_deref()),
        home,
    })
}

impl Options {
    fn leaves_out(&self, name: &str) -> bool {
        self.left_out.iter().any(|left_out| left_out == name)
    }
}

/// What no program works without.
fn system(options: &Options, host: &Host<'_>) -> Vec<Bind> {
    let mut binds = Vec::new();
    for (name, path) in [("proc", "/proc"), ("sys", "/sys"), ("dev", "/dev")] {
        if options.leaves_out(name) {
            continue;
        }
        let own = match name {
            "proc" if options.has_own_processes => Some(Source::Processes),
            "dev" if options.is_contained => Some(Source::Devices(options.devices.clone())),
            _ => None,
        };
        let bind = optional(host, path).map(|bind| Bind {
            source: own.unwrap_or(bind.source.clone()),
            is_required: true,
            ..bind
        });
        binds.extend(bind);
    }
    binds
}

/// Files that Singularity's configuration names by default.
fn configured(options: &Options, host: &Host<'_>) -> Vec<Bind> {
    let mut binds = Vec::new();
    if !options.leaves_out("/etc/hosts") {
        binds.extend(optional(host, "/etc/hosts"));
    }
    if !options.leaves_out("/etc/localtime") {
        binds.extend(optional(host, "/etc/localtime").map(|bind| Bind {
            covers_link: true,
            ..bind
        }));
    }
    binds
}

fn home_directory(options: &Options, host: &Host<'_>, home: Option<&Path>) -> Option<Bind> {
    let home = home.filter(|_| !options.is_without_home && !options.leaves_out("home"))?;
    match &options.home {
        Some((source, _)) => Some(Bind {
            target: home.to_path_buf(),
            is_required: true,
            ..optional(host, source)?
        }),
        None if options.is_contained => Some(own_directory(options, home, "home", 0o750)),
        None => optional(host, home),
    }
}

/// What covers the directory above `home`, as Singularity does where it can add no name to that.
fn above_home(options: &Options, home: &Bind) -> Option<Bind> {
    let above = home.target.parent()?;
    let is_wanted = options.adds_no_names && above != Path::new("/");
    is_wanted.then(|| Bind {
        kind: TargetKind::Directory,
        ..identity_file(Source::Memory(0o755), above)
    })
}

fn temporary(options: &Options, host: &Host<'_>) -> Vec<Bind> {
    if options.leaves_out("tmp") {
        return Vec::new();
    }
    let mut binds = Vec::new();
    for (path, inside) in [("/tmp", "tmp"), ("/var/tmp", "var_tmp")] {
        match options.is_contained {
            true => binds.push(own_directory(options, Path::new(path), inside, 0o1777)),
            false => binds.extend(optional(host, path)),
        }
    }
    binds
}

/// The machine's name and how it finds others.
fn resolver(options: &Options, host: &Host<'_>) -> Vec<Bind> {
    const RESOLV_CONF: &str = "/etc/resolv.conf";
    let mut binds: Vec<Bind> = match options.name_servers.as_slice() {
        [] => optional(host, RESOLV_CONF).into_iter().collect(),
        servers => {
            let lines = servers
                .iter()
                .map(|server| format!("nameserver {server}\n"));
            let text = lines.collect::<String>().into_bytes();
            vec![Bind {
                is_required: true,
                if_missing: IfMissing::Add,
                ..identity_file(Source::Text(text), RESOLV_CONF)
            }]
        }
    };
    if let Some(name) = &options.host_name {
        let text = format!("{name}\n").into_bytes();
        binds.push(Bind {
            if_missing: IfMissing::Add,
            ..identity_file(Source::Text(text), "/etc/hostname")
        });
    }
    binds
}

/// A directory that the host's has nothing to do with: in memory, or `inside` the user's directory for such.
fn own_directory(options: &Options, target: &Path, inside: &str, mode: u32) -> Bind {
    let source = match &options.work_directory {
        Some(directory) => Source::Host(directory.join(inside)),
        None => Source::Memory(mode),
    };
    Bind {
        source,
        target: target.to_path_buf(),
        kind: TargetKind::Directory,
        is_read_only: false,
        is_required: true,
        if_missing: IfMissing::Add,
        covers_link: false,
    }
}

/// The host's `path` at the same place, if the host has it.
fn optional(host: &Host<'_>, path: impl AsRef<Path>) -> Option<Bind> {
    let path = path.as_ref();
    let kind = (host.kind_of)(path)?;
    Some(Bind {
        source: Source::Host(path.to_path_buf()),
        target: path.to_path_buf(),
        kind,
        is_read_only: false,
        is_required: false,
        if_missing: IfMissing::Add,
        covers_link: false,
    })
}

/// A file of the image with the caller added; an image that has none needs none.
fn identity_file(source: Source, target: impl AsRef<Path>) -> Bind {
    Bind {
        source,
        target: target.as_ref().into(),
        kind: TargetKind::File,
        is_read_only: false,
        is_required: false,
        if_missing: IfMissing::Skip,
        covers_link: false,
    }
}

/// The user's own bind: a source that is not there is an error.
fn asked_for(request: &BindRequest, host: &Host<'_>) -> Result<Bind, Error> {
    let missing = || {
        Error::Refused(format!(
            "mount source {} doesn't exist",
            request.source.display()
        ))
    };
    let source = match host.directory {
        Some(directory) => directory.join(&request.source),
        None if request.source.is_absolute() => request.source.clone(),
        None => return Err(missing()),
    };
    let kind = (host.kind_of)(&source).ok_or_else(missing)?;
    Ok(users_own(request, host, Source::Host(source), kind))
}

/// The bind that a user asked for, of what that turned out to be.
fn users_own(request: &BindRequest, host: &Host<'_>, source: Source, kind: TargetKind) -> Bind {
    let target = match host.directory {
        Some(directory) => directory.join(&request.target),
        None => request.target.clone(),
    };
    Bind {
        source,
        target,
        kind,
        is_read_only: request.is_read_only,
        is_required: true,
        if_missing: IfMissing::Add,
        covers_link: false,
    }
}

/// The current directory, unless the program sees it anyway or must see the image's.
fn current_directory(
    binds: &[Bind],
    options: &Options,
    host: &Host<'_>,
    directory: &Path,
) -> Option<Bind> {
    let is_seen = binds.iter().any(|bind| directory.starts_with(&bind.target));
    let is_covered = options
        .binds
        .iter()
        .any(|request| directory.starts_with(&request.target));
    let is_the_systems = SYSTEM_DIRECTORIES
        .iter()
        .any(|system| directory == Path::new(system))
        || ["/sys", "/proc", "/dev"]
            .iter()
            .any(|virtual_| directory.starts_with(virtual_));
    let is_home = host.identity.home().as_deref() == Some(directory);
    let is_unwanted = options.is_contained || options.leaves_out("cwd");
    if is_unwanted
        || is_seen
        || is_covered
        || is_the_systems
        || (options.is_without_home && is_home)
    {
        return None;
    }
    // If there is no place for it, that is said where the program cannot start in it.
    let if_missing = match options.adds_no_names {
        true => IfMissing::Skip,
        false => IfMissing::Add,
    };
    optional(host, directory).map(|bind| Bind { if_missing, ..bind })
}

fn directories(options: &Options, host: &Host<'_>, home: Option<&Path>) -> Vec<PathBuf> {
    if let Some(directory) = &options.directory {
        return vec![directory.clone()];
    }
    let mut directories: Vec<PathBuf> = Vec::new();
    if !options.is_contained {
        let here = [host.named_directory, host.directory];
        directories.extend(here.into_iter().flatten().map(Path::to_path_buf));
        directories.dedup();
    }
    directories.extend(home.map(Path::to_path_buf));
    directories.push("/".into());
    directories
}

#[cfg(test)]
mod tests {
    use sifon_mount::sys::account::User;

    use super::*;

    fn identity(home: &str) -> Identity {
        let user = User {
            name: b"ada".to_vec(),
            gid: 100,
            comment: Vec::new(),
            home: home.into(),
            shell: b"/bin/sh".to_vec(),
        };
        Identity {
            uid: 1000,
            gid: 100,
            user: Some(user),
            groups: Vec::new(),
        }
    }

    fn kind_of(path: &Path) -> Option<TargetKind> {
        let files = [
            "/etc/hosts",
            "/etc/resolv.conf",
            "/etc/localtime",
            "/data/file",
        ];
        let missing = ["/missing", "/home/gone"];
        match path.to_str() {
            Some(path) if missing.contains(&path) => None,
            Some(path) if files.contains(&path) => Some(TargetKind::File),
            _ => Some(TargetKind::Directory),
        }
    }

    fn planned(options: &Options, home: &str, directory: Option<&str>) -> Plan {
        let identity = identity(home);
        let directory = directory.map(Path::new);
        plan(
            options,
            &Host {
                identity: &identity,
                directory,
                named_directory: None,
                kind_of: &kind_of,
            },
        )
        .unwrap()
    }

    fn targets(plan: &Plan) -> Vec<&str> {
        plan.binds
            .iter()
            .map(|bind| bind.target.to_str().unwrap())
            .collect()
    }

    fn bind(source: &str, target: &str) -> BindRequest {
        BindRequest {
            within_image: None,
            source: source.into(),
            target: target.into(),
            is_read_only: false,
        }
    }

    #[test]
    fn the_order_lets_later_binds_lie_inside_earlier_ones_and_the_users_come_last() {
        let options = Options {
            binds: vec![bind("/data", "/tmp/data")],
            ..Options::default()
        };
        assert_eq!(
            targets(&planned(&options, "/home/ada", Some("/scratch/x"))),
            [
                "/.singularity.d/libs",
                "/etc/passwd",
                "/etc/group",
                "/proc",
                "/sys",
                "/dev",
                "/etc/hosts",
                "/etc/localtime",
                "/home/ada",
                "/tmp",
                "/var/tmp",
                "/scratch/x",
                "/etc/resolv.conf",
                "/tmp/data",
            ]
        );
    }

    #[test]
    fn where_no_name_is_added_only_what_was_asked_for_and_devices_are_demanded() {
        let options = Options {
            binds: vec![bind("/data", "/of/user")],
            scratch: vec!["/own".into()],
            is_contained: true,
            adds_no_names: true,
            ..Options::default()
        };
        let plan = planned(&options, "/home/ada", None);
        let demanded = plan.binds.iter().filter(|bind| bind.is_required);
        let demanded: Vec<_> = demanded.map(|bind| bind.target.to_str().unwrap()).collect();
        assert_eq!(demanded, ["/dev", "/own", "/of/user"]);
        let home = targets(&plan)
            .into_iter()
            .position(|path| path == "/home/ada");
        let above = &plan.binds[home.unwrap() - 1];
        assert_eq!(above.target, Path::new("/home"));
        assert_eq!(above.source, Source::Memory(0o755));
    }

    #[test]
    fn the_current_directory_is_bound_only_where_nothing_else_shows_it() {
        for (directory, is_bound) in [
            ("/scratch/x", true),
            ("/usr/local/x", true),
            ("/homes", true),
            ("/home/ada/x", false),
            ("/tmp/x", false),
            ("/usr", false),
            ("/", false),
            ("/sys/fs", false),
            ("/proc/self", false),
            ("/missing", false),
            ("/covered/x", false),
        ] {
            let options = Options {
                binds: vec![bind("/data", "/covered")],
                ..Options::default()
            };
            let plan = planned(&options, "/home/ada", Some(directory));
            let bound = plan
                .binds
                .iter()
                .any(|bind| bind.source == Source::Host(directory.into()));
            assert_eq!(bound, is_bound, "{directory}");
        }
    }

    #[test]
    fn a_home_that_is_missing_or_the_root_directory_is_not_bound() {
        for home in ["/", "/home/gone", "", "relative"] {
            let plan = planned(&Options::default(), home, None);
            assert!(!targets(&plan).contains(&home), "{home}");
        }
        let options = Options {
            is_without_home: true,
            ..Options::default()
        };
        let plan = planned(&options, "/home/ada", Some("/home/ada"));
        assert!(!targets(&plan).contains(&"/home/ada"));
        assert_eq!(plan.home.as_deref(), Some(Path::new("/home/ada")));
    }

    #[test]
    fn the_program_starts_here_or_at_home_or_at_the_root() {
        let paths = |plan: Plan| plan.directories;
        let anywhere = planned(&Options::default(), "/home/ada", Some("/x"));
        assert_eq!(
            paths(anywhere),
            [Path::new("/x"), Path::new("/home/ada"), Path::new("/")]
        );
        let nowhere = planned(&Options::default(), "/", None);
        assert_eq!(paths(nowhere), [Path::new("/")]);
        let options = Options {
            directory: Some("/opt".into()),
            ..Options::default()
        };
        assert_eq!(
            paths(planned(&options, "/home/ada", Some("/x"))),
            [Path::new("/opt")]
        );
    }

    #[test]
    fn the_users_binds_are_required_and_relative_sources_start_here() {
        let options = Options {
            binds: vec![bind("sub", "/mnt/sub")],
            ..Options::default()
        };
        let plan = planned(&options, "/home/ada", Some("/scratch"));
        let last = plan.binds.last().unwrap();
        assert_eq!(last.source, Source::Host("/scratch/sub".into()));
        assert!(last.is_required);
        let identity = identity("/home/ada");
        let host = Host {
            identity: &identity,
            directory: None,
            named_directory: None,
            kind_of: &kind_of,
        };
        for source in ["/missing", "relative"] {
            let options = Options {
                binds: vec![bind(source, "/mnt/x")],
                ..Options::default()
            };
            let error = plan_error(&options, &host);
            assert_eq!(error, format!("mount source {source} doesn't exist"));
        }
    }

    fn plan_error(options: &Options, host: &Host<'_>) -> String {
        plan(options, host).unwrap_err().to_string()
    }
}
